"""A local model with its tokenizer: loaded from a name, folder or file."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import commit_of, note_commit, quiet_loading, unpacked_gguf
from semgrad_guard.errors import ConfigurationError, needs
from semgrad_guard.model.checkpoint import cannot_load, first_line, hub_commit, locate
from semgrad_guard.model.gguf_file import finish, read_header

logger = logging.getLogger(__name__)

_NAMED = 3  # tensors that an error names of many
_DIGITS = re.compile(r"\d+")


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    announce: Callable[[str], None] = logger.info,
    quiet: bool = False,
    **settings: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from safetensors or a GGUF file, without remote code.

    A GGUF file is unpacked: its weights are numbers of `dtype` afterwards, which takes more memory than the file. The
    tokenizer, the chat template and the end tokens come from the file too, and from nothing beside it.

    Args:
        name: a folder, a GGUF file or a folder with one, a hub id, or a hub id with a GGUF file:
            `owner/name/file.gguf` or `owner/name:file.gguf`.
        revision: for a hub id: commit, tag or branch; pin a commit to get the same weights every time.
        dtype: precision of the weights, as PyTorch has or names it. None or "auto": the checkpoint's own; of a GGUF
            file, bfloat16 on a GPU and float32 on a CPU.
        device: where the model is put; None leaves that to transformers, which takes the CPU.
        announce: is called with the size of a GGUF file's weights before they are unpacked.
        quiet: show no progress.
        settings: further keywords of `AutoModelForCausalLM.from_pretrained`, for example `device_map`.

    Raises:
        UnsupportedModelError: there is no such model; it is incomplete, damaged, too large, or of a kind that cannot be
            loaded; the hub does not answer.
        ConfigurationError: a revision of something that is not on the hub, an unknown dtype or device, or the extra
            `gguf` is missing.
    """
    place, dtype, device = locate(name, revision=revision), _dtype(dtype), None if device is None else _device(device)
    with quiet_loading() if quiet else nullcontext():
        if isinstance(place, Path) and place.is_file():
            model, tokenizer = _from_gguf(place, dtype, device, announce, settings)
        else:
            where = {"revision": revision} if isinstance(place, str) else {}
            model = _load_weights(name, place, **where, **{"dtype": dtype or "auto", **settings})
            tokenizer = _load_tokenizer(name, place, **where)
    if isinstance(place, Path) and (place.is_file() or hub_commit(place)):
        model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = str(name)
        note_commit(model, hub_commit(place))
    if device is not None:
        torch.nn.Module.to(model, device)
    return model.eval(), tokenizer


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ConfigurationError(f"dtype={dtype!r}: expected a precision such as float32, bfloat16 or float16.")
    return named


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device={str(device)!r} cannot be used here: {first_line(error)}") from error


def _from_gguf(
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device | None,
    announce: Callable[[str], None],
    settings: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if "quantization_config" in settings:
        raise ConfigurationError(
            "quantization_config: a GGUF file is unpacked, and not quantised again. Choose a dtype."
        )
    header = read_header(path)
    with needs("gguf", "Loading GGUF files needs accelerate"):
        import accelerate  # noqa: F401 - only looked for; transformers imports it
    on_gpu = settings.get("device_map") not in (None, "cpu") and torch.cuda.is_available()
    target = device or torch.device("cuda" if on_gpu else "cpu")
    if dtype is None:
        dtype = torch.float32 if target.type == "cpu" else torch.bfloat16
    announce(f"{path.name}: {header.summary(dtype)}")
    header.check_room(dtype, target)
    where = {"gguf_file": str(path.resolve())}
    with TemporaryDirectory() as empty:  # no file that lies beside it, of another model perhaps, is read
        tokenizer = _load_tokenizer(path, empty, **where)
        model = _load_weights(path, empty, **where, **unpacked_gguf(), dtype=dtype, **settings)
    finish(model, tokenizer, header)
    return model, tokenizer


def _load_tokenizer(name: str | Path, place: Path | str, **settings: Any) -> PreTrainedTokenizerBase:
    expected = "Expected tokenizer.json, or another tokenizer's files, beside the weights."
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **settings)
    except Exception as error:  # the files are foreign: a library that reads them raises what it likes
        raise cannot_load(name, f"its tokenizer is missing or damaged ({first_line(error)}). {expected}") from error
    if set(tokenizer.get_vocab().values()) <= {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}:
        raise cannot_load(name, f"its tokenizer is missing: transformers put an empty one in its place. {expected}")
    return tokenizer


def _load_weights(name: str | Path, place: Path | str, **settings: Any) -> PreTrainedModel:
    """Load the weights, and refuse a checkpoint whose tensors are not those of the model."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            trust_remote_code=False,
            use_safetensors=True,
            **settings | {"output_loading_info": True, "ignore_mismatched_sizes": True},
        )
        model: PreTrainedModel = loaded[0]
        info: dict[str, Any] = loaded[1]
    except Exception as error:  # see above
        raise cannot_load(name, first_line(error)) from error
    missing, unknown = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise cannot_load(name, f"it lacks {_names(missing)}; random numbers would take their place.")
    if mismatched := sorted(info["mismatched_keys"]):
        tensor, there, expected = mismatched[0]
        raise cannot_load(
            name,
            f"{len(mismatched)} of its tensors have not the shape that config.json says: {tensor} is {tuple(there)}, "
            f"expected {tuple(expected)}.",
        )
    known = {_DIGITS.sub("N", parameter) for parameter in model.state_dict()}
    if further := [tensor for tensor in unknown if _DIGITS.sub("N", tensor) in known]:
        raise cannot_load(name, f"config.json counts too few layers or parts: {_names(further)} would be left out.")
    if unknown:
        logger.warning("%s: the model has no place for %s; they are left out.", name, _names(unknown))
    return model


def _names(tensors: Sequence[str]) -> str:
    """Name tensors; of many, only the first."""
    if len(tensors) == 1:
        return f"the tensor {tensors[0]}"
    return f"{len(tensors)} tensors ({', '.join(tensors[:_NAMED])}{', ...' if len(tensors) > _NAMED else ''})"


def without_adapter_shell(model: Any) -> Any:
    """Take a PEFT model's shell off: the transformers model inside has the adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def revision(model: PreTrainedModel) -> str | None:
    """Give the commit of the hub that a model was loaded from; None where it came from elsewhere."""
    return commit_of(model)
