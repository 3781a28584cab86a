"""From a score to a verdict: is this answer sure enough? Whatever cannot be judged is not."""

from __future__ import annotations

import math

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.records import AnswerKind, Score, Verdict

RAW_METHODS = ("semgrad", "hybridgrad", "paragrad", "exgrad", "nll", "mean_nll", "mean_entropy", "max_entropy")


# The most that an answer's improbability may exceed the entropy met on its way, in nats per square root of a token: it
# grows as a sum of chances does. For whatever the model finds likeliest, token by token, it is below 0.
_SURPRISE = 2.0


class Standard:
    """What an answer must reach: a threshold on confidence (with a profile), or one on a raw score (without)."""

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
            score_threshold: largest raw score of `method` that passes, >= 0.
            method: raw score that `score_threshold` is on, "semgrad" by default; with a profile, it is the profile's.

        Raises:
            ConfigurationError: no threshold, or both, or one out of range.
        """
        if profile is None and score_threshold is None:
            raise ConfigurationError(
                "Without a profile there is no confidence"
                + ("" if threshold is None else f" for threshold={threshold}")
                + ". Pass profile=... (threshold is on confidence), "
                "or score_threshold=... (on the raw score, pass when <=)."
            )
        if score_threshold is not None and (profile is not None or threshold is not None):
            raise ConfigurationError(
                "score_threshold is on the raw score and excludes profile and threshold, which are on confidence. "
                "Pass one or the other."
            )
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigurationError(f"threshold={threshold}: expected a confidence in [0, 1].")
        if score_threshold is not None and not (score_threshold >= 0 and math.isfinite(score_threshold)):
            raise ConfigurationError(f"score_threshold={score_threshold}: expected a finite number >= 0.")
        if profile is not None and method not in (None, profile.method):
            raise ConfigurationError(f"method={method!r}, but the profile's is {profile.method!r}. Leave method out.")
        self.profile = profile
        self.method = profile.method if profile is not None else method or "semgrad"
        if profile is None and self.method not in RAW_METHODS:
            raise ConfigurationError(f"method={self.method!r}: expected one of {', '.join(RAW_METHODS)}.")
        self.score_threshold = score_threshold
        self._threshold = threshold

    def threshold(self, kind: AnswerKind = "answer") -> float | None:
        """Give the threshold in force, on confidence or, without a profile, on the raw score.

        None where neither the caller nor the profile sets one for this kind of answer.
        """
        if self.profile is None:
            return self.score_threshold
        if self._threshold is not None:
            return self._threshold
        section = self.profile.section(kind)
        return None if section is None else section.threshold

    def confidence(self, score: Score | None, kind: AnswerKind = "answer") -> float | None:
        """Give the confidence of a score, in [0, 1]; 0 without a finite score, None where the profile does not say."""
        section = None if self.profile is None else self.profile.section(kind)
        if section is None:
            return None
        return section.confidence(score) if score is not None and score.finite() else 0.0

    def judge(self, score: Score | None, failure: str, kind: AnswerKind = "answer") -> Verdict:
        """Judge an answer; without a finite score, or with a failure, it never passes.

        Nor does one that the model would hardly give itself: gradients tell whether the model knows an answer, not
        whether this is it, so that one drawn at a high temperature, or written by others, could look sure.

        Args:
            score: the answer's score, None where scoring failed.
            failure: why the answer cannot be trusted whatever its score; empty if nothing went wrong.
            kind: what the score is of; the profile has a section for each kind.
        """
        threshold, confidence = self.threshold(kind), self.confidence(score, kind)
        passed, failure = False, failure or _not_its_own(score)
        if failure:
            reason, confidence = failure, None if confidence is None else 0.0
        elif score is None:
            reason = "the answer has no score"
        elif score.failure():
            reason = score.failure()
        elif self.profile is None and threshold is not None:
            value = getattr(score, self.method)
            if value is None:
                value = math.nan  # not computed
            passed = value <= threshold
            comparison = "is within" if passed else "is not within"
            reason = f"{self.method} {value:.4g} {comparison} the threshold {threshold:.4g}"
        elif confidence is None:
            reason = f"the profile has no section for answers of the kind {kind!r}, so there is no confidence"
        elif threshold is None:
            reason = (
                f"confidence {confidence:.3f}, but calibration found no threshold that keeps what was to be promised"
            )
        else:
            passed = confidence >= threshold
            comparison = "reaches" if passed else "is below"
            reason = f"confidence {confidence:.3f} {comparison} the threshold {threshold:.3f}"
        return Verdict(
            passed=passed,
            confidence=confidence,
            scores=score,
            threshold=threshold,
            method=self.method,
            reason=reason,
            guarantee=self._promise(kind) if passed else None,
            policy=self._policy(kind, threshold),
        )

    def _policy(self, kind: AnswerKind, threshold: float | None) -> str:
        """Say in words what an answer must reach, and what that promises of those that do."""
        if threshold is None:
            return "nothing passes: there is no threshold"
        if self.profile is None:
            return f"{self.method} of at most {threshold:.4g}, a raw score, which promises nothing"
        promise = self._promise(kind)
        if promise is None:
            promised = "nothing is promised of what passes"
        else:
            risk, certainty = 100 * promise["risk"], 100 - 100 * promise["delta"]
            promised = (
                f"of what passes at most {risk:g} % is wrong, with {certainty:g} % certainty, for questions like those "
                "of the calibration"
            )
        return f"confidence of at least {threshold:.3f} (method: {self.method}); {promised}"

    def _promise(self, kind: AnswerKind) -> dict[str, float] | None:
        """Give what the profile's own threshold promises; one that the caller has set promises nothing."""
        if self.profile is None or self._threshold is not None:
            return None
        section = getattr(self.profile, kind)  # the section fitted on this very kind, not one that stands in
        return (
            None if section is None or section.guarantee is None else section.guarantee.model_dump(exclude={"errors"})
        )


def _not_its_own(score: Score | None) -> str:
    """Say why an answer can hardly be the model's own; "" if it can."""
    if score is None or not score.finite():
        return ""
    expected = score.mean_entropy * score.length
    if score.nll - expected <= _SURPRISE * math.sqrt(score.length):
        return ""
    return (
        f"the model would hardly give this answer itself: its log-probability is {-score.nll:.1f} nats, where about "
        f"{-expected:.1f} was to be expected"
    )
