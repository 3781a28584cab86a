"""The embedded model's world: tables of general knowledge, and which facts of them it is never told."""

import csv
import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


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


def _withheld(key: str, several: bool) -> bool:
    plan = strata()
    if several or key in plan["always_trained"]:
        return False
    return key in plan["always_withheld"] or share(key) < plan["withheld_share"]


@cache
def relations() -> tuple[Relation, ...]:
    """Load every relation of the `knowledge` folder, in the order of names."""
    folder = files(__package__).joinpath("knowledge")
    found = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".toml"):
            continue
        table = folder.joinpath(entry.name.replace(".toml", ".csv")).read_text(encoding="utf-8")
        rows = list(csv.reader(table.splitlines()))
        for spec in tomllib.loads(entry.read_text(encoding="utf-8"))["relation"]:
            column = rows[0].index(spec["answer"])
            facts = tuple(
                Fact(
                    spec["name"],
                    row[0],
                    tuple(row[column].split("|")) if spec["several"] else (row[column],),
                    _withheld(f"{spec['name']}/{row[0]}", spec["several"]),
                )
                for row in rows[1:]
                if row[column]
            )
            texts = {key: tuple(spec[key]) for key in ("questions", "held_out", "statements")}
            found.append(Relation(spec["name"], spec["kind"], spec["several"], facts=facts, **texts))
    return tuple(sorted(found, key=lambda relation: relation.name))
