"""What a worker is built from: a plain record, so that every process can build its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import uvicorn
from pydantic import BeforeValidator, Field
from starlette.types import ASGIApp

from semgrad_guard.calibration.profile import Profile, agreed_prompt, agreed_scoring
from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.calibration.verdict import checked_raw
from semgrad_guard.demo.embedded import PROFILE, embedded_model
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.langchain.guard import SemGradGuard
from semgrad_guard.langchain.passages import BM25Retriever
from semgrad_guard.langchain.routes import Retrieve
from semgrad_guard.model.load import load_model
from semgrad_guard.records import checked_confidence
from semgrad_guard.routing.ladder import Route
from semgrad_guard.routing.routes import Queue
from semgrad_guard.serving.app import OPEN_PATHS
from semgrad_guard.serving.work import Engine, Limits, Record
from semgrad_guard.serving.worker import Worker
from semgrad_guard.settings import check_seconds
from semgrad_guard.web.keys import LOCAL_HOSTS, ApiKeys, check_address
from semgrad_guard.web.shelter import KEPT, Patient, sheltered

DEMO = "demo"  # the id of the embedded model


class Setup(Record):
    """Which model is served, and how.

    Args:
        model: hub id, folder or GGUF file; None for the embedded model.
        revision: of a hub id.
        dtype: precision of the weights; None for the model's own.
        quiet: show no progress while it is loaded.
        profile: file of the profile; None for the embedded model's own, or none.
        threshold: least confidence that passes, in [0, 1]; None for the profile's.
        score_threshold: without a profile, the largest raw SemGrad score that passes; for experts.
        passages: texts to retrieve from before the policy decides; none: nothing is retrieved.
        reviews: URL of the review queue; None for none.
        limits: what a job may take.
        scored: False answers without scoring, for measuring what scoring costs.
        device: that the model is put on, as PyTorch names it.
        prompt: what is put around the question of every request; None for what the profile was calibrated with.
        max_new_tokens: longest answer where a request does not say; None for the model's own.
        token_position: t*, from the prompt's end; None for the profile's, or the template's.
    """

    model: str | None = None
    revision: str | None = None
    dtype: str | None = None
    quiet: bool = False
    profile: Path | None = None
    threshold: Annotated[float | None, BeforeValidator(partial(checked_confidence, "threshold"))] = None
    score_threshold: Annotated[float | None, BeforeValidator(checked_raw)] = None
    passages: tuple[str, ...] = ()
    reviews: str | None = None
    limits: Limits = Limits()
    scored: bool = True
    device: str = "cpu"
    prompt: PromptForm | None = None
    max_new_tokens: int | None = Field(default=None, ge=1)
    token_position: int | None = Field(default=None, ge=1)

    def worker(self) -> Worker:
        """Load the model, and build the worker.

        Raises:
            SemGradError: the model cannot be loaded or scored, the profile is of another, or the queue out of reach.
        """
        profile = self.profile
        if self.model is None and profile is None and self.score_threshold is None:
            profile = PROFILE
        loaded = None if profile is None else Profile.load(profile)
        prompt, scoring = agreed_prompt(loaded, self.prompt), agreed_scoring(loaded, self.token_position)
        if self.model is None:
            source = embedded_model()
            torch.nn.Module.to(source[0], self.device)
        else:
            source = load_model(
                self.model, revision=self.revision, dtype=self.dtype, device=self.device, quiet=self.quiet
            )
        generation = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        chat = ChatSemGrad.from_model(
            *source, batch_size=self.limits.batch_size, scored=self.scored, generation=generation, scoring=scoring
        )
        reviews: Queue | None = None
        if self.reviews is not None:
            from semgrad_guard.review import ReviewQueue  # the service works without the extra

            reviews = ReviewQueue(self.reviews)
        first: list[Route] = [Retrieve(BM25Retriever.from_texts(self.passages))] if self.passages else []
        return Worker(
            SemGradGuard(
                chat,
                profile=loaded,
                threshold=self.threshold,
                score_threshold=self.score_threshold if self.scored or loaded is not None else 0.0,
                prompt=prompt,
            ),
            name=DEMO if self.model is None else self.model,
            first=first,
            reviews=reviews,
            limits=self.limits,
        )


_CLOSING = 5  # seconds for what is left to be told that it is over


class Server(uvicorn.Server):
    """A uvicorn server that goes on listening while accepted jobs end, so that /readyz can say what is going on."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float) -> None:
        """Take the engine that is to end its jobs, within so many seconds."""
        super().__init__(config)
        self._engine, self._grace = engine, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the engine end, unless that is cut short by a second interrupt, and then stop listening."""
        ending = asyncio.create_task(self._engine.stop(self._grace))
        while not ending.done() and not self.force_exit:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


def server(
    app: ASGIApp,
    engine: Engine,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    names: Sequence[str] = (),
    keys: ApiKeys | None = None,
    grace: float = 30.0,
    max_bytes: int = 1_000_000,
) -> Server:
    """Build the server of an application; its `run` serves until it is interrupted.

    Args:
        app: the application.
        engine: what answers behind it.
        host: address to listen to; without keys, one that only this machine can reach.
        port: to listen to; 0 for any that is free.
        names: hosts that requests may name, beside this machine and `host`.
        keys: who gets in; None or none: everybody on this machine.
        grace: seconds that accepted requests have when the server is stopped.
        max_bytes: the longest body that is read.

    Raises:
        ConfigurationError: others could reach it, and it has no keys; or `grace` is no number of seconds, >= 0.
    """
    check_address(host, keys or ApiKeys())
    check_seconds("grace", grace, zero=True)
    sheltering = sheltered(
        app, hosts=[*LOCAL_HOSTS, host, *names], keys=keys, open_paths=OPEN_PATHS, max_bytes=max_bytes
    )
    config = uvicorn.Config(
        sheltering,
        host=host,
        port=port,
        log_config=None,  # whoever runs it decides where logs go, and that they tell no text
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http=Patient,
        ws="none",
        timeout_keep_alive=KEPT,
        timeout_graceful_shutdown=_CLOSING,
    )
    return Server(config, engine, grace)
