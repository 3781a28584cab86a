"""What is behind the routes: requests become jobs of an engine, and results or failures become replies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.serving import replies
from semgrad_guard.serving.requests import (
    ChatRequest,
    DeadlineError,
    GoneError,
    RefusedError,
    ScoreRequest,
    brief,
    error_response,
    failure_of,
)
from semgrad_guard.serving.work import ChatAnswer, ChatJob, Engine, Judgement, PolicyName, Record
from semgrad_guard.settings import Seconds, SecondsOrZero

T = TypeVar("T")

_DRAFTS = "drafts that are not sure go out only where the policy 'annotate' is allowed, which it is not here"


class Terms(Record):
    """What requests may have: policies, and time.

    `policy` is what becomes of answers that are not sure where the request does not say; `policies` are those it may
    ask for. Without "annotate" among them no draft goes out that is not sure: a request can then neither lower the
    threshold nor stream drafts. `deadline` is how many seconds a request may take, `grace` how many those that are
    accepted have when the service is stopped.
    """

    policy: PolicyName = "abstain"
    policies: tuple[PolicyName, ...] = ("abstain", "annotate", "review")
    deadline: Seconds = 60.0
    grace: SecondsOrZero = 30.0


class Service:
    """What is behind the routes."""

    def __init__(self, engine: Engine, terms: Terms, metrics: Metrics | None) -> None:
        """Serve an engine on terms, and tell metrics of it."""
        self.engine, self.terms, self.metrics = engine, terms, metrics
        self._since = int(time.time())

    def policies(self) -> list[PolicyName]:
        """List the policies that a request may ask for."""
        return [policy for policy in self.engine.card.policies if policy in self.terms.policies]

    def model(self) -> replies.Model:
        """Tell of the model."""
        return replies.model(self.engine.card, self.terms.policy, self.policies(), self._since)

    def check_model(self, name: str) -> None:
        """Refuse any model but the one that is served."""
        if name != (served := self.engine.card.id):
            raise RefusedError(404, "model_not_found", f"The model {brief(name)!r} is not served here; {served!r} is.")

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        began, seconds = time.monotonic(), self._seconds(body.semgrad.timeout)
        try:
            self.check_model(body.model)
            self._check_policy(body)
            jobs = body.jobs(self.terms.policy)
            if body.semgrad.stream == "verdict":
                return await self._verdict(jobs[0], body, request, began, seconds)
            answers = await _unless_gone(request, seconds, _all(self.engine, jobs))
        except Exception as error:  # whatever it is, the client gets an answer of the right shape
            return self._failed(error)
        for answer in answers:
            self._count(answer.judgement, began)
        if body.stream:
            return _events(_decided(replies.Chunks(self.engine.card), answers, _wants_usage(body)))
        return in_json(replies.completion(self.engine.card, answers))

    async def score(self, body: ScoreRequest, request: Request) -> Response:
        """Score an answer from elsewhere."""
        began, seconds = time.monotonic(), self._seconds(body.semgrad.timeout)
        try:
            self.check_model(body.model)
            answer = await _unless_gone(request, seconds, self.engine.answer(body.job()))
        except Exception as error:  # whatever it is, the client gets an answer of the right shape
            return self._failed(error)
        self._count(answer.judgement, began)
        return in_json(replies.scored(self.engine.card, answer))

    async def _verdict(
        self, job: ChatJob, body: ChatRequest, request: Request, began: float, seconds: float
    ) -> Response:
        """Stream the draft as it comes; what fails before its first piece has a status of its own."""
        pieces = self.engine.stream(job)
        first = await _unless_gone(request, seconds, anext(pieces))
        chunks = replies.Chunks(self.engine.card)

        async def events() -> AsyncGenerator[dict[str, Any]]:
            piece, shown = first, ""
            yield chunks.begin()
            async with aclosing(pieces):
                try:
                    while isinstance(piece, str):
                        shown += piece
                        yield chunks.text(piece)
                        async with asyncio.timeout(began + seconds - time.monotonic()):
                            piece = await anext(pieces)
                except Exception as error:  # the status has gone out; the error goes where the rest would have
                    late = DeadlineError(seconds) if isinstance(error, TimeoutError) else error
                    yield json.loads(bytes(self._failed(late).body))
                    return
            for chunk in chunks.rest(piece, shown):
                yield chunk
            if _wants_usage(body):
                yield chunks.usage([piece])
            self._count(piece.judgement, began)

        return _events(events())

    def _seconds(self, seconds: float | None) -> float:
        return min(self.terms.deadline, seconds or self.terms.deadline)

    def _check_policy(self, body: ChatRequest) -> None:
        options, allowed, least = body.semgrad, self.policies(), self.engine.card.least_threshold
        if options.policy is not None and options.policy not in allowed:
            raise RefusedError(
                400, "policy", f"semgrad.policy {options.policy!r} is not allowed here; expected {', '.join(allowed)}."
            )
        if "annotate" in allowed:
            return
        if options.stream == "verdict":
            raise RefusedError(400, "policy", f"semgrad.stream 'verdict': {_DRAFTS}.")
        if options.threshold is not None and (least is None or not options.threshold >= least):
            raise RefusedError(400, "policy", f"semgrad.threshold {options.threshold:g} is too low: {_DRAFTS}.")

    def _count(self, judgement: Judgement, began: float) -> None:
        if self.metrics is not None:
            self.metrics.answered(judgement, time.monotonic() - began)

    def _failed(self, error: Exception) -> Response:
        kind = failure_of(error)
        if self.metrics is not None and kind is not None:
            self.metrics.failed(kind)
        return error_response(error)


async def _all(engine: Engine, jobs: Sequence[ChatJob]) -> list[ChatAnswer]:
    """Do jobs at the same time; where one fails, the others are dropped."""
    tasks = [asyncio.ensure_future(engine.answer(job)) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _unless_gone(request: Request, seconds: float, work: Awaitable[T]) -> T:
    """Wait for a result, as long as there is time and the client is there; else the work is cancelled.

    Raises:
        DeadlineError: time is up.
        GoneError: the client has gone.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise GoneError if watch.done() else DeadlineError(seconds)
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _decided(
    chunks: replies.Chunks, answers: Sequence[ChatAnswer], with_usage: bool
) -> AsyncGenerator[dict[str, Any]]:
    """Yield the chunks of answers that are decided."""
    for place, answer in enumerate(answers):
        yield chunks.begin(place)
        for chunk in chunks.rest(answer, index=place):
            yield chunk
    if with_usage:
        yield chunks.usage(answers)


def _events(chunks: AsyncGenerator[dict[str, Any]]) -> StreamingResponse:
    async def lines() -> AsyncGenerator[str]:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
            yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _wants_usage(body: ChatRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


def in_json(reply: BaseModel, status: int = 200) -> Response:
    """Give a reply as JSON; numbers that are not finite are null."""
    return Response(reply.model_dump_json(), status, media_type="application/json")
