"""A route of your own in a chain, behind HTTP, in the metrics and before reviewers: all of them know its decision."""

import tempfile

from fastapi.testclient import TestClient
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from semgrad_guard import HumanReview, Outcome, Route, SemGradGuard, Situation, get_decision
from semgrad_guard.demo import embedded_model, embedded_profile
from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.review import ReviewQueue
from semgrad_guard.serving.app import application
from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.worker import Worker


class LookUpHours(Route):
    """Settles questions about opening hours from a table."""

    decision = "table"

    def attempt(self, situation: Situation) -> Outcome:
        """Answer from the table, or leave the question to the next route."""
        known = "museum" in situation.question
        return Outcome(known, "in the table" if known else "not in the table", "From 9 to 17." if known else "")


in_table, unknown = "When does the museum in Zubrovia open?", "What is the capital of Zubrovia?"
with tempfile.TemporaryDirectory() as folder:
    queue, metrics = ReviewQueue(f"sqlite:///{folder}/reviews.db"), Metrics(decisions=["table"])
    routes = [LookUpHours(), HumanReview(queue=queue)]
    guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=routes)

    chain = ChatPromptTemplate.from_template("{question}") | guard
    print("chain:", (chain | StrOutputParser()).invoke({"question": in_table}))
    for question in (in_table, unknown):
        decision = get_decision(chain.invoke({"question": question}))
        metrics.answered(decision, seconds=0.1)
        print("guard:", decision.decision, decision.answered, decision.cause)

    (review,) = queue.items()  # only what the table does not know comes before a human
    print("review:", review.request.question, review.request.verdict.cause)

    worker = Worker(guard, name="demo", first=[LookUpHours()], reviews=queue)
    with TestClient(application(LocalEngine(worker), metrics=metrics)) as client:
        asked = {"model": "demo", "messages": [{"role": "user", "content": in_table}]}
        choice = client.post("/v1/chat/completions", json=asked).json()["choices"][0]
        print("service:", choice["message"]["content"], choice["semgrad"]["decision"])
        counted = client.get("/metrics").text
    print("metrics:", *(line for line in counted.splitlines() if 'decision="table"' in line and "created" not in line))
    queue.close()
