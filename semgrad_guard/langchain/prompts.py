"""Prompts of LangChain's as forms that a calibration asks with, and forms put around the question of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, convert_to_messages
from langchain_core.prompts import BasePromptTemplate

from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.prompts import QUERY, PromptForm
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.langchain.messages import to_template

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
    asked = [*messages[:index], messages[index].model_copy(update={"content": text}), *messages[index + 1 :]]
    if form is None:
        return asked
    first = 0 if not isinstance(asked[0], SystemMessage) else 1
    if first and form.system is not None:
        raise ConfigurationError(
            "The prompt that questions are asked with has a system message, and the conversation has one too. "
            "Leave the conversation's out."
        )
    before = [_KINDS[turn["role"]](turn["content"]) for turn in form.before()]
    return [*asked[:first], *before, *asked[first:]]


def _turns(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Turn messages of any form into plain ones; what a form cannot hold, such as tool calls, is refused there."""
    return to_template(convert_to_messages(list(messages)))
