"""The checks of a model before it is scored: one whose scores would not be exact is refused, with cause and remedy."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import cache_argument, is_compiled, linear_layers
from semgrad_guard.errors import UnsupportedModelError
from semgrad_guard.model.generate import check_scorable
from semgrad_guard.model.gradient_check import check_gradients
from semgrad_guard.model.replay import Head, mirror

_LEAST_SHARE = 0.5  # of the embedding's rows that a tokenizer uses; padding and reserved tokens are far fewer


def check_ready(model: Any) -> None:
    """Refuse a compiled model, one whose weights are elsewhere, and one that gives tuples.

    Raises:
        UnsupportedModelError: it is such a model.
    """
    name = type(model).__name__
    for path, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
        if is_compiled(module):
            raise UnsupportedModelError(
                f"{name} is compiled{f' in {path}' if path else ''}, so its layers cannot be run by themselves. Pass "
                "the model as it was before torch.compile, or load it again."
            )
    if not isinstance(model, PreTrainedModel):
        return  # refused as such elsewhere
    absent = [path for path, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if absent:
        offloaded = {"cpu", "disk"} & set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
        cause = f"are offloaded to {' and '.join(sorted(offloaded))}" if offloaded else "are on the meta device"
        raise UnsupportedModelError(
            f"{len(absent)} tensors of {name} {cause}, such as {absent[0]}. Load the whole model onto one device."
        )
    if getattr(model.config, "return_dict", True) is False:
        raise UnsupportedModelError(
            f"{name} gives tuples: its configuration has return_dict=False. Set model.config.return_dict = True."
        )


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot be the model's: its ids, its size or its end tokens do not fit.

    Raises:
        UnsupportedModelError: the tokenizer is not the model's.
    """
    rows = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    vocabulary = tokenizer.get_vocab()
    largest = max(vocabulary, key=vocabulary.__getitem__, default=None)
    if largest is None or len(vocabulary) < _LEAST_SHARE * rows:
        raise UnsupportedModelError(
            f"The tokenizer knows {len(vocabulary):,} tokens, and {type(model).__name__} has {rows:,}. Expected the "
            "model's own tokenizer."
        )
    if vocabulary[largest] >= rows:
        raise UnsupportedModelError(
            f"The tokenizer has the token {largest!r} with id {vocabulary[largest]:,}, and the embedding of "
            f"{type(model).__name__} has {rows:,} rows. Expected the model's own tokenizer; for added tokens, "
            "call model.resize_token_embeddings(len(tokenizer)) and train them."
        )
    ends = _end_ids(model)
    marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if ends and not ends & marks:
        words = ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})" for token in sorted(ends))
        raise UnsupportedModelError(
            f"{type(model).__name__} ends its answers with token {words}, which is no special token of this tokenizer. "
            "Expected the model's own tokenizer; if it is, correct eos_token_id in model.generation_config and "
            "model.config."
        )


def _end_ids(model: PreTrainedModel) -> set[int]:
    """Collect the end tokens of both configurations."""
    ids: set[int] = set()
    for config in (model.config.get_text_config(decoder=True), model.generation_config):
        ends = getattr(config, "eos_token_id", None)
        ids |= set(ends) if isinstance(ends, list | tuple) else set() if ends is None else {ends}
    return ids


_PROBE_TOKENS = 4
_TOLERANCE = 1e-3  # and twice the rounding of the logits' own precision; a wrong transform is off by far more


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model that cannot be scored exactly: wrong kind, wrong state, unknown head, or a broken backward.

    The head is tried out on four tokens: its logits must be those of the model's own forward pass. Gradients are
    compared with what small changes do, module by module.

    Raises:
        UnsupportedModelError: naming what is wrong, and with gradients the modules.
    """
    check_ready(model)
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{name} is not a transformers PreTrainedModel. SemGrad needs a local model: no gradients come over HTTP."
        )
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; a decoder-only causal language model is expected.")
    check_scorable(model)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"{name} holds weights created under torch.inference_mode, which gradients cannot pass. "
            "Load the model outside of inference_mode."
        )
    if cache_argument(model.get_decoder()) is None:
        raise UnsupportedModelError(f"{name} keeps no key-value cache; state-space models are not supported.")
    linear = linear_layers(model)
    if linear and all(linear):
        raise UnsupportedModelError(f"{name} has no attention layer; state-space models are not supported.")
    _check_head(model)
    check_gradients(model)


def _check_head(model: PreTrainedModel) -> None:
    head = Head.of(model)
    text = model.config.get_text_config(decoder=True)
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=model.device).remainder(text.vocab_size).unsqueeze(0)
    with torch.no_grad():
        states = mirror(model.get_decoder())(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        theirs = model(input_ids=ids, use_cache=False).logits
    tolerance = _TOLERANCE + 2 * torch.finfo(theirs.dtype).eps
    regular = len(states) == text.num_hidden_layers + 1 and all(state.ndim == 3 for state in states)
    if not regular:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not give one hidden state per layer, so no gradient at a layer is defined."
        )
    with torch.no_grad():
        ours = head.transform(head.module(states[-1])).float()
    if not torch.allclose(ours, theirs.float(), rtol=tolerance, atol=tolerance * float(theirs.abs().max())):
        raise UnsupportedModelError(
            f"The output head of {type(model).__name__} transforms its logits in a way that is not known here, so the "
            "scores would be wrong. Known are logit_scale, logits_scaling and final_logit_softcapping."
        )
