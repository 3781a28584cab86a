"""Parts of a response's text, and the tokens that hold them."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

TextSpan = tuple[int, int]
# A sentence ends with its mark and any closing quotes or brackets, before a blank; a line break ends one too. A mark
# after an initial or a digit's dot, as in "J. S. Bach" or "3.", does not count. Every run of marks is looked at once,
# from its beginning and without going back (`++`), so that the time grows with the text's length alone.
_MARK = "[.!?\u3002\uff01\uff1f]"
_SENTENCE_END = re.compile(
    rf"(?:(?<!{_MARK})(?<!\b[A-Z])(?<!\b\d)|(?<=\b[A-Z]{_MARK})|(?<=\b\d{_MARK})){_MARK}++"
    "[\"'\u201d\u2019)\\]]*+(?=\\s)|\n+|(?<=[\u3002\uff01\uff1f])"
)
_CONTEXT = 8  # tokens decoded before a new one, since some are written otherwise at the beginning of a text
_PATIENCE = 64  # tokens looked at one by one until they make text; after that, at every doubling


def sentence_spans(text: str) -> list[TextSpan]:
    """Split a text into sentences, as (start, stop) in characters without the blanks around them.

    It goes by punctuation alone; an abbreviation in the middle of a sentence may split it.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    spans = []
    for start, stop in zip([0, *ends], [*ends, len(text)], strict=True):
        part = text[start:stop]
        if part.strip():
            begin = start + len(part) - len(part.lstrip())
            spans.append((begin, begin + len(part.strip())))
    return spans


def token_spans(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str, spans: Sequence[TextSpan]
) -> list[TextSpan]:
    """Find the tokens that hold characters of a response, as (start, stop) in tokens.

    Args:
        tokenizer: the model's.
        ids: response ids.
        text: the response as decoded from them.
        spans: (start, stop) in characters of `text`; not empty.
    """
    starts = _starts(lambda part: str(tokenizer.decode(list(part), skip_special_tokens=True)), ids, text)
    return [
        (bisect_right(starts, start, hi=len(ids)) - 1, bisect_left(starts, stop, hi=len(ids))) for start, stop in spans
    ]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Give the text of each token where it stands, blanks before it included; joined they are the whole text.

    A character made of several tokens belongs to the last of them.
    """
    whole = str(tokenizer.decode(list(ids)))
    starts = _starts(lambda part: str(tokenizer.decode(list(part))), ids, whole)
    return [whole[start:stop] for start, stop in zip(starts, [*starts[1:], len(whole)], strict=True)]


def _starts(decode: Callable[[Sequence[int]], str], ids: Sequence[int], text: str) -> list[int]:
    """Give the character of the text at which each token begins.

    A token is decoded with a few before it, not with all of them, so that the time grows with the length of the
    response and not with its square.
    """
    starts: list[int] = []
    anchor, place, known = 0, 0, 0  # the tokens before `anchor` make text[:place]; `known` characters of it are sure
    context, shown = 0, ""  # decoded from `context` on, they are `shown`
    look = 1
    for count in range(len(ids)):
        if count - anchor >= look:
            look = count - anchor + 1 if count - anchor < _PATIENCE else 2 * (count - anchor)
            more = decode(ids[context:count])
            if more.startswith(shown):
                new = more[len(shown) :]
                known = max(known, place + _common(new, text[place : place + len(new)]))
                if known == place + len(new):
                    anchor, place, look = count, known, 1
                    context = max(0, anchor - _CONTEXT)
                    shown = decode(ids[context:anchor])
        starts.append(known)
    return starts


def _common(first: str, second: str) -> int:
    """Count the characters that two texts share at the beginning; half a character does not count."""
    length = 0
    for ours, theirs in zip(first, second, strict=False):
        if ours != theirs:
            break
        length += 1
    return length
