"""The replay runs the end of a sequence again, with gradients, on a mirror of the model and the generation's cache."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from semgrad_guard._compat import (
    CHILDREN,
    HOOK_TABLES,
    attention_kernel,
    cache_argument,
    linear_layers,
    sliced_cache,
)
from semgrad_guard.errors import UnsupportedModelError
from semgrad_guard.model.attention import AttentionWatch
from semgrad_guard.records import GenerationBatch, ReplayPath

M = TypeVar("M", bound=nn.Module)


def mirror(module: M, *, leaves: bool = False) -> M:
    """Copy the module objects of a tree, not their weights.

    transformers answers `output_hidden_states=True` by setting forward hooks that stay. A mirror takes these hooks and
    is thrown away, and the user's modules stay free of them. The user's own hooks go along. A mirror takes microseconds
    per module, so each pass makes its own, which is never out of date.

    Modules without children are shared, since nothing sets hooks on them; with `leaves` they are copied as well.
    """
    children = vars(module)[CHILDREN]
    if not (children or leaves):
        return module
    twin = copy.copy(module)
    for name, value in vars(module).items():  # a forward that was replaced on the object, as accelerate does
        if isinstance(value, MethodType) and value.__self__ is module:
            vars(twin)[name] = MethodType(value.__func__, twin)
        elif isinstance(value, partial) and value.args and value.args[0] is module:
            vars(twin)[name] = partial(value.func, twin, *value.args[1:], **value.keywords)
    for name in HOOK_TABLES:  # `copy.copy` shares the dictionaries of both
        vars(twin)[name] = vars(twin)[name].copy()
    vars(twin)[CHILDREN] = {
        name: None if child is None else mirror(child, leaves=leaves) for name, child in children.items()
    }
    return twin


def decoder_layers(model: PreTrainedModel, decoder: nn.Module) -> nn.ModuleList:
    """Find the decoder layers of a model in its decoder or a mirror of it: the list as long as the configuration says.

    Raises:
        UnsupportedModelError: there is none.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for child in decoder.modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise UnsupportedModelError(
        f"{type(model).__name__} has no list of {count} decoder layers, so no gradient at a layer can be taken."
    )


class Boundary:
    """A mirror of the model to generate with; it records the inputs of one layer meanwhile."""

    def __init__(self, model: PreTrainedModel, layer: int, tail: int) -> None:
        """Watch a layer's input: its last `tail` columns of the prompt, and every column after it."""
        self.model = mirror(model)
        self._tail = tail
        self._parts: list[Tensor] = []
        watched = decoder_layers(model, self.model.get_decoder())[layer]
        watched.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else kwargs["hidden_states"]
        self._parts.append(inputs[:, -self._tail :].clone() if not self._parts else inputs)

    def states(self, columns: int) -> Tensor | None:
        """Give the recorded inputs, [B, columns, D]; None where generation did not go token by token."""
        if not self._parts or sum(part.shape[1] for part in self._parts) != columns:
            return None
        return torch.cat(self._parts, dim=1)


class PassThrough(nn.Module):
    """Stands in for a layer below the boundary: gives its input back."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Do nothing."""
        return hidden_states


@dataclass(frozen=True)
class Head:
    """logits = cap * tanh(scale * W h / cap), where cap and scale are those of the model's configuration.

    `scale` is Cohere's `logit_scale` or the inverse of Granite's `logits_scaling`; `cap` is Gemma's
    `final_logit_softcapping`, None where there is none.
    """

    module: torch.nn.Module
    scale: float
    cap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """Read the head of a model from its modules and configuration."""
        module = model.get_output_embeddings()
        if module is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no output embeddings; a causal language model with a head is expected. "
                "Load it with AutoModelForCausalLM."
            )
        config = model.config.get_text_config(decoder=True)
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(module, scale, None if cap is None else float(cap))

    def transform(self, raw: Tensor) -> Tensor:
        """Turn W h into logits, in float32 or better."""
        wide = raw if raw.dtype == torch.float64 else raw.float()
        logits = wide if self.scale == 1.0 else wide * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def pull_back(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn a gradient at the logits into one at W h, in closed form."""
        if self.cap is not None:
            gradient = gradient * (1.0 - (logits / self.cap).square())
        return gradient if self.scale == 1.0 else gradient * self.scale


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
    """The graph of a replay: `hidden[l]` is [B, N, D]; t* is its column `anchor`; the last T columns predict y.

    `attention` holds the weights on the newest token, [B, layers, heads, T]; None where they were not read.
    """

    hidden: tuple[Tensor, ...]
    anchor: int
    path: ReplayPath
    attention: Tensor | None = None


def replay(
    model: PreTrainedModel,
    layout: Layout,
    batch: GenerationBatch | None,
    rows: Sequence[int],
    lowest: int,
    watched: range = range(0),
) -> Replay:
    """Run the suffix again on the best path that is exact for this model.

    `lowest` is the first hidden state with a gradient; the graph begins there. Where the generation kept the hidden
    states of that layer's input, the layers below are not even run ("upper"), unless their attention is `watched`.

    "cache" runs on the generation's key-value cache. "prefix" first runs the positions before t* again, without
    gradients. "full" runs everything again, for models that keep a running state instead of keys and values.
    """
    if any(linear_layers(model)):
        hidden, attention = _forward(model, layout, 0, None, lowest, watched)
        return Replay(hidden, layout.start, "full", attention)
    past = None if batch is None else sliced_cache(batch.cache, batch.sequence_width - 1, rows, layout.start)
    path: ReplayPath = "cache"
    if past is None:
        past, path = DynamicCache(), "prefix"
        if layout.start > 0:
            with torch.no_grad():
                _decode(model, model.get_decoder(), layout, slice(0, layout.start), past)
    boundary = None
    if path == "cache" and batch is not None and not any(layer < lowest for layer in watched):
        boundary = _boundary_states(batch, rows, layout, lowest)
    if boundary is not None:
        path = "upper"
    hidden, attention = _forward(model, layout, layout.start, past, lowest, watched, boundary)
    return Replay(hidden, 0, path, attention)


def _boundary_states(batch: GenerationBatch, rows: Sequence[int], layout: Layout, lowest: int) -> Tensor | None:
    """Give the boundary for the rows and columns that are run again; None if this layer has none."""
    if batch.boundary is None or batch.boundary_layer != lowest:
        return None
    columns = layout.ids.shape[1] - 1 - layout.start
    ahead = batch.boundary.shape[1] - (batch.sequence_width - 1 - layout.start)
    if ahead < 0:
        return None  # t* lies before what was kept
    return batch.boundary[torch.tensor(rows, device=batch.boundary.device), ahead : ahead + columns]


def _forward(
    model: PreTrainedModel,
    layout: Layout,
    start: int,
    past: DynamicCache | None,
    lowest: int,
    watched: range,
    boundary: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Run from a column to the last but one, with gradients from the input of layer `lowest` on.

    With the boundary at hand, nothing is run below it.
    """
    decoder = mirror(model.get_decoder())
    layers = decoder_layers(model, decoder)
    entries: list[Tensor] = []

    def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        torch.set_grad_enabled(True)
        inputs = boundary if boundary is not None else args[0] if args else kwargs["hidden_states"]
        entries.append(inputs.detach().requires_grad_())
        return ((entries[0], *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": entries[0]})

    layers[lowest].register_forward_pre_hook(enter, with_kwargs=True)
    for layer in range(lowest if boundary is not None else 0):
        layers[layer] = PassThrough()
    watch = AttentionWatch(layers, watched, layout.mask.shape[1], attention_kernel(model)) if watched else None
    with torch.no_grad():  # until the hook
        upper = _decode(model, decoder, layout, slice(start, layout.ids.shape[1] - 1), past).hidden_states
    missing = len(layers) + 1 - len(upper)  # a layer that was passed through is not recorded
    hidden = [entries[0]] * missing + list(upper)
    hidden[lowest] = entries[0]
    return tuple(hidden), None if watch is None else watch.weights


def _decode(
    model: PreTrainedModel, decoder: nn.Module, layout: Layout, columns: slice, past: DynamicCache | None
) -> Any:
    name = cache_argument(decoder)
    if name is None:
        raise UnsupportedModelError(f"{type(model).__name__} takes no key-value cache.")
    arguments: dict[str, Any] = {
        "inputs_embeds": model.get_input_embeddings()(layout.ids[:, columns]),
        "attention_mask": layout.attended[:, : columns.stop],
        name: past,
        "use_cache": past is not None,
        "output_hidden_states": decoder is not model.get_decoder(),
    }
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        positions = (layout.attended.cumsum(-1) - 1).clamp(min=0)
        arguments["position_ids"] = positions[:, columns]
    return decoder(**arguments)
