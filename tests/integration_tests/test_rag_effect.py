"""The table of what the guard does to retrieval, on few questions."""

from collections import Counter
from itertools import islice

import pytest

from semgrad_guard import ChatSemGrad
from semgrad_guard.demo import corpus, embedded_model, embedded_profile
from tools.embedded.questions import questions
from tools.embedded.rag_effect import hopeless, outcomes, table, unrelated_passages, ways


@pytest.fixture(scope="module")
def llm():
    settings = {
        "generation": {"max_new_tokens": 64, "do_sample": False},
        "scoring": embedded_profile().bound_to.scoring,
    }
    return ChatSemGrad.from_model(*embedded_model(), **settings)


@pytest.mark.slow
def test_where_passages_tell_more_is_right_than_from_memory(llm):
    compared = ways(llm, embedded_profile(), corpus())
    items = questions("withheld", "report")[:40]
    counts = {name: outcomes(items, compared[name], name) for name in ("no retrieval", "plain RAG", "guarded RAG")}
    assert counts["no retrieval"]["right"] < counts["plain RAG"]["right"]
    assert counts["guarded RAG"]["wrong"] < counts["plain RAG"]["wrong"] / 2


@pytest.mark.slow
def test_where_passages_tell_nothing_little_wrong_is_let_through(llm):
    compared = ways(llm, embedded_profile(), unrelated_passages())
    items = list(islice(hopeless(), 40))
    assert outcomes(items, compared["plain RAG"], "")["wrong"] > 30
    assert outcomes(items, compared["guarded RAG"], "")["wrong"] <= 8


def test_the_table_gives_shares_with_intervals():
    assert table("Title", {"way": Counter(right=5, wrong=5)}).splitlines()[-1] == (
        "| way | 50.0 % [18.7, 81.3] | 50.0 % [18.7, 81.3] | 0.0 % [0.0, 30.8] |"
    )
