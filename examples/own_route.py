"""A route of your own: questions about opening hours go to a table, whatever else is unsure to a colleague."""

from semgrad_guard import Abstain, Outcome, Route, SemGradGuard, Situation, get_decision
from semgrad_guard.demo import embedded_model, embedded_profile

HOURS = {"museum": "9 to 17", "library": "10 to 20"}


class LookUpHours(Route):
    """Settles questions that name a place whose opening hours are known."""

    decision = "table"  # stands in the record of every answer that this route settles

    def attempt(self, situation: Situation) -> Outcome:
        """Answer from the table, or leave the question to the next route."""
        for place, hours in HOURS.items():
            if place in situation.question.lower():
                return Outcome(True, f"the table has the {place}", f"The {place} is open from {hours}.")
        return Outcome(False, "the table has no such place")


class AskDifferently(Route):
    """Asks the model again in other words, and lets that answer out if it is sure."""

    decision = "reworded"
    below = 0.8  # applies where the confidence is lower; without it, wherever an answer does not pass

    def attempt(self, situation: Situation) -> Outcome:
        """Ask again, and settle if the new answer passes."""
        answer = situation.ask(f"Please tell me: {situation.question}")
        return Outcome(answer.verdict.passed, answer.verdict.reason, answer.text, answer, as_drafted=True)


guard = SemGradGuard(
    embedded_model(), profile=embedded_profile(), routes=[LookUpHours(), AskDifferently(), Abstain("Ask a colleague.")]
)

for question in (
    "What is the capital of France?",  # known
    "When does the museum in Zubrovia open?",  # in the table
    "What is the capital of Zubrovia?",  # there is no such place
):
    message = guard.invoke(question)
    decision = get_decision(message)
    print(f"{question} {message.content} [{decision.decision}]")
