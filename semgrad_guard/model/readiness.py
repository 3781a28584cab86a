"""Whether a model is ready to be scored as it stands, and whether a tokenizer is its own."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import is_compiled
from semgrad_guard.errors import UnsupportedModelError

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
    found: set[int] = set()
    for config in (model.config.get_text_config(decoder=True), model.generation_config):
        ends = getattr(config, "eos_token_id", None)
        found |= set(ends) if isinstance(ends, list | tuple) else set() if ends is None else {ends}
    return found
