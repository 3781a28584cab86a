"""Hidden states: where they are taken, what is kept of them, and that a profile gives them back as they were."""

import base64
import json
import zlib

import numpy as np
import pytest
import torch
from models import VOCABULARY, tiny_model, tiny_tokenizer

from semgrad_guard import ChatSemGrad, ConfigurationError, SemGradScorer
from semgrad_guard.calibration.search import read_off
from semgrad_guard.scoring.rauq import ALPHA, watched_layers
from semgrad_guard.scoring.states import PLACES, StateReading, state_layers

RNG = np.random.default_rng(0)


def prompts(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def states(n=50, layers=2, size=16, seed=0):
    rng = np.random.default_rng(seed)
    few, many = rng.normal(size=(n, PLACES, layers, 3)), rng.normal(size=(n, PLACES, layers, size))
    return few @ np.random.default_rng(7).normal(size=(3, size)) + many


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_they_are_those_that_predict_the_first_the_last_but_one_and_the_last_token(family):
    model = tiny_model(family)
    scorer = SemGradScorer(model, tiny_tokenizer(), token_position=2)
    generations = scorer.generate(prompts(9, 14, 5), max_new_tokens=6)
    spans = [(0, len(generation.response_ids)) for generation in generations]
    _, found = scorer.score_with_states(generations, (2, 4), spans=spans)
    for generation, rows in zip(generations, found, strict=True):
        ids = torch.tensor([[*generation.prompt_ids, *generation.response_ids]])
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        last = ids.shape[1] - 2
        first = len(generation.prompt_ids) - 1
        for row, column in zip(rows, (first, max(first, last - 1), last), strict=True):
            for values, layer in zip(row, (2, 4), strict=True):
                assert values == pytest.approx(hidden[layer][0, column].numpy(), abs=1e-4)


def test_a_span_has_its_own():
    scorer = SemGradScorer(tiny_model(), tiny_tokenizer(), token_position=2)
    (generation,) = scorer.generate(prompts(9), max_new_tokens=8)
    (whole,), (part,) = (scorer.score_with_states([generation], (4,), spans=[span])[1] for span in ((0, 8), (2, 5)))
    assert not np.allclose(whole, part)
    (single,) = scorer.score_with_states([generation], (4,), spans=[(3, 4)])[1]
    assert np.allclose(single[0], single[1])
    assert np.allclose(single[0], single[2])


def test_components_have_variance_1_and_their_like_a_distance_of_about_1():
    seen = states(400)
    reading = StateReading.fit(seen, (3, 4), 3)
    assert reading.count == 3 * PLACES * 2
    projected = reading.project(seen)
    assert projected.shape == (400, reading.count)
    assert projected.std(0) == pytest.approx(np.ones(reading.count), abs=0.02)
    assert projected.mean(0) == pytest.approx(np.zeros(reading.count), abs=0.02)
    assert np.median(reading.distance(seen)) == pytest.approx(1.0, abs=0.25)
    one, other = 10 * np.eye(16)[3], 10 * np.eye(16)[5]
    reading = StateReading.fit(seen + one, (3, 4), 3)
    near, far = (reading.distance(states(100, seed=3) + place) for place in (one, other))
    assert np.median(near) == pytest.approx(1.0, abs=0.25)
    assert far.min() > near.max()


def test_length_does_not_count_and_nothing_overflows():
    seen = states(100)
    reading = StateReading.fit(seen * 1e6, (3, 4), 4)
    assert reading.project(seen) == pytest.approx(reading.project(1e6 * seen), abs=1e-6)
    zeros = np.zeros((2, PLACES, 2, 16))
    assert np.isfinite(reading.project(zeros)).all()
    assert np.isfinite(reading.distance(zeros)).all()


def test_it_is_the_same_after_writing_and_reading():
    reading = StateReading.fit(states(), (3, 4), 4)
    again = StateReading.model_validate_json(reading.model_dump_json())
    assert again == reading
    assert StateReading.model_validate(json.loads(reading.model_dump_json())) == reading  # as a profile is read
    assert again.project(states(seed=1)) == pytest.approx(reading.project(states(seed=1)))
    assert len(repr(reading)) < 200


def test_fewer_answers_than_directions_and_equal_answers_are_no_error():
    few = StateReading.fit(states(3), (3, 4), 8)
    assert few.count == 2 * PLACES * 2
    alike = StateReading.fit(np.repeat(states(1), 5, axis=0), (3, 4), 2)
    assert np.isfinite(alike.project(states(4, seed=2))).all()


@pytest.mark.parametrize(
    "components",
    [
        "no base64!",
        base64.b64encode(b"not packed").decode(),
        base64.b64encode(zlib.compress(b"odd")).decode(),
        base64.b64encode(zlib.compress(np.full((PLACES, 2, 3, 16), np.nan, np.float16).tobytes())).decode(),
    ],
    ids=["text", "unpacked", "size", "nan"],
)
def test_damaged_components_are_refused(components):
    with pytest.raises(ConfigurationError, match="components"):
        StateReading(layers=(3, 4), size=16, components=components)


def test_a_scorer_reads_them_with_the_settings_of_a_profile():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    plain = SemGradScorer(model, tokenizer, token_position=3)
    generations = plain.generate(prompts(9, 14, 5, 11), max_new_tokens=6)
    layers = state_layers(4)
    spans = [(0, len(generation.response_ids)) for generation in generations]
    scores, seen = plain.score_with_states(generations, layers, spans=spans)
    reading = StateReading.fit(seen, layers, 2)
    for upper in (False, True):
        scorer = SemGradScorer(model, tokenizer, token_position=3, states=reading, upper_replay=upper)
        again = scorer.generate([generation.prompt_ids for generation in generations], max_new_tokens=6)
        for row, score in enumerate(scorer.score(again)):
            assert score.states == pytest.approx(reading.project(seen)[row], abs=2e-3)
            assert score.distance == pytest.approx(reading.distance(seen)[row], rel=1e-3)
            assert score.semgrad == pytest.approx(scores[row].semgrad, rel=1e-3)


def test_caches_tell_readings_apart_and_do_not_hold_them():
    one, other = (
        ChatSemGrad.from_model(
            tiny_model(), tiny_tokenizer(), states=StateReading.fit(states(size=32, seed=seed), (3, 4), 2)
        )._identifying_params
        for seed in (1, 2)
    )
    assert one["states"] != other["states"]
    assert len(str(one)) < 5000


def test_layers_that_the_pass_does_not_run_are_refused():
    reading = StateReading.fit(states(), (1, 4), 2)
    with pytest.raises(ConfigurationError, match="expected layers from 2, the lowest with a gradient, to 4"):
        SemGradScorer(tiny_model(), tiny_tokenizer(), states=reading)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_narrower_scores_are_read_off_a_wide_one(family):
    """One pass at the earliest token gives what passes at later tokens, of fewer layers, by mean or sum would give."""
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    wide = SemGradScorer(model, tokenizer, token_position=5, layers="all", later=True)
    generations = wide.generate(prompts(9, 14, 7), max_new_tokens=6)
    for settings in (
        {"token_position": 3, "layers": "upper-half", "reduction": "sum", "later": True},
        {"token_position": 1, "layers": [1, 3], "reduction": "mean", "tau": 0.3, "beta": 2.0},
        {"token_position": 5, "layers": "all", "reduction": "sum"},
    ):
        narrow = SemGradScorer(model, tokenizer, **settings)
        for one, other in zip(wide.score(generations), narrow.score(generations), strict=True):
            read = read_off(one, wide.scoring, narrow.scoring)
            for name in ("semgrad", "paragrad", "exgrad", "hybridgrad", "nll", "max_nll", "first_entropy"):
                assert getattr(read, name) == pytest.approx(getattr(other, name), rel=2e-3), name
            assert read.layers == pytest.approx(other.layers, rel=2e-3)
            assert np.array(read.later) == pytest.approx(np.array(other.later), rel=2e-3)
            assert (read.layer_indices, read.length) == (other.layer_indices, other.length)


def reference_rauq(model, prompt, response):
    """RAUQ by its equations, from the attention weights of a whole eager pass."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=torch.tensor([[*prompt, *response]]), output_attentions=True)
    p = output.logits[0].softmax(-1)
    start = len(prompt) - 1
    probabilities = [float(p[start + t, token]) for t, token in enumerate(response)]
    worst = []
    for layer in watched_layers(len(output.attentions)):
        own = output.attentions[layer][0].diagonal(dim1=-2, dim2=-1)[:, start : start + len(response)]
        head = int(own[:, 1:].mean(-1).argmax()) if len(response) > 1 else 0
        carried = [probabilities[0]]
        for t in range(1, len(response)):
            carried.append(ALPHA * probabilities[t] + (1 - ALPHA) * float(own[head, t]) * carried[-1])
        worst.append(-np.log(carried).mean())
    return max(worst)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral-window"])
def test_rauq_is_that_of_its_equations_in_a_batch_and_alone(family):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    scorer = SemGradScorer(model, tokenizer, token_position=2, attention=True, upper_replay=True)
    generations = scorer.generate(prompts(9, 14, 5), max_new_tokens=6)
    found = [score.rauq for score in scorer.score(generations)]
    again = [
        score.rauq
        for score in scorer.score_ids([g.prompt_ids for g in generations], [g.response_ids for g in generations])
    ]
    eager = tiny_model(family)
    eager.set_attn_implementation("eager")
    by_eager = SemGradScorer(eager, tokenizer, token_position=2, attention=True)
    from_weights = [by_eager.score_ids([g.prompt_ids], [g.response_ids])[0].rauq for g in generations]
    expected = [reference_rauq(tiny_model(family), g.prompt_ids, g.response_ids) for g in generations]
    for values in (found, again, from_weights):
        assert values == pytest.approx(expected, rel=1e-4)


def test_rauq_is_there_only_when_asked_for_and_leaves_the_model_alone():
    model = tiny_model()
    kernel, configs = (
        model.config._attn_implementation,
        {id(module.config) for module in model.modules() if hasattr(module, "config")},
    )
    scorer = SemGradScorer(model, tiny_tokenizer(), token_position=2, attention=True)
    (generation,) = scorer.generate(prompts(9), max_new_tokens=4)
    assert scorer.score([generation])[0].rauq > 0
    assert scorer.adjusted(attention=False).score([generation])[0].rauq is None
    assert model.config._attn_implementation == kernel
    assert {id(module.config) for module in model.modules() if hasattr(module, "config")} == configs
    assert not any("semgrad" in name for module in model.modules() for name in vars(module))
