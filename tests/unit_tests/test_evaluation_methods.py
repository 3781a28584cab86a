"""The methods of an evaluation: chosen by name, timed, and never sure where something failed."""

import copy
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.labels import labeler
from semgrad_guard.demo import embedded_model, embedded_profile
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.evaluation.compare import POLYGRAPH, choose, compare, uncertainties
from semgrad_guard.evaluation.polygraph import _RECIPES, Polygraph
from semgrad_guard.evaluation.run import Work, evaluate, peak_memory, token_uncertainties
from semgrad_guard.evaluation.sampling import p_true
from semgrad_guard.scoring.scorer import SemGradScorer
from tests.models import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
MOST = np.finfo(np.float64).max
EXAMPLES = [
    Example(query=f"What is the capital of {place}?", answers=(capital,))
    for place, capital in {"France": "Paris", "Japan": "Tokyo", "Zubrovia": "-"}.items()
]
QUERIES = [example.query for example in EXAMPLES]


@pytest.fixture(scope="module")
def scorer():
    return SemGradScorer(*embedded_model())


@pytest.fixture
def library(monkeypatch):
    """A stand-in for lm-polygraph, whose estimators keep the statistics that they are given."""
    seen = []

    def estimator(value):
        def estimate(statistics):
            seen.append(statistics)
            if isinstance(value, Exception):
                raise value
            return np.array([value])

        return lambda: estimate

    estimators = SimpleNamespace(
        EigenScore=estimator(-3.5),
        MonteCarloNormalizedSequenceEntropy=estimator(float("nan")),
        DegMat=estimator(KeyError("semantic_matrix_entail")),
        SAR=estimator(float("-inf")),
        SemanticDensity=estimator(0.5),
    )
    monkeypatch.setitem(
        sys.modules, "lm_polygraph", SimpleNamespace(estimators=estimators, stat_calculators=SimpleNamespace())
    )
    return seen


def run(scorer, out, **settings):
    return evaluate(scorer, EXAMPLES, labeler("match"), out=out / "results.jsonl", max_new_tokens=16, **settings)


def test_without_names_nothing_samples_unless_asked():
    once = choose([], embedded_profile())
    assert list(once)[:2] == ["confidence", "semgrad"]
    assert all(set(method.spends) <= {"scoring"} for method in once.values())
    assert set(choose([], None, sampling=True)) - set(once) == {"self-consistency", "semantic-entropy", "p-true"}


def test_names_are_looked_up():
    assert list(choose(["p-true", "semgrad"], None)) == ["p-true", "semgrad"]
    with pytest.raises(ConfigurationError, match=r"methods='luck': expected some of semgrad, .*p-true, .*sar"):
        choose(["semgrad", "luck"], None)
    with pytest.raises(ConfigurationError, match="no confidence without a profile"):
        choose(["confidence"], None)
    assert set(POLYGRAPH) == set(_RECIPES)


def test_every_piece_of_work_is_timed(scorer, tmp_path, monkeypatch):
    monkeypatch.setattr("semgrad_guard.evaluation.run.p_true", lambda scorer, question, answer: 0.5)
    results = run(scorer, tmp_path, work=Work(samples=3, p_true=True))
    assert all(set(result.seconds) == {"generating", "scoring", "sampling", "p-true"} for result in results)
    assert all(min(result.seconds.values()) > 0 and not result.failures for result in results)
    methods = choose(["semgrad", "length", "semantic-entropy", "sar"], None)
    rows = compare(results, list(methods.values()), None, repeats=10)["methods"]
    ratios = [1 + result.seconds["sampling"] / result.seconds["generating"] for result in results]
    assert rows["semantic entropy"]["overhead"]["median"] == pytest.approx(np.median(ratios))
    assert rows["length"]["overhead"] == {"median": 1.0, "p95": 1.0}
    assert (rows["SAR"]["overhead"], rows["SAR"]["failed"]) == (None, 3)


@pytest.mark.parametrize(
    ("what", "broken", "bad"),
    [
        ("generating", "generate", lambda call, rows: call == 2),
        ("scoring", "score", lambda call, rows: call == 2),
        ("sampling", "generate", lambda call, rows: len(rows) == 4),
    ],
)
def test_memory_that_runs_out_is_a_failure_of_one_question(scorer, tmp_path, monkeypatch, what, broken, bad):
    work, calls = getattr(scorer, broken), []

    def short_of_memory(rows, **settings):
        calls.append(rows)
        if bad(len(calls), rows):
            raise torch.cuda.OutOfMemoryError("out of memory")
        return work(rows, **settings)

    monkeypatch.setattr(scorer, broken, short_of_memory)
    results = run(scorer, tmp_path, work=Work(samples=4 if what == "sampling" else 0))
    failed = results[1]
    assert failed.failures == {what: "OutOfMemoryError: out of memory"}
    assert what not in failed.seconds
    assert failed.correct is (None if what == "generating" else True)
    assert results[2].answer
    doubts = uncertainties([failed], choose(["semgrad", "semantic-entropy", "self-consistency"], None).values())
    assert doubts["semantic entropy"] == doubts["self-consistency"] == MOST
    assert (doubts["SemGrad"] == MOST) == (what != "sampling")


SPELLINGS = {"True": 104, " true": 105, "TRUE\n": 106, "False": 107, " FALSE": 108}
OTHERS = {"untrue": 109, "true,": 110}


@pytest.fixture
def judge():
    """A tiny model with spellings of both words, and with tokens that only hold them."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*SPELLINGS, *OTHERS)])
    assert {text: tokenizer.convert_tokens_to_ids(text) for text in SPELLINGS | OTHERS} == SPELLINGS | OTHERS
    return SemGradScorer(tiny_model(), tokenizer)


def test_p_true_is_summed_over_all_spellings(judge):
    question, answer = "What is the capital of Japan?", "Tokyo"
    prompt = (
        f"Question: {question}\nProposed answer: {answer}\n"
        "Is the proposed answer true or false? Answer with True or False."
    )
    with torch.no_grad():
        logits = judge.model(torch.tensor([_prompt(judge, prompt)])).logits[0, -1].double()
    probability = logits.softmax(-1).tolist()
    true = sum(probability[index] for text, index in SPELLINGS.items() if text.strip().lower() == "true")
    false = sum(probability[index] for text, index in SPELLINGS.items() if text.strip().lower() == "false")
    assert p_true(judge, question, answer) == pytest.approx(true / (true + false), rel=1e-6)
    assert p_true(judge, question, answer) != pytest.approx(
        probability[104] / (probability[104] + probability[107]), rel=1e-3
    )


def test_spellings_are_looked_up_once_and_few_tokens_are_decoded(judge, monkeypatch):
    decoded, decode = [], judge.tokenizer.decode
    monkeypatch.setattr(judge.tokenizer, "decode", lambda ids: decoded.append(ids) or decode(ids))
    p_true(judge, "a", "b")
    assert sorted(decoded) == [[index] for index in (SPELLINGS | OTHERS).values()]
    p_true(judge, "c", "d")
    assert len(decoded) == len(SPELLINGS | OTHERS)


@pytest.mark.parametrize("missing", ["true", "false"])
def test_p_true_of_a_model_that_splits_a_word_has_failed(tmp_path, missing):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([text for text in SPELLINGS if text.strip().lower() != missing])
    with pytest.raises(ConfigurationError, match=f"no single token of this model is the word '{missing}'"):
        p_true(SemGradScorer(tiny_model(), tokenizer), "a", "b")


def test_a_method_that_failed_is_no_value(scorer, tmp_path):
    results = run(scorer, tmp_path, work=Work(p_true=True))  # the embedded model splits both words
    assert all(result.p_true is None for result in results)
    assert all("no single token" in result.failures["p-true"] for result in results)
    methods = choose(["p-true"], None).values()
    assert (uncertainties(results, methods)["P(True)"] == MOST).all()
    assert compare(results, list(methods), None, repeats=10)["methods"]["P(True)"]["failed"] == 3
    first = json.loads((tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["setting"]["p_true"] == "all spellings"  # a run of one spelling does not go on


def test_a_score_that_is_not_finite_is_a_failure(scorer, tmp_path, monkeypatch):
    score = scorer.score
    monkeypatch.setattr(
        scorer, "score", lambda rows: [one.model_copy(update={"nll": float("inf")}) for one in score(rows)]
    )
    assert all(
        result.score is None and "not a finite" in result.failures["scoring"] for result in run(scorer, tmp_path)
    )


def test_doubt_is_shown_where_it_can_be(scorer, tmp_path, monkeypatch):
    results = evaluate(scorer, EXAMPLES, labeler("match"), out=tmp_path / "r.jsonl")
    assert list(token_uncertainties(scorer, results, "plain")) == QUERIES
    attribute, first = scorer.attribute, results[0].response_ids

    def short_of_memory(generation):
        if generation.response_ids == first:
            raise RuntimeError("not enough memory")
        return attribute(generation)

    monkeypatch.setattr(scorer, "attribute", short_of_memory)
    assert list(token_uncertainties(scorer, results, "plain")) == QUERIES[1:]


def test_memory_is_measured(scorer, monkeypatch):
    found = peak_memory(scorer, QUERIES, "plain", 16)
    assert found["questions"] == 3
    assert 0 < found["generating_bytes"] <= found["generating_and_scoring_bytes"]

    def short_of_memory(rows):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(scorer, "score", short_of_memory)
    found = peak_memory(scorer, QUERIES, "plain", 16)
    assert (found["generating_and_scoring_bytes"], found["reason"]) == (None, "RuntimeError: not enough memory")


@pytest.mark.parametrize(("name", "option"), [("degmat", "--nli"), ("semantic-density", "--nli"), ("sar", "--cross")])
def test_a_method_without_its_model_says_so(name, option, tmp_path):
    with pytest.raises(ConfigurationError, match=f"{name!r} needs a model of its own, and {option}.* is not given"):
        Polygraph([name], nli=None, cross_encoder=None, device=CPU)
    with pytest.raises(ConfigurationError, match=r"where no config\.json is"):
        Polygraph([name], nli=tmp_path, cross_encoder=tmp_path, device=CPU)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_polygraph", None)
    with pytest.raises(ConfigurationError, match=r'pip install "semgrad-guard\[bench\]"'):
        Polygraph(["ln-pe"], nli=None, cross_encoder=None, device=CPU)


def test_what_lm_polygraph_cannot_give_is_most_uncertain(scorer, tmp_path, library):
    before = copy.deepcopy(scorer.model.config.to_dict())
    polygraph = Polygraph(["eigenscore", "ln-pe"], nli=None, cross_encoder=None, device=CPU)
    results = run(scorer, tmp_path, work=Work(samples=3, polygraph=polygraph))
    assert [result.polygraph for result in results] == [{"eigenscore": -3.5, "ln-pe": None}] * 3
    assert all("not finite" in result.failures["ln-pe"] for result in results)
    assert all({"reading", "eigenscore"} <= result.seconds.keys() for result in results)
    doubts = uncertainties(results, choose(["eigenscore", "ln-pe"], None).values())
    assert (doubts["EigenScore"] == -3.5).all()
    assert (doubts["LN-PE"] == MOST).all()
    assert scorer.model.config.to_dict() == before
    polygraph._methods["ln-pe"] = (sys.modules["lm_polygraph"].estimators.DegMat(), None)
    (tmp_path / "results.jsonl").unlink()
    results = run(scorer, tmp_path, work=Work(samples=3, polygraph=polygraph))
    assert results[0].failures == {"ln-pe": "RuntimeError: lm-polygraph: KeyError: 'semantic_matrix_entail'"}


def test_lm_polygraph_gets_the_samples_as_they_were_drawn(scorer, tmp_path, library):
    polygraph = Polygraph(["eigenscore"], nli=None, cross_encoder=None, device=CPU)
    results = run(scorer, tmp_path, work=Work(samples=4, polygraph=polygraph))
    for result, statistics in zip(results, library, strict=True):
        assert statistics["input_texts"] == [result.query]
        assert tuple(statistics["sample_texts"][0]) == result.samples
        assert [len(row) for row in statistics["sample_log_likelihoods"][0]] == [
            len(row) for row in statistics["sample_tokens"][0]
        ]
        assert sum(statistics["greedy_log_likelihoods"][0]) == pytest.approx(-result.score.nll, abs=1e-4)
        decoded = [scorer.tokenizer.decode(row).strip() for row in statistics["sample_tokens"][0]]
        assert tuple(decoded) == result.samples
        end, ids = scorer.tokenizer.eos_token_id, _prompt(scorer, result.query)
        for place, tokens in enumerate(statistics["sample_tokens"][0]):
            row = torch.tensor([[*ids, *tokens]])  # one by one, without padding
            with torch.no_grad():
                output = scorer.model(row, output_hidden_states=True)
            log_p = output.logits[0].log_softmax(-1)
            whole = sum(float(log_p[len(ids) - 1 + at, token]) for at, token in enumerate([*tokens, end]))
            assert statistics["sample_log_probs"][0][place] == pytest.approx(whole, abs=1e-4)
            middle = output.hidden_states[scorer.model.config.num_hidden_layers // 2][0, -1]
            assert statistics["sample_embeddings"][0][place] == pytest.approx(middle.numpy(), abs=1e-4)


def test_a_run_with_other_methods_does_not_go_on(scorer, tmp_path, library):
    first = Polygraph(["eigenscore"], nli=None, cross_encoder=None, device=CPU)
    results = run(scorer, tmp_path, work=Work(samples=2, polygraph=first))
    assert run(scorer, tmp_path, work=Work(samples=2, polygraph=first)) == results
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["setting"]["polygraph"] == {"methods": ["eigenscore"]}
    assert json.loads(lines[1])["polygraph"] == {"eigenscore": -3.5}
    with pytest.raises(Exception, match="Choose another folder"):
        run(scorer, tmp_path, work=Work(samples=2))


def _prompt(scorer, query):
    text = scorer.tokenizer.apply_chat_template(
        [{"role": "user", "content": query}], tokenize=False, add_generation_prompt=True
    )
    return scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
