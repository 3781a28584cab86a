"""From a score to a verdict: is this answer sure enough? Whatever cannot be judged is not."""

from __future__ import annotations

import math

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.records import Score, Verdict

RAW_METHODS = ("semgrad", "hybridgrad", "paragrad", "exgrad", "nll", "mean_nll", "mean_entropy", "max_entropy")


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

    def threshold(self, *, grounded: bool = False) -> float:
        """Give the threshold in force, on confidence or, without a profile, on the raw score."""
        if self.profile is None:
            return self.score_threshold or 0.0
        return self.profile.section(grounded=grounded).threshold if self._threshold is None else self._threshold

    def judge(self, score: Score | None, failure: str, *, grounded: bool = False) -> Verdict:
        """Judge an answer; without a finite score, or with a failure, it never passes.

        Args:
            score: the answer's score, None where scoring failed.
            failure: why the answer cannot be trusted whatever its score; empty if nothing went wrong.
            grounded: the answer was given from passages: the profile's section for those applies.
        """
        if not failure and score is None:
            failure = "the answer has no score"
        if not failure and score is not None and not score.finite():
            failure = "the score is not a finite number"
        confidence, threshold = None, self.threshold(grounded=grounded)
        if failure or score is None:
            passed, reason = False, failure
            confidence = None if self.profile is None else 0.0
        elif self.profile is None:
            value = float(getattr(score, self.method))
            passed = value <= threshold
            comparison = "is within" if passed else "is above"
            reason = f"{self.method} {value:.4g} {comparison} the threshold {threshold:.4g}"
        else:
            confidence = self.profile.section(grounded=grounded).confidence(score)
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
        )
