"""What is asked of which model: a cell is one model's answers to one set of questions."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard.calibration.examples import Example, read_examples
from semgrad_guard.calibration.labels import labeler
from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.model.load import load_model
from tools.fetch_models import SOURCES, fetch

MODELS = {"smollm2": "SmolLM2-135M-Instruct", "gemma": "Gemma 3 270M", "qwen": "Qwen2.5-Coder-0.5B-Instruct"}
DATA = {"facts": "world facts", "sciq": "SciQ", "nq": "NQ-open", "truthfulqa": "TruthfulQA"}
FOLDERS = {"sciq": "sciq", "nq": "nq_open", "truthfulqa": "truthfulqa"}
LABELS = {"facts": "contains", "sciq": "contains", "nq": "contains", "truthfulqa": "either"}
MOST = 600  # questions of a published set; world facts: all for the fastest model
LONGEST = {"smollm2": 20, "gemma": 20, "qwen": 32}  # tokens of an answer

_PAPER = "Please directly answer the following question with one or few words:\n{query}"
# Four questions and answers that show how short an answer is to be; none of them is in a set.
_SHOWN = (
    ("Which planet of the solar system is the largest?", "Jupiter"),
    ("Who wrote the play Hamlet?", "William Shakespeare"),
    ("Which gas do plants take from the air?", "Carbon dioxide"),
    ("In which year did the Second World War end?", "1945"),
)
# A base model has no chat template: questions and answers in turn, a line each.
_LINES = (
    "{{ bos_token }}{% for message in messages %}{{ ('Question: ' if message['role'] == 'user' else 'Answer: ') "
    "+ message['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)


@dataclass(frozen=True)
class Cell:
    """A model and a set of questions."""

    model: str
    data: str

    def folder(self, root: Path) -> Path:
        """Give the folder of its answers."""
        return root / self.model / self.data

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of `model.generate`."""
        stop = {"stop_strings": ["\n"]} if self.model == "gemma" else {}
        return {"max_new_tokens": LONGEST[self.model], "do_sample": False, **stop}

    def prompt(self, facts: Path) -> PromptForm:
        """Give the form of its prompt."""
        if self.model == "qwen":
            return PromptForm.of_text(_PAPER)
        if self.data == "facts":
            return PromptForm.read(facts / "prompt.json")
        shown = [
            turn
            for question, answer in _SHOWN
            for turn in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        ]
        return PromptForm.of_turns([*shown, {"role": "user", "content": "{query}"}])

    def examples(self, facts: Path, datasets: Path | None) -> list[Example]:
        """Read its questions, in an order drawn once; none where the set is not there."""
        if self.data == "facts":
            files = [facts / "calibration.jsonl", facts / "test.jsonl"]
        elif datasets is not None and (datasets / FOLDERS[self.data] / "test.jsonl").exists():
            files = [datasets / FOLDERS[self.data] / "test.jsonl"]
        else:
            return []
        examples = [example for file in files for example in _read(file)]
        random.Random(0).shuffle(examples)
        return examples[: len(examples) if (self.model, self.data) == ("gemma", "facts") else MOST]

    def right(self, example: Example, answer: str) -> bool:
        """Tell whether an answer is right."""
        return bool(labeler(LABELS[self.data])(example.query, answer, example.answers or ()))


def _read(file: Path) -> list[Example]:
    """Read a published set, which asks a few questions twice: the first time counts."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if len({line["query"] for line in lines}) == len(lines):
        return read_examples(file)
    return [Example.model_validate(line) for line in {line["query"]: line for line in reversed(lines)}.values()]


@cache
def loaded(name: str, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a published model, fetching it where it is not there."""
    path = folder / SOURCES[name].file
    model, tokenizer = load_model(path if path.exists() else fetch(name, folder), quiet=True)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _LINES
    return model, tokenizer
