"""Agents: low-confidence tool calls never run unseen.

`ConfidenceMiddleware` and `InterruptReview` need the extra `agents`.
"""

from typing import TYPE_CHECKING, Any

from semgrad_guard.agents.calls import FilteredCalls, HeldCall, confidence_gate, filter_tool_calls, low_confidence
from semgrad_guard.agents.judging import AgentDecision, agent_decision, model_node
from semgrad_guard.errors import needs

if TYPE_CHECKING:
    from semgrad_guard.agents.interrupting import InterruptReview
    from semgrad_guard.agents.middleware import ConfidenceMiddleware

__all__ = [
    "AgentDecision",
    "ConfidenceMiddleware",
    "FilteredCalls",
    "HeldCall",
    "InterruptReview",
    "agent_decision",
    "confidence_gate",
    "filter_tool_calls",
    "low_confidence",
    "model_node",
]


def __getattr__(name: str) -> Any:
    """Import on use what needs the extra: everything else here works without."""
    if name == "ConfidenceMiddleware":
        with needs("agents", "ConfidenceMiddleware needs langchain"):
            from semgrad_guard.agents.middleware import ConfidenceMiddleware
        return ConfidenceMiddleware
    if name == "InterruptReview":
        with needs("agents", "InterruptReview needs langgraph"):
            from semgrad_guard.agents.interrupting import InterruptReview
        return InterruptReview
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
