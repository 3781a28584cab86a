"""A confidence of two parts: a core that holds for questions of any kind, and a head for the kinds that were seen.

The core is a regression on a few scores of known direction, whose coefficients cannot turn round: more uncertain is
never more confident. The head is a regularised regression on everything that the pass gives: these scores, SemGrad by
layer, and components of hidden states. It tells more about questions of the kinds it was fitted on, and can mislead
about others. Their logits are mixed,

    logit = (1 - share) core + share head,

and the share of the head is chosen by leaving kinds of questions out, one after the other. Both parts are linear in the
features, so that their mixture is one regression again. Pure arithmetic on arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold

Numbers = NDArray[np.float64]

SHARES = tuple(step / 10 for step in range(10))  # of the head: some of the core always stays
_BY_CHANCE = 0.005  # of AUROC
CAUTIOUS = 0.3  # the head's share where no kind of question can be left out
HEAD_PENALTY = 10.0
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


@dataclass(frozen=True)
class Parts:
    """What a blend is fitted on: n answers, right or wrong.

    `core` and `head` are their features, [n, K]; `signs` the signs that coefficients of the core may have, [K]. Answers
    of one of the `groups` are about one thing, and stay together. `kinds` are those of the questions.
    """

    core: Numbers
    signs: Numbers
    head: Numbers
    right: NDArray[np.bool_]
    groups: Sequence[str]
    kinds: Sequence[str]

    def rows(self, chosen: NDArray[np.bool_]) -> Parts:
        """Give the parts of some answers."""
        places = np.flatnonzero(chosen)
        return Parts(
            self.core[places],
            self.signs,
            self.head[places],
            self.right[places],
            [self.groups[int(place)] for place in places],
            [self.kinds[int(place)] for place in places],
        )


@dataclass(frozen=True)
class Blend:
    """A core and a head, mixed by `share`.

    `same` holds the logits of core and head for every answer by fits that left its group out, [n, 2]; `unseen` those by
    fits that left all of its kind out, NaN for answers of kinds that tell nothing.
    """

    core: Linear
    head: Linear
    share: float
    same: Numbers
    unseen: Numbers

    def mixed(self, logits: Numbers) -> Numbers:
        """Mix logits of core and head, [n, 2]."""
        return mix(logits, self.share)


def mix(logits: Numbers, share: float) -> Numbers:
    """Mix the logits of core and head, [n, 2]: [n]."""
    mixed: Numbers = (1.0 - share) * logits[:, 0] + share * logits[:, 1]
    return mixed


def blended(parts: Parts, *, shares: Sequence[float] = SHARES, penalty: float = HEAD_PENALTY, seed: int = 0) -> Blend:
    """Fit core and head, and choose the share of the head.

    The share is taken at which the AUROC over answers of the kinds that were seen, and the mean AUROC within a kind
    that was left out, add up to most. A head that takes as much from the second as it gives to the first gets none.
    Where no kind can be left out, the share is a cautious one at most. What chance may bring is no gain.

    Args:
        parts: what to fit on.
        shares: of the head, to choose from.
        penalty: of the head's coefficients.
        seed: random seed of the folds.
    """
    same, unseen = _left_out_groups(parts, penalty, seed), _left_out_kinds(parts, penalty)
    core, head = _fits(parts, penalty)
    return Blend(core, head, chosen_share(parts, same, unseen, shares), same, unseen)


def chosen_share(parts: Parts, same: Numbers, unseen: Numbers, shares: Sequence[float]) -> float:
    """Choose the head's share from logits of core and head, [n, 2], by fits without the group and without the kind."""

    def worth(share: float) -> float:
        return (over_all(mix(same, share), parts) or 0.0) + (across_kinds(mix(unseen, share), parts) or 0.0)

    told = across_kinds(mix(unseen, 0.0), parts) is not None
    best = max((share for share in shares if told or share <= CAUTIOUS), key=lambda share: (worth(share), -share))
    return best if worth(best) > worth(shares[0]) + _BY_CHANCE else shares[0]


def over_all(logits: Numbers, parts: Parts) -> float | None:
    """Give the AUROC over all answers; None where they are all right or all wrong."""
    return auroc(logits, parts.right) if parts.right.any() and not parts.right.all() else None


def auroc(logits: Numbers, right: NDArray[np.bool_]) -> float:
    """Give the probability that a right answer has the greater logit than a wrong one, in [0, 1]."""
    count = int(right.sum())
    ranks = float(rankdata(logits)[right].sum())  # Mann and Whitney's statistic: quicker than tracing the curve
    return (ranks - count * (count + 1) / 2) / (count * (len(right) - count))


def can_leave_out(kinds: Sequence[str], right: Sequence[bool]) -> bool:
    """Tell whether at least two kinds of questions have enough right and wrong answers to be left out."""
    counted = [[answer for kind, answer in zip(kinds, right, strict=True) if kind == one] for one in set(kinds)]
    return sum(_has_both(np.array(answers, dtype=bool)) for answers in counted) >= 2


def across_kinds(logits: Numbers, parts: Parts) -> float | None:
    """Give the AUROC within a kind of question, on average over the kinds that tell; None where none does."""
    aurocs = [auroc(logits[chosen], parts.right[chosen]) for chosen in telling_kinds(parts, logits)]
    return float(np.mean(aurocs)) if aurocs else None


def telling_kinds(parts: Parts, logits: Numbers) -> list[NDArray[np.int_]]:
    """Give the answers of each kind that has enough right and wrong ones, by their places."""
    kinds = np.array(parts.kinds)
    places = [np.flatnonzero((kinds == kind) & np.isfinite(logits)) for kind in sorted(set(parts.kinds))]
    return [chosen for chosen in places if _has_both(parts.right[chosen])]


def _has_both(right: NDArray[np.bool_]) -> bool:
    return min(int(right.sum()), int((~right).sum())) >= _FOLDS


def _fits(parts: Parts, penalty: float) -> tuple[Linear, Linear]:
    core = fitted(parts.core, parts.right, penalty=_CORE_PENALTY, signs=parts.signs)
    return core, fitted(parts.head, parts.right, penalty=penalty)


def _logits(fits: tuple[Linear, Linear], parts: Parts) -> Numbers:
    return np.stack([fits[0].logits(parts.core), fits[1].logits(parts.head)], axis=1)


def _left_out_groups(parts: Parts, penalty: float, seed: int) -> Numbers:
    logits = np.full((len(parts.right), 2), np.nan)
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(parts.core, parts.right, list(parts.groups)):
        chosen = np.zeros(len(parts.right), dtype=bool)
        chosen[train] = True
        logits[test] = _logits(_fits(parts.rows(chosen), penalty), parts.rows(~chosen))
    return logits


def _left_out_kinds(parts: Parts, penalty: float) -> Numbers:
    logits, kinds = np.full((len(parts.right), 2), np.nan), np.array(parts.kinds)
    for kind in sorted(set(parts.kinds)):
        inside = kinds == kind
        if _has_both(parts.right[inside]) and _has_both(parts.right[~inside]):
            logits[inside] = _logits(_fits(parts.rows(~inside), penalty), parts.rows(inside))
    return logits


def joined(blend: Blend, features: Sequence[str], core: Sequence[str], values: Numbers) -> Linear:
    """Write the mixture as one regression on all features, with the level of its probabilities set out of fold.

    Args:
        blend: its core has the features named by `core`, its head, if it has a share, all of them.
        features: names of the columns of `values`.
        core: names of the core's features, each one of `features`.
        values: [n, len(features)].
    """
    weights, intercept = np.zeros(len(features)), 0.0
    columns = [list(features).index(name) for name in core]
    for part, places, share in (
        (blend.core, columns, 1.0 - blend.share),
        (blend.head, list(range(len(features))), blend.share),
    ):
        if share == 0:
            continue
        slopes = share * part.coefficients / part.scale
        weights[places] += slopes
        intercept += share * part.intercept - float(slopes @ part.center)
    center, scale = values.mean(0), values.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    return Linear(center, scale, weights * scale, intercept + float(weights @ center))


def levelled(line: Linear, logits: Numbers, right: NDArray[np.bool_]) -> Linear:
    """Stretch and shift a regression so that its probabilities fit logits that were given out of fold (Platt)."""
    level = fitted(logits[:, None], right, penalty=1e-3, signs=np.ones(1))
    slope = float(level.coefficients[0] / level.scale[0])
    shift = level.intercept - slope * float(level.center[0])
    return Linear(line.center, line.scale, slope * line.coefficients, slope * line.intercept + shift)


def auroc_interval(
    logits: Numbers, parts: Parts, measure: Callable[[Numbers, Parts], float | None], *, seed: int, repeats: int = 200
) -> tuple[float, float] | None:
    """Give a 95 % interval of a measure by resampling answers; None where too few samples have it."""
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(repeats):
        places = rng.integers(0, len(logits), len(logits))
        resampled = Parts(
            parts.core[:0],
            parts.signs,
            parts.head[:0],
            parts.right[places],
            (),
            [parts.kinds[place] for place in places],
        )
        if len(np.unique(resampled.right)) > 1 and (value := measure(logits[places], resampled)) is not None:
            drawn.append(value)
    if len(drawn) < repeats / 2:
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
