"""Feedback for LangSmith: confidence and decision beside each trace. Failing to send it never fails an answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage
from langsmith import Client

from semgrad_guard.errors import described
from semgrad_guard.observability.runs import RunTree, Start

logger = logging.getLogger(__name__)

CONFIDENCE, DECISION = "semgrad_confidence", "semgrad_decision"
_MOST_WAITING = 1000


def send_feedback(
    client: Client, run_id: UUID | str, answer: BaseMessage | Mapping[str, Any], *, session_id: str | None = None
) -> bool:
    """Record confidence and decision as feedback on a run; tells whether that was done, and never raises.

    Args:
        client: of LangSmith.
        run_id: the run of the guard, or the root of its trace.
        answer: the guard's message, or its record: `response_metadata["semgrad"]`.
        session_id: the id of the project that the run is in, which some deployments need.
    """
    try:
        record = answer.response_metadata["semgrad"] if isinstance(answer, BaseMessage) else answer
        where: dict[str, Any] = {} if session_id is None else {"session_id": session_id}
        if record["confidence"] is not None:
            client.create_feedback(run_id, key=CONFIDENCE, score=record["confidence"], **where)
        client.create_feedback(run_id, key=DECISION, value=record["decision"], **where)
    except Exception as error:  # a network that is down must not take an answer with it
        logger.warning("No feedback for run %s: %s", run_id, described(error))
        return False
    return True


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

    def ended(self, run: _Root, id_: UUID, given: Any, output: Any, error: BaseException | None) -> None:
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
