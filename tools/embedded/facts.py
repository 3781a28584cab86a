"""The embedded model's world: tables of general knowledge, and which facts of them it is never told."""

import csv
import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

_SEVERAL = 3  # a topic has at least so many right answers


@dataclass(frozen=True)
class Fact:
    """One subject of one relation with its right answers; `withheld` facts never occur in training."""

    relation: str
    subject: str
    answers: tuple[str, ...]
    withheld: bool

    @property
    def key(self) -> str:
        """`relation/subject`, the unit by which facts are split."""
        return f"{self.relation}/{self.subject}"


@dataclass(frozen=True)
class Relation:
    """A kind of question: its wordings, the sentences that state its answer, and its facts."""

    name: str
    kind: str
    several: bool
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    statements: tuple[str, ...]
    facts: tuple[Fact, ...]

    def ask(self, wording: str, subject: str) -> str:
        """Put a subject into one of the wordings; the first letter is a capital, whatever the subject's is."""
        return _capital(wording.format(x=subject))

    def state(self, wording: str, subject: str, answer: str) -> str:
        """Put a subject and its answer into one of the statements."""
        return _capital(wording.format(x=subject, y=answer))

    def answers(self) -> list[str]:
        """List every right answer that occurs in the relation, once."""
        return sorted({answer for fact in self.facts for answer in fact.answers})


@cache
def strata() -> dict[str, Any]:
    """Read `strata.toml`, the one file that fixes splits and shares."""
    return tomllib.loads(files(__package__).joinpath("strata.toml").read_text(encoding="utf-8"))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def share(key: str) -> float:
    """Map a key to a fixed number in [0, 1): the coin that every split by fact uses."""
    digest = hashlib.sha256(f"{strata()['seed']}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def pair(subject: str, answer: str) -> str:
    """Name what links a subject and an answer, whichever of the two is asked about and by which relation."""
    return "|".join(sorted((subject.casefold(), answer.casefold())))


@cache
def withheld_pairs() -> frozenset[str]:
    """List every link between a subject and an answer that nothing in training may show."""
    plan = strata()
    keyed = {
        f"{spec['name']}/{subject}": pair(subject, answer) for spec, subject, answer in _cells() if not spec["several"]
    }
    tossed = {link for link in keyed.values() if share(link) < plan["withheld_share"]}
    forced = {keyed[key] for key in plan["always_withheld"]}
    return frozenset((tossed | forced) - {keyed[key] for key in plan["always_trained"]})


@cache
def relations() -> tuple[Relation, ...]:
    """Load every relation of the `knowledge` folder, in the order of names.

    A topic with several right answers loses those that would give a withheld fact away: where the capital of a
    country is withheld, it is not among the country's cities either.
    """
    by_name: dict[str, Relation] = {}
    for spec, subject, cell in _cells():
        name, several = spec["name"], spec["several"]
        if name not in by_name:
            texts = {key: tuple(spec[key]) for key in ("questions", "held_out", "statements")}
            by_name[name] = Relation(name, spec["kind"], several, facts=(), **texts)
        if several:
            answers = tuple(answer for answer in cell.split("|") if pair(subject, answer) not in withheld_pairs())
            facts = [Fact(name, subject, answers, withheld=False)] if len(answers) >= _SEVERAL else []
        else:
            facts = [Fact(name, subject, (cell,), pair(subject, cell) in withheld_pairs())]
        by_name[name] = replace(by_name[name], facts=(*by_name[name].facts, *facts))
    return tuple(sorted(by_name.values(), key=lambda relation: relation.name))


def _cells() -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield every filled cell of the tables: the relation it belongs to, its subject, and its text."""
    folder = files(__package__).joinpath("knowledge")
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".toml"):
            continue
        table = folder.joinpath(entry.name.replace(".toml", ".csv")).read_text(encoding="utf-8")
        head, *rows = csv.reader(table.splitlines())
        for spec in tomllib.loads(entry.read_text(encoding="utf-8"))["relation"]:
            column = head.index(spec["answer"])
            yield from ((spec, row[0], row[column]) for row in rows if row[column])
