"""How sure answers are: the record beside an answer of the model, and answers from elsewhere, scored."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from langchain_core.messages import HumanMessage, convert_to_messages

from semgrad_guard import __version__
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.errors import (
    BudgetError,
    ConfigurationError,
    EmptyResponseError,
    PromptTooLongError,
    SemGradError,
    TokenPositionError,
    described,
)
from semgrad_guard.langchain.guard import SemGradGuard
from semgrad_guard.langchain.messages import EMPTY_QUESTION, asks_nothing, to_template
from semgrad_guard.model.chat_template import encode_answer, encode_chat
from semgrad_guard.model.generate import check_sequences, end_ids
from semgrad_guard.records import Decision, Failure, Generation, Score, Step, TokenUncertainty, Verdict
from semgrad_guard.scoring.registry import known_scores
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.serving.work import Judgement, Limits, ScoreAnswer, ScoreJob, Usage

logger = logging.getLogger(__name__)

_MOST_ATTRIBUTED = 256  # response tokens; each costs a backward
_FAILURE = re.compile(r"((?:no answer|scoring failed): \w+): .*", re.DOTALL)


def judgement(decision: Decision, *, with_calls: bool) -> Judgement:
    """Give the record beside an answer of a guard; of tool calls that do not go out, it tells nothing.

    Reasons name the kinds of failures only: their own texts may quote what was asked, or a draft.
    """
    reason, verdict = _kind_only(decision.reason), decision.verdict
    failed = [step.reason.partition(":")[0] for step in decision.steps if step.name == "review" and not step.settled]
    record = {
        **dict(decision),
        "reason": "; ".join([reason, *(f"no review: {kind}" for kind in failed)]),
        "verdict": verdict.model_copy(update={"reason": _kind_only(verdict.reason)}),
        "steps": tuple(_without_texts(step) for step in decision.steps),
        "tool_calls": decision.tool_calls if with_calls else {},
    }
    return Judgement(**record, score=_score(verdict.scores, verdict.method), version=__version__)


def _kind_only(reason: str) -> str:
    return _FAILURE.sub(r"\1", reason)


def _without_texts(step: Step) -> Step:
    """Leave out why a route did not settle: what it failed with may come from elsewhere."""
    reason = _kind_only(step.reason) if step.settled or step.name == "answer" else step.reason.partition(":")[0]
    return step.model_copy(update={"reason": reason})


def scored(guard: SemGradGuard, jobs: Sequence[ScoreJob], limits: Limits) -> list[ScoreAnswer | SemGradError]:
    """Score answers from elsewhere in one pass, and judge each; what cannot be scored is not sure, and says why.

    Gives the error where a job cannot be scored as it was given.
    """
    generations = [_generation(guard, job, limits) for job in jobs]
    sound = [generation for generation in generations if isinstance(generation, Generation)]
    scores = iter(_scores(guard.llm.scorer, sound))
    return [
        generation if isinstance(generation, SemGradError) else _answer(guard, job, generation, *next(scores))
        for job, generation in zip(jobs, generations, strict=True)
    ]


def _generation(guard: SemGradGuard, job: ScoreJob, limits: Limits) -> Generation | SemGradError:
    tokenizer = guard.llm.tokenizer
    try:
        if not guard.llm.scored:
            raise ConfigurationError("The service was started without scoring.")
        if job.threshold is not None and guard.profile is None:
            raise ConfigurationError("A threshold is on confidence, and this model is served without a profile.")
        turns = [] if job.messages is None else to_template(guard.with_prompt(convert_to_messages(list(job.messages))))
        if job.prompt_ids is not None:
            prompt = list(job.prompt_ids)
        elif job.prompt is not None:
            prompt = tokenizer(job.prompt, add_special_tokens=False)["input_ids"]
        else:
            prompt = encode_chat(tokenizer, turns)
        response = list(job.response_ids or ())
        if job.response is not None:
            response = encode_answer(tokenizer, turns, job.response, end_ids(guard.llm.model.generation_config))
        if not response:
            raise EmptyResponseError("The response is empty; expected some text or ids.")
        most = min(limits.response_tokens, _MOST_ATTRIBUTED) if job.tokens else limits.response_tokens
        for what, ids, allowed in (("prompt", prompt, limits.prompt_tokens), ("response", response, most)):
            if len(ids) > allowed:
                raise PromptTooLongError(f"The {what} has {len(ids)} tokens; at most {allowed} are allowed here.")
        check_sequences(guard.llm.model, [prompt], [response])
        if len(prompt) < (least := guard.llm.scorer.token_position or 1):
            raise TokenPositionError(
                f"The prompt has {len(prompt)} tokens, and the generation prompt alone has {least}; give all of it."
            )
    except SemGradError as error:
        return error
    return Generation(tuple(prompt), tuple(response), job.response or "", "stop")


def _scores(scorer: SemGradScorer, generations: Sequence[Generation]) -> list[tuple[Score | None, Exception | None]]:
    try:
        return [(score, None) for score in scorer.score(generations)]
    except Exception as error:  # fail closed; one of them must not take the others with it
        if len(generations) > 1:
            return [result for generation in generations for result in _scores(scorer, [generation])]
        logger.warning("Scoring failed: %s", described(error))
        return [(None, error)]


def _answer(
    guard: SemGradGuard, job: ScoreJob, generation: Generation, score: Score | None, error: Exception | None
) -> ScoreAnswer | SemGradError:
    if isinstance(error, SemGradError) and not isinstance(error, BudgetError):
        return error
    threshold = guard.threshold if job.threshold is None else job.threshold
    standard = Standard(guard.profile, threshold, guard.score_threshold, guard.method)
    failure = None
    if error is not None:
        failure = Failure(kind="scoring_failed", text=f"scoring failed: {type(error).__name__}")
    elif _asks_nothing(job):
        failure = EMPTY_QUESTION
    verdict = standard.judge(score, failure, "grounded" if job.grounded else "answer")
    return ScoreAnswer(
        judgement=_judgement(verdict),
        tokens=_token_uncertainty(guard.llm.scorer, generation) if job.tokens and score is not None else None,
        usage=Usage(prompt=len(generation.prompt_ids), completion=len(generation.response_ids)),
    )


def _asks_nothing(job: ScoreJob) -> bool:
    messages = convert_to_messages(list(job.messages or ()))
    return any(isinstance(message, HumanMessage) for message in messages) and asks_nothing(messages)


def _judgement(verdict: Verdict) -> Judgement:
    """Give the record of an answer from elsewhere, which is the client's to let out or not."""
    return Judgement(
        decision="pass" if verdict.passed else "abstain",
        answered=verdict.passed,
        cause=verdict.cause,
        reason=verdict.reason,
        verdict=verdict,
        steps=(Step(name="answer", settled=verdict.passed, confidence=verdict.confidence, reason=verdict.reason),),
        score=_score(verdict.scores, verdict.method),
        version=__version__,
    )


def _token_uncertainty(scorer: SemGradScorer, generation: Generation) -> tuple[TokenUncertainty, ...] | None:
    try:
        return tuple(scorer.attribute(generation))
    except Exception as error:  # the answer is judged already; where its uncertainty sits is an extra
        logger.warning("No attribution: %s", described(error))
        return None


def _score(scores: Score | None, method: str) -> float | None:
    """Give the raw score that a method names, or SemGrad; None where there is none, or it counts as not scored."""
    if scores is None or scores.failure():
        return None
    kinds = {kind.name: kind for kind in known_scores()}
    return kinds.get(method, kinds["semgrad"]).uncertainty(scores)
