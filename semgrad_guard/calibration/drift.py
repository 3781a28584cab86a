"""Does the profile still fit? Fresh questions, labelled or not, should be as sure as those it was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kstest

from semgrad_guard.calibration.profile import Section
from semgrad_guard.errors import DataError, ProfileError
from semgrad_guard.records import Score

_FEWEST = 20


@dataclass(frozen=True)
class Drift:
    """A Kolmogorov-Smirnov test of fresh confidences against those met in fitting.

    `statistic` is the largest difference between the two distributions, in [0, 1]; `p_value` how probable one as large
    is without drift; `n` fresh answers. `median` and `fitted_median` are of the confidences.
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
    if not section.quantiles:
        raise ProfileError(
            "The profile does not say how its confidences were spread. Calibrate again to get one that does."
        )
    if len(scores) < _FEWEST:
        raise DataError(f"{len(scores)} fresh answers; at least {_FEWEST} are needed to see whether anything changed.")
    levels = np.linspace(0, 1, len(section.quantiles))
    fresh = np.array([section.confidence(score) for score in scores])
    fresh = np.where(np.isfinite(fresh), fresh, 0.0)
    test = kstest(fresh, lambda values: np.interp(values, section.quantiles, levels))
    return Drift(
        statistic=float(test.statistic),
        p_value=float(test.pvalue),
        n=len(scores),
        median=float(np.median(fresh)),
        fitted_median=float(np.median(section.quantiles)),
    )
