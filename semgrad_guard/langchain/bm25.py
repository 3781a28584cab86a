"""A BM25 retriever over texts in memory: lexical search with no model and no service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bm25s
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field


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
