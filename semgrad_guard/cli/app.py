"""What all commands share: the application, the model they work on, and errors in one line.

The modules of the command line import torch, transformers and LangChain inside their commands, so that `--help` and a
wrong option are answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from semgrad_guard.demo.embedded import embedded_model
from semgrad_guard.errors import ConfigurationError, SemGradError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from semgrad_guard.calibration.profile import Profile
    from semgrad_guard.calibration.prompts import PromptForm
    from semgrad_guard.scoring.scorer import SemGradScorer

app = typer.Typer(
    help="The confidence layer for local language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Model: a hub id, a folder or a GGUF file. The default is the embedded model."),
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Revision of a hub id.")]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="Precision of the weights, such as bfloat16. The default is the model's."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what the package raises into one line on stderr and exit code 2."""
    try:
        yield
    except SemGradError as error:
        message = " ".join(str(error).split())
        Console(stderr=True).print(Text.assemble(("error:", "red"), f" {message}"), soft_wrap=True)
        raise typer.Exit(2) from error


def model_of(
    name: str | None, revision: str | None, dtype: str | None = None, *, quiet: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model; without a name, the embedded one.

    Args:
        name: what `load_model` takes.
        revision: revision of a hub id.
        dtype: precision of the weights.
        quiet: show neither the size of the weights nor progress, so that a program can read what is printed. Where
            stderr is no terminal, no progress is shown either.
    """
    if name is None:
        if revision is not None or dtype is not None:
            raise ConfigurationError("--revision and --dtype belong to a --model; the embedded model has neither.")
        return embedded_model()
    from semgrad_guard.model.load import load_model

    notes = Console(stderr=True, quiet=quiet)
    return load_model(
        name,
        revision=revision,
        dtype=dtype,
        quiet=quiet or not watched(),
        announce=lambda line: notes.print(Text(line), soft_wrap=True),
    )


def watched() -> bool:
    """Tell whether a terminal shows what goes to stderr."""
    return sys.stderr.isatty()


def bound_scorer(
    source: tuple[PreTrainedModel, PreTrainedTokenizerBase], profile: Profile | None, token_position: int | None = None
) -> SemGradScorer:
    """Build a scorer that scores as a profile was fitted; refuse a model or a t* that is not the profile's."""
    from semgrad_guard.calibration.profile import agreed_scoring
    from semgrad_guard.model.fingerprint import fingerprint, precision, template_fingerprint
    from semgrad_guard.scoring.scorer import SemGradScorer

    scoring = agreed_scoring(profile, token_position)
    if profile is not None:
        profile.check(fingerprint(source[0]), template_fingerprint(source[1]), precision(source[0]))
    return SemGradScorer(*source, scoring=scoring)


PromptOption = Annotated[
    Path | None,
    typer.Option(
        "--prompt",
        help="File with the prompt: a text with {query} in it, or messages as JSON. The default is the profile's.",
    ),
]
SystemOption = Annotated[str | None, typer.Option("--system", help="System message of the prompt.")]
TokenPositionOption = Annotated[
    int | None,
    typer.Option(
        "--token-position",
        min=1,
        help="Prompt token that SemGrad is taken at, counted from the end (1 is the last). The default is the "
        "profile's, else the chat template's.",
    ),
]
LongestOption = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens. The default is the model's.")
]


def prompt_of(path: Path | None, system: str | None) -> PromptForm | None:
    """Build the prompt that the options ask for; None if they ask for none.

    Raises:
        ConfigurationError: the file holds no prompt, or the system message is empty, or there are two.
    """
    if path is None and system is None:
        return None
    from semgrad_guard.calibration.prompts import BARE, PromptForm

    form = BARE if path is None else PromptForm.read(path)
    return form if system is None else form.with_system(system)
