"""The boundary: hidden states at the input of one layer, kept while the model generates.

With them, the layers below need not be run again when the response is scored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from semgrad_guard.model.mirror import decoder_layers, mirror


class Boundary:
    """A mirror of the model to generate with, and what comes to the input of a layer meanwhile."""

    def __init__(self, model: PreTrainedModel, layer: int, tail: int) -> None:
        """Watch a layer's input: its last `tail` columns of the prompt, and every column after it."""
        self.model = mirror(model)
        self._tail = tail
        self._kept: list[Tensor] = []
        watched = decoder_layers(model, self.model.get_decoder())[layer]
        watched.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        self._kept.append(given[:, -self._tail :].clone() if not self._kept else given)

    def states(self, columns: int) -> Tensor | None:
        """Give what was kept, [B, columns, D]; None where generation did not go token by token."""
        if not self._kept or sum(part.shape[1] for part in self._kept) != columns:
            return None
        return torch.cat(self._kept, dim=1)


class PassThrough(nn.Module):
    """Stands in for a layer below the boundary: gives back what it is given."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Do nothing."""
        return hidden_states
