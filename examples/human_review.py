"""Hand unsure answers to a human; here a scripted one."""

from semgrad_guard import HumanReview, ReviewAnswer, ReviewRequest, SemGradGuard
from semgrad_guard.demo import embedded_model, embedded_profile


def reviewer(request: ReviewRequest) -> ReviewAnswer:
    """See question, draft and reason; approve, edit, reject, or respond with an answer of one's own."""
    print(f"held back: {request.draft!r} to {request.question!r}: {request.verdict.reason}")
    return ReviewAnswer(decision="respond", text="There is no such place.")


guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[HumanReview(reviewer, timeout_seconds=60)])
for question in ("What is the capital of France?", "What is the capital of Zubrovia?"):
    print(question, guard.invoke(question).content)
