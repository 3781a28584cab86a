"""What becomes of the questions of a calibration: every one is counted, told early, and remembered."""

import json
import math

import pytest
from models import CHATML, INST, tiny_model, tiny_tokenizer

from semgrad_guard import ChatSemGrad, ConfigurationError, DataError, Profile, SemGradGuard, SemGradScorer
from semgrad_guard.calibration import answers, from_examples
from semgrad_guard.calibration.answers import answered, rescored
from semgrad_guard.calibration.counts import Counts, labels_to_promise, questions_needed
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.fit import first_half, part_of
from semgrad_guard.calibration.from_examples import calibrated_profile, covering_profile
from semgrad_guard.calibration.labels import same
from semgrad_guard.calibration.prompts import BARE, PromptForm
from semgrad_guard.demo import embedded_model
from semgrad_guard.model.chat_template import encode_answer, encode_chat
from semgrad_guard.review.items import labelled_examples
from tools.embedded.questions import questions

GREEDY = {"max_new_tokens": 8, "do_sample": False}
# A base model's template: a text with examples in it, which ends the same whether an answer is asked for or not.
FEW_SHOT = (
    "Question: What is 1 + 1?\nAnswer: 2\n\n"
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }}\n\n"
    "{% else %}Question: {{ m.content }}\nAnswer:{% endif %}{% endfor %}"
)
BLANK = "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %} {{ m.content }}<|im_end|>  {% endif %}{% endfor %}"  # noqa: E501
FRANCE = "What is the capital of France?"


@pytest.fixture(scope="module")
def scorer():
    return SemGradScorer(*embedded_model())


def known(count, stratum="known"):
    asked = {item.prompt: item for item in questions(stratum, "fit")}
    return [Example(query=q, answers=tuple(i.answers), group=i.about) for q, i in list(asked.items())[:count]]


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (CHATML, ["a", "b", "<|im_end|>"]),
        (CHATML.replace("message['content']", "message['content'] | trim"), ["a", "b", "<|im_end|>"]),
        (BLANK, [" ", "a", "b", "<|im_end|>"]),
        (FEW_SHOT, [" ", "a", "b", "<|im_end|>"]),
        (INST, ["a", "b", "<|im_end|>"]),  # shows no answers: by itself
    ],
    ids=["ChatML", "trimmed", "leading blank", "few-shot text", "answers left out"],
)
def test_a_given_answer_is_encoded_as_the_model_would_write_it(template, written):
    tokenizer = tiny_tokenizer(template)
    asked = [{"role": "user", "content": "q?"}]
    found = encode_answer(tokenizer, asked, "ab")
    assert [tokenizer.decode([token]) for token in found] == written
    assert encode_answer(tokenizer, asked, " \n") == []
    assert encode_answer(tokenizer, [], "ab") == tokenizer("ab")["input_ids"] + [tokenizer.eos_token_id]


def test_any_token_that_ends_a_turn_ends_a_given_answer():
    """As where the tokenizer's end token is not the one that the template writes after a turn."""
    tokenizer = tiny_tokenizer(CHATML.replace("<|im_end|>", "[/INST]"))
    end = tokenizer.convert_tokens_to_ids("[/INST]")
    found = encode_answer(tokenizer, [{"role": "user", "content": "q?"}], "ab", [end])
    assert found == [*tokenizer("ab")["input_ids"], end]


@pytest.mark.parametrize("prompt", ["{query}", "Q: {query}"])
def test_a_given_answer_scores_as_the_model_s_own(scorer, prompt):
    """After the template's blank "Paris" is one token, of 0.011 nats; by itself it is five letters, of 61.9."""
    form = PromptForm.of_text(prompt)
    own = answered(scorer, [Example(query=FRANCE, answers=("Paris",))], same, GREEDY, prompt=form)
    text = own.scored[0].text
    for answer in (text, f" {text}\n"):
        given = answered(scorer, [Example(query=FRANCE, answer=answer, correct=True)], same, GREEDY, prompt=form)
        assert given.scored[0].response_ids == own.scored[0].response_ids
        assert given.scored[0].score.nll == pytest.approx(own.scored[0].score.nll, rel=1e-4)
    if prompt == "{query}":
        assert own.scored[0].score.nll == pytest.approx(0.0107, abs=1e-3)


def test_given_answers_that_are_hardly_the_model_s_own_are_counted_and_left_out(scorer):
    lines = labelled_examples([])  # the form of the review queue's exports
    lines += [
        {"query": FRANCE, "answer": "Paris", "correct": True},
        {"query": "What is the capital of Spain?", "truthful answer": ["Madrid"], "answer": "Oslo", "correct": False},
    ]
    heard = []
    found = answered(scorer, [Example.model_validate(line) for line in lines], same, GREEDY, tell=heard.append)
    assert [item.text for item in found.scored] == ["Paris"]
    assert found.counts == Counts(questions=2, right=1, not_its_own=1)
    assert heard[0] == "2 questions: 1 right, 0 wrong, 1 not what the model would say itself."
    assert "that the guard holds back" in heard[1]


def test_every_question_is_counted(scorer, monkeypatch):
    limit = scorer.model.config.max_position_embeddings
    examples = [
        *known(3),
        Example(query="word " * limit, answers=("x",)),
        Example(query="What is the capital of Peru?"),
        Example(query=FRANCE, answer=" "),
    ]
    found = answered(scorer, examples, same, GREEDY)
    assert found.counts.questions == 6
    assert (found.counts.too_long, found.counts.unlabelled, found.counts.empty) == (1, 1, 1)
    assert found.counts.scored == len(found.scored) == 4
    cut = answered(scorer, known(3), same, {"max_new_tokens": 1, "do_sample": False})
    assert cut.counts == Counts(questions=3, cut_off=3)

    whole = SemGradScorer.score_with_states

    def fails(self, rows, *layers, **settings):
        if any(row.prompt_ids == tuple(encode_chat(scorer.tokenizer, examples[0].turns(BARE))) for row in rows):
            raise MemoryError
        return whole(self, rows, *layers, **settings)

    def without_numbers(self, rows, *layers, **settings):
        scores, states = whole(self, rows, *layers, **settings)
        return [_nan(one) for one in scores], states

    monkeypatch.setattr(SemGradScorer, "score_with_states", fails)
    short = answered(scorer, known(3), same, GREEDY)
    assert (short.counts.not_scored, short.counts.scored) == (1, 2)  # one does not take the others with it
    monkeypatch.setattr(SemGradScorer, "score_with_states", without_numbers)
    assert answered(scorer, known(3), same, GREEDY).counts == Counts(questions=3, not_scored=3)


def _nan(score):
    return score.model_copy(update={"semgrad": math.nan})


def test_what_goes_wrong_is_told_after_the_first_batch(scorer):
    heard, labels = [], []

    def label(question, answer, right):
        labels.append(question)
        return True

    answered(scorer, known(40), label, {"max_new_tokens": 1, "do_sample": False}, tell=heard.append)
    assert labels == []  # what is cut off is not labelled
    assert heard[0] == "So far: 16 questions: 0 right, 0 wrong, 16 cut off at the token limit."
    assert heard[1].startswith("16 of 16 answers were cut off at 1 tokens and cannot be used: give --max-new-tokens 2")
    assert "--prompt" in heard[1]
    assert heard[2] == "40 questions: 0 right, 0 wrong, 40 cut off at the token limit."
    assert len(heard) == 4
    heard.clear()
    answered(scorer, known(20), same, GREEDY, tell=heard.append)
    assert [line.split(":")[0] for line in heard] == ["So far", "20 questions"]  # nothing to advise


def test_counts_say_what_to_do():
    counts = Counts(questions=24, right=2, wrong=1, cut_off=19, empty=2)
    assert str(counts) == "24 questions: 2 right, 1 wrong, 19 cut off at the token limit, 2 empty"
    (advice,) = counts.advice(64)
    assert advice.startswith("19 of 24 answers were cut off at 64 tokens")
    assert "--max-new-tokens 128" in advice
    assert "no label" in Counts(questions=10, unlabelled=10).advice()[0]
    assert Counts.of([True, False, False, None, "empty"]) == Counts(
        questions=5, right=1, wrong=2, unlabelled=1, empty=1
    )


def asked_for(monkeypatch):
    prompts, generate = [], SemGradScorer.generate
    monkeypatch.setattr(SemGradScorer, "generate", lambda *a, **k: (prompts.extend(a[1]), generate(*a, **k))[1])
    return prompts


def test_a_journal_is_used_again_whatever_answers_do_not_depend_on(scorer, tmp_path, monkeypatch):
    examples, journal, heard = known(20), tmp_path / "kept.answers", []
    prompts = asked_for(monkeypatch)
    first = answered(scorer, examples, same, GREEDY, journal=journal)
    assert len(prompts) == 20
    # Other labels, another t*: the same answers.
    again = answered(
        scorer.adjusted(token_position=1), examples, lambda *_: False, GREEDY, journal=journal, tell=heard.append
    )
    assert len(prompts) == 20
    assert [item.text for item in again.scored] == [item.text for item in first.scored]
    assert again.counts == Counts(questions=20, wrong=20)
    assert heard[0] == f"{journal}: 20 answers from a run before are used."
    # Longer answers, another prompt, an answer that is given: made anew, and the old ones stay.
    heard.clear()
    answered(scorer, examples, same, {**GREEDY, "max_new_tokens": 4}, journal=journal, tell=heard.append)
    assert (
        heard[0]
        == f"{journal}: 0 answers from a run before are used, 20 to other prompts or with other settings are not."
    )
    answered(scorer, examples, same, GREEDY, prompt=PromptForm.of_text("Q: {query}"), journal=journal)
    given = examples[0].model_copy(update={"answer": "Oslo", "correct": False})
    answered(scorer, [given], same, GREEDY, journal=journal)
    assert len(prompts) == 60
    answered(scorer, examples, same, GREEDY, journal=journal)
    assert len(prompts) == 60
    other = SemGradScorer(tiny_model(), tiny_tokenizer())
    answered(other, examples[:2], same, GREEDY, journal=journal)  # another model: no dead end either
    assert len(prompts) == 62


def test_a_damaged_journal_is_refused_and_a_cut_line_is_dropped(scorer, tmp_path, monkeypatch):
    journal, prompts = tmp_path / "kept.answers", asked_for(monkeypatch)
    answered(scorer, known(3), same, GREEDY, journal=journal)
    text = journal.read_text(encoding="utf-8")
    journal.write_text(text[:-20], encoding="utf-8")
    assert answered(scorer, known(3), same, GREEDY, journal=journal).counts.scored == 3
    assert len(prompts) == 4
    for broken in ("no journal\n", '{"x": 1}\n', text.replace('"text"', '"txt"')):
        journal.write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match="does not hold results of this version"):
            answered(scorer, known(3), same, GREEDY, journal=journal)
    with pytest.raises(DataError, match="to remember answers"):
        answered(scorer, known(3), same, GREEDY, journal=tmp_path)


def test_answers_of_several_lengths_are_scored_again_in_their_order(scorer):
    found = answered(scorer, known(12) + known(12, "several"), same, GREEDY).scored
    again = rescored(scorer, found[::-1])[::-1]
    assert [item.example for item in again] == [item.example for item in found]
    assert [i.score.semgrad for i in again] == pytest.approx([i.score.semgrad for i in found], rel=1e-3)


def test_right_and_wrong_answers_are_in_every_part_in_proportion():
    """Fourteen right ones among two hundred, two about each thing: by chance alone, parts without any are common."""
    labels = [(str(index // 2), index // 2 % 15 == 0) for index in range(200)]
    right = {about for about, correct in labels if correct}
    for seed in range(50):
        part = part_of(labels, seed)
        sizes = [sum(index == place for index in part.values()) for place in range(3)]
        assert sizes == [50, 15, 35]
        counts = [sum(part[about] == place for about in right) for place in range(3)]
        assert all(abs(count - share * len(right)) <= 1 for count, share in zip(counts, (0.5, 0.15, 0.35), strict=True))
        assert abs(len(right & first_half(labels, seed)) - len(right) / 2) <= 1
    assert part_of(labels, 1) == part_of(labels[::-1], 1) != part_of(labels, 2)
    mixed = [("a", True), ("a", False), *((str(index), True) for index in range(9))]
    assert set(part_of(mixed, 0)) == {"a", *map(str, range(9))}  # a group stays together


def test_too_few_labels_say_how_many_more():
    told = questions_needed(3, 40, 43, risk=0.05, delta=0.05)
    # Ten right ones to fit on are 143 questions; 59 of a third of all that are right are 2,417.
    assert told.startswith("3 right and 40 wrong answers to 43 questions.")
    assert "about 110 more to have 5 of each kind to fit on, about 2400 more" in told
    # Half of the questions gave no answer: twice as many more.
    assert "about 210 more to have 5" in questions_needed(3, 40, 86, risk=0.05, delta=0.05)
    assert "at least 410 more to have 5" in questions_needed(0, 43, 43, risk=0.05, delta=0.05)
    assert "to fit on" not in questions_needed(30, 30, 60, risk=0.05, delta=0.05)


def test_a_promise_that_is_missed_says_how_many_more_labels_it_takes():
    no_errors = labels_to_promise([(12, 0), (30, 9)], 60, 170, risk=0.05, delta=0.05)
    assert no_errors == "with answers like these, about 670 more labels would"  # 59 in a fifth of a third
    assert "6 of the 12 most confident answers are wrong" in labels_to_promise([(12, 6)], 60, 170, risk=0.1, delta=0.05)
    assert "a matter of chance" in labels_to_promise([(12, 0)], 60, 170, risk=0.4, delta=0.3)


def test_a_calibration_with_too_few_labels_counts_what_there_was(scorer):
    examples = known(12)
    few = answered(scorer, examples, lambda question, *_: question == examples[0].query, GREEDY)
    with pytest.raises(DataError, match=r"1 right and 11 wrong answers to 12 questions\. At this rate it takes about"):
        calibrated_profile(scorer, few, model="m", labels="match")
    nothing = answered(scorer, examples, same, {"max_new_tokens": 1, "do_sample": False})
    with pytest.raises(DataError, match=r"No answer can be used\. 12 questions: .* 12 cut off"):
        calibrated_profile(scorer, nothing, model="m", labels="match")
    with pytest.raises(DataError, match="No question has a label"):
        calibrated_profile(scorer, answered(scorer, [Example(query=FRANCE)], same, GREEDY), model="m", labels="match")


def test_a_template_without_a_generation_prompt_can_be_calibrated(monkeypatch):
    """The rule is that of the guard: the last token of the user's text."""
    monkeypatch.setattr(answers, "unlikely", lambda score: None)  # a random model would say none of this
    source = tiny_model(), tiny_tokenizer(FEW_SHOT)
    scorer, guard = SemGradScorer(*source), SemGradGuard(source, score_threshold=1e9)
    assert scorer.token_position == guard.llm.scorer.token_position == len("\nAnswer:") + 1
    examples = [Example(query=f"Is it {index}?", answer="x", correct=index % 2 == 0) for index in range(6)]
    found = answered(scorer, examples, same, GREEDY)
    assert found.counts == Counts(questions=6, right=3, wrong=3)
    assert found.scored[0].response_ids == tuple(source[1](" x")["input_ids"] + [source[1].eos_token_id])
    for own, source in ((scorer, "template"), (scorer.adjusted(token_position=3), "caller")):
        profile = covering_profile(own, found, model="m", coverage=0.5).profile
        assert (profile.position_from, profile.bound_to.scoring.token_position) == (source, own.token_position)


def test_a_guard_keeps_a_journal_and_what_its_chain_asks(tmp_path, monkeypatch):
    guard = SemGradGuard(embedded_model(), score_threshold=1e9)
    lines = [e.model_dump(by_alias=True) for e in [*known(60), *known(60, "withheld")]]
    prompts = asked_for(monkeypatch)
    settings = {"risk": 0.3, "delta": 0.2, "search": False, "method": "semgrad", "prompt": "{query} ", "seed": 1}
    journal = tmp_path / "answers"
    found = guard.calibrated(lines, journal=journal, **settings)
    asked = len(prompts)
    assert found.profile.bound_to.prompt == PromptForm.of_text("{query} ")
    assert len(journal.read_text(encoding="utf-8").splitlines()) == asked + 1
    for llm in (guard.llm, guard.llm.scorer):
        assert Profile.fit(llm, lines, journal=journal, **settings) == found.profile
    guard.calibrated(lines, journal=journal, **{**settings, "risk": 0.5})
    assert len(prompts) == asked
    own = SemGradGuard(guard.llm, score_threshold=1e9, prompt="{query} ")
    assert own.calibrated(lines, journal=journal, **{**settings, "prompt": None}).prompt == own.prompt
    assert len(prompts) == asked
    with pytest.raises(Exception, match="a prompt of its own"):
        own.calibrated(lines, **settings)
    assert json.loads(journal.read_text(encoding="utf-8").splitlines()[0])["setting"]["generation"] == {}


def test_a_profile_is_fitted_on_a_model_that_scores():
    with pytest.raises(ConfigurationError, match=r"Profile\.fit\('gpt2'\): expected a ChatSemGrad or a SemGradScorer"):
        Profile.fit("gpt2", [])


def test_a_text_that_answers_are_cut_before_is_not_taken_for_its_letters(monkeypatch):
    calls = []
    monkeypatch.setattr(
        from_examples, "calibrated_on", lambda *args, **settings: calls.append(settings) or Calibrated()
    )
    llm = ChatSemGrad.from_model(tiny_model(), tiny_tokenizer(), stop="END")
    Profile.fit(llm, [{"query": "Where?", "truthful answer": ["there"]}])
    Profile.fit(llm.scorer, [{"query": "Where?"}], generation={"stop_strings": "END"})
    assert [settings["stop"] for settings in calls] == [["END"], ["END"]]


class Calibrated:
    """What a calibration gives, in the place of one."""

    profile = None
