"""Right or wrong by meaning: how alike the sentence embeddings of two answers are; needs the extra `similarity`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.extras import needs

# A wrong answer that is called right lets a promise be broken, a right one that is called wrong only costs coverage.
_THRESHOLD = 0.8


class Similarity:
    """Calls an answer right whose sentence embedding is close to a right answer's, each read alone.

    With the question beside them, short answers would be told from long ones better, but an answer that only repeats
    words of the question would be called right. docs/similarity.md measures both, and shows what embeddings do not tell
    apart: numbers, and near names.
    """

    def __init__(self, source: str) -> None:
        """Load the encoder, from safetensors only and without remote code.

        Args:
            source: folder or hub id of a sentence-transformers model; with "@0.9" behind it, the least cosine
                similarity of a right answer is 0.9, otherwise 0.8.

        Raises:
            ConfigurationError: there is no such model, or the extra is not installed; the threshold is out of range.
        """
        name, given = _parts(source)
        self.threshold = _THRESHOLD if given is None else given
        if not 0 < self.threshold < 1:
            raise ConfigurationError(f"labels=similar:{source}: expected a threshold between 0 and 1 behind the @.")
        self._encoder = _encoder(name)

    def __call__(self, question: str, answer: str, right: Sequence[str]) -> bool:
        """Tell whether the cosine similarity with one of the right answers reaches the threshold."""
        if not answer.strip():
            return False
        given, *others = self._encoder.encode([answer, *right], normalize_embeddings=True, show_progress_bar=False)
        return any(float(given @ other) >= self.threshold for other in others)


def _parts(source: str) -> tuple[str, float | None]:
    name, _, given = source.rpartition("@")
    number = re.fullmatch(r"\d+(?:\.\d+)?|\.\d+", given)
    return (name, float(given)) if name and number else (source, None)


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
