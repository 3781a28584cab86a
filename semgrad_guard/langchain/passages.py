"""What a retriever gives, as sources: documents or texts, alone or each with a score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import bm25s
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.retrievers import BaseRetriever
from pydantic import Field

from semgrad_guard.errors import RetrievalError
from semgrad_guard.records import Source

_EXPECTED = "expected documents or texts, alone or each with a score"


def sources_from(result: object, most: int) -> list[Source]:
    """Read the first passages of what a retriever gave.

    Args:
        result: one text, or anything that can be gone through: a list, a tuple, a generator. Each passage is a text or
            has a text as `page_content`; in a pair with its score, the score goes into the metadata.
        most: how many are read; the rest is left where it is.

    Raises:
        RetrievalError: it is something else.
    """
    if isinstance(result, str) or _text(result) is not None:
        return [_source(result, 1)]
    if isinstance(result, bytes | Mapping) or not isinstance(result, Iterable):
        raise RetrievalError(f"The retriever gave a {type(result).__name__}; {_EXPECTED}.")
    return [_source(passage, place) for place, passage in enumerate(islice(result, most), start=1)]


def query_from(rewritten: object, question: str) -> str:
    """Read the query that a rewriter gave; where it is empty, the question is the query.

    Raises:
        RetrievalError: it is no text.
    """
    text = rewritten.text if isinstance(rewritten, BaseMessage) else rewritten
    if text is not None and not isinstance(text, str):
        raise RetrievalError(f"rewrite gave a {type(text).__name__}; expected a text or a message.")
    return str(text or "").strip() or question


def _source(passage: Any, place: int) -> Source:
    score: dict[str, Any] = {}
    if isinstance(passage, tuple) and len(passage) == 2 and _text(passage[1]) is None:
        passage, score = passage[0], {"score": passage[1]}
    text = _text(passage)
    if text is None:
        raise RetrievalError(f"Passage {place} of the retriever is a {type(passage).__name__}; {_EXPECTED}.")
    metadata = passage.get("metadata") if isinstance(passage, Mapping) else getattr(passage, "metadata", None)
    return Source(text=text, metadata=score | dict(metadata if isinstance(metadata, Mapping) else {}))


def _text(passage: object) -> str | None:
    if isinstance(passage, str):
        return passage
    text = passage.get("page_content") if isinstance(passage, Mapping) else getattr(passage, "page_content", None)
    return text if isinstance(text, str) else None


class BM25Retriever(BaseRetriever):
    """Find the documents that share the rarest words with a query; those that share none are left out."""

    documents: list[Document]
    k: int = Field(default=3, ge=1)
    index: Any = Field(repr=False, exclude=True)

    @classmethod
    def from_texts(cls, texts: Sequence[str], *, k: int = 3) -> BM25Retriever:
        """Index texts; `metadata["index"]` of a document is the text's place in the sequence."""
        index = bm25s.BM25()
        index.index(_words(list(texts)), show_progress=False)
        documents = [Document(text, metadata={"index": place}) for place, text in enumerate(texts)]
        return cls(documents=documents, k=k, index=index)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        most = min(self.k, len(self.documents))
        places, scores = self.index.retrieve(_words([query]), k=most, show_progress=False)
        return [
            self.documents[place]
            for place, score in zip(places[0].tolist(), scores[0].tolist(), strict=True)
            if score > 0
        ]


def _words(texts: list[str]) -> Any:
    return bm25s.tokenize(texts, stopwords="en", show_progress=False)
