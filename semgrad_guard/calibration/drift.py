"""Drift: fresh questions, labelled or not, should be as sure as those the profile was fitted on."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kstest, kstwobign

from semgrad_guard.calibration.profile import Profile, Section
from semgrad_guard.errors import ConfigurationError, DataError, ProfileError
from semgrad_guard.records import Score
from semgrad_guard.scoring.registry import known_score

logger = logging.getLogger(__name__)

_FEWEST = 20


@dataclass(frozen=True)
class Drift:
    """A Kolmogorov-Smirnov test of fresh confidences against those of the calibration.

    `statistic` is the largest difference between the two distributions, in [0, 1]. `p_value` is the probability of one
    as large without drift. `n` counts fresh answers; `median` and `fitted_median` are of the confidences.
    """

    statistic: float
    p_value: float
    n: int
    median: float
    fitted_median: float

    def drifted(self, alpha: float = 0.01) -> bool:
        """Tell whether the difference is too large for chance."""
        return self.p_value < alpha


def drift(section: Section, scores: Sequence[Score]) -> Drift:
    """Compare fresh answers with those a section was fitted on.

    Raises:
        ProfileError: the section does not say how its confidences were spread.
        DataError: there are too few fresh answers to say anything.
    """
    _check_quantiles(section)
    if len(scores) < _FEWEST:
        raise DataError(f"{len(scores)} fresh answers; at least {_FEWEST} are needed to see whether anything changed.")
    levels = np.linspace(0, 1, len(section.quantiles))
    fresh = np.array([section.confidence(score) for score in scores])
    test = kstest(fresh, lambda values: np.interp(values, section.quantiles, levels))
    # Those of calibration are a sample too: both sizes count, as in the test of two samples.
    size = len(scores) * section.spread_of / (len(scores) + section.spread_of)
    return Drift(
        statistic=float(test.statistic),
        p_value=float(kstwobign.sf(float(test.statistic) * size**0.5)),
        n=len(scores),
        median=float(np.median(fresh)),
        fitted_median=float(np.median(section.quantiles)),
    )


class Watch:
    """Looks for drift while answering: after every so many answers it compares them with those of fitting, and warns.

    Each comparison takes fresh answers, and warns of chance alone once in a hundred times. A watch keeps scores, no
    texts. Threads share it, and so do all guards that have it. A copy made by pickling or `copy.deepcopy` starts anew.
    """

    def __init__(self, section: Section, every: int) -> None:
        """Begin to watch.

        Args:
            section: the profile's section for first answers.
            every: answers to compare at a time, at least 20; a few hundred see what matters.

        Raises:
            ProfileError: the section does not say how its confidences were spread.
            ConfigurationError: too few answers at a time to say anything.
        """
        _check_quantiles(section)
        if every < _FEWEST:
            raise ConfigurationError(f"watch={every}: expected at least {_FEWEST} answers, or None not to watch.")
        self.section, self.every = section, every
        self._scores: list[Score] = []
        self._lock = threading.Lock()

    @classmethod
    def of(cls, watch: int | Watch | None, profile: Profile | None) -> Watch | None:
        """Begin to watch with a profile, or go on with a watch of the same profile.

        Raises:
            ConfigurationError: there is no profile, or too few answers at a time.
            ProfileError: the profile does not say how its confidences were spread.
        """
        if not watch:
            return None
        if profile is None:
            raise ConfigurationError("watch compares confidences with those of fitting, which needs a profile.")
        if isinstance(watch, int):
            return cls(profile.answer, watch)
        return watch if watch.section == profile.answer else cls(profile.answer, watch.every)

    def __reduce__(self) -> tuple[type[Watch], tuple[Section, int]]:
        """Copy the settings and no answer: a lock cannot be copied, and no answer should count twice."""
        return Watch, (self.section, self.every)

    def see(self, score: Score) -> None:
        """Take an answer's score into account; it must be finite."""
        with self._lock:
            self._scores.append(score)
            if len(self._scores) < self.every:
                return
            seen, self._scores = self._scores, []
        test = drift(self.section, seen)
        if test.drifted():
            logger.warning(
                "Drift: the last %d answers are not as sure, or unsure, as those the profile was fitted on: median "
                "confidence %.3f against %.3f, Kolmogorov-Smirnov statistic %.3f, p = %.2g. Calibrate again on "
                "questions like these.",
                test.n,
                test.median,
                test.fitted_median,
                test.statistic,
                test.p_value,
            )


def _check_quantiles(section: Section) -> None:
    if not section.quantiles or not section.spread_of:
        raise ProfileError(
            "The profile does not say how its confidences were spread. Calibrate again to get one that does."
        )


_FIRST = 20
_FAR = 3.0  # times the threshold, or a part of it


class RawWatch:
    """Looks at the first twenty raw scores, and warns once if all lie far on one side of the threshold.

    Raw scores differ from model to model by orders of magnitude, so that a threshold taken from elsewhere often passes
    everything, or nothing. Threads share a watch, and so do all copies of a guard; a copy made by pickling or
    `copy.deepcopy` starts anew. It keeps numbers, no texts.
    """

    def __init__(self) -> None:
        """Start with no answer seen."""
        self._values: list[float] = []
        self._sides: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RawWatch], tuple[()]]:
        """Copy no answer: a lock cannot be copied, and no answer should count twice."""
        return RawWatch, ()

    def see(self, value: float, threshold: float, method: str) -> None:
        """Take a first answer's finite raw score into account.

        Args:
            value: score of the answer, >= 0.
            threshold: the score that just passes, at present.
            method: name of the score.
        """
        with self._lock:
            if len(self._values) == _FIRST:
                return
            self._values.append(value)
            self._sides.add(_side(value, threshold))
            if len(self._values) < _FIRST or self._sides not in ({"above"}, {"below"}):
                return
        side = next(iter(self._sides))
        unsure = "above" if known_score(method).direction == "uncertainty" else "below"
        effect = "none of them passes" if side == unsure else "all of them pass"
        warnings.warn(
            f"The first {_FIRST} answers lie far {side} score_threshold={threshold:g}, and {effect}: their {method} is "
            f"{min(self._values):.3g} to {max(self._values):.3g}. Raw scores differ from model to model. Let "
            "`semgrad-guard calibrate --data questions.jsonl --coverage 0.9 --out profile.json` find a threshold for "
            "this model (it needs no labels; with labels, leave --coverage out), and use profile='profile.json'.",
            UserWarning,
            stacklevel=2,
        )


def _side(value: float, threshold: float) -> str:
    if value > _FAR * threshold:
        return "above"
    return "below" if _FAR * value < threshold else "near"
