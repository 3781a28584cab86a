"""Every private or renamed name of another library that the package reads, in one place, each with its reason.

When a library moves one of them, this file is what changes; tests/unit_tests/test_compat.py has a test for each.
Nothing is imported before it is used, so that this module needs no extra, and costs nothing.

Methods that a library offers to its subclasses under a private name are called and overridden where the subclass is:
LangChain's `_generate`, `_llm_type`, `_identifying_params`, `_get_ls_params`, `_combine_llm_outputs`, and
`_call_with_config` with its twins. They are part of its interface in all but the underscore.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatResult
    from langchain_core.runnables.config import var_child_runnable_config as var_child_runnable_config
    from torch import UntypedStorage, nn
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._pytree import tree_leaves as tree_leaves
    from transformers import Cache, DynamicCache, PreTrainedModel
    from uvicorn.protocols.http.h11_impl import H11Protocol as H11Protocol

# `from semgrad_guard._compat import NAME` imports the module that has it, then and not before.
PLACES: dict[str, str] = {
    # PyTorch documents the class under "Extending PyTorch", and has no public path to it (as of 2.13).
    "TorchDispatchMode": "torch.utils._python_dispatch",
    # PyTorch has no public way to visit the tensors in nested arguments (as of 2.13).
    "tree_leaves": "torch.utils._pytree",
    # By this variable LangChain hands a run's configuration to what runs inside it; no page of its docs lists it (as of
    # langchain-core 1.8). LangGraph reads it as well.
    "var_child_runnable_config": "langchain_core.runnables.config",
    # uvicorn has no limit on how long the head of a request may take, and its protocols are no public interface (as of
    # 0.54).
    "H11Protocol": "uvicorn.protocols.http.h11_impl",
}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PLACES[name]), name)


TESTED_TRANSFORMERS = ("5.23", "5.24")
"""The minor versions of transformers that the tests run with: the pinned one, and the newest."""

# PyTorch keeps a module's hooks in these dictionaries, and offers no way to read or copy them (as of 2.13).
HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
# And its children in this one; `named_children` leaves out those that are None or shared (as of 2.13).
CHILDREN = "_modules"
# transformers 5.24 renamed `past_key_values` to `cache` in the signatures of decoders; the old name goes in 5.40.
_CACHE_ARGUMENTS = ("cache", "past_key_values")


def operator(overload: Any) -> Any:
    """Give the operator of an overload, by which PyTorch's registry of operation counts is keyed (as of 2.13)."""
    return overload._overloadpacket


def storage_key(storage: UntypedStorage) -> int:
    """Tell storages apart as PyTorch does; the public `data_ptr` is 0 for all that are empty or fake (as of 2.13)."""
    return int(storage._cdata)


def untested_transformers(version: str | None = None) -> str | None:
    """Say that a version of transformers, the installed one by default, is newer than those tested; None if not."""
    version = version or installed("transformers")
    minor = tuple(int(part) for part in version.split(".")[:2])
    newest = max(tuple(map(int, tested.split("."))) for tested in TESTED_TRANSFORMERS)
    if minor <= newest:
        return None
    return (
        f"transformers {version} is newer than the versions that semgrad-guard was tested with "
        f"({', '.join(TESTED_TRANSFORMERS)}). If something fails, install the newest of these: "
        f'pip install "transformers=={TESTED_TRANSFORMERS[-1]}.*"'
    )


@cache
def warn_of_untested_versions() -> None:
    """Warn, once in a process, of a version of transformers that the tests have not seen."""
    message = untested_transformers()
    if message is not None:
        warnings.warn(message, UserWarning, stacklevel=3)  # where the scorer is built


def cache_argument(decoder: nn.Module) -> str | None:
    """Give the name under which a decoder takes its key-value cache; None where it takes none."""
    names = inspect.signature(type(decoder).forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in names), None)


def generated_cache(output: Mapping[str, Any]) -> Cache | None:
    """Give the key-value cache in an output of `model.generate`, by whatever name it stands there; None without one.

    Since transformers 5.24 the old name is an alias, and reading it logs a deprecation: only what is there is read.
    """
    from transformers import Cache

    held = dict(output)
    return next((held[name] for name in _CACHE_ARGUMENTS if isinstance(held.get(name), Cache)), None)


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """Make the empty cache that a model's configuration asks for; `is_linear` tells which layers keep a state."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def linear_layers(model: PreTrainedModel) -> list[bool]:
    """Tell of each layer whether it keeps a running state in the place of keys and values; since transformers 5.13."""
    return list(new_cache(model).is_linear)


def plain_keys_and_values(cache: Cache, positions: int) -> list[tuple[Any, Any]] | None:
    """Give the keys and values of all layers of a cache, [B, heads, positions, size] each.

    None where it does not hold them plainly: a static cache belongs to the model, whose next generation writes over it;
    an offloaded one lies elsewhere; a sliding window has dropped its oldest positions; a quantised one has lost digits.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer  # layers are told by class since 4.54

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


def sliced_cache(cache: Cache, positions: int, rows: Sequence[int], length: int) -> DynamicCache | None:
    """View the first `length` positions of rows of a cache; None where it does not hold keys and values plainly."""
    held = plain_keys_and_values(cache, positions)
    if held is None:
        return None
    views = []
    for keys, values in held:
        if len(rows) != keys.shape[0] or list(rows) != list(range(len(rows))):
            keys, values = keys[list(rows)], values[list(rows)]
        views.append((keys[..., :length, :], values[..., :length, :]))
    return cache_of(views)


def cache_of(keys_and_values: list[tuple[Any, Any]]) -> DynamicCache:
    """Make a cache of keys and values, without copying them; no constructor does that (as of transformers 5.24)."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

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
    """Give the keywords that unpack all of a GGUF file; without them some stay packed (since transformers 5.20)."""
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Show no progress while a model is loaded; afterwards all bars are as the user had them.

    The switch of transformers turns the hub's as well, which warns where a variable of the environment rules. One bar
    of transformers does not hear its switch.
    """
    import huggingface_hub.utils
    from transformers import modeling_gguf_pytorch_utils as unpacking
    from transformers.utils import logging

    hub: Any = huggingface_hub.utils  # it documents these names, and does not mark them as exported
    shown, hub_silent, names = logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled(), vars(unpacking)
    bar = names.get("tqdm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable_progress_bar()
    if bar is not None:
        names["tqdm"] = partial(bar, disable=True)
    try:
        yield
    finally:
        if bar is not None:
            names["tqdm"] = bar
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if shown:
                logging.enable_progress_bar()
            (hub.disable_progress_bars if hub_silent else hub.enable_progress_bars)()


def is_compiled(module: nn.Module) -> bool:
    """Tell whether `torch.compile` made the module, or changed it; the type of the first is slow to import."""
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    forward = vars(module).get("forward")
    return hasattr(module, "_orig_mod") or in_place or hasattr(forward, "_torchdynamo_orig_callable")


def attends_eagerly(model: PreTrainedModel) -> bool:
    """Tell whether attention weights are held in memory; the public `attn_implementation` can only be set."""
    return attention_kernel(model) == "eager"


def attention_kernel(model: PreTrainedModel) -> str | None:
    """Name the attention implementation of a model; the public `attn_implementation` can only be set."""
    kernel = getattr(model.config, "_attn_implementation", None)
    return None if kernel is None else str(kernel)


def set_attention(config: Any, name: str, function: Any) -> None:
    """Let modules with this configuration attend by a function of ours; only a model's own method is public."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    config._attn_implementation = name


def attention_function(name: str) -> Any:
    """Give one of transformers' attention functions, to be called by ours."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[name]


def pipeline_settings(pipeline: Any) -> dict[str, Any]:
    """Give what a transformers pipeline would pass to `generate`; it has no public way to tell (since 5.20)."""
    return dict(pipeline._prepare_generate_kwargs({}))


def streams(handler: object) -> bool:
    """Tell whether a callback handler hands what it hears to the consumer of a stream.

    LangChain marks such handlers by private classes, the second of them since langchain-core 1.4.
    """
    from langchain_core.tracers._streaming import _StreamingCallbackHandler, _V2StreamingCallbackHandler

    return isinstance(handler, _StreamingCallbackHandler | _V2StreamingCallbackHandler)


def tracing_variables() -> tuple[ContextVar[Any], ...]:
    """Give the context variables through which LangChain finds tracers that no configuration names."""
    from langchain_core.tracers.context import _configure_hooks, tracing_v2_callback_var

    return (tracing_v2_callback_var, *(hook[0] for hook in _configure_hooks))


def generate_with_cache(
    llm: BaseChatModel, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
) -> ChatResult:
    """Let a chat model answer inside a run that exists; `invoke` would begin another (as of langchain-core 1.8)."""
    return llm._generate_with_cache(messages, stop, **settings)


async def agenerate_with_cache(
    llm: BaseChatModel, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
) -> ChatResult:
    """Async twin of `generate_with_cache`."""
    return await llm._agenerate_with_cache(messages, stop, **settings)


def has_checkpointer(configurable: dict[str, Any]) -> bool:
    """Tell whether a LangGraph run can resume from a checkpoint.

    There is no other sign of it. langgraph keeps the key's name in `constants` until 2.0, and says "or earlier".
    """
    try:
        from langgraph.constants import CONFIG_KEY_CHECKPOINTER
    except ImportError:
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
