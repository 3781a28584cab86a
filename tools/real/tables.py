"""The figures of the evaluation on published weights, from answers that were collected."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal

import numpy as np
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm

from semgrad_guard.calibration import blend
from semgrad_guard.calibration.blend import Numbers
from semgrad_guard.calibration.drift import Watch
from semgrad_guard.calibration.fit import with_samples
from semgrad_guard.calibration.methods import calibrate_section, cover_section
from semgrad_guard.errors import DataError
from semgrad_guard.evaluation import metrics
from semgrad_guard.records import Score
from semgrad_guard.scoring.settings import layer_indices
from tools.real.cells import Cell
from tools.real.collect import Row
from tools.real.rivals import FREE, LABELLED, Predict, free, labelled, reading_of, with_kinds

Cells = Mapping[Cell, Sequence[Row]]
_DRAWS = 3  # of training sets of a size
_UNFAMILIAR = 0.05
_FEWEST = 5  # right and wrong answers that a test needs


@dataclass(frozen=True)
class Figure:
    """A figure with a 95 % interval over resampled answers; None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Write it for a table."""
        text = f"{self.value:.3f}".replace("0.", ".", 1)
        if self.low is None or self.high is None:
            return text
        return f"{text} [{self.low:.3f}, {self.high:.3f}]".replace("0.", ".")


def right(rows: Sequence[Row]) -> np.ndarray:
    """Tell which rows are right, [n]."""
    return np.array([row.correct for row in rows], dtype=bool)


def auroc(sure: Numbers, rows: Sequence[Row]) -> float:
    """Give the AUROC of how sure rows are."""
    return blend.auroc(sure, right(rows))


def without_labels(cells: Cells, repeats: int = 1000) -> dict[str, dict[Cell, Figure]]:
    """Give every label-free score's AUROC in each cell, with intervals."""
    table: dict[str, dict[Cell, Figure]] = {name: {} for name in FREE}
    for (cell, rows), name in product(cells.items(), FREE):
        sure = free(name)(rows)
        correct = right(rows)
        low, high = metrics.bootstrap(
            metrics.auroc, -sure, correct, groups=[row.query for row in rows], repeats=repeats, seed=0
        )
        table[name][cell] = Figure(metrics.auroc(-sure, correct), low, high)
    return table


def rejection(cells: Cells, names: Sequence[str]) -> dict[str, dict[Cell, tuple[float, float]]]:
    """Give the prediction rejection ratio in each cell, over all rejections and over the first half."""
    return {
        name: {
            cell: (
                metrics.prr(-free(name)(rows), right(rows)),
                metrics.prr(-free(name)(rows), right(rows), most=0.5),
            )
            for cell, rows in cells.items()
        }
        for name in names
    }


def paired(cells: Cells, one: str, other: str, repeats: int = 1000) -> dict[Cell, Figure]:
    """Give by how much the AUROC of one label-free score lies above another's in each cell."""

    def difference(first: Numbers, second: Numbers, correct: np.ndarray) -> float:
        return metrics.auroc(first, correct) - metrics.auroc(second, correct)

    found = {}
    for cell, rows in cells.items():
        columns, correct = (-free(one)(rows), -free(other)(rows)), right(rows)
        groups = [row.query for row in rows]
        low, high = metrics.bootstrap(difference, *columns, correct, groups=groups, repeats=repeats, seed=0)
        found[cell] = Figure(difference(*columns, correct), low, high)
    return found


def semgrad_variants(cells: Cells) -> dict[str, dict[Cell, float]]:
    """Give SemGrad's AUROC by sum or mean, by layers, and by prompt token."""
    lengths: dict[str, Callable[[int], float]] = {
        "sum": lambda count: 1.0,
        "mean": lambda count: 1.0 / count,
        "over the root of the length": lambda count: count**-0.5,
    }
    layers: tuple[Literal["upper-half", "all"], ...] = ("upper-half", "all")
    tokens = {"the template's token": 0, "the one after it": 1, "the last token": -1}
    table: dict[str, dict[Cell, float]] = {}
    for (shown, divided), choice, (token, place) in product(lengths.items(), layers, tokens.items()):
        name = f"{shown}, {choice.replace('-', ' ')} of the layers, at {token}"
        table[name] = {}
        for cell, rows in cells.items():
            picked = list(layer_indices(choice, len(rows[0].score.layers)))
            values = []
            for row in rows:
                by_token = [row.score.layers, *row.score.later]
                at = by_token[place if place < 0 else min(place, len(by_token) - 1)]
                values.append(divided(row.score.length) * float(np.mean(np.array(at)[picked])))
            table[name][cell] = metrics.auroc(np.array(values), right(rows))
    return table


def with_labels(cells: Cells, counts: Sequence[int]) -> dict[str, dict[Cell, dict[int, float]]]:
    """Give the AUROC of every regression on so many labels, tested on all other answers of the same kinds.

    A count of 0 stands for all: five folds.
    """
    table: dict[str, dict[Cell, dict[int, float]]] = {name: {cell: {} for cell in cells} for name in LABELLED}
    work = [(name, cell, count) for name in LABELLED for cell in cells for count in counts]
    for name, cell, count in tqdm(work, desc="same kinds"):
        if (value := _same_kinds(LABELLED[name], cells[cell], count)) is not None:
            table[name][cell][count] = value
    return table


def _same_kinds(predict: Predict, rows: Sequence[Row], count: int) -> float | None:
    if count == 0 and not _both(rows, 2 * _FEWEST):
        return None
    if count == 0:
        sure = np.zeros(len(rows))
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(sure, right(rows)):
            sure[test] = _logit(predict([rows[place] for place in train], [rows[place] for place in test]))
        return auroc(sure, rows)
    found = []
    for seed in range(_DRAWS):
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        train, test = ([rows[place] for place in part] for part in (order[:count], order[count:]))
        if _both(train) and _both(test) and len(test) >= count:
            found.append(auroc(predict(train, test), test))
    return float(np.mean(found)) if len(found) == _DRAWS else None


def _logit(sure: Numbers) -> Numbers:
    """Undo probabilities, so that folds are compared on one scale; logits are left as they are."""
    inside = (sure > 0).all() and (sure < 1).all()
    return np.log(sure / (1 - sure)) if inside else sure


def _both(rows: Sequence[Row], fewest: int = _FEWEST) -> bool:
    correct = right(rows)
    return min(int(correct.sum()), int((~correct).sum())) >= fewest


def kinds_left_out(cells: Cells) -> dict[str, dict[tuple[str, str], float]]:
    """Give the AUROC within each kind of world facts, by fits on the other kinds, and by label-free scores."""
    table: dict[str, dict[tuple[str, str], float]] = {}
    for cell, rows in cells.items():
        for kind in sorted({row.stratum for row in rows} - {""}):
            test = [row for row in rows if row.stratum == kind]
            train = [row for row in rows if row.stratum != kind]
            if _both(test) and _both(train):
                _compare(table, (cell.model, kind), train, test)
    return table


def data_crossed(cells: Cells) -> dict[str, dict[tuple[str, str], float]]:
    """Give the AUROC on one set of questions by fits on another, for every model, and by label-free scores."""
    table: dict[str, dict[tuple[str, str], float]] = {}
    for one, other in permutations(cells, 2):
        if one.model == other.model and _both(cells[one]) and _both(cells[other]):
            _compare(table, (one.model, f"{one.data} to {other.data}"), cells[one], cells[other])
    return table


def _compare(
    table: dict[str, dict[tuple[str, str], float]], key: tuple[str, str], train: Sequence[Row], test: Sequence[Row]
) -> None:
    for name, predict in LABELLED.items():
        table.setdefault(name, {})[key] = auroc(predict(train, test), test)
    for name in ("combined", "G-NLL", "RAUQ"):
        table.setdefault(name, {})[key] = auroc(free(name)(test), test)


@dataclass(frozen=True)
class Defaults:
    """What `calibrate` brings with its defaults: `labels` given, its method, and AUROCs on as many other answers."""

    labels: int
    method: str
    confidence: float
    best: str
    best_auroc: float


def defaults(rows: Sequence[Row], labels: int, seed: int) -> Defaults:
    """Calibrate with the defaults on so many answers, and test on as many others."""
    order = random.Random(seed).sample(range(len(rows)), 2 * labels)
    train, test = ([rows[place] for place in part] for part in (order[:labels], order[labels:]))
    reading = reading_of(train[: labels // 2])  # as many as the fitting part has
    items, kinds_from = with_kinds(labelled(train, reading), train)
    found = calibrate_section(items, risk=0.2, delta=0.1, kinds_from=kinds_from, seed=seed)
    sure = np.array([found.section.confidence(item.score) for item in labelled(test, reading)])
    singles = {name: auroc(free(name)(test), test) for name in FREE}
    best = max(singles, key=lambda name: singles[name])
    return Defaults(labels, found.method, auroc(sure, test), best, singles[best])


def promise(rows: Sequence[Row], splits: int, *, risk: float = 0.2, delta: float = 0.1) -> tuple[int, int, float]:
    """Calibrate on random halves, and count how often the promise is broken on the other half.

    Returns:
        How many of the splits found a threshold, how many of these let through a larger share of wrong answers than was
        promised, and the mean share of answers that passed.
    """
    found = broken = 0
    passed = []
    for seed in tqdm(range(splits), desc="promises"):
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        half = len(rows) // 2
        train, test = ([rows[place] for place in part] for part in (order[:half], order[half:]))
        try:
            section = calibrate_section(
                labelled(train, None), method="core", risk=risk, delta=delta, kinds_from="none", seed=seed
            ).section
        except DataError:
            continue
        if section.threshold is None:
            passed.append(0.0)
            continue
        found += 1
        passing = np.array([section.passes(item.score) for item in labelled(test, None)])
        passed.append(float(passing.mean()))
        broken += bool(passing.any() and (~right(test)[passing]).mean() > risk)
    return found, broken, float(np.mean(passed))


@dataclass(frozen=True)
class Notice:
    """How a change from one set of questions to another is noticed.

    `unfamiliar` is the share of the other set's questions with a familiarity of .05 at most, `unfamiliar_before` that
    of fresh questions of the first set. `alarms` counts streams with an alarm after the change, `false` those with one
    before it, and `late` is the median number of answers after the change until the alarm.
    """

    unfamiliar: float
    unfamiliar_before: float
    alarms: int
    false: int
    late: float | None
    streams: int


def notice(before: Sequence[Row], after: Sequence[Row], streams: int, fresh: int = 200) -> Notice:
    """Calibrate on half of one set, answer `fresh` of its other half's questions, then those of another set."""
    alarms, false, late, shares = 0, 0, [], []
    for seed in range(streams):
        rng = random.Random(seed)
        order = rng.sample(list(before), len(before))
        known, likes = order[: len(order) // 2], order[len(order) // 2 :][:fresh]
        reading = reading_of(known[: len(known) // 2])
        seen, same, other = (
            [item.score for item in labelled(rows, reading)]
            for rows in (known[len(known) // 2 :], likes, rng.sample(list(after), min(fresh, len(after))))
        )
        section = with_samples(cover_section(seen, coverage=0.9), seen)
        shares.append(
            [float(np.mean([(section.familiarity(one) or 0) <= _UNFAMILIAR for one in part])) for part in (same, other)]
        )
        watch = Watch(section)
        place = _first_alarm(watch, [*same, *other])
        if place is not None and place < len(same):
            false += 1
        elif place is not None:
            alarms += 1
            late.append(place - len(same) + 1)
    usual, unusual = np.mean(shares, axis=0)
    return Notice(float(unusual), float(usual), alarms, false, float(np.median(late)) if late else None, streams)


def _first_alarm(watch: Watch, scores: Sequence[Score]) -> int | None:
    for place, score in enumerate(scores):
        watch.see(score)
        if watch.alarms:
            return place
    return None
