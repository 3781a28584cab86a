"""One call of the model, as it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import LogitsProcessor, LogitsProcessorList

from semgrad_guard.model.forcing import RowByRow


@dataclass(frozen=True)
class Request:
    """Prompt ids, texts to stop before, schemas of the tools on offer, and settings of the generation.

    `forced` writes a tool call for the model; it belongs to the prompt, everything else may be shared by others.
    """

    prompt: list[int]
    stop: tuple[str, ...]
    tools: list[dict[str, Any]]
    settings: dict[str, Any]
    forced: LogitsProcessor | None = None

    @property
    def kind(self) -> str:
        """What requests of one batch agree in."""
        return repr((self.stop, self.tools, self.settings))


def joint_settings(requests: Sequence[Request]) -> dict[str, Any]:
    """Give the settings of a generation for requests of one kind, each with its own forced call."""
    settings = requests[0].settings
    if all(request.forced is None for request in requests):
        return settings
    forced = RowByRow([request.forced for request in requests], [len(request.prompt) for request in requests])
    return settings | {"logits_processor": LogitsProcessorList([*settings.get("logits_processor", ()), forced])}
