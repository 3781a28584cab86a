"""Every error that the package raises on its own account.

SemGradError
├── UnsupportedModelError      the model cannot be scored exactly (no gradients, unknown head, wrong state)
├── TokenPositionError         the semantic preserving token cannot be located
├── PromptTooLongError         prompt and answer do not fit into the model's context
├── EmptyResponseError         there is no response token to score
├── BudgetError                scoring would take more tokens or memory than it was given
├── DataError                  labelled questions are malformed, or too few
├── ProfileError               a profile is malformed or belongs to another model
├── ConfigurationError         settings contradict each other or are missing
├── ReviewError                the review queue cannot do what it was asked: no such review, database out of reach
│   └── ReviewConflictError    a review is decided otherwise already, expired, or in somebody else's hands
├── RetrievalError             a retriever, or what rewrites its query, gave something else than texts
├── RouteError                 a route gave something else than an outcome
├── AbandonedError             nobody waits for the answer any more
├── TimedOutError              a retriever, a reviewer or another model did not answer in time
└── LowConfidenceError         an answer is not sure enough, and the route `Raise` was to say so
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semgrad_guard.records import Decision


class SemGradError(Exception):
    """Base class: catches everything the package raises on its own account."""


class UnsupportedModelError(SemGradError):
    """The model cannot be scored exactly, or not in the state it is in."""


class TokenPositionError(SemGradError):
    """The semantic preserving token cannot be located in the prompt."""


class PromptTooLongError(SemGradError):
    """Prompt and answer do not fit into the model's context."""


class EmptyResponseError(SemGradError):
    """A response without tokens was given to be scored."""


class BudgetError(SemGradError):
    """Scoring would take more tokens or memory than it was given."""


class DataError(SemGradError):
    """Labelled questions are malformed, or too few for what they are to show."""


class ProfileError(SemGradError):
    """A profile is malformed, of another version, or belongs to another model."""


class ConfigurationError(SemGradError):
    """Settings contradict each other, are missing, or are out of range."""


class ReviewError(SemGradError):
    """The review queue cannot do what it was asked: there is no such review, or its database is out of reach."""


class ReviewConflictError(ReviewError):
    """A review is decided otherwise already, has expired, or is in somebody else's hands."""


class RetrievalError(SemGradError):
    """A retriever, or what rewrites its query, gave something else than texts; the message names classes only."""


class RouteError(SemGradError):
    """A route gave something else than an outcome; the message names classes only."""


class AbandonedError(SemGradError):
    """Nobody waits for the answer any more, so it was not finished."""


class TimedOutError(SemGradError, TimeoutError):
    """A retriever, a reviewer or another model did not answer in time."""


class LowConfidenceError(SemGradError):
    """An answer is not sure enough, and the route `Raise` was to say so.

    `decision` tells how unsure and why, and what else was tried; `draft` is the text held back, None unless asked for.
    """

    def __init__(self, decision: Decision, draft: str | None = None) -> None:
        """Carry the decision; the draft is not part of the error's own text."""
        super().__init__(f"The answer is not sure enough: {decision.reason}")
        self.decision, self.draft = decision, draft

    def __reduce__(self) -> tuple[type[LowConfidenceError], tuple[Decision, str | None]]:
        """Let it travel between processes with what it carries."""
        return type(self), (self.decision, self.draft)


# Those whose messages tell sizes, names and states, and never quote what was asked or answered.
_OF_NO_TEXT = (
    UnsupportedModelError,
    TokenPositionError,
    PromptTooLongError,
    EmptyResponseError,
    BudgetError,
    ProfileError,
    ReviewError,
    TimedOutError,
    RetrievalError,
    RouteError,
)
# Of these, those that do not name a file or a database either.
_OF_NO_PLACE = (
    TokenPositionError,
    PromptTooLongError,
    EmptyResponseError,
    BudgetError,
    TimedOutError,
    RetrievalError,
    RouteError,
    LowConfidenceError,
)
_FRAMES = 3


def described(error: BaseException) -> str:
    """Say for a log what went wrong and where, in words that no prompt, answer or source can have got into.

    An error's own message is told where it is one of ours that quotes nothing; of any other, type and place must do.
    """
    if isinstance(error, _OF_NO_TEXT):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames]
    return " > ".join([type(error).__name__, *places])


def named(error: BaseException) -> str:
    """Name an error in a record, which callers and clients read.

    The message of an error may hold a password, an address, a question or a draft. It is left out, unless the error is
    one of ours that tells sizes and times only.
    """
    name = "TimeoutError" if isinstance(error, TimedOutError) else type(error).__name__
    return f"{name}: {error}" if isinstance(error, _OF_NO_PLACE) else name


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import within it what an extra brings.

    Args:
        extra: its name.
        what: what is asked for, and what that needs, as the error is to begin: "ReviewQueue needs sqlalchemy".

    Raises:
        ConfigurationError: something cannot be imported; the cause is kept.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(f'{what}; install the extra: pip install "semgrad-guard[{extra}]"') from error
