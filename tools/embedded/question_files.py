"""Write the embedded model's questions as files for `calibrate`, `evaluate` and `sps`.

`python -m tools.embedded.question_files --out data`
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from semgrad_guard.demo.embedded import corpus
from tools.embedded.questions import CLOSED_BOOK, Side, questions


def main(
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("data"),
    several: Annotated[bool, typer.Option(help="With the strata that have several right answers.")] = True,
) -> None:
    """Write the questions without passages: calibration.jsonl, test.jsonl, paraphrases.jsonl and passages.txt."""
    out.mkdir(parents=True, exist_ok=True)
    strata = [stratum for stratum in CLOSED_BOOK if several or not stratum.startswith("several")]
    sides: dict[str, Side] = {"calibration": "fit", "test": "report"}
    by_side = {
        name: {item.prompt: item for stratum in strata for item in questions(stratum, side)}
        for name, side in sides.items()
    }
    for name, items in by_side.items():
        _write(
            out / f"{name}.jsonl",
            (
                {
                    "query": prompt,
                    "truthful answer": list(item.answers),
                    "group": item.about,
                    "stratum": item.stratum,
                }
                for prompt, item in items.items()
            ),
        )
    groups = ({"query": prompt, "paraphrases": item.reworded[:5]} for prompt, item in by_side["test"].items())
    _write(out / "paraphrases.jsonl", groups)
    (out / "passages.txt").write_text("\n".join(corpus()) + "\n", encoding="utf-8")


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
