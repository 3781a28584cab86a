"""Right or wrong as another model sees it: labels from any LangChain model or chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable

from semgrad_guard.calibration.labels import Labeler, words
from semgrad_guard.errors import DataError

# What is asked comes last, after the answer: whatever an answer says, it is not the last word.
_PROMPT = """Question: {question}
Right answers: {right}
Answer given: {answer}

Does the answer given say the same as one of the right answers? Reply with yes or no only."""


def judged_by(model: Runnable[Any, Any]) -> Labeler:
    """Let a model say whether answers are right: `guard.calibrate(examples, labels=judged_by(llm))`.

    A judge errs too, and what is promised is then promised of its labels: compare some of them with your own.

    Args:
        model: takes a text and gives a message or a text that begins with yes or no; a chat model, or a chain.

    Raises:
        DataError: when labelling, naming the question and the reply, where that is neither.
    """

    def label(question: str, answer: str, right: Sequence[str]) -> bool:
        reply = model.invoke(_PROMPT.format(question=question, right="; ".join(right), answer=answer.strip()))
        text = str(reply.text) if isinstance(reply, BaseMessage) else reply
        first = words(text)[:1] if isinstance(text, str) else []
        if first not in (["yes"], ["no"]):
            raise DataError(f"Judging the answer to {question!r}: expected a reply of yes or no, not {text!r}.")
        return first == ["yes"]

    return label
