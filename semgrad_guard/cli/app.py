"""What all commands share: the application, the model they work on, and errors in one line."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, and not marked as exported
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from rich.console import Console
from rich.markup import escape
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as bars

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


@contextmanager
def without_loading_bars() -> Iterator[None]:
    """Show no bars while files are loaded; afterwards they are as the user had them."""
    shown, hub_silent = bars.is_progress_bar_enabled(), are_progress_bars_disabled()
    with warnings.catch_warnings():  # the hub warns where the user's own variable rules
        warnings.simplefilter("ignore")
        bars.disable_progress_bar()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if shown:
                bars.enable_progress_bar()
            (disable_progress_bars if hub_silent else enable_progress_bars)()


def _quiet(context: typer.Context, wanted: bool) -> bool:
    if wanted:
        context.with_resource(without_loading_bars())
    return wanted


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.", callback=_quiet)]


@app.callback()
def prepare(context: typer.Context) -> None:
    """Prepare any command."""
    _quiet(context, not _watched())


def _watched() -> bool:
    """Tell whether a terminal shows what goes to stderr."""
    return sys.stderr.isatty()


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
        quiet: show neither the size of the weights nor progress, so that a program can read what is printed.
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
        quiet=quiet,
        announce=lambda line: notes.print(escape(line), soft_wrap=True),
    )


def bound_scorer(
    source: tuple[PreTrainedModel, PreTrainedTokenizerBase], profile: Profile | None, token_position: int | None = None
) -> SemGradScorer:
    """Build a scorer that scores as a profile was fitted, and refuse another model, or another t*, than its own."""
    scoring = agreed_scoring(profile, token_position)
    if profile is not None:
        profile.check(fingerprint(source[0]), template_fingerprint(source[1]), precision(source[0]))
    return SemGradScorer(*source, **scoring)
