"""What became of the questions of a calibration: counts in words, and what to do where many cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

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
    """Questions by what became of them; all but `questions` add up to it.

    `right`, `wrong` and `unlabelled` answers have a score. The others are those that the guard holds back whatever the
    threshold, so that they can tell nothing about one; they are not labelled: `cut_off` at the token limit, `empty`,
    `not_scored`, `not_its_own` (an answer that came with its question, and that the model would hardly give) and
    `too_long` (the prompt leaves no room for an answer).
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
        """Say how many answers were right and wrong, and of the others how many could not be used and why."""
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
