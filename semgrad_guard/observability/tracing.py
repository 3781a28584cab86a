"""Spans for OpenTelemetry: what a guard or chat model did, how long each step took, and what was decided. Extra `otel`.

Texts are left out unless they are asked for: of questions, answers, reasons, and messages of errors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage

from semgrad_guard import __version__
from semgrad_guard.errors import needs
from semgrad_guard.langchain.drafts import in_metadata
from semgrad_guard.langchain.messages import to_messages
from semgrad_guard.observability.runs import RunTree, Start

with needs("otel", "Tracing needs opentelemetry"):
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider, set_span_in_context

# OpenTelemetry's conventions for generative AI are in development, and its package of constants changes with them.
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
EVALUATION = "gen_ai.evaluation.result"
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_VALUE = "gen_ai.evaluation.score.value"
EVALUATION_LABEL = "gen_ai.evaluation.score.label"
EVALUATION_EXPLANATION = "gen_ai.evaluation.explanation"
ERROR = "error.type"

_OURS = "semgrad"  # the provider that our chat models name
# The guard's steps that are chains: the input of each, which its metadata repeat (so that no chain of a user's own is
# taken for one), and what is told of how it ended.
_STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "score": ("grounded", ("passed", "confidence", "threshold", "method")),
    "route": ("route", ("settled",)),
}
# What ends a run and is no failure: LangGraph's interrupts, by name since it may not be there; consumers that leave.
_ON_PURPOSE = ("GraphBubbleUp", "GeneratorExit", "CancelledError")


@dataclass(eq=False)
class _Run:
    """A run, with its span once it has one.

    A run that is nothing to us gets none, except the first of a tree: then what happened in one call is one trace.
    """

    start: Start
    parent: _Run | None
    begun: int
    ambient: contexts.Context
    over: bool = False
    span: Span | None = None
    step: str = ""
    guard: _Run | None = None
    usage: dict[str, int] = field(default_factory=dict)

    def context(self) -> contexts.Context:
        """The context in which spans below this run begin."""
        if self.span is not None:
            return set_span_in_context(self.span, self.ambient)
        return self.ambient if self.parent is None else self.parent.context()


class Tracing(RunTree[_Run]):
    """A callback handler that makes spans.

    A chat model gives a span `chat {model}`; so does a guard, with its steps `semgrad.generate`, `semgrad.score` and
    `semgrad.route` below it, and an event `gen_ai.evaluation.result` with confidence and decision. Spans begin below
    the span that is current where LangChain is called.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None, *, record_content: bool = False) -> None:
        """Set where spans go.

        Args:
            tracer_provider: None for the process's own.
            record_content: also tell questions, answers, reasons, and the messages and tracebacks of errors. Drafts
                that a guard held back stay unseen, unless it has `record_drafts`.
        """
        super().__init__()
        self._tracer = trace.get_tracer("semgrad_guard", __version__, tracer_provider)
        self._content = record_content
        self._lock = Lock()  # rows of a batch may be the first below their parent at once

    def began(self, parent: _Run | None, start: Start) -> _Run:
        """Take note of a run, with a span if it is one of ours."""
        ambient = contexts.get_current() if parent is None else parent.ambient
        run = _Run(start, parent, time.time_ns(), ambient)
        with self._lock:
            if start.chat:
                self._begin_chat(run)
            elif start.name in _STEPS and parent is not None:
                self._begin_step(run, parent)
        return run

    def ended(self, run: _Run, id_: UUID, inputs: Any, output: Any, error: BaseException | None) -> None:
        """End the span, with what came of the run."""
        with self._lock:
            run.over = True
        if run.span is None:
            return
        try:
            if error is not None:
                self._fail(run.span, error)
            if run.step in _STEPS and isinstance(output, Mapping):
                _set(run.span, {f"semgrad.{name}": output.get(name) for name in _STEPS[run.step][1]})
            elif run.step in ("chat", "generate"):
                self._end_chat(run, run.start.given if inputs is None else inputs, output)
        finally:
            run.span.end()

    def decided(self, run: _Run, decision: Mapping[str, Any]) -> None:
        """Add the event."""
        with self._lock:
            span = self._guard_span(run)
        attributes = {
            EVALUATION_NAME: "semgrad",
            EVALUATION_VALUE: decision["confidence"],
            EVALUATION_LABEL: decision["decision"],
            EVALUATION_EXPLANATION: decision["reason"] if self._content else None,
        }
        if span is not None:
            span.add_event(EVALUATION, {name: value for name, value in attributes.items() if value is not None})

    def _begin_chat(self, run: _Run) -> None:
        provider, model = (run.start.metadata.get(f"ls_{name}") for name in ("provider", "model_name"))
        if run.start.name == "generate" and provider == _OURS and run.parent is not None:
            run.step = "generate"
            run.guard = run.parent.parent if run.parent.step == "route" else run.parent
            span = None if run.guard is None else self._guard_span(run.guard)
            self._begin(run, "semgrad.generate")
        else:
            run.step = "chat"
            span = self._begin(run, "chat", SpanKind.INTERNAL if provider == _OURS else SpanKind.CLIENT)
        if span is not None:
            span.update_name(f"chat {model}" if model else "chat")
            _set(span, {OPERATION: "chat", PROVIDER: provider, MODEL: model or None})

    def _begin_step(self, run: _Run, parent: _Run) -> None:
        name, _ = _STEPS[run.start.name]
        inputs, metadata = run.start.given, run.start.metadata
        if in_metadata(name) in metadata and inputs == {name: metadata[in_metadata(name)]}:
            run.step = run.start.name
            self._guard_span(parent)
            _set(self._begin(run, f"semgrad.{run.step}"), {f"semgrad.{name}": inputs[name]})

    def _guard_span(self, run: _Run) -> Span | None:
        """Give the span of a run that turns out to be a guard's; None if it is over."""
        if run.span is None and not run.over:
            run.step = "chat"
            _set(self._begin(run, "chat"), {OPERATION: "chat", PROVIDER: _OURS})
        return run.span

    def _begin(self, run: _Run, name: str, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        first = run
        while first.parent is not None:
            first = first.parent
        if first.span is None and first is not run and not first.over:
            first.span = self._tracer.start_span(first.start.name, first.ambient, start_time=first.begun)
        above = run.ambient if run.parent is None else run.parent.context()
        run.span = self._tracer.start_span(name, above, kind, start_time=run.begun)
        return run.span

    def _end_chat(self, run: _Run, inputs: Any, output: Any) -> None:
        message = output if isinstance(output, AIMessage) else None
        if run.guard is not None:
            _add(run.guard.usage, message)
        else:
            if run.start.chat:
                _add(run.usage, message)
            reason = message and message.response_metadata.get("finish_reason")
            _set(run.span, {**run.usage, FINISH_REASONS: [str(reason)] if reason else None})
        if self._content:
            _set(run.span, {INPUT_MESSAGES: _shown(to_messages(inputs))})
            if message is not None:
                _set(run.span, {OUTPUT_MESSAGES: _shown([message])})

    def _fail(self, span: Span, error: BaseException) -> None:
        kind = type(error).__qualname__
        if any(base.__name__ in _ON_PURPOSE for base in type(error).__mro__):
            span.add_event("interrupted", {"exception.type": kind})
            return
        if self._content:
            span.record_exception(error)
        else:
            span.add_event("exception", {"exception.type": kind})
        span.set_attribute(ERROR, kind)
        span.set_status(StatusCode.ERROR, kind)


def _set(span: Span | None, attributes: Mapping[str, Any]) -> None:
    if span is not None:
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def _add(usage: dict[str, int], message: AIMessage | None) -> None:
    if message is not None and message.usage_metadata is not None:
        for name, tokens in (
            (INPUT_TOKENS, message.usage_metadata["input_tokens"]),
            (OUTPUT_TOKENS, message.usage_metadata["output_tokens"]),
        ):
            usage[name] = usage.get(name, 0) + tokens


def _shown(messages: list[BaseMessage]) -> str:
    return json.dumps(
        [
            {
                "role": {"human": "user", "ai": "assistant"}.get(message.type, message.type),
                "parts": [
                    *([{"type": "text", "content": str(message.text)}] if message.text else []),
                    *(
                        {"type": "tool_call", "name": call["name"], "arguments": call["args"]}
                        for call in getattr(message, "tool_calls", ())
                    ),
                ],
            }
            for message in messages
        ],
        default=str,
    )
