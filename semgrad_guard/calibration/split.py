"""Which questions serve which purpose: parts drawn by chance, with right and wrong answers in proportion in each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise

from semgrad_guard.errors import DataError

_PARTS = ("fit on", "choose thresholds from", "test on")
_SHARES = (0.5, 0.15, 0.35)


def part_of(labels: Iterable[tuple[str, bool]], seed: int) -> dict[str, int]:
    """Split what questions are about: 0 to fit on, 1 to choose thresholds from, 2 to test them on.

    Args:
        labels: what each answer is about, and whether it is right.
        seed: of the draw.

    Raises:
        DataError: there are too few to have some of each.
    """
    part = _stratified(labels, _SHARES, seed)
    for index, name in enumerate(_PARTS):
        if index not in part.values():
            raise DataError(f"Labelled answers about {len(part)} things leave none to {name}; give more of them.")
    return part


def first_half(labels: Iterable[tuple[str, bool]], seed: int) -> set[str]:
    """Draw one half of what questions are about."""
    return {about for about, index in _stratified(labels, (0.5, 0.5), seed).items() if index == 0}


def _stratified(labels: Iterable[tuple[str, bool]], shares: Sequence[float], seed: int) -> dict[str, int]:
    """Draw parts of given shares from groups whose answers are all wrong, of both kinds, and all right.

    Each part has its share of each of the three, to within one group, and its share of all.

    The promise of a threshold rests on the part that it is tested on. Which groups of a kind are tested is chance, so
    that their scores are those of fresh groups of that kind, and tell nothing of the groups that were fitted on. Only
    the number of wrong groups in the test is no longer drawn by chance from all: it is their share, rounded. Its mean
    is the same and its variance smaller, so that errors among those that pass are spread less than the binomial
    distribution says. Few errors at a threshold that is too loose are then less probable: the exact test is on the safe
    side. tests/unit_tests/test_guarantee.py simulates it.
    """
    kinds: dict[str, set[bool]] = {}
    for about, correct in labels:
        kinds.setdefault(about, set()).add(correct)
    rng, part, start = random.Random(seed), dict[str, int](), 0
    cumulated = [0.0, *(sum(shares[: index + 1]) for index in range(len(shares)))]
    for kind in ({False}, {False, True}, {True}):
        groups = sorted(about for about, own in kinds.items() if own == kind)
        rng.shuffle(groups)
        end = start + len(groups)
        # Of the first n groups, a share of n: rounding over all kinds together keeps the parts' sizes.
        sizes = [round(share * end) - round(share * start) for share in cumulated]
        for index, (first, last) in enumerate(pairwise(sizes)):
            part |= dict.fromkeys(groups[first:last], index)
        start = end
    return part
