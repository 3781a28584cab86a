"""A confidence of two parts: a core that holds for questions of any kind, and a head for the kinds that were seen.

The core is a regression on a few scores of known direction, whose coefficients cannot turn round: more uncertain is
never more confident. The head is a regularised regression on everything that the pass gives: these scores, SemGrad layer
by layer, and components of hidden states. It tells more about questions of the kinds it was fitted on, and can mislead
about others. Their logits are mixed,

    logit = (1 - share) core + share head,

and the share of the head is chosen by leaving kinds of questions out, one after the other. Both parts are linear in the
features, so that their mixture is one regression again. Pure arithmetic on arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

Numbers = NDArray[np.float64]

SHARES = tuple(step / 10 for step in range(8))  # of the head, 0 to 0.7: some of the core always stays
_TOLERATED = 0.01  # of AUROC that the head may cost for kinds of questions that were left out
_FOLDS = 5
_CORE_PENALTY = 1.0


@dataclass(frozen=True)
class Linear:
    """logit = intercept + sum of coefficients times standardised features."""

    center: Numbers
    scale: Numbers
    coefficients: Numbers
    intercept: float

    def logits(self, values: Numbers) -> Numbers:
        """Give the logits of rows of features, [n]."""
        return self.intercept + ((values - self.center) / self.scale) @ self.coefficients


def fitted(values: Numbers, right: NDArray[np.bool_], *, penalty: float, signs: Numbers | None = None) -> Linear:
    """Fit a logistic regression with an l2 penalty on standardised features.

    Args:
        values: features, [n, K].
        right: whether each answer is right, [n].
        penalty: half of it times the sum of squared coefficients is added to the sum of log-losses.
        signs: for each feature 1 or -1, the sign that its coefficient may have, or 0 where both are allowed.
    """
    center, scale = values.mean(0), values.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    rows, targets = (values - center) / scale, right.astype(float)

    def loss(parameters: Numbers) -> tuple[float, Numbers]:
        logits = parameters[0] + rows @ parameters[1:]
        error = expit(logits) - targets
        value = np.logaddexp(0.0, logits).sum() - targets @ logits + 0.5 * penalty * (parameters[1:] ** 2).sum()
        gradient = np.concatenate([[error.sum()], rows.T @ error + penalty * parameters[1:]])
        return float(value), gradient

    allowed: list[tuple[float | None, float | None]] = [(None, None)]
    for sign in np.zeros(values.shape[1]) if signs is None else signs:
        allowed.append((None if sign <= 0 else 0.0, None if sign >= 0 else 0.0))
    share = float(np.clip(targets.mean(), 1e-3, 1 - 1e-3))
    start = np.concatenate([[np.log(share / (1 - share))], np.zeros(values.shape[1])])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=allowed, options={"maxiter": 1000}).x
    return Linear(center, scale, found[1:], float(found[0]))
