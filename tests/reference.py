"""A slow reference of every score, written from the paper's equations (arXiv 2605.04638), in float64.

One row at a time, one full forward pass of a float64 copy of the model, one backward per quantity; it shares no code
with the package.
"""

import copy
import math
from dataclasses import dataclass

import pytest
import torch

FIELDS = (
    "semgrad",
    "paragrad",
    "exgrad",
    "hybridgrad",
    "nll",
    "mean_nll",
    "mean_entropy",
    "max_entropy",
    "length",
    "semgrad_unweighted",
)


@dataclass
class Reference:
    """Scores of one response, named as in the package."""

    semgrad: float
    paragrad: float
    exgrad: float
    hybridgrad: float
    nll: float
    mean_nll: float
    mean_entropy: float
    max_entropy: float
    length: int
    layers: list[float]
    layers_unweighted: list[float]
    semgrad_unweighted: float
    later: list[list[float]]


def logits_of(model, hidden, weight):
    """The output head with a weight of our own, so that tied embeddings add nothing to its gradient."""
    config = model.config
    bias = getattr(model.get_output_embeddings(), "bias", None)
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def reference(
    model, prompt, response, position, indices, *, reduction="sum", norm="l1", tau=1.0, beta=1.0
) -> Reference:
    """Compute equations (4) to (6) for one response; `position` counts prompt tokens from the end."""
    model = copy.deepcopy(model).double()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    ids = torch.tensor([[*prompt, *response]])
    total, length = len(prompt), len(response)
    output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    hidden = output.hidden_states
    weight = model.get_output_embeddings().weight.detach().clone().requires_grad_()
    logits = logits_of(model, hidden[-1][0, total - 1 : total + length - 1], weight)
    torch.testing.assert_close(logits, output.logits[0, total - 1 : total + length - 1])
    log_p = torch.log_softmax(logits, -1)
    log_likelihood = log_p[torch.arange(length), torch.tensor(response)]
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    scale = 1 / length if reduction == "mean" else 1.0

    def size(gradient):
        return gradient.abs().mean().item() if norm == "l1" else gradient.square().mean().sqrt().item()

    def at_anchor(objective, position=position):
        gradients = torch.autograd.grad(objective, [hidden[layer] for layer in indices], retain_graph=True)
        return [size(gradient[0, total - position]) for gradient in gradients]

    def at_head(objective):
        (gradient,) = torch.autograd.grad(objective, weight, retain_graph=True)
        return gradient.abs().mean().item()

    weighted = (entropy * log_likelihood).sum() * scale
    plain = log_likelihood.sum() * scale
    layers = at_anchor(weighted)
    semgrad, paragrad = sum(layers) / len(layers), at_head(weighted)
    unweighted = at_anchor(plain)
    certain = math.exp(-entropy.mean().item() / tau)
    return Reference(
        semgrad=semgrad,
        paragrad=paragrad,
        exgrad=at_head(plain),
        hybridgrad=(1 - certain) * semgrad + beta * certain * paragrad,
        nll=-log_likelihood.sum().item(),
        mean_nll=-log_likelihood.mean().item(),
        mean_entropy=entropy.mean().item(),
        max_entropy=entropy.max().item(),
        length=length,
        layers=layers,
        layers_unweighted=unweighted,
        semgrad_unweighted=sum(unweighted) / len(unweighted),
        later=[at_anchor(weighted, later) for later in range(position - 1, 0, -1)],
    )


def assert_equals_reference(score, model, prompt, response, tolerance=1e-5, **settings):
    expected = reference(model, prompt, response, indices=score.layer_indices, **settings)
    for field in FIELDS:
        assert getattr(score, field) == pytest.approx(getattr(expected, field), rel=tolerance, abs=0), field
    for field in ("layers", "layers_unweighted"):
        assert list(getattr(score, field)) == pytest.approx(getattr(expected, field), rel=tolerance, abs=0), field
    assert len(score.later) == len(expected.later) == settings["position"] - 1
    for found, wanted in zip(score.later, expected.later, strict=True):
        assert list(found) == pytest.approx(wanted, rel=tolerance, abs=0)
