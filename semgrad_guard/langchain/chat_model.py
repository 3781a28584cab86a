"""`ChatSemGrad`: a chat model over a local Hugging Face model that scores every message it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field, PrivateAttr

from semgrad_guard.errors import AbandonedError, ConfigurationError
from semgrad_guard.langchain.batching import BatchedChatModel, Request
from semgrad_guard.langchain.messages import offered, to_messages, to_template
from semgrad_guard.langchain.metadata import get_message_scores
from semgrad_guard.langchain.scored_messages import scored_messages, top_logprobs_of
from semgrad_guard.langchain.source import (
    FIELDS,
    NAMES,
    LocalModel,
    as_fields,
    check_pair,
    for_model,
    layer,
    local_model,
    over,
    refuse_loading,
    stacked,
    with_tokenizer,
)
from semgrad_guard.langchain.streaming import Listener, Shown, last_chunk
from semgrad_guard.model.chat_template import encode_chat, semantic_position
from semgrad_guard.model.fingerprint import fingerprint, template_fingerprint
from semgrad_guard.model.forcing import forced_call
from semgrad_guard.model.generate import check_prompt
from semgrad_guard.records import Generation, TokenUncertainty
from semgrad_guard.scoring.budget import Budget
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.scoring.settings import ScoringSettings, gathered
from semgrad_guard.settings import checked, shown, warn_of_old

# Of LangChain's standard settings, those that only models behind a network have a use for.
_OF_NETWORKS = ("max_retries", "api_key")
# What a call has beside settings of the generation.
OF_CALLS = ("tools", "tool_choice", "logprobs", "top_logprobs", "stream", "ls_structured_output_format")


class ConfiguredChatModel(BatchedChatModel):
    """A chat model with settings of the generation, which a call, or `bind`, may make as well.

    `temperature` is 0 for the likeliest token each time; above 0, tokens are drawn. `max_tokens` counts the answer
    alone. `stop` are texts that the answer ends before. With a `seed`, what is drawn is the same again. `timeout` is in
    seconds; an answer that is cut off by it never passes. `generation` holds keywords of `model.generate`; these
    settings go before it. None stands for the model's own setting. Unknown settings, wrong values and
    contradictions are refused.
    """

    generation: dict[str, Any] = Field(default_factory=dict)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    timeout: float | None = None
    stop: str | list[str] | tuple[str, ...] | None = None
    streaming: bool = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Check the settings and the model; users have `from_pretrained`, `from_model` and `from_llm`.

        `max_retries` and `api_key`, which LangChain's standard settings include, are accepted and have no use here.

        Raises:
            ConfigurationError: a setting is unknown, wrong, or contradicts another.
            UnsupportedModelError: the model cannot be scored exactly.
        """
        if args:
            raise ConfigurationError(
                f"{type(self).__name__} takes its settings by name; write ChatSemGrad.from_model(model, tokenizer)."
            )
        for name in _OF_NETWORKS:
            settings.pop(name, None)
        fields = type(self).model_fields
        further = {name: settings.pop(name) for name in [*settings] if name not in fields}
        keywords = layer(
            further, {name: settings.get(name) for name in FIELDS}, owner=type(self), known=self.setting_names()
        )
        generation = settings.get("generation", {})
        if isinstance(generation, dict):  # else pydantic refuses it below
            generation = layer(generation, owner=type(self))
            if further:
                settings |= (made := as_fields(keywords)) | {"generation": over(generation, made["generation"])}
        with checked(type(self)):
            super().__init__(**settings)

    @classmethod
    def setting_names(cls) -> list[str]:
        """Name the settings that are not those of every LangChain model, for suggestions."""
        return [name for name in cls.model_fields if name not in BatchedChatModel.model_fields or name == "batch_size"]

    @property
    def generation_settings(self) -> dict[str, Any]:
        """The chat model's settings as keywords of `SemGradScorer.generate`."""
        return for_model(self._layer())

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Check what a call sets, before anything is done for it.

        Raises:
            ConfigurationError: a setting is unknown, wrong, or contradicts another.
        """
        layer({name: value for name, value in settings.items() if name not in OF_CALLS}, owner=type(self))

    def _layer(self) -> dict[str, Any]:
        return stacked(*self._written(), owner=type(self))

    def _settings(self, stop: list[str] | str | None, of_call: dict[str, Any]) -> dict[str, Any]:
        """Give the settings of a call; they go before those of the chat model."""
        return stacked(*self._written(), [of_call, {"stop": stop}], owner=type(self))

    def _written(self) -> list[list[dict[str, Any]]]:
        return [[self.generation], [{name: getattr(self, name) for name in FIELDS}]]

    def _convert_input(self, model_input: Any) -> PromptValue:
        """Take what LangChain's chat models take, and a single message.

        Raises:
            ConfigurationError: it is something else.
        """
        if isinstance(model_input, PromptValue):
            return model_input
        if isinstance(model_input, str):
            return StringPromptValue(text=model_input)
        return ChatPromptValue(messages=to_messages(model_input))


class ChatSemGrad(ConfiguredChatModel):
    """A local chat model whose messages carry their uncertainty.

    `get_scores(message)` reads the scores of its answer (*higher = more uncertain*). They stand in
    `response_metadata["semgrad"]`, a `MessageScores`, beside those of its tool calls and their arguments, the failure
    that forbids to trust the answer, if there is one, and the response's tokens.
    `logprobs=True` and `top_logprobs=k`, bound or with a call, add `response_metadata["logprobs"]` in OpenAI's shape.
    `scored=False` leaves scores out, and no answer passes. `scoring` says how scores are computed; its settings,
    such as `token_position` and `layers`, are taken by their names too.

    Rows of a batch go through the model together, at most `batch_size` at a time. What a model thinks before it answers
    is in `additional_kwargs["reasoning_content"]`; only the answer is scored.

    It holds a live model, so LangChain's `dumps` writes it as "not_implemented"; its messages are written in full.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: Any = Field(repr=False, exclude=True)
    tokenizer: Any = Field(repr=False, exclude=True)
    scoring: ScoringSettings = ScoringSettings()
    scored: bool = True
    budget: Budget | None = Field(default=None, exclude=True)
    _scorer: SemGradScorer = PrivateAttr()
    _fingerprint: str = PrivateAttr()
    _template: tuple[Any, str] = PrivateAttr((None, ""))

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Check the settings, and the model; those of scoring are gathered in `scoring`.

        Raises:
            ConfigurationError: a setting is unknown, wrong, or contradicts another.
            UnsupportedModelError: the model cannot be scored exactly.
        """
        super().__init__(*args, **gathered(settings))

    @classmethod
    def setting_names(cls) -> list[str]:
        """Name the settings, those of scoring by themselves."""
        return [*super().setting_names(), *ScoringSettings.model_fields]

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        dtype: Any = None,
        device: Any = None,
        generation: dict[str, Any] | None = None,
        **settings: Any,
    ) -> ChatSemGrad:
        """Load a model with its tokenizer.

        Args:
            source: a hub id, a folder, or a GGUF file.
            revision: commit, tag or branch of a hub id.
            dtype: precision of the weights, such as "bfloat16"; None: as `load_model` chooses.
            device: where the model is put, such as "cuda"; None: on the CPU.
            generation: keywords of `model.generate`.
            settings: fields of the class, such as `temperature`, `max_tokens` and `batch_size`, and those of
                `ScoringSettings`.

        Raises:
            ConfigurationError: a setting is unknown, wrong, or contradicts another; or the source is something else.
            UnsupportedModelError: the model cannot be scored exactly.
        """
        if not isinstance(source, str | Path):
            raise ConfigurationError(
                f"{cls.__name__}.from_pretrained({shown(source)}): expected a hub id, a folder or a GGUF file. "
                "from_model takes a model and its tokenizer, from_llm a chat model or a pipeline."
            )
        loading = {"revision": revision, "dtype": dtype, "device": device}
        return cls._of(lambda: local_model(source, **loading), generation, settings)

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, generation: dict[str, Any] | None = None, **settings: Any
    ) -> ChatSemGrad:
        """Wrap a model of transformers and its tokenizer; the settings are those of `from_pretrained`.

        Raises:
            ConfigurationError: a setting is unknown, wrong, or contradicts another; or one of the two is something
                else.
            UnsupportedModelError: the model cannot be scored exactly.
        """
        _refuse_loading(settings)
        return cls._of(lambda: local_model((model, tokenizer)), generation, settings)

    @classmethod
    def from_llm(cls, llm: Any, *, generation: dict[str, Any] | None = None, **settings: Any) -> ChatSemGrad:
        """Wrap a chat model or a pipeline; the settings are those of `from_pretrained`, and go before its own.

        Args:
            llm: a `HuggingFacePipeline`, a `ChatHuggingFace`, a text-generation pipeline of transformers, or a
                `ChatSemGrad`, which is copied.
            generation: keywords of `model.generate`.
            settings: fields of the class.

        Raises:
            ConfigurationError: a setting is unknown, wrong, or contradicts another.
            UnsupportedModelError: there is no local model behind it, or it cannot be scored exactly.
        """
        _refuse_loading(settings)
        if not isinstance(llm, ChatSemGrad):
            return cls._of(lambda: local_model(llm), generation, settings)
        written = _settings_of_generation(settings)
        later = layer(cls._checked(generation), written, owner=cls, known=cls.setting_names())
        fields = {name: getattr(llm, name) for name in cls.model_fields}
        if later:
            fields |= as_fields(over(llm._layer(), later))
        return cls(**fields | settings)

    @classmethod
    def of(cls, source: Any, tokenizer: Any = None, **settings: Any) -> ChatSemGrad:
        """Wrap any holder of a model: the old name of `from_pretrained`, `from_model` and `from_llm`."""
        names = f"{cls.__name__}.from_pretrained, from_model or from_llm"
        warn_of_old(f"{cls.__name__}.of", names)
        return chat_model(source, tokenizer, **settings)

    @classmethod
    def _of(
        cls, load: Callable[[], LocalModel], generation: dict[str, Any] | None, settings: dict[str, Any]
    ) -> ChatSemGrad:
        """Build a chat model of what `load` gives; settings are checked before anything is loaded."""
        written = _settings_of_generation(settings)
        later = cls._checked(generation)
        layer(later, written, owner=cls, known=cls.setting_names())
        model, tokenizer, of_source = load()
        earlier = over(layer(of_source, owner=cls), layer(later, owner=cls))
        return cls(model=model, tokenizer=tokenizer, generation=earlier, **written, **settings)

    @classmethod
    def _checked(cls, generation: dict[str, Any] | None) -> dict[str, Any]:
        if generation is not None and not isinstance(generation, dict):
            raise ConfigurationError(f"{cls.__name__}(generation={shown(generation)}): expected a dict.")
        return generation or {}

    def model_post_init(self, context: Any, /) -> None:
        """Build the scorer, which checks the model."""
        super().model_post_init(context)
        check_pair(self.model, self.tokenizer)
        scoring = self.scoring
        if scoring.token_position is None:
            scoring = scoring.changed(token_position=semantic_position(self.tokenizer))
        self._scorer = SemGradScorer(self.model, self.tokenizer, budget=self.budget, scoring=scoring)
        self._fingerprint = fingerprint(self.model)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model's weights."""
        return self._fingerprint

    @property
    def scorer(self) -> SemGradScorer:
        """The scorer that generates and scores."""
        return self._scorer

    @property
    def model_name(self) -> str:
        """The model's name; LangChain's agents read it to tell what the model can do."""
        return self.model.config.name_or_path or type(self.model).__name__

    @property
    def _llm_type(self) -> str:
        return "semgrad"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.model.config.name_or_path,
            "fingerprint": self._fingerprint,
            "dtype": str(self.model.dtype),
            "template": self._template_fingerprint(),
            "revision": self._scorer.revision,
            "defaults": _plain(vars(self.model.generation_config)),
            "generation": _plain(self._layer()),
            "scored": self.scored,
            "budget": str(self.budget),
            **dict(self.scoring) | {"layers": str(self.scoring.layers), "states": self._states_fingerprint()},
        }

    def _states_fingerprint(self) -> str | None:
        reading = self.scoring.states
        return None if reading is None else reading.fingerprint

    def _template_fingerprint(self) -> str:
        """Fingerprint the chat template, anew where it has been changed."""
        template = self.tokenizer.chat_template
        if template != self._template[0] or not self._template[1]:
            self._template = template, template_fingerprint(self.tokenizer)
        return self._template[1]

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        name = str(kwargs.get("model") or self.model.config.name_or_path)
        params = LangSmithParams(ls_provider="semgrad", ls_model_name=name, ls_model_type="chat")
        settings = self._settings(stop, {name: value for name, value in kwargs.items() if name in NAMES})
        if "temperature" in settings:
            params["ls_temperature"] = float(settings["temperature"])
        if "max_new_tokens" in settings:
            params["ls_max_tokens"] = int(settings["max_new_tokens"])
        if settings.get("stop"):
            params["ls_stop"] = list(settings["stop"])
        return params

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model, through its chat template.

        Args:
            tools: LangChain tools, functions, Pydantic classes or JSON schemas.
            tool_choice: None or "auto": the model decides whether to call one; "any", "required" or True: it must call
                one; a name, or `{"function": {"name": ...}}`: it must call that one; "none" or False: it cannot.
            kwargs: generation settings.

        Raises:
            ConfigurationError: a tool is to be called that is not among the tools.
        """
        return self.bind(**offered(tools, tool_choice), **kwargs)

    def token_uncertainty(
        self, message: AIMessage, messages: list[BaseMessage], **settings: Any
    ) -> tuple[TokenUncertainty, ...]:
        """Tell where the uncertainty of an answer sits, token by token; nothing of an answer without tokens.

        Costs a pass and one backward per token.

        Args:
            message: the answer.
            messages: what it answers.
            settings: those of the call that gave it: tools, stop and settings of the generation.
        """
        record = get_message_scores(message)
        if record is None or not record.tokens[record.answer_from :]:
            return ()
        prompt = self._request(messages, settings.pop("stop", None), settings).prompt
        generation = Generation(tuple(prompt), record.tokens, str(message.text), "stop")
        return tuple(self._scorer.attribute(generation, record.answer_from))

    def _answers(self, requests: Sequence[Request], settings: dict[str, Any]) -> list[AIMessage | BaseException]:
        generations = self.scorer.generate([request.prompt for request in requests], **settings)
        whole = [row for row, request in enumerate(requests) if request.gone is None or not request.gone()]
        first, complete = requests[0], [generations[row] for row in whole]
        messages = scored_messages(self.scorer, complete, first.stop, first.tools, scored=self.scored)
        by_row: dict[int, AIMessage] = dict(zip(whole, messages, strict=True))
        return [by_row.get(row) or AbandonedError("The answer has no reader any more.") for row in range(len(requests))]

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        """Yield text as it comes; scores, usage and tool calls are on the last chunk. With tools, all of it is."""
        request, left = self._request(messages, stop, kwargs), Event()
        listener = Listener(self.tokenizer, request)
        answer = self._start(
            replace(request, streamer=listener.streamer, gone=lambda: left.is_set() or request.abandoned)
        )
        answer.add_done_callback(lambda _: listener.end())
        shown = Shown()
        try:
            for now in listener.shown():
                if any(new := now.after(shown)):
                    shown = now
                    yield self._chunk(new.chunk(), run_manager)
            yield self._chunk(last_chunk(answer.result(), shown.answer, shown.reasoning), run_manager)
        finally:
            left.set()  # the consumer may have gone before the end

    def _chunk(self, message: AIMessageChunk, run_manager: CallbackManagerForLLMRun | None) -> ChatGenerationChunk:
        chunk = ChatGenerationChunk(message=message)
        if run_manager is not None:
            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        return chunk

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, of_call: dict[str, Any]) -> Request:
        """Sort what a call was given into the prompt, the tools on offer, and settings of the generation.

        Raises:
            ConfigurationError: messages or settings that this model cannot take.
            PromptTooLongError: the prompt does not fit.
        """
        choice, schemas = of_call.pop("tool_choice", None), list(of_call.pop("tools", None) or ())
        of_call.pop("stream", None)
        of_call.pop("ls_structured_output_format", None)
        most = top_logprobs_of(of_call) if of_call.keys() & {"logprobs", "top_logprobs"} else None
        combined = self._settings(stop, of_call)
        turns = to_template(messages)
        prompt = encode_chat(self.tokenizer, turns, tools=schemas)
        settings = for_model(combined, len(prompt))
        marks = tuple(settings.get("stop_strings", ()))
        if most is not None:
            settings["top_logprobs"] = most
        check_prompt(self.model, prompt, settings)
        forced = None
        if choice is not None and schemas:
            forced = forced_call(self.model, self.tokenizer, turns, schemas, choice or None, prompt)
        return Request(prompt, marks, schemas, settings, forced)


def chat_model(source: Any, tokenizer: Any = None, **settings: Any) -> ChatSemGrad:
    """Wrap anything that a guard takes for its model, by the constructor that fits.

    Raises:
        ConfigurationError: a setting is unknown, wrong, or contradicts another; or it says how to load a model that is
            loaded already.
        UnsupportedModelError: there is no local model behind the source, or it cannot be scored exactly.
    """
    source = with_tokenizer(source, tokenizer)
    if isinstance(source, str | Path):
        return ChatSemGrad.from_pretrained(source, **settings)
    if isinstance(source, tuple | list) and len(source) == 2:
        return ChatSemGrad.from_model(*source, **settings)
    return ChatSemGrad.from_llm(source, **settings)


def _refuse_loading(settings: dict[str, Any]) -> None:
    """Refuse settings that say how a model is loaded, where it is loaded already."""
    refuse_loading(**{name: settings.pop(name, None) for name in ("revision", "dtype", "device")})


def _settings_of_generation(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of the generation out of all settings."""
    return {name: settings.pop(name) for name in [*settings] if name in NAMES}


def _plain(settings: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in sorted(settings.items()) if value is not None}
