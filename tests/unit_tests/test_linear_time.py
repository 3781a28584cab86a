"""Texts from outside are read in linear time: what would take minutes if its square counted is done in seconds."""

import signal
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import tiny_tokenizer

from semgrad_guard import grounded_question
from semgrad_guard.calibration.labels import _parts, contains, token_f1, words
from semgrad_guard.model.responses import apart, parse_tool_calls
from semgrad_guard.model.text_spans import pieces, sentence_spans, token_spans
from semgrad_guard.routing.grounding import passages_used

N = 200_000
CALL = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
ATTACKS = {
    "an opening and blanks": "<" + " " * N,
    "openings": "<" * N,
    "openings and blanks": "< / " * (N // 4),
    "fences": "</passages>" * (N // 11),
    "a fence that does not close": "</passages" + " " * N,
    "names that are not seen": "<p" + "\u200b" * N,
    "blanks": " " * N,
    "blanks before a call that is none": " " * N + "<tool_call",
    "line breaks": "\n" * N,
    "line breaks and blanks": "\n x" * (N // 3),
    "marks": "." * N + "x",
    "marks and brackets": "!" * (N // 2) + ")" * (N // 2) + "x",
    "marks and brackets in turn": ".)" * (N // 2) + "x",
    "initials": "A." * (N // 2),
    "sentences": "A b. " * (N // 5),
    "digits": "1" * N,
    "thousands": "1,222" * (N // 5),
    "calls": CALL * (N // len(CALL)),
    "calls that do not end": "<tool_call>" * (N // 11),
    "a call of many arguments": '<tool_call>{"name": "a", "arguments": {'
    + ", ".join(f'"{place}": {place}' for place in range(N // 15))
    + "}}</tool_call>",
    "a call nested deeply": "<tool_call>" + "[" * N,
    "arguments nested deeply": '<tool_call>{"name": "a", "arguments": ' + '{"a": ' * (N // 6),
    "thoughts": "<think>" * (N // 7),
    "words": "a " * (N // 2),
    "a word": "a" * N,
}
READERS = {
    "passages": lambda text: grounded_question("q?", [text]),
    "passages an answer stands in": lambda text: passages_used("q?", text, [text, "other"]),
    "sentences": sentence_spans,
    "tool calls": parse_tool_calls,
    "reasoning": lambda text: (apart(text, inside=True), apart(text, inside=False)),
    "words": words,
    "an answer that holds another": lambda text: contains("q?", text, [text[: N // 2] + "x", text[N // 2 :] + "y"]),
    "words in common": lambda text: token_f1(text, [text]),
    "an encoder's name": lambda text: _parts(f"{text}@{text}"),
}


@contextmanager
def seconds(limit):
    """Stop what takes longer; a search by a regular expression can be interrupted too."""

    def stop(*_):
        raise AssertionError(f"it takes more than {limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("reader", READERS)
def test_no_text_takes_more_than_seconds_to_read(reader):
    for attack, text in ATTACKS.items():
        try:
            with seconds(20):
                READERS[reader](text)
        except AssertionError as error:
            raise AssertionError(f"{reader}, {attack}: {error}") from error


class Counting:
    """A tokenizer that counts the tokens it decodes; several have to come together to make a character."""

    def __init__(self, ids_of_a_character):
        self.decoded, self._together = 0, ids_of_a_character

    def decode(self, ids, skip_special_tokens=False):
        self.decoded += len(ids)
        return "".join("\u00e9" if token else "" for token in ids) + ("\ufffd" if len(ids) % self._together else "")


@pytest.mark.parametrize("together", [1, 3])
def test_tokens_are_placed_by_decoding_each_a_few_times(together):
    ids = [1] * 30_000
    tokenizer = Counting(together)
    assert len(pieces(tokenizer, ids)) == len(ids)
    assert tokenizer.decoded < 30 * len(ids)


def test_tokens_that_never_make_a_text_are_not_decoded_over_and_over():
    class Broken(Counting):
        def decode(self, ids, skip_special_tokens=False):
            self.decoded += len(ids)
            return "\ufffd" if len(ids) < 30_000 else "x" * 30_000

    tokenizer = Broken(1)
    pieces(tokenizer, [1] * 30_000)
    assert tokenizer.decoded < 10 * 30_000


def placed_one_by_one(tokenizer, ids):
    """What `pieces` gives, by its definition: every beginning decoded, and compared with the whole."""
    whole = tokenizer.decode(ids)
    starts = []
    for count in range(len(ids)):
        begun = tokenizer.decode(ids[:count])
        alike = (place for place, (ours, theirs) in enumerate(zip(begun, whole, strict=False)) if ours != theirs)
        starts.append(next(alike, min(len(begun), len(whole))))
    return [whole[start:stop] for start, stop in zip(starts, [*starts[1:], len(whole)], strict=True)]


@given(st.lists(st.integers(7, 100), min_size=1, max_size=150))  # none of them special
def test_tokens_are_placed_as_if_every_beginning_were_decoded(ids):
    tokenizer = tiny_tokenizer()
    assert pieces(tokenizer, ids) == placed_one_by_one(tokenizer, ids)
    text = tokenizer.decode(ids)
    found = token_spans(tokenizer, ids, text, [(place, place + 1) for place in range(len(text))])
    assert [start for start, _ in found] == [
        token for token, piece in enumerate(placed_one_by_one(tokenizer, ids)) for _ in piece
    ]
