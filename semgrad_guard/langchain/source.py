"""The model behind its holder, and the settings of a generation, checked layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from transformers import GenerationConfig, Pipeline, PreTrainedModel, PreTrainedTokenizerBase, TextGenerationPipeline

from semgrad_guard._compat import pipeline_settings
from semgrad_guard.errors import ConfigurationError, PromptTooLongError, UnsupportedModelError
from semgrad_guard.model.load import load_model, without_adapter_shell
from semgrad_guard.settings import first_fault, shown, unknown_name

# LangChain's names beside those of `model.generate`.
_SYNONYMS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "timeout": "max_time",
    "stop_strings": "stop",
    "stop_sequences": "stop",
}
_PLAIN = ("temperature", "top_p", "top_k", "seed")  # the same name on both sides
# The plain fields of the chat model, and what they are called here.
FIELDS = {name: _SYNONYMS.get(name, name) for name in ("max_tokens", *_PLAIN, "timeout", "stop")}
# What only does something where tokens are drawn.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BESIDE = ("generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
_OF_GENERATE = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
NAMES = frozenset(_OF_GENERATE | set(_BESIDE) | set(_SYNONYMS) | {"seed", "stop"})

_LEAST_TEMPERATURE = 0.01  # a temperature below it is none: dividing logits by it would leave the range of numbers
_SEEDS = 2**63


class _Values(BaseModel):
    """The settings whose values are checked here; transformers checks the others."""

    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)

    max_new_tokens: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=1)
    max_time: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    do_sample: bool | None = None
    num_beams: int | None = Field(default=None, ge=1)
    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-_SEEDS, lt=2 * _SEEDS)
    stop: list[str] | None = None
    generation_config: GenerationConfig | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _texts(cls, stop: Any) -> Any:
        """Take one text for a list of one; a text that is empty would stop everything."""
        texts = [stop] if isinstance(stop, str) else list(stop) if isinstance(stop, tuple) else stop
        if isinstance(texts, list) and not all(isinstance(text, str) and text for text in texts):
            raise ValueError("expected a text, or a list of texts, none of them empty")
        return texts


def layer(*settings: Mapping[str, Any], owner: type[BaseModel], known: Collection[str] = ()) -> dict[str, Any]:
    """Check the settings of one layer, and give them by the names of `model.generate`, `seed` and `stop`.

    None stands for a setting that is not made.

    Args:
        settings: of one layer, wherever they were written.
        owner: whose settings they are, for errors.
        known: other names that are allowed there, to be suggested.

    Raises:
        ConfigurationError: a name is unknown, a value has a wrong type or is out of range, or two of them contradict
            each other.
    """
    merged: dict[str, Any] = {}
    written: dict[str, str] = {}
    for name, value in (item for mapping in settings for item in mapping.items()):
        if name not in NAMES:
            raise ConfigurationError(unknown_name(owner.__name__, str(name), [*FIELDS, *known], sorted(NAMES)))
        place = _SYNONYMS.get(name, name)
        if value is None and place in _Values.model_fields:
            continue
        if place in merged and not _same(merged[place], value):
            raise ConfigurationError(
                f"{owner.__name__}: {written[place]}={shown(merged[place])} and {name}={shown(value)} contradict each "
                "other; give one of them."
            )
        merged[place], written[place] = value, name
    try:
        values = _Values.model_validate(merged)
    except ValidationError as error:
        raise ConfigurationError(first_fault(error, owner, written)) from None
    merged |= {name: getattr(values, name) for name in merged if name in _Values.model_fields}
    _check_agreement(merged, written, owner)
    return merged


def stacked(*layers: Sequence[Mapping[str, Any]], owner: type[BaseModel]) -> dict[str, Any]:
    """Check layers of settings, the earliest first, and put each over those before it.

    Raises:
        ConfigurationError: a setting is unknown, wrong, or contradicts another of its layer.
    """
    settings: dict[str, Any] = {}
    for written in layers:
        settings = over(settings, layer(*written, owner=owner))
    return settings


def over(base: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Put a layer over an earlier one; settings of length or of sampling replace all the earlier ones of that."""
    gone: set[str] = set()
    if "max_new_tokens" in later or "max_length" in later:
        gone |= {"max_new_tokens", "max_length"}
    if any(name in later for name in ("do_sample", *_SAMPLING)):
        gone |= {"do_sample"}
    if later.get("do_sample") is False:
        gone |= set(_SAMPLING)
    elif later.get("do_sample") and _greedy(base):
        gone |= {"temperature"}
    return {name: value for name, value in base.items() if name not in gone} | dict(later)


def of_pipeline(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read the settings of a pipeline as transformers does: what contradicts there has no effect."""
    settings = {name: value for name, value in settings.items() if value is not None}
    idle = set(_SAMPLING) if settings.get("do_sample") is False else set()
    if "max_new_tokens" in settings:
        idle.add("max_length")
    return {name: value for name, value in settings.items() if name not in idle}


def for_model(settings: Mapping[str, Any], prompt: int | None = None) -> dict[str, Any]:
    """Give what `generate` takes: sampling or not, and the most tokens of the response.

    Args:
        settings: of all layers.
        prompt: length of the prompt in tokens; None leaves `max_length` as it is.

    Raises:
        PromptTooLongError: `max_length`, which counts the prompt too, leaves no token for the response.
    """
    merged = dict(settings)
    config = merged.get("generation_config")
    if config is not None and config.max_length is not None and config.max_new_tokens is None:
        merged.setdefault("max_length", config.max_length)
    if (
        prompt is not None
        and (longest := merged.pop("max_length", None)) is not None
        and "max_new_tokens" not in merged
    ):
        if prompt >= longest:
            raise PromptTooLongError(
                f"The prompt has {prompt} tokens, and max_length={longest} counts them too: none are left for the "
                "response. Set max_tokens, which counts the response alone."
            )
        merged["max_new_tokens"] = longest - prompt
    marks = merged.pop("stop", None)
    if marks:
        merged["stop_strings"] = list(marks)
    if merged.get("do_sample") is False or _greedy(merged):
        return {name: value for name, value in merged.items() if name not in _SAMPLING} | {"do_sample": False}
    if any(name in merged for name in _SAMPLING):
        merged.setdefault("do_sample", True)
    return merged


def as_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of the chat model that say the same: the standard ones plain, the others as `generation`."""
    plain = {field: settings.get(name) for field, name in FIELDS.items()}
    further = {name: value for name, value in settings.items() if name not in FIELDS.values()}
    if settings.get("temperature") is not None:
        further.pop("do_sample", None)  # the temperature says so already
    return plain | {"generation": further}


def _greedy(settings: Mapping[str, Any]) -> bool:
    temperature = settings.get("temperature")
    return temperature is not None and temperature < _LEAST_TEMPERATURE


def _same(first: Any, second: Any) -> bool:
    return first is second or bool(first == second)


def _check_agreement(merged: Mapping[str, Any], written: Mapping[str, str], owner: type[BaseModel]) -> None:
    temperature, sampled = merged.get("temperature"), merged.get("do_sample")
    pairs = [
        ("do_sample", "temperature", sampled is False and bool(temperature)),
        ("do_sample", "temperature", sampled is True and temperature == 0),
        ("do_sample", "top_p", sampled is False and merged.get("top_p", 1) != 1),
        ("max_new_tokens", "max_length", "max_new_tokens" in merged and "max_length" in merged),
    ]
    for first, second, wrong in pairs:
        if wrong:
            raise ConfigurationError(
                f"{owner.__name__}: {written[first]}={shown(merged[first])} and {written[second]}="
                f"{shown(merged[second])} contradict each other; give one of them."
            )


LocalModel = tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]


def local_model(source: Any, **loading: Any) -> LocalModel:
    """Get model, tokenizer and generation settings out of what holds them.

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
