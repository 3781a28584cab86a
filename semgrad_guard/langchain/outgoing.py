"""The message that goes out: the model's own, or another text in its place, with what was decided and why."""

from __future__ import annotations

from langchain_core.messages import AIMessage, AIMessageChunk

from semgrad_guard.errors import LowConfidenceError
from semgrad_guard.langchain.drafts import without_text
from semgrad_guard.langchain.streaming import last_chunk
from semgrad_guard.routing.ladder import Resolution


def outgoing(resolution: Resolution) -> AIMessage:
    """Give the message of a resolution; where the model's answer is withheld, nothing of it is left but its usage.

    Raises:
        LowConfidenceError: the route that settled it wants that.
        Exception: whatever that route has given to be raised.
    """
    if resolution.error is not None:
        raise resolution.error
    if resolution.raises:
        raise LowConfidenceError(resolution.decision, resolution.text or None)
    message: AIMessage = resolution.answer.message or AIMessage("")
    if not resolution.as_drafted:
        message = without_text(message).model_copy(update={"content": resolution.text})
    record = {"semgrad": resolution.decision.model_dump(mode="json")}
    return message.model_copy(update={"response_metadata": message.response_metadata | record})


def last_of_stream(message: AIMessage, shown: str) -> AIMessageChunk:
    """Give the last chunk of a stream that has shown a draft: the decision, and on lines of its own what settled it."""
    if shown and message.content != shown:
        message = message.model_copy(update={"content": f"{shown}\n\n{message.content}"})
    return last_chunk(message, shown)
