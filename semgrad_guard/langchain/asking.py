"""One question on its way through the guard: asking the model, first and again, and judging what it says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import patch_config

from semgrad_guard.calibration.drift import Watch
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.errors import PromptTooLongError
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.langchain.judged import judged, watched_score
from semgrad_guard.langchain.messages import last_question, reads_tool_results
from semgrad_guard.records import Source
from semgrad_guard.routing.ladder import Answer, Situation

logger = logging.getLogger(__name__)

# What may go wrong while answering and means "not sure" rather than a mistake of the caller: the prompt does not fit,
# or memory runs out, which torch reports as a RuntimeError.
_ANSWERING_FAILURES = (PromptTooLongError, MemoryError, RuntimeError)


class Asking:
    """One question on its way through the guard: how it is asked, first and again, and how answers are judged."""

    def __init__(
        self,
        llm: ChatSemGrad,
        standard: Standard,
        watch: Watch | None,
        messages: list[BaseMessage],
        run_manager: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        settings: dict[str, Any],
    ) -> None:
        """Take the question from the messages; `settings` are those of the generation."""
        self.messages = messages
        self._index, self._question = last_question(messages)
        # A token that was shown cannot be taken back: whoever listens to the run gets no draft piece by piece.
        self._llm = llm.model_copy(update={"disable_streaming": True})
        self._standard, self._watch = standard, watch
        self._run_manager, self._config, self._settings = run_manager, config, settings

    def situation(self, draft: Answer, sources: tuple[Source, ...]) -> Situation:
        """Give what a route may know and do."""
        return Situation(self._question, draft, sources, self._ask, self._aask)

    def answer(self, messages: Sequence[BaseMessage], *, retry: bool = False) -> Answer:
        """Let the model answer, and judge; a failure to answer is an answer that does not pass."""
        try:
            message = self._llm.invoke(messages, self._child(retry), **self._settings)
        except _ANSWERING_FAILURES as error:
            return self._failed(error)
        return self._judged(message, retry)

    async def aanswer(self, messages: Sequence[BaseMessage], *, retry: bool = False) -> Answer:
        """Async twin of `answer`."""
        try:
            message = await self._llm.ainvoke(messages, self._child(retry), **self._settings)
        except _ANSWERING_FAILURES as error:
            return self._failed(error)
        return self._judged(message, retry)

    def _ask(self, text: str) -> Answer:
        return self.answer(self._with_question(text), retry=True)

    async def _aask(self, text: str) -> Answer:
        return await self.aanswer(self._with_question(text), retry=True)

    def _with_question(self, text: str) -> list[BaseMessage]:
        messages = list(self.messages)
        messages[self._index] = messages[self._index].model_copy(update={"content": text})
        return messages

    def _child(self, retry: bool) -> RunnableConfig:
        return patch_config(self._config, callbacks=self._run_manager.get_child("retry" if retry else "generate"))

    def _judged(self, message: AIMessage, retry: bool) -> Answer:
        grounded = retry or reads_tool_results(self.messages)
        seen = watched_score(message, grounded=grounded)
        if self._watch is not None and seen is not None:
            self._watch.see(seen)
        return judged(message, self._standard, grounded=grounded)

    def _failed(self, error: BaseException) -> Answer:
        logger.warning("No answer: %s", error)
        return Answer("", self._standard.judge(None, f"no answer: {type(error).__name__}: {error}"))
