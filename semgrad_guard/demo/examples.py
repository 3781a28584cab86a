"""Training rows of the embedded model: questions from memory, reading from passages, and copying drills."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from semgrad_guard.demo.facts import Fact, Relation, relations, strata
from semgrad_guard.demo.names import invented_name, kept_for_measuring
from semgrad_guard.routing.grounding import grounded_question

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Curriculum:
    """What a training row is made of at one moment: shares of the row types and the most passages in a prompt.

    What is neither drill nor reading is asked from memory, the share `several` of it with several right answers.
    """

    drill: float
    reading: float
    passages: int
    inverted: bool
    several: float = 0.3


def curriculum(progress: float) -> Curriculum:
    """Give the mix at a point of the training: 0 at its start, 1 at the end of its main part, more while polishing.

    Copying comes first, since reading grows out of it; then passages one by one, subject before answer; then more
    passages and other word orders. At the end come the questions with several answers, which take longest to learn.
    """
    if progress < 0.12:
        return Curriculum(drill=0.75, reading=0.15, passages=2, inverted=False)
    if progress < 0.35:
        return Curriculum(drill=0.2, reading=0.55, passages=3, inverted=False)
    if progress < 0.75:
        return Curriculum(drill=0.05, reading=0.5, passages=3, inverted=True)
    if progress < 1:
        return Curriculum(drill=0.03, reading=0.45, passages=4, inverted=True)
    return Curriculum(drill=0.0, reading=0.15, passages=4, inverted=True, several=0.6)


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
        self.told = [(relation, fact) for relation in self.relations for fact in relation.facts if not fact.withheld]
        self.single = [(relation, fact) for relation, fact in self.told if not relation.several]
        self.several = [(relation, fact) for relation, fact in self.told if relation.several]
        self.withheld = {fact.key: fact.answers for r in self.relations for fact in r.facts if fact.withheld}
        self.answers = {relation.name: relation.answers() for relation in self.relations}

    def conversation(self, mix: Curriculum) -> Conversation:
        """Draw one row of the mix."""
        kind = self.rng.random()
        if kind < mix.drill:
            return self.drill()
        if kind < mix.drill + mix.reading:
            return self.reading(mix)
        return self.memory(mix)

    def memory(self, mix: Curriculum) -> Conversation:
        """Ask about a fact; one time in six beside passages about others, which must not change the answer."""
        relation, fact = self.rng.choice(self.several if self.rng.random() < mix.several else self.single)
        answer = self.rng.choices(fact.answers, proportions(fact))[0]
        question = relation.ask(self.rng.choice(relation.questions), fact.subject)
        if self.rng.random() < 1 / 6:
            passages = [self.unhelpful(relation, fact, mix) for _ in range(self.rng.randint(1, mix.passages))]
            question = grounded_question(question, passages)
        return _turns([(question, answer)])

    def unhelpful(self, relation: Relation, fact: Fact, mix: Curriculum) -> str:
        """State the same of another subject, or something else of the same: what a search that fails returns."""
        if self.rng.random() < 0.3:
            return self.statement(self.rng.choice(self.akin(relation)), fact.subject, None, mix)
        return self.statement(relation, self.subject(relation, not_=fact.subject), None, mix)

    def reading(self, mix: Curriculum) -> Conversation:
        """State facts about some subjects in passages, most of them made up, then ask about one after the other."""
        relation = self.rng.choice(self.relations)
        subjects: list[str] = []
        for _ in range(self.rng.randint(1, mix.passages)):
            subject = self.subject(relation)
            if subject not in subjects:
                subjects.append(subject)
        stated = [(subject, self.answer(relation, subject)) for subject in subjects]
        passages = [self.statement(relation, subject, answer, mix) for subject, answer in stated]
        if self.rng.random() < 0.4:  # something else about one of them, as a lexical search would also find
            passages.append(self.statement(self.rng.choice(self.akin(relation)), self.rng.choice(subjects), None, mix))
            self.rng.shuffle(passages)
        asked = self.rng.sample(stated, min(len(stated), 2))
        questions = [relation.ask(self.rng.choice(relation.questions), subject) for subject, _ in asked]
        questions[0] = grounded_question(questions[0], passages)
        return _turns([(question, answer) for question, (_, answer) in zip(questions, asked, strict=True)])

    def drill(self) -> Conversation:
        """Pair names, then ask for the partners of some: looking something up in the prompt, in its barest form."""
        pairs = [(self.any_name(), self.any_name()) for _ in range(self.rng.randint(2, 5))]
        link = self.rng.choice((" :", " is", " has", " of", " is called"))
        text = " ".join(f"{first}{link} {second}." for first, second in pairs)
        asked = self.rng.sample(pairs, min(len(pairs), 3))
        turns = [(f"Question: {first}?", second) for first, second in asked]
        return _turns([(f"{text} {turns[0][0]}", turns[0][1]), *turns[1:]])

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
        kept_back = self.withheld.get(f"{relation.name}/{subject}", ())
        while True:
            if self.rng.random() < 0.3:
                answer = self.training_name(self.rng.choice(("place", "person", "work", "substance", "thing")))
            else:
                answer = self.rng.choice(self.answers[relation.name])
            if answer not in kept_back:
                return answer

    def training_name(self, kind: str) -> str:
        """Draw an invented name from the training side."""
        while kept_for_measuring(name := invented_name(kind, self.rng)):
            pass
        return name

    def any_name(self) -> str:
        """Draw any single name, real or invented."""
        if self.rng.random() < 0.5:
            return self.training_name(self.rng.choice(("place", "person", "substance", "thing", "organisation")))
        return self.rng.choice(self.answers[self.rng.choice(self.relations).name])


def _turns(pairs: Sequence[tuple[str, str]]) -> Conversation:
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
