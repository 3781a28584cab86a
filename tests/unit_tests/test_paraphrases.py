"""Paraphrases that a model writes: which of its responses count."""

import itertools

import pytest
from models import tiny_model, tiny_tokenizer

from semgrad_guard import DataError, Generation, SemGradScorer
from semgrad_guard.calibration.paraphrases import written_paraphrases


def scripted(*responses):
    """A scorer whose model gives these responses in turn, each a text or a text and why it ended."""
    scorer, left = SemGradScorer(tiny_model(), tiny_tokenizer()), itertools.chain(responses)
    scorer.asked = []

    def generate(prompts, **settings):
        scorer.asked.append((len(prompts), settings, scorer.tokenizer.decode(prompts[0])))
        rows = [
            given if isinstance(given, tuple) else (given, "stop") for given in itertools.islice(left, len(prompts))
        ]
        return [Generation((1,), (2,), text, finish) for text, finish in rows]

    scorer.generate = generate
    return scorer


def test_other_wordings_are_kept_once():
    scorer = scripted(
        *(" Which city is the capital of France?\n", "which city is capital of France ?", "WHAT is France's capital?"),
        *("Who is the author of Hamlet?", "Who wrote Hamlet?", "Hamlet is by whom?"),
    )
    assert written_paraphrases(scorer, ["What is the capital of France?", "Who wrote Hamlet?"], 3) == [
        ["What is the capital of France?", "Which city is the capital of France?", "WHAT is France's capital?"],
        ["Who wrote Hamlet?", "Who is the author of Hamlet?", "Hamlet is by whom?"],
    ]
    count, settings, prompt = scorer.asked[1]
    assert (count, settings) == (3, {"do_sample": True, "max_new_tokens": 64})
    assert "Who wrote Hamlet?" in prompt


def test_a_question_without_other_wordings_is_dropped():
    asked = ["x y?", "c d?", "e f?", "name g"]
    responses = (
        *("y x?", "Sure:\ny, x?"),
        *("it is d.", ("d, then c?", "length")),
        *("f e?", ""),
        *("who is g?", "tell me g"),
    )
    kept = [["x y?", "y x?"], ["e f?", "f e?"], ["name g", "tell me g"]]
    assert written_paraphrases(scripted(*responses), asked, 2) == kept


def test_too_few_questions_left_are_an_error():
    with pytest.raises(DataError, match="another wording of 1 of 2 questions; at least 2"):
        written_paraphrases(scripted("y x?", "c?"), ["x y?", "c?"], 1)
