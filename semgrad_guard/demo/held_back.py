"""Something to review at once: questions that the embedded model's guard holds back, put into a queue."""

from semgrad_guard.demo.embedded import embedded_model, embedded_profile
from semgrad_guard.langchain.guard import SemGradGuard
from semgrad_guard.routing.routes import HumanReview, Queue

_QUESTIONS = (
    "What is the capital of Zubrovia?",
    "Who invented the light bulb?",
    "Who wrote The Winter of Glass?",
    "What is the currency of Zubrovia?",
    "What is the symbol of the element Fantasium?",
    "Who painted The Blue Orchard?",
    "What is the capital of Freedonia?",
    "Who composed The Silent Garden?",
)


def hold_back(queue: Queue) -> int:
    """Let the embedded model answer some questions, and give the number of answers that now wait in the queue."""
    guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[HumanReview(queue=queue)])
    messages = guard.batch([*_QUESTIONS], {"max_concurrency": 1})
    return sum(message.response_metadata["semgrad"]["review_id"] is not None for message in messages)
