"""The tools the embedded model is taught to call: schemas, requests, and values nobody has seen."""

import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from tools.embedded.names import KINDS, invented_names

Value = str | int
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
REFUSAL = "None of my tools can do that."


@dataclass(frozen=True)
class Tool:
    """A tool with the kinds of its arguments and the wordings of requests for it, each with a slot per argument.

    The wordings that lack an argument are for measuring alone: the model is never told what to do with them.
    """

    name: str
    description: str
    arguments: dict[str, str]
    requests: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    reply: str = "{result}"

    def schema(self, *, type_first: bool = False) -> dict[str, Any]:
        """Give the JSON schema as models are shown it; its keys come in either of the two usual orders."""
        properties = {name: {"type": "integer" if kind == "number" else "string"}
                      for name, kind in self.arguments.items()}  # fmt: skip
        parameters: dict[str, Any] = {"properties": properties, "required": list(properties), "type": "object"}
        if type_first:
            parameters = {"type": parameters.pop("type"), **parameters}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    def call(self, values: dict[str, Value]) -> dict[str, Any]:
        """Give an assistant message that calls the tool."""
        function = {"name": self.name, "arguments": {name: values[name] for name in self.arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


@cache
def tools() -> tuple[Tool, ...]:
    """Load the tools."""
    text = files(__package__).joinpath("tools.toml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = tomllib.loads(text)["tool"]
    wordings = ("requests", "held_out", "lacking", "results")
    return tuple(
        Tool(
            entry["name"],
            entry["description"],
            entry["arguments"],
            reply=entry["reply"],
            **{key: tuple(entry[key]) for key in wordings},
        )
        for entry in entries
    )


class Values:
    """Draws values of any kind, invented names from one side of the split between training and measuring."""

    def __init__(self, rng: random.Random, *, measuring: bool, real: Mapping[str, Sequence[str]] | None = None) -> None:
        """Draw from a generator; where real names are given for a kind, one name in four is one of those."""
        self.rng = rng
        self.real = real or {}
        self._names: dict[str, Iterator[str]] = {kind: invented_names(kind, rng, measuring=measuring) for kind in KINDS}

    def draw(self, kind: str) -> Value:
        """Draw one value; invented names do not repeat."""
        if kind == "number":
            return self.rng.randint(1, 999) if self.rng.random() < 0.3 else self.rng.randint(1, 60)
        if kind == "day":
            return self.rng.choice(DAYS)
        if kind in self.real and self.rng.random() < 0.25:
            return self.rng.choice(self.real[kind])
        return next(self._names[kind])

    def fill(self, text: str) -> str:
        """Fill every slot of a text that is named after a kind."""
        return re.sub(r"\{(\w+)\}", lambda slot: str(self.draw(slot[1])), text)


def fill(wording: str, values: dict[str, Value]) -> str:
    """Put values into the slots of a wording; the first letter is a capital."""
    text = wording.format(**values)
    return text[:1].upper() + text[1:]
