"""Sentences, parts in pieces, scores left out, and what a pass may take."""

import itertools
import math

import pytest
import torch
from accelerate import dispatch_model
from hypothesis import given
from hypothesis import strategies as st
from models import tiny_model, tiny_tokenizer
from scripted import profile
from scripted import score as a_score

from semgrad_guard import (
    Budget,
    BudgetError,
    ChatSemGrad,
    ConfigurationError,
    EmptyResponseError,
    ProfileError,
    SemGradScorer,
    score_sentences,
)
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.evaluation.metrics import operations, peak_bytes
from semgrad_guard.evaluation.overhead import numbered_tokenizer, random_llama
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.generate import generate
from semgrad_guard.model.replay import Layout
from semgrad_guard.model.text_spans import sentence_spans
from semgrad_guard.records import Generation
from semgrad_guard.scoring import scorer as scorer_module
from semgrad_guard.scoring.budget import estimated_memory
from semgrad_guard.scoring.scorer import without_boundary

PROMPT = list(range(5, 25))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Paris. It is big!", ["Paris.", "It is big!"]),
        ('J. S. Bach said "No." Then he left.', ['J. S. Bach said "No."', "Then he left."]),
        ("- one\n- two\n\n3. three", ["- one", "- two", "3. three"]),
        ("It costs 3.5 euros. Really?", ["It costs 3.5 euros.", "Really?"]),
        ("\u4e00\u3002\u4e8c\uff01\u4e09", ["\u4e00\u3002", "\u4e8c\uff01", "\u4e09"]),
        ("no end", ["no end"]),
        (" \n ", []),
        ("Well... No?! Yes.)", ["Well...", "No?!", "Yes.)"]),
        ("J... said 3.. things", ["J...", "said 3..", "things"]),
    ],
)
def test_sentences(text, sentences):
    assert [text[start:stop] for start, stop in sentence_spans(text)] == sentences


@given(st.text(st.sampled_from('aB .!?\n"\u3002')))
def test_sentences_lose_nothing_but_blanks(text):
    spans = sentence_spans(text)
    assert all(start < stop for start, stop in spans)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    outside = "".join(
        text[stop:start] for (_, stop), (start, _) in itertools.pairwise([(0, 0), *spans, (len(text), 0)])
    )
    assert outside.strip() == ""


@pytest.fixture(scope="module")
def scorer():
    return SemGradScorer(tiny_model(), tiny_tokenizer(), token_position=3)


def spoken(scorer, text):
    prompt = encode_chat(scorer.tokenizer, [{"role": "user", "content": "q?"}])
    return Generation(tuple(prompt), tuple(scorer.tokenizer(text, add_special_tokens=False)["input_ids"]), text, "stop")


def test_every_sentence_has_a_score_of_its_own(scorer):
    first, second = spoken(scorer, "It is so. Or not?"), spoken(scorer, "Yes.")
    long, short = score_sentences(scorer, [first, second])
    assert [sentence.text for sentence in long.sentences] == ["It is so.", "Or not?"]
    assert [sentence.tokens for sentence in long.sentences] == [(0, 9), (10, 17)]  # a token a character
    expected = scorer.score([first, second], spans=[[(0, 9), (10, 17)], [(0, 4)]])
    assert [sentence.score for sentence in long.sentences] == expected[0]
    assert short.sentences[0].score == expected[1][0]
    values = [score.semgrad for score in expected[0]]
    assert long.value() == max(values) == long.most_uncertain().score.semgrad
    (mean,) = score_sentences(scorer, [first], aggregate="mean")
    assert mean.value("nll") == pytest.approx(sum(score.nll for score in expected[0]) / 2)
    silent = long.sentences[1].model_copy(update={"score": expected[0][1].model_copy(update={"layers": (0.0,)})})
    broken = long.model_copy(update={"sentences": (long.sentences[0], silent)})
    assert math.isnan(broken.value("nll"))
    assert broken.most_uncertain() is silent
    with pytest.raises(EmptyResponseError, match="Response 1 has no text"):
        score_sentences(scorer, [first, spoken(scorer, " ")])


def test_a_part_may_come_in_pieces(scorer):
    (generation,) = scorer.generate([PROMPT], max_new_tokens=8)
    pieces, reordered, whole = [(0, 2), (5, 8)], [(5, 8), (0, 2)], [(0, 4), (4, 8)]
    ((found, again, all_of_it),) = scorer.score([generation], spans=[[pieces, reordered, whole]])
    assert found == again
    assert found.length == 5
    assert all_of_it.semgrad == pytest.approx(scorer.score([generation])[0].semgrad, rel=1e-6)
    with pytest.raises(EmptyResponseError):
        scorer.score([generation], spans=[[[(2, 2), (5, 5)]]])
    with pytest.raises(ConfigurationError, match="does not lie"):
        scorer.score([generation], spans=[[[(0, 1), (7, 9)]]])


def test_scores_at_the_head_can_be_left_out(scorer):
    generations = scorer.generate([PROMPT], max_new_tokens=5)
    (full,), (lean,) = scorer.score(generations), scorer.score(generations, parameters=False)
    assert (lean.paragrad, lean.exgrad, lean.hybridgrad) == (None, None, None)
    assert lean.model_copy(update={name: getattr(full, name) for name in ("paragrad", "exgrad", "hybridgrad")}) == full
    assert lean.finite()


def test_what_was_left_out_never_passes():
    lean = a_score(paragrad=None, exgrad=None, hybridgrad=None)
    verdict = Standard(None, None, 1e9, "paragrad").judge(lean, "")
    assert not verdict.passed
    section = profile().answer.model_copy(update={"features": ("paragrad",)})
    with pytest.raises(ProfileError, match="needs 'paragrad', which was not computed"):
        section.confidence(lean)


def test_what_exceeds_the_budget_is_refused_before_it_is_run():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    free = SemGradScorer(model, tokenizer, token_position=3)
    generations = free.generate([PROMPT, PROMPT], max_new_tokens=6)
    for budget, message in (
        (Budget(tokens=17), "would run 18 tokens again; the budget is 17"),
        (Budget(memory=1000), "the budget is 0 MB"),
    ):
        with pytest.raises(BudgetError, match=message):
            SemGradScorer(model, tokenizer, token_position=3, budget=budget).score(generations)
    roomy = SemGradScorer(model, tokenizer, token_position=3, budget=Budget(tokens=18, memory=10**9))
    assert roomy.score(generations) == free.score(generations)
    with pytest.raises(ConfigurationError, match="expected 1 or more"):
        Budget(tokens=0)


def test_what_just_fits_the_budget_is_scored():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    free = SemGradScorer(model, tokenizer, token_position=3)
    (generation,) = free.generate([PROMPT], max_new_tokens=6, min_new_tokens=6)
    layout = Layout.of([generation.prompt_ids], [generation.response_ids], 3, model.device)
    memory = estimated_memory(model, layout)
    for just, less in ((Budget(tokens=9), Budget(tokens=8)), (Budget(memory=memory), Budget(memory=memory - 1))):
        assert free.adjusted(budget=just).score([generation]) == free.score([generation])
        with pytest.raises(BudgetError):
            free.adjusted(budget=less).score([generation])


def test_an_answer_over_the_budget_is_not_to_be_trusted():
    chat = ChatSemGrad.from_model(
        tiny_model(), tiny_tokenizer(), budget=Budget(tokens=1), generation={"max_new_tokens": 4}
    )
    record = chat.invoke("q?").response_metadata["semgrad"]
    assert record["scores"] is None
    assert record["failure"]["text"].startswith("scoring failed: BudgetError")


@pytest.mark.parametrize(("length", "response", "vocabulary"), [(64, 16, 2000), (256, 8, 500), (16, 32, 8000)])
def test_the_estimate_of_memory_is_good_to_a_factor_of_two(length, response, vocabulary):
    model = random_llama(128, 4, vocabulary)
    scorer = SemGradScorer(model, numbered_tokenizer(vocabulary), token_position=3, layers="all")
    (generation,) = scorer.generate([list(range(5, 5 + length))], max_new_tokens=response, min_new_tokens=response)
    layout = Layout.of([generation.prompt_ids], [generation.response_ids], 3, model.device)
    taken = peak_bytes(model.device, lambda: scorer.score([generation]))
    assert 0.5 < taken / estimated_memory(model, layout) < 2


def test_the_graph_begins_where_a_gradient_is_wanted():
    model = random_llama(128, 8, 500)
    taken = []
    for layers in ("all", "upper-half", (7,)):
        scorer = SemGradScorer(model, numbered_tokenizer(500), token_position=3, layers=layers)
        (generation,) = scorer.generate([PROMPT], max_new_tokens=32, min_new_tokens=32)
        taken.append(peak_bytes(model.device, lambda s=scorer, g=generation: s.score([g], parameters=False)))
    assert taken[0] > taken[1] > taken[2]


def test_peaks_are_counted_in_bytes():
    def work():
        first = torch.zeros(1000)
        second = first + 1
        del first
        return second * 2

    assert peak_bytes(torch.device("cpu"), work) == 8000
    assert peak_bytes(torch.device("cpu"), lambda: torch.zeros(10).add_(1).view(2, 5)) == 40


def test_operations_are_counted():
    one, other = torch.ones(3, 5), torch.ones(5, 7)
    assert operations(lambda: one @ other) == 2 * 3 * 5 * 7
    weight = torch.ones(5, 7, requires_grad=True)
    assert operations(lambda: (one @ weight).sum().backward()) == 2 * 2 * 3 * 5 * 7  # there, and back to the weight


def test_a_model_that_accelerate_dispatched_scores_the_same():
    plain = tiny_model()
    dispatched = dispatch_model(tiny_model(), device_map={"": "cpu"}, force_hooks=True)
    assert dispatched.model.layers[0]._hf_hook is not None
    expected, found = (
        SemGradScorer(model, tiny_tokenizer(), token_position=3).score_ids([PROMPT], [[7, 8, 9]])[0]
        for model in (plain, dispatched)
    )
    assert found == expected
    assert dispatched.model.layers[0].forward.args[0] is dispatched.model.layers[0]
    assert not any(module._forward_hooks for module in dispatched.modules())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2-softcap", "gpt2", "phi3", "olmo2", "cohere", "mixtral"])
def test_upper_half_replay_gives_the_plain_path_s_scores_or_says_why_not(family):
    plain = SemGradScorer(tiny_model(family), tiny_tokenizer(), token_position=3)
    upper = SemGradScorer(tiny_model(family), tiny_tokenizer(), token_position=3, upper_replay=True)
    prompts = [PROMPT[:9], PROMPT[:13], PROMPT[:5]]
    generations = upper.generate(prompts, max_new_tokens=6)
    expected, found = plain.score(plain.generate(prompts, max_new_tokens=6)), upper.score(generations)
    path = expected[0].path if upper.upper_replay_refusal else "upper"
    for one, other in zip(found, expected, strict=True):
        assert one.path == path
        assert one.layers == pytest.approx(other.layers, rel=1e-5)
        assert one.paragrad == pytest.approx(other.paragrad, rel=1e-5)
    assert upper.score(generations[1:2])[0].layers == pytest.approx(found[1].layers, rel=1e-5)
    assert not any(module._forward_pre_hooks for module in upper.model.modules())


@pytest.mark.parametrize("position", [4, 6, 9])
def test_a_token_before_what_was_kept_is_scored_on_the_plain_path(position):
    """The generation kept states from its own t* on; another scorer may ask for an earlier token, or a later one."""
    keeper = SemGradScorer(tiny_model(), tiny_tokenizer(), token_position=3, upper_replay=True)
    generations = keeper.generate([PROMPT[:9], PROMPT[:12]], max_new_tokens=6)
    earlier = keeper.adjusted(token_position=position, upper_replay=False)
    expected = earlier.score(without_boundary(generations))
    found = earlier.score(generations)
    assert [score.path for score in found] == ["cache", "cache"]
    assert found == expected
    later = keeper.adjusted(token_position=2, upper_replay=False)
    for one, other in zip(later.score(generations), later.score(without_boundary(generations)), strict=True):
        assert (one.path, other.path) == ("upper", "cache")
        assert one.layers == pytest.approx(other.layers, rel=1e-5)


def test_upper_half_replay_is_tried_out_at_the_first_generation_and_not_before(monkeypatch):
    calls = []

    def counted(*args, **settings):
        calls.append(args)
        return generate(*args, **settings)

    monkeypatch.setattr(scorer_module, "generate", counted)
    keeper = SemGradScorer(tiny_model(), tiny_tokenizer(), token_position=3, upper_replay=True)
    assert calls == []
    for count in (2, 3):  # the trial comes with the first
        keeper.generate([PROMPT], max_new_tokens=4)
        assert len(calls) == count


def test_upper_half_replay_says_why_it_is_off():
    model = tiny_model()
    assert SemGradScorer(model, tiny_tokenizer()).upper_replay_refusal == "it was not asked for"
    every = SemGradScorer(model, tiny_tokenizer(), layers="all", upper_replay=True)
    assert "no layer to leave out" in every.upper_replay_refusal
    beams = SemGradScorer(model, tiny_tokenizer(), token_position=3, upper_replay=True)
    assert beams.upper_replay_refusal == ""
    assert beams.score(beams.generate([PROMPT], max_new_tokens=4, num_beams=2))[0].path == "prefix"
    assert beams.score_ids([PROMPT], [[5, 6]])[0].path == "prefix"
