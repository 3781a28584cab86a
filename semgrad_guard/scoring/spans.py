"""Spans: of layers, and of response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from semgrad_guard.errors import ConfigurationError, EmptyResponseError
from semgrad_guard.records import Generation

Span = Literal["upper-half", "all"] | Sequence[int]
TokenSpan = tuple[int, int] | Sequence[tuple[int, int]]


def resolved_span(span: Span, count: int) -> tuple[int, ...]:
    """Resolve a span against the number of decoder layers L."""
    if span == "upper-half":
        return tuple(range(count - max(count // 2, 1), count))
    if span == "all":
        return tuple(range(count))
    if isinstance(span, str) or not span or not all(isinstance(layer, int) and 0 <= layer < count for layer in span):
        raise ConfigurationError(
            f"span={span!r}: expected 'upper-half', 'all', or layer indices from 0 (embeddings) to {count - 1}."
        )
    return tuple(sorted(set(span)))


def whole(generations: Sequence[Generation]) -> list[list[TokenSpan]]:
    """Give each generation one span: its whole response."""
    return [[(0, len(generation.response_ids))] for generation in generations]


def pieces_of(span: TokenSpan, length: int) -> list[tuple[int, int]]:
    """Give the (start, stop) pairs of a span, checked against the response's length."""
    pairs = cast(list[tuple[int, int]], [span] if span and isinstance(span[0], int) else list(span))
    for start, stop in pairs:
        if not 0 <= start <= stop <= length:
            raise ConfigurationError(f"The span ({start}, {stop}) does not lie in a response of {length} tokens.")
    if all(start == stop for start, stop in pairs):
        raise EmptyResponseError(f"The span {span} has no tokens; there is nothing to score.")
    return pairs
