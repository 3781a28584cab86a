"""The embedded model's network: a small Llama whose copying heads are laid out before training begins.

A transformer of this size finds out how to look something up in its prompt only after many thousands of steps. The
circuit that does it is known: one head copies the previous token into a subspace of its own, a later head attends to
where that subspace holds the current token ("induction", Olsson et al. 2022). Starting from that circuit, written into
the initial weights, copying is learned in a few hundred steps. Nothing is frozen; training may undo all of it.
Starting attention with similar queries and keys, and with values that pass through, is mimetic initialisation
(Trockman & Kolter 2023).
"""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaAttention

_HIDDEN, _LAYERS, _HEADS = 192, 6, 6
_HEAD_SIZE = _HIDDEN // _HEADS
_ROPE_BASE = 100_000.0


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Build the untrained network for a vocabulary, with tied embeddings and its copying heads in place."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=512,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        attention_bias=True,
        initializer_range=0.04,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_BASE},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = False
    _lay_out_copying_heads(model)
    return model


@torch.no_grad()
def _lay_out_copying_heads(model: LlamaForCausalLM) -> None:
    model.model.embed_tokens.weight.mul_(2.0)
    for layer in model.model.layers:
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            torch.nn.init.orthogonal_(projection.weight, gain=0.5)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    first = model.model.layers[0].self_attn
    for head, offset in ((0, 1), (1, 2)):
        _attend_back(first, head, offset)
        torch.nn.init.orthogonal_(first.o_proj.weight[:, _rows(head)])
    # The induction heads: queries read a token as the first layer's values do, keys read where its heads wrote.
    reads = first.v_proj.weight[_rows(0)]
    frequencies = _frequencies()
    slow = torch.cat([frequencies, frequencies]) < 0.03  # the rotation of these hardly blurs content over a prompt
    for layer in model.model.layers[1:3]:
        for head in (0, 1):
            writes = first.o_proj.weight[:, _rows(0)].T
            for projection, content in ((layer.self_attn.q_proj, reads), (layer.self_attn.k_proj, writes)):
                rows = torch.zeros(_HEAD_SIZE, _HIDDEN)
                rows[slow] = torch.nn.functional.normalize(content[: int(slow.sum())], dim=1) * 1.5
                projection.weight[_rows(head)] = rows


def _attend_back(attention: LlamaAttention, head: int, offset: int) -> None:
    """Make a head attend `offset` tokens back, whatever they are: constant queries and keys that rotation aligns."""
    angles = -offset * _frequencies()
    half = _HEAD_SIZE // 2
    query, key = torch.cat([angles.cos(), angles.sin()]), torch.zeros(_HEAD_SIZE)
    key[:half] = 1.0
    for projection, bias in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[_rows(head)] *= 0.05
        projection.bias[_rows(head)] = 2.0 * bias


def _frequencies() -> Tensor:
    half = _HEAD_SIZE // 2
    return _ROPE_BASE ** (-torch.arange(half) / half)


def _rows(head: int) -> slice:
    return slice(head * _HEAD_SIZE, (head + 1) * _HEAD_SIZE)
