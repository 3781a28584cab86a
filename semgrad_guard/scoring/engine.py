"""One pass over a batch: replay the suffix, pull the objective back through the head, then to the hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semgrad_guard.model.head import Head
from semgrad_guard.model.replay import Layout, Replay, replay
from semgrad_guard.records import GenerationBatch, Path
from semgrad_guard.scoring.gradients import Norm, hidden_gradients, size
from semgrad_guard.scoring.objective import Reduction, TokenTerms, mean_abs_outer, token_terms, token_weights


@dataclass(frozen=True, eq=False)
class Measured:
    """What is found for the marked tokens of a batch of B rows.

    `log_probs` and `entropies` are [B, T], `mask` marks the tokens they count for; `layers` and `layers_unweighted` are
    SemGrad by layer, [B, len(span)]; `paragrad` and `exgrad` are [B].
    """

    mask: Tensor
    terms: TokenTerms
    layers: Tensor
    layers_unweighted: Tensor | None
    paragrad: Tensor
    exgrad: Tensor
    path: Path


class Pass:
    """A replayed batch, ready for objectives over any of its tokens: one forward, one backward per objective."""

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head,
        layout: Layout,
        batch: GenerationBatch | None,
        rows: Sequence[int],
        span: tuple[int, ...],
    ) -> None:
        """Run the forward and keep its graph."""
        self._head, self._span = head, span
        with torch.enable_grad():
            self._graph: Replay = replay(model, layout, batch, rows)
            self._states = self._graph.hidden[-1][:, -layout.mask.shape[1] :].detach().requires_grad_()
            self._raw = head.raw(self._states)
        with torch.no_grad():
            logits = head.transform(self._raw)
            self.terms, gradient = token_terms(logits, layout.targets, layout.mask)
            self._at_raw = head.pull_back(gradient, logits)

    def measure(self, mask: Tensor, *, reduction: Reduction, norm: Norm, unweighted: bool) -> Measured:
        """Compute every score of the objective over the tokens marked, [B, T]; rows without any give zeros."""
        weighted, plain = (
            self._at_raw * token_weights(self.terms.entropies, mask, reduction, weighted=choice).unsqueeze(-1)
            for choice in (True, False)
        )
        hidden = self._states.detach().to(self._at_raw.dtype)
        return Measured(
            mask=mask,
            terms=self.terms,
            layers=size(self.gradients(weighted), norm),
            layers_unweighted=size(self.gradients(plain), norm) if unweighted else None,
            paragrad=mean_abs_outer(weighted, hidden),
            exgrad=mean_abs_outer(plain, hidden),
            path=self._graph.path,
        )

    def token_gradients(self, token: int) -> Tensor:
        """Compute the gradients of w_t log p(y_t) alone for the token of that index, [B, len(span), D]."""
        mask = torch.zeros_like(self.terms.entropies)
        mask[:, token] = self.terms.entropies[:, token]
        return self.gradients(self._at_raw * mask.unsqueeze(-1))

    def gradients(self, at_raw: Tensor) -> Tensor:
        """Pull a gradient at the head's linear part, [B, T, V], down to t*: [B, len(span), D]."""
        with torch.enable_grad():
            (at_last,) = torch.autograd.grad(self._raw, self._states, at_raw.to(self._raw.dtype), retain_graph=True)
            return hidden_gradients(self._graph, at_last, self._span, keep=True)
