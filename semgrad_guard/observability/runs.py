"""LangChain's callbacks as a tree of runs that begin, end and are decided about, whatever kind each is."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import Any, Generic, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook
from langsmith import Client

from semgrad_guard.errors import DataError, described
from semgrad_guard.langchain.answering import DECIDED
from semgrad_guard.langchain.metadata import get_decision
from semgrad_guard.records import Decision

logger = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass(frozen=True)
class Start:
    """How a run begins: its name, what it was given, and whether it is one of a chat model."""

    id: UUID
    name: str
    given: Any
    chat: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


class RunTree(BaseCallbackHandler, Generic[R]):
    """A callback handler that keeps a note of each run while it goes on, from any thread or task.

    What goes wrong in here is logged by its kind, and never reaches the run.
    """

    run_inline = True  # in order with what it is about, also in async code

    def __init__(self) -> None:
        """Begin with no runs."""
        self._runs: dict[UUID, R] = {}

    @abstractmethod
    def began(self, parent: R | None, start: Start) -> R:
        """Take note of a run."""

    @abstractmethod
    def ended(self, run: R, id_: UUID, inputs: Any, output: Any, error: BaseException | None) -> None:
        """Close the note of a run; `given` is what it was given, if that was not known when it began."""

    @abstractmethod
    def decided(self, run: R, decision: Mapping[str, Any]) -> None:
        """Hear what a guard decided: `decision`, `confidence`, `threshold` and `reason`."""

    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Take note."""
        self._began(Start(run_id, kwargs.get("name") or "chain", inputs, False, metadata or {}), parent_run_id)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Take note."""
        self._began(Start(run_id, kwargs.get("name") or "chat", messages[0], True, metadata or {}), parent_run_id)

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> Any:
        """Take note."""
        self._began(Start(run_id, kwargs.get("name") or "llm", prompts), parent_run_id)

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> Any:
        """Take note."""
        self._began(Start(run_id, kwargs.get("name") or "tool", input_str), parent_run_id)

    def on_retriever_start(
        self,
        serialized: dict[str, Any],
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> Any:
        """Take note."""
        self._began(Start(run_id, kwargs.get("name") or "retriever", query), parent_run_id)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> Any:
        """Close the note."""
        self._ended(run_id, outputs, inputs=kwargs.get("inputs"))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> Any:
        """Close the note."""
        self._ended(run_id, _message(response.generations))

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> Any:
        """Close the note."""
        self._ended(run_id, output)

    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> Any:
        """Close the note."""
        self._ended(run_id, documents)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Any:
        """Close the note of a run that failed."""
        self._ended(run_id, None, error)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Any:
        """Close the note of a run that failed."""
        self._ended(run_id, None, error)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Any:
        """Close the note of a run that failed."""
        self._ended(run_id, None, error)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Any:
        """Close the note of a run that failed."""
        self._ended(run_id, None, error)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> Any:
        """Hear of a decision."""
        run = self._runs.get(run_id)
        if name == DECIDED and run is not None:
            self._safely(lambda: self.decided(run, data))

    def _began(self, start: Start, parent: UUID | None) -> None:
        above = None if parent is None else self._runs.get(parent)

        def note() -> None:
            self._runs[start.id] = self.began(above, start)

        self._safely(note)

    def _ended(self, id_: UUID, output: Any, error: BaseException | None = None, *, inputs: Any = None) -> None:
        run = self._runs.pop(id_, None)
        if run is not None:
            self._safely(lambda: self.ended(run, id_, inputs, output, error))

    def _safely(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # LangChain would log it in full, and it may quote what was asked
            logger.warning("%s failed: %s", type(self).__name__, described(error))


def attach(handler: BaseCallbackHandler) -> None:
    """Have a handler hear of every run in this process from now on; what guards hide from callbacks stays hidden."""
    register_configure_hook(ContextVar(f"semgrad_guard_{id(handler)}", default=handler), inheritable=True)


def _message(generations: Sequence[Sequence[Any]]) -> BaseMessage | None:
    first = next((one for row in generations for one in row), None)
    return first.message if isinstance(first, ChatGeneration) else None


CONFIDENCE, DECISION = "semgrad_confidence", "semgrad_decision"
_MOST_WAITING = 1000


def send_feedback(
    client: Client,
    run_id: UUID | str,
    answer: BaseMessage | Decision | Mapping[str, Any],
    *,
    session_id: str | None = None,
) -> bool:
    """Record confidence and decision as feedback on a run; tells whether that was done, and never raises.

    Args:
        client: of LangSmith.
        run_id: the run of the guard, or the root of its trace.
        answer: the guard's message, its decision, or what the event `semgrad.decision` tells.
        session_id: the id of the project that the run is in, which some deployments need.
    """
    try:
        confidence, decision = _confidence_and_decision(answer)
        where: dict[str, Any] = {} if session_id is None else {"session_id": session_id}
        if confidence is not None:
            client.create_feedback(run_id, key=CONFIDENCE, score=confidence, **where)
        client.create_feedback(run_id, key=DECISION, value=decision, **where)
    except Exception as error:  # a network that is down must not take an answer with it
        logger.warning("No feedback for run %s: %s", run_id, described(error))
        return False
    return True


def _confidence_and_decision(answer: BaseMessage | Decision | Mapping[str, Any]) -> tuple[float | None, str]:
    if isinstance(answer, Mapping):
        return answer["confidence"], answer["decision"]
    decision = get_decision(answer) if isinstance(answer, BaseMessage) else answer
    if decision is None:
        raise DataError("The message carries no decision; expected one that a guard gave.")
    return decision.confidence, decision.decision


@dataclass(eq=False)
class _Root:
    """The first run of a tree, and what was decided below it."""

    id: UUID
    decisions: list[Mapping[str, Any]] = field(default_factory=list)


class FeedbackCallback(RunTree[_Root]):
    """A callback handler that sends feedback on the first run of each trace, in the background.

    Where several answers were decided about, the least sure one speaks for the trace.
    """

    def __init__(self, client: Client, *, session_id: str | None = None) -> None:
        """Set the client, and the project's id where the deployment needs it."""
        super().__init__()
        self._client, self._session_id = client, session_id
        self._sender = ThreadPoolExecutor(1, "semgrad-feedback")  # create_feedback may wait for the network
        self._places = BoundedSemaphore(_MOST_WAITING)

    def began(self, parent: _Root | None, start: Start) -> _Root:
        """Belong to the first run."""
        return parent or _Root(start.id)

    def decided(self, run: _Root, decision: Mapping[str, Any]) -> None:
        """Keep the decision until the first run ends."""
        run.decisions.append(decision)

    def ended(self, run: _Root, id_: UUID, inputs: Any, output: Any, error: BaseException | None) -> None:
        """Send."""
        if id_ != run.id or not run.decisions:
            return
        least = min(run.decisions, key=lambda decision: decision["confidence"] or 0.0)
        if not self._places.acquire(blocking=False):
            logger.warning("No feedback for run %s: %d are waiting to be sent", run.id, _MOST_WAITING)
            return
        self._sender.submit(self._send, run.id, least)

    def close(self) -> None:
        """Send what is waiting, and no more."""
        self._sender.shutdown()

    def _send(self, run_id: UUID, decision: Mapping[str, Any]) -> None:
        try:
            send_feedback(self._client, run_id, decision, session_id=self._session_id)
        finally:
            self._places.release()
