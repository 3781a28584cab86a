"""The HTTP application: OpenAI's routes over an engine, which it knows nothing more of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from semgrad_guard import __version__
from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.serving import replies
from semgrad_guard.serving.requests import (
    ChatRequest,
    RefusedError,
    ScoreRequest,
    error_response,
    responses,
    shape_errors,
)
from semgrad_guard.serving.service import Service, Terms, in_json
from semgrad_guard.serving.work import Engine

OPEN_PATHS = ("/healthz", "/readyz")  # the only ones without a key


class _Documented(FastAPI):
    """Documents what is answered, not what FastAPI would answer by itself."""

    def openapi(self) -> dict[str, Any]:
        """Give the document: what cannot be understood is answered 400, and a key may be needed."""
        document = super().openapi()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if path not in OPEN_PATHS:
                    operation["security"] = [{"key": []}]
        schemas = document["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return document


def application(engine: Engine, terms: Terms | None = None, metrics: Metrics | None = None) -> FastAPI:
    """Build the application.

    Args:
        engine: answers; it is started and stopped with the application.
        terms: what requests may have.
        metrics: told of every answer and failure, and shown at /metrics; None for none.
    """
    service = Service(engine, terms or Terms(), metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop(service.terms.grace)

    app = _Documented(
        title="semgrad-guard",
        version=__version__,
        description="OpenAI-compatible completions of a local model that carry their confidence.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    shape_errors(app)
    told_of_one, waits = responses(404), responses(404, 429, 500, 503, 504)
    streams = _also("text/event-stream")

    @app.post("/v1/chat/completions", response_model=replies.Completion, responses=streams | waits)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, with the record of how sure the answer is."""
        return await service.chat(body, request)

    @app.post("/v1/score", response_model=replies.Scored, responses=waits)
    async def score(body: ScoreRequest, request: Request) -> Response:
        """Tell how sure an answer is that was given elsewhere with the same weights."""
        return await service.score(body, request)

    @app.get("/v1/models", response_model=replies.Models, responses=responses())
    async def models() -> Response:
        """List the models."""
        return in_json(replies.Models(data=[service.model()]))

    @app.get("/v1/models/{model:path}", response_model=replies.Model, responses=told_of_one)
    async def model(model: str) -> Response:
        """Tell of a model."""
        try:
            service.check_model(model)
        except RefusedError as error:
            return error_response(error)
        return in_json(service.model())

    @app.get("/healthz", response_model=replies.State)
    async def healthz() -> Response:
        """Tell that the process lives."""
        return in_json(replies.State(status="alive"))

    @app.get("/readyz", response_model=replies.State, responses={503: {"model": replies.State}})
    async def readyz() -> Response:
        """Tell whether requests are taken."""
        ready = await engine.ready()
        return in_json(replies.State(status="ready" if ready else "not ready"), 200 if ready else 503)

    if metrics is not None:

        @app.get("/metrics", response_class=Response, responses=_also("text/plain") | responses())
        async def show_metrics() -> Response:
            """Give the metrics in Prometheus' format."""
            body, kind = await asyncio.to_thread(metrics.text)
            return Response(body, headers={"Content-Type": kind})

    return app


def _also(kind: str) -> dict[int | str, dict[str, Any]]:
    """Document that an answer may be of another kind than JSON."""
    return {200: {"content": {kind: {}}}}
