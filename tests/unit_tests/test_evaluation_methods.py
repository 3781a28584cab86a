"""The methods of an evaluation: chosen by name, timed, and never sure where something failed."""

import copy
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.labels import labeler, same
from semgrad_guard.demo import embedded_model, embedded_profile
from semgrad_guard.errors import ConfigurationError, DataError, PromptTooLongError
from semgrad_guard.evaluation.classifiers import BATCH, BEM, Entailment, nli_classifier, read_pairs
from semgrad_guard.evaluation.compare import ENTAILMENT, POLYGRAPH, choose, compare, uncertainties
from semgrad_guard.evaluation.polygraph import _RECIPES, Polygraph
from semgrad_guard.evaluation.run import Work, evaluate, peak_memory, relabelled, token_uncertainties
from semgrad_guard.evaluation.sampling import inconsistency, p_true, same_words, semantic_entropy
from semgrad_guard.scoring.scorer import SemGradScorer
from tests.models import tiny_classifier, tiny_model, tiny_tokenizer

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
    assert set(choose([], None, entailment=True)) == set(choose([], None))
    assert set(ENTAILMENT) <= set(choose([], None, sampling=True, entailment=True))


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
    assert rows["semantic entropy (same words)"]["overhead"]["median"] == pytest.approx(np.median(ratios))
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
    assert doubts["semantic entropy (same words)"] == doubts["self-consistency (same words)"] == MOST
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


def test_samples_are_compared_by_their_meanings():
    meanings = same_words(["Paris", "paris.", "The Paris", "It is Paris"])
    assert meanings == (("paris",), ("paris",), ("paris",), ("it", "is", "paris"))
    assert inconsistency(meanings) == pytest.approx(1 / 3)
    assert semantic_entropy(meanings) == pytest.approx(-2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3))
    assert inconsistency((0, 0, 0)) == semantic_entropy((0, 1, 1)) == 0  # the answer is none of the samples
    assert semantic_entropy((0, 1, 2)) == pytest.approx(math.log(2))
    for empty in ((), (0,)):
        assert math.isnan(inconsistency(empty))
        assert math.isnan(semantic_entropy(empty))


class Scripted:
    """A classifier that knows which text entails which; it keeps the sizes of the batches that it reads."""

    device = CPU

    def __init__(self, entailment, entails):
        self.config, self._tokenizer, self._entails = entailment._model.config, entailment._tokenizer, entails
        self.batches = []

    def __call__(self, input_ids, attention_mask, **inputs):
        self.batches.append(len(input_ids))
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            text = self._tokenizer.decode(ids[mask.bool()])
            one, other = text.removeprefix("[CLS] ").removesuffix(" [SEP]").split(" [SEP] ")
            rows.append([0.0, 1.0 if (one, other) in self._entails else -1.0, 0.5])
        return SimpleNamespace(logits=torch.tensor(rows))


@pytest.fixture
def entailment(tmp_path):
    return Entailment(tiny_classifier(tmp_path / "nli"), CPU)


def test_answers_that_entail_each_other_behind_the_question_mean_the_same(entailment):
    both = {("where paris", "where it is paris"), ("where it is paris", "where paris")}
    forth = {("where paris", "where in france")}  # but not back
    entailment._model = Scripted(entailment, both | forth)
    texts = ["Paris", "It is Paris", "in France", "Rome", "it is paris", "Paris"]
    assert entailment.meanings("Where", texts) == (0, 0, 1, 2, 0, 0)
    assert entailment._model.batches == [2, 2, 4, 2 * 3]  # with the first of each meaning, both ways; "Paris" is known
    assert entailment.meanings("Where", ["Paris"]) == (0,)
    assert entailment.meanings("Where", []) == ()


def test_a_bounded_number_of_pairs_is_read_at_once(entailment):
    entailment._model = Scripted(entailment, set())
    texts = [letter * 3 for letter in "abcdefghijkl"]
    assert entailment.meanings("q", texts) == tuple(range(12))
    assert max(entailment._model.batches) == BATCH
    assert sum(entailment._model.batches) == 12 * 11


def test_padding_changes_no_meaning(entailment):
    pairs = [("a", "b"), ("a long text of words", "b"), ("a", "another text that is longer still")]
    together = read_pairs(entailment._model, entailment._tokenizer, pairs, "--nli")
    alone = [read_pairs(entailment._model, entailment._tokenizer, [pair], "--nli")[0] for pair in pairs]
    assert torch.allclose(torch.stack(together), torch.stack(alone), atol=1e-6)
    assert torch.stack(together).sum(-1).tolist() == pytest.approx([1.0] * 3)


def test_meanings_are_kept_in_the_journal(scorer, tmp_path, entailment):
    work = Work(samples=3, entailment=entailment)
    results = run(scorer, tmp_path, work=work)
    for result in results:
        assert result.meanings == entailment.meanings(result.query, [result.answer, *result.samples])
        assert result.seconds["entailment"] > 0
    assert run(scorer, tmp_path, work=work) == results
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["setting"]["entailment"] == str(tmp_path / "nli")
    assert json.loads(lines[1])["meanings"] == list(results[0].meanings)
    methods = choose(["self-consistency-nli", "semantic-entropy-nli"], None)
    doubts = uncertainties(results, methods.values())
    assert doubts["self-consistency (entailment)"].tolist() == [inconsistency(result.meanings) for result in results]
    assert doubts["semantic entropy (entailment)"].tolist() == [semantic_entropy(row.meanings) for row in results]
    without = uncertainties([result.model_copy(update={"meanings": ()}) for result in results], methods.values())
    assert all((column == MOST).all() for column in without.values())


def test_pairs_that_cannot_be_read_are_failures_and_not_cut_off(scorer, tmp_path):
    entailment = Entailment(tiny_classifier(tmp_path / "nli", max_position_embeddings=24), CPU)
    with pytest.raises(PromptTooLongError, match=r"has 25 tokens; the classifier of --nli reads 22"):
        entailment.meanings("a" * 5, ["b" * 6, "c" * 6])
    assert entailment.meanings("aaaaa", ["bbbb", "cccc"])
    results = run(scorer, tmp_path, work=Work(samples=3, entailment=entailment))
    assert all(result.meanings == () for result in results if len({result.answer, *result.samples}) > 1)
    with torch.no_grad():
        entailment._model.classifier.bias.fill_(torch.nan)
    with pytest.raises(ArithmeticError, match="not finite"):
        entailment.meanings("a", ["b", "c"])


def test_only_a_whole_classifier_of_entailment_is_loaded(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot load a classifier from there"):
        nli_classifier(tmp_path, CPU)
    other = tiny_classifier(tmp_path / "other", labels=("good", "bad"))
    with pytest.raises(ConfigurationError, match="its labels are BAD, GOOD; expected entailment, neutral and contr"):
        nli_classifier(other, CPU)
    headless = tiny_classifier(tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "classifier" not in name},
        headless / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ConfigurationError, match=r"the weights of classifier\.bias, classifier\.weight are missing"):
        nli_classifier(headless, CPU)
    pickled = tiny_classifier(tmp_path / "pickled")
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="cannot load a classifier from there"):
        nli_classifier(pickled, CPU)


def test_bem_is_asked_about_every_right_answer(tmp_path):
    bem = BEM(tiny_classifier(tmp_path / "bem", labels=("different", "same")), CPU)
    read, model = [], bem._model

    def asked(input_ids, attention_mask, **inputs):
        rows = [bem._tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        read.extend(rows)
        certainty = torch.tensor([[0.0, math.log(0.7 / 0.3) + (1e-6 if "berlin" in row else -1e-6)] for row in rows])
        return SimpleNamespace(logits=certainty)

    bem._model = type("Asked", (), {"config": model.config, "device": CPU, "__call__": staticmethod(asked)})()
    assert bem("which city", "it is berlin", ["bonn", "rome"]) is True
    assert read == [f"[CLS] it is berlin [SEP] {one} [SEP] which city [SEP]" for one in ("bonn", "rome")]
    assert bem("which city", "bonn", ["rome"]) is False  # just below 0.7
    assert bem("which city", "bonn", ["rome", "berlin"]) is True  # the best of them counts
    assert bem("which city", " ", ["berlin"]) is False
    bem._model = model
    assert bem("which city", "bonn", ["bonn"]) in (True, False)  # the whole way through a classifier
    with pytest.raises(PromptTooLongError, match="the classifier of BEM reads 510"):
        bem("which city", "bonn " * 500, ["bonn"])
    with pytest.raises(ConfigurationError, match="it has 3 classes; expected two"):
        BEM(tiny_classifier(tmp_path / "nli"), CPU)
    with pytest.raises(ConfigurationError, match="expected a number between 0 and 1"):
        BEM(tmp_path / "bem", CPU, threshold=1.0)


def test_results_get_other_labels(scorer, tmp_path):
    results = run(scorer, tmp_path)
    failed = results[1].model_copy(update={"correct": None})
    given = relabelled([results[0], failed], EXAMPLES, lambda question, answer, right: question == QUERIES[1])
    assert [result.correct for result in given] == [False, None]
    assert given[0] == results[0].model_copy(update={"correct": False})

    def broken(question, answer, right):
        raise DataError("no label")

    assert relabelled(results[:1], EXAMPLES, broken)[0].correct is None
    with pytest.raises(DataError, match="is none of the examples"):
        relabelled(results, EXAMPLES[:1], same)


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
