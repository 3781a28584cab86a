"""Drafts and child runs: callbacks and traces see the guard's steps, and not the texts of drafts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ensure_config
from langsmith.run_helpers import tracing_context
from pydantic import Field, PrivateAttr

from semgrad_guard._compat import agenerate_with_cache, generate_with_cache, streams, tracing_variables
from semgrad_guard.langchain.chat_model import ChatSemGrad

T = TypeVar("T")


def step(name: str, shown: dict[str, Any], work: Callable[[], tuple[T, dict[str, Any]]]) -> T:
    """Do a piece of work as a child run; the work gives its result, and what callbacks and traces may see of that."""
    results: list[T] = []

    def run(_: dict[str, Any]) -> dict[str, Any]:
        result, visible = work()
        results.append(result)
        return visible

    RunnableLambda(run, name=name).invoke(shown, _marked(shown))
    return results[0]


async def astep(name: str, shown: dict[str, Any], work: Callable[[], Awaitable[tuple[T, dict[str, Any]]]]) -> T:
    """Async twin of `step`."""
    results: list[T] = []

    async def run(_: dict[str, Any]) -> dict[str, Any]:
        result, visible = await work()
        results.append(result)
        return visible

    await RunnableLambda(run, name=name).ainvoke(shown, _marked(shown))
    return results[0]


def in_metadata(name: str) -> str:
    """Name the entry of a run's metadata that repeats what a step is shown to take."""
    return f"semgrad_{name}"


def without_streams(config: RunnableConfig | None = None) -> RunnableConfig:
    """Give the configuration of a child run that traces see, and streams to the consumer do not."""
    config = ensure_config(config)
    present = config.get("callbacks")
    if isinstance(present, list):
        return {**config, "callbacks": [handler for handler in present if not streams(handler)]}
    if present is None:
        return config
    manager: CallbackManager | AsyncCallbackManager = present.copy()  # type: ignore[assignment]  # its own type
    manager.handlers = [handler for handler in manager.handlers if not streams(handler)]
    manager.inheritable_handlers = [handler for handler in manager.inheritable_handlers if not streams(handler)]
    return {**config, "callbacks": manager}


@contextmanager
def unseen() -> Iterator[RunnableConfig]:
    """Give a configuration, and a context, in which neither the caller's callbacks nor tracers hear of what runs."""
    before = [(variable, variable.set(None)) for variable in tracing_variables()]
    try:
        with tracing_context(enabled=False):
            yield RunnableConfig(callbacks=[])
    finally:
        for variable, token in before:
            variable.reset(token)


def _marked(shown: dict[str, Any]) -> RunnableConfig:
    return RunnableConfig(metadata={in_metadata(name): value for name, value in shown.items()})


# The metadata of a message that stay when its text is withheld. A list of what may stay, since models add other fields
# that hold the text again: log-probabilities by token, reasoning.
_VISIBLE = ("model_name", "model_provider", "revision", "finish_reason")
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
    _answer: AIMessage | None = PrivateAttr(None)

    def ask(self, messages: Sequence[BaseMessage], settings: dict[str, Any]) -> AIMessage:
        """Let the model answer; `settings` are those of the generation."""
        return self._whole(self.invoke(messages, self._config(), **settings))

    async def aask(self, messages: Sequence[BaseMessage], settings: dict[str, Any]) -> AIMessage:
        """Async twin of `ask`."""
        return self._whole(await self.ainvoke(messages, self._config(), **settings))

    @property
    def _llm_type(self) -> str:
        return "semgrad"  # that of the model

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
        self._answer = message
        shown = message if self.recorded else without_text(message)
        return ChatResult(generations=[ChatGeneration(message=shown)])

    def _whole(self, shown: AIMessage) -> AIMessage:
        return shown if self._answer is None else self._answer.model_copy(update={"id": shown.id})

    def _config(self) -> RunnableConfig:
        config = RunnableConfig(run_name="generate", tags=[_NOT_STREAMED])
        return without_streams(config) if self.recorded else config


def without_text(message: AIMessage) -> AIMessage:
    """Give an empty message with the usage, model and finish reason of one that is withheld."""
    visible = {name: value for name, value in message.response_metadata.items() if name in _VISIBLE}
    return AIMessage("", response_metadata=visible, usage_metadata=message.usage_metadata)
