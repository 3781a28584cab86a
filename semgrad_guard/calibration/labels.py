"""Right or wrong: comparing an answer with the right ones, by words or by meaning."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from semgrad_guard.errors import ConfigurationError, DataError, described, needs

# A wrong answer that is called right lets a promise be broken, a right one that is called wrong only costs coverage.
_THRESHOLD = 0.8


class Similarity:
    """Calls an answer right whose sentence embedding is close to a right answer's, each read alone.

    Beside their question, short answers would be easier to tell apart, but an answer that only repeats words of the
    question would be called right. docs/similarity.md measures both, and shows what embeddings do not tell apart:
    numbers, and near names.
    """

    def __init__(self, source: str) -> None:
        """Load the encoder, from safetensors only and without remote code.

        Args:
            source: folder or hub id of a sentence-transformers model; with "@0.9" behind it, the least cosine
                similarity of a right answer is 0.9, otherwise 0.8.

        Raises:
            ConfigurationError: there is no such model, or the extra is not installed; the threshold is out of range.
        """
        name, threshold = _parts(source)
        self.threshold = _THRESHOLD if threshold is None else threshold
        if not 0 < self.threshold < 1:
            raise ConfigurationError(f"labels=similar:{source}: expected a threshold between 0 and 1 behind the @.")
        self._encoder = _encoder(name)

    def __call__(self, question: str, answer: str, right: Sequence[str]) -> bool:
        """Tell whether the cosine similarity with one of the right answers reaches the threshold."""
        if not answer.strip():
            return False
        embedded, *references = self._encoder.encode(
            [answer, *right], normalize_embeddings=True, show_progress_bar=False
        )
        return any(float(embedded @ reference) >= self.threshold for reference in references)


def _parts(source: str) -> tuple[str, float | None]:
    name, _, suffix = source.rpartition("@")
    number = re.fullmatch(r"\d+(?:\.\d+)?|\.\d+", suffix)
    return (name, float(suffix)) if name and number else (source, None)


def _encoder(name: str) -> Any:
    with needs("similarity", "Similarity needs sentence-transformers"):
        from sentence_transformers import SentenceTransformer
    try:
        return SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()
        raise ConfigurationError(
            f"Cannot load {name!r} as a sentence-transformers model with safetensors weights: "
            f"{cause[0] if cause else type(error).__name__}"
        ) from error


logger = logging.getLogger(__name__)

Labeler = Callable[[str, str, Sequence[str]], bool | None]
"""From a question, the answer given and the right answers to whether it is right; None where that cannot be told."""

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_ARTICLES = {"a", "an", "the"}
_STEM = 5  # letters of a word that its other forms share
# Words without content of their own. Those that turn a sentence's meaning, such as "not", are none of them.
_EMPTY = set(
    "am and are as at be been being but by can could did do does for from had has have he her his i if in into is it "
    "its may might of on or our she should so such than that their them there these they this those to was we were "
    "which who will with would you your".split()
)
_F1 = 0.5
_SIMILAR = "similar:"
_FAILURES, _FAILING = 5, 0.1  # so many labels, or this share of them if that is more, may fail


def words(text: str) -> list[str]:
    """Split a text into words for comparison: without case, accents of form, punctuation and articles.

    Digits are joined across thousands separators, and number words up to twenty become digits.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(r"(?<=\d)[,\u00a0\u202f'](?=\d{3}\b)", "", plain)
    tokens = re.findall(r"\d+(?:\.\d+)?|[^\W_]+", plain)
    without_articles = [word for word in tokens if word not in _ARTICLES] or tokens
    return [_NUMBERS.get(word, word) for word in without_articles]


def same(question: str, answer: str, right: Sequence[str]) -> bool:
    """Tell whether an answer is one of the right ones, word by word."""
    answer_words = words(answer)
    return bool(answer_words) and any(answer_words == words(one) for one in right)


def contains(question: str, answer: str, right: Sequence[str]) -> bool:
    """Tell whether one of the right answers stands in the answer, as whole words in a row."""
    row = _in_a_row(words(answer))
    return any(_in_a_row(one) in row for one in map(words, right) if one)


def _in_a_row(words_in_order: Sequence[str]) -> str:
    """Join words, none of which holds a blank, so that one row of words can be searched in another in linear time."""
    return f" {' '.join(words_in_order)} "


def token_f1(answer: str, right: Sequence[str]) -> float:
    """Give the best F1 of shared words between an answer and a right one, in [0, 1]; *higher = more alike*."""
    counts, best = Counter(words(answer)), 0.0
    for one in map(words, right):
        shared = sum((counts & Counter(one)).values())
        if shared:
            best = max(best, 2 * shared / (sum(counts.values()) + len(one)))
    return best


def shares_words(question: str, answer: str, right: Sequence[str]) -> bool:
    """Tell whether an answer shares enough words with a right one: token F1 of at least one half."""
    return token_f1(answer, right) >= _F1


def either_contains(question: str, answer: str, right: Sequence[str]) -> bool:
    """Tell whether the answer holds a right one, or says in brief what a right one says at length.

    Words without content of their own are left out on both sides: "It was in California." is right where "Fortune
    cookies originated in California" is. An answer that only repeats words of the question, or such words, is wrong.
    """
    said, asked = _content(answer), {word[:_STEM] for word in words(question)}
    if contains(question, answer, right):
        return True
    if all(word[:_STEM] in asked for word in said):
        return False
    row = _in_a_row(said)
    return any(one and (row in _in_a_row(one) or _in_a_row(one) in row) for one in map(_content, right))


def _content(text: str) -> list[str]:
    return [word for word in words(text) if word not in _EMPTY]


LABELERS: dict[str, Labeler] = {
    "match": same,
    "contains": contains,
    "either": either_contains,
    "f1": shares_words,
}


def labeler(name: str) -> Labeler:
    """Find a labeler by name: "match", "contains", "either", "f1", or "similar:" with an encoder's folder or hub id.

    Raises:
        ConfigurationError: there is none of that name, or its encoder cannot be loaded.
    """
    if name.startswith(_SIMILAR):
        return Similarity(name.removeprefix(_SIMILAR))
    if name not in LABELERS:
        raise ConfigurationError(
            f"labels={name!r}: expected one of {', '.join(LABELERS)}, {_SIMILAR}FOLDER_OR_ID, or a function."
        )
    return LABELERS[name]


def tolerant(label: Labeler) -> Labeler:
    """Let a labeler of the caller's, such as a judge over a network, fail now and then without losing the run.

    An answer whose label fails stays without one, and a warning gives its number. The promise is then about answers
    that can be labelled; a labeler that fails often would leave out too many for that.

    Raises:
        DataError: more than five labels, and more than a tenth of those so far, have failed.
    """
    count = failed = 0

    def labelled(question: str, answer: str, right: Sequence[str]) -> bool | None:
        nonlocal count, failed
        count += 1
        try:
            return label(question, answer, right)
        except Exception as error:  # whatever a judge may raise
            failed += 1
            logger.warning("No label for answer %d: %s", count, described(error))
            if failed > max(_FAILURES, _FAILING * count):
                raise DataError(
                    f"{failed} of {count} labels failed, the last for {question!r}: {type(error).__name__}: {error}"
                ) from error
            return None

    return labelled
