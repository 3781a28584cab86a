"""SemGrad as others compute it, to measure against: the paper's official style, and a competent re-forward."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semgrad_guard.model.mirror import mirror
from semgrad_guard.records import Generation


def official_style(model: PreTrainedModel, generation: Generation, position: int, span: tuple[int, ...]) -> float:
    """Compute SemGrad as the paper describes it: all hidden states, one backward over all layers and positions.

    The whole sequence is read again with logits at every position, and autograd goes through the output head.
    """
    hidden, logits = _forward(model, generation, keep=0)
    objective = _objective(logits, generation)
    gradients = torch.autograd.grad(objective, hidden[:-1], materialize_grads=True)
    anchor = len(generation.prompt_ids) - position
    return float(torch.stack([gradients[layer][0, anchor].abs().mean() for layer in span]).mean())


def competent(model: PreTrainedModel, generation: Generation, position: int, span: tuple[int, ...]) -> float:
    """Compute SemGrad with one full re-forward that keeps the response's logits, and one backward to the span."""
    hidden, logits = _forward(model, generation, keep=len(generation.response_ids) + 1)
    objective = _objective(logits, generation)
    gradients = torch.autograd.grad(objective, [hidden[layer] for layer in span])
    anchor = len(generation.prompt_ids) - position
    return float(torch.stack([gradient[0, anchor].abs().mean() for gradient in gradients]).mean())


def _forward(model: PreTrainedModel, generation: Generation, keep: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Read a sequence from its embeddings on; `keep` is how many last positions get logits, 0 for all."""
    ids = torch.tensor([[*generation.prompt_ids, *generation.response_ids]], device=model.device)
    with torch.enable_grad():
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        output = mirror(model)(
            inputs_embeds=embeddings, output_hidden_states=True, use_cache=False, logits_to_keep=keep
        )
    return output.hidden_states, output.logits


def _objective(logits: Tensor, generation: Generation) -> Tensor:
    """Give the entropy-weighted mean log-likelihood of the response, ready for a backward."""
    length = len(generation.response_ids)
    targets = torch.tensor(generation.response_ids, device=logits.device)
    with torch.enable_grad():
        log_p = torch.log_softmax(logits[0, -length - 1 : -1].float(), dim=-1)
        entropy = -(log_p.exp() * log_p).sum(-1).detach()
        return (entropy * log_p[torch.arange(length), targets]).mean()
