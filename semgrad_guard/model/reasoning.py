"""Reasoning in a response: where the model thinks first and answers then, and where the answer begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
_TAIL = 32  # tokens of the prompt's end that are looked at for an opening mark


def marks_reasoning(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the model marks reasoning as `<think>...</think>`: its template or its tokens name the mark."""
    return CLOSE in str(tokenizer.chat_template) or CLOSE in tokenizer.get_added_vocab()


def begins_inside(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> bool:
    """Tell whether the prompt ends with the opening mark, so that the response begins inside the reasoning."""
    return str(tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False)).rstrip().endswith(OPEN)


def apart(text: str, *, inside: bool) -> tuple[str, int | None]:
    """Take a response apart into its reasoning, without the marks, and the place where the answer begins.

    The place is None as long as the reasoning has not ended. `inside` says that it was opened by the prompt.
    """
    if not (inside or text.lstrip().startswith(OPEN)):
        return "", 0
    thought, closed, _ = text.partition(CLOSE)
    return thought.lstrip().removeprefix(OPEN).lstrip(), len(thought + closed) if closed else None


def token_at(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], place: int) -> int:
    """Find the token that holds the character at a place of the response, special tokens included in its text."""
    return bisect_right(
        range(1, len(ids) + 1),
        place,
        key=lambda count: len(str(tokenizer.decode(list(ids[:count]), skip_special_tokens=False))),
    )
