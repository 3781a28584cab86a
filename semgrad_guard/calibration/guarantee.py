"""A threshold with a guarantee: of the answers that pass, at most a share `risk` are wrong, with certainty 1 - delta.

This is exact-binomial fixed-sequence testing (Learn then Test, Angelopoulos et al. 2021). Thresholds are tried from
strict to loose. Each is accepted if so few errors would be improbable were the true share of errors as large as `risk`.
The first that is not accepted ends the sequence, so that trying many needs no correction. The guarantee holds for
exchangeable questions, if the thresholds were chosen without looking at the answers of the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import model_validator
from scipy.stats import binom

from semgrad_guard.calibration.checked import Chance, Checked, Count, OneOrMore, Share
from semgrad_guard.errors import ConfigurationError

_STEPS = 81  # thresholds tried; fewer, farther apart, cost coverage, and more cost nothing
STRICTEST = 0.2  # share of the most confident answers that the first one lets pass


class Guarantee(Checked):
    """A promise and its evidence: `n` answers passed in the test, `errors` of them wrong.

    `threshold` is the tested one. `seal` is a digest of all that the promise rests on (see `seal_of`), "" until a
    profile holds it. Any change after that makes the promise void.

    Raises:
        ValidationError: (of pydantic) a number is out of range, or the test does not show what is promised.
    """

    risk: Chance
    delta: Chance
    n: OneOrMore
    errors: Count
    threshold: Share | None = None
    seal: str = ""

    @model_validator(mode="after")
    def _is_shown(self) -> Self:
        if self.errors > self.n:
            raise ValueError(f"{self.errors} errors among {self.n} answers; expected no more errors than answers")
        chance = float(binom.cdf(self.errors, self.n, self.risk))
        if not chance <= self.delta * (1 + 1e-9):
            raise ValueError(
                f"{self.errors} errors among {self.n} answers do not show a risk of at most {self.risk} with certainty "
                f"{1 - self.delta:g}: so few are met by chance with probability {chance:.3g}, above delta"
            )
        return self


def thresholds_to_try(confidences: Sequence[float]) -> list[float]:
    """Choose thresholds from strict to loose: quantiles of confidences that are not those tested on."""
    shares = np.linspace(STRICTEST, 1.0, _STEPS)
    quantiles = np.quantile(np.asarray(confidences), 1.0 - shares)
    return list(dict.fromkeys(quantiles.tolist()))


def guaranteed_threshold(
    confidences: Sequence[float], correct: Sequence[bool], tried: Sequence[float], *, risk: float, delta: float
) -> tuple[float, Guarantee] | None:
    """Find the loosest threshold that keeps the promise; None if not even the strictest does.

    Args:
        confidences: of independent answers, one for each question; pass at >= threshold.
        correct: whether each answer was right.
        tried: thresholds from strict to loose, chosen without these answers.
        risk: largest share of wrong answers among those that pass, in (0, 1).
        delta: probability that the promise does not hold, in (0, 1).

    Raises:
        ConfigurationError: risk or delta is out of range.
    """
    for name, value in (("risk", risk), ("delta", delta)):
        if not 0 < value < 1:
            raise ConfigurationError(f"{name}={value}: expected a number between 0 and 1.")
    values, wrong = np.asarray(confidences, dtype=float), ~np.asarray(correct, dtype=bool)
    best = None
    for threshold in tried:
        passing = values >= threshold
        n, errors = int(passing.sum()), int((passing & wrong).sum())
        if not binom.cdf(errors, n, risk) <= delta:  # 1 where nothing passes: nothing is shown then
            break
        best = threshold, Guarantee(risk=risk, delta=delta, n=n, errors=errors, threshold=threshold)
    return best


def labels_needed(risk: float, delta: float, errors: int = 0) -> int:
    """Give the least number of passing answers, so many of them wrong, that would keep the promise."""
    n = errors + 1
    while binom.cdf(errors, n, risk) > delta:
        n += 1
    return n
