"""The demo: what the guard does with a known fact, several right answers, a withheld fact, and an invented entity."""

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from semgrad_guard.calibration.profile import Section
from semgrad_guard.demo.embedded import corpus, embedded_model, embedded_profile
from semgrad_guard.demo.examine import examine
from semgrad_guard.demo.questions import questions
from semgrad_guard.langchain.bm25 import BM25Retriever
from semgrad_guard.langchain.guard import SemGradGuard
from semgrad_guard.langchain.retrieve import Retrieve
from semgrad_guard.routing.routes import Abstain, HumanReview, ReviewAnswer, ReviewRequest
from semgrad_guard.scoring.scorer import SemGradScorer

_SCENES = (
    ("A fact the model knows", "What is the capital of France?"),
    ("A question with several right answers", "Name a city in Italy."),
    ("A fact it was never told, but the corpus tells", "Who painted Mona Lisa?"),
    ("A place that does not exist", "What is the capital of Zubrovia?"),
)

Ask = Callable[[ReviewRequest], ReviewAnswer]


def ladder(passages: Sequence[str], ask_human: Ask | None) -> list[Any]:
    """Build the routes of the command line: look it up, ask a human if there is one, else abstain."""
    search = [Retrieve(BM25Retriever.from_texts(passages))] if passages else []
    human = [HumanReview(ask_human)] if ask_human is not None else []
    return [*search, *human, Abstain()]


def walk_through(console: Console, ask_human: Ask | None) -> None:
    """Ask the four questions and tell what happens to each."""
    profile = embedded_profile()
    guard = SemGradGuard(embedded_model(), profile=profile, routes=ladder(corpus(), ask_human))
    console.print(
        f"A small model that ships with the package answers; an answer passes at confidence >= "
        f"[bold]{profile.answer.threshold:.2f}[/].\n"
    )
    for title, question in _SCENES:
        message = guard.invoke(question)
        console.print(Panel(_told(question, message), title=title, title_align="left"))
    with console.status("Comparing with a threshold on the log-probability ..."):
        comparison = _log_probability_comparison(guard.llm.scorer, profile.answer)
    console.print(comparison)


def _told(question: str, message: AIMessage) -> str:
    record = message.response_metadata["semgrad"]
    lines = [f"[bold]{question}[/]", f"[bold cyan]{escape(str(message.content))}[/]", ""]
    for step in record["steps"]:
        mark = "[green]settled[/]" if step["settled"] else "[yellow]not settled[/]"
        lines.append(f"{step['name']:>9}  {mark}  {escape(step['reason'])}")
    if record["decision"] == "retrieve":
        lines += [f"   source  {escape(source['text'])}" for source in record["sources"]]
    return "\n".join([*lines, f" decision  [bold]{record['decision']}[/]"])


def _log_probability_comparison(scorer: SemGradScorer, section: Section) -> str:
    """Say what a log-probability threshold that lets as many known facts pass does to several right answers."""
    known, several = (examine(scorer, questions(name, "report")[:200]) for name in ("known", "several"))

    def share(values: list[bool]) -> float:
        return sum(values) / len(values)

    guarded = [section.passes(item.score) for item in known]
    ordered = sorted(item.score.nll for item in known)
    limit = ordered[max(0, sum(guarded) - 1)]
    by_guard = share([section.passes(item.score) for item in several])
    by_nll = share([item.score.nll <= limit for item in several])
    return (
        f"Of {len(known)} known facts, {share(guarded):.0%} pass. A log-probability threshold that passes as many lets "
        f"through [bold]{by_nll:.0%}[/] of {len(several)} questions with several right answers, the guard "
        f"[bold]{by_guard:.0%}[/]: where many answers are right, each is improbable, and only the gradient tells that "
        "from not knowing."
    )
