"""Spans and metrics of the embedded model, and the page about them, block by block."""

import logging
import re
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from semgrad_guard import BM25Retriever, Retrieve, SemGradGuard, get_decision
from semgrad_guard.demo import embedded_model, embedded_profile
from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.observability.tracing import Tracing

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"


@pytest.fixture(scope="module")
def guard():
    passages = BM25Retriever.from_texts(["The capital of Zubrovia is Lutz."])
    return SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[Retrieve(passages)])


def test_spans_and_metrics_of_a_batch(guard):
    exporter, provider, metrics = InMemorySpanExporter(), TracerProvider(), Metrics()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    questions = ["What is the capital of France?", "What is the capital of Zubrovia?"]
    with metrics.listen():
        answers = guard.llm.batch(questions, {"callbacks": [Tracing(provider)]})
        guarded = [guard.invoke(question, {"callbacks": [Tracing(provider)]}) for question in questions]
    for answer in guarded:
        metrics.answered(get_decision(answer), 0.1)
    name = guard.llm.model_name
    spans = exporter.get_finished_spans()
    chats = [span for span in spans if span.name == f"chat {name}"]
    assert len(chats) == 4
    usage = [answer.usage_metadata["output_tokens"] for answer in answers]
    assert sorted(span.attributes["gen_ai.usage.output_tokens"] for span in chats[:2]) == sorted(usage)
    assert [span.events[0].attributes["gen_ai.evaluation.score.label"] for span in chats[2:]] == ["pass", "retrieve"]
    assert chats[3].attributes["gen_ai.usage.input_tokens"] > chats[2].attributes["gen_ai.usage.input_tokens"]
    assert [span.name for span in spans].count("semgrad.generate") == 3
    told = "".join(span.to_json() for span in spans)
    assert not [word for word in ("Paris", "Lutz", "France", "Zubrovia", "capital") if word in told]
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.text()[0].decode())
        for sample in family.samples
    }
    assert samples["semgrad_scored_rows_total"] == 5
    assert samples["semgrad_backward_seconds_count"] == 4  # the batch is one pass
    assert samples["semgrad_backward_seconds_sum"] > 0
    assert samples["semgrad_confidence_count"] == 2


def test_the_page_s_blocks_run_in_order(capsys):
    root = logging.getLogger()
    handlers, namespace = list(root.handlers), {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    levels = {name: logging.getLogger(name).level for name in ("semgrad_guard", "uvicorn")}
    try:
        for number, block in enumerate(blocks):
            exec(compile(block, f"block {number} of {PAGE.name}", "exec"), namespace)
    finally:
        root.handlers[:] = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert len(blocks) == 4
    assert b'semgrad_decisions_total{decision="pass"} 1.0' in namespace["body"]
    said = capsys.readouterr().out
    assert said == f"['semgrad.generate', 'semgrad.score', 'chat {namespace['guard'].llm.model_name}']\n"
