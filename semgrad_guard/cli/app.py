"""What all commands share: the application, the model they work on, and errors in one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard.calibration.agreement import agreed_scoring
from semgrad_guard.calibration.profile import Profile
from semgrad_guard.demo.embedded import embedded_model
from semgrad_guard.errors import ConfigurationError, SemGradError
from semgrad_guard.model.fingerprint import fingerprint, precision, template_fingerprint
from semgrad_guard.model.load import load_model
from semgrad_guard.scoring.scorer import SemGradScorer

app = typer.Typer(
    help="The confidence layer for local language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hub id, folder or GGUF file; the embedded model if not given.")
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Revision of a hub id.")]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="Precision of the weights, such as bfloat16; the model's own if not given."),
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
    """Load the model that was asked for, the embedded one if none was.

    Args:
        name: what `load_model` takes.
        revision: of a hub id.
        dtype: precision of the weights.
        quiet: show neither the size of the weights nor progress, so that a program can read what is printed. Where
            stderr is no terminal, no progress is shown either.
    """
    if name is None:
        if revision is not None or dtype is not None:
            raise ConfigurationError("--revision and --dtype belong to a --model; the embedded model has neither.")
        return embedded_model()
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
    """Build a scorer that scores as a profile was fitted, and refuse another model, or another t*, than its own."""
    scoring = agreed_scoring(profile, token_position)
    if profile is not None:
        profile.check(fingerprint(source[0]), template_fingerprint(source[1]), precision(source[0]))
    return SemGradScorer(*source, **scoring)
