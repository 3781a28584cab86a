"""Drafts: what the model says before it is judged, kept from whoever listens to the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from pydantic import Field, PrivateAttr

from semgrad_guard._compat import agenerate_with_cache, generate_with_cache
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.langchain.child_runs import without_streams

# All that a message tells when its text must not be told. A list of what may stay, since models add fields of their own
# that hold the text again: log-probabilities by token, reasoning.
_TOLD = ("model_name", "model_provider", "revision", "finish_reason")
# LangGraph's sign that a run's messages are not for `stream_mode="messages"`.
_NOT_STREAMED = "nostream"


class Draft(BaseChatModel):
    """A run of a chat model, named "generate", of which callbacks and traces see everything but what the model says.

    They see an empty message with its usage, model and finish reason; with `recorded`, traces see the message itself,
    and streams to the consumer nothing at all.
    """

    llm: ChatSemGrad = Field(repr=False, exclude=True)
    recorded: bool = False
    cache: bool = False  # the model's own is used; one here would keep the empty messages
    _said: AIMessage | None = PrivateAttr(None)

    def ask(self, messages: Sequence[BaseMessage], settings: dict[str, Any]) -> AIMessage:
        """Let the model answer; `settings` are those of the generation."""
        return self._whole(self.invoke(messages, self._config(), **settings))

    async def aask(self, messages: Sequence[BaseMessage], settings: dict[str, Any]) -> AIMessage:
        """Async twin of `ask`."""
        return self._whole(await self.ainvoke(messages, self._config(), **settings))

    @property
    def _llm_type(self) -> str:
        return self.llm._llm_type

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.llm._identifying_params

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.llm._get_ls_params(stop, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._shown(generate_with_cache(self.llm, messages, stop, kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._shown(await agenerate_with_cache(self.llm, messages, stop, kwargs))

    def _shown(self, result: ChatResult) -> ChatResult:
        message = result.generations[0].message
        if not isinstance(message, AIMessage):  # a chat model gives nothing else; for the type checker
            raise TypeError(f"expected an AIMessage, not {type(message).__name__}")
        self._said = message
        shown = message if self.recorded else without_text(message)
        return ChatResult(generations=[ChatGeneration(message=shown)])

    def _whole(self, shown: AIMessage) -> AIMessage:
        return shown if self._said is None else self._said.model_copy(update={"id": shown.id})

    def _config(self) -> RunnableConfig:
        config = RunnableConfig(run_name="generate", tags=[_NOT_STREAMED])
        return without_streams(config) if self.recorded else config


def without_text(message: AIMessage) -> AIMessage:
    """Give an empty message with what may be told of one that is withheld: its usage, model and finish reason."""
    told = {name: value for name, value in message.response_metadata.items() if name in _TOLD}
    return AIMessage("", response_metadata=told, usage_metadata=message.usage_metadata)
