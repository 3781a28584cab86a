"""`ConfidenceMiddleware`: in a LangChain agent, unsure calls do not run unseen and unsure answers do not go out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langgraph.config import get_config
from langgraph.runtime import Runtime
from langgraph.types import Command

from semgrad_guard._compat import has_checkpointer, var_child_runnable_config
from semgrad_guard.agents.calls import confidence_of
from semgrad_guard.agents.judging import Judge, JudgedMessage, agent_decision
from semgrad_guard.agents.review import decisions_on, reviewed
from semgrad_guard.calibration.profile import Profile
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.langchain.drafts import without_streams
from semgrad_guard.langchain.messages import last_question
from semgrad_guard.routing.ladder import DEFAULT_ABSTENTION

Calls = Literal["interrupt", "block", "annotate"]
Answers = Literal["abstain", "end", "annotate"]
_UNKNOWN = "it has no confidence"


class ConfidenceMiddleware(AgentMiddleware[Any, Any, Any]):
    """Judges every message of an agent's model once, when it is given, and holds what is not sure enough.

    The model is a `ChatSemGrad`. `agent_decision(message)` reads confidences and what was
    decided. List it last, so that no other middleware comes between it and the model.

    Other middleware may send a run straight to the tools (`jump_to="tools"`). A call that was rejected, blocked or
    answered, or that still waits for a human, does not run then either. A `ToolNode` of a graph written by hand gets
    the same check: `ToolNode(tools, wrap_tool_call=middleware.wrap_tool_call)`.
    """

    def __init__(
        self,
        profile: Profile | str | Path,
        *,
        calls: Calls = "interrupt",
        answers: Answers = "abstain",
        threshold: float | None = None,
        thresholds: Mapping[str, float] | None = None,
        answer_threshold: float | None = None,
        abstention: str = DEFAULT_ABSTENTION,
        retries: int = 1,
    ) -> None:
        """Set the standards, and what becomes of calls and answers that do not reach them.

        Args:
            profile: turns scores into confidence; a `Profile` or the path of its JSON.
            calls: "interrupt": a human approves, edits, rejects or answers the unsure calls of a message, before any of
                its calls runs; the request and the decisions are those of LangChain's `HumanInTheLoopMiddleware`.
                "block": an unsure call does not run, its arguments are taken out, and the model is told so.
                "annotate": it runs.
            answers: "abstain": `abstention` stands in the place of an unsure final answer; "end": nothing does;
                "annotate": it goes out. A structured response is an answer, and left out where it is unsure.
            threshold: least confidence of a tool call, in [0, 1]; default: that of the profile's section `tool_call`.
                Without such a section no call has a confidence, and none is sure.
            thresholds: the same for single tools, by name.
            answer_threshold: least confidence of an answer, in [0, 1]; default: the profile's.
            abstention: what an unsure answer is replaced by.
            retries: how often, for one question, the model may try again after a call of its was blocked; then the
                answer is an abstention.

        Raises:
            ConfigurationError: a policy is unknown, a threshold out of range, or `retries` negative.
            ProfileError: the file is no profile.
        """
        super().__init__()
        for name, value, known in (("calls", calls, get_args(Calls)), ("answers", answers, get_args(Answers))):
            if value not in known:
                raise ConfigurationError(f"{name}={value!r}: expected one of {', '.join(known)}.")
        if retries < 0:
            raise ConfigurationError(f"retries={retries}: expected 0 or more.")
        self._judge = Judge(profile, threshold, thresholds, answer_threshold)
        self._calls, self._answers, self._retries = calls, answers, retries
        self._abstention = "" if answers == "end" else abstention

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Let the model answer, unseen, and give what may be seen of it.

        Raises:
            ConfigurationError: the model gives no scores, or calls are to be interrupted without a checkpointer.
            ProfileError: the profile belongs to another model.
        """
        prepared = self._prepared(request)
        with _out_of_streams():
            response = handler(prepared)
        return self._settle(response, request)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Async twin of `wrap_model_call`."""
        prepared = self._prepared(request)
        with _out_of_streams():
            response = await handler(prepared)
        return self._settle(response, request)

    def after_model(self, state: Any, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Ask a human about the held calls; when the run resumes, go on from what stands in the message.

        Raises:
            ValidationError: (of pydantic) the decisions do not fit the calls; the run can be resumed again.
        """
        if self._calls != "interrupt":
            return None
        messages = state["messages"]
        index = next(i for i in range(len(messages) - 1, -1, -1) if isinstance(messages[i], AIMessage))
        message = messages[index]
        held = _held(message, messages[index + 1 :])
        if not held:
            return None
        return {"messages": reviewed(message, held, decisions_on(message, held))}

    async def aafter_model(self, state: Any, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Async twin of `after_model`."""
        return self.after_model(state, runtime)

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Run a call, unless it is answered already or is held without a decision; then give the message for that."""
        stopped = self._stopped(request)
        return handler(request) if stopped is None else stopped

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """Async twin of `wrap_tool_call`."""
        stopped = self._stopped(request)
        return await handler(request) if stopped is None else stopped

    def _stopped(self, request: ToolCallRequest) -> ToolMessage | None:
        """Give the message that stands in the place of a call that must not run; None where it may run."""
        call = request.tool_call
        message, after = _turn(request.state, call["id"])
        for other in after:
            if isinstance(other, ToolMessage) and other.tool_call_id == call["id"]:
                return other  # with its id, so that it does not stand in the state twice
        if self._calls == "annotate":
            return None
        held = {call["id"]: _UNKNOWN} if message is None else _held(message, after)
        if call["id"] not in held:
            return None
        return _not_run(call, held[call["id"]], "" if message is None else _least_sure(message, call))

    def _prepared(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        if self._calls == "interrupt" and not has_checkpointer(get_config()["configurable"]):
            raise ConfigurationError(
                "A run that is interrupted for approval can only resume from a checkpoint: "
                "create_agent(..., checkpointer=InMemorySaver()), or any other checkpointer. Without one, pass "
                'calls="block" or calls="annotate" to ConfidenceMiddleware.'
            )
        return request.override(model=self._judge.model(request.model))

    def _settle(self, response: ModelResponse[Any], request: ModelRequest[Any]) -> ModelResponse[Any]:
        message, *rest = response.result
        if not isinstance(message, AIMessage):
            raise ConfigurationError(f"The model gave a message of type {message.type!r}; expected one of type 'ai'.")
        judged = self._judge.judged(message, request.messages)
        whole = replace(response, result=[judged.message, *rest])
        if judged.passed:
            return whole
        if response.structured_response is not None or not message.tool_calls:
            return whole if self._answers == "annotate" else ModelResponse(result=[self._withheld(judged)])
        if self._calls == "annotate":
            return whole
        held = _held(judged.message, rest)
        if held and self._calls == "block":
            if _times_blocked(request.messages) >= self._retries:
                return ModelResponse(result=[self._withheld(judged)])
            return replace(response, result=[*_blocked(judged, held), *rest])
        # Text beside calls goes out with sure ones only, and if it is sure itself.
        seen = judged.rewritten("review" if held else "abstain", calls=message.tool_calls)
        return replace(response, result=[seen, *rest])

    def _withheld(self, judged: JudgedMessage) -> AIMessage:
        return judged.rewritten("abstain", text=self._abstention)


@contextmanager
def _out_of_streams() -> Iterator[None]:
    """Keep what runs from whoever streams the agent: what was shown could not be taken back."""
    before = var_child_runnable_config.set(without_streams(get_config()))
    try:
        yield
    finally:
        var_child_runnable_config.reset(before)


def _turn(state: Any, id_: str | None) -> tuple[AIMessage | None, Sequence[BaseMessage]]:
    """Find the last message with a call of that id in a graph's state, and the messages after it."""
    if isinstance(state, list):
        messages = state
    else:
        messages = state.get("messages", []) if isinstance(state, Mapping) else getattr(state, "messages", [])
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if isinstance(message, AIMessage) and any(call["id"] == id_ for call in message.tool_calls):
            return message, messages[place + 1 :]
    return None, []


def _held(message: AIMessage, after: Sequence[BaseMessage]) -> dict[str | None, str]:
    """Tell why calls are held, by their ids; those answered already, or that a human let run, are not."""
    record = agent_decision(message)
    answered = {other.tool_call_id for other in after if isinstance(other, ToolMessage)}
    waiting = [call["id"] for call in message.tool_calls if call["id"] not in answered]
    if record is None:
        return dict.fromkeys(waiting, _UNKNOWN)
    free = {id_ for id_, decision in record.decided.items() if decision in ("approve", "edit")}
    ids = [id_ for id_ in waiting if str(id_) not in free]
    unknown = {id_: _UNKNOWN for id_ in ids if str(id_) not in record.tool_calls}
    return unknown | {id_: record.held[str(id_)] for id_ in ids if str(id_) in record.held}


def _blocked(judged: JudgedMessage, held: Mapping[str | None, str]) -> list[BaseMessage]:
    """Empty the held calls, and tell the model of each why it was not run, and which argument is least sure."""
    message = judged.message
    calls = [call | {"args": {}} if call["id"] in held else call for call in message.tool_calls]
    refusals = [
        _not_run(call, held[call["id"]], _least_sure(message, call))
        for call in message.tool_calls
        if call["id"] in held
    ]
    return [judged.rewritten("abstain", calls=calls), *refusals]


def _not_run(call: ToolCall, why: str, least_sure: str) -> ToolMessage:
    return ToolMessage(
        f"Not run: {why}.{least_sure} Do not guess: ask for what is missing.",
        name=call["name"],
        tool_call_id=call["id"],
        status="error",
    )


def _least_sure(message: AIMessage, call: ToolCall) -> str:
    arguments = confidence_of(message, call["id"]).arguments
    known = {name: confidence for name, confidence in arguments.items() if confidence is not None}
    return f" Its least sure argument is {min(known, key=known.__getitem__)}." if known else ""


def _times_blocked(messages: Sequence[BaseMessage]) -> int:
    """Count how often calls were blocked since the last question."""
    index, _ = last_question(messages)
    records = [agent_decision(message) for message in messages[index:]]
    return sum(record is not None and record.decision == "abstain" and bool(record.held) for record in records)
