"""From a score to a verdict: is this answer sure enough? An answer that cannot be judged is not."""

from __future__ import annotations

import math
from typing import get_args

from semgrad_guard.calibration.profile import SEVERAL, Profile, Section
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.records import AnswerKind, Cause, Failure, Score, Verdict, as_number, checked_confidence
from semgrad_guard.scoring.registry import known_score, names_of

# The most that an answer's improbability may exceed the entropy met on its way, in nats per square root of a token: it
# grows as a sum of chances does. For whatever the model finds likeliest, token by token, it is below 0.
_SURPRISE = 2.0


class Standard:
    """The standard for answers: a threshold on confidence (with a profile), or one on a raw score (without)."""

    def __init__(
        self,
        profile: Profile | None,
        threshold: float | None,
        score_threshold: float | None,
        method: str | None,
    ) -> None:
        """Check that exactly one threshold is in force.

        Args:
            profile: gives confidence, and the default of `threshold`, for answers from passages another.
            threshold: least confidence that passes, in [0, 1].
            score_threshold: largest raw score of `method` that passes, >= 0; the least one where the direction of the
                score is certainty. Raw scores differ from model to model.
            method: name of the score that `score_threshold` is on, "semgrad" by default; with a profile, it is the
                profile's.

        Raises:
            ConfigurationError: no threshold, or both, or one out of range.
        """
        if profile is None and score_threshold is None:
            raise ConfigurationError(
                "Without a profile there is no confidence"
                + ("" if threshold is None else f" for threshold={threshold}")
                + ". Pass profile=... (threshold is on confidence), "
                "or score_threshold=... (on the raw score, pass when <=). `semgrad-guard calibrate` makes a profile; "
                "with --coverage it needs no labels."
            )
        if score_threshold is not None and (profile is not None or threshold is not None):
            raise ConfigurationError(
                "score_threshold is on the raw score and excludes profile and threshold, which are on confidence. "
                "Pass one or the other."
            )
        threshold, score_threshold = checked_confidence("threshold", threshold), checked_raw(score_threshold)
        if profile is not None and method not in (None, profile.method):
            raise ConfigurationError(f"method={method!r}, but the profile's is {profile.method!r}. Leave method out.")
        self.settings = (profile, threshold, score_threshold, method)
        self.profile = profile
        self.method = profile.method if profile is not None else method or "semgrad"
        known = names_of("alone")
        if profile is None and self.method not in known:
            raise ConfigurationError(f"method={self.method!r}: expected one of {', '.join(known)}.")
        self.score_threshold = score_threshold
        self._threshold = threshold
        kinds: tuple[AnswerKind, ...] = get_args(AnswerKind)
        self._sections = {kind: None if profile is None else profile.section(kind) for kind in kinds}
        self._calibrated = profile is not None and profile.calibrated

    def threshold(self, kind: AnswerKind = "answer") -> float | None:
        """Give the threshold in force, on confidence or, without a profile, on the raw score.

        None where neither the caller nor the profile sets one for this kind of answer.
        """
        if self.profile is None:
            return self.score_threshold
        if self._threshold is not None:
            return self._threshold
        section = self._sections[kind]
        return None if section is None else section.threshold

    def raw(self, score: Score) -> float | None:
        """Give the score that the method names; None where it was not computed, or it is the fused one."""
        return None if self.method in SEVERAL else known_score(self.method).value(score)

    def confidence(self, score: Score | None, kind: AnswerKind = "answer") -> float | None:
        """Give the confidence of a score, in [0, 1]; None where the profile has no section for it.

        It is 0 without a score, and where the score, or a number made from it, is not finite.
        """
        section = self._sections[kind]
        if section is None:
            return None
        return 0.0 if score is None else section.confidence(score)

    def judge(self, score: Score | None, failure: Failure | None, kind: AnswerKind = "answer") -> Verdict:
        """Judge an answer; without a finite score, or with a failure, it never passes.

        Nor does one that the model would hardly give itself. Gradients show whether the model knows an answer, not
        whether this is it: one drawn at a high temperature, or written by someone else, could look sure.

        Args:
            score: the answer's score, None where scoring failed.
            failure: why the answer cannot be trusted whatever its score; None if nothing went wrong.
            kind: what the score is of; the profile has a section for each kind.
        """
        threshold, confidence = self.threshold(kind), self.confidence(score, kind)
        cause: Cause | None = None
        if score is not None:
            failure = failure or score.failure() or unlikely(score)
        if failure:
            cause, reason = failure.kind, failure.text
            confidence = None if confidence is None or cause == "scoring_off" else 0.0
        elif score is None:
            cause, reason = "scoring_failed", "the answer has no score"
        elif self.profile is None and threshold is not None:
            kind_of_score, value = known_score(self.method), self.raw(score)
            value = math.nan if value is None else value  # not computed
            cause = None if kind_of_score.reaches(value, threshold) else "low_confidence"
            comparison = "is not within" if cause else "is within"
            reason = f"{self.method} {value:.4g} {comparison} the threshold {threshold:.4g}"
        elif confidence is None:
            cause = "no_confidence"
            reason = f"the profile has no section for answers of the kind {kind!r}, so there is no confidence"
        elif not confidence > 0:
            cause = "no_confidence"
            reason = "the confidence cannot be computed: a number on the way to it is not finite"
        elif threshold is None:
            cause = "no_threshold"
            reason = f"{self._shown(confidence)}, but calibration found no threshold that keeps what was to be promised"
        else:
            cause = None if confidence >= threshold else "low_confidence"
            comparison = "is below" if cause else "reaches"
            reason = f"{self._shown(confidence)} {comparison} the threshold {threshold:.3f}"
            if cause is None and (void := self._void(kind)):
                reason += f"; nothing is promised: {void}"
        return Verdict(
            passed=cause is None,
            cause=cause,
            confidence=confidence,
            calibrated=self._calibrated,
            scores=score,
            threshold=threshold,
            method=self.method,
            reason=reason,
            guarantee=self._promise(kind) if cause is None else None,
            policy=self._policy(kind, threshold),
            familiarity=self._familiarity(score, kind),
        )

    def _familiarity(self, score: Score | None, kind: AnswerKind) -> float | None:
        section = self._sections[kind]
        if section is None or score is None or not section.distance_sample:
            return None
        return section.familiarity(score)

    def _policy(self, kind: AnswerKind, threshold: float | None) -> str:
        """Say in words what an answer must reach, and what is promised of answers that reach it."""
        if threshold is None:
            return "nothing passes: there is no threshold"
        if self.profile is None:
            bound = "at most" if known_score(self.method).direction == "uncertainty" else "at least"
            return f"{self.method} of {bound} {threshold:.4g}, a raw score, which promises nothing"
        promise, void = self._promise(kind), self._void(kind)
        if promise is None:
            promised = "nothing is promised of what passes" + (f": {void}" if void else "")
        else:
            risk, certainty = 100 * promise["risk"], 100 - 100 * promise["delta"]
            promised = (
                f"of what passes at most {risk:g} % is wrong, with {certainty:g} % certainty, for questions like those "
                "of the calibration"
            )
        meaning = "" if self._calibrated else ", which is only an ordering and no probability"
        return f"confidence of at least {threshold:.3f} (method: {self.method}){meaning}; {promised}"

    def _shown(self, confidence: float) -> str:
        """Show a confidence as what it is."""
        if self.profile is None or self._calibrated:
            return f"confidence {confidence:.3f}"
        return f"confidence {confidence:.3f}, only an ordering and no probability,"

    def _promise(self, kind: AnswerKind) -> dict[str, float] | None:
        """Give what the profile's own threshold promises; one that the caller has set promises nothing."""
        section = self._promising(kind)
        if section is None or section.guarantee is None:
            return None
        return section.guarantee.model_dump(include={"risk", "delta", "n"})

    def _void(self, kind: AnswerKind) -> str:
        """Say why the profile's own threshold promises nothing any more; "" where nothing was promised."""
        section = self._promising(kind)
        return "" if section is None else section.void

    def _promising(self, kind: AnswerKind) -> Section | None:
        """Give the section whose promise counts: the one fitted on this very kind of answer."""
        if self.profile is None or self._threshold is not None:
            return None
        section: Section | None = getattr(self.profile, kind)
        return section


def checked_raw(value: object) -> float | None:
    """Check a threshold on a raw score; None is none.

    Raises:
        ConfigurationError: it is no finite number >= 0.
    """
    if value is None:
        return None
    number = as_number(value)
    if not 0 <= number < math.inf:
        shown = repr(value) if math.isnan(number) else number
        raise ConfigurationError(f"score_threshold={shown}: expected a finite number >= 0.")
    return number


def unlikely(score: Score) -> Failure | None:
    """Say why an answer with this finite score can hardly be the model's own; None if it can."""
    expected = score.mean_entropy * score.length
    if score.nll - expected <= _SURPRISE * math.sqrt(score.length):
        return None
    text = (
        f"the model would hardly give this answer itself: its log-probability is {-score.nll:.1f} nats, where about "
        f"{-expected:.1f} was to be expected"
    )
    return Failure(kind="unlikely_text", text=text)
