"""The questions of a calibration by outcome: counts in words, and advice where many cannot be used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from scipy.stats import binom

from semgrad_guard.calibration.guarantee import STRICTEST, labels_needed

Problem = Literal["too_long", "cut_off", "empty", "not_scored", "not_its_own"]

Outcome = Problem | bool | None
"""What became of a question: whether its answer is right, None without a label, or why it cannot be used."""

_NOTEWORTHY = 0.1  # share of the questions
_WORDS: dict[Problem | Literal["unlabelled"], str] = {
    "cut_off": "cut off at the token limit",
    "empty": "empty",
    "not_scored": "that could not be scored",
    "not_its_own": "not what the model would say itself",
    "too_long": "not asked, as the prompt is too long",
    "unlabelled": "without a label",
}


@dataclass(frozen=True)
class Counts:
    """Questions by outcome; all fields but `questions` add up to it.

    `right`, `wrong` and `unlabelled` answers have a score. The guard holds all others back whatever the threshold, so
    they say nothing about one and get no label: `cut_off` at the token limit, `empty`, `not_scored`, `not_its_own` (an
    answer that came with its question, and that the model would hardly give) and `too_long` (the prompt leaves no room
    for an answer).
    """

    questions: int = 0
    right: int = 0
    wrong: int = 0
    unlabelled: int = 0
    cut_off: int = 0
    empty: int = 0
    not_scored: int = 0
    not_its_own: int = 0
    too_long: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Counts:
        """Count outcomes: whether an answer is right, None without a label, or what keeps it from being used."""
        names = {True: "right", False: "wrong", None: "unlabelled"}
        counted = Counter(outcome if isinstance(outcome, str) else names[outcome] for outcome in outcomes)
        return cls(questions=counted.total(), **counted)

    @property
    def scored(self) -> int:
        """Answers that can be used."""
        return self.right + self.wrong + self.unlabelled

    def __str__(self) -> str:
        """Say how many answers were right and wrong, and how many could not be used and why."""
        plain = asdict(self)
        rest = [f"{plain[name]} {words}" for name, words in _WORDS.items() if plain[name]]
        return f"{self.questions} questions: " + ", ".join([f"{self.right} right", f"{self.wrong} wrong", *rest])

    def advice(self, longest: int = 0) -> list[str]:
        """Say what to do about each kind that is more than a tenth of the questions.

        Args:
            longest: tokens of the longest answer that was cut off.
        """
        plain = asdict(self)
        remedies: dict[Problem | Literal["unlabelled"], str] = {
            "cut_off": (
                f"were cut off at {longest} tokens and cannot be used: give --max-new-tokens {2 * longest} "
                f"(generation={{'max_new_tokens': {2 * longest}}} in Python), or a prompt that asks for short answers "
                "(--prompt)"
            ),
            "empty": "are empty: ask with a prompt that the model answers (--prompt)",
            "not_scored": (
                "could not be scored: load the model in a higher precision, such as float32, or give it more memory"
            ),
            "not_its_own": (
                "are answers that the model would hardly give itself, and that the guard holds back: leave "
                '"answer" and "correct" out, and let the model answer'
            ),
            "too_long": "were not asked, since the prompt leaves no room for the answer: shorten the prompt",
            "unlabelled": 'have no label: give "truthful answer" with each question, or a comparison that can decide',
        }
        return [
            f"{plain[name]} of {self.questions} answers {remedy}."
            for name, remedy in remedies.items()
            if plain[name] > _NOTEWORTHY * self.questions
        ]


FEWEST = 5  # right and wrong answers to fit on, one in each fold of a cross-validation
_FITTED, _TESTED = 0.5, 0.35  # shares of the labels
_FEWEST_PASSING = 10  # from which on a share of wrong answers says something
_MOST = 20_000  # passing answers that a promise is looked for with


def questions_needed(right: int, wrong: int, questions: int, *, risk: float, delta: float) -> str:
    """Say how many more questions like these a profile would take, by the shares of right and wrong answers so far.

    Half of the labels are for fitting, which needs five of each kind. A third is for the test: if exactly the right
    answers passed there, they would have to be as many as the promise takes without an error.

    Args:
        right: answers labelled right.
        wrong: answers labelled wrong.
        questions: all questions behind those answers.
        risk: largest share of wrong answers among those that pass.
        delta: probability that the promise does not hold.
    """
    labelled = right + wrong
    # A kind that was not met yet may be as rare as one in n + 2 (Laplace).
    shares = [count / labelled if count else 1 / (labelled + 2) for count in (right, wrong)]
    to_fit = max(FEWEST / (_FITTED * share) for share in shares)
    to_promise = labels_needed(risk, delta) / (_TESTED * shares[0])
    used = max(labelled, 1) / max(questions, 1)
    more = _rounded(max(to_fit, to_promise) / used - questions)
    few = _rounded(to_fit / used - questions)
    seen = f"{right} right and {wrong} wrong answers to {questions} questions"
    about = "about" if right and wrong else "at least"
    fitting = f"{about} {few} more to have {FEWEST} of each kind to fit on, " if few else ""
    return (
        f"{seen}. At this rate it takes {fitting}{about} {more} more questions like these to promise a risk of "
        f"{risk:.3g} with certainty {1 - delta:.3g}"
    )


def labels_to_promise(
    passing: Sequence[tuple[int, int]], tested: int, labelled: int, *, risk: float, delta: float
) -> str:
    """Say how many more labels would let the strictest threshold keep the promise, with which a test begins.

    Args:
        passing: for each threshold tried, strict to loose, how many answers passed and how many of them were wrong.
        tested: answers in the test.
        labelled: labels altogether.
        risk: largest share of wrong answers among those that pass.
        delta: probability that the promise does not hold.
    """
    # A share of few is mostly chance: it is taken from the strictest threshold that lets some more pass.
    n, errors = next(((n, errors) for n, errors in passing if n >= _FEWEST_PASSING), passing[-1])
    least = _least(errors / n if n else 0.0, risk=risk, delta=delta)
    if least is None:
        return (
            f"{errors} of the {n} most confident answers are wrong, so that more labels alone would hardly help: allow "
            "a larger risk, or take another prompt or model"
        )
    needed = least / STRICTEST / max(tested, 1) * labelled
    if needed <= labelled:
        return "with answers like these it is a matter of chance: about as many labels again would make it probable"
    return f"with answers like these, about {_rounded(needed - labelled)} more labels would"


def _least(rate: float, *, risk: float, delta: float) -> int | None:
    """Give the fewest passing answers that keep the promise where this share of them is wrong."""
    n = np.arange(1, _MOST + 1)
    enough = np.flatnonzero(binom.cdf(np.ceil(rate * n - 1e-9), n, risk) <= delta)
    return 1 + int(enough[0]) if len(enough) else None


def _rounded(count: float) -> int:
    """Round up to two figures, as befits an estimate; 0 for less than nothing."""
    if count <= 0:
        return 0
    unit = 10.0 ** max(0, math.floor(math.log10(count)) - 1)
    return round(math.ceil(count / unit) * unit)
