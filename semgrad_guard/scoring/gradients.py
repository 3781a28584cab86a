"""From a replay to the gradients: one backward from the head's input to the hidden states at t*."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from semgrad_guard.model.replay import Replay

Norm = Literal["l1", "l2"]


def hidden_gradients(replay: Replay, at_last: Tensor, span: tuple[int, ...], *, columns: int = 1, keep: bool) -> Tensor:
    """Compute the objective's gradient at h^(l)_{t*} for every layer of the span: what equation (4) takes the norm of.

    Each is the total derivative, through all layers above. Rows share one backward and stay apart: no row's
    objective depends on another row's states. The same backward holds the gradients at the tokens after t*.

    Args:
        replay: the graph; `hidden[l]` is [B, N, D].
        at_last: gradient of the objective at the head's input for the last T columns, [B, T, D].
        span: indices l, ascending.
        columns: how many tokens to give the gradients at, t* being the first.
        keep: keep the graph for another objective.

    Returns:
        [B, columns, len(span), D] in float64.
    """
    last = replay.hidden[-1]
    # A power of two per row puts the largest entry near 1: nothing underflows on the way down, and no digit changes.
    _, exponent = torch.frexp(at_last.abs().amax(dim=(1, 2)))
    exponent = exponent[:, None, None]
    scaled = torch.ldexp(at_last, -exponent).to(last.dtype)
    start = torch.nn.functional.pad(scaled, (0, 0, last.shape[1] - scaled.shape[1], 0))
    states = [replay.hidden[layer] for layer in span]
    gradients = torch.autograd.grad(last, states, grad_outputs=start, retain_graph=keep)
    wanted = slice(replay.anchor, replay.anchor + columns)
    found = torch.stack([gradient[:, wanted].double() for gradient in gradients], dim=2)
    return torch.ldexp(found, exponent.unsqueeze(-1).to(found.device))


def size(gradients: Tensor, norm: Norm) -> Tensor:
    """Give the mean absolute entry ("l1") or the root mean square ("l2") over the last dimension."""
    return gradients.abs().mean(-1) if norm == "l1" else gradients.square().mean(-1).sqrt()


def shares(gradients: Tensor, norm: Norm) -> Tensor:
    """Split SemGrad among tokens: each one's gradient along the direction of their sum, as a part of the whole.

    With g_t the gradient of w_t log p(y_t), SemGrad is the norm of sum_t g_t, and a norm is the sum's product with its
    own direction (its signs for "l1"), in which every token takes part by itself.

    Args:
        gradients: g_t, [T, len(span), D].
        norm: "l1" or "l2", as in `size`.

    Returns:
        [T], adding up to 1; negative where a token pulls against the rest. Zeros where the sum is zero.
    """
    total = gradients.sum(0)
    direction = total.sign() if norm == "l1" else torch.nn.functional.normalize(total, dim=-1)
    along = (gradients * direction).sum(dim=(1, 2))
    return along / along.sum() if float(along.sum()) > 0 else torch.zeros_like(along)
