"""What each kind of score is worth to the fused one: the same regression with some of them left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from semgrad_guard.calibration.fit import SCALARS, WITHOUT_GRADIENTS, later_features, layer_features, out_of_fold
from semgrad_guard.errors import DataError
from semgrad_guard.evaluation import metrics
from semgrad_guard.evaluation.run import Result
from semgrad_guard.records import Score


def ablation(
    results: Sequence[Result], parts: Mapping[str, Sequence[Result]], *, repeats: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Fit the regression anew on these results, in folds by what they are about, with all features and with fewer.

    The profile's own regression is not touched: it was fitted on other questions. Every answer is judged by a fit that
    has not seen its group.

    Args:
        results: of one run; those without a label or a score are left out.
        parts: parts of them to give the AUROC on.
        repeats: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        By set of features, and part: AUROC, and by how much it lies under that of everything, with a paired 95 %
        interval; `missing` says why there is nothing.
    """
    usable = [result for result in results if result.correct is not None and result.score is not None]
    scores = [result.score for result in usable if result.score is not None]
    correct, groups = [bool(result.correct) for result in usable], [result.about for result in usable]
    if not scores:
        return {"missing": "no answer has both a label and a score", "sets": {}}
    try:
        predicted = {
            name: (len(features), -np.array(out_of_fold(scores, correct, features, groups)))
            for name, features in _sets(scores[0]).items()
        }
    except DataError as error:
        return {"missing": str(error), "sets": {}}
    place = {result.query: index for index, result in enumerate(usable)}
    chosen = {
        part: np.array([place[result.query] for result in members if result.query in place], dtype=int)
        for part, members in parts.items()
    }
    (_, everything), right = predicted["everything"], np.array(correct)
    return {
        "missing": "",
        "sets": {
            name: {"features": count}
            | {
                part: _loss(doubt[own], everything[own], right[own], [groups[index] for index in own], repeats, seed)
                for part, own in chosen.items()
                if len(np.unique(right[own])) > 1
            }
            for name, (count, doubt) in predicted.items()
        },
    }


def _sets(score: Score) -> dict[str, tuple[str, ...]]:
    layers, later = layer_features(score), later_features(score)
    sets = {
        "everything": (*SCALARS, *layers, *later),
        "without the tokens after t*": (*SCALARS, *layers),
        "SemGrad's mean instead of its layers": (*SCALARS, "semgrad"),
        "without gradients at hidden states": SCALARS,
        "without gradients": WITHOUT_GRADIENTS,
        "SemGrad by layer, at all tokens, alone": (*layers, *later),
    }
    return {name: features for name, features in sets.items() if later or name != "without the tokens after t*"}


def _loss(
    doubt: metrics.Numbers, everything: metrics.Numbers, right: Any, groups: list[str], repeats: int, seed: int
) -> dict[str, Any]:
    def loss(with_all: metrics.Numbers, with_fewer: metrics.Numbers, correct: Any) -> float:
        return metrics.auroc(with_all, correct) - metrics.auroc(with_fewer, correct)

    interval = metrics.bootstrap(loss, everything, doubt, right, groups=groups, repeats=repeats, seed=seed)
    return {"auroc": metrics.auroc(doubt, right), "loss": loss(everything, doubt, right), "loss_interval": interval}
