"""Write what the wheel holds of the embedded model's world: `python -m tools.embedded.sentences`."""

import json
from typing import Any

from semgrad_guard.demo.embedded import SENTENCES
from tools.embedded.facts import relations
from tools.embedded.questions import Side, paraphrases, questions
from tools.embedded.tools import tools

_STRATA = ("known", "several", "withheld")
_QUESTIONS = 250  # of each stratum and side
_TOOLS = ("find_route", "get_weather")


def facts_in_words() -> list[str]:
    """State every single-answer fact in one sentence, withheld ones included."""
    return [
        relation.state(relation.statements[0], fact.subject, fact.answers[0])
        for relation in relations()
        if not relation.several
        for fact in relation.facts
    ]


def sentences() -> dict[str, Any]:
    """Give all that the file holds."""
    return {
        "corpus": facts_in_words(),
        "questions": {side: {stratum: _lines(stratum, side) for stratum in _STRATA} for side in ("fit", "report")},
        "paraphrases": paraphrases(),
        "tools": [tool.schema() for tool in tools() if tool.name in _TOOLS],
    }


def _lines(stratum: str, side: Side) -> list[dict[str, Any]]:
    by_prompt = {item.prompt: item for item in questions(stratum, side)[:_QUESTIONS]}
    return [
        {"query": prompt, "truthful answer": list(item.answers), "group": item.about}
        for prompt, item in by_prompt.items()
    ]


if __name__ == "__main__":
    SENTENCES.write_text(json.dumps(sentences(), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
