"""The records that travel through the package: Generation -> Score -> Confidence -> Decision.

All are frozen. Scores point one way: *higher = more uncertain*. Confidence points the other way and lies in [0, 1].
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.plain import PlainDict, SoundText
from semgrad_guard.settings import warn_of_old

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache

FinishReason = Literal["stop", "length"]
# The decisions of the package itself; a route of a user's own may name others.
DECISIONS = ("pass", "annotate", "retrieve", "escalate", "review", "abstain", "raise")
# Why an answer does not pass, for programs; docs/decisions.md says what each means and what helps.
Cause = Literal[
    "low_confidence",
    "no_confidence",
    "no_threshold",
    "unlikely_text",
    "cut_off",
    "empty_answer",
    "unreadable",
    "invalid_call",
    "invalid_score",
    "scoring_failed",
    "scoring_off",
    "empty_question",
    "not_asked",
    "no_answer",
]
ReplayPath = Literal["upper", "cache", "prefix", "full"]
AnswerKind = Literal["answer", "grounded", "tool_call", "argument"]


@dataclass(frozen=True, eq=False)
class GenerationBatch:
    """What one call of `model.generate` left behind for all its rows: the key-value cache, and how the rows lay.

    `boundary` holds the hidden states at the input of layer `boundary_layer` for the last columns, [B, N, D], the last
    token's aside; None where they were not kept.
    """

    cache: Cache
    prompt_width: int
    sequence_width: int
    boundary: Tensor | None = None
    boundary_layer: int = 0


@dataclass(frozen=True)
class TokenLogProb:
    """A response token's log-probability under the unwarped distribution, in nats, <= 0.

    `top` holds the likeliest tokens there with theirs, the likeliest first.
    """

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class Generation:
    """A response as the model produced it.

    `response_ids` holds the end-of-turn token when it was produced. `finish_reason` is "stop" (the model ended its
    turn) or "length" (cut off at the token limit). The key-value cache of the generation is kept alive with it, so
    that scoring need not read the prompt again. `log_probs`, one per response token, are there if they were asked for.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    batch: GenerationBatch | None = field(default=None, repr=False)
    row: int = field(default=0, repr=False)
    log_probs: tuple[TokenLogProb, ...] | None = field(default=None, repr=False)


class Failure(BaseModel):
    """Why an answer must not be trusted, whatever its scores: the kind for programs, and a text for people."""

    model_config = ConfigDict(frozen=True)

    kind: Cause
    text: str


class Score(BaseModel):
    """The uncertainty of one response; *higher = more uncertain* in every field but `length` and `path`.

    Gradient scores are > 0; log-probabilities and entropies are in nats, >= 0. `layers` holds the mean absolute
    gradient at the semantic preserving token for each hidden state l of `layer_indices`; `semgrad` is their mean.
    `later` holds the same at each prompt token after that one, `layers_unweighted` the same as `layers` with w_t = 1.
    `max_nll` is that of the least probable token, `first_entropy` the entropy at the first one. `states` are components
    of hidden states, of either sign, and `distance` says how far these lie from the calibration's (see `StateReading`).
    None, or empty, stands for what was not computed. `more` holds registered scores by name, None where the computation
    failed.
    """

    model_config = ConfigDict(frozen=True)

    semgrad: float
    paragrad: float | None
    exgrad: float | None
    hybridgrad: float | None
    nll: float
    mean_nll: float
    mean_entropy: float
    max_entropy: float
    first_entropy: float | None = None
    max_nll: float | None = None
    rauq: float | None = None
    length: int
    path: ReplayPath
    layer_indices: tuple[int, ...] = Field(validation_alias=AliasChoices("layer_indices", "span"))  # span: before 1.0
    layers: tuple[float, ...]
    semgrad_unweighted: float | None = None
    layers_unweighted: tuple[float, ...] = ()
    states: tuple[float, ...] = ()
    distance: float | None = None
    later: tuple[tuple[float, ...], ...] = ()
    more: dict[str, float | None] = Field(default_factory=dict)

    @property
    def span(self) -> tuple[int, ...]:
        """The former name of `layer_indices`."""
        warn_of_old("Score.span", "Score.layer_indices")
        return self.layer_indices

    def finite(self) -> bool:
        """Tell whether the score may let an answer pass: see `failure`."""
        return self.failure() is None

    def failure(self) -> Failure | None:
        """Say why the response counts as not scored, naming the field or layer; None if nothing is wrong.

        Every value must be finite and not negative, and no gradient exactly zero, as from a kernel without a backward.
        """
        for name, value in self._values():
            if not math.isfinite(value):
                return _invalid(f"the score is not a finite number: {name} is {value:g}")
            if value < 0:
                return _invalid(f"not scored: {name} is {value:g}, and never negative by its definition")
            if value == 0 and "grad" in name:
                why = "no gradient came, or all other tokens have probability 0"
                return _invalid(f"not scored: {name} is exactly 0: {why}")
        if not all(map(math.isfinite, self.states)):
            return _invalid("the score is not a finite number: a component of the hidden states is not")
        return None

    def _values(self) -> Iterator[tuple[str, float]]:
        """Give every value under a name to tell it by."""
        by_layer = ("layers", "layers_unweighted", "later", "states")
        fields = self.model_dump(exclude={"length", "path", "layer_indices", "more", *by_layer})
        yield from ((name, value) for name, value in fields.items() if value is not None)
        rows = {"the gradient": self.layers, "the unweighted gradient": self.layers_unweighted}
        indices = self.layer_indices
        rows |= {f"the gradient {place} tokens after t*": row for place, row in enumerate(self.later, 1)}
        for name, row in rows.items():
            for place, value in enumerate(row):
                yield f"{name} at layer {indices[place] if place < len(indices) else place}", value


def _invalid(text: str) -> Failure:
    return Failure(kind="invalid_score", text=text)


class CallScores(BaseModel):
    """The scores of a tool call, over its name and its values, and of each argument; None where scoring failed."""

    model_config = ConfigDict(frozen=True)

    name: str
    scores: Score | None
    arguments: dict[str, Score | None] = Field(default_factory=dict)


class MessageScores(BaseModel):
    """What a scored message tells of itself: the content of `response_metadata["semgrad"]`.

    `scores` are those of the answer, None where scoring failed or nothing was scored. `failure` says why the answer
    must not be trusted whatever its scores, None if it may. `tool_calls` go by their ids. `tokens` are the response's
    ids, and the answer begins at `answer_from` among them, behind any reasoning.
    """

    model_config = ConfigDict(frozen=True)

    scores: Score | None
    failure: Failure | None
    tool_calls: dict[str, CallScores] = Field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    answer_from: int = 0


class SentenceScore(BaseModel):
    """The score of one sentence of a response; `tokens` is (start, stop) in response tokens."""

    model_config = ConfigDict(frozen=True)

    text: str
    tokens: tuple[int, int]
    score: Score


class LongScore(BaseModel):
    """The scores of a long response, sentence by sentence, and how they are to be read as one."""

    model_config = ConfigDict(frozen=True)

    sentences: tuple[SentenceScore, ...] = Field(min_length=1)
    aggregate: Literal["max", "mean"]

    def value(self, name: str = "semgrad") -> float:
        """Give the largest ("max") or the mean ("mean") of a score over the sentences; *higher = more uncertain*.

        NaN where a sentence counts as not scored.
        """
        if any(sentence.score.failure() for sentence in self.sentences):
            return math.nan
        values = [float(getattr(sentence.score, name)) for sentence in self.sentences]
        return max(values) if self.aggregate == "max" else sum(values) / len(values)

    def most_uncertain(self, name: str = "semgrad") -> SentenceScore:
        """Give the sentence where a score is largest, or the first that counts as not scored."""

        def uncertainty(sentence: SentenceScore) -> float:
            return math.inf if sentence.score.failure() else float(getattr(sentence.score, name))

        return max(self.sentences, key=uncertainty)


class TokenUncertainty(BaseModel):
    """Where the uncertainty sits: one response token's log-probability and entropy, in nats, and its share of SemGrad.

    Shares add up to 1 over the response; a negative one pulls against the rest.
    """

    model_config = ConfigDict(frozen=True)

    token: int
    text: str
    log_prob: float
    entropy: float
    share: float


class Source(BaseModel):
    """A passage that was found.

    `metadata` is the retriever's, made plain (`semgrad_guard.plain.plain`); `used` in it tells, of passages an answer
    that settled was given from, whether all words of one of its sentences stand there.
    """

    model_config = ConfigDict(frozen=True)

    text: SoundText
    metadata: PlainDict = Field(default_factory=dict)


class CallConfidence(BaseModel):
    """How sure a tool call is, and each of its arguments, in [0, 1]; None where the profile does not say."""

    model_config = ConfigDict(frozen=True)

    name: str
    confidence: float | None
    arguments: dict[str, float | None]


class Step(BaseModel):
    """One thing the guard tried: the model's answer, or a route of the ladder, and how it went."""

    model_config = ConfigDict(frozen=True)

    name: str
    settled: bool
    confidence: float | None = None
    reason: str = ""


class Verdict(BaseModel):
    """How sure an answer is, against what, and why not surer; `confidence` is None without a profile.

    `calibrated` tells whether confidence is a probability, fitted on labels; otherwise it only orders answers.

    `guarantee` is what the threshold promises of answers that pass: at most the share `risk` are wrong, with certainty
    1 - `delta`, shown on `n` that passed. None where nothing is promised. `policy` tells in words what answers of this
    kind must reach, and what that promises of those that do. `cause` is the reason for programs; None if it passed.

    `familiarity` is the share of the calibration's questions that lie as far out as this one, in (0, 1]: a small one,
    such as 0.01, says that the profile has hardly seen questions of this kind, to which its promise does not extend.
    None where the profile does not read hidden states.
    """

    model_config = ConfigDict(frozen=True)

    passed: bool
    cause: Cause | None = None
    confidence: float | None
    calibrated: bool = False
    scores: Score | None
    threshold: float | None
    method: str
    reason: str
    guarantee: dict[str, float] | None = None
    policy: str = ""
    familiarity: float | None = None

    def about(self, tool: str) -> Verdict:
        """Name the tool whose call this is about."""
        return self.model_copy(update={"reason": f"{tool}: {self.reason}"})


class Decision(BaseModel):
    """What became of an answer, and the verdict it rests on: the content of `response_metadata["semgrad_decision"]`.

    `decision` is "pass", or that of the route that ended the matter. `answered` tells whether an answer of a model went
    out as it was given; where none did, `cause` says why not, for programs, and `reason` in words. `verdict` is about
    the answer that went out, or else about the draft. `tool_calls` go by their ids. `review_id` names the review in the
    queue that an answer was handed to; None without one.
    """

    model_config = ConfigDict(frozen=True)

    decision: str = Field(min_length=1)
    answered: bool
    cause: Cause | None
    reason: str
    verdict: Verdict
    steps: tuple[Step, ...]
    sources: tuple[Source, ...] = ()
    tool_calls: dict[str, CallConfidence] = Field(default_factory=dict)
    review_id: str | None = None

    @property
    def confidence(self) -> float | None:
        """The verdict's confidence, in [0, 1]."""
        return self.verdict.confidence

    @property
    def scores(self) -> Score | None:
        """The verdict's scores; *higher = more uncertain*."""
        return self.verdict.scores


def checked_confidence(name: str, value: object) -> float | None:
    """Check a threshold on confidence; None is none.

    Raises:
        ConfigurationError: it is no number in [0, 1].
    """
    if value is None:
        return None
    number = as_number(value)
    if not 0 <= number <= 1:
        shown = repr(value) if math.isnan(number) else number
        raise ConfigurationError(f"{name}={shown}: expected a confidence in [0, 1].")
    return number


def as_number(value: object) -> float:
    """Give a number as a float, and NaN for whatever is none: texts, truth values, arrays."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
