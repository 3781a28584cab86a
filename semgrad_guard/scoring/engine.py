"""One pass over a batch: replay the suffix, pull log-likelihoods back through the head, then to the hidden states."""

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

    `log_probs` and `entropies` are [B, T], `mask` marks the tokens they count for; `layers` is SemGrad by prompt token
    and layer, [B, N, len(span)], t* being the first of N tokens, and `layers_unweighted` the same at t*,
    [B, len(span)]; `paragrad` and `exgrad` are [B], None where they were not asked for.
    """

    mask: Tensor
    terms: TokenTerms
    layers: Tensor
    layers_unweighted: Tensor | None
    paragrad: Tensor | None
    exgrad: Tensor | None
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
        columns: int,
    ) -> None:
        """Run the forward and keep its graph; gradients are given at so many prompt tokens from t* on."""
        self._span, self._columns = span, columns
        with torch.enable_grad():
            self._graph: Replay = replay(model, layout, batch, rows, span[0])
            states = self._graph.hidden[-1][:, -layout.mask.shape[1] :].detach().requires_grad_()
            raw = head.raw(states)
        with torch.no_grad():
            logits = head.transform(raw)
            self.terms, gradient = token_terms(logits, layout.targets)
            self._at_raw = head.pull_back(gradient, logits)
        self._states = states.detach().to(self._at_raw.dtype)
        # The head works on each token by itself, so one product serves every objective over the tokens.
        self._at_last = _pulled_through(raw, states, self._at_raw)

    def measure(
        self, mask: Tensor, *, reduction: Reduction, norm: Norm, unweighted: bool, parameters: bool
    ) -> Measured:
        """Compute every score of the objective over the tokens marked, [B, T]; rows without any give zeros."""
        weighted, plain = (
            token_weights(self.terms.entropies, mask, reduction, weighted=choice).unsqueeze(-1)
            for choice in (True, False)
        )
        return Measured(
            mask=mask,
            terms=self.terms,
            layers=size(self.gradients(weighted, self._columns), norm),
            layers_unweighted=size(self.gradients(plain)[:, 0], norm) if unweighted else None,
            paragrad=mean_abs_outer(self._at_raw, weighted * self._states) if parameters else None,
            exgrad=mean_abs_outer(self._at_raw, plain * self._states) if parameters else None,
            path=self._graph.path,
        )

    def token_gradients(self, token: int) -> Tensor:
        """Compute the gradients of w_t log p(y_t) alone for the token of that index, [B, len(span), D]."""
        weights = torch.zeros_like(self.terms.entropies)
        weights[:, token] = self.terms.entropies[:, token]
        return self.gradients(weights.unsqueeze(-1))[:, 0]

    def gradients(self, weights: Tensor, columns: int = 1) -> Tensor:
        """Pull the sum over tokens of weight times -log p(y_t), [B, T, 1], to t* on: [B, columns, len(span), D]."""
        return hidden_gradients(self._graph, weights * self._at_last, self._span, columns=columns, keep=True)


def _pulled_through(raw: Tensor, states: Tensor, at_raw: Tensor) -> Tensor:
    """Take a gradient at the head's linear part, [B, T, V], to its input, [B, T, D], in float32 or better.

    In half precision the gradient of a sure token would vanish; a power of two per token brings it near 1 first.
    """
    if raw.dtype in (torch.float32, torch.float64):
        (at_last,) = torch.autograd.grad(raw, states, at_raw.to(raw.dtype))
        return at_last
    _, exponent = torch.frexp(at_raw.abs().amax(-1, keepdim=True))
    (scaled,) = torch.autograd.grad(raw, states, torch.ldexp(at_raw, -exponent).to(raw.dtype))
    return torch.ldexp(scaled.float(), exponent)
