"""The scorer equals the slow float64 reference, over families, sharpness, batches and paths."""

import random

import pytest
from models import FAMILIES, VOCABULARY, tiny_model, tiny_tokenizer
from reference import assert_equals_reference

from semgrad_guard import SemGradScorer

EVERYTHING = {"unweighted": True, "later": True}


def random_prompts(*lengths, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(5, VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("peak", [0.02, 1.0, 6.0], ids=["near-uniform", "ordinary", "peaked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_on_every_path(family, peak):
    model = tiny_model(family, peak=peak)
    scorer = SemGradScorer(model, tiny_tokenizer(), token_position=3, **EVERYTHING)
    prompts = random_prompts(17, 9, 12)
    generations = scorer.generate(prompts, max_new_tokens=7)
    kept = scorer.score(generations)
    again = scorer.score_ids(prompts, [g.response_ids for g in generations])
    for generation, one, other in zip(generations, kept, again, strict=True):
        for score in (one, other):
            assert_equals_reference(score, model, generation.prompt_ids, generation.response_ids, position=3)


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
@pytest.mark.parametrize("settings", [{"reduction": "mean"}, {"norm": "l2"}, {"tau": 0.3, "beta": 2.0}])
def test_variants(family, settings):
    model = tiny_model(family)
    (prompt,) = random_prompts(14)
    response = random_prompts(5, seed=1)[0]
    score = SemGradScorer(model, tiny_tokenizer(), token_position=2, layers="all", **EVERYTHING, **settings).score_ids(
        [prompt], [response]
    )[0]
    assert score.layer_indices == (0, 1, 2, 3)
    assert_equals_reference(score, model, prompt, response, position=2, **settings)


@pytest.mark.parametrize("position", [1, 4, 11])
def test_positions_up_to_the_first_prompt_token(position):
    model = tiny_model()
    prompt, response = random_prompts(11, 4)
    score = SemGradScorer(model, tiny_tokenizer(), token_position=position, **EVERYTHING).score_ids(
        [prompt], [response]
    )[0]
    assert_equals_reference(score, model, prompt, response, position=position)


def test_ragged_responses_in_one_batch():
    model = tiny_model("qwen3")
    prompts, responses = random_prompts(12, 5, 20, 8), random_prompts(1, 6, 3, 9, seed=2)
    scores = SemGradScorer(model, tiny_tokenizer(), token_position=3, **EVERYTHING).score_ids(prompts, responses)
    for score, prompt, response in zip(scores, prompts, responses, strict=True):
        assert_equals_reference(score, model, prompt, response, position=3)
