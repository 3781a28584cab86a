"""Labelled questions, read from a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from semgrad_guard.calibration.hub import HUB, hub_rows
from semgrad_guard.errors import DataError, SemGradError
from semgrad_guard.model.text_spans import is_blank
from semgrad_guard.settings import Settings, first_fault, shown

_EXPECTED = 'an Example, or a dict such as {"query": "Where?", "truthful answer": ["there"]}'


class Example(Settings):
    """A question with its right answers, or with an answer and whether that is right; no answers: none is right.

    `group` is what the question is about: questions of a group stay on one side of every split, and count once in a
    guarantee. `stratum` names a kind of question for reports.
    """

    # Files have other columns too, and numbers for texts; what a program misspells is refused by `Settings`.
    model_config = ConfigDict(populate_by_name=True, strict=False, extra="ignore")
    raises: ClassVar[type[SemGradError]] = DataError

    query: str = Field(min_length=1)
    answers: tuple[str, ...] | None = Field(default=None, alias="truthful answer")
    answer: str | None = None
    correct: bool | None = None
    group: str = ""
    stratum: str = ""

    @model_validator(mode="before")
    @classmethod
    def _answers_are_texts(cls, given: Any) -> Any:
        """Take one answer for a list of one, and drop the empty ones that published files have among others."""
        answers = given.get("truthful answer") if isinstance(given, dict) else None
        if isinstance(answers, str):
            answers = [answers]
        if isinstance(answers, list):
            given = given | {"truthful answer": [one for one in answers if one and str(one).strip()] or answers}
        return given

    @model_validator(mode="after")
    def _can_be_labelled(self) -> Example:
        if is_blank(self.query):
            raise ValueError("the query is empty")
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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    return _examples(_table(text) if path.suffix == ".csv" else _lines(text, path), str(path))


def examples_of(examples: Any) -> list[Example]:
    """Read the examples that a program passes: `Example`s, or dicts like the lines of a file.

    Raises:
        DataError: one is malformed (its place is named), or they are no list.
    """
    if isinstance(examples, str | bytes | dict) or not isinstance(examples, Iterable):
        raise DataError(f"examples={shown(examples)}: expected a list of {_EXPECTED}.")
    found = []
    for place, example in enumerate(examples):
        if not isinstance(example, Example | dict):
            raise DataError(f"examples[{place}]={shown(example)}: expected {_EXPECTED}.")
        try:
            found.append(Example.model_validate(example))
        except ValidationError as error:
            raise DataError(f"examples[{place}]: {first_fault(error, Example)}") from None
    return found


def read_paraphrases(path: str | Path) -> list[list[str]]:
    """Read groups of questions that mean the same: JSON lines with "query" and "paraphrases", a list.

    Raises:
        DataError: the file cannot be read, or a line is malformed (it is named).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    groups = []
    for number, plain in _lines(text, path):
        query, others = (plain.get("query"), plain.get("paraphrases")) if isinstance(plain, dict) else (None, None)
        texts = [query, *others] if isinstance(others, list) else [None]
        if not all(isinstance(one, str) and one.strip() for one in texts):
            raise DataError(f'{path}, line {number}: expected "query", a text, and "paraphrases", a list of texts.')
        groups.append([str(one) for one in texts])
    return groups


def _examples(rows: Iterable[tuple[int, Any]], source: str) -> list[Example]:
    examples, seen = [], dict[str, int]()
    for number, plain in rows:
        try:
            example = Example.model_validate(plain)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"{source}, line {number}: {place + ': ' if place else ''}{first['msg']}") from error
        if example.query in seen:
            raise DataError(
                f"{source}, line {number}: the question of line {seen[example.query]} again: {example.query!r}"
            )
        seen[example.query] = number
        examples.append(example)
    if not examples:
        raise DataError(f"{source} holds no questions; expected one a line.")
    return examples


def _lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error.msg}") from error


def _table(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines())
    for row in reader:
        plain: dict[str, Any] = {key: value for key, value in row.items() if key and value}
        if "truthful answer" in plain:
            plain["truthful answer"] = plain["truthful answer"].split("|")
        yield reader.line_num, plain
