"""Ask the embedded model the questions of every stratum, fit its profile, and measure what is right and what passes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage
from scipy.stats import binomtest
from tqdm.auto import tqdm

from semgrad_guard import __version__
from semgrad_guard.calibration.fit import fit_section, threshold_passing
from semgrad_guard.calibration.from_examples import bind
from semgrad_guard.calibration.methods import Labelled, calibrate_section, fused_features
from semgrad_guard.calibration.profile import Profile, Section
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.langchain.metadata import get_message_scores, get_scores
from semgrad_guard.langchain.scored_messages import judged, scored_messages
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.records import AnswerKind, CallScores, Score
from semgrad_guard.scoring.scorer import SemGradScorer
from tools.embedded.facts import relations, strata
from tools.embedded.guesser import guesses
from tools.embedded.questions import STRATA, Question, questions

_BATCH = 64
_LONGEST_ANSWER = 64


@dataclass(frozen=True)
class Examined:
    """A question, the model's message with its scores, and whether it was right."""

    question: Question
    message: AIMessage
    correct: bool

    @property
    def score(self) -> Score:
        """The score of the whole response."""
        if (score := get_scores(self.message)) is None:
            raise ValueError(f"The answer to about {self.question.about!r} has no score.")
        return score

    def passes(self, standard: Standard) -> bool:
        """Tell whether the guard lets it pass; of a request for a tool, whether a call passes."""
        kind = STRATA[self.question.stratum]
        if kind == "tool_call" and not self.message.tool_calls:
            return False
        return judged(self.message, standard, grounded=kind == "grounded").verdict.passed


@dataclass(frozen=True)
class Sample:
    """One example to fit a section on, and the stratum it comes from."""

    stratum: str
    labelled: Labelled


@dataclass(frozen=True)
class Stratum:
    """One row of the report; intervals are exact 95 % binomial ones, of the shares just before them."""

    name: str
    n: int
    right: float | None
    right_interval: tuple[float, float] | None
    passing: float
    passing_interval: tuple[float, float]
    wrong: int
    wrong_passing: float | None
    wrong_among_passing: float | None


def examine(scorer: SemGradScorer, items: list[Question]) -> list[Examined]:
    """Ask, answer greedily, score."""
    examined = []
    for start in tqdm(range(0, len(items), _BATCH), desc="asking", leave=False):
        batch = items[start : start + _BATCH]
        prompts = [encode_chat(scorer.tokenizer, item.messages, tools=item.schemas) for item in batch]
        generations = scorer.generate(prompts, max_new_tokens=_LONGEST_ANSWER, do_sample=False)
        if any(item.tools for item in batch):  # each has tools of its own
            messages = [
                scored_messages(scorer, [generation], (), item.schemas)[0]
                for item, generation in zip(batch, generations, strict=True)
            ]
        else:
            messages = scored_messages(scorer, generations, (), ())
        examined += [
            Examined(item, message, item.correct(generation.text))
            for item, message, generation in zip(batch, messages, generations, strict=True)
        ]
    return examined


def fit_profile(scorer: SemGradScorer) -> Profile:
    """Fit the profile on the fitting side: a section for each kind of answer."""
    examined = [
        item
        for stratum in tqdm(STRATA, desc="fitting side")
        for item in examine(scorer, questions(stratum, "fit"))
        if get_scores(item.message) is not None
    ]
    seed, promise = strata()["seed"], strata()["promise"]
    samples: dict[AnswerKind, Callable[[Examined], Iterable[Sample]]] = {
        "grounded": lambda item: _answers(item, "grounded"),
        "tool_call": _calls,
        "argument": _arguments,
    }
    sections: dict[str, Any] = {
        str(kind): _section([sample for item in examined for sample in draw(item)], kind)
        for kind, draw in samples.items()
    }
    answers = [sample.labelled for item in examined for sample in _answers(item, "answer")]
    sections["answer"] = calibrate_section(answers, method="fused", **promise, seed=seed).section
    return Profile(
        package=__version__,
        method="fused",
        bound_to=bind(scorer, "semgrad-guard embedded model", *sections.values()),
        label_source="exact match, case and full stop aside; tool calls by name and arguments",
        seed=seed,
        **sections,
    )


def _answers(item: Examined, kind: AnswerKind) -> Iterable[Sample]:
    if STRATA[item.question.stratum] == kind:
        yield Sample(item.question.stratum, Labelled(item.question.about, item.score, item.correct))


def _calls(item: Examined) -> Iterable[Sample]:
    for call in _scored_calls(item):
        right = item.correct and item.question.call is not None
        if call.scores is not None:
            yield Sample(item.question.stratum, Labelled(item.question.about, call.scores, right))


def _arguments(item: Examined) -> Iterable[Sample]:
    """Take each argument by itself: it is right if the right call has it with this value."""
    expected = item.question.call or ("", {})
    for call, scored in zip(item.message.tool_calls, _scored_calls(item), strict=True):
        for name, score in scored.arguments.items():
            right = call["name"] == expected[0] and expected[1].get(name) == call["args"][name]
            if score is not None:
                yield Sample(item.question.stratum, Labelled(item.question.about, score, right))


def _scored_calls(item: Examined) -> list[CallScores]:
    record = get_message_scores(item.message)
    return [] if record is None else list(record.tool_calls.values())


def _section(samples: list[Sample], kind: AnswerKind) -> Section:
    labelled = [sample.labelled for sample in samples]
    fitted = fit_section(
        [item.score for item in labelled],
        [item.correct for item in labelled],
        fused_features(labelled) or ("semgrad",),
        groups=[item.about for item in labelled],
    )
    thresholds = {}
    for stratum, share in strata()["passing"][kind].items():
        members = [sample.labelled for sample in samples if sample.stratum == stratum]
        wrong = [fitted.confidence(item.score) for item in members if not item.correct]
        rule = f"of {len(wrong)} wrong ones of the stratum {stratum!r} at most {share:.0%} pass"
        thresholds[rule] = min(1.0, round(threshold_passing(wrong, share) + 5e-5, 4))
    threshold = max(thresholds.values())
    return fitted.model_copy(update={"threshold": threshold, "threshold_rule": "; ".join(thresholds)})


def reporting_side(scorer: SemGradScorer) -> dict[str, list[Examined]]:
    """Ask everything on the reporting side."""
    return {name: examine(scorer, questions(name, "report")) for name in tqdm(STRATA, desc="reporting side")}


def measure(name: str, examined: list[Examined], standard: Standard) -> Stratum:
    """Count what is right and what passes."""
    passing = [item for item in examined if item.passes(standard)]
    wrong = [item for item in examined if not item.correct]
    right = len(examined) - len(wrong)
    answerable = STRATA[name] == "tool_call" or any(item.question.answers for item in examined)
    wrong_passing = sum(not item.correct for item in passing)
    return Stratum(
        name,
        len(examined),
        right / len(examined) if answerable else None,
        _interval(right, len(examined)) if answerable else None,
        len(passing) / len(examined),
        _interval(len(passing), len(examined)),
        len(wrong),
        wrong_passing / len(wrong) if wrong else None,
        wrong_passing / len(passing) if passing else None,
    )


def guessing() -> dict[str, float]:
    """Give the share of the withheld facts on the reporting side that simple guessers get right."""
    answers = {question.about: question.answers[0] for question in questions("withheld", "report")}
    common: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for relation in relations():
        first, second = guesses(relation)
        common |= first
        spelled |= second

    def share(guessed: dict[str, str]) -> float:
        return sum(guessed[key] == answer for key, answer in answers.items()) / len(answers)

    return {"commonest answer": share(common), "character n-grams": share(spelled)}


def calls_at(examined: list[Examined], profile: Profile, thresholds: Iterable[float]) -> list[dict[str, Any]]:
    """Tell, for each threshold, what share of the right calls is held and of the wrong ones is stopped."""
    rows = []
    made = [item for item in examined if item.message.tool_calls or item.message.invalid_tool_calls]
    right = [item for item in made if item.correct and item.question.call is not None]
    wrong = [item for item in made if not (item.correct and item.question.call is not None)]
    for threshold in thresholds:
        standard = Standard(profile, threshold, None, None)
        rows.append(
            {
                "threshold": threshold,
                "right held": sum(not item.passes(standard) for item in right) / max(len(right), 1),
                "wrong stopped": sum(not item.passes(standard) for item in wrong) / max(len(wrong), 1),
                "right": len(right),
                "wrong": len(wrong),
            }
        )
    return rows


def _interval(count: int, n: int) -> tuple[float, float]:
    interval = binomtest(count, n).proportion_ci()
    return float(interval.low), float(interval.high)
