"""Labels by meaning and by a judge, with scripted encoders and judges."""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda

from semgrad_guard import ConfigurationError, DataError, LLMJudge
from semgrad_guard.calibration.labels import labeler, tolerant

ANGLES = {"It is Paris.": 0.0, "Paris": 0.5, "Lyon": 0.8}  # cos 0.5 = 0.878, cos 0.8 = 0.697


class Encoder:
    """Gives every text a unit vector at a known angle."""

    def __init__(self, name, **settings):
        if name == "nowhere":
            raise OSError("no such model\nand more")
        assert settings == {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
        self.name = name

    def encode(self, texts, *, normalize_embeddings, show_progress_bar):
        assert (normalize_embeddings, show_progress_bar) == (True, False)
        return np.array([[np.cos(ANGLES[text]), np.sin(ANGLES[text])] for text in texts])


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder))


@pytest.mark.usefixtures("encoder")
def test_labels_by_similarity_compare_with_every_right_answer():
    label = labeler("similar:some/encoder")
    assert label("Where?", "It is Paris.", ["Lyon", "Paris"]) is True
    assert label("Where?", "It is Paris.", ["Lyon"]) is False
    assert label("Where?", " ", ["Paris"]) is False


@pytest.mark.usefixtures("encoder")
def test_the_least_similarity_can_be_given():
    assert labeler("similar:some/encoder@0.6")("Where?", "It is Paris.", ["Lyon"]) is True
    assert labeler("similar:some/encoder@.9")("Where?", "It is Paris.", ["Paris"]) is False
    assert labeler("similar:a@home/encoder")._encoder.name == "a@home/encoder"
    for given in ("1", "0", "95"):
        with pytest.raises(ConfigurationError, match="expected a threshold between 0 and 1"):
            labeler(f"similar:some/encoder@{given}")


@pytest.mark.usefixtures("encoder")
def test_an_encoder_that_is_not_there_is_named():
    with pytest.raises(ConfigurationError, match=r"Cannot load 'nowhere' .*: no such model$"):
        labeler("similar:nowhere")


def test_without_the_extra_similarity_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigurationError, match=r'pip install "semgrad-guard\[similarity\]"'):
        labeler("similar:some/encoder")


def judge(*replies):
    """A model that gives these replies in turn, and what it was asked."""
    left, asked = list(replies), []

    def reply(prompt):
        asked.append(prompt)
        return AIMessage(left.pop(0))

    return RunnableLambda(reply), asked


def test_a_judge_is_shown_the_question_the_right_answers_and_the_answer():
    model, asked = judge("Yes", "no.", "**No**, it is not.")
    label = LLMJudge(model)
    assert [label("Where?", answer, ["Paris", "in Paris"]) for answer in ("Paris", "Lyon", "Nice")] == [
        True,
        False,
        False,
    ]
    assert all(part in asked[0] for part in ("Where?", "Paris; in Paris", "Answer given: Paris"))


def test_a_judge_may_be_a_chain_that_gives_text():
    model, _ = judge("Yes")
    assert LLMJudge(model | StrOutputParser())("Where?", "Paris", ["Paris"]) is True


@pytest.mark.parametrize("reply", ["maybe", "", "Nothing is known.", "Yesterday"])
def test_a_reply_that_is_neither_yes_nor_no_is_named(reply):
    with pytest.raises(DataError, match=f"'Where.'.* yes or no.*{reply!r}"):
        LLMJudge(judge(reply)[0])("Where?", "Paris", ["Paris"])


def test_a_reply_that_is_no_text_is_named():
    with pytest.raises(DataError, match=r"yes or no, .*3"):
        LLMJudge(RunnableLambda(lambda prompt: 3))("Where?", "Paris", ["Paris"])


def test_a_label_that_fails_now_and_then_leaves_one_answer_without(caplog):
    label = tolerant(LLMJudge(judge(*["yes"] * 9, "maybe", "no")[0]))
    with caplog.at_level(logging.WARNING):
        found = [label(f"q{index}?", "a", ["b"]) for index in range(11)]
    assert found == [True] * 9 + [None, False]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("No label for answer 10: DataError > labels.py")
    assert "q9?" not in caplog.text  # questions may be those of users


def test_a_label_that_keeps_failing_ends_the_run_early():
    label = tolerant(LLMJudge(judge(*["maybe"] * 9)[0]))
    assert [label("q?", "a", ["b"]) for _ in range(5)] == [None] * 5
    with pytest.raises(DataError, match=r"6 of 6 labels failed, the last for 'q\?': DataError: .*'maybe'"):
        label("q?", "a", ["b"])


def test_a_judge_is_named_by_its_model_and_can_be_a_key():
    judge = LLMJudge(RunnableLambda(lambda prompt: "yes"))
    assert repr(judge) == "LLMJudge(RunnableLambda)"
    assert {judge: 1}[judge] == 1


def test_a_judge_that_is_no_model_is_refused():
    with pytest.raises(ConfigurationError, match=r"LLMJudge\('gpt'\): expected a chat model, or a chain"):
        LLMJudge("gpt")
