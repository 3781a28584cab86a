"""Between LangChain's messages and the plain dictionaries that chat templates read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import PromptValue

from semgrad_guard.errors import ConfigurationError

_ROLES: dict[type[BaseMessage], str] = {
    HumanMessage: "user",
    AIMessage: "assistant",
    SystemMessage: "system",
    ToolMessage: "tool",
}
# Content parts of an answer that are not its text: calls, which `tool_calls` holds as well, and reasoning.
_BESIDE = ("tool_use", "tool_call", "reasoning", "thinking")


def to_messages(given: LanguageModelInput) -> list[BaseMessage]:
    """Turn a string, messages or a prompt value into messages."""
    if isinstance(given, str):
        return [HumanMessage(given)]
    if isinstance(given, PromptValue):
        return given.to_messages()
    return convert_to_messages(given)


def to_template(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Turn messages into what a chat template reads.

    Raises:
        ConfigurationError: there is no message, or one of a type or with a content part that a text model cannot read.
    """
    if not messages:
        raise ConfigurationError("No messages were given; expected at least one.")
    return [_plain(message) for message in messages]


def text_of(message: BaseMessage) -> str:
    """Join the text parts of a message; any other part is an error that names it."""
    if isinstance(message.content, str):
        return message.content
    parts = []
    for part in message.content:
        if isinstance(part, str):
            parts.append(part)
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif not (isinstance(message, AIMessage) and part.get("type") in _BESIDE):
            raise ConfigurationError(
                f"A {message.type} message has a part of type {part.get('type')!r} that is no text; this model reads "
                "text only."
            )
    return "".join(parts)


def reads_tool_results(messages: Sequence[BaseMessage]) -> bool:
    """Tell whether a tool has answered since the last human message, so that the answer is given from its result."""
    index, _ = last_question(messages)
    return any(isinstance(message, ToolMessage) for message in messages[index:])


def last_question(messages: Sequence[BaseMessage]) -> tuple[int, str]:
    """Find the last human message: its index and text."""
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], HumanMessage):
            return index, text_of(messages[index])
    raise ConfigurationError("There is no human message among the messages, so there is no question to answer.")


def _plain(message: BaseMessage) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": _role(message), "content": text_of(message)}
    if isinstance(message, AIMessage) and message.tool_calls:
        plain["tool_calls"] = [
            {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    if "reasoning_content" in message.additional_kwargs:
        plain["reasoning_content"] = message.additional_kwargs[
            "reasoning_content"
        ]  # shown or not as the template likes
    if isinstance(message, ToolMessage):
        plain |= {"name": message.name, "tool_call_id": message.tool_call_id}
    return plain


def _role(message: BaseMessage) -> str:
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise ConfigurationError(
        f"Messages of type {message.type!r} are not supported; expected human, ai, system or tool."
    )
