"""From answered questions to a profile: the place of SemGrad, the score behind the confidence, and the threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from semgrad_guard import __version__
from semgrad_guard.calibration.answers import Answered, Answers, answered, rescored
from semgrad_guard.calibration.counts import FEWEST, Counts, questions_needed
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.fit import Calibrated, Labelled, Method, calibrate_section, cover_section, first_half
from semgrad_guard.calibration.labels import Labeler, labeler, tolerant
from semgrad_guard.calibration.profile import NO_LABELS, Binding, PositionSource, Profile, Section
from semgrad_guard.calibration.prompts import BARE, PromptForm
from semgrad_guard.calibration.search import Candidate, fitting_part, searched, tuned_hybrid, with_hybrid
from semgrad_guard.errors import DataError
from semgrad_guard.model.chat_template import semantic_position
from semgrad_guard.model.fingerprint import fingerprint, precision, template_fingerprint
from semgrad_guard.scoring.preservation import Preservation
from semgrad_guard.scoring.scorer import SemGradScorer

Retry = Callable[[Sequence[Example]], Answers]
"""Asks questions once more, as a route does, and scores and labels the answers."""

_OWN_LABELS = "a function of the caller's"  # the label source where labels have no name


@dataclass(frozen=True)
class Calibration:
    """A profile, the counts of the questions, and the settings and methods compared on the fitting part.

    `again` counts the questions that were asked once more; None if none were.
    """

    profile: Profile
    counts: Counts
    again: Counts | None = None
    candidates: list[Candidate] = field(default_factory=list)
    compared: dict[str, float] = field(default_factory=dict)


def calibrated_on(
    scorer: SemGradScorer,
    examples: Sequence[Example],
    generation: dict[str, Any],
    *,
    labels: str | Labeler = "match",
    prompt: PromptForm | None = None,
    stop: Sequence[str] = (),
    journal: str | Path | None = None,
    retry: Callable[..., Retry] | None = None,
    **calibration: Any,
) -> Calibration:
    """Let the model answer labelled questions, and calibrate on its answers.

    Args:
        scorer: generates and scores.
        examples: questions with their right answers.
        generation: keywords of `model.generate`.
        labels: how an answer is compared with the right ones: a name that `labeler` knows, or a function. Where a
            function fails now and then, the answer has no label.
        prompt: how the questions are put, which the profile is bound to; None for the questions by themselves.
        stop: texts that an answer is cut before.
        journal: a file that remembers answers.
        retry: builds, of the scorer, the labeler, `generation` and the further keywords of `answered`, what asks
            questions again; None: no second answers are calibrated.
        calibration: further keywords of `calibrated_profile`.

    Raises:
        DataError: there are too few labels, all are alike, or labelling keeps failing.
    """
    label = labeler(labels) if isinstance(labels, str) else tolerant(labels)
    settings: dict[str, Any] = {"prompt": prompt or BARE, "stop": stop, "journal": journal}
    return calibrated_profile(
        scorer,
        answered(scorer, examples, label, generation, **settings),
        model=str(scorer.model.config.name_or_path),
        labels=labels if isinstance(labels, str) else _OWN_LABELS,
        prompt=prompt,
        retry=None if retry is None else retry(scorer, label, generation, **settings),
        **calibration,
    )


def calibrated_profile(
    scorer: SemGradScorer,
    answers: Answers,
    *,
    model: str,
    labels: str,
    prompt: PromptForm | None = None,
    method: Method = "auto",
    risk: float = 0.05,
    delta: float = 0.05,
    preservation: Preservation | None = None,
    search: bool = True,
    position: int | None = None,
    retry: Retry | None = None,
    seed: int = 0,
) -> Calibration:
    """Build a profile whose threshold promises a risk.

    Args:
        scorer: where to start from; the profile is bound to it, or to what the search finds.
        answers: what `answered` gave.
        model: name of the model, for messages.
        labels: where the labels come from, for the record.
        prompt: how the questions were put, which the profile is bound to; None for the questions by themselves.
        method: the score that confidence is made from; "auto" takes the best out of fold.
        risk: largest share of wrong answers among those that pass.
        delta: probability that the promise does not hold.
        preservation: where the meaning gathers; saved, and t* unless the search finds a better one.
        search: also try other prompt tokens, spans, sums and weights, and take what tells most on the fitting part.
        position: t* of the caller's choice; no other is tried then.
        retry: also calibrate second answers to the same questions, such as with passages. Then one half of what
            the questions are about serves first answers, and the questions of the other half whose first answers do
            not pass serve second ones: neither half has seen the other.
        seed: random seed of the splits.

    Raises:
        DataError: there are too few labels, or all are alike.
    """
    labelled = [item for item in answers.scored if item.correct is not None]
    if not labelled:
        raise DataError(_none_labelled(answers.counts))
    if position is None:
        scorer, source = _placed(scorer, preservation, wide=method in ("auto", "fused"))
    else:
        scorer, source = _placed(scorer.adjusted(token_position=position), None, wide=method in ("auto", "fused"))
    first, second = _halves(labelled, seed) if retry is not None else (labelled, [])
    _check_enough(first, answers.counts, risk, delta, seed)
    candidates: list[Candidate] = []
    if search:
        also = () if preservation is None else (preservation.position(scorer.layers),)
        scorer, first, candidates = searched(scorer, first, method=method, also=also, only=position, seed=seed)
        source = "labels" if position is None else source
    else:
        first = rescored(scorer, first)
    tau, beta = scorer.scoring.tau, scorer.scoring.beta
    if method in ("auto", "hybridgrad"):
        tau, beta = tuned_hybrid(first, seed)
        scorer = scorer.adjusted(tau=tau, beta=beta)
    fitted = _calibrated(with_hybrid(first, tau, beta), method, risk, delta, seed)
    grounded, counts_again = None, None
    if retry is not None:
        second = with_hybrid(rescored(scorer, second), tau, beta)
        held = [item.example for item in second if not fitted.section.passes(item.score)]
        answers_again = retry(held)
        counts_again = answers_again.counts
        again = with_hybrid(rescored(scorer, answers_again.scored), tau, beta)
        same: Method = "fused" if fitted.method == "fused" else method
        grounded = _calibrated(again, same, risk, delta, seed).section
    profile = Profile(
        package=__version__,
        method=fitted.method,
        bound_to=bind(scorer, model, fitted.section, grounded, prompt=prompt),
        answer=fitted.section,
        grounded=grounded,
        label_source=labels,
        position_from=source,
        preservation=preservation,
        seed=seed,
        created=date.today(),
    )
    return Calibration(profile, answers.counts, counts_again, candidates, fitted.compared)


def covering_profile(
    scorer: SemGradScorer,
    answers: Answers,
    *,
    model: str,
    coverage: float,
    prompt: PromptForm | None = None,
    method: Method = "auto",
    preservation: Preservation | None = None,
) -> Calibration:
    """Build a profile without labels: a share of these answers passes, and nothing is promised about errors.

    Raises:
        DataError: there are no answers.
        ConfigurationError: coverage is not in (0, 1], or the method needs labels.
    """
    single: Method = "semgrad" if method == "auto" else method
    scorer, source = _placed(scorer, preservation, wide=False)
    scores = [item.score for item in rescored(scorer, answers.scored)]
    section = cover_section(scores, coverage=coverage, method=single)
    profile = Profile(
        package=__version__,
        method=single,
        bound_to=bind(scorer, model, section, prompt=prompt),
        answer=section,
        label_source=NO_LABELS,
        confidence_is="ordering",
        position_from=source,
        preservation=preservation,
        seed=0,
        created=date.today(),
    )
    return Calibration(profile, answers.counts)


def bind(scorer: SemGradScorer, model: str, *sections: Section | None, prompt: PromptForm | None = None) -> Binding:
    """Bind a profile to this scorer; the profile computes only what its sections need."""
    features = {name for section in sections if section is not None for name in section.features}
    return Binding(
        model=model,
        fingerprint=fingerprint(scorer.model),
        template=template_fingerprint(scorer.tokenizer),
        scoring=scorer.scoring.changed(
            unweighted=any("unweighted" in name for name in features),
            later=any(name.startswith("later.") for name in features),
        ),
        precision=precision(scorer.model),
        prompt=prompt,
    )


def _placed(
    scorer: SemGradScorer, preservation: Preservation | None, *, wide: bool
) -> tuple[SemGradScorer, PositionSource]:
    """Move to the token of the preservation score, if there is one.

    With `wide`, as for a fused score, all layers and the tokens after t* are scored too.
    """
    position, source = scorer.token_position, _source(scorer)
    if preservation is not None:
        position, source = preservation.position(scorer.layers), "preservation"
    wanted = {"token_position": position} | ({"layers": "all", "later": True} if wide else {})
    return scorer.adjusted(**wanted), source


def _source(scorer: SemGradScorer) -> PositionSource:
    return "template" if scorer.token_position == semantic_position(scorer.tokenizer) else "caller"


def _none_labelled(counts: Counts) -> str:
    if counts.scored:
        return 'No question has a label. Give "truthful answer" or "correct" with each, or set a coverage instead.'
    return f"No answer can be used. {counts}. {' '.join(counts.advice())}"


def _check_enough(answers: Sequence[Answered], counts: Counts, risk: float, delta: float, seed: int) -> None:
    """Refuse too few labels before the long comparisons.

    Raises:
        DataError: saying how many more questions it takes.
    """
    fitting = fitting_part(answers, seed)
    things = [len({item.example.about for item in fitting if item.correct is correct}) for correct in (True, False)]
    if min(things) < FEWEST:
        right = sum(item.correct is True for item in answers)
        needed = questions_needed(right, len(answers) - right, counts.questions, risk=risk, delta=delta)
        raise DataError(f"Too few labels to fit anything on: {needed}. In all, {counts}.")


def _halves(answers: Sequence[Answered], seed: int) -> tuple[list[Answered], list[Answered]]:
    chosen = first_half(((item.example.about, item.correct is True) for item in answers), seed)
    first = [item for item in answers if item.example.about in chosen]
    return first, [item for item in answers if item.example.about not in chosen]


def _calibrated(answers: Sequence[Answered], method: Method, risk: float, delta: float, seed: int) -> Calibrated:
    labelled = [Labelled(item.example.about, item.score, item.correct) for item in answers if item.correct is not None]
    return calibrate_section(labelled, method=method, risk=risk, delta=delta, seed=seed)
