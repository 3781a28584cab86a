"""What the guard does to retrieval: `python -m tools.embedded.rag_effect --out docs/rag.md`."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Literal

import typer
from scipy.stats import binomtest
from tqdm.auto import tqdm

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.demo.embedded import corpus, embedded_model, embedded_profile
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.langchain.guard import SemGradGuard
from semgrad_guard.langchain.metadata import get_decision
from semgrad_guard.langchain.passages import BM25Retriever
from semgrad_guard.langchain.routes import Retrieve
from semgrad_guard.routing.grounding import grounded_question
from semgrad_guard.routing.routes import Abstain
from tools.embedded.facts import relations, strata
from tools.embedded.questions import Question, questions

Given = Literal["right", "wrong", "nothing"]
Way = Callable[[str], str | None]

_HEAD = """# What the guard does to retrieval

Written by `python -m tools.embedded.rag_effect --out docs/rag.md`, on the embedded model and the reporting side of
its questions, with BM25 over short texts. *No retrieval* and *plain RAG* answer whatever comes, the first from memory,
the second always from passages. *Guarded RAG* answers from memory where it is sure, else from passages where it is sure
then, else not at all; *from passages only* is never asked without them (`passages="required"`). In brackets exact 95 %
intervals, as if questions were independent.
"""
_TELLING = "Facts the model was never told, and texts that tell them"
_SILENT = "Facts it was never told, and things that do not exist, and texts that tell of neither"


def ways(llm: ChatSemGrad, profile: Profile, passages: Sequence[str]) -> dict[str, Way]:
    """Build what is compared; each gives an answer, or None for none."""
    search = BM25Retriever.from_texts(passages)
    routes = [Retrieve(search), Abstain()]

    def plain(question: str) -> str:
        return str(llm.invoke(question).text)

    def plain_rag(question: str) -> str:
        return plain(grounded_question(question, [document.page_content for document in search.invoke(question)]))

    def by(guard: SemGradGuard) -> Way:
        def answer(question: str) -> str | None:
            message = guard.invoke(question)
            decision = get_decision(message)
            return str(message.text) if decision is not None and decision.answered else None

        return answer

    return {
        "no retrieval": plain,
        "plain RAG": plain_rag,
        "guarded RAG": by(SemGradGuard(llm, profile=profile, routes=routes)),
        "guarded, from passages only": by(SemGradGuard(llm, profile=profile, routes=routes, passages="required")),
    }


def outcomes(items: Iterable[Question], way: Way, name: str) -> Counter[Given]:
    """Count what a way gives: right answers, wrong ones, nothing."""
    counts: Counter[Given] = Counter()
    for question in tqdm(list(items), desc=name, leave=False):
        answer = way(question.prompt)
        counts["nothing" if answer is None else "right" if question.correct(answer) else "wrong"] += 1
    return counts


def unrelated_passages() -> tuple[str, ...]:
    """State the facts the model was trained on: texts that help with none of the others."""
    return tuple(
        relation.state(relation.statements[0], fact.subject, fact.answers[0])
        for relation in relations()
        if not relation.several
        for fact in relation.facts
        if not fact.withheld
    )


def hopeless() -> Iterator[Question]:
    """Ask about withheld facts and invented subjects in turn, as many as the stratum "unhelpful" does."""
    pairs = zip(questions("withheld", "report"), questions("invented", "report"), strict=False)
    return islice(chain.from_iterable(pairs), strata()["questions"]["unhelpful"])


def table(title: str, counts: dict[str, Counter[Given]]) -> str:
    """Set what the ways give beside each other."""
    n = next(iter(counts.values())).total()
    lines = [f"## {title}\n", f"| {n} questions | right | wrong answers given | no answer |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {_share(outcome['right'], n)} | {_share(outcome['wrong'], n)} | {_share(outcome['nothing'], n)} |"
        for name, outcome in counts.items()
    ]
    return "\n".join(lines)


def _share(count: int, n: int) -> str:
    interval = binomtest(count, n).proportion_ci()
    return f"{100 * count / n:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def main(
    out: Annotated[Path | None, typer.Option(help="The page to write; to standard output if not given.")] = None,
) -> None:
    """Ask every way everything, and write the page."""
    profile = embedded_profile()
    llm = ChatSemGrad.from_model(
        *embedded_model(), generation={"max_new_tokens": 64, "do_sample": False}, scoring=profile.bound_to.scoring
    )
    parts = {_TELLING: (questions("withheld", "report"), corpus()), _SILENT: (list(hopeless()), unrelated_passages())}
    tables = [
        table(title, {name: outcomes(items, way, name) for name, way in ways(llm, profile, passages).items()})
        for title, (items, passages) in parts.items()
    ]
    page = "\n".join([_HEAD, "\n\n".join(tables)])
    if out is None:
        typer.echo(page)
    else:
        out.write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
