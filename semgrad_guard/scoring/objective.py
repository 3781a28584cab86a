"""The objective of SemGrad at the output: entropies, log-probabilities and the gradient at the logits. Pure tensors."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]


class TokenTerms(NamedTuple):
    """Per-token terms of a batch of responses, each [B, T]; what stands where a row has no token means nothing."""

    log_probs: Tensor
    entropies: Tensor


def token_terms(logits: Tensor, targets: Tensor) -> tuple[TokenTerms, Tensor]:
    """Compute log p(y_t), the entropy w_t, and the gradient of -log p(y_t) at the logits, in float32 or better.

    Args:
        logits: the model's unwarped output, [B, T, V].
        targets: response ids y, [B, T].

    Returns:
        The terms in nats and the gradient p_t - onehot(y_t), [B, T, V]. At y_t it is taken as minus the sum of the
        other probabilities, which is exact where p(y_t) - 1 would cancel.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    largest, top = wide.max(-1, keepdim=True)
    # Against the likeliest token, every term below is small where the model is sure, and no digit cancels. A token that
    # is ruled out stands at -inf, which times its probability must be 0.
    odds = (wide - largest).clamp_(min=torch.finfo(wide.dtype).min)
    p = odds.exp()
    others = p.scatter_(-1, top, 0.0).sum(-1, keepdim=True)
    p.scatter_(-1, top, 1.0).div_(1.0 + others)
    log_total = torch.log1p(others).squeeze(-1)
    index = targets.unsqueeze(-1)
    terms = TokenTerms(odds.gather(-1, index).squeeze(-1) - log_total, log_total - torch.linalg.vecdot(p, odds))
    besides = torch.where(index == top, others / (1.0 + others), 1.0 - p.gather(-1, index))
    return terms, p.scatter_(-1, index, -besides)


def token_weights(entropies: Tensor, mask: Tensor, reduction: Reduction, *, weighted: bool) -> Tensor:
    """Give each token's coefficient in the objective, [B, T]: w_t or 1, over T for the mean (the authors' code).

    Tokens outside the mask get zero, and T counts those inside.

    The entropy is a fixed coefficient: nothing is differentiated through it.
    """
    weights = torch.where(mask, entropies if weighted else 1.0, 0.0)
    return weights / mask.sum(-1, keepdim=True).clamp(min=1) if reduction == "mean" else weights


def mean_abs_outer(coefficients: Tensor, hidden: Tensor, chunk: int = 512) -> Tensor:
    """Compute each row's mean |.| over the V x D entries of coefficients^T hidden, without holding them.

    Args:
        coefficients: gradient at the output head's linear part, [B, T, V].
        hidden: inputs of the output head, times any weights of the tokens, [B, T, D].
        chunk: vocabulary entries at a time.

    Returns:
        [B] in float64, >= 0.
    """
    vocabulary, size = coefficients.shape[-1], hidden.shape[-1]
    held = hidden.new_empty(min(chunk, vocabulary), size)
    totals = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    for row, inputs in enumerate(hidden):
        for part in coefficients[row].split(chunk, dim=-1):
            product = torch.mm(part.T, inputs, out=held[: part.shape[-1]])
            totals[row] += product.abs_().sum()
    return totals / (vocabulary * size)
