"""Where the model comes from: a name, a pair, or a LangChain model the user already has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import RunnableBinding
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import pipeline_settings
from semgrad_guard.errors import ConfigurationError, UnsupportedModelError
from semgrad_guard.model.load import load_model, without_adapter_shell

LocalModel = tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]


def local_model(source: Any, **loading: Any) -> LocalModel:
    """Get model, tokenizer and generation settings out of whatever the user has.

    Args:
        source: what `load_model` takes (a hub id, a folder, a GGUF file), a `(model, tokenizer)` pair, a
            `HuggingFacePipeline`, or a `ChatHuggingFace` over one.
        loading: `revision`, `dtype` and `device` of `load_model`; None stands for its default.

    Raises:
        UnsupportedModelError: there is no local model behind it.
        ConfigurationError: the model is loaded already, and a setting says how to load it.
    """
    if isinstance(source, str | Path):
        return (*load_model(source, **loading), {})
    refuse_loading(**loading)
    if isinstance(source, tuple) and len(source) == 2:
        return without_adapter_shell(source[0]), source[1], {}
    if isinstance(source, ChatHuggingFace):
        model, tokenizer, settings = local_model(source.llm)
        return model, source.tokenizer or tokenizer, settings
    if isinstance(source, HuggingFacePipeline):
        pipeline: Any = source.pipeline
        return without_adapter_shell(pipeline.model), pipeline.tokenizer, _settings(source)
    if isinstance(source, BaseLanguageModel):
        raise UnsupportedModelError(
            f"{type(source).__name__} answers from somewhere else: no gradients come over HTTP, so SemGrad cannot be "
            "computed. Load the model locally, for example with HuggingFacePipeline."
        )
    given = type(source.bound if isinstance(source, RunnableBinding) else source).__name__
    raise UnsupportedModelError(
        f"{given} gives no access to a local model. Pass a model id, a folder, a GGUF file, a (model, tokenizer) pair, "
        "a HuggingFacePipeline, or a ChatHuggingFace over a HuggingFacePipeline."
    )


def refuse_loading(**loading: Any) -> None:
    """Refuse settings that say how a model is loaded, where it is loaded already."""
    if present := [name for name, value in loading.items() if value is not None]:
        raise ConfigurationError(
            f"{', '.join(present)}: the model is loaded already. Give them with a hub id, a folder or a GGUF file."
        )


def _settings(llm: HuggingFacePipeline) -> dict[str, Any]:
    """Collect the generation settings the pipeline would use itself."""
    known = vars(GenerationConfig()).keys() | {"generation_config"}
    merged = {**pipeline_settings(llm.pipeline), **(llm.pipeline_kwargs or {})}
    return {key: value for key, value in merged.items() if key in known}
