"""Options that say how a question is asked: the prompt around it, the longest answer, and where SemGrad is taken."""

from pathlib import Path
from typing import Annotated

import typer

from semgrad_guard.calibration.prompts import BARE, PromptForm

PromptOption = Annotated[
    Path | None,
    typer.Option(
        "--prompt",
        help="File to ask with: a text with {query} in it, or messages as JSON. A profile's own if not given.",
    ),
]
SystemOption = Annotated[str | None, typer.Option("--system", help="System message to ask with.")]
TokenPositionOption = Annotated[
    int | None,
    typer.Option(
        "--token-position",
        min=1,
        help="Prompt token that SemGrad is taken at, from the end (1: the last). The profile's, or the template's, if "
        "not given.",
    ),
]
LongestOption = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens. The model's own if not given.")
]


def prompt_of(path: Path | None, system: str | None) -> PromptForm | None:
    """Build the prompt that the options ask for; None if they ask for none.

    Raises:
        ConfigurationError: the file holds no prompt, or the system message is empty, or there are two.
    """
    if path is None and system is None:
        return None
    form = BARE if path is None else PromptForm.read(path)
    return form if system is None else form.with_system(system)
