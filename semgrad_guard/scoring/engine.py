"""One pass over a batch: replay the suffix, pull the objective back through the head, then to the hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semgrad_guard.model.head import Head
from semgrad_guard.model.replay import Layout, replay
from semgrad_guard.records import GenerationBatch, Path
from semgrad_guard.scoring.gradients import Norm, hidden_gradients
from semgrad_guard.scoring.objective import Reduction, TokenTerms, mean_abs_outer, token_terms, token_weights


@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass finds for a batch of B rows.

    `layers` and `layers_unweighted` are SemGrad by layer, [B, len(span)]; `paragrad` and `exgrad` are [B].
    """

    terms: TokenTerms
    layers: Tensor
    layers_unweighted: Tensor | None
    paragrad: Tensor
    exgrad: Tensor
    path: Path


def measure(
    model: PreTrainedModel,
    head: Head,
    layout: Layout,
    batch: GenerationBatch | None,
    rows: Sequence[int],
    *,
    span: tuple[int, ...],
    reduction: Reduction,
    norm: Norm,
    unweighted: bool,
) -> Measured:
    """Compute every score of a batch from one replay."""
    with torch.enable_grad():
        graph = replay(model, layout, batch, rows)
        states = graph.hidden[-1][:, -layout.mask.shape[1] :].detach().requires_grad_()
        raw = head.raw(states)
        with torch.no_grad():
            logits = head.transform(raw)
            terms, gradient = token_terms(logits, layout.targets, layout.mask)
            gradient = head.pull_back(gradient, logits)
            weighted, plain = (
                gradient * token_weights(terms.entropies, layout.mask, reduction, weighted=choice).unsqueeze(-1)
                for choice in (True, False)
            )

        def by_layer(at_raw: Tensor, *, keep: bool) -> Tensor:
            (at_last,) = torch.autograd.grad(raw, states, at_raw.to(raw.dtype), retain_graph=keep)
            return hidden_gradients(graph, at_last, span, norm, keep=keep)

        hidden = states.detach().to(gradient.dtype)
        return Measured(
            terms=terms,
            layers=by_layer(weighted, keep=unweighted),
            layers_unweighted=by_layer(plain, keep=False) if unweighted else None,
            paragrad=mean_abs_outer(weighted, hidden),
            exgrad=mean_abs_outer(plain, hidden),
            path=graph.path,
        )
