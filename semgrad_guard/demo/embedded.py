"""The embedded model as users get it: weights, profile, and a small corpus to look things up in."""

from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.demo.facts import relations
from semgrad_guard.model.load import load_model

WEIGHTS = Path(__file__).parent / "weights"
PROFILE = WEIGHTS / "profile.json"


def embedded_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the embedded model and its tokenizer: a few million parameters that know some general facts."""
    return load_model(WEIGHTS, dtype=torch.float32, quiet=True)  # it loads in a blink


def embedded_profile() -> Profile:
    """Load the embedded model's profile."""
    return Profile.load(PROFILE)


@cache
def corpus() -> tuple[str, ...]:
    """State every single-answer fact in one sentence, withheld ones included: something to retrieve from."""
    return tuple(
        relation.state(relation.statements[0], fact.subject, fact.answers[0])
        for relation in relations()
        if not relation.several
        for fact in relation.facts
    )
