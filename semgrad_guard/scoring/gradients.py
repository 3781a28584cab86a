"""From a replay to the gradients: one pull-back through the head, one backward to the hidden states at t*."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from semgrad_guard.model.replay import Replay

Norm = Literal["l1", "l2"]


def hidden_gradients(replay: Replay, at_last: Tensor, span: tuple[int, ...], norm: Norm, *, keep: bool) -> Tensor:
    """Compute the norm of the objective's gradient at h^(l)_{t*} for every layer of the span: equation (4) by layer.

    Each is the total derivative, through all layers above. Rows share one backward and stay apart: no row's
    objective depends on another row's states.

    Args:
        replay: the graph; `hidden[l]` is [B, N, D].
        at_last: gradient of the objective at the head's input for the last T columns, [B, T, D].
        span: indices l, ascending.
        norm: "l1", mean absolute entry; "l2", root mean square.
        keep: keep the graph for another objective.

    Returns:
        [B, len(span)] in float64, >= 0.
    """
    last = replay.hidden[-1]
    # A power of two per row puts the largest entry near 1: nothing underflows on the way down, and no digit changes.
    _, exponent = torch.frexp(at_last.abs().amax(dim=(1, 2)))
    scaled = torch.ldexp(at_last, -exponent[:, None, None]).to(last.dtype)
    start = torch.nn.functional.pad(scaled, (0, 0, last.shape[1] - scaled.shape[1], 0))
    states = [replay.hidden[layer] for layer in span]
    gradients = torch.autograd.grad(last, states, grad_outputs=start, retain_graph=keep)
    columns = torch.stack([gradient[:, replay.anchor].double() for gradient in gradients], dim=1)
    size = columns.abs().mean(-1) if norm == "l1" else columns.square().mean(-1).sqrt()
    return torch.ldexp(size, exponent[:, None].to(size.device))
