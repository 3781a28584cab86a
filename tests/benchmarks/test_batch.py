"""A batch of 8 beside 8 single calls, scores included: `make benchmarks`. What counts is the ratio."""

import time

import pytest

from semgrad_guard import ChatSemGrad
from semgrad_guard.demo import embedded_model

PLACES = ["France", "Germany", "Japan", "Italy", "Spain", "Zubrovia", "Norway", "Egypt"]
QUESTIONS = [f"What is the capital of {place}?" for place in PLACES]
STORIES = [f"Write a story about a {subject}." for subject in "cat dog king ship house tree fox girl".split()]


@pytest.fixture(scope="module")
def chat():
    return ChatSemGrad.from_model(*embedded_model(), generation={"max_new_tokens": 48, "do_sample": False})


def singly(chat, questions):
    return [chat.invoke(question) for question in questions]


@pytest.mark.parametrize("questions", [QUESTIONS, STORIES], ids=["short answers", "long answers"])
@pytest.mark.parametrize("how", ["8 single calls", "batch of 8"])
def test_time(benchmark, chat, how, questions):
    ask = ChatSemGrad.batch if how == "batch of 8" else singly
    benchmark.pedantic(ask, args=(chat, questions), rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("questions", [QUESTIONS, STORIES], ids=["short answers", "long answers"])
def test_a_batch_is_two_and_a_half_times_as_fast(chat, questions, capsys):
    """Rounds are taken in turn, and the fastest of each compared; with short answers a busy machine may miss it."""
    times = {singly: [], ChatSemGrad.batch: []}
    for _ in range(15):
        for ask, rounds in times.items():
            begin = time.perf_counter()
            ask(chat, questions)
            rounds.append(time.perf_counter() - begin)
    ratio = min(times[singly]) / min(times[ChatSemGrad.batch])
    with capsys.disabled():
        print(f"\nbatch of 8: {ratio:.2f} times as fast as 8 single calls")
    assert ratio >= 2.5
