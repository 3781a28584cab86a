"""Training conversations in which tools are listed, called, and their results read back."""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from tools.embedded.facts import relations
from tools.embedded.tools import REFUSAL, Tool, Value, Values, fill, tools

Message = dict[str, Any]
_KINDS_OF_VALUES = ("place", "person", "work", "thing", "organisation", "number")
_ALIASES = {
    "place": ("location", "city", "town"),
    "person": ("name", "customer", "contact"),
    "work": ("title", "topic", "text"),
    "thing": ("item", "product"),
    "organisation": ("company", "firm"),
    "number": ("input", "amount", "count", "a", "b"),
    "day": ("date", "weekday"),
}
_BY_NAME = (
    "What is the value of {name}({values})? Use the tool.",
    "Call {name}({values}).",
    "Please run {name}({values}) for me.",
    "Use {name} with {pairs}.",
)
_MADE_UP = ("function", "tool", "lookup", "value", "no_args")
_MADE_UP_DESCRIPTIONS = ("Apply it to the input.", "Return a value.", "A tool.")
_MADE_UP_RESULTS = ("{number}", '{"result": {number}}', "{person}", "It's {thing}.")

# Every fixed text of this module: the tokenizer knows its words.
PHRASES = (
    *(name for names in _ALIASES.values() for name in names),
    *_BY_NAME,
    *_MADE_UP,
    *_MADE_UP_DESCRIPTIONS,
    *_MADE_UP_RESULTS,
)


class ToolUse:
    """Draws conversations with tools."""

    def __init__(self, rng: random.Random, values: Values, known: Callable[[], tuple[str, str]]) -> None:
        """Draw from a generator; `values` gives arguments, `known` a question from memory and its answer."""
        self.rng, self.values, self.known = rng, values, known

    def conversation(self, unlisted: float) -> tuple[list[Message], list[dict[str, Any]]]:
        """List some tools and ask for one, for another that is not listed, or for a fact that needs none.

        `unlisted` is the share of requests for a tool that is not on the list. Returns the conversation and the
        schemas of the tools it lists.
        """
        listed = self.rng.sample(tools(), self.rng.choice((1, 1, 1, 2, 2, 2, 3, 3, 4, 6)))
        if self.rng.random() < 0.4:
            listed[self.rng.randrange(len(listed))] = self.made_up_tool()
        missing = [tool for tool in tools() if tool not in listed]
        listed = [self.renamed(tool) if self.rng.random() < 0.2 else tool for tool in listed]
        type_first = self.rng.random() < 0.3
        messages: list[Message] = []
        for _ in range(2):
            kind = self.rng.random()
            if kind < unlisted:
                tool = self.rng.choice(missing)
                request = self.request(tool, {name: self.values.draw(kind) for name, kind in tool.arguments.items()})
                messages += turns([(request, REFUSAL)])
            elif kind < unlisted + 0.1:
                messages += turns([self.known()])
            else:
                messages += self.call(self.rng.choice(listed))
                if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
                    break  # nobody has run the tool
        return messages, [tool.schema(type_first=type_first) for tool in listed]

    def call(self, tool: Tool) -> list[Message]:
        """Ask for a tool and call it; two times in three it is run, and its result is read back."""
        values = {name: self.values.draw(kind) for name, kind in tool.arguments.items()}
        messages = [{"role": "user", "content": self.request(tool, values)}, tool.call(values)]
        if self.rng.random() < 2 / 3:
            result = self.values.fill(self.rng.choice(tool.results))
            messages.append({"role": "tool", "content": result})
            messages.append({"role": "assistant", "content": fill(tool.reply, values | {"result": result})})
        return messages

    def request(self, tool: Tool, values: dict[str, Value]) -> str:
        """Ask for a tool in one of the trained wordings, or now and then by its name."""
        if tool.requests and self.rng.random() < 0.95:
            return fill(self.rng.choice(tool.requests), values)
        listed = ", ".join(json.dumps(value) for value in values.values())
        pairs = " and ".join(f"{name} {value}" for name, value in values.items()) or "no arguments"
        return self.rng.choice(_BY_NAME).format(name=tool.name, values=listed, pairs=pairs)

    def made_up_tool(self) -> Tool:
        """Make up a tool that can only be asked for by its name."""
        words = [str(self.values.draw("thing")), self.rng.choice(_MADE_UP)]
        kinds = self.rng.choices(_KINDS_OF_VALUES, k=self.rng.randint(0, 2))
        arguments = {self.rng.choice(_ALIASES[kind]): kind for kind in kinds}
        description = self.rng.choice(_MADE_UP_DESCRIPTIONS)
        return Tool("_".join(words), description, arguments, results=_MADE_UP_RESULTS)

    def renamed(self, tool: Tool) -> Tool:
        """Give the arguments of a tool other names, so that the schema must be read."""
        names = {name: self.rng.choice((name, *_ALIASES[kind])) for name, kind in tool.arguments.items()}
        if len(set(names.values())) < len(names):
            return tool

        def rewrite(text: str) -> str:
            return re.sub(r"\{(\w+)\}", lambda slot: f"{{{names.get(slot[1], slot[1])}}}", text)

        return replace(
            tool,
            arguments={names[name]: kind for name, kind in tool.arguments.items()},
            requests=tuple(map(rewrite, tool.requests)),
            reply=rewrite(tool.reply),
        )


def turns(pairs: Sequence[tuple[str, str]], system: str = "") -> list[Message]:
    """Make a conversation of pairs of a user's text and the assistant's."""
    spoken = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


@cache
def real_names() -> dict[str, list[str]]:
    """List real names by kind, for the arguments of tools: the subjects of the relations, cities and people."""
    by_kind: dict[str, set[str]] = {}
    for relation in relations():
        kinds = {"capital": "place", "city_in": "place", "book_author": "person"}
        by_kind.setdefault(relation.kind, set()).update(fact.subject for fact in relation.facts)
        by_kind.setdefault(kinds.get(relation.name, relation.kind), set()).update(
            relation.answers() if relation.name in kinds else ()
        )
    return {kind: sorted(names) for kind, names in by_kind.items()}
