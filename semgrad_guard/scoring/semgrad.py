"""SemGrad, ParaGrad, ExGrad and HybridGrad: equations (4), (5) and (6) of arXiv 2605.04638.

The objective is the entropy-weighted log-likelihood of the response y_1..y_T after the prompt x:

    J = red_t  w_t log p(y_t | y_<t, x)        w_t = H(p(. | y_<t, x)) in nats; red_t is the mean over t, or the sum

    S_SemGrad    = mean | dJ/dh |              h: the hidden states h^(l) at the token t*, l in the layers           (4)
    S_ParaGrad   = mean | dJ/dW |              W: the output head's weight, V x D entries                            (5)
    S_ExGrad     = as ParaGrad, with w_t = 1 in J
    S_HybridGrad = (1 - c) S_SemGrad + beta c S_ParaGrad        c = e^(-mean_t w_t / tau)                            (6)

The entropies w_t are fixed coefficients: nothing is differentiated through them. Each gradient at a hidden state is the
total derivative, through all layers above. Higher scores mean more uncertainty.

Both gradients begin with g_t = d(-log p(y_t))/d(W h_t), which `token_terms` takes in closed form:

    dJ/dW = -sum_t w_t g_t h_t^T               `paragrad` and `exgrad` take its norm without holding the matrix
    dJ/dh = one backward from -sum_t w_t W^T g_t at the last hidden states, in `hidden_gradients`; its norm: `semgrad`

The signs do not matter to the norms and are left out. `Pass` does all of that for a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semgrad_guard.model.replay import Head, Layout, Replay, replay
from semgrad_guard.records import GenerationBatch, ReplayPath, Score
from semgrad_guard.scoring import registry
from semgrad_guard.scoring.rauq import rauq, watched_layers
from semgrad_guard.scoring.registry import measured_scores
from semgrad_guard.scoring.settings import Norm, Reduction, ScoringSettings


class TokenTerms(NamedTuple):
    """log p(y_t) and w_t of a batch of responses, each [B, T]; entries without a token mean nothing."""

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
    rest = p.scatter_(-1, top, 0.0).sum(-1, keepdim=True)
    p.scatter_(-1, top, 1.0).div_(1.0 + rest)
    log_total = torch.log1p(rest).squeeze(-1)
    index = targets.unsqueeze(-1)
    terms = TokenTerms(odds.gather(-1, index).squeeze(-1) - log_total, log_total - torch.linalg.vecdot(p, odds))
    besides = torch.where(index == top, rest / (1.0 + rest), 1.0 - p.gather(-1, index))
    return terms, p.scatter_(-1, index, -besides)


def likelihood_weights(weights: Tensor | float, mask: Tensor, reduction: Reduction) -> Tensor:
    """Give the coefficient of each log p(y_t) in J, [B, T, 1]: its weight, over T where J is a mean.

    Args:
        weights: the entropies w_t, [B, T]; 1.0 for ExGrad and the unweighted SemGrad.
        mask: the tokens that J is about, [B, T]; the others get 0, and T counts those inside.
        reduction: "mean" (the authors' code) or "sum" (the paper's text).
    """
    coefficients = torch.where(mask, weights, 0.0)
    if reduction == "mean":
        coefficients = coefficients / mask.sum(-1, keepdim=True).clamp(min=1)
    return coefficients.unsqueeze(-1)


def hidden_gradients(
    graph: Replay, at_last: Tensor, layers: tuple[int, ...], *, columns: int = 1, keep: bool
) -> Tensor:
    """Compute dJ/dh^(l)_{t*} for every layer: what equation (4) takes the norm of.

    Rows share one backward and stay apart: no row's objective depends on another row's states. The same backward holds
    the gradients at the tokens after t*.

    Args:
        graph: the forward pass; `hidden[l]` is [B, N, D].
        at_last: gradient of the objective at the head's input for the last T columns, [B, T, D].
        layers: indices l, ascending.
        columns: how many tokens to give the gradients at, t* being the first.
        keep: keep the graph for another objective.

    Returns:
        [B, columns, len(layers), D] in float64.
    """
    last = graph.hidden[-1]
    # A power of two per row puts the largest entry near 1: nothing underflows on the way down, and no digit changes.
    _, exponent = torch.frexp(at_last.abs().amax(dim=(1, 2)))
    exponent = exponent[:, None, None]
    scaled = torch.ldexp(at_last, -exponent).to(last.dtype)
    start = torch.nn.functional.pad(scaled, (0, 0, last.shape[1] - scaled.shape[1], 0))
    states = [graph.hidden[layer] for layer in layers]
    gradients = torch.autograd.grad(last, states, grad_outputs=start, retain_graph=keep)
    tokens = slice(graph.anchor, graph.anchor + columns)
    stacked = torch.stack([gradient[:, tokens].double() for gradient in gradients], dim=2)
    return torch.ldexp(stacked, exponent.unsqueeze(-1).to(stacked.device))


def semgrad(gradients: Tensor, norm: Norm) -> Tensor:
    """Equation (4), layer by layer: the mean absolute entry of dJ/dh^(l) ("l1"), or its root mean square ("l2").

    The score is the mean over the layers; with "l1" that is the mean over all entries of h.
    """
    return gradients.abs().mean(-1) if norm == "l1" else gradients.square().mean(-1).sqrt()


def paragrad(at_head: Tensor, inputs: Tensor, entropies: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """Equation (5): the mean absolute entry of dJ/dW, [B]; `at_head` is g_t, [B, T, V], `inputs` are h_t, [B, T, D]."""
    return mean_abs_outer(at_head, likelihood_weights(entropies, mask, reduction) * inputs)


def exgrad(at_head: Tensor, inputs: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """Equation (5) with w_t = 1, [B]."""
    return mean_abs_outer(at_head, likelihood_weights(1.0, mask, reduction) * inputs)


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
    buffer = hidden.new_empty(min(chunk, vocabulary), size)
    totals = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    for row, inputs in enumerate(hidden):
        for part in coefficients[row].split(chunk, dim=-1):
            product = torch.mm(part.T, inputs, out=buffer[: part.shape[-1]])
            totals[row] += product.abs_().sum()
    return totals / (vocabulary * size)


def hybridgrad(semgrad: float, paragrad: float, mean_entropy: float, *, tau: float, beta: float) -> float:
    """Equation (6): the surer the model is on average, the more ParaGrad counts."""
    certain = math.exp(-mean_entropy / tau)
    return (1.0 - certain) * semgrad + beta * certain * paragrad


def shares(gradients: Tensor, norm: Norm) -> Tensor:
    """Split SemGrad among tokens: each one's gradient along the direction of their sum, as a part of the whole.

    With g_t the gradient of w_t log p(y_t), SemGrad is the norm of sum_t g_t, and a norm is the sum's product with its
    own direction (its signs for "l1"), in which every token takes part by itself.

    Args:
        gradients: g_t, [T, len(layers), D].
        norm: "l1" or "l2", as in `semgrad`.

    Returns:
        [T], adding up to 1; negative where a token pulls against the rest. Zeros where the sum is zero.
    """
    total = gradients.sum(0)
    direction = total.sign() if norm == "l1" else torch.nn.functional.normalize(total, dim=-1)
    along = (gradients * direction).sum(dim=(1, 2))
    return along / along.sum() if float(along.sum()) > 0 else torch.zeros_like(along)


@dataclass(frozen=True, eq=False)
class Measured:
    """The terms and norms of an objective over the marked tokens of a batch of B rows.

    `terms` are [B, T], and `mask` marks the tokens that they count for. `layers` is SemGrad by prompt token and layer,
    [B, N, len(layers)], t* being the first of N tokens. `layers_unweighted` is the same at t* with w_t = 1,
    [B, len(layers)]; `paragrad` and `exgrad` are [B]. None stands for what was not computed.
    """

    mask: Tensor
    terms: TokenTerms
    layers: Tensor
    layers_unweighted: Tensor | None
    paragrad: Tensor | None
    exgrad: Tensor | None
    attention: Tensor | None
    path: ReplayPath


class Pass:
    """One forward pass over a batch, and the scores of any of its tokens: one backward per objective."""

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head,
        layout: Layout,
        batch: GenerationBatch | None,
        rows: Sequence[int],
        layers: tuple[int, ...],
        columns: int,
        *,
        attention: bool = False,
    ) -> None:
        """Run the forward and keep its graph; gradients are given at so many prompt tokens from t* on.

        With `attention`, the weights that RAUQ needs are read as well.
        """
        self._layers, self._columns = layers, columns
        count = model.config.get_text_config(decoder=True).num_hidden_layers
        with torch.enable_grad():
            watched = watched_layers(count) if attention else range(0)
            self._graph: Replay = replay(model, layout, batch, rows, layers[0], watched)
            states = self._graph.hidden[-1][:, -layout.mask.shape[1] :].detach().requires_grad_()
            raw = head.module(states)
        with torch.no_grad():
            logits = head.transform(raw)
            self.terms, gradient = token_terms(logits, layout.ids[:, -layout.mask.shape[1] :])
            self._at_raw = head.pull_back(gradient, logits)
        self._states = states.detach().to(self._at_raw.dtype)
        # The head works on each token by itself, so one product serves every objective over the tokens.
        self._at_last = _pulled_through(raw, states, self._at_raw)

    def measure(self, mask: Tensor, settings: ScoringSettings, *, parameters: bool) -> Measured:
        """Compute equations (4) and (5) over the tokens marked, [B, T]; rows without any give zeros."""
        entropies, reduction, norm = self.terms.entropies, settings.reduction, settings.norm
        weighted = self.gradients(likelihood_weights(entropies, mask, reduction), self._columns)
        plain = self.gradients(likelihood_weights(1.0, mask, reduction)) if settings.unweighted else None
        return Measured(
            mask=mask,
            terms=self.terms,
            layers=semgrad(weighted, norm),
            layers_unweighted=None if plain is None else semgrad(plain[:, 0], norm),
            paragrad=paragrad(self._at_raw, self._states, entropies, mask, reduction) if parameters else None,
            exgrad=exgrad(self._at_raw, self._states, mask, reduction) if parameters else None,
            attention=self._graph.attention,
            path=self._graph.path,
        )

    def states(self, mask: Tensor, layers: Sequence[int]) -> Tensor:
        """Give the hidden states that predict the first, the last but one and the last of the marked tokens.

        The first of them is that of the last token before the answer, where the answer is prepared; the last one has
        read all of the answer but its last token, which ends the turn where the model ended it. Where one token is
        marked, all three are the same.

        Args:
            mask: [B, T]; rows without a marked token give the first column.
            layers: indices l of the hidden states h^(l), of the lowest with a gradient to the number of layers.

        Returns:
            [B, 3, len(layers), D] in float32.
        """
        places = torch.arange(mask.shape[1], device=mask.device)
        first = torch.where(mask, places, mask.shape[1] - 1).amin(-1)
        last = torch.where(mask, places, 0).amax(-1)
        columns = torch.stack([first, torch.maximum(first, last - 1), last], dim=-1)
        rows = torch.arange(len(mask), device=mask.device)[:, None]
        hidden = [self._graph.hidden[layer][:, -mask.shape[1] :].detach() for layer in layers]
        return torch.stack([state[rows, columns].float() for state in hidden], dim=2)

    def token_gradients(self, token: int) -> Tensor:
        """Compute the gradients of w_t log p(y_t) alone for the token of that index, [B, len(layers), D]."""
        mask = torch.zeros_like(self.terms.entropies, dtype=torch.bool)
        mask[:, token] = True
        return self.gradients(likelihood_weights(self.terms.entropies, mask, "sum"))[:, 0]

    def gradients(self, weights: Tensor, columns: int = 1) -> Tensor:
        """Pull the sum over tokens of weight times -log p(y_t), [B, T, 1], to t* on: [B, columns, len(layers), D]."""
        return hidden_gradients(self._graph, weights * self._at_last, self._layers, columns=columns, keep=True)


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


def as_score(measured: Measured, row: int, settings: ScoringSettings, layers: tuple[int, ...]) -> Score:
    """Read the score of one row off what was measured; equation (6) mixes what (4) and (5) gave."""
    marked = measured.mask[row]
    log_probs = measured.terms.log_probs[row, marked].double()
    entropies = measured.terms.entropies[row, marked].double()
    by_layer, *later = measured.layers[row]
    unweighted = None if measured.layers_unweighted is None else measured.layers_unweighted[row]
    s_semgrad, mean_entropy = float(by_layer.mean()), float(entropies.mean())
    s_paragrad = None if measured.paragrad is None else float(measured.paragrad[row])
    s_hybridgrad = None
    if s_paragrad is not None:
        s_hybridgrad = hybridgrad(s_semgrad, s_paragrad, mean_entropy, tau=settings.tau, beta=settings.beta)
    return Score(
        semgrad=s_semgrad,
        paragrad=s_paragrad,
        exgrad=None if measured.exgrad is None else float(measured.exgrad[row]),
        hybridgrad=s_hybridgrad,
        nll=-float(log_probs.sum()),
        mean_nll=-float(log_probs.mean()),
        mean_entropy=mean_entropy,
        max_entropy=float(entropies.max()),
        first_entropy=float(entropies[0]),
        max_nll=-float(log_probs.min()),
        rauq=None if measured.attention is None else rauq(log_probs, measured.attention[row, :, :, marked]),
        length=len(log_probs),
        path=measured.path,
        layer_indices=layers,
        layers=tuple(by_layer.tolist()),
        semgrad_unweighted=None if unweighted is None else float(unweighted.mean()),
        layers_unweighted=() if unweighted is None else tuple(unweighted.tolist()),
        later=tuple(tuple(token.tolist()) for token in later),
        more=measured_scores(log_probs, entropies) if registry.measured else {},
    )
