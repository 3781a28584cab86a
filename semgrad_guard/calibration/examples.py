"""Labelled questions, read from a file or from a data set on the hub."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from semgrad_guard.calibration.prompts import BARE, QUERY, PromptForm, Turn
from semgrad_guard.errors import ConfigurationError, DataError, SemGradError, needs
from semgrad_guard.model.responses import is_blank
from semgrad_guard.settings import Settings, first_fault, shown

HUB = "hub:"
_COLUMNS = ("question", "answer")


def hub_rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read "hub:owner/name:split", or "hub:owner/name/configuration:split:question column:answer column".

    A split may be sliced: `train[:500]`. Columns are `question` and `answer` unless named; one inside another is
    written `answer.aliases`. An answer is a text or a list of texts. A question that occurs again is passed over, since
    a data set on the hub is not ours to correct.

    Yields:
        The number of the row, from 1, and what a line of a data file would hold.

    Raises:
        DataError: the source is malformed, cannot be loaded, or lacks a column.
        ConfigurationError: the extra is not installed.
    """
    place, split, query_column, answer_column = _parts(source)
    owner, name, *configuration = place.split("/")
    seen = set[str]()
    for number, row in enumerate(_load(source, f"{owner}/{name}", *configuration, split=split), 1):
        query, answers = _value(row, query_column, source), _value(row, answer_column, source)
        if str(query) not in seen:
            seen.add(str(query))
            # An empty column of a published set is an unknown answer, not a question that nothing answers.
            yield number, {"query": query, "truthful answer": answers or None}


def _parts(source: str) -> tuple[str, str, str, str]:
    place, *rest = re.split(r":(?![^[]*\])", source.removeprefix(HUB))  # but not in the brackets of a slice
    if place.count("/") not in (1, 2) or len(rest) not in (1, 3) or not all([*place.split("/"), *rest]):
        raise DataError(
            f"{source}: expected hub:owner/name:split, or hub:owner/name/configuration:split:question:answer with the "
            "names of two columns."
        )
    split, query_column, answer_column = rest if len(rest) == 3 else (*rest, *_COLUMNS)
    return place, split, query_column, answer_column


def _load(source: str, *place: str, split: str) -> Iterable[dict[str, Any]]:
    with needs("hub", "Data sets on the hub need datasets"):
        from datasets import load_dataset
    try:
        rows: Iterable[dict[str, Any]] = load_dataset(*place, split=split)
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()
        raise DataError(f"Cannot load {source}: {cause[0] if cause else type(error).__name__}") from error
    return rows


def _value(row: dict[str, Any], column: str, source: str) -> Any:
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError(f"{source}: there is no column {column!r}; there are {', '.join(row)}.")
        value = value[part]
    return value


_EXPECTED = 'an Example, or a dict such as {"query": "Where?", "truthful answer": ["there"]}'


class Example(Settings):
    """A question with its right answers, or with one answer and its label; an empty list says that no answer is right.

    `messages` are the whole conversation that asks it, the user's message last; without them a prompt says how the
    question is put. Without `query` it is that last message. `group` is what the question is about: questions of a
    group stay on one side of every split, and count once in a guarantee. `stratum` names a kind of question for
    reports.
    """

    # Files have other columns too, and numbers for texts; what a program misspells is refused by `Settings`.
    model_config = ConfigDict(populate_by_name=True, strict=False, extra="ignore")
    raises: ClassVar[type[SemGradError]] = DataError

    query: str = Field(min_length=1)
    messages: tuple[Turn, ...] | None = None
    answers: tuple[str, ...] | None = Field(default=None, alias="truthful answer")
    answer: str | None = None
    correct: bool | None = None
    group: str = ""
    stratum: str = ""

    @model_validator(mode="before")
    @classmethod
    def _answers_are_texts(cls, fields: Any) -> Any:
        """Take one answer for a list of one, and drop empty answers, which published files have."""
        answers = fields.get("truthful answer") if isinstance(fields, dict) else None
        if isinstance(answers, str):
            answers = [answers]
        if isinstance(answers, list):
            fields = fields | {"truthful answer": [one for one in answers if one and str(one).strip()] or answers}
        return fields

    @model_validator(mode="before")
    @classmethod
    def _asks_something(cls, fields: Any) -> Any:
        """Take the last message for the question where there is no other."""
        messages = fields.get("messages") if isinstance(fields, dict) else None
        if messages and not fields.get("query") and isinstance(messages, list | tuple):
            last = messages[-1]
            content = last.get("content") if isinstance(last, dict) else getattr(last, "content", None)
            fields = fields | {"query": content}
        return fields

    @model_validator(mode="after")
    def _can_be_labelled(self) -> Example:
        if is_blank(self.query):
            raise ValueError("the query is empty")
        if self.messages is not None and (not self.messages or self.messages[-1].role != "user"):
            raise ValueError("the last of the messages must be the user's")
        if self.answers and not any(answer.strip() for answer in self.answers):
            raise ValueError("the right answers are empty; expected some text, or no answers at all if none is right")
        if self.correct is not None and not (self.answer or "").strip():
            raise ValueError('"correct" says whether an answer is right, but there is no "answer"')
        return self

    @property
    def about(self) -> str:
        """The group, or the question itself."""
        return self.group or self.query

    @property
    def key(self) -> str:
        """The question as it is asked: its messages, or itself."""
        return self.query if self.messages is None else json.dumps(PromptForm.plain(self.messages))

    def turns(self, prompt: PromptForm, wording: str | None = None) -> list[dict[str, str]]:
        """Give the messages that ask it.

        Args:
            prompt: how a question without messages of its own is put.
            wording: a text to ask in place of the question; None for the question itself.
        """
        if self.messages is None:
            return prompt.messages(self.query if wording is None else wording)
        *before, last = PromptForm.plain(self.messages)
        if wording is None:
            return [*before, last]
        text = last["content"]
        return [
            *before,
            {"role": "user", "content": text.replace(self.query, wording) if self.query in text else wording},
        ]

    @property
    def labelled(self) -> bool:
        """Tell whether an answer to it can be called right or wrong."""
        return self.answers is not None or self.correct is not None


def read_examples(source: str | Path) -> list[Example]:
    """Read examples from JSON lines or, by the ending .csv, from a table; right answers there are split at "|".

    A source "hub:owner/name:split" is a data set on the Hugging Face hub; `hub_rows` tells how it is read.

    Raises:
        DataError: the source cannot be read, a line is malformed (it is named), or a question occurs twice.
        ConfigurationError: the source is on the hub, and the extra for that is not installed.
    """
    if str(source).startswith(HUB):
        return _examples(hub_rows(str(source)), str(source))
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    return _examples(_table(text, path) if path.suffix == ".csv" else _lines(text, path), str(path))


def examples_of(examples: Any, *, read: Callable[[Any], Example] | None = None) -> list[Example]:
    """Check the examples that a program passes: `Example`s, or dicts like the lines of a file.

    Args:
        examples: a list of them.
        read: makes an example of one; by default `Example.model_validate`.

    Raises:
        DataError: one is malformed (its place is named), or they are no list.
    """
    if isinstance(examples, str | bytes | dict) or not isinstance(examples, Iterable):
        raise DataError(f"examples={shown(examples)}: expected a list of {_EXPECTED}.")
    checked_examples = []
    for place, example in enumerate(examples):
        if not isinstance(example, Example | dict):
            raise DataError(f"examples[{place}]={shown(example)}: expected {_EXPECTED}.")
        try:
            checked_examples.append((read or Example.model_validate)(example))
        except ValidationError as error:
            raise DataError(f"examples[{place}]: {first_fault(error, Example)}") from None
    return checked_examples


def read_paraphrases(path: str | Path) -> list[list[str]]:
    """Read groups of questions that mean the same: JSON lines with "query" and "paraphrases", a list.

    Raises:
        DataError: the file cannot be read, or a line is malformed (it is named).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    groups = []
    for number, plain in _lines(text, path):
        query, wordings = (plain.get("query"), plain.get("paraphrases")) if isinstance(plain, dict) else (None, None)
        texts = [query, *wordings] if isinstance(wordings, list) else [None]
        if not all(isinstance(one, str) and one.strip() for one in texts):
            raise DataError(f'{path}, line {number}: expected "query", a text, and "paraphrases", a list of texts.')
        groups.append([str(one) for one in texts])
    return groups


def calibrated_prompt(examples: Iterable[Example], prompt: PromptForm | None) -> PromptForm | None:
    """Give the common prompt of these questions, for a profile to be bound to; None for the questions by themselves.

    Questions with messages of their own have a common prompt if their messages differ in the question only. Otherwise
    there is none, and None.

    Raises:
        ConfigurationError: a prompt is given, and a question has messages of its own too.
    """
    examples = list(examples)
    chat = next((example for example in examples if example.messages is not None), None)
    if chat is None:
        return None if prompt == BARE else prompt
    if prompt is not None:
        raise ConfigurationError(
            f"The question {chat.query!r} has messages of its own, and a prompt is given too. Leave one of the two out."
        )
    try:
        forms = {PromptForm.literal(example.turns(BARE, QUERY)) for example in examples}
    except ConfigurationError:  # a message has {query} in it
        return None
    common = forms.pop()
    return None if forms or common == BARE else common


def _examples(rows: Iterable[tuple[int, Any]], source: str) -> list[Example]:
    examples, seen = [], dict[str, int]()
    for number, plain in rows:
        try:
            example = Example.model_validate(plain)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"{source}, line {number}: {place + ': ' if place else ''}{first['msg']}") from error
        if example.key in seen:
            raise DataError(
                f"{source}, line {number}: the question of line {seen[example.key]} again: {example.query!r}"
            )
        seen[example.key] = number
        examples.append(example)
    if not examples:
        raise DataError(f"{source} holds no questions; expected one a line.")
    return examples


def _lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                why = getattr(error, "msg", "a number is too long, or it is nested too deeply")
                raise DataError(f"{path}, line {number}: not JSON: {why}") from error


def _table(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines())
    try:
        for row in reader:
            plain: dict[str, Any] = {key: value for key, value in row.items() if key and value}
            if "truthful answer" in plain:
                plain["truthful answer"] = plain["truthful answer"].split("|")
            yield reader.line_num, plain
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1}: no table: {error}") from error
