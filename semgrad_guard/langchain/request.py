"""One call of the model, as it is asked for, and what several calls have in common when they are made as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from semgrad_guard.model.forcing import RowByRow

Gone = Callable[[], bool]
_GONE: ContextVar[Gone | None] = ContextVar("semgrad_guard_gone", default=None)


@dataclass(frozen=True)
class Request:
    """Prompt ids, texts to stop before, schemas of the tools on offer, and settings of the generation.

    The rest belongs to the row, and may differ within a batch: `forced` writes a tool call for the model, `streamer`
    hears the tokens as they come, and once `gone` says so, nobody waits for the answer any more.
    """

    prompt: list[int]
    stop: tuple[str, ...]
    tools: list[dict[str, Any]]
    settings: dict[str, Any]
    forced: LogitsProcessor | None = None
    streamer: BaseStreamer | None = None
    gone: Gone | None = None

    @property
    def kind(self) -> str:
        """What requests of one batch agree in."""
        seeded = self.settings.get("seed") is not None  # beside others it would draw other tokens
        return repr((self.stop, self.tools, self.settings, id(self) if seeded else None))

    @property
    def abandoned(self) -> bool:
        """Tell whether nobody waits for the answer any more."""
        return self.gone is not None and self.gone()


@contextmanager
def until(gone: Gone) -> Iterator[None]:
    """Within it, what this thread or task asks a `ChatSemGrad` ends at its next token once `gone` gives True.

    What ends so raises an `AbandonedError`, and is neither scored nor cached.
    """
    token = _GONE.set(gone)
    try:
        yield
    finally:
        _GONE.reset(token)


def gone_by_now() -> Gone | None:
    """Give what `until` has set; None outside of it."""
    return _GONE.get()


def joint_settings(requests: Sequence[Request]) -> dict[str, Any]:
    """Give the settings of a generation for requests of one kind, each with what belongs to its own row."""
    settings = dict(requests[0].settings)
    if any(request.forced is not None for request in requests):
        forced = RowByRow([request.forced for request in requests], [len(request.prompt) for request in requests])
        settings["logits_processor"] = LogitsProcessorList([*settings.get("logits_processor", ()), forced])
    if any(request.gone is not None for request in requests):
        settings["stopping_criteria"] = StoppingCriteriaList(
            [*settings.get("stopping_criteria", ()), _Abandoned(requests)]
        )
    if any(request.streamer is not None for request in requests):
        settings["streamer"] = _Streamers([request.streamer for request in requests])
    return settings


class _Abandoned(StoppingCriteria):
    """Ends the rows that nobody waits for any more."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        beams = len(input_ids) // len(self._requests)  # several beams of a row lie together
        ended = [request.abandoned for request in self._requests for _ in range(beams)]
        return torch.tensor(ended, device=input_ids.device)


class _Streamers(BaseStreamer):
    """Lets each row of a batch be heard by a streamer of its own."""

    def __init__(self, streamers: Sequence[BaseStreamer | None]) -> None:
        self._streamers = streamers
        self._reading = True  # what is put first is the prompt

    def put(self, value: torch.Tensor) -> None:
        for row, streamer in enumerate(self._streamers):
            if streamer is not None and not self._reading:
                streamer.put(value[row : row + 1])
        self._reading = False

    def end(self) -> None:
        for streamer in self._streamers:
            if streamer is not None:
                streamer.end()
