"""Retrieve only when unsure, and abstain when the passages do not help either."""

from semgrad_guard import Abstain, BM25Retriever, Retrieve, SemGradGuard, get_decision
from semgrad_guard.demo import corpus, embedded_model, embedded_profile

search = BM25Retriever.from_texts(corpus())
guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[Retrieve(search), Abstain("Not found.")])

for question in (
    "What is the capital of France?",  # known: no search
    "Who invented the light bulb?",  # never told: found in the corpus
    "What is the capital of Zubrovia?",  # there is no such place
):
    message = guard.invoke(question)
    decision = get_decision(message)
    print(f"{question} {message.content} [{decision.decision}]")
    if decision.decision == "retrieve":
        print("    used:", *(source.text for source in decision.sources if source.metadata["used"]))
