"""Streaming: text while the model is still generating, and everything else on the last chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from transformers import TextIteratorStreamer

from semgrad_guard.records import Generation
from semgrad_guard.scoring.scorer import SemGradScorer


class Running:
    """A generation that runs in a thread of its own."""

    def __init__(self, scorer: SemGradScorer, prompt: Sequence[int], settings: dict[str, Any]) -> None:
        """Start it."""
        self._streamer = TextIteratorStreamer(scorer.tokenizer, skip_prompt=True, skip_special_tokens=True)
        pool = ThreadPoolExecutor(max_workers=1)
        self._future: Future[list[Generation]] = pool.submit(self._run, scorer, prompt, settings)
        pool.shutdown(wait=False)

    def _run(self, scorer: SemGradScorer, prompt: Sequence[int], settings: dict[str, Any]) -> list[Generation]:
        try:
            return scorer.generate([prompt], streamer=self._streamer, **settings)
        finally:
            self._streamer.text_queue.put(self._streamer.stop_signal)  # whatever happens, nobody waits for ever

    def texts(self, stop: Sequence[str], *, hold: bool) -> Iterator[str]:
        """Yield the text piece by piece, as it will stand in the message: without blanks at its ends.

        What may turn out to be a stop text, or a blank at the end, is kept back until that is known. With `hold`,
        nothing is yielded.
        """
        text, shown = "", 0
        margin = max((len(mark) - 1 for mark in stop), default=0)
        for piece in self._streamer:
            text = (text + piece).lstrip() if shown == 0 else text + piece
            ends = [place for place in (text.find(mark) for mark in stop) if place >= 0]
            safe = len(text[: min(ends)].rstrip()) if ends else len(text[: len(text) - margin].rstrip())
            if safe > shown and not hold:
                yield text[shown:safe]
                shown = safe

    def generation(self) -> Generation:
        """Wait for the end; raises what the generation raised."""
        return self._future.result()[0]


def last_chunk(message: AIMessage, shown: str) -> AIMessageChunk:
    """Give the chunk that makes what was shown into the message: the rest of its text, tool calls, scores, usage."""
    content = str(message.content)
    calls = [
        tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=place)
        for place, call in enumerate(message.tool_calls)
    ]
    calls += [
        tool_call_chunk(name=None, args=call["args"], id=None, index=len(calls) + place)
        for place, call in enumerate(message.invalid_tool_calls)
    ]
    return AIMessageChunk(
        content=content[len(shown) :] if content.startswith(shown) else "",
        tool_call_chunks=calls,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        chunk_position="last",
    )
