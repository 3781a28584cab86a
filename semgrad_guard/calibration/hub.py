"""Questions from data sets on the Hugging Face hub; needs the extra `hub`.

Run by hand with `datasets` 5.2 on a folder of such a name, but never over a network: the tests have none, and use a
stand-in for the library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from semgrad_guard.errors import DataError
from semgrad_guard.extras import needs

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
