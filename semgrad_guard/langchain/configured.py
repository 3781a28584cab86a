"""`ConfiguredChatModel`: LangChain's standard settings of a chat model, checked wherever they are made."""

from __future__ import annotations

from typing import Any

from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from pydantic import Field

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.langchain.batching import BatchedChatModel
from semgrad_guard.langchain.generation_settings import FIELDS, as_fields, for_model, layer, over
from semgrad_guard.langchain.messages import to_messages
from semgrad_guard.settings import checked

# Of LangChain's standard settings, those that only models behind a network have a use for.
_OF_NETWORKS = ("max_retries", "api_key")
# What a call has beside settings of the generation.
OF_CALLS = ("tools", "tool_choice", "logprobs", "top_logprobs", "stream", "ls_structured_output_format")


class ConfiguredChatModel(BatchedChatModel):
    """A chat model with settings of the generation, which a call, or `bind`, may make as well.

    `temperature` is 0 for the likeliest token each time; above 0, tokens are drawn. `max_tokens` counts the answer
    alone. `stop` are texts that the answer ends before. With a `seed`, what is drawn is the same again. `timeout` is in
    seconds; an answer that is cut off by it never passes. `generation` holds keywords of `model.generate`; these
    settings stand over what it says of the same. What is None is the model's own. Unknown settings, wrong values and
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
        """Check the settings, and the model; `of` wraps whatever the user has.

        `max_retries` and `api_key`, which LangChain's standard settings include, are accepted and have no use here.

        Raises:
            ConfigurationError: a setting is unknown, wrong, or contradicts another.
            UnsupportedModelError: the model cannot be scored exactly.
        """
        if args:
            raise ConfigurationError(
                f"{type(self).__name__} takes its settings by name; write ChatSemGrad.of((model, tokenizer))."
            )
        for name in _OF_NETWORKS:
            settings.pop(name, None)
        fields = type(self).model_fields
        others = {name: settings.pop(name) for name in [*settings] if name not in fields}
        keywords = layer(
            others, {name: settings.get(name) for name in FIELDS}, owner=type(self), known=self.setting_names()
        )
        generation = settings.get("generation", {})
        if isinstance(generation, dict):  # else pydantic refuses it below
            generation = layer(generation, owner=type(self))
            if others:
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
        plain = {name: getattr(self, name) for name in FIELDS}
        return over(layer(self.generation, owner=type(self)), layer(plain, owner=type(self)))

    def _settings(self, stop: list[str] | str | None, given: dict[str, Any]) -> dict[str, Any]:
        """Let the settings of a call stand over the chat model's own."""
        return over(self._layer(), layer(given, {"stop": stop}, owner=type(self)))

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
