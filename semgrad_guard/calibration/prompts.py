"""The prompt around a question: its turns, read from a file or built in code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from semgrad_guard.errors import ConfigurationError

Role = Literal["system", "user", "assistant"]

QUERY = "{query}"
_PLACEHOLDER = re.compile(r"\{\{\s*query\s*\}\}|\{[A-Za-z_]\w*\}")


class Turn(BaseModel):
    """One message of a prompt; the last user message holds `{query}` where the question goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str


class PromptForm(BaseModel):
    """A prompt with a place for the question: system message and examples first, the user's message last.

    Only `{query}` in the last message is filled in; all other text, braces included, is sent as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    turns: tuple[Turn, ...]

    @model_validator(mode="after")
    def _has_one_place(self) -> PromptForm:
        if not self.turns or self.turns[-1].role != "user":
            raise ValueError("the last message must be the user's, with {query} in it")
        if QUERY not in self.turns[-1].content:
            raise ValueError("the last user message has no {query}, so the question has no place")
        for number, turn in enumerate(self.turns[:-1], 1):
            if QUERY in turn.content:
                raise ValueError(f"message {number} has {{query}} too; only the last user message may have it")
            if turn.role == "system" and number > 1:
                raise ValueError(f"message {number} is a system message; only the first may be one")
        return self

    @classmethod
    def of_text(cls, text: str) -> PromptForm:
        """Make a prompt of one user message.

        Raises:
            ConfigurationError: there is no `{query}` in it, or another placeholder.
        """
        return cls.of_turns([{"role": "user", "content": text}])

    @classmethod
    def of_turns(cls, turns: Any) -> PromptForm:
        """Make a prompt of messages with "role" and "content"; a placeholder that nothing fills in is refused.

        Raises:
            ConfigurationError: naming the message and what is wrong with it.
        """
        form = cls.literal(turns)
        for number, turn in enumerate(form.turns, 1):
            unknown = [placeholder for placeholder in _PLACEHOLDER.findall(turn.content) if placeholder != QUERY]
            if unknown:
                raise ConfigurationError(
                    f"The prompt's message {number} has {unknown[0]}, which nothing fills in. "
                    f"Only {QUERY}, in single braces, stands for the question."
                )
        return form

    @classmethod
    def literal(cls, turns: Any) -> PromptForm:
        """Make a prompt of messages whose text, other than `{query}`, is meant as it is.

        Raises:
            ConfigurationError: naming the message and what is wrong with it.
        """
        if not isinstance(turns, Sequence) or isinstance(turns, str):
            raise ConfigurationError('A prompt is a list of messages: [{"role": "user", "content": "... {query}"}].')
        try:
            return cls(turns=tuple(Turn.model_validate(turn) for turn in turns))
        except ValidationError as error:
            raise ConfigurationError(f"The prompt cannot be used: {_first(error, turns)}.") from error

    @classmethod
    def read(cls, path: str | Path) -> PromptForm:
        """Read a prompt from a file: a text with `{query}` in it, or a list of messages as JSON.

        Raises:
            ConfigurationError: the file cannot be read, or holds neither.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"Cannot read the prompt {path}: {error}") from error
        try:
            plain = json.loads(text)
        except json.JSONDecodeError as error:
            if path.suffix == ".json":
                raise ConfigurationError(f"The prompt {path} is not JSON: {error}.") from error
            plain = None
        try:
            if path.suffix == ".json" or isinstance(plain, list):
                return cls.of_turns(plain)
            return cls.of_text(text.removesuffix("\n"))
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from error

    def with_system(self, text: str) -> PromptForm:
        """Put a system message first.

        Raises:
            ConfigurationError: the text is empty, or there is a system message already.
        """
        if not text.strip():
            raise ConfigurationError("The system message is empty; expected some text.")
        if self.turns[0].role == "system":
            raise ConfigurationError("The prompt has a system message of its own. Leave one of the two out.")
        return PromptForm.literal([{"role": "system", "content": text}, *self.plain(self.turns)])

    @property
    def fingerprint(self) -> str:
        """Hash of roles and texts: prompts with the same one ask alike."""
        return hashlib.sha256(json.dumps(self.plain(self.turns)).encode()).hexdigest()[:32]

    @property
    def system(self) -> str | None:
        """Text of the system message, if there is one."""
        return self.turns[0].content if self.turns[0].role == "system" else None

    def before(self) -> list[dict[str, str]]:
        """Give the messages before the question's."""
        return self.plain(self.turns[:-1])

    def worded(self, query: str) -> str:
        """Give the text of the last user message for a question."""
        return self.turns[-1].content.replace(QUERY, query)

    def messages(self, query: str) -> list[dict[str, str]]:
        """Give all messages that ask a question, as chat templates read them."""
        return [*self.before(), {"role": "user", "content": self.worded(query)}]

    @staticmethod
    def plain(turns: Sequence[Turn]) -> list[dict[str, str]]:
        """Give turns as dictionaries."""
        return [{"role": turn.role, "content": turn.content} for turn in turns]


BARE = PromptForm.of_text(QUERY)
"""The question by itself."""


def _first(error: ValidationError, turns: Sequence[Any]) -> str:
    """Name the first fault, with the number of the message."""
    detail = error.errors()[0]
    if error.title != Turn.__name__:
        return str(detail["msg"]).removeprefix("Value error, ")
    number = next(index for index, turn in enumerate(turns, 1) if not _is_turn(turn))
    place = ".".join(map(str, detail["loc"]))
    if detail["type"] == "literal_error":
        return f"message {number} has the role {detail['input']!r}; expected one of {', '.join(get_args(Role))}"
    return f"message {number}: {place + ': ' if place else ''}{detail['msg']}"


def _is_turn(turn: Any) -> bool:
    try:
        Turn.model_validate(turn)
    except ValidationError:
        return False
    return True
