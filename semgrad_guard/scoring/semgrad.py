"""The objective of SemGrad at the output: entropies, log-probabilities and the gradient at the logits. Pure tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semgrad_guard.model.replay import Head, Layout, Replay, replay
from semgrad_guard.records import GenerationBatch, ReplayPath, Score

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
    path: ReplayPath


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


def hybridgrad(semgrad: float, paragrad: float, mean_entropy: float, *, tau: float, beta: float) -> float:
    """Mix SemGrad and ParaGrad: the surer the model on average, the more the parameters' gradient counts (eq. 6)."""
    certain = math.exp(-mean_entropy / tau)
    return (1.0 - certain) * semgrad + beta * certain * paragrad


def as_score(measured: Measured, row: int, span: tuple[int, ...], *, tau: float, beta: float) -> Score:
    """Read the score of one row; `tau` and `beta` are those of HybridGrad."""
    marked = measured.mask[row]
    log_probs = measured.terms.log_probs[row, marked].double()
    entropies = measured.terms.entropies[row, marked].double()
    layers, *later = measured.layers[row]
    unweighted = None if measured.layers_unweighted is None else measured.layers_unweighted[row]
    semgrad = float(layers.mean())
    paragrad, exgrad = (None if found is None else float(found[row]) for found in (measured.paragrad, measured.exgrad))
    entropy = float(entropies.mean())
    return Score(
        semgrad=semgrad,
        paragrad=paragrad,
        exgrad=exgrad,
        hybridgrad=None if paragrad is None else hybridgrad(semgrad, paragrad, entropy, tau=tau, beta=beta),
        nll=-float(log_probs.sum()),
        mean_nll=-float(log_probs.mean()),
        mean_entropy=entropy,
        max_entropy=float(entropies.max()),
        length=len(log_probs),
        path=measured.path,
        span=span,
        layers=tuple(layers.tolist()),
        semgrad_unweighted=None if unweighted is None else float(unweighted.mean()),
        layers_unweighted=() if unweighted is None else tuple(unweighted.tolist()),
        later=tuple(tuple(token.tolist()) for token in later),
    )
