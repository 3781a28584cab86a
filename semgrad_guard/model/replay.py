"""Run the end of a sequence again, with gradients, on top of what is already known of its beginning.

Positions before the semantic preserving token t* do not depend on it: their keys and values are constants. So only
the suffix, from t* on, is run again. No hook is set, nothing of the user's model is touched: the gradient starts at the
suffix's own input embeddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from semgrad_guard.model.mirror import mirror
from semgrad_guard.records import GenerationBatch, Path


@dataclass(frozen=True)
class Layout:
    """Rows of one replay: prompts padded on the left, responses on the right.

    `ids` and `attended` are [B, P + T]; `mask` [B, T] marks response tokens; `start` is the column of t*.
    """

    ids: Tensor
    attended: Tensor
    mask: Tensor
    start: int

    @property
    def targets(self) -> Tensor:
        """Response ids, [B, T]; padding where the mask is False."""
        return self.ids[:, -self.mask.shape[1] :]

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        position: int,
        device: torch.device,
        prompt_width: int | None = None,
    ) -> Layout:
        """Lay out rows; `position` counts prompt tokens from the end, 1 being the last."""
        left = max(len(prompt) for prompt in prompts) if prompt_width is None else prompt_width
        right = max(len(response) for response in responses)
        ids = torch.zeros(len(prompts), left + right, dtype=torch.long)
        attended = torch.zeros_like(ids)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            begin, end = left - len(prompt), left + len(response)
            ids[row, begin:end] = torch.tensor([*prompt, *response])
            attended[row, begin:end] = 1
        mask = attended[:, left:].bool()
        return cls(ids.to(device), attended.to(device), mask.to(device), left - position)


@dataclass(frozen=True, eq=False)
class Replay:
    """The graph of a replay: `hidden[l]` is [B, N, D]; t* is its column `anchor`; the last T columns predict y."""

    hidden: tuple[Tensor, ...]
    anchor: int
    path: Path


def replay(model: PreTrainedModel, layout: Layout, batch: GenerationBatch | None, rows: Sequence[int]) -> Replay:
    """Run the suffix again on the best path that is exact for this model.

    "cache": on the generation's key-value cache; "prefix": the positions before t* are run again first, without
    gradients; "full": everything is run again, for models that keep a running state instead of keys and values.
    """
    if any(DynamicCache(config=model.config).is_linear):
        return Replay(_forward(model, layout, 0, None), layout.start, "full")
    past = None if batch is None else _sliced(batch, rows, layout.start)
    path: Path = "cache"
    if past is None:
        past, path = DynamicCache(), "prefix"
        if layout.start > 0:
            with torch.no_grad():
                _decode(model, layout, slice(0, layout.start), past)
    return Replay(_forward(model, layout, layout.start, past), 0, path)


def _sliced(batch: GenerationBatch, rows: Sequence[int], length: int) -> DynamicCache | None:
    """View the first positions of a generation's cache; None where it does not hold them as plain keys and values.

    A static cache holds them, but belongs to the model, whose next generation writes over it.
    """
    held = batch.sequence_width - 1
    if getattr(batch.cache, "offloading", False):
        return None
    sliced = DynamicCache()
    for layer in batch.cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return None
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.shape[-2] != held:
            return None  # a window has already dropped its oldest positions
        if len(rows) != keys.shape[0] or list(rows) != list(range(len(rows))):
            index = torch.tensor(rows, device=keys.device)
            keys, values = keys[index], values[index]
        view = DynamicLayer()
        view.lazy_initialization(keys, values)
        view.keys, view.values = keys[..., :length, :], values[..., :length, :]
        sliced.layers.append(view)
    return sliced


def _forward(model: PreTrainedModel, layout: Layout, start: int, past: DynamicCache | None) -> tuple[Tensor, ...]:
    """Run from a column to the last but one, with gradients from the input embeddings on."""
    hidden: tuple[Tensor, ...] = _decode(model, layout, slice(start, layout.ids.shape[1] - 1), past).hidden_states
    return hidden


def _decode(model: PreTrainedModel, layout: Layout, columns: slice, past: DynamicCache | None) -> Any:
    with_gradient = torch.is_grad_enabled()
    decoder = mirror(model.get_decoder()) if with_gradient else model.get_decoder()
    embeddings = model.get_input_embeddings()(layout.ids[:, columns]).detach().requires_grad_(with_gradient)
    arguments: dict[str, Any] = {
        "inputs_embeds": embeddings,
        "attention_mask": layout.attended[:, : columns.stop],
        "past_key_values": past,
        "use_cache": past is not None,
        "output_hidden_states": with_gradient,
    }
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        positions = (layout.attended.cumsum(-1) - 1).clamp(min=0)
        arguments["position_ids"] = positions[:, columns]
    return decoder(**arguments)
