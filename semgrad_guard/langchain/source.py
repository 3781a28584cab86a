"""Where the model comes from: a name, a pair, or a LangChain model the user already has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase, TextGenerationPipeline

from semgrad_guard._compat import pipeline_settings
from semgrad_guard.errors import ConfigurationError, UnsupportedModelError
from semgrad_guard.langchain.generation_settings import NAMES, layer, of_pipeline, over
from semgrad_guard.model.load import load_model, without_adapter_shell
from semgrad_guard.settings import shown

LocalModel = tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]


def local_model(source: Any, **loading: Any) -> LocalModel:
    """Get model, tokenizer and generation settings out of whatever the user has.

    Args:
        source: what `load_model` takes (a hub id, a folder, a GGUF file), a `(model, tokenizer)` pair, a
            text-generation pipeline of transformers, a `HuggingFacePipeline`, or a `ChatHuggingFace` over one.
        loading: `revision`, `dtype` and `device` of `load_model`; None stands for its default.

    Raises:
        ConfigurationError: a setting says how to load a model that is loaded already, or a pair is no model with its
            tokenizer.
        UnsupportedModelError: there is no local model behind it.
    """
    if isinstance(source, str | Path):
        return (*load_model(source, **loading), {})
    refuse_loading(**loading)
    if isinstance(source, tuple | list) and len(source) == 2:
        model, tokenizer = without_adapter_shell(source[0]), source[1]
        check_pair(model, tokenizer)
        return model, tokenizer, {}
    if isinstance(source, ChatHuggingFace):
        model, tokenizer, settings = local_model(source.llm)
        return model, source.tokenizer or tokenizer, over(settings, _chat_settings(source))
    if isinstance(source, HuggingFacePipeline):
        return _of_pipeline(source.pipeline, source.pipeline_kwargs or {})
    if isinstance(source, Pipeline):
        return _of_pipeline(source, {})
    raise UnsupportedModelError(_refusal(source))


def with_tokenizer(source: Any, tokenizer: Any) -> Any:
    """Make a pair of a model and its tokenizer; without a tokenizer the source is what it is.

    Raises:
        ConfigurationError: the source has a tokenizer already, or is to be loaded with its own.
    """
    if tokenizer is None:
        return source
    if isinstance(source, str | Path | tuple | list | BaseLanguageModel | Pipeline):
        raise ConfigurationError(
            f"A tokenizer was passed beside {shown(source)}, which has its own. Pass one of them, or a model with its "
            "tokenizer."
        )
    return source, tokenizer


def refuse_loading(**loading: Any) -> None:
    """Refuse settings that say how a model is loaded, where it is loaded already."""
    if present := [name for name, value in loading.items() if value is not None]:
        raise ConfigurationError(
            f"{', '.join(present)}: the model is loaded already. Give them with a hub id, a folder or a GGUF file."
        )


def check_pair(model: Any, tokenizer: Any) -> None:
    """Refuse what is no model with its tokenizer.

    Raises:
        ConfigurationError: one of them is something else, or they are the wrong way round.
    """
    if hasattr(tokenizer, "generate") and hasattr(model, "decode"):
        raise ConfigurationError("The tokenizer stands before the model; expected (model, tokenizer).")
    for value, attribute, expected in ((model, "generate", "model"), (tokenizer, "decode", "tokenizer")):
        if isinstance(value, type) or not hasattr(value, attribute):
            raise ConfigurationError(f"(model, tokenizer): {shown(value)} is no {expected} of transformers.")


def _of_pipeline(pipeline: Any, settings: dict[str, Any]) -> LocalModel:
    """Take a pipeline apart, with the generation settings it would use itself."""
    if not isinstance(pipeline, TextGenerationPipeline):
        raise UnsupportedModelError(
            f"A pipeline for {getattr(pipeline, 'task', type(pipeline).__name__)!r} gives no answers; expected "
            'pipeline("text-generation", ...).'
        )
    stop = settings.get("stop_sequence")
    merged = {**pipeline_settings(pipeline), **settings} | ({} if stop is None else {"stop": stop})
    known = {name: value for name, value in merged.items() if name in NAMES}
    tokenizer: Any = pipeline.tokenizer
    return without_adapter_shell(pipeline.model), tokenizer, of_pipeline(known)


def _chat_settings(chat: ChatHuggingFace) -> dict[str, Any]:
    """Collect the settings that a `ChatHuggingFace` has beside its pipeline's.

    Raises:
        ConfigurationError: one that a local model does not follow.
    """
    for name, usual in (("n", 1), ("presence_penalty", 0), ("frequency_penalty", 0), ("logit_bias", {})):
        if (value := getattr(chat, name)) not in (None, usual):
            raise ConfigurationError(f"ChatHuggingFace({name}={shown(value)}) cannot be followed here; leave it out.")
    settings = {name: getattr(chat, name) for name in ("temperature", "max_tokens", "top_p", "seed", "stop")}
    return layer(settings, owner=ChatHuggingFace)


def _refusal(source: Any) -> str:
    """Say why there is no local model behind something, and what to write."""
    name = source.__name__ if isinstance(source, type) else type(source).__name__
    if isinstance(source, type):
        return f"{name} is a class; pass an instance of it, or a (model, tokenizer) pair."
    if isinstance(source, BaseLanguageModel):
        return (
            f"{name} answers from somewhere else: no gradients come over HTTP, so SemGrad cannot be computed. Load the "
            "model locally, for example with HuggingFacePipeline."
        )
    if isinstance(source, PreTrainedModel):
        return f"{name} comes without its tokenizer; pass (model, tokenizer)."
    if isinstance(source, PreTrainedTokenizerBase):
        return f"{name} is a tokenizer without a model; pass (model, tokenizer)."
    if isinstance(source, RunnableBinding):
        bound = type(source.bound).__name__
        return f"{bound} with bound settings: pass the {bound} itself, and make the settings there or with each call."
    if isinstance(getattr(source, "llm", None), BaseLanguageModel):
        return f"{name} is built around a model; pass that, its llm."
    if isinstance(source, Runnable):
        return f"{name} is a chain; pass the model alone, and put the guard in the model's place in the chain."
    return (
        f"{name} gives no access to a local model. Pass a model id, a folder, a GGUF file, a (model, tokenizer) "
        "pair, a text-generation pipeline, a HuggingFacePipeline, or a ChatHuggingFace over one."
    )
