"""Parts of a response's text, and the tokens that hold them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

TextSpan = tuple[int, int]
# A sentence ends with its mark and any closing quotes or brackets, before a blank; a line break ends one too. A mark
# after an initial or a digit's dot, as in "J. S. Bach" or "3.", does not count.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b\d)[.!?\u3002\uff01\uff1f]+[\"'\u201d\u2019)\]]*(?=\s)|\n+|(?<=[\u3002\uff01\uff1f])"
)
# White space, what controls and formats text, halves of surrogate pairs, and marks that stand on other characters.
_UNSEEN_CATEGORIES = ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Mn", "Me")
_UNSEEN = (
    "\u115f\u1160\u2800\u3164\uffa0"  # fillers of Hangul and an empty Braille cell, which count as letters or signs
)


def is_blank(text: str) -> bool:
    """Tell whether a text has no visible character."""
    return all(char in _UNSEEN or unicodedata.category(char) in _UNSEEN_CATEGORIES for char in text)


def sentence_spans(text: str) -> list[TextSpan]:
    """Split a text into sentences, as (start, stop) in characters without the blanks around them.

    It goes by punctuation alone; an abbreviation in the middle of a sentence may split it.
    """
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
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
    begun = (tokenizer.decode(list(ids[:count]), skip_special_tokens=True) for count in range(len(ids)))
    starts = [_common(str(beginning), text) for beginning in begun]
    starts.append(len(text))
    found = []
    for start, stop in spans:
        inside = [token for token in range(len(ids)) if starts[token] < stop and starts[token + 1] > start]
        found.append((inside[0], inside[-1] + 1))
    return found


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Give the text of each token where it stands, blanks before it included; joined they are the whole text.

    A character made of several tokens belongs to the last of them.
    """
    whole = str(tokenizer.decode(list(ids)))
    starts = [_common(str(tokenizer.decode(list(ids[:count]))), whole) for count in range(len(ids))]
    return [whole[start:stop] for start, stop in zip(starts, [*starts[1:], len(whole)], strict=True)]


def _common(first: str, second: str) -> int:
    """Count the characters two texts begin with alike: half a character at the end of the first is not one yet."""
    length = 0
    for ours, theirs in zip(first, second, strict=False):
        if ours != theirs:
            break
        length += 1
    return length
