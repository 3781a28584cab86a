"""Streaming: text while the model is still generating, and everything else on the last chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any, NamedTuple

import torch
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from semgrad_guard.langchain.request import Request, joint_settings
from semgrad_guard.model.reasoning import CLOSE, OPEN, apart, begins_inside, marks_reasoning
from semgrad_guard.records import Generation
from semgrad_guard.scoring.scorer import SemGradScorer


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


class _Abandoned(StoppingCriteria):
    """Ends a generation that nobody waits for any more."""

    def __init__(self) -> None:
        self.event = Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class Running:
    """A generation that runs in a thread of its own."""

    def __init__(self, scorer: SemGradScorer, request: Request) -> None:
        """Start it."""
        tokenizer, self._stop = scorer.tokenizer, request.stop
        self._thinks = marks_reasoning(tokenizer)
        self._inside = self._thinks and begins_inside(tokenizer, request.prompt)
        # Where text alone does not tell what it is part of, nothing is shown before the end.
        self._hold = bool(
            request.tools or getattr(tokenizer, "response_template", None) or CLOSE in tokenizer.all_special_tokens
        )
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._abandoned = _Abandoned()
        settings = joint_settings([request])
        criteria = StoppingCriteriaList([*settings.get("stopping_criteria", ()), self._abandoned])
        pool = ThreadPoolExecutor(max_workers=1)
        self._future: Future[list[Generation]] = pool.submit(
            self._run, scorer, request.prompt, settings | {"stopping_criteria": criteria}
        )
        pool.shutdown(wait=False)

    def _run(self, scorer: SemGradScorer, prompt: Sequence[int], settings: dict[str, Any]) -> list[Generation]:
        try:
            return scorer.generate([prompt], streamer=self._streamer, **settings)
        finally:
            self._streamer.text_queue.put(self._streamer.stop_signal)  # whatever happens, nobody waits for ever

    def shown(self) -> Iterator[Shown]:
        """Yield all that can be shown so far, again and again, as it will stand in the message: without outer blanks.

        What may turn out to be a stop text, a mark of reasoning or a blank at the end is kept back until that is known.
        """
        text = ""
        for piece in self._streamer:
            text += piece
            if not self._hold and not (self._thinks and not self._inside and OPEN.startswith(text.lstrip())):
                reasoning, place = apart(text, inside=self._inside) if self._thinks else ("", 0)
                if place is None:
                    yield Shown(_sure(reasoning, [CLOSE]))
                else:
                    yield Shown(reasoning.rstrip(), _sure(text[place:].lstrip(), self._stop))

    def generation(self) -> Generation:
        """Wait for the end; raises what the generation raised."""
        return self._future.result()[0]

    def abandon(self) -> None:
        """End it at the next token."""
        self._abandoned.event.set()


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
