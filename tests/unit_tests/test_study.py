"""What an evaluation looks into: differences, ablations, where SemGrad is taken, and the premise."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from scripted import score

from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.labels import labeler
from semgrad_guard.demo import embedded_model
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.evaluation import metrics
from semgrad_guard.evaluation.compare import choose, compare
from semgrad_guard.evaluation.report import WHOLE, parts_of
from semgrad_guard.evaluation.run import Result, evaluate, prompt_ids
from semgrad_guard.evaluation.study import ablation, divergence, placement, premise
from semgrad_guard.scoring.preservation import preservation
from semgrad_guard.scoring.scorer import SemGradScorer
from tools.embedded.questions import questions


def result(number, correct, given, stratum=""):
    about = str(number // 2)  # two questions about each thing
    return Result(
        query=f"q{number}", about=about, stratum=stratum, correct=correct, score=given, seconds={}, failures={}
    )


def synthetic(count=400, seed=0):
    """Answers whose layers tell right from wrong well, their NLL a little, and their length not at all."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        correct = rng.random() < 0.6
        told, hinted = (math.exp(rng.gauss(0 if correct else spread, 1)) for spread in (2.0, 0.5))
        given = score(told, layers=(told, told), nll=hinted, mean_nll=hinted, length=rng.randint(1, 5))
        found.append(result(number, correct, given, "odd" if number % 2 else "even"))
    return found


def test_differences_are_paired_and_agree_with_the_methods():
    results, methods = synthetic(), list(choose((), None).values())
    found = compare(results, methods, None, repeats=200)
    rows = {(row["ours"], row["other"]): row for row in found["differences"]}
    assert {ours for ours, _ in rows} == {"SemGrad", "SemGrad, upper half"}
    row = rows["SemGrad", "G-NLL"]
    assert row["auroc"] == pytest.approx(found["methods"]["SemGrad"]["auroc"] - found["methods"]["G-NLL"]["auroc"])
    assert 0 < row["interval"][0] < row["auroc"] < row["interval"][1]
    same = rows["SemGrad", "SemGrad, upper half"]  # the same numbers: no difference in any resample
    assert (same["auroc"], *same["interval"]) == (0, 0, 0)
    correct = np.array([item.correct for item in results])
    doubt = np.array([item.score.nll for item in results])
    groups = [item.about for item in results]
    alone = metrics.bootstrap(metrics.auroc, doubt, correct, groups=groups, repeats=200)
    assert found["methods"]["G-NLL"]["auroc_interval"] == pytest.approx(alone)


def test_parts_are_strata_and_unions_of_them():
    results = synthetic(20)
    parts = parts_of(results, {"both": ["odd", "even"]})
    assert {name: len(members) for name, members in parts.items()} == {WHOLE: 20, "both": 20, "even": 10, "odd": 10}
    with pytest.raises(ConfigurationError, match="is to hold strange; expected strata of the data: even, odd"):
        parts_of(results, {"x": ["strange", "odd"]})


def test_leaving_out_what_tells_costs_and_the_rest_does_not():
    results = synthetic()
    found = ablation(results, parts_of(results, {}), repeats=100)
    sets = found["sets"]
    assert sets["everything"][WHOLE]["loss"] == 0
    assert sets["without gradients"][WHOLE]["loss_interval"][0] > 0.1
    assert abs(sets["SemGrad's mean instead of its layers"][WHOLE]["loss"]) < 0.03
    assert set(sets["everything"]) == {"features", WHOLE, "even", "odd"}
    assert sets["everything"]["features"] == sets["without gradients"]["features"] + 4
    nothing = ablation([result(0, True, score())], {WHOLE: []})
    assert nothing["missing"] == "1 right and 0 wrong answers; a profile needs at least 5 of each kind."
    assert nothing["sets"] == {}
    assert "no answer has both" in ablation([result(0, None, score())], {WHOLE: []})["missing"]


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    scorer = SemGradScorer(*embedded_model())
    asked = [item for name in ("known", "several", "invented") for item in questions(name, "report")[:12]]
    examples = [Example(query=i.prompt, answers=i.answers, group=i.about) for i in asked]
    out = tmp_path_factory.mktemp("results") / "results.jsonl"
    return scorer, evaluate(scorer, examples, labeler("match"), out=out), {i.prompt: i.reworded[:2] for i in asked}


@pytest.mark.slow
def test_every_token_at_once_is_each_by_itself(answered):
    scorer, results, others = answered
    kept = preservation(scorer.model, scorer.tokenizer, [[query, *rest] for query, rest in others.items()], last=4)
    found = placement(scorer, results, "plain", kept, repeats=50)
    correct = np.array([item.correct for item in results])
    for token, layer in itertools.product((1, 3), (0, 4)):
        own = SemGradScorer(scorer.model, scorer.tokenizer, token_position=token, layers=[layer])
        values = [own.score_ids([prompt_ids(own, r.query, "plain")], [r.response_ids])[0].semgrad for r in results]
        assert found.by_state[layer][token - 1] == pytest.approx(metrics.auroc(np.array(values), correct), abs=0.01)
    assert found.questions == len(results)
    assert found.tokens[2] == "<|im_start|>"
    assert set(found.choices) == {
        "by the template", "the last token", "by the preservation score", "a random prompt token",
        "the embeddings of all tokens",
    }  # fmt: skip
    template = SemGradScorer(scorer.model, scorer.tokenizer)
    values = [template.score_ids([prompt_ids(scorer, r.query, "plain")], [r.response_ids])[0].semgrad for r in results]
    upper, low, high = found.choices["by the template"]["upper half"]
    assert upper == pytest.approx(metrics.auroc(np.array(values), correct), abs=0.01)
    assert low <= upper <= high
    assert placement(scorer, [item for item in results if item.correct], "plain", None) is None


def test_rewording_changes_the_distribution_as_defined(answered):
    scorer, results, others = answered
    one = results[0]
    prompt, other = (prompt_ids(scorer, text, "plain") for text in (one.query, others[one.query][0]))
    rows = []
    for ids in (prompt, other):
        full = torch.tensor([[*ids, *one.response_ids]])
        logits = scorer.model(full).logits[0, len(ids) - 1 : -1].detach().double()
        rows.append(torch.log_softmax(logits, -1))
    expected = float((rows[0].exp() * (rows[0] - rows[1])).sum(-1).mean())
    assert divergence(scorer, prompt, other, one.response_ids) == pytest.approx(expected, rel=1e-3)
    assert divergence(scorer, prompt, prompt, one.response_ids) == pytest.approx(0, abs=1e-9)


def test_the_premise_is_measured_where_there_are_paraphrases(answered):
    scorer, results, others = answered
    methods = list(choose((), None).values())
    found = premise(scorer, results, others, methods, "plain", repeats=50)
    assert (found["questions"], found["missing"]) == (len(results), "")
    assert all(-1 <= row["spearman"] <= 1 for row in found["methods"].values())
    assert found["methods"]["SemGrad"]["spearman"] > 0.5
    few = premise(scorer, results[:3], others, methods, "plain")
    assert few["missing"] == "3 scored questions have other wordings; at least 10 are needed"
