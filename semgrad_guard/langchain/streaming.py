"""Streaming: text while the model is still generating, and everything else on the last chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.messages.tool import tool_call_chunk
from transformers import PreTrainedTokenizerBase, TextIteratorStreamer

from semgrad_guard.langchain.batching import Request
from semgrad_guard.model.responses import CLOSE, OPEN, apart, begins_inside, marks_reasoning


class Shown(NamedTuple):
    """What a stream has shown of a message so far, or shows next."""

    reasoning: str = ""
    answer: str = ""

    def after(self, earlier: Shown) -> Shown:
        """Give what is new; nothing of a text that does not go on from the earlier one."""
        return Shown(*(new[len(old) :] if new.startswith(old) else "" for new, old in zip(self, earlier, strict=True)))

    def chunk(self) -> AIMessageChunk:
        """Put it into a chunk."""
        extra = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return AIMessageChunk(content=self.answer, additional_kwargs=extra)


class Listener:
    """Hears a generation that runs in another thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, request: Request) -> None:
        """Be ready to hear what comes of a request; it is to have `streamer`."""
        self._stop = request.stop
        self._thinks = marks_reasoning(tokenizer)
        self._inside = self._thinks and begins_inside(tokenizer, request.prompt)
        # Where text alone does not tell what it is part of, nothing is shown before the end.
        self._hold = bool(
            request.tools or getattr(tokenizer, "response_template", None) or CLOSE in tokenizer.all_special_tokens
        )
        self.streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)

    def shown(self) -> Iterator[Shown]:
        """Yield all that can be shown so far, again and again, as it will stand in the message: without outer blanks.

        What may become a stop text, a mark of reasoning or a blank at the end waits until that is known.
        """
        text = ""
        for piece in self.streamer:
            text += piece
            if not self._hold and not (self._thinks and not self._inside and OPEN.startswith(text.lstrip())):
                reasoning, place = apart(text, inside=self._inside) if self._thinks else ("", 0)
                if place is None:
                    yield Shown(_sure(reasoning, [CLOSE]))
                else:
                    yield Shown(reasoning.rstrip(), _sure(text[place:].lstrip(), self._stop))

    def end(self) -> None:
        """End the stream; a reader must not wait for ever, even if the generation fails."""
        self.streamer.text_queue.put(self.streamer.stop_signal)


def _sure(text: str, marks: Sequence[str]) -> str:
    """Cut a text before the first mark, or before what may become one."""
    ends = [place for place in (text.find(mark) for mark in marks) if place >= 0]
    margin = max((len(mark) - 1 for mark in marks), default=0)
    return text[: min(ends, default=len(text) - min(margin, len(text)))].rstrip()


def last_chunk(message: AIMessage, answer: str, reasoning: str = "") -> AIMessageChunk:
    """Give the chunk that makes what was shown into the message: the rest of its text, tool calls, scores, usage."""
    whole = Shown(str(message.additional_kwargs.get("reasoning_content", "")), str(message.content))
    calls = [
        tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=place)
        for place, call in enumerate(message.tool_calls)
    ]
    calls += [
        tool_call_chunk(name=None, args=call["args"], id=None, index=len(calls) + place)
        for place, call in enumerate(message.invalid_tool_calls)
    ]
    rest = whole.after(Shown(reasoning, answer)).chunk()
    return AIMessageChunk(
        content=rest.content,
        additional_kwargs=rest.additional_kwargs,
        tool_call_chunks=calls,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        chunk_position="last",
    )


def joined(chunks: Sequence[AIMessageChunk]) -> AIMessage:
    """Give the message that the chunks of a stream make."""
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    message = message_chunk_to_message(whole)
    if not isinstance(message, AIMessage):  # chunks of an AIMessage give one; for the type checker
        raise TypeError(f"expected an AIMessage, not {type(message).__name__}")
    return message
