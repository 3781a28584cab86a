"""What the queue's numbers say: how it stands, who decides what, and whether reviewers agree with the guard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from semgrad_guard.review.items import ReviewVerdict
from semgrad_guard.review.page.words import AtDesk, render

router = APIRouter()
DECISIONS = ("approve", "edit", "reject", "respond")
_BANDS = 5
_POINTS = 100  # of a curve that are shown


@dataclass(frozen=True)
class Share:
    """A reviewer's share: how many decisions of each kind, and the median seconds from claim to decision."""

    reviewer: str
    decisions: dict[str, int]
    seconds: float | None

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.decisions.values())


@dataclass(frozen=True)
class Band:
    """Drafts with a confidence from `low` up to `high`: how many were decided on, and the share approved, in [0, 1]."""

    low: float
    high: float
    count: int
    approved: float | None


@router.get("/statistics")
def show(request: Request, desk: AtDesk) -> Response:
    """Show the statistics."""
    verdicts = desk.queue.verdicts()
    curve = thinned(risk_coverage(verdicts))
    return render(
        request,
        "statistics.html",
        queue=desk.queue.statistics(),
        shares=shares(verdicts),
        bands=bands(verdicts),
        curve=curve,
        line=[(70 + 510 * coverage, 210 - 190 * risk) for coverage, risk in curve],
        known=sum(_known(verdict) for verdict in verdicts),
        decisions=DECISIONS,
    )


def shares(verdicts: Sequence[ReviewVerdict]) -> list[Share]:
    """Tell what each reviewer decided, the busiest first."""
    rows = []
    for reviewer in {verdict.reviewer for verdict in verdicts}:
        theirs = [verdict for verdict in verdicts if verdict.reviewer == reviewer]
        took = [
            (verdict.decided - verdict.claimed).total_seconds() for verdict in theirs if verdict.claimed is not None
        ]
        rows.append(Share(reviewer, Counter(verdict.decision for verdict in theirs), median(took) if took else None))
    return sorted(rows, key=lambda share: (-share.count, share.reviewer))


def bands(verdicts: Sequence[ReviewVerdict]) -> list[Band]:
    """Tell how many drafts were approved, band by band of confidence: where the guard was too careful."""
    rows = []
    for place in range(_BANDS):
        inside = [v for v in verdicts if _known(v) and min(_BANDS - 1, int(_BANDS * (v.confidence or 0.0))) == place]
        approved = sum(verdict.decision == "approve" for verdict in inside)
        share = approved / len(inside) if inside else None
        rows.append(Band(place / _BANDS, (place + 1) / _BANDS, len(inside), share))
    return rows


def risk_coverage(verdicts: Sequence[ReviewVerdict]) -> list[tuple[float, float]]:
    """Give (coverage, risk) over decided drafts, the surest first: what share of the surest so many was wrong.

    A draft was right if it was approved, and wrong if it was edited, rejected or answered otherwise. Drafts of the same
    confidence count together.
    """
    known = sorted((v for v in verdicts if _known(v)), key=lambda v: v.confidence or 0.0, reverse=True)
    points, wrong = [], 0
    for place, verdict in enumerate(known, start=1):
        wrong += verdict.decision != "approve"
        if place == len(known) or known[place].confidence != verdict.confidence:
            points.append((place / len(known), wrong / place))
    return points


def thinned(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out points of a curve that has too many to show; the last one stays."""
    step = math.ceil(len(curve) / _POINTS) or 1
    return [point for place, point in enumerate(reversed(curve)) if place % step == 0][::-1]


def _known(verdict: ReviewVerdict) -> bool:
    return verdict.confidence is not None and math.isfinite(verdict.confidence)
