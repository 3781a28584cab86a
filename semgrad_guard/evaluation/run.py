"""Answer, score and label questions, one line of a file each; an interrupted run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from tqdm.auto import tqdm

from semgrad_guard.calibration.answers import Journal
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.labels import Labeler, tolerant
from semgrad_guard.calibration.prompts import BARE, PromptForm
from semgrad_guard.errors import DataError
from semgrad_guard.evaluation.classifiers import Entailment
from semgrad_guard.evaluation.metrics import peak_bytes
from semgrad_guard.evaluation.polygraph import Polygraph
from semgrad_guard.evaluation.sampling import Attempts, p_true
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.records import Generation, Score, TokenUncertainty
from semgrad_guard.scoring.scorer import SemGradScorer

_PAPER = "Please directly answer the following question with one or few words:\n{query}"
PROMPTS = {"plain": BARE, "paper": PromptForm.of_text(_PAPER)}
_MEASURED = 5  # questions whose memory is measured


class Result(BaseModel):
    """A question as it was answered; `score` is None where the answer could not be scored.

    `response_ids` are the answer's tokens; `correct` is None without a label, and where there is no answer; `samples`
    are further answers drawn at temperature 1; `p_true` is the model's own probability that its answer is true, None
    where it was not asked or where "true" or "false" is no single token; `meanings` number what the answer and, after
    it, the samples mean by an entailment classifier, empty without one; `polygraph` holds lm-polygraph's values, by
    method, None where one failed. `seconds` says what each piece of work took, `failures` why others failed.
    """

    model_config = ConfigDict(frozen=True)

    query: str
    about: str
    stratum: str
    answer: str = ""
    response_ids: tuple[int, ...] = ()
    correct: bool | None = None
    score: Score | None = None
    samples: tuple[str, ...] = ()
    p_true: float | None = None
    meanings: tuple[int, ...] = ()
    polygraph: dict[str, float | None] = Field(default_factory=dict)
    seconds: dict[str, float]
    failures: dict[str, str]


Answerer = Callable[[Example], Result]
"""Answers, scores and labels one question."""
Elsewhere = Callable[[Sequence[Example], dict[str, Any]], Iterable[Result]]
"""From questions and the setting to their results, in any order: other processes that answer in place of this one."""

_RESULTS = TypeAdapter(Result)


@dataclass(frozen=True)
class Work:
    """The work on every question, besides generating an answer and scoring it.

    `samples` further answers are drawn for the baselines that need them. `p_true` asks the model whether its answer is
    true. `polygraph` computes lm-polygraph's methods from the samples. `entailment` tells which of the answer and the
    samples mean the same.
    """

    samples: int = 0
    p_true: bool = False
    polygraph: Polygraph | None = None
    entailment: Entailment | None = None

    @property
    def setting(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        polygraph = {} if self.polygraph is None else self.polygraph.setting
        # Results of earlier versions hold P(True) of one spelling. The name keeps a run from mixing both.
        p_true = "all spellings" if self.p_true else False
        # Runs without a classifier go on from results of versions that knew none.
        entailment = {} if self.entailment is None else {"entailment": self.entailment.setting}
        return {"samples": self.samples, "p_true": p_true, "polygraph": polygraph, **entailment}


def evaluate(
    scorer: SemGradScorer,
    examples: Sequence[Example],
    label: Labeler,
    *,
    out: Path,
    prompt: str | PromptForm = "plain",
    max_new_tokens: int = 64,
    work: Work | None = None,
    seed: int = 0,
    setting: dict[str, Any] | None = None,
    elsewhere: Elsewhere | None = None,
) -> list[Result]:
    """Answer every question that has no line in `out` yet, and give all results.

    A failure on one question ends nothing.

    Args:
        scorer: generates and scores.
        examples: questions.
        label: says whether an answer is right.
        out: JSON lines; the first holds the setting, each other a result.
        prompt: "plain", the question alone, "paper", as the paper asks, or another form.
        max_new_tokens: longest answer.
        work: further work on each; None for nothing.
        seed: random seed of sampling; each question has its own.
        setting: further settings that must be the same for a run to go on.
        elsewhere: where the questions are answered; None: here.

    Raises:
        DataError: `out` holds results of another setting, or is damaged; a question has messages of its own.
    """
    if chat := next((example for example in examples if example.messages is not None), None):
        raise DataError(f"The question {chat.query!r} has messages of its own; an evaluation asks all with one prompt.")
    work = work or Work()
    run_setting = {"prompt": prompt_name(prompt), "max_new_tokens": max_new_tokens, "seed": seed}
    wanted = {**run_setting, **work.setting, **(setting or {})}
    journal = Journal(out, wanted, _RESULTS, lambda result: result.query)
    missing = [example for example in examples if example.query not in journal.done]
    finished = len(examples) - len(missing)
    if elsewhere is None:
        answer = answerer(scorer, label, prompt=prompt, max_new_tokens=max_new_tokens, work=work, seed=seed)
        results: Iterable[Result] = map(answer, missing)
    else:
        results = elsewhere(missing, wanted)
    for result in tqdm(results, desc="evaluating", initial=finished, total=len(examples)):
        journal.add(result)
    return [journal.done[example.query] for example in examples]


def answerer(
    scorer: SemGradScorer, label: Labeler, *, prompt: str | PromptForm, max_new_tokens: int, work: Work, seed: int
) -> Answerer:
    """Build a function that answers, scores and labels one question; the arguments are those of `evaluate`."""
    return lambda example: _answered(scorer, example, label, prompt, max_new_tokens, work, seed)


def read_results(path: Path) -> list[Result]:
    """Read the results of a finished run."""
    return [Result.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def relabelled(results: Iterable[Result], examples: Iterable[Example], label: Labeler) -> list[Result]:
    """Give results with the labels of another labeler; what has no label has none again, and failures are tolerated.

    Raises:
        DataError: the labeler fails often, or a question is missing.
    """
    answers, asks, labelled = {example.query: example.answers for example in examples}, tolerant(label), []
    for result in results:
        if result.query not in answers:
            raise DataError(f"The question {result.query!r} has an answer, and is none of the examples.")
        right = answers[result.query]
        correct = None if result.correct is None or right is None else asks(result.query, result.answer, right)
        labelled.append(result.model_copy(update={"correct": correct}))
    return labelled


def token_uncertainties(
    scorer: SemGradScorer, results: Sequence[Result], prompt: str | PromptForm
) -> dict[str, list[TokenUncertainty]]:
    """Give each token's share in the uncertainty, for each result where that works."""
    attempt, by_question = Attempts(), {}
    for result in results:
        generation = Generation(tuple(prompt_ids(scorer, result.query, prompt)), result.response_ids, "", "stop")
        tokens = attempt(result.query, partial(scorer.attribute, generation))
        if tokens is not None:
            by_question[result.query] = tokens
    return by_question


def peak_memory(
    scorer: SemGradScorer, queries: Sequence[str], prompt: str | PromptForm, max_new_tokens: int
) -> dict[str, Any]:
    """Measure the most bytes that tensors took at one moment beside the model: generating, and with scoring.

    The first few questions are answered once more, one at a time, since measuring takes longer than answering. A figure
    that could not be measured is None, and `reason` says why.
    """
    chats = [prompt_ids(scorer, query, prompt) for query in queries[:_MEASURED]]
    generate = partial(scorer.generate, max_new_tokens=max_new_tokens, do_sample=False)

    def peak(work: Callable[[list[int]], Any]) -> int:
        return max(peak_bytes(scorer.model.device, partial(work, ids)) for ids in chats)

    attempt = Attempts()
    generating = attempt("generating", lambda: peak(lambda ids: generate([ids])))
    scoring = attempt("scoring", lambda: peak(lambda ids: scorer.score(generate([ids]))))
    return {
        "questions": len(chats),
        "generating_bytes": generating,
        "generating_and_scoring_bytes": scoring,
        "reason": "; ".join(attempt.failures.values()),
    }


def prompt_form(prompt: str | PromptForm) -> PromptForm:
    """Give the form of a prompt that has a name."""
    return PROMPTS[prompt] if isinstance(prompt, str) else prompt


def prompt_name(prompt: str | PromptForm) -> str:
    """Give the name of a prompt, or the fingerprint of a form without one."""
    form = prompt_form(prompt)
    return next((name for name, known in PROMPTS.items() if known == form), form.fingerprint)


def prompt_ids(scorer: SemGradScorer, query: str, prompt: str | PromptForm) -> list[int]:
    """Encode a question as it is asked."""
    return encode_chat(scorer.tokenizer, prompt_form(prompt).messages(query))


def _answered(
    scorer: SemGradScorer,
    example: Example,
    label: Labeler,
    prompt: str | PromptForm,
    most: int,
    work: Work,
    seed: int,
) -> Result:
    ids, attempt = prompt_ids(scorer, example.query, prompt), Attempts()
    known: dict[str, Any] = {
        "query": example.query,
        "about": example.about,
        "stratum": example.stratum,
        "seconds": attempt.seconds,
        "failures": attempt.failures,
    }
    generated = attempt("generating", lambda: scorer.generate([ids], max_new_tokens=most, do_sample=False))
    if generated is None:
        return Result(**known)
    (generation,) = generated
    text = generation.text.strip()
    score = attempt("scoring", lambda: _usable_score(scorer, generation))
    drawn = attempt("sampling", lambda: _samples(scorer, ids, work.samples, most, seed)) if work.samples else None
    values: dict[str, float | None] = {}
    if work.polygraph is not None and drawn is not None:
        values = work.polygraph(attempt, scorer, example.query, generation, drawn)
    meanings = None
    if (entailment := work.entailment) is not None and drawn is not None:
        texts = [text, *(row.text.strip() for row in drawn)]
        meanings = attempt("entailment", lambda: entailment.meanings(example.query, texts))
    return Result(
        **known,
        answer=text,
        response_ids=generation.response_ids,
        correct=label(example.query, text, example.answers) if example.answers is not None else None,
        score=score,
        samples=tuple(row.text.strip() for row in drawn or ()),
        p_true=attempt("p-true", lambda: p_true(scorer, example.query, text)) if work.p_true else None,
        meanings=meanings or (),
        polygraph=values,
    )


def _usable_score(scorer: SemGradScorer, generation: Generation) -> Score:
    (score,) = scorer.score([generation])
    if failure := score.failure():
        raise ArithmeticError(failure.text)
    return score


def _samples(scorer: SemGradScorer, ids: list[int], count: int, most: int, seed: int) -> list[Generation]:
    torch.manual_seed(seed)
    return scorer.generate([ids] * count, max_new_tokens=most, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
