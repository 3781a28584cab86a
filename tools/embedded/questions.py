"""The questions the embedded model is examined on, stratum by stratum, split by fact into fitting and reporting."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from semgrad_guard.demo import corpus
from semgrad_guard.langchain.passages import BM25Retriever
from semgrad_guard.model.responses import parse_tool_calls
from semgrad_guard.records import AnswerKind
from semgrad_guard.routing.grounding import grounded_question
from tools.embedded.facts import Fact, Relation, relations, share, strata
from tools.embedded.names import invented_names
from tools.embedded.tool_use import Message
from tools.embedded.tools import Tool, Value, Values, fill, tools

Side = Literal["fit", "report"]
CLOSED_BOOK = ("known", "known_reworded", "several", "several_reworded", "withheld", "invented")
GROUNDED = ("reading_one", "reading_three", "reading_five", "retrieved", "unhelpful", "results")
TOOLS = ("calls", "calls_reworded", "calls_lacking", "calls_unlisted")
STRATA: dict[str, AnswerKind] = {
    **dict.fromkeys(CLOSED_BOOK, "answer"),
    **dict.fromkeys(GROUNDED, "grounded"),
    **dict.fromkeys(TOOLS, "tool_call"),
}


@dataclass(frozen=True)
class Question:
    """A conversation of a stratum that awaits an answer; `about` is the unit of splitting.

    `answers` are the right ones, none where all are wrong. With `tools`, what is right is `call`, or no call at all
    where that is None. `reworded` asks the same in other words.
    """

    stratum: str
    about: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    call: tuple[str, dict[str, Value]] | None = None
    reworded: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The user's last words."""
        return str(next(turn["content"] for turn in reversed(self.messages) if turn["role"] == "user"))

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """What the model is shown of the tools."""
        return [tool.schema() for tool in self.tools]

    def correct(self, text: str) -> bool:
        """Tell whether a response is right: one of the answers, but for case and a full stop, or the right call."""
        if STRATA[self.stratum] != "tool_call":
            return text.strip().rstrip(".").casefold() in {answer.rstrip(".").casefold() for answer in self.answers}
        parsed = parse_tool_calls(text)
        made = [(call.name, call.arguments) for call in parsed.calls]
        return not parsed.broken and made == ([] if self.call is None else [self.call])


def questions(stratum: str, side: Side) -> list[Question]:
    """Draw the questions of a stratum for one side; the same ones every time."""
    draws: dict[str, Callable[[], Iterator[Question]]] = {
        "known": lambda: _known(side, stratum, several=False),
        "known_reworded": lambda: _known(side, stratum, several=False),
        "several": lambda: _known(side, stratum, several=True),
        "several_reworded": lambda: _known(side, stratum, several=True),
        "withheld": lambda: _withheld(side, stratum),
        "invented": lambda: _invented(side, stratum),
        "reading_one": lambda: _reading(side, stratum, subjects=1),
        "reading_three": lambda: _reading(side, stratum, subjects=3),
        "reading_five": lambda: _reading(side, stratum, subjects=3, beside=2),
        "retrieved": lambda: _retrieved(side, stratum),
        "unhelpful": lambda: _unhelpful(side, stratum),
        "results": lambda: _results(side, stratum),
        "calls": lambda: _calls(side, stratum),
        "calls_reworded": lambda: _calls(side, stratum),
        "calls_lacking": lambda: _calls_lacking(side, stratum),
        "calls_unlisted": lambda: _calls_unlisted(side, stratum),
    }
    return list(itertools.islice(draws[stratum](), strata()["questions"][stratum]))


def _rng(side: Side, purpose: str) -> random.Random:
    return random.Random(f"{strata()['seed']}:{side}:{purpose}")


def _user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def _facts(side: Side, *, several: bool, withheld: bool) -> list[tuple[Relation, Fact]]:
    facts = [
        (relation, fact)
        for relation in relations()
        for fact in relation.facts
        if relation.several is several and fact.withheld is withheld and _on(side, fact.key)
    ]
    _rng(side, "order").shuffle(facts)
    return facts


def _on(side: Side, key: str) -> bool:
    return (share(f"side:{key}") < 0.5) == (side == "fit")


def _known(side: Side, stratum: str, *, several: bool) -> Iterator[Question]:
    """Ask each fact once, then each once more in another wording, and so on."""
    rng = _rng(side, stratum)
    facts = _facts(side, several=several, withheld=False)
    while True:
        for relation, fact in facts:
            wording = rng.choice(relation.held_out if stratum.endswith("reworded") else relation.questions)
            yield _closed_book(stratum, fact.key, relation, wording, fact.subject, fact.answers)


def _closed_book(
    stratum: str, about: str, relation: Relation, wording: str, subject: str, answers: tuple[str, ...] = ()
) -> Question:
    reworded = tuple(relation.ask(other, subject) for other in relation.questions if other != wording)
    return Question(stratum, about, _user(relation.ask(wording, subject)), answers, reworded=reworded)


def _withheld(side: Side, stratum: str) -> Iterator[Question]:
    rng = _rng(side, stratum)
    for relation, fact in _facts(side, several=False, withheld=True):
        wording = rng.choice(relation.questions + relation.held_out)
        yield _closed_book(stratum, fact.key, relation, wording, fact.subject, fact.answers)


def _invented_subjects(side: Side, purpose: str) -> Iterator[tuple[Relation, str]]:
    rng = _rng(side, f"{purpose} subjects")
    names = [(relation, invented_names(relation.kind, rng, measuring=True)) for relation in relations()]
    while True:
        relation, of_kind = rng.choice(names)
        yield relation, next(name for name in of_kind if _on(side, name))


def _invented(side: Side, stratum: str) -> Iterator[Question]:
    rng = _rng(side, stratum)
    for relation, subject in _invented_subjects(side, stratum):
        wording = rng.choice(relation.questions + relation.held_out)
        yield _closed_book(stratum, subject, relation, wording, subject)


def _reading(side: Side, stratum: str, *, subjects: int, beside: int = 0) -> Iterator[Question]:
    rng = _rng(side, stratum)
    for relation, subject in _invented_subjects(side, stratum):
        names = invented_names(relation.kind, rng, measuring=True)
        named = [subject, *itertools.islice((name for name in names if name != subject), subjects - 1)]
        stated = {name: rng.choice(relation.answers()) for name in named}
        texts = [relation.state(rng.choice(relation.statements), name, answer) for name, answer in stated.items()]
        akin = [other for other in relations() if other.kind == relation.kind and other is not relation]
        for _ in range(beside):
            other = rng.choice(akin)
            texts.append(other.state(rng.choice(other.statements), rng.choice(named), rng.choice(other.answers())))
        rng.shuffle(texts)
        question = relation.ask(rng.choice(relation.questions + relation.held_out), subject)
        yield Question(stratum, subject, _user(grounded_question(question, texts)), (stated[subject],))


def _retrieved(side: Side, stratum: str) -> Iterator[Question]:
    search = BM25Retriever.from_texts(corpus())
    for item in _withheld(side, stratum):
        yield Question(stratum, item.about, _user(_looked_up(search, item.prompt)), item.answers)


def _unhelpful(side: Side, stratum: str) -> Iterator[Question]:
    """Half withheld facts, half invented subjects, searched for in a corpus that tells of trained facts only."""
    statements = [relation.state(relation.statements[0], fact.subject, fact.answers[0])
            for known_side in ("fit", "report")
            for relation, fact in _facts(known_side, several=False, withheld=False)]  # fmt: skip
    search = BM25Retriever.from_texts(statements)
    for pair in zip(_withheld(side, stratum), _invented(side, stratum), strict=False):
        for item in pair:
            yield Question(stratum, item.about, _user(_looked_up(search, item.prompt)))


def _looked_up(search: BM25Retriever, question: str) -> str:
    return grounded_question(question, [document.page_content for document in search.invoke(question)])


class _Requests:
    """Draws requests with values that training never saw, from one side of the split."""

    def __init__(self, side: Side, purpose: str) -> None:
        self.side, self.rng = side, _rng(side, purpose)
        self._values = Values(self.rng, measuring=True)

    def listing(self, tool: Tool | None = None, *, without: Tool | None = None) -> tuple[Tool, ...]:
        """List two to six tools in any order, one of them among them or left out."""
        rest = [other for other in tools() if other not in (tool, without)]
        listed = [*([] if tool is None else [tool]), *self.rng.sample(rest, self.rng.randint(2, 5))]
        self.rng.shuffle(listed)
        return tuple(listed)

    def values(self, tool: Tool) -> dict[str, Value]:
        return {name: self.value(kind) for name, kind in tool.arguments.items()}

    def value(self, kind: str) -> Value:
        while True:
            value = self._values.draw(kind)
            if kind == "day" or _on(self.side, str(value)):
                return value

    def fill(self, text: str) -> str:
        return self._values.fill(text)

    def about(self, values: dict[str, Value]) -> str:
        return " and ".join(str(value) for value in values.values())


def _calls(side: Side, stratum: str) -> Iterator[Question]:
    draw = _Requests(side, stratum)
    for tool in itertools.cycle(tools()):
        values = draw.values(tool)
        wording = draw.rng.choice(tool.held_out if stratum.endswith("reworded") else tool.requests)
        request = _user(fill(wording, values))
        yield Question(stratum, draw.about(values), request, tools=draw.listing(tool), call=(tool.name, values))


def _calls_lacking(side: Side, stratum: str) -> Iterator[Question]:
    """Leave out what a tool needs; the wordings are split between the sides, since some hold no value at all."""
    draw = _Requests(side, stratum)
    for tool in itertools.cycle(tools()):
        wording = draw.rng.choice(tool.lacking[side == "fit" :: 2])
        yield Question(stratum, wording, _user(fill(wording, draw.values(tool))), tools=draw.listing(tool))


def _calls_unlisted(side: Side, stratum: str) -> Iterator[Question]:
    draw = _Requests(side, stratum)
    for tool in itertools.cycle(tools()):
        values = draw.values(tool)
        request = _user(fill(draw.rng.choice(tool.requests + tool.held_out), values))
        yield Question(stratum, draw.about(values), request, tools=draw.listing(without=tool))


def _results(side: Side, stratum: str) -> Iterator[Question]:
    draw = _Requests(side, stratum)
    for tool in itertools.cycle(tools()):
        values = draw.values(tool)
        result = draw.fill(draw.rng.choice(tool.results))
        request = _user(fill(draw.rng.choice(tool.requests), values))
        conversation = (*request, tool.call(values), {"role": "tool", "content": result})
        answer = fill(tool.reply, values | {"result": result})
        yield Question(stratum, draw.about(values), conversation, (answer,), tools=draw.listing(tool))


def paraphrases(groups: int = 100, wordings: int = 5) -> list[list[str]]:
    """Word questions about facts in several ways: groups that mean the same, to measure SPS on."""
    rng = _rng("fit", "paraphrases")
    facts = [(relation, fact) for relation in relations() for fact in relation.facts]
    return [
        [relation.ask(wording, fact.subject) for wording in rng.sample(relation.questions, wordings)]
        for relation, fact in rng.sample(facts, groups)
    ]
