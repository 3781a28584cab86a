"""Right or wrong as another model sees it: labels from any LangChain model or chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable

from semgrad_guard.calibration.labels import words
from semgrad_guard.errors import ConfigurationError, DataError
from semgrad_guard.settings import shown, warn_of_old

# The task stands last, after the answer, so that no answer has the last word.
_PROMPT = """Question: {question}
Right answers: {right}
Answer given: {answer}

Does the answer given say the same as one of the right answers? Reply with yes or no only."""


class LLMJudge:
    """A labeler that lets a model say whether answers are right: `guard.calibrated(examples, labels=LLMJudge(llm))`.

    A judge errs too, and what is promised is then promised of its labels: compare some of them with your own.
    """

    def __init__(self, llm: Runnable[Any, Any]) -> None:
        """Set the judge.

        Args:
            llm: a chat model or a chain that takes a text, and gives a message or a text that begins with yes or no.

        Raises:
            ConfigurationError: it is no Runnable.
        """
        if not isinstance(llm, Runnable):
            raise ConfigurationError(f"LLMJudge({shown(llm)}): expected a chat model, or a chain that gives a text.")
        self.llm = llm

    def __call__(self, question: str, answer: str, right: Sequence[str]) -> bool:
        """Tell whether an answer says the same as one of the right ones.

        Raises:
            DataError: the reply is neither yes nor no; the error names the question and the reply.
        """
        reply = self.llm.invoke(_PROMPT.format(question=question, right="; ".join(right), answer=answer.strip()))
        text = str(reply.text) if isinstance(reply, BaseMessage) else reply
        first = words(text)[:1] if isinstance(text, str) else []
        if first not in (["yes"], ["no"]):
            raise DataError(f"Judging the answer to {question!r}: expected a reply of yes or no, not {text!r}.")
        return first == ["yes"]

    def __repr__(self) -> str:
        """Name the model."""
        return f"LLMJudge({type(self.llm).__name__})"


def judged_by(model: Runnable[Any, Any]) -> LLMJudge:
    """Give an `LLMJudge`, whose old name this is."""
    warn_of_old("judged_by", "LLMJudge")
    return LLMJudge(model)
