"""Foreign data made plain: nothing that a document's metadata may hold breaks a record."""

import json
import uuid
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from pydantic import SecretStr

from semgrad_guard import Source
from semgrad_guard.plain import CUT, plain


class Silent:
    pass


class Speaking:
    def __str__(self):
        return "id 7"


class Hostile:
    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __hash__ = __str__
    tolist = shape = property(__str__)


class Kind(IntEnum):
    ONE = 1


class Name(Enum):
    TWO = "two"


@dataclass
class Place:
    x: float
    at: Path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None), (True, True), (3, 3), (0.5, 0.5), ("\u00e9", "\u00e9"),
        (float("nan"), "nan"), (float("-inf"), "-inf"), (2**63, str(2**63)),
        (-(2**63), -(2**63)),
        (10**5000, "<int>"),
        (np.float32(0.5), 0.5), (np.float64("nan"), "nan"), (np.int64(3), 3), (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([1, 2]), [1, 2]), (np.array(0.25), 0.25), (np.array(["a"]), ["a"]),
        (np.zeros((200, 200)), "<ndarray of shape (200, 200)>"),
        (torch.tensor([[1.0, float("nan")]]), [[1.0, "nan"]]), (torch.tensor(2.0, requires_grad=True), 2.0),
        (torch.zeros(2, device="meta"), "<Tensor>"),
        (b"bytes", "bytes"), (b"\xff", "\\xff"), (bytearray(b"a"), "a"), (memoryview(b"a"), "a"),
        (date(2026, 1, 2), "2026-01-02"), (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (Path("a/b"), "a/b"), (uuid.UUID(int=1), str(uuid.UUID(int=1))), (Decimal("1.50"), "1.50"),
        (Decimal("NaN"), "NaN"),
        (Kind.ONE, 1), (Name.TWO, "two"), (Place(0.5, Path("a")), {"x": 0.5, "at": "a"}),
        ((1, {2}), [1, [2]]), (deque([1]), [1]), (range(2), [0, 1]), (frozenset(), []), (OrderedDict(a=1), {"a": 1}),
        ({1: 2, None: 3, (4, 5): 6, np.int64(7): 8, "\ud800": 9}, {"1": 2, "None": 3, "[4, 5]": 6, "7": 8, "?": 9}),
        ("\ud800", "?"), (count(), "<count>"), ((x for x in [1]), "<generator>"), (complex(1, 2), "1+2j"),
        (Silent(), "<Silent>"), (Speaking(), "id 7"), (Hostile(), "<Hostile>"), ([Hostile()], ["<Hostile>"]),
        (SecretStr("password"), "**********"), (Document("text", metadata={"at": Path("x")}),
         {"id": None, "metadata": {"at": "x"}, "page_content": "text", "type": "Document"}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_any_value_is_plain(value, expected):
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False).encode()) == expected


def test_what_contains_itself_and_what_is_too_much_is_cut():
    loop = {"a": []}
    loop["a"] += [loop, loop]
    wide, deep = list(range(1_000_000)), []
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, wide, deep, {"w": wide, "d": deep}, dict.fromkeys(map(str, wide), 1), "x" * 1_000_000):
        found = json.dumps(plain(value), allow_nan=False, ensure_ascii=False)
        assert CUT in found
        assert len(found) < 300_000
    while deep:  # piece by piece; all at once is more than the interpreter's stack takes
        deep = deep.pop()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.decimals(),
        lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text() | st.none(), inner),
        max_leaves=20,
    )
)
def test_what_is_plain_stays_as_it_is(value):
    once = plain(value)
    assert plain(once) == once
    assert json.loads(json.dumps(once, allow_nan=False)) == once


def test_sources_are_plain_whoever_makes_them():
    source = Source(text="half a pair \ud800", metadata={"score": np.float32(0.5), 3: Path("a")})
    assert source.text == "half a pair ?"
    assert source.metadata == {"score": 0.5, "3": "a"}
    assert Source.model_validate_json(source.model_dump_json()) == source
