"""Where the model comes from: a name, a pair, or a LangChain model the user already has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import RunnableBinding
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import pipeline_settings
from semgrad_guard.errors import UnsupportedModelError
from semgrad_guard.model.load import load_model, without_adapter_shell

LocalModel = tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]


def local_model(source: Any, *, revision: str | None = None) -> LocalModel:
    """Get model, tokenizer and generation settings out of whatever the user has.

    Args:
        source: a hub id or folder, a `(model, tokenizer)` pair, a `HuggingFacePipeline`, or a `ChatHuggingFace`
            over one.
        revision: for a hub id.

    Raises:
        UnsupportedModelError: there is no local model behind it.
    """
    if isinstance(source, str | Path):
        return (*load_model(source, revision=revision), {})
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
        f"{given} gives no access to a local model. Pass a model id or folder, a (model, tokenizer) pair, "
        "a HuggingFacePipeline, or a ChatHuggingFace over a HuggingFacePipeline."
    )


def _settings(llm: HuggingFacePipeline) -> dict[str, Any]:
    """Collect the generation settings the pipeline would use itself."""
    known = vars(GenerationConfig()).keys() | {"generation_config"}
    merged = {**pipeline_settings(llm.pipeline), **(llm.pipeline_kwargs or {})}
    return {key: value for key, value in merged.items() if key in known}
