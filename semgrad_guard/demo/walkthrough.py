"""What `demo` shows: questions to the embedded model, its tool calls, and unsure answers for the review page."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from langchain_core.messages import AIMessage
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.demo.embedded import corpus, embedded_model, embedded_profile, labelled_questions, tool_schemas
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.langchain.guard import SemGradGuard
from semgrad_guard.langchain.metadata import get_decision, get_scores
from semgrad_guard.langchain.passages import BM25Retriever
from semgrad_guard.langchain.routes import Retrieve
from semgrad_guard.records import Score
from semgrad_guard.routing.routes import Abstain, HumanReview, Queue, ReviewAnswer, ReviewRequest

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
    return sum(decision.review_id is not None for decision in map(get_decision, messages) if decision is not None)


_SCENES = (
    ("A fact the model knows", "What is the capital of France?"),
    ("A question with several right answers", "Name a city in Germany."),
    ("A fact that only the corpus holds", "Who invented the light bulb?"),
    ("A place that does not exist", "What is the capital of Zubrovia?"),
)
_TOOL_SCENES = (
    ("A request that says all the tool needs", "What is the weather in Zubrovia?"),
    ("A request that does not", "What is the weather like?"),
)
_COMPARED = 200  # questions of each kind

Ask = Callable[[ReviewRequest], ReviewAnswer]


def ladder(passages: Sequence[str], ask_human: Ask | None) -> list[Any]:
    """Build the routes of the command line: look it up, ask a human if there is one, else abstain."""
    search = [Retrieve(BM25Retriever.from_texts(passages))] if passages else []
    human = [HumanReview(ask_human)] if ask_human is not None else []
    return [*search, *human, Abstain()]


def walk_through(console: Console, ask_human: Ask | None) -> None:
    """Ask a few questions, and for tool calls, and show what happens to each."""
    profile = embedded_profile()
    guard = SemGradGuard(embedded_model(), profile=profile, routes=ladder(corpus(), ask_human))
    console.print(
        f"A small model that ships with the package answers; an answer passes at confidence >= "
        f"[bold]{profile.answer.threshold:.2f}[/].{_promise(profile)}\n"
    )
    for title, question in _SCENES:
        console.print(Panel(_story(question, guard.invoke(question)), title=title, title_align="left"))
    careful = SemGradGuard(guard.llm, profile=profile, routes=ladder((), ask_human))
    agent = careful.bind_tools(tool_schemas())
    for title, request in _TOOL_SCENES:
        console.print(Panel(_story(request, agent.invoke(request)), title=title, title_align="left"))
    with console.status("Comparing with a threshold on the log-probability ..."):
        comparison = _log_probability_comparison(guard.llm, profile)
    console.print(comparison)


def _promise(profile: Profile) -> str:
    """State the promise for answers from memory; the demo's other thresholds promise nothing."""
    promise = profile.answer.guarantee
    if promise is None:
        return ""
    return (
        f"\nThe promise: of the answers from memory that pass, at most [bold]{promise.risk:.0%}[/] are wrong, with "
        f"{1 - promise.delta:.0%} certainty, for questions like those of the calibration (there {promise.errors} of "
        f"{promise.n} were). Answers from passages and tool calls have thresholds without a promise."
    )


def _story(question: str, message: AIMessage) -> str:
    decision = get_decision(message)
    if decision is None:  # a guard gives none without; for the type checker
        return ""
    answers = [str(message.content)] if message.content else []
    answers += [f"calls {call['name']} with {call['args']}" for call in message.tool_calls]
    lines = [f"[bold]{escape(question)}[/]", *(f"[bold cyan]{escape(text)}[/]" for text in answers), ""]
    for call in decision.tool_calls.values():
        arguments = ", ".join(f"{name} {_number(value)}" for name, value in call.arguments.items())
        lines.append(f"     call  {call.name} {_number(call.confidence)}, its arguments: {arguments}")
    for step in decision.steps:
        mark = "[green]settled[/]" if step.settled else "[yellow]not settled[/]"
        lines.append(f"{step.name:>9}  {mark}  {escape(step.reason)}")
    if decision.decision == "retrieve":
        lines += [f"   source  {escape(source.text)}" for source in decision.sources]
    guarantee = decision.verdict.guarantee
    promised = f", promised: wrong in at most {guarantee['risk']:.0%}" if guarantee else ""
    return "\n".join([*lines, f" decision  [bold]{decision.decision}[/]{promised}"])


def _number(confidence: float | None) -> str:
    return "-" if confidence is None else f"{confidence:.2f}"


def _log_probability_comparison(chat: ChatSemGrad, profile: Profile) -> str:
    """Compare, on questions with several right answers, with a log-probability threshold as lenient on known facts."""
    known, several = (_scores(chat, stratum) for stratum in ("known", "several"))
    passing = sum(map(profile.answer.passes, known))
    limit = sorted(score.nll for score in known)[max(0, passing - 1)]
    by_guard = sum(map(profile.answer.passes, several)) / len(several)
    by_nll = sum(score.nll <= limit for score in several) / len(several)
    return (
        f"Of {len(known)} known facts, {passing / len(known):.0%} pass. A log-probability threshold that passes as "
        f"many lets through [bold]{by_nll:.0%}[/] of {len(several)} questions with several "
        f"right answers, the guard [bold]{by_guard:.0%}[/]: where many answers are right, each is improbable, and only "
        "the gradient tells that from not knowing."
    )


def _scores(chat: ChatSemGrad, stratum: Literal["known", "several"]) -> list[Score]:
    queries = [line["query"] for line in labelled_questions(stratum, "report")[:_COMPARED]]
    messages = chat.batch([*queries], {"max_concurrency": _COMPARED})
    return [scores for message in messages if (scores := get_scores(message)) is not None]
