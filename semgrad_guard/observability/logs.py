"""Structured logs: one JSON object a line, with the span it belongs to, and without the messages of foreign errors."""

from __future__ import annotations

import copy
import json as json_
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from semgrad_guard.errors import described

_PACKAGE = "semgrad_guard"
# What every record has; names with an underscore are of libraries that watch logs, such as Ray.
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_Failure = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class PlainFormatter(logging.Formatter):
    """Lines of text; of an exception they tell type and place, since its message may quote what was asked."""

    def __init__(self) -> None:
        """Set the line."""
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Give the line, whatever another formatter may have left on the record."""
        copied = copy.copy(record)
        copied.exc_text = None
        return super().format(copied)

    def formatException(self, ei: _Failure) -> str:  # noqa: N802  (logging's own name)
        """Tell type and place."""
        return "" if ei[1] is None else described(ei[1])


class JsonFormatter(PlainFormatter):
    """Lines of JSON: time, level, logger, message, whatever was given as `extra`, and the current span's ids."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"},
            **_span(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json_.dumps(line, ensure_ascii=False, default=repr)


def configure_logging(
    *, json: bool = True, level: int | str = "INFO", also: Iterable[str] = (), stream: TextIO | None = None
) -> None:
    """Send logs to a stream; for programs of one's own, since a library leaves that to them. Again, it starts anew.

    Args:
        json: one JSON object a line; else plain text.
        level: what the package's own loggers tell from; no level tells texts of prompts, answers or sources.
        also: other loggers to hear from that level, such as "uvicorn"; of all others, warnings are told. What they tell
            is up to them, but for exceptions, whose messages are left out.
        stream: None for stderr.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler.formatter, PlainFormatter)]:
        root.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if json else PlainFormatter())
    root.addHandler(handler)
    for name in (_PACKAGE, *also):
        logging.getLogger(name).setLevel(level)


def _span() -> dict[str, str]:
    trace = sys.modules.get("opentelemetry.trace")  # where nobody has imported it, there is no span
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}
