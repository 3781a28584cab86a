"""In half precision gradients are those of a float64 model with the same weights, however sure the model is.

The forward pass rounds the uncertainty itself. What is compared is the gradient for each nat of it, in which only the
way back through the model counts. Without the powers of two on that way, it vanishes where the model is sure.
"""

import pytest
import torch
from models import tiny_model, tiny_tokenizer
from reference import reference

from semgrad_guard import SemGradScorer
from semgrad_guard.records import Generation

PROMPT = list(range(10, 22))
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def for_each_nat(score):
    """Give SemGrad without weights for each nat, by layer, and SemGrad and ParaGrad for each nat squared."""
    assert score.nll > 0
    by_layer = [layer / score.nll for layer in score.layers_unweighted]
    return [*by_layer, score.semgrad / score.nll / score.mean_entropy, score.paragrad / score.nll / score.mean_entropy]


@HALVES
@pytest.mark.parametrize("peak", [1.0, 60.0, 200.0, 300.0], ids=["unsure", "sure", "very sure", "certain"])
def test_the_gradient_of_a_sure_answer_does_not_vanish(dtype, peak):
    model = tiny_model(peak=peak).to(dtype)
    scorer = SemGradScorer(model, tiny_tokenizer(), token_position=3, unweighted=True)
    generations = scorer.generate([PROMPT], max_new_tokens=1, do_sample=False)
    (score,), response = scorer.score(generations), generations[0].response_ids
    expected = reference(model, PROMPT, response, position=3, indices=score.layer_indices)
    assert for_each_nat(score) == pytest.approx(for_each_nat(expected), rel=0.05)


@HALVES
def test_a_sure_token_beside_one_that_is_not_keeps_its_gradient(dtype):
    model = tiny_model(peak=300.0).to(dtype)
    scorer = SemGradScorer(model, tiny_tokenizer(), token_position=3, unweighted=True)
    (sure,) = scorer.generate([PROMPT], max_new_tokens=1, do_sample=False)
    response = (*sure.response_ids, 7)
    generation = Generation(tuple(PROMPT), response, "", "stop")
    ((first, second),) = scorer.score([generation], spans=[[(0, 1), (1, 2)]])
    assert first.nll < 1e-4 < 1 < second.nll
    (alone,) = scorer.score([Generation(tuple(PROMPT), sure.response_ids, "", "stop")])
    assert for_each_nat(first) == pytest.approx(for_each_nat(alone), rel=0.05)
