"""Every private or renamed name of another library that the package reads, in one place, each with its reason.

What is a documented hook of a base class, such as LangChain's `_generate`, is overridden where the class is. Two
rooms are about another library's insides as a whole and are not repeated here: `web` builds on uvicorn's protocol, and
`evaluation` on PyTorch's dispatch mode.

Names of optional libraries are looked up when they are used, so that this module imports none of them.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import transformers
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging

TESTED_TRANSFORMERS = ("5.23", "5.24")
"""The minor versions of transformers that the tests run with: the pinned one, and the newest."""

# PyTorch keeps a module's hooks in these dictionaries, and offers no way to copy a module without them.
HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
# transformers 5.24 renamed `past_key_values` to `cache` in the signatures of decoders; the old name goes in 5.40.
_CACHE_ARGUMENTS = ("cache", "past_key_values")


def untested_transformers(version: str = transformers.__version__) -> str | None:
    """Say that a version of transformers is newer than those tested; None for one that is not."""
    minor = tuple(int(part) for part in version.split(".")[:2])
    newest = max(tuple(map(int, tested.split("."))) for tested in TESTED_TRANSFORMERS)
    if minor <= newest:
        return None
    return (
        f"transformers {version} is newer than the versions that semgrad-guard was tested with "
        f"({', '.join(TESTED_TRANSFORMERS)}). Scores are checked against the model's own forward pass all the same."
    )


@cache
def warn_of_untested_versions() -> None:
    """Warn, once in a process, of a version of transformers that the tests have not seen."""
    message = untested_transformers()
    if message is not None:
        warnings.warn(message, UserWarning, stacklevel=2)


def cache_argument(decoder: nn.Module) -> str | None:
    """Give the name under which a decoder takes its key-value cache; None where it takes none."""
    names = inspect.signature(type(decoder).forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in names), None)


def generated_cache(output: Any) -> Cache | None:
    """Give the key-value cache in an output of `model.generate`, by whatever name it stands there; None without one."""
    found = (getattr(output, name, None) for name in ("past_key_values", "cache"))
    return next((cache for cache in found if isinstance(cache, Cache)), None)


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """Make the empty cache that a model's configuration asks for; `is_linear` tells which layers keep a state."""
    return DynamicCache(config=model.config)


def linear_layers(model: PreTrainedModel) -> list[bool]:
    """Tell of each layer whether it keeps a running state in the place of keys and values; transformers 5.0 on."""
    return list(new_cache(model).is_linear)


def plain_keys_and_values(cache: Cache, positions: int) -> list[tuple[Any, Any]] | None:
    """Give the keys and values of all layers of a cache, [B, heads, positions, size] each.

    None where it does not hold them plainly: a static cache belongs to the model, whose next generation writes over it;
    an offloaded one lies elsewhere; a sliding window has dropped its oldest positions; a quantised one has lost digits.
    """
    if getattr(cache, "offloading", False):
        return None
    held = []
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return None
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.shape[-2] != positions:
            return None
        held.append((keys, values))
    return held


def cache_of(keys_and_values: list[tuple[Any, Any]]) -> DynamicCache:
    """Make a cache of keys and values, without copying them."""
    made = DynamicCache()
    for keys, values in keys_and_values:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)  # sets dtype and device; it leaves keys and values empty
        layer.keys, layer.values = keys, values
        made.layers.append(layer)
    return made


def commit_of(model: PreTrainedModel) -> str | None:
    """Give the hub's commit that a model was loaded from; transformers notes it on the configuration alone."""
    commit: str | None = getattr(model.config, "_commit_hash", None)
    return commit


def note_commit(model: PreTrainedModel, commit: str | None) -> None:
    """Note the hub's commit of a model that was loaded from the hub's cache by its path."""
    model.config._commit_hash = commit


def forget_quantization(model: PreTrainedModel) -> None:
    """Take off what a model keeps of the quantised file that it was unpacked from; transformers 5.23 on leaves none."""
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)


def unpacked_gguf() -> dict[str, Any]:
    """Give the keywords that unpack all weights of a GGUF file; since 5.23, transformers leaves some packed."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Show no progress while a model is loaded; one bar of transformers does not hear its switch."""
    from transformers import modeling_gguf_pytorch_utils as unpacking

    shown, names = logging.is_progress_bar_enabled(), vars(unpacking)
    bar = names.get("tqdm")
    if shown:
        logging.disable_progress_bar()
    if bar is not None:
        names["tqdm"] = partial(bar, disable=True)
    try:
        yield
    finally:
        if bar is not None:
            names["tqdm"] = bar
        if shown:
            logging.enable_progress_bar()


def is_compiled(module: nn.Module) -> bool:
    """Tell whether `torch.compile` made the module, or changed it; the type of the first is slow to import."""
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    forward = vars(module).get("forward")
    return hasattr(module, "_orig_mod") or in_place or hasattr(forward, "_torchdynamo_orig_callable")


def attends_eagerly(model: PreTrainedModel) -> bool:
    """Tell whether attention weights are held in memory; the public `attn_implementation` can only be set."""
    return bool(getattr(model.config, "_attn_implementation", None) == "eager")


def pipeline_settings(pipeline: Any) -> dict[str, Any]:
    """Give the generation settings that a transformers pipeline would use itself; it has no public way to tell them."""
    prepare = getattr(pipeline, "_prepare_generate_kwargs", None)  # since 5.0; before, _forward_params held them all
    return dict(pipeline._forward_params) if prepare is None else dict(prepare({}))


def streaming_handler() -> type:
    """Give the mark of every LangChain callback handler that streams to the consumer; it has no public name."""
    from langchain_core.tracers._streaming import _StreamingCallbackHandler

    return _StreamingCallbackHandler


def tracing_variables() -> tuple[ContextVar[Any], ...]:
    """Give the context variables through which LangChain finds tracers that no configuration names."""
    from langchain_core.tracers.context import _configure_hooks, tracing_v2_callback_var

    return (tracing_v2_callback_var, *(hook[0] for hook in _configure_hooks))


def has_checkpointer(configurable: dict[str, Any]) -> bool:
    """Tell whether a LangGraph run can resume from a checkpoint; the key is internal since langgraph 1.0."""
    from langgraph._internal._constants import CONFIG_KEY_CHECKPOINTER

    return bool(configurable.get(CONFIG_KEY_CHECKPOINTER))


def steers_a_graph(error: Exception) -> bool:
    """Tell whether an exception is LangGraph's way to steer a run: an interrupt, or an answer that one refuses.

    LangGraph need not be installed: nobody can raise its exceptions without having imported it.
    """
    errors = sys.modules.get("langgraph.errors")
    if errors is None:
        return False
    refused = getattr(errors, "is_invalid_resume", None)  # since langgraph 1.2
    return isinstance(error, errors.GraphBubbleUp) or bool(refused is not None and refused(error))
