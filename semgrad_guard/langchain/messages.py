"""Between LangChain's messages, tools and prompts and the plain dictionaries that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.prompts import QUERY, PromptForm
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.model.responses import is_blank
from semgrad_guard.records import Failure

_ROLES: dict[type[BaseMessage], str] = {
    HumanMessage: "user",
    AIMessage: "assistant",
    SystemMessage: "system",
    ToolMessage: "tool",
}
_ROLE_NAMES = ("human", "user", "ai", "assistant", "system", "developer", "tool", "function")
EMPTY_QUESTION = Failure(kind="empty_question", text="the question is empty")  # no answer to it passes
_MOST_KEYS = 5  # shown of a dict that is no input
_WANTED = " Expected a text, a prompt value, a message, or a list of messages."
# Content parts of an answer that are not its text: calls, which `tool_calls` holds as well, and reasoning.
_BESIDE = ("tool_use", "tool_call", "reasoning", "thinking")


def to_messages(value: Any) -> list[BaseMessage]:
    """Turn what a chat model takes into messages.

    That is a text, a prompt value, a message, or a list of messages in any form that LangChain reads: a message, a
    text, a `(role, text)` pair, or a dict with role and content. One such pair or dict alone is taken for one message.

    Raises:
        ConfigurationError: it is something else, with what to write instead.
    """
    if isinstance(value, str):
        return [HumanMessage(value)]
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, Mapping) and "content" in value and ("role" in value or "type" in value):
        return [_message(value, "The input")]
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and value[0] in _ROLE_NAMES:
        return [_message(value, "The input")]
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray | memoryview | Runnable):
        raise ConfigurationError(f"The input is {_described(value)}.{_WANTED}")
    return [_message(item, f"Item {place} of the input") for place, item in enumerate(value)]


def messages_in(state: Any) -> list[BaseMessage]:
    """Give the messages of a LangGraph state: a dict, or an object, with `messages`.

    Raises:
        ConfigurationError: there are none.
    """
    messages = state.get("messages") if isinstance(state, Mapping) else getattr(state, "messages", None)
    if messages is None:
        what = f"a dict with keys {_keys(state)}" if isinstance(state, Mapping) else f"of type {type(state).__name__}"
        raise ConfigurationError(f"The state is {what}; expected one with messages, such as LangGraph's MessagesState.")
    return to_messages(messages)


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


class Question(NamedTuple):
    """The question of a conversation, its last human message: its place and its text.

    `blank` tells that it has no visible character, so that any answer would be to no question. `after_tools` tells that
    a tool has answered since, so that the answer is given from its result.
    """

    messages: list[BaseMessage]
    place: int
    text: str
    blank: bool
    after_tools: bool


def question_in(value: Any) -> Question:
    """Find the question in what a chat model takes.

    Raises:
        ConfigurationError: it is something else, or there is no human message.
    """
    messages = to_messages(value)
    index, text = last_question(messages)
    after_tools = any(isinstance(message, ToolMessage) for message in messages[index:])
    return Question(messages, index, text, is_blank(text), after_tools)


def reads_tool_results(messages: Sequence[BaseMessage]) -> bool:
    """Tell whether a tool has answered since the last human message, so that the answer is given from its result."""
    return question_in(messages).after_tools


def last_question(messages: Sequence[BaseMessage]) -> tuple[int, str]:
    """Find the last human message: its index and text.

    Raises:
        ConfigurationError: there is none.
    """
    if not messages:
        raise ConfigurationError("No messages were given; expected at least one, with a question.")
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], HumanMessage):
            return index, text_of(messages[index])
    hint = ""
    if all(isinstance(message, AIMessage) for message in messages):
        hint = " The guard takes the model's place in a chain: prompt | guard, not prompt | llm | guard."
    raise ConfigurationError(f"There is no human message among the messages, so there is no question to answer.{hint}")


def _message(item: Any, where: str) -> BaseMessage:
    try:
        return convert_to_messages([item])[0]
    except (ValueError, NotImplementedError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"{where} is no message, but {_described(item)}. Expected a message, a text, a (role, text) pair or a dict "
            "with role and content."
        ) from error


def _described(value: Any) -> str:
    """Say what something is that is no input, and what to do with it; without any text that it holds."""
    if value is None:
        return "None: the step before gave nothing"
    if isinstance(value, Mapping) and "messages" in value:
        return "a dict with messages, such as a LangGraph state: pass its messages, state['messages']"
    if isinstance(value, Mapping) and "content" in value:
        return "a dict whose role is unknown, or whose content is no text"
    if isinstance(value, Mapping):
        return f"a dict with keys {_keys(value)}: put a prompt before the guard or model, prompt | guard"
    if isinstance(value, bytes | bytearray | memoryview):
        return "of bytes: decode them to a text"
    if isinstance(value, Document):
        return "a Document: put its text into a prompt"
    if isinstance(value, Runnable):
        return f"a {type(value).__name__}, a step of a chain and no input: join them, prompt | guard"
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return "a pair whose role is unknown, or whose text is none"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}: several inputs go through batch()"
    return f"of type {type(value).__name__}"


def _keys(value: Mapping[Any, Any]) -> str:
    names = [str(key) for key in value][:_MOST_KEYS]
    return f"{names}" + (" and more" if len(value) > _MOST_KEYS else "")


def asks_nothing(messages: Sequence[BaseMessage]) -> bool:
    """Tell whether the last human message has no visible character, so that any answer would be to no question."""
    return question_in(messages).blank


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


_KINDS: dict[str, type[BaseMessage]] = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}


def prompt_form(prompt: Any) -> PromptForm | None:
    """Turn what a user has into a form; None stays None.

    Args:
        prompt: a `ChatPromptTemplate` or another prompt template with one variable, messages or a text with `{query}`
            in the last user message, or a `PromptForm`.

    Raises:
        ConfigurationError: there is no place for the question, more than one, or a message that no chat template reads.
    """
    if prompt is None or isinstance(prompt, PromptForm):
        return prompt
    if isinstance(prompt, str):
        return PromptForm.of_text(prompt)
    if isinstance(prompt, BasePromptTemplate):
        if len(prompt.input_variables) != 1:
            names = ", ".join(sorted(prompt.input_variables)) or "none"
            raise ConfigurationError(
                f"The prompt template has the variables {names}; expected one, for the question. Fill the others in "
                "with .partial(...), or give examples with messages of their own."
            )
        value = prompt.invoke({prompt.input_variables[0]: QUERY})
        return PromptForm.literal(_turns(value.to_messages()))
    if isinstance(prompt, Sequence):
        return PromptForm.of_turns(_turns(prompt))
    raise ConfigurationError(
        f"prompt={type(prompt).__name__}: expected a prompt template, a list of messages, or a text with {QUERY} in it."
    )


def labelled_example(example: Example | Mapping[str, Any]) -> Example:
    """Make an example of a line of a data file, whose messages may be LangChain's.

    Raises:
        ValidationError: a field is missing or malformed.
    """
    if isinstance(example, Example) or not isinstance(example, Mapping) or not example.get("messages"):
        return Example.model_validate(example)
    return Example.model_validate({**example, "messages": _turns(example["messages"])})


def asked_with(
    form: PromptForm | None, messages: Sequence[BaseMessage], index: int, question: str
) -> list[BaseMessage]:
    """Put a form around the question of a conversation: its turns before all others, its words around the question.

    Args:
        form: None leaves the conversation as it is, with the question in its place.
        messages: the conversation.
        index: the message that holds the question.
        question: what to ask there.

    Raises:
        ConfigurationError: both have a system message.
    """
    text = question if form is None else form.worded(question)
    conversation = [*messages[:index], messages[index].model_copy(update={"content": text}), *messages[index + 1 :]]
    if form is None:
        return conversation
    first = 0 if not isinstance(conversation[0], SystemMessage) else 1
    if first and form.system is not None:
        raise ConfigurationError(
            "The prompt that questions are asked with has a system message, and the conversation has one too. "
            "Leave the conversation's out."
        )
    before = [_KINDS[turn["role"]](turn["content"]) for turn in form.before()]
    return [*conversation[:first], *before, *conversation[first:]]


def _turns(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Turn messages of any form into plain ones; what a form cannot hold, such as tool calls, is refused there."""
    return to_template(convert_to_messages(list(messages)))
