"""Data sets on the hub, with a stand-in for the `datasets` library."""

import sys
from types import SimpleNamespace

import pytest

from semgrad_guard import ConfigurationError, DataError
from semgrad_guard.calibration.examples import read_examples

ROWS = [
    {"question": "a?", "answer": "x", "more": {"aliases": ["y", "z"]}},
    {"question": "b?", "answer": "x", "more": {"aliases": []}},
    {"question": "a?", "answer": "x again", "more": {"aliases": []}},
]


@pytest.fixture
def asked(monkeypatch):
    """What the library was asked for."""
    calls = []

    def load_dataset(*place, split):
        calls.append((*place, split))
        if split == "lost":
            raise ValueError("Unknown split\nand more")
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_rows_become_examples_once_for_each_question(asked):
    first, second = read_examples("hub:owner/name:test")
    assert asked == [("owner/name", "test")]
    assert (first.query, first.answers, second.query) == ("a?", ("x",), "b?")


def test_configuration_and_columns_can_be_named(asked):
    first, second = read_examples("hub:owner/name/rc:train[:9]:question:more.aliases")
    assert asked == [("owner/name", "rc", "train[:9]")]
    assert (first.answers, second.answers, second.labelled) == (("y", "z"), None, False)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:name:test", "expected hub:owner/name:split"),
        ("hub:owner/name", "expected hub:owner/name:split"),
        ("hub:owner/name:test:question", "with the names of two columns"),
        ("hub:owner/name:test:question:", "with the names of two columns"),
        ("hub:owner/name:test:query:answer", "no column 'query'; there are question, answer, more"),
        ("hub:owner/name:test:question:answer.text", r"no column 'answer\.text'"),
        ("hub:owner/name:test:question:more", "hub:owner/name:test:question:more, line 1: truthful answer"),
        ("hub:owner/name:test:more:answer", "line 1: query: Input should be a valid string"),
        ("hub:owner/name:lost", "Cannot load hub:owner/name:lost: Unknown split$"),
    ],
)
def test_what_cannot_be_read_is_named(source, message):
    with pytest.raises(DataError, match=message):
        read_examples(source)


def test_without_the_extra_hub_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match=r'pip install "semgrad-guard\[hub\]"'):
        read_examples("hub:owner/name:test")
