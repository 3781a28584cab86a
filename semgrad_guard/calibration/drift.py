"""Drift: fresh questions, labelled or not, should be like those the profile was fitted on."""

from __future__ import annotations

import logging
import random
import threading
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kstest, kstwobign

from semgrad_guard.calibration.profile import Profile, Section, feature_values
from semgrad_guard.errors import ConfigurationError, DataError, ProfileError
from semgrad_guard.records import Score
from semgrad_guard.scoring.registry import known_score
from semgrad_guard.settings import warn_of_old

logger = logging.getLogger(__name__)

ALPHA = 0.01  # probability of a false alarm
_FEWEST = 20
_SLOPES = (-1.6, -0.8, 0.0, 0.8, 1.6)
_MOVING = 0.01  # part of the wealth that moves between slopes at each step


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


class Martingale:
    """A bet against the claim that fresh values come from where a sample came from, in any order.

    Each fresh value is placed among the sample and the fresh values before it. Under the claim its place p is uniform
    in (0, 1) whatever came before. The wealth is multiplied by 1 + e (p - 1/2), for several slopes e between which a
    small part of it keeps moving (the "simple jumper" of Vovk et al. 2021, "Retrain or not retrain"). It grows where
    fresh values keep lying on one side. By Ville's inequality it reaches 1 / alpha, ever, with a probability of at most
    alpha, if nothing has changed.
    """

    def __init__(self, sample: Sequence[float], seed: int = 0) -> None:
        """Begin with a wealth of 1; places among equal values are drawn by chance, from the seed."""
        self._values = sorted(sample)
        self._random = random.Random(seed)
        self._parts = dict.fromkeys(_SLOPES, 1.0 / len(_SLOPES))

    @property
    def wealth(self) -> float:
        """The present wealth, >= 0; *higher = more evidence of a change*."""
        return sum(self._parts.values())

    def see(self, value: float) -> None:
        """Place a value and settle the bet."""
        low, high = bisect_left(self._values, value), bisect_right(self._values, value)
        place = (low + self._random.random() * (high - low + 1)) / (len(self._values) + 1)
        self._values.insert(high, value)
        even = _MOVING * self.wealth / len(_SLOPES)
        self._parts = {
            slope: ((1.0 - _MOVING) * part + even) * (1.0 + slope * (place - 0.5))
            for slope, part in self._parts.items()
        }


class Watch:
    """Looks for drift while answering, with every answer, and warns when chance alone would hardly do it.

    Two things are watched, each by a `Martingale`: the core of the scores, and how far out the questions lie in the
    model's hidden states. The alarm is anytime-valid: if fresh questions are like those of the calibration, it is ever
    given, however long the watch goes on, with a probability of at most `alpha`. After an alarm the watch starts anew.

    A watch keeps numbers, no texts; `alarms` counts its warnings. Threads share it, and so do all guards that have it.
    A copy made by pickling or `copy.deepcopy` starts anew.
    """

    def __init__(self, section: Section, alpha: float = ALPHA) -> None:
        """Begin to watch.

        Args:
            section: the profile's section for first answers.
            alpha: the largest probability of a false alarm, in (0, 1).

        Raises:
            ProfileError: the section does not say how its confidences were spread.
            ConfigurationError: alpha is out of range.
        """
        if not 0 < alpha < 1:
            raise ConfigurationError(f"watch={alpha}: expected the probability of a false alarm, in (0, 1), or True.")
        if not section.core_sample:
            _check_quantiles(section)
        self.section, self.alpha = section, alpha
        self._lock = threading.Lock()
        self.alarms = 0
        self._begin()

    def _begin(self) -> None:
        core = self.section.core_sample
        # Profiles of earlier versions know quantiles of their confidences only.
        self._bets = {"confidence": Martingale(self.section.quantiles)} if not core else {"scores": Martingale(core)}
        if self.section.distance_sample:
            self._bets["hidden states"] = Martingale(self.section.distance_sample)
        self._seen = 0

    @classmethod
    def of(cls, watch: bool | float | Watch | None, profile: Profile | None) -> Watch | None:
        """Begin to watch with a profile, or go on with a watch of the same profile.

        Raises:
            ConfigurationError: there is no profile, or a false alarm's probability is out of range.
            ProfileError: the profile does not say how its confidences were spread.
        """
        if not watch:
            return None
        if profile is None:
            raise ConfigurationError("watch compares scores with those of the calibration, which needs a profile.")
        if isinstance(watch, Watch):
            return watch if watch.section == profile.answer else cls(profile.answer, watch.alpha)
        if watch is not True and watch >= 1:
            warn_of_old(f"watch={watch}, a number of answers,", "watch=True, which looks with every answer")
            watch = True
        return cls(profile.answer, ALPHA if watch is True else watch)

    def __reduce__(self) -> tuple[type[Watch], tuple[Section, float]]:
        """Copy the settings and no answer: a lock cannot be copied, and no answer should count twice."""
        return Watch, (self.section, self.alpha)

    def see(self, score: Score) -> None:
        """Take an answer's score into account; it must be finite."""
        values = {"confidence": self.section.confidence(score)}
        if "scores" in self._bets:
            values["scores"] = feature_values(score, ("combined",))[0]
        if score.distance is not None:
            values["hidden states"] = score.distance
        with self._lock:
            for name, bet in self._bets.items():
                if name in values:
                    bet.see(values[name])
            self._seen += 1
            # The mean of two such bets is one too.
            if sum(bet.wealth for bet in self._bets.values()) < len(self._bets) / self.alpha:
                return
            told = max(self._bets, key=lambda name: self._bets[name].wealth)
            seen, wealth = self._seen, self._bets[told].wealth
            self.alarms += 1
            self._begin()
        logger.warning(
            "Drift: by their %s, the last %d answers are not like those of the calibration (wealth %.3g; without a "
            "change it reaches %.3g with a probability of at most %.3g). Calibrate again on questions like these.",
            told,
            seen,
            wealth,
            1.0 / self.alpha,
            self.alpha,
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
