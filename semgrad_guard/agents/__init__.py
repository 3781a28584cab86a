"""Agents: low-confidence tool calls never run unseen. `ConfidenceMiddleware` needs the extra `agents`."""

from typing import TYPE_CHECKING, Any

from semgrad_guard.agents.calls import FilteredCalls, HeldCall, confidence_gate, filter_tool_calls, low_confidence
from semgrad_guard.agents.judging import model_node
from semgrad_guard.errors import ConfigurationError

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
    try:
        from semgrad_guard.agents.middleware import ConfidenceMiddleware
    except ImportError as error:
        raise ConfigurationError(
            'ConfidenceMiddleware needs langchain; install the extra: pip install "semgrad-guard[agents]"'
        ) from error
    return ConfidenceMiddleware
