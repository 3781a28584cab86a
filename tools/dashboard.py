"""The dashboard for Grafana and the list of metrics, both written from the code: `python -m` this, in a checkout."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.review.items import ReviewStatistics

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT = 8, 8  # of 24 columns
_ABSTAINED = 'decisions_total{decision="abstain"}'
_BETWEEN = re.compile(r"(?<=<!-- metrics -->\n).*?(?=<!-- /metrics -->)", re.DOTALL)


@dataclass(frozen=True)
class Panel:
    """A panel: what it shows, in which unit of Grafana's, and how; queries by their legends."""

    title: str
    about: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"


def _rate(metric: str) -> str:
    return f"rate(semgrad_{metric}[$__rate_interval])"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, sum by (le) ({_rate(metric + '_bucket')}))"


# Several processes are added up, but for what they all read from one database.
PANELS = (
    Panel("Answers", "By decision.", "reqps", {"{{decision}}": f"sum by (decision) ({_rate('decisions_total')})"}),
    Panel(
        "Abstentions",
        "Their share of all answers.",
        "percentunit",
        {"abstained": f"sum({_rate(_ABSTAINED)}) / sum({_rate('decisions_total')})"},
    ),
    Panel(
        "Confidence",
        "Of answers, 0 to 1.",
        "short",
        {"{{le}}": "sum by (le) (increase(semgrad_confidence_bucket[$__rate_interval]))"},
        "heatmap",
    ),
    Panel(
        "Latency",
        "From question to answer.",
        "s",
        {"p50": _quantile(0.5, "answer_seconds"), "p95": _quantile(0.95, "answer_seconds")},
    ),
    Panel(
        "Time in scoring",
        "Share of wall-clock time that a process spends in scoring passes.",
        "percentunit",
        {"mean of processes": f"avg({_rate('backward_seconds_sum')})"},
    ),
    Panel(
        "Batch size",
        "Answers generated together.",
        "short",
        {"mean": f"sum({_rate('batch_rows_sum')}) / sum({_rate('batch_rows_count')})"},
    ),
    Panel("Requests that wait", "In all processes.", "short", {"waiting": "sum(semgrad_queue_depth)"}),
    Panel("Longest wait", "Of the oldest request.", "s", {"oldest": "max(semgrad_queue_age_seconds)"}),
    Panel(
        "Withheld answers",
        "Something else went out in their place; by cause.",
        "reqps",
        {"{{cause}}": f"sum by (cause) ({_rate('withheld_total')})"},
    ),
    Panel("Failures", "By kind.", "reqps", {"{{kind}}": f"sum by (kind) ({_rate('failures_total')})"}),
    Panel(
        "Reviews",
        "Those that wait for a human; no line where the queue cannot be asked.",
        "short",
        {"pending": 'max(semgrad_reviews{status="pending"})', "claimed": 'max(semgrad_reviews{status="claimed"})'},
    ),
    Panel("Oldest review", "Without a decision.", "s", {"oldest": "max(semgrad_review_age_seconds)"}),
    Panel("Review queue", "1 where it can be asked.", "short", {"up": "min(semgrad_reviews_up)"}),
)


def dashboard() -> dict[str, Any]:
    """Give the dashboard, as Grafana imports it; the data source is chosen there."""
    return {
        "uid": "semgrad-guard",
        "title": "SemGrad Guard",
        "tags": ["semgrad"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [_panel(place, panel) for place, panel in enumerate(PANELS)],
    }


def metrics_table() -> str:
    """List every metric of ours, with its labels and its help, as Markdown."""
    metrics = Metrics()
    metrics.watch_queue(lambda: 0, lambda: 0.0)
    metrics.watch_reviews(lambda: ReviewStatistics(counts={}, decisions={}, oldest=None, approved=None))
    rows = []
    for family in metrics.registry.collect():
        if not family.name.startswith("semgrad_"):
            continue
        values: dict[str, set[str]] = {}
        for sample in family.samples:
            for label in set(sample.labels) - {"le"}:
                values.setdefault(label, set()).add(sample.labels[label])
        labels = "; ".join(f"{label}: {', '.join(sorted(names))}" for label, names in values.items())
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |\n")
    return "| metric | type | labels | |\n| --- | --- | --- | --- |\n" + "".join(rows)


def written_into(page: str) -> str:
    """Put the list of metrics between its marks in a page."""
    return _BETWEEN.sub(lambda _: metrics_table(), page)


def _panel(place: int, panel: Panel) -> dict[str, Any]:
    heatmap = panel.kind == "heatmap"
    rows, columns = divmod(place, 24 // _WIDTH)
    return {
        "id": place + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": {"x": columns * _WIDTH, "y": rows * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"calculate": False} if heatmap else {},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                "format": "heatmap" if heatmap else "time_series",
            }
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    Path("docs/grafana.json").write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
    page = Path("docs/observability.md")
    page.write_text(written_into(page.read_text(encoding="utf-8")), encoding="utf-8")
