"""Agents: low-confidence tool calls never run unseen. `ConfidenceMiddleware` needs the extra `agents`."""

from typing import TYPE_CHECKING, Any

from semgrad_guard.agents.calls import FilteredCalls, HeldCall, confidence_gate, filter_tool_calls, low_confidence
from semgrad_guard.agents.judging import model_node
from semgrad_guard.extras import needs

if TYPE_CHECKING:
    from semgrad_guard.agents.middleware import ConfidenceMiddleware

__all__ = [
    "ConfidenceMiddleware",
    "FilteredCalls",
    "HeldCall",
    "confidence_gate",
    "filter_tool_calls",
    "low_confidence",
    "model_node",
]


def __getattr__(name: str) -> Any:
    """Import the middleware on use: everything else here works without the extra."""
    if name != "ConfidenceMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("agents", "ConfidenceMiddleware needs langchain"):
        from semgrad_guard.agents.middleware import ConfidenceMiddleware
    return ConfidenceMiddleware
