"""SmolLM2's scores: those of the float64 reference, alone and in a batch, and after saving."""

import pytest
from reference import assert_equals_reference

from semgrad_guard import SemGradScorer
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.fingerprint import fingerprint
from semgrad_guard.model.load import load_model

QUESTIONS = ("What is the capital of France?", "Name a city in Poland, please.", "Who are you?")


def prompts(tokenizer, *questions):
    return [encode_chat(tokenizer, [{"role": "user", "content": question}]) for question in questions]


def test_the_scores_are_those_of_the_reference(smollm2):
    model, tokenizer = smollm2
    scorer = SemGradScorer(model, tokenizer, layers=[15, 22, 29], unweighted=True, later=True)
    (generation,) = scorer.generate(prompts(tokenizer, QUESTIONS[0]), max_new_tokens=4)
    prompt, response = generation.prompt_ids, generation.response_ids
    for (score,) in (scorer.score([generation]), scorer.score_ids([prompt], [response])):
        assert_equals_reference(score, model, prompt, response, position=scorer.token_position)


def test_answers_end_with_the_end_of_turn_token(smollm2):
    model, tokenizer = smollm2
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in model.generation_config.eos_token_id
    (generation,) = SemGradScorer(model, tokenizer).generate(prompts(tokenizer, QUESTIONS[0]), max_new_tokens=20)
    assert (generation.finish_reason, generation.response_ids[-1]) == ("stop", end)
    assert "Paris" in generation.text
    assert "<|" not in generation.text


def test_a_row_scores_in_a_batch_as_it_does_alone(brief):
    model, tokenizer = brief
    scorer = SemGradScorer(model, tokenizer)
    ids = prompts(tokenizer, *QUESTIONS)
    together = scorer.generate(ids, max_new_tokens=6)
    for prompt, generation, score in zip(ids, together, scorer.score(together), strict=True):
        (alone,) = scorer.generate([prompt], max_new_tokens=6)
        assert alone.response_ids == generation.response_ids
        (single,) = scorer.score([alone])
        assert single.semgrad == pytest.approx(score.semgrad, rel=1e-4)
        assert single.paragrad == pytest.approx(score.paragrad, rel=1e-4)
        assert single.nll == pytest.approx(score.nll, rel=1e-4, abs=1e-6)


def test_what_was_saved_is_loaded_again(smollm2, brief, folder):
    model, tokenizer = load_model(folder, quiet=True)
    assert fingerprint(model) == fingerprint(smollm2[0])
    assert model.generation_config.eos_token_id == smollm2[0].generation_config.eos_token_id
    assert prompts(tokenizer, QUESTIONS[0]) == prompts(brief[1], QUESTIONS[0])
