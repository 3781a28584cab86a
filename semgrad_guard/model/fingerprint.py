"""Fingerprints of a model's weights and of its chat template, and the precision that the weights are held in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLES = 64  # weights read per tensor: enough to tell models apart, quick for large ones


class Precision(BaseModel):
    """What weights are held in, and a hash of their signs, which rounding to another precision does not change."""

    model_config = ConfigDict(frozen=True)

    held_in: str
    signs: str


def fingerprint(model: PreTrainedModel) -> str:
    """Hash the names, shapes and a sample of the values of all weights, in float32 whatever precision they are held in.

    Other weights give another fingerprint, and so do the same weights rounded to another precision. Packed weights,
    their scales, and buffers that are saved with the model count too.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        _add(digest, name, parameter)
    for name, value in _besides(model):
        _add(digest, name, value)
    return digest.hexdigest()[:32]


def precision(model: PreTrainedModel) -> Precision:
    """Tell what a model's weights are held in, such as "bfloat16" or "float32 and uint8", and hash their signs."""
    digest, kinds = hashlib.sha256(), set()
    for name, parameter in sorted(model.named_parameters()):
        for part, tensor in _tensors(name, parameter.detach()):
            kinds.add(str(tensor.dtype).removeprefix("torch."))
            digest.update(f"{part}{tuple(tensor.shape)}".encode())
            digest.update(torch.signbit(_sample(tensor)).numpy().tobytes())
    packed = {
        str(tensor.dtype).removeprefix("torch.")
        for name, value in _besides(model)
        for _, tensor in _tensors(name, value)
        if tensor.is_quantized
    }
    return Precision(held_in=" and ".join(sorted(kinds | packed)), signs=digest.hexdigest()[:32])


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the chat template: scores move when the prompt is rendered otherwise."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()[:32]


def _besides(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Give what is saved with a model beside its parameters: packed weights, their scales, buffers."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    yield from sorted((name, value) for name, value in model.state_dict().items() if name not in parameters)


def _add(digest: Any, name: str, value: Any) -> None:
    for part, tensor in _tensors(name, value):
        digest.update(f"{part}{tuple(tensor.shape)}".encode())
        digest.update(_sample(tensor).numpy().tobytes())


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Take containers of weights apart: tuples of packed ones, and tensors made of several, as those of torchao."""
    if isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            yield from _tensors(f"{name}.{place}", part)
    elif hasattr(value, "__tensor_flatten__"):
        for part in value.__tensor_flatten__()[0]:
            yield from _tensors(f"{name}.{part}", getattr(value, part))
    elif isinstance(value, Tensor):
        yield name, value


def _sample(tensor: Tensor) -> Tensor:
    values = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    flat = values.reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].to("cpu", torch.float32)
