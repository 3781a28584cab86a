"""What confidence is compared with: scores that need no labels, and regressions on the same labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from semgrad_guard.calibration.blend import Numbers, fitted
from semgrad_guard.calibration.fit import before_answers, components_for, kinds_of
from semgrad_guard.calibration.methods import Labelled, fitted_section
from semgrad_guard.calibration.search import read_off
from semgrad_guard.calibration.section import KindsFrom, Section
from semgrad_guard.records import Score
from semgrad_guard.scoring.registry import known_score
from semgrad_guard.scoring.settings import ScoringSettings, layer_indices
from semgrad_guard.scoring.states import StateReading, state_layers
from tools.real.collect import Row

# Label-free scores by the name in the tables, best known first.
FREE = {
    "combined": "combined",
    "G-NLL": "nll",
    "LN-NLL": "mean_nll",
    "least probable token": "max_nll",
    "first-token entropy": "first_entropy",
    "largest entropy": "max_entropy",
    "mean entropy": "mean_entropy",
    "summed entropy": "sum_entropy",
    "RAUQ": "rauq",
    "SemGrad": "semgrad",
    "ParaGrad": "paragrad",
    "HybridGrad": "hybridgrad",
    "length only": "length",
}
_FIVE = ("nll", "mean_nll", "mean_entropy", "max_entropy", "length")
_KEPT = (1, 3)  # of the layers whose states were kept: those that a profile reads
_COMPONENTS = 16
Predict = Callable[[Sequence[Row], Sequence[Row]], Numbers]
"""From rows with labels and other rows to how sure the others are, [n]; *higher = more sure*."""


def free(name: str) -> Callable[[Sequence[Row]], Numbers]:
    """Give a label-free score as how sure it is of rows."""
    kind = known_score(FREE[name])
    return lambda rows: np.array([-(kind.uncertainty(scored(row)) or 0.0) for row in rows])


@cache
def scored(row: Row) -> Score:
    """Give the score that the default settings would give."""
    count = len(row.score.layers)
    wide = ScoringSettings(token_position=len(row.score.later) + 1, layers=row.score.layer_indices, reduction="sum")
    narrow = ScoringSettings(
        token_position=wide.token_position, layers=layer_indices("upper-half", count), reduction="sum"
    )
    return read_off(row.score, wide, narrow)


def states_of(rows: Sequence[Row]) -> NDArray[np.float32]:
    """Give the hidden states that a profile reads, [n, 3, 2, D]."""
    return np.array([row.states for row in rows])[:, :, list(_KEPT)]


def labelled(rows: Sequence[Row], reading: StateReading | None) -> list[Labelled]:
    """Give rows as a calibration takes them."""
    scores = [scored(row) for row in rows]
    if reading is not None:
        states = states_of(rows)
        read = zip(reading.project(states).tolist(), reading.distance(states).tolist(), strict=True)
        scores = [
            score.model_copy(update={"states": tuple(components), "distance": distance})
            for score, (components, distance) in zip(scores, read, strict=True)
        ]
    return [Labelled(row.query, score, row.correct) for row, score in zip(rows, scores, strict=True)]


def with_kinds(items: Sequence[Labelled], rows: Sequence[Row], seed: int = 0) -> tuple[list[Labelled], KindsFrom]:
    """Name the kind of each question as a calibration does: by the data, or by clusters of hidden states."""
    components, correct = before_answers(states_of(rows)), [row.correct for row in rows]
    kinds, kinds_from = kinds_of([row.stratum for row in rows], components, correct, seed)
    return [replace(item, kind=kind) for item, kind in zip(items, kinds, strict=True)], kinds_from


def reading_of(rows: Sequence[Row]) -> StateReading:
    """Find the components of hidden states, as a calibration does."""
    return StateReading.fit(states_of(rows), state_layers(len(rows[0].score.layers)), components_for(len(rows)))


def section_of(train: Sequence[Row], method: str) -> tuple[Section, StateReading]:
    """Fit a confidence as `calibrate` does, on all of these rows."""
    reading = reading_of(train)
    items, kinds_from = with_kinds(labelled(train, reading), train)
    return fitted_section(items, method, kinds_from, 0)[1], reading


def ours(method: str) -> Predict:
    """Give a confidence of the package as a predictor."""

    def predict(train: Sequence[Row], test: Sequence[Row]) -> Numbers:
        section, reading = section_of(train, method)
        return np.array([section.confidence(item.score) for item in labelled(test, reading)])

    return predict


def _logs(rows: Sequence[Row], names: Sequence[str]) -> Numbers:
    values = [[known_score(name).value(scored(row)) or 0.0 for name in names] for row in rows]
    logs: Numbers = np.log(np.maximum(np.array(values, dtype=float), 1e-30))
    return logs


def _regression(features: Callable[[Sequence[Row], Sequence[Row]], tuple[Numbers, Numbers]], penalty: float) -> Predict:
    def predict(train: Sequence[Row], test: Sequence[Row]) -> Numbers:
        seen, fresh = features(train, test)
        return fitted(seen, np.array([row.correct for row in train]), penalty=penalty).logits(fresh)

    return predict


def _five(train: Sequence[Row], test: Sequence[Row]) -> tuple[Numbers, Numbers]:
    return _logs(train, _FIVE), _logs(test, _FIVE)


def _probe(train: Sequence[Row], test: Sequence[Row]) -> tuple[Numbers, Numbers]:
    """Read the state at the answer's last token, in both layers."""
    last = [states_of(rows)[:, 2:].repeat(3, axis=1) for rows in (train, test)]
    reading = StateReading.fit(last[0], (0, 1), _COMPONENTS)
    # The three places are one and the same here; a third of the columns is enough.
    seen, fresh = (reading.project(states).reshape(len(states), -1, 3, 2)[:, :, 0] for states in last)
    return seen.reshape(len(train), -1), fresh.reshape(len(test), -1)


def _probe_and_five(train: Sequence[Row], test: Sequence[Row]) -> tuple[Numbers, Numbers]:
    pairs = zip(_probe(train, test), _five(train, test), strict=True)
    seen, fresh = (np.concatenate(pair, axis=1) for pair in pairs)
    return seen, fresh


def _gradients(train: Sequence[Row], test: Sequence[Row]) -> tuple[Numbers, Numbers]:
    """Take what a fused score of earlier versions had: scores, and SemGrad by layer and by later token."""

    def features(rows: Sequence[Row]) -> Numbers:
        by_layer = np.array([np.concatenate([row.score.layers, *row.score.later]) for row in rows])
        return np.concatenate(
            [_logs(rows, (*_FIVE, "paragrad", "exgrad")), np.log(np.maximum(by_layer, 1e-30))], axis=1
        )

    return features(train), features(test)


def _density(train: Sequence[Row], test: Sequence[Row]) -> tuple[Numbers, Numbers]:
    """Take the distance to right answers, less that to all, at the last token's state, and G-NLL (as in SATRMD+MSP)."""
    seen, fresh = _probe(train, test)
    right = seen[[row.correct for row in train]]

    def distance(values: Numbers, reference: Numbers) -> Numbers:
        covariance = np.cov(reference.T) + np.eye(reference.shape[1])
        centred = values - reference.mean(0)
        squares: Numbers = np.einsum("nk,kl,nl->n", centred, np.linalg.inv(covariance), centred)
        roots: Numbers = np.sqrt(squares)
        return roots

    both = [
        np.stack([distance(values, right) - distance(values, seen), _logs(rows, ("nll",))[:, 0]], axis=1)
        for values, rows in ((seen, train), (fresh, test))
    ]
    return both[0], both[1]


LABELLED: dict[str, Predict] = {
    "**confidence** (core and head)": ours("auto"),
    "its core alone": ours("core"),
    "five log-probability numbers": _regression(_five, 1.0),
    "linear probe of the last state": _regression(_probe, 10.0),
    "linear probe and log-probabilities": _regression(_probe_and_five, 10.0),
    "distance to right answers, and G-NLL": _regression(_density, 1.0),
    "fused score of earlier versions": _regression(_gradients, 1.0),
}
