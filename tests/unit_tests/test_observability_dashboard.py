"""The dashboard asks for metrics and labels that there are, and what is written down is what the code says."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.review import ReviewStatistics
from tools.dashboard import PANELS, dashboard, written_into

DOCS = Path(__file__).parents[2] / "docs"
QUERIES = [query for panel in PANELS for query in panel.queries.values()]


def exposed():
    """Give the labels, with their values, of every sample that a scrape can have."""
    metrics = Metrics()
    metrics.watch_queue(lambda: 0, lambda: 0.0)
    metrics.watch_reviews(lambda: ReviewStatistics(counts={}, decisions={}, oldest=None, approved=None))
    found = {}
    for family in text_string_to_metric_families(metrics.text()[0].decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_queries_ask_for_what_there_is(query):
    samples = exposed()
    names = re.findall(r"\bsemgrad_\w+", query)
    assert names
    assert set(names) <= set(samples)
    for name, label, value in re.findall(r'(semgrad_\w+)\{(\w+)="(\w+)"\}', query):
        assert value in samples[name][label]
    for label in re.findall(r"by \((\w+)\)", query):
        assert all(label in samples[name] for name in names)
    assert query.count("(") == query.count(")")


def test_counters_and_histograms_are_read_as_rates_and_gauges_are_not():
    for query in QUERIES:
        for name in re.findall(r"\bsemgrad_\w+", query):
            cumulative = name.endswith(("_total", "_bucket", "_sum", "_count"))
            assert bool(re.search(rf"(rate|increase)\({name}\b", query)) == cumulative


def test_the_dashboard_that_is_shipped_is_the_code_s():
    shipped = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    assert shipped == dashboard(), "run: python -m tools.dashboard"


def test_every_panel_takes_the_data_source_that_was_chosen_and_has_a_place_of_its_own():
    shown = dashboard()
    (variable,) = shown["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    for panel in shown["panels"]:
        assert {part["datasource"]["uid"] for part in (panel, *panel["targets"])} == {f"${{{variable['name']}}}"}
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in shown["panels"]}
    assert len(places) == len({panel["id"] for panel in shown["panels"]}) == len(PANELS)


def test_every_metric_is_on_the_page():
    page = (DOCS / "observability.md").read_text(encoding="utf-8")
    assert written_into(page) == page, "run: python -m tools.dashboard"
    for name in exposed():
        if name.startswith("semgrad_"):
            assert re.sub("_(bucket|sum|count|created)$", "", name).removesuffix("_total") in page
