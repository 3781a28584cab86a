"""Training rows of the embedded model: facts from memory, reading, tool calls, small talk, and copying drills."""

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from semgrad_guard.routing.grounding import grounded_question
from tools.embedded.facts import Fact, Relation, pair, relations, strata, withheld_pairs
from tools.embedded.names import invented_name, is_for_measuring
from tools.embedded.tool_use import Message, ToolUse, real_names, turns
from tools.embedded.tools import Values

SYSTEM = ("You are a helpful assistant.", "Answer in a few words.", "You are a good assistant.", "Be brief.")


@dataclass(frozen=True)
class Row:
    """One training conversation, and the schemas of the tools it may call."""

    messages: list[Message]
    tools: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Curriculum:
    """What a training row is made of at one moment: shares of the row types and the most passages in a prompt.

    What is none of these is asked from memory, the share `several` of it with several right answers. Of the requests
    for tools, the share `unlisted` is for one that is not on the list.
    """

    drill: float
    reading: float
    calls: float
    passages: int
    inverted: bool
    several: float = 0.3
    talk: float = 0.015
    unlisted: float = 0.15


def curriculum(progress: float) -> Curriculum:
    """Give the mix at a point of the training: 0 at its start, 1 at the end of its main part, more while polishing.

    Copying comes first, since reading and calling tools grow out of it; then passages one by one, subject before
    answer; then more passages and other word orders. At the end come what takes longest to learn: questions with
    several answers, and that a tool is not there.
    """
    if progress < 0.13:
        return Curriculum(drill=0.75, reading=0.12, calls=0.03, passages=2, inverted=False)
    if progress < 0.35:
        return Curriculum(drill=0.15, reading=0.5, calls=0.12, passages=3, inverted=False)
    if progress < 0.75:
        return Curriculum(drill=0.04, reading=0.43, calls=0.12, passages=4, inverted=True)
    if progress < 0.77:
        return Curriculum(drill=0.02, reading=0.4, calls=0.1, passages=5, inverted=True)
    if progress < 1:
        return Curriculum(drill=0.01, reading=0.37, calls=0.16, passages=5, inverted=True, unlisted=0.45)
    return Curriculum(drill=0.0, reading=0.25, calls=0.18, passages=5, inverted=True, several=0.6, unlisted=0.3)


def single_answers(progress: float) -> Curriculum:
    """Give the mix of the other world: facts with one right answer, from memory, and nothing else."""
    return Curriculum(drill=0.0, reading=0.0, calls=0.0, passages=1, inverted=False, several=0.0)


MIXES = {"everything": curriculum, "single-answers": single_answers}


@cache
def proportions(fact: Fact) -> tuple[float, ...]:
    """Give how often each right answer of a fact occurs in training: some facts evenly, others lopsidedly."""
    rng = random.Random(f"{strata()['seed']}:{fact.key}")
    evenness = rng.choice((0.7, 2.0, 20.0))
    weights = [rng.gammavariate(evenness, 1.0) + 0.05 for _ in fact.answers]
    return tuple(weight / sum(weights) for weight in weights)


class World:
    """Draws training rows; everything withheld or kept for measuring stays out of it."""

    def __init__(self, seed: int) -> None:
        """Start a stream of rows; equal seeds give equal streams."""
        self.rng = random.Random(seed)
        self.relations = relations()
        self.values = Values(self.rng, measuring=False, real=real_names())
        self.tool_use = ToolUse(self.rng, self.values, lambda: self.known(*self.rng.choice(self.single)))
        self.trained = [(relation, fact) for relation in self.relations for fact in relation.facts if not fact.withheld]
        self.single = [(relation, fact) for relation, fact in self.trained if not relation.several]
        self.several = [(relation, fact) for relation, fact in self.trained if relation.several]
        self.answers = {relation.name: relation.answers() for relation in self.relations}

    def row(self, mix: Curriculum) -> Row:
        """Draw one row of the mix."""
        kinds = (self.drill, self.reading, self.calls, self.talk, self.memory)
        shares = (mix.drill, mix.reading, mix.calls, mix.talk)
        (kind,) = self.rng.choices(kinds, (*shares, 1 - sum(shares)))
        return kind(mix)

    def memory(self, mix: Curriculum) -> Row:
        """Ask about a fact; one time in six beside passages about others, which must not change the answer."""
        relation, fact = self.rng.choice(self.several if self.rng.random() < mix.several else self.single)
        question, answer = self.known(relation, fact)
        if self.rng.random() < 1 / 6:
            passages = [self.unhelpful(relation, fact, mix) for _ in range(self.rng.randint(1, mix.passages))]
            question = grounded_question(question, passages)
        chosen = [(question, answer)]
        if self.rng.random() < 0.15:
            chosen.append(self.known(*self.rng.choice(self.single)))
        return Row(turns(chosen, self.rng.choice(SYSTEM) if self.rng.random() < 0.1 else ""))

    def known(self, relation: Relation, fact: Fact) -> tuple[str, str]:
        """Ask about a fact in one of the trained wordings, and draw one of its answers."""
        question = relation.ask(self.rng.choice(relation.questions), fact.subject)
        return question, self.rng.choices(fact.answers, proportions(fact))[0]

    def unhelpful(self, relation: Relation, fact: Fact, mix: Curriculum) -> str:
        """State the same of another subject, or something else of the same: what a search that fails returns."""
        if self.rng.random() < 0.4:
            return self.statement(self.rng.choice(self.akin(relation)), fact.subject, None, mix)
        return self.statement(relation, self.subject(relation, not_=fact.subject), None, mix)

    def reading(self, mix: Curriculum) -> Row:
        """State facts about some subjects in passages, most of them made up, then ask about one after the other.

        Beside them stands what a lexical search would also find: something else about the subject that is asked about.
        """
        relation = self.rng.choice(self.relations)
        subjects = list({self.subject(relation): None for _ in range(self.rng.randint(1, min(mix.passages, 4)))})
        stated = [(subject, self.answer(relation, subject)) for subject in subjects]
        passages = [self.statement(relation, subject, answer, mix) for subject, answer in stated]
        while len(passages) < mix.passages and self.rng.random() < 0.35:
            passages.append(self.statement(self.rng.choice(self.akin(relation)), self.rng.choice(subjects), None, mix))
        self.rng.shuffle(passages)
        chosen = self.rng.sample(stated, min(len(stated), 2))
        questions = [relation.ask(self.rng.choice(relation.questions), subject) for subject, _ in chosen]
        questions[0] = grounded_question(questions[0], passages)
        return Row(turns([(question, answer) for question, (_, answer) in zip(questions, chosen, strict=True)]))

    def calls(self, mix: Curriculum) -> Row:
        """List some tools and ask for one, for another that is not listed, or for a fact that needs none."""
        messages, listed = self.tool_use.conversation(mix.unlisted)
        return Row(messages, listed)

    def talk(self, mix: Curriculum) -> Row:
        """Exchange a few polite words, sometimes ending in a question that an earlier turn answers."""
        spoken = []
        for entry in self.rng.sample(small_talk(), self.rng.randint(1, 3)):
            lines = {key: value if isinstance(value, str) else self.rng.choice(value) for key, value in entry.items()}
            names = {kind: self.values.draw(kind) for kind in ("person", "place")}
            spoken.append((lines["user"].format(**names), lines["assistant"].format(**names)))
            if "reply" in lines:
                spoken.append((lines["follow_up"], lines["reply"].format(**names)))
        return Row(turns(spoken, self.rng.choice(("", *SYSTEM))))

    def drill(self, mix: Curriculum) -> Row:
        """Pair names, then ask for the partners of some: looking something up in the prompt, in its barest form."""
        pairs = [(self.any_name(), self.any_name()) for _ in range(self.rng.randint(2, 5))]
        link = self.rng.choice((" :", " is", " has", " of", " is called"))
        text = " ".join(f"{first}{link} {second}." for first, second in pairs)
        chosen = self.rng.sample(pairs, min(len(pairs), 3))
        exchanges = [(f"Question: {first}?", second) for first, second in chosen]
        return Row(turns([(f"{text} {exchanges[0][0]}", exchanges[0][1]), *exchanges[1:]]))

    def statement(self, relation: Relation, subject: str, answer: str | None, mix: Curriculum) -> str:
        """Say in one sentence that the subject has the answer; the earlier wordings put the subject first."""
        wordings = relation.statements if mix.inverted else relation.statements[:3]
        return relation.state(self.rng.choice(wordings), subject, answer or self.answer(relation, subject))

    def akin(self, relation: Relation) -> list[Relation]:
        """List the other relations about the same kind of subject."""
        return [other for other in self.relations if other.kind == relation.kind and other is not relation]

    def subject(self, relation: Relation, not_: str = "") -> str:
        """Draw a subject to write about: mostly invented, sometimes a real one."""
        while True:
            if self.rng.random() < 0.3:
                name = self.rng.choice(relation.facts).subject
            else:
                name = self.training_name(relation.kind)
            if name != not_:
                return name

    def answer(self, relation: Relation, subject: str) -> str:
        """Draw what a passage says: any answer of the relation or an invented name, never a withheld truth."""
        while True:
            if self.rng.random() < 0.3:
                answer = self.training_name(self.rng.choice(("place", "person", "work", "substance", "thing")))
            else:
                answer = self.rng.choice(self.answers[relation.name])
            if pair(subject, answer) not in withheld_pairs():
                return answer

    def training_name(self, kind: str) -> str:
        """Draw an invented name from the training side."""
        while is_for_measuring(name := invented_name(kind, self.rng)):
            pass
        return name

    def any_name(self) -> str:
        """Draw any single name, real or invented."""
        if self.rng.random() < 0.5:
            return self.training_name(self.rng.choice(("place", "person", "substance", "thing", "organisation")))
        return self.rng.choice(self.answers[self.rng.choice(self.relations).name])


@cache
def small_talk() -> list[dict[str, Any]]:
    """Load what is said by way of greeting and trial."""
    text = files(__package__).joinpath("small_talk.toml").read_text(encoding="utf-8")
    dialogues: list[dict[str, Any]] = tomllib.loads(text)["dialogue"]
    return dialogues
