"""RAUQ: token probabilities carried along the attention that tokens pay to the one before (arXiv 2505.20045).

    c_l(y_1) = p(y_1)        c_l(y_t) = alpha p(y_t) + (1 - alpha) a_l(t) c_l(y_{t-1})
    RAUQ = max_l  -(1/T) sum_t log c_l(y_t)

a_l(t) is the weight on y_{t-1}, while y_t is predicted, of one head of layer l: the one that pays most attention there
on average over the response. The layers are those of the middle third. Higher means more uncertain.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALPHA = 0.2  # the paper's
_LEAST = 1e-30  # a probability of 0 has no logarithm


def watched_layers(count: int) -> range:
    """Give the decoder layers whose attention is read: the middle third."""
    return range(count // 3, max(count // 3 + 1, -(-2 * count // 3)))


def rauq(log_probs: Tensor, weights: Tensor) -> float:
    """Compute RAUQ of one response, in nats per token, >= 0.

    Args:
        log_probs: log p(y_t), [T].
        weights: each head's attention to y_{t-1} when y_t is predicted, [layers, heads, T]; the first is not used.
    """
    p = log_probs.double().exp()
    if len(p) > 1:
        chosen = weights[..., 1:].mean(-1).argmax(-1)
        carried = weights[torch.arange(len(weights)), chosen].double()
    else:
        carried = weights[:, 0].double()
    confidence = p[0].expand(len(weights))
    total = confidence.clamp(min=_LEAST).log()
    for t in range(1, len(p)):
        confidence = ALPHA * p[t] + (1 - ALPHA) * carried[:, t] * confidence
        total = total + confidence.clamp(min=_LEAST).log()
    return float((-total / len(p)).max())
