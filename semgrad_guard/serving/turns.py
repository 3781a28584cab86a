"""Messages and tools in OpenAI's shape, checked to the last field; what requests are made of."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LONGEST = 200_000  # characters of a text; what counts in the end are tokens
_MOST_MESSAGES, MOST_TOOLS, _MOST_FIELDS = 256, 64, 64
_DEEPEST = 32


def _shallow(value: Any) -> Any:
    """Refuse what is nested so deeply that reading it would not end well."""
    level = [value]
    for _ in range(_DEEPEST):
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [text for each in inner for text in each]
    if level:
        raise ValueError(f"this is nested more than {_DEEPEST} levels deep")
    return value


def unsupported(what: str) -> Any:
    """Allow only what changes nothing; anything else is refused by name."""

    def refuse(value: Any) -> Any:
        if value:
            raise ValueError(f"{what} is not supported here; leave it out")
        return value

    return AfterValidator(refuse)


def few(value: Any) -> Any:
    """Refuse more fields than anything here has, before each is looked at; what is wrong with each would be noted."""
    if isinstance(value, dict) and len(value) > _MOST_FIELDS:
        raise ValueError(f"there are {len(value)} fields; at most {_MOST_FIELDS} are allowed")
    return value


def _sound(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what cannot be written again, for the model to read."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise ValueError("expected finite numbers, and texts without half surrogate pairs") from error
    return value


Text = Annotated[str, Field(max_length=LONGEST)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]


class Given(BaseModel):
    """Strict: nothing is converted, no number but finite ones, and no field that is not known."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        return few(value)


class TextPart(Given):
    """A part of a message; only texts are read."""

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextPart], Field(min_length=1, max_length=_MOST_MESSAGES, fail_fast=True)]


class FunctionCall(Given):
    """What the model called; `arguments` are the text of a JSON object."""

    name: Name
    arguments: Text

    @model_validator(mode="after")
    def _are_an_object(self) -> FunctionCall:
        try:
            parsed = json.loads(self.arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError("arguments are no JSON") from error
        if not isinstance(_shallow(parsed), dict):
            raise ValueError("arguments are no JSON object")
        _sound(parsed)
        return self


class CalledTool(Given):
    """A tool call of an earlier answer."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemTurn(Given):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Content
    name: Name | None = None


class UserTurn(Given):
    """A question."""

    role: Literal["user"]
    content: Content
    name: Name | None = None


class AssistantTurn(Given):
    """An earlier answer: a text, tool calls, or both; and what clients send back of it with nothing in it."""

    role: Literal["assistant"]
    content: Content | None = None
    name: Name | None = None
    reasoning_content: Text | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantTurn:
        if self.content is None and not self.tool_calls:
            raise ValueError("an assistant's message needs content or tool_calls")
        return self


class ToolTurn(Given):
    """What a tool gave."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(min_length=1, max_length=200)]


Turn = Annotated[SystemTurn | UserTurn | AssistantTurn | ToolTurn, Field(discriminator="role")]
Turns = Annotated[list[Turn], Field(min_length=1, max_length=_MOST_MESSAGES, fail_fast=True)]


def plain(turns: list[Turn]) -> tuple[dict[str, Any], ...]:
    """Give messages as plain dictionaries, without what was left out."""
    return tuple({"content": "", **turn.model_dump(exclude_none=True)} for turn in turns)


class Function(Given):
    """A tool's schema."""

    name: Name
    description: Text | None = None
    parameters: Annotated[Annotated[dict[str, Any], AfterValidator(_sound)] | None, BeforeValidator(_shallow)] = None
    strict: Annotated[bool | None, unsupported("strict")] = None


class Tool(Given):
    """A tool on offer."""

    type: Literal["function"]
    function: Function


class NamedFunction(Given):
    """The name of a tool."""

    name: Name


class NamedTool(Given):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction
