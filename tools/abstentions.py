"""Ask a guard on a real model about known and about invented places, and write down how many answers pass.

    python -m tools.abstentions --model x.gguf --profile p.json --data test.jsonl --page docs/first_calibration.md

The questions are those of `tools/world_facts.py`, the half that calibration does not see. The guard asks with the
prompt that the profile was calibrated with.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from scipy.stats import binomtest
from tqdm.auto import tqdm

from semgrad_guard import Profile, SemGradGuard, get_confidence
from semgrad_guard.calibration.examples import Example, read_examples
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.model.load import load_model

_BATCH = 16


def share(count: int, n: int) -> str:
    """Show a share with its exact 95 % interval."""
    interval = binomtest(count, n).proportion_ci(0.95)
    return f"{count / n:.1%} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def table(selected: list[Example], confidences: list[float], threshold: float) -> list[str]:
    """Give the lines of a table: for each kind of question how many pass, and the mean confidence."""
    kinds: dict[str, list[float]] = {"known places": [], "invented places": []}
    for example, confidence in zip(selected, confidences, strict=True):
        kinds["invented places" if example.stratum == "invented" else "known places"].append(confidence)
    lines = ["| questions about | n | pass | mean confidence |", "|---|---|---|---|"]
    for kind, values in kinds.items():
        passing = sum(value >= threshold for value in values)
        lines.append(f"| {kind} | {len(values)} | {share(passing, len(values))} | {sum(values) / len(values):.3f} |")
    return lines


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file or folder of the model.")],
    profile: Annotated[Path, typer.Option(help="Its profile.")],
    data: Annotated[Path, typer.Option(help="The questions.")],
    page: Annotated[Path, typer.Option(help="The page to write.")],
    most: Annotated[int, typer.Option(help="Questions of each stratum.")] = 40,
) -> None:
    """Ask, and write the page."""
    loaded = Profile.load(profile)
    seen: Counter[str] = Counter()
    selected = []
    for example in read_examples(data):
        seen[example.stratum] += 1
        if seen[example.stratum] <= most * (5 if example.stratum == "invented" else 1):
            selected.append(example)
    chat = ChatSemGrad.from_model(
        *load_model(model, quiet=True), temperature=0, max_tokens=12, batch_size=_BATCH, scoring=loaded.bound_to.scoring
    )
    guard = SemGradGuard(chat, profile=loaded, prompt=loaded.bound_to.prompt)
    confidences = []
    for start in tqdm(range(0, len(selected), _BATCH), desc="asking"):
        messages = guard.batch([example.query for example in selected[start : start + _BATCH]])
        confidences += [get_confidence(message) or 0.0 for message in messages]
    section = loaded.answer
    threshold = section.threshold
    lines = [
        "# A first calibration on published weights",
        "",
        f"Written by `python -m tools.abstentions`. The model is {model.name}, with the profile that",
        "`semgrad-guard calibrate` fitted on questions of the other half of `make world-facts`, asked with four short",
        "turns before each. No country or invented name is in both halves; answers are cut off at 12 tokens.",
        "",
        f"- calibration: {section.questions} answers to fit on; {section.threshold_rule}",
    ]
    if threshold is None:
        threshold = sorted(confidences)[-max(1, len(confidences) // 5)]
        lines.append(
            "- no threshold keeps that promise, so nothing passes with this profile. The table shows what would pass "
            f"at `threshold={threshold:.3f}`, which lets a fifth of these answers through and promises nothing"
        )
    else:
        lines.append(f"- threshold: confidence >= {threshold:.3f}")
    page.write_text("\n".join([*lines, "", *table(selected, confidences, threshold), ""]), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
