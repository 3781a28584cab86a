"""The header of GGUF files, by which a file is judged before its weights are unpacked."""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import forget_quantization
from semgrad_guard.errors import needs
from semgrad_guard.model.chat_template import end_of_turn
from semgrad_guard.model.checkpoint import GGUF_MAGIC, cannot_load

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ALIGNMENT = 32  # where the file names none
_END_FIELDS = ("eos", "eot", "eom")  # end of the text, of the turn, and of a message that calls a tool
_GIB = 1 << 30


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file.

    Args:
        path: the file.
        fields: single values by key; arrays, such as the vocabulary, are left out.
        weights: how many numbers the tensors hold together.
    """

    path: Path
    fields: dict[str, Any]
    weights: int

    @property
    def end_ids(self) -> set[int]:
        """The tokens that end an answer."""
        ids = (self.fields.get(f"tokenizer.ggml.{name}_token_id") for name in _END_FIELDS)
        return {int(token) for token in ids if token is not None}

    def memory(self, dtype: torch.dtype) -> int:
        """The memory that the unpacked weights take, in bytes."""
        return self.weights * dtype.itemsize

    def check_room(self, dtype: torch.dtype, device: torch.device) -> None:
        """Refuse weights that are larger than the whole memory of the device.

        Raises:
            UnsupportedModelError: they are.
        """
        total = _total_memory(device)
        if total is not None and self.memory(dtype) > total:
            raise cannot_load(
                self.path,
                f"its {self.weights:,} weights take {self.memory(dtype) / _GIB:.1f} GiB in {dtype_name(dtype)}; "
                f"{device} has {total / _GIB:.1f} GiB. Choose a smaller dtype or another device.",
            )

    def summary(self, dtype: torch.dtype) -> str:
        """Say how many weights there are, and how much memory they take once unpacked."""
        return f"{self.weights:,} weights, about {self.memory(dtype) / _GIB:.1f} GiB in {dtype_name(dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    """Name a precision without PyTorch's prefix."""
    return str(dtype).removeprefix("torch.")


def _total_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, and check that the file is as long as the header says.

    The package `gguf` has a reader too. It makes an array of every token of the vocabulary, which takes seconds, and on
    a damaged file it can run for ever.

    Raises:
        UnsupportedModelError: it is no GGUF file, or it is damaged, cut off, or one part of several.
    """
    with needs("gguf", "Reading GGUF files needs gguf"):
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise cannot_load(path, "it does not begin as a GGUF file does. Fetch it again.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                fields, tensors, place = _Reader(data).header()
                alignment = int(fields.get("general.alignment", _ALIGNMENT))
                start, end = -(-place // alignment) * alignment, place
                for size, kind, offset in tensors:
                    block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
                    end = max(end, start + offset + size // block * width)
                cut = len(data) < end
            except (struct.error, KeyError, ValueError, ArithmeticError) as error:
                raise cannot_load(
                    path,
                    f"its header cannot be read ({type(error).__name__}: {error}). The file is damaged, cut off, or "
                    "newer than the installed package gguf.",
                ) from error
            if cut:
                raise cannot_load(
                    path, f"it is cut off: {len(data):,} of the {end:,} bytes that its header counts. Fetch it again."
                )
    if (parts := int(fields.get("split.count", 1))) > 1:
        raise cannot_load(path, f"it is one of {parts} parts. Join them: llama-gguf-split --merge FIRST_PART OUT.gguf")
    return GgufHeader(path, fields, sum(size for size, _, _ in tensors))


class _Reader:
    """A place in the bytes of a file; reading past the end raises `struct.error` or `ValueError`."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, len(GGUF_MAGIC)

    def header(self) -> tuple[dict[str, Any], list[tuple[int, int, int]], int]:
        """Give the single values, size, type and offset of every tensor, and the place where the header ends."""
        version, count, pairs = self.numbers("I")[0], *self.numbers("QQ")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}, expected 2 or 3")
        fields = {}
        for _ in range(pairs):
            key = self.text()
            value = self.value(*self.numbers("I"))
            if value is not None:
                fields[key] = value
        tensors = []
        for _ in range(count):
            self.text()
            shape = self.numbers(f"{self.numbers('I')[0]}Q")
            tensors.append((math.prod(shape), *self.numbers("IQ")))
        return fields, tensors, self.place

    def numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self.data, self.place)
        self.place += struct.calcsize(f"<{form}")
        return values

    def skip(self, size: int) -> None:
        self.place += size
        if self.place > len(self.data):
            raise ValueError(f"it ends before byte {self.place:,}")

    def text(self) -> str:
        (length,) = self.numbers("Q")
        start = self.place
        self.skip(length)
        return self.data[start : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        """Read a value; None stands for an array, which is passed over."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.numbers(_NUMBERS[kind])[0]
        inner, count = self.numbers("IQ")
        if inner != _STRING:
            self.skip(count * struct.calcsize(f"<{_NUMBERS[inner]}"))
            return None
        for _ in range(count):
            self.skip(*self.numbers("Q"))
        return None


def finish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, header: GgufHeader) -> None:
    """Make an unpacked model an ordinary one, and let its answers end where the file and its template end a turn.

    A GGUF file has one end token of the text, and often lacks the list that a generation configuration has.
    """
    forget_quantization(model)  # with it, the model can be neither saved nor cast
    ends = header.end_ids | {token for token in (tokenizer.eos_token_id, end_of_turn(tokenizer)) if token is not None}
    model.generation_config.eos_token_id = sorted(ends) or None
