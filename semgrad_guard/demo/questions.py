"""The questions the embedded model is examined on, stratum by stratum, split by fact into fitting and reporting."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from semgrad_guard.demo.embedded import corpus
from semgrad_guard.demo.facts import Fact, Relation, relations, share, strata
from semgrad_guard.demo.names import invented_names
from semgrad_guard.langchain.bm25 import BM25Retriever
from semgrad_guard.routing.grounding import grounded_question

Side = Literal["fit", "report"]
Draw = tuple[str, str, tuple[str, ...]]  # what the question is about, the prompt, the right answers
CLOSED_BOOK = ("known", "known_reworded", "several", "several_reworded", "withheld", "invented")
GROUNDED = ("reading_one", "reading_three", "retrieved", "unhelpful")


@dataclass(frozen=True)
class Question:
    """A prompt of a stratum and its right answers, none where all are wrong; `about` is the unit of splitting."""

    stratum: str
    about: str
    prompt: str
    answers: tuple[str, ...]

    def correct(self, text: str) -> bool:
        """Tell whether a text is one of the right answers, but for case and a full stop."""
        return text.strip().rstrip(".").casefold() in {answer.casefold() for answer in self.answers}


def questions(stratum: str, side: Side) -> list[Question]:
    """Draw the questions of a stratum for one side; the same ones every time."""
    draws: dict[str, Callable[[], Iterator[Draw]]] = {
        "known": lambda: _known(side, several=False, reworded=False),
        "known_reworded": lambda: _known(side, several=False, reworded=True),
        "several": lambda: _known(side, several=True, reworded=False),
        "several_reworded": lambda: _known(side, several=True, reworded=True),
        "withheld": lambda: _withheld(side),
        "invented": lambda: _invented(side),
        "reading_one": lambda: _reading(side, passages=1),
        "reading_three": lambda: _reading(side, passages=3),
        "retrieved": lambda: _retrieved(side),
        "unhelpful": lambda: _unhelpful(side),
    }
    most = strata()["questions"][stratum]
    return [Question(stratum, *draw) for draw in itertools.islice(draws[stratum](), most)]


def _rng(side: Side, purpose: str) -> random.Random:
    return random.Random(f"{strata()['seed']}:{side}:{purpose}")


def _facts(side: Side, *, several: bool, withheld: bool) -> list[tuple[Relation, Fact]]:
    found = [
        (relation, fact)
        for relation in relations()
        for fact in relation.facts
        if relation.several is several
        and fact.withheld is withheld
        and (share(f"side:{fact.key}") < 0.5) == (side == "fit")
    ]
    _rng(side, "order").shuffle(found)
    return found


def _known(side: Side, *, several: bool, reworded: bool) -> Iterator[Draw]:
    """Ask each fact once, then each once more in another wording, and so on."""
    rng = _rng(side, f"known {several} {reworded}")
    facts = _facts(side, several=several, withheld=False)
    while True:
        for relation, fact in facts:
            wording = rng.choice(relation.held_out if reworded else relation.questions)
            yield fact.key, relation.ask(wording, fact.subject), fact.answers


def _withheld(side: Side) -> Iterator[Draw]:
    rng = _rng(side, "withheld")
    for relation, fact in _facts(side, several=False, withheld=True):
        yield fact.key, relation.ask(rng.choice(relation.questions + relation.held_out), fact.subject), fact.answers


def _invented_subjects(side: Side, purpose: str) -> Iterator[tuple[Relation, str]]:
    rng = _rng(side, purpose)
    names = {relation.kind: invented_names(relation.kind, rng, measuring=True) for relation in relations()}
    while True:
        relation = rng.choice(relations())
        subject = next(name for name in names[relation.kind] if (share(f"side:{name}") < 0.5) == (side == "fit"))
        yield relation, subject


def _invented(side: Side) -> Iterator[Draw]:
    rng = _rng(side, "invented wordings")
    for relation, subject in _invented_subjects(side, "invented"):
        yield subject, relation.ask(rng.choice(relation.questions + relation.held_out), subject), ()


def _reading(side: Side, passages: int) -> Iterator[Draw]:
    rng = _rng(side, f"reading {passages} wordings")
    for relation, subject in _invented_subjects(side, f"reading {passages}"):
        names = invented_names(relation.kind, rng, measuring=True)
        subjects = [subject, *itertools.islice((name for name in names if name != subject), passages - 1)]
        stated = {name: rng.choice(relation.answers()) for name in subjects}
        texts = [relation.state(rng.choice(relation.statements), name, answer) for name, answer in stated.items()]
        rng.shuffle(texts)
        question = relation.ask(rng.choice(relation.questions + relation.held_out), subject)
        yield subject, grounded_question(question, texts), (stated[subject],)


def _retrieved(side: Side) -> Iterator[Draw]:
    search = BM25Retriever.from_texts(corpus())
    for about, prompt, answers in _withheld(side):
        yield about, grounded_question(prompt, [found.page_content for found in search.invoke(prompt)]), answers


def _unhelpful(side: Side) -> Iterator[Draw]:
    """Half withheld facts, half invented subjects, searched for in a corpus that tells of trained facts only."""
    told = [relation.state(relation.statements[0], fact.subject, fact.answers[0])
            for known_side in ("fit", "report")
            for relation, fact in _facts(known_side, several=False, withheld=False)]  # fmt: skip
    search = BM25Retriever.from_texts(told)
    for asked in zip(_withheld(side), _invented(side), strict=False):
        for about, prompt, _ in asked:
            yield about, grounded_question(prompt, [found.page_content for found in search.invoke(prompt)]), ()
