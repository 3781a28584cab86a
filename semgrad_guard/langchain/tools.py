"""Tools as they are offered to the model: schemas, and whether one must be called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from semgrad_guard.errors import ConfigurationError

_ANY, _AUTO, _NONE = ("any", "required", True), ("auto", None), ("none", False)


def offered(tools: Sequence[Any], choice: str | bool | dict[str, Any] | None) -> dict[str, Any]:
    """Give the keywords of a call that offer tools; `tool_choice` is "" where any must be called, else a name.

    Raises:
        ConfigurationError: the choice is not one of the tools.
    """
    schemas = [convert_to_openai_tool(tool) for tool in tools]
    names = [schema["function"]["name"] for schema in schemas]
    if isinstance(choice, dict):
        choice = str((choice.get("function") or choice).get("name"))
    if choice in _AUTO:
        return {"tools": schemas}
    if choice in _NONE:
        return {"tools": []}
    if choice in _ANY:
        return {"tools": schemas, "tool_choice": names[0] if len(names) == 1 else ""}
    if choice not in names:
        raise ConfigurationError(
            f"tool_choice={choice!r}: expected 'auto', 'any', 'none', or one of the tools: {', '.join(names)}."
        )
    return {"tools": schemas, "tool_choice": choice}
