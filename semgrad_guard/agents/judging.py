"""The confidence of an agent's messages: judged against a profile, tool by tool, and put into their metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import Field

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.langchain.answering import chat_model_for, profile_of
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.langchain.drafts import without_text
from semgrad_guard.langchain.messages import EMPTY_QUESTION, asks_nothing, messages_in, reads_tool_results
from semgrad_guard.langchain.metadata import get_message_scores, read_decision, with_record
from semgrad_guard.langchain.scored_messages import call_verdicts, judged
from semgrad_guard.model.fingerprint import precision, template_fingerprint
from semgrad_guard.records import Decision, Step


class AgentDecision(Decision):
    """What became of a message of an agent's model, and of its tool calls.

    `held` says why each unsure call is held, by its id; `decided` what a human decided on it: "approve", "edit",
    "reject" or "respond".
    """

    held: dict[str, str] = Field(default_factory=dict)
    decided: dict[str, str] = Field(default_factory=dict)


def agent_decision(message: BaseMessage) -> AgentDecision | None:
    """Give what was decided about a message of an agent's model; None where nothing was.

    Raises:
        DataError: the metadata hold something else than a decision.
    """
    return read_decision(message, AgentDecision)


@dataclass(frozen=True)
class JudgedMessage:
    """A message with its decision in its metadata, and that decision."""

    message: AIMessage
    decision: AgentDecision

    @property
    def passed(self) -> bool:
        """Tell whether all of it is sure enough."""
        return self.decision.decision == "pass"

    def rewritten(self, decision: str, *, text: str = "", calls: Sequence[ToolCall] = ()) -> AIMessage:
        """Give a message that stands in its place: the text and the calls that may be seen, and what was decided."""
        shown = without_text(self.message)
        cause = self.decision.verdict.cause or "low_confidence"
        record = self.decision.model_copy(update={"decision": decision, "answered": False, "cause": cause})
        update = {"id": self.message.id, "name": self.message.name, "content": text, "tool_calls": list(calls)}
        return with_record(shown.model_copy(update=update), record)


class Judge:
    """Judges what an agent's model says, and each of its calls, against a profile."""

    def __init__(
        self,
        profile: Profile | str | Path,
        threshold: float | None = None,
        thresholds: Mapping[str, float] | None = None,
        answer_threshold: float | None = None,
    ) -> None:
        """Set the standards.

        Args:
            profile: turns scores into confidence; a `Profile` or the path of its JSON.
            threshold: least confidence of a tool call, in [0, 1]; None for that of the profile's section `tool_call`.
            thresholds: the same for single tools, by name.
            answer_threshold: least confidence of an answer, in [0, 1]; None for the profile's.

        Raises:
            ConfigurationError: a threshold is out of range.
            ProfileError: the file is no profile.
        """
        loaded = profile_of(profile)
        if loaded is None:
            raise ConfigurationError("profile=None: agents need a profile, which turns scores into confidence.")
        self.profile = loaded
        self._answers = Standard(self.profile, answer_threshold, None, None)
        self._calls = Standard(self.profile, threshold, None, None)
        self._tools = {name: Standard(self.profile, least, None, None) for name, least in (thresholds or {}).items()}
        self._prepared: tuple[ChatSemGrad, ChatSemGrad] | None = None

    def model(self, llm: Any) -> ChatSemGrad:
        """Give the model as it scores for the profile.

        Raises:
            ConfigurationError: it gives no scores.
            ProfileError: the profile belongs to another model.
        """
        if not isinstance(llm, ChatSemGrad):
            raise ConfigurationError(
                f"The agent's model is a {type(llm).__name__}, which gives no scores, so there is no confidence. "
                "Wrap the local model: create_agent(ChatSemGrad.from_model(model, tokenizer), ...)."
            )
        prepared = self._prepared
        if prepared is None or prepared[0] is not llm:  # building it takes a look at all weights
            self.profile.check(llm.fingerprint, template_fingerprint(llm.tokenizer), precision(llm.model))
            self._prepared = prepared = llm, chat_model_for(llm, self.profile)
        return prepared[1]

    def judged(self, message: AIMessage, messages: Sequence[BaseMessage]) -> JudgedMessage:
        """Judge a message that answers others, and put an `AgentDecision` into its metadata.

        Its `decision` is "pass" if all is sure, else "annotate": the message goes on as it is, unless it is rewritten.

        Raises:
            ConfigurationError: the message carries no scores.
        """
        record = get_message_scores(message)
        if record is None:
            raise ConfigurationError(
                "The message carries no scores, so it is not the model's own. List ConfidenceMiddleware last, so that "
                "no other middleware comes between it and the model."
            )
        if asks_nothing(messages):
            message = with_record(message, record.model_copy(update={"failure": record.failure or EMPTY_QUESTION}))
        # A tool that failed, or was never run, has told nothing to answer from.
        heard = [other for other in messages if not (isinstance(other, ToolMessage) and other.status == "error")]
        answer = judged(message, self._answers, grounded=reads_tool_results(heard), for_tool=self._for_tool)
        verdict, verdicts = answer.verdict, call_verdicts(message, self._for_tool)
        held = {
            str(call["id"]): f"{call['name']}: the call has no confidence" if by_call is None else by_call.reason
            for call in message.tool_calls
            if (by_call := verdicts.get(str(call["id"]))) is None or not by_call.passed
        }
        passed = verdict.passed and not held
        decision = AgentDecision(
            decision="pass" if passed else "annotate",
            answered=True,
            cause=None,
            reason=verdict.reason,
            verdict=verdict,
            steps=(Step(name="answer", settled=passed, confidence=verdict.confidence, reason=verdict.reason),),
            tool_calls=answer.tool_calls,
            held=held,
        )
        return JudgedMessage(with_record(message, decision), decision)

    def _for_tool(self, name: str) -> Standard:
        return self._tools.get(name, self._calls)


def model_node(llm: Any, profile: Profile | str | Path, tools: Sequence[Any] = ()) -> Runnable[Any, dict[str, Any]]:
    """Give a LangGraph node that lets the model answer, with the confidence of answer and calls in the metadata.

    It takes a state with `messages`, and gives the new one as `{"messages": [message]}`; nothing is withheld:
    `confidence_gate` on the edge behind it, or `filter_tool_calls`, decides what happens.

    Args:
        llm: a model id or folder, a `(model, tokenizer)` pair, a `HuggingFacePipeline`, a `ChatHuggingFace`, or a
            `ChatSemGrad`.
        profile: turns scores into confidence; a `Profile` or the path of its JSON.
        tools: what the model may call.

    Raises:
        ProfileError: the profile belongs to another model.
        UnsupportedModelError: the model cannot be scored.
    """
    judge = Judge(profile)
    chat = chat_model_for(llm, judge.profile)
    bound = chat.bind_tools(tools) if tools else chat

    def answer(state: Any) -> dict[str, Any]:
        messages = messages_in(state)
        return {"messages": [judge.judged(bound.invoke(messages), messages).message]}

    async def aanswer(state: Any) -> dict[str, Any]:
        messages = messages_in(state)
        return {"messages": [judge.judged(await bound.ainvoke(messages), messages).message]}

    return RunnableLambda(answer, aanswer, name="model")
