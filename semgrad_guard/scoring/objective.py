"""The objective of SemGrad at the output: entropies, log-probabilities and the gradient at the logits. Pure tensors."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]


class TokenTerms(NamedTuple):
    """Per-token terms of a batch of responses, each [B, T]; zero where the mask is zero."""

    log_probs: Tensor
    entropies: Tensor


def token_terms(logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[TokenTerms, Tensor]:
    """Compute log p(y_t), the entropy w_t, and d log p(y_t) / d logits_t, all in float32 or better.

    Args:
        logits: the model's unwarped output, [B, T, V].
        targets: response ids y, [B, T].
        mask: True where a row has a response token, [B, T].

    Returns:
        The terms in nats and the gradient onehot(y_t) - p_t, [B, T, V], zero where the mask is. At y_t it is taken
        as the sum of the other probabilities, which is exact where 1 - p(y_t) would cancel.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_p = torch.log_softmax(wide, dim=-1)
    p = log_p.exp()
    # Of a confident token, log p is minus the small sum of the others: taken from there, it keeps all its digits.
    top = p.argmax(-1, keepdim=True)
    others = p.scatter(-1, top, 0.0).sum(-1, keepdim=True)
    log_p.scatter_(-1, top, torch.where(others < 0.5, torch.log1p(-others), log_p.gather(-1, top)))
    entropies = -torch.where(p > 0, p * log_p, 0.0).sum(-1)
    index = targets.unsqueeze(-1)
    log_probs = log_p.gather(-1, index).squeeze(-1)
    gradient = p.scatter_(-1, index, 0.0).neg_()
    gradient.scatter_(-1, index, -gradient.sum(-1, keepdim=True))
    gradient *= mask.unsqueeze(-1)
    return TokenTerms(log_probs * mask, entropies * mask), gradient


def token_weights(entropies: Tensor, mask: Tensor, reduction: Reduction, *, weighted: bool) -> Tensor:
    """Give each token's coefficient in the objective, [B, T]: w_t or 1, over T for the mean (the authors' code).

    Tokens outside the mask get zero, and T counts those inside.

    The entropy is a fixed coefficient: nothing is differentiated through it.
    """
    weights = entropies if weighted else mask.to(entropies.dtype)
    weights = weights * mask
    return weights / mask.sum(-1, keepdim=True).clamp(min=1) if reduction == "mean" else weights


def mean_abs_outer(coefficients: Tensor, hidden: Tensor, chunk: int = 512) -> Tensor:
    """Compute each row's mean |.| over the V x D entries of coefficients^T hidden, without holding them.

    Args:
        coefficients: gradient at the output head's linear part, [B, T, V].
        hidden: inputs of the output head, [B, T, D].
        chunk: vocabulary entries at a time.

    Returns:
        [B] in float64, >= 0.
    """
    vocabulary, size = coefficients.shape[-1], hidden.shape[-1]
    totals = []
    for row, inputs in zip(coefficients, hidden, strict=True):
        sums = [(part.T @ inputs).abs().sum(dtype=torch.float64) for part in row.split(chunk, dim=-1)]
        totals.append(torch.stack(sums).sum())
    return torch.stack(totals) / (vocabulary * size)
