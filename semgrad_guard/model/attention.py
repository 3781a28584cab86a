"""How much the model attends to the token it has just read, while it predicts the next: read off a pass as it runs.

Attention weights are not kept by the fused kernels that models run on. Here the queries and keys of the last tokens are
taken on their way to the kernel, and only the weights of these few rows are computed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from semgrad_guard._compat import attention_function, set_attention

_NAME = "semgrad_guard_watched"  # in transformers' table of attention functions
_KERNELS = ("sdpa", "eager")


class AttentionWatch:
    """Records, for some layers of a mirrored decoder, each head's weight on the newest token at the last T columns.

    `weights` is [B, layers, heads, T], in float32; it is there after the decoder has run. The layers without attention
    of this form are left out.
    """

    def __init__(self, layers: nn.ModuleList, indices: range, columns: int, kernel: str | None) -> None:
        """Set the recorder on these layers of a mirror, which is thrown away afterwards.

        Args:
            layers: decoder layers of the mirror.
            indices: which of them to watch.
            columns: T, the columns that predict the response.
            kernel: the model's attention implementation, as transformers names it.
        """
        self._columns, self._rows = columns, list[Tensor]()
        if kernel not in _KERNELS:
            return
        for index in indices:
            for module in layers[index].modules():
                if hasattr(module, "k_proj") and getattr(module, "config", None) is not None:
                    self._watch(module, kernel)

    @property
    def weights(self) -> Tensor | None:
        """What was recorded; None where nothing could be."""
        return torch.stack(self._rows, dim=1) if self._rows else None

    def _watch(self, module: nn.Module, kernel: str) -> None:
        if kernel == "eager":  # it gives its weights away
            module.register_forward_hook(self._take)
            return
        module.config = copy.copy(module.config)  # the mirror's, not the user's
        set_attention(module.config, _NAME, _watched)
        vars(module)["semgrad_guard_rows"] = self._record

    def _take(self, module: nn.Module, args: Any, output: Any) -> None:
        weights = output[1]
        if weights is not None:
            rows = weights[:, :, -self._columns :].detach().float()
            self._rows.append(rows.diagonal(offset=rows.shape[-1] - rows.shape[-2], dim1=-2, dim2=-1))

    @torch.no_grad()
    def _record(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> None:
        columns = self._columns
        last = query[:, :, -columns:].detach().float()
        keys = key.detach().float().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = last @ keys.transpose(-1, -2) * (scaling or 1.0 / math.sqrt(last.shape[-1]))
        if mask is None:
            ahead = torch.ones(columns, keys.shape[2], dtype=torch.bool, device=keys.device)
            mask = ahead.tril(keys.shape[2] - columns)[None, None]
        mask = mask[:, :, -columns:, : keys.shape[2]]
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
        own = logits.diagonal(offset=keys.shape[2] - columns, dim1=-2, dim2=-1)
        self._rows.append((own - logits.logsumexp(-1)).exp())


def _watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:
    """Record what a watched module attends to, and attend as it would have."""
    record: Callable[..., None] = vars(module)["semgrad_guard_rows"]
    record(query, key, mask, rest.get("scaling"))
    return attention_function("sdpa")(module, query, key, value, mask, **rest)
