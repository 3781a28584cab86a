"""The embedded model as users get it: weights, profile, a corpus to look things up in, and questions to try."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from semgrad_guard.calibration.profile import Profile

WEIGHTS = Path(__file__).parent / "weights"
PROFILE = WEIGHTS / "profile.json"
SENTENCES = Path(__file__).parent / "sentences.json"  # written by `python -m tools.embedded.sentences`


def embedded_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the embedded model and its tokenizer: a few million parameters that know some general facts."""
    import torch

    from semgrad_guard.model.load import load_model

    return load_model(WEIGHTS, dtype=torch.float32, quiet=True)  # it loads in a blink


def embedded_profile() -> Profile:
    """Load the embedded model's profile."""
    from semgrad_guard.calibration.profile import Profile

    return Profile.load(PROFILE)


def corpus() -> tuple[str, ...]:
    """Give every single-answer fact in one sentence, withheld ones included: something to retrieve from."""
    return tuple(_sentences()["corpus"])


def labelled_questions(
    stratum: Literal["known", "several", "withheld"], side: Literal["fit", "report"] = "fit"
) -> list[dict[str, Any]]:
    """Give questions with their right answers, as lines of a data file hold them.

    Args:
        stratum: facts that the model was trained on with one right answer, with several, or facts withheld from it.
        side: "fit" for questions to calibrate on, "report" for those that the shipped profile has not seen.
    """
    questions: list[dict[str, Any]] = _sentences()["questions"][side][stratum]
    return questions


def paraphrases() -> list[list[str]]:
    """Give groups of questions that mean the same, to measure the semantic preservation score on."""
    groups: list[list[str]] = _sentences()["paraphrases"]
    return groups


def tool_schemas() -> list[dict[str, Any]]:
    """Give the schemas of two tools that the model was taught to call."""
    schemas: list[dict[str, Any]] = _sentences()["tools"]
    return schemas


@cache
def _sentences() -> dict[str, Any]:
    sentences: dict[str, Any] = json.loads(SENTENCES.read_text(encoding="utf-8"))
    return sentences
