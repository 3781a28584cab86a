"""A mirror of a module: the same weights under module objects of our own."""

from __future__ import annotations

import copy
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from semgrad_guard._compat import children, separate
from semgrad_guard.errors import UnsupportedModelError

M = TypeVar("M", bound=nn.Module)


def mirror(module: M, *, leaves: bool = False) -> M:
    """Copy the module objects of a tree, not their weights.

    transformers answers `output_hidden_states=True` by setting forward hooks that stay. A mirror takes these hooks and
    is thrown away, and the user's modules stay free of them. The user's own hooks go along. A mirror takes microseconds
    per module, so each pass makes its own, which is never out of date.

    Modules without children are shared, since nothing sets hooks on them; with `leaves` they are copied as well.
    """
    if not (children(module) or leaves):
        return module
    twin = copy.copy(module)
    for name, value in vars(module).items():  # a forward that was replaced on the object, as accelerate does
        if isinstance(value, MethodType) and value.__self__ is module:
            vars(twin)[name] = MethodType(value.__func__, twin)
        elif isinstance(value, partial) and value.args and value.args[0] is module:
            vars(twin)[name] = partial(value.func, twin, *value.args[1:], **value.keywords)
    twins = children(module).items()
    separate(twin, {name: None if child is None else mirror(child, leaves=leaves) for name, child in twins})
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
