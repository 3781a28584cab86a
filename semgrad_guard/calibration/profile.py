"""The profile: what turns the scores of one particular model into a confidence, saved as a versioned JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from semgrad_guard.calibration.checked import Checked, read_json, write_text
from semgrad_guard.calibration.prompts import BARE, PromptForm
from semgrad_guard.calibration.section import Feature, Section, feature_values
from semgrad_guard.errors import ConfigurationError, ProfileError
from semgrad_guard.model.fingerprint import Precision
from semgrad_guard.records import AnswerKind
from semgrad_guard.scoring.preservation import Preservation
from semgrad_guard.scoring.settings import ScoringSettings
from semgrad_guard.settings import shown

if TYPE_CHECKING:
    from semgrad_guard.calibration.labels import Labeler
    from semgrad_guard.calibration.methods import Method

__all__ = ["NO_LABELS", "Binding", "PositionSource", "Profile", "Section", "feature_values", "seal_of"]

PositionSource = Literal["template", "preservation", "labels", "caller"]

NO_LABELS = "none: confidence is only an ordering"  # the label source of a profile that was set without labels
SEVERAL = ("blend", "core", "fused")  # methods of several features
_VERSION = 1


def _meaning(fields: dict[str, Any]) -> Literal["probability", "ordering"]:
    """Tell from the label source what confidence means, for files without `confidence_is`."""
    return "ordering" if fields.get("label_source") == NO_LABELS else "probability"


class Binding(Checked):
    """What a profile belongs to: a model's weights and chat template, and how its scores are computed.

    `scoring` has the layers by index, ascending, and t*. `prompt` is how the questions of the calibration were put,
    texts included; None stands for the questions by themselves.

    Raises:
        ValidationError: (of pydantic) a setting is out of range.
    """

    model: str
    fingerprint: str = Field(min_length=1)
    template: str = Field(min_length=1)
    scoring: ScoringSettings
    precision: Precision | None = None
    prompt: PromptForm | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_before_1_0(cls, plain: Any) -> Any:
        """Read files from before 1.0: there the settings stand beside the fingerprints, and the layers as `span`."""
        if not isinstance(plain, dict) or "scoring" in plain:
            return plain
        scoring = {name: plain[name] for name in ScoringSettings.model_fields if name in plain}
        scoring |= {"layers": plain["span"]} if "span" in plain else {}
        rest = {name: value for name, value in plain.items() if name not in scoring and name != "span"}
        return {**rest, "scoring": scoring}

    @field_validator("scoring")
    @classmethod
    def _is_resolved(cls, scoring: ScoringSettings) -> ScoringSettings:
        if scoring.token_position is None or isinstance(scoring.layers, str):
            raise ValueError(
                f"token_position {scoring.token_position!r}, layers {scoring.layers!r}; expected t* as a number, and "
                "the layers by index"
            )
        if list(scoring.layers) != sorted(set(scoring.layers)):
            raise ValueError(f"{list(scoring.layers)}: expected layers in ascending order, each once")
        return scoring

    def lacks(self, name: str) -> str:
        """Say why scores computed in this way lack a feature; "" if they have it."""
        scoring = self.scoring
        later = (scoring.token_position or 1) - 1 if scoring.later else 0
        return Feature.of(name).missing(
            layers=len(scoring.layers),
            later=later,
            unweighted=scoring.unweighted,
            attention=scoring.attention,
            states=0 if scoring.states is None else scoring.states.count,
        )


class Profile(Checked):
    """Confidence for one model: a section for each kind of answer that it was fitted on.

    `answer` judges answers from memory, `grounded` those from passages or from the results of tools, `tool_call` whole
    tool calls and `argument` single arguments of them. `position_from` says where t* comes from: the chat template's
    generation prompt, the `preservation` score, labels, or the caller. `confidence_is` says what a confidence means:
    the "probability" that an answer is right, fitted on labels, or only its place in an "ordering".

    A guarantee is sealed when a section that was made in Python becomes part of a profile. The seal breaks when the
    threshold, or anything that makes the confidence, changes in a file or in a copy. The profile then has no guarantee,
    and the section's `void` says why.

    Raises:
        ValidationError: (of pydantic) a value is invalid, or values contradict each other.
    """

    version: Literal[1] = 1
    package: str
    method: str
    bound_to: Binding
    answer: Section
    grounded: Section | None = None
    tool_call: Section | None = None
    argument: Section | None = None
    label_source: str
    confidence_is: Literal["probability", "ordering"] = Field(default_factory=_meaning)
    position_from: PositionSource = "template"
    preservation: Preservation | None = None
    seed: Annotated[int, Strict(), Field(ge=-(2**63), lt=2**63)]
    created: date | None = None

    @property
    def calibrated(self) -> bool:
        """Whether confidence is a probability, fitted on labels, and not only an ordering."""
        return self.confidence_is == "probability"

    def section(self, kind: AnswerKind = "answer") -> Section | None:
        """Give the section that judges answers of a kind.

        The section for answers from memory stands in where none was fitted for answers from passages. Nothing stands in
        for tool calls and arguments, whose scores are about other tokens.
        """
        if kind == "grounded":
            return self.grounded or self.answer
        section: Section | None = getattr(self, kind)
        return section

    @classmethod
    def fit(
        cls,
        llm: Any,
        examples: Iterable[Any],
        *,
        risk: float = 0.05,
        delta: float = 0.05,
        labels: str | Labeler = "match",
        method: Method = "auto",
        search: bool = True,
        prompt: PromptForm | str | None = None,
        generation: dict[str, Any] | None = None,
        journal: str | Path | None = None,
        retry: Callable[..., Any] | None = None,
        seed: int = 0,
    ) -> Profile:
        """Let a model answer labelled questions, and fit a profile whose threshold keeps a promise.

        Args:
            llm: a `ChatSemGrad`, or a `SemGradScorer`.
            examples: `Example`s, or dicts like the lines of a data file: questions with their right answers, or with an
                answer that is scored as it is, and whether it is right.
            risk: largest share of wrong answers among those that pass.
            delta: probability that the promise does not hold.
            labels: how an answer is compared with the right ones: a name that `labeler` knows, or a function such as
                an `LLMJudge`; where that fails now and then, the answer has no label.
            method: the score that confidence is made from; "auto" takes the best out of fold.
            search: also try other prompt tokens and ways to compute SemGrad, and take what tells most.
            prompt: how questions are put, for the profile to remember: a text with `{query}`, or a `PromptForm`; None:
                the questions by themselves, or the messages of the examples.
            generation: keywords of `model.generate`, over those of the chat model.
            journal: a file that remembers answers, so that another run, with other labels or another method too, goes
                on from them. It is left there.
            retry: builds what asks questions again (see `calibrated_on`), to calibrate those answers too; one half of
                the questions serves first answers then, the other second ones.
            seed: of the split into questions to fit on and to test on.

        Raises:
            DataError: there are too few labels, all are alike, or labelling keeps failing; or an example is malformed.
            ConfigurationError: the model is something else; or there is a prompt beside messages of an example.
        """
        from semgrad_guard.calibration.examples import calibrated_prompt, examples_of
        from semgrad_guard.calibration.from_examples import calibrated_on  # they build on profiles
        from semgrad_guard.scoring.scorer import SemGradScorer

        scorer = getattr(llm, "scorer", llm)
        if not isinstance(scorer, SemGradScorer):
            raise ConfigurationError(f"Profile.fit({shown(llm)}): expected a ChatSemGrad or a SemGradScorer.")
        questions = examples_of(examples)
        form = PromptForm.of_text(prompt) if isinstance(prompt, str) else prompt
        settings = getattr(llm, "generation_settings", {}) | (generation or {})
        stop = settings.get("stop_strings") or ()
        return calibrated_on(
            scorer,
            questions,
            settings,
            labels=labels,
            prompt=calibrated_prompt(questions, form),
            stop=[stop] if isinstance(stop, str) else stop,
            journal=journal,
            retry=retry,
            method=method,
            search=search,
            risk=risk,
            delta=delta,
            seed=seed,
        ).profile

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile from a JSON file.

        Raises:
            ProfileError: the file cannot be read, or it is not a valid profile of this version; it says what is wrong
                and where.
        """
        content = read_json(path)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first, *more = error.errors(include_url=False, include_input=False)
            place = ".".join(map(str, first["loc"])).encode(errors="replace").decode() or "the file"
            rest = f" (and {len(more)} more)" if more else ""
            raise ProfileError(
                f"{path} is not a profile of version {_VERSION}: {place}: {first['msg'].removeprefix('Value error, ')}"
                f"{rest}. Calibrate again to get one."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON.

        Raises:
            ProfileError: the file cannot be written.
        """
        write_text(path, self.model_dump_json(indent=1) + "\n")

    def check(self, fingerprint: str, template: str, precision: Precision | None = None) -> None:
        """Refuse a model or chat template other than the one the profile was fitted on.

        With the model's precision, the error says if only the precision differs.

        Raises:
            ProfileError: naming what differs.
        """
        fitted = self.bound_to.precision
        rounded = precision and fitted and precision.signs == fitted.signs and precision.held_in != fitted.held_in
        if precision and fitted and rounded and fingerprint != self.bound_to.fingerprint:
            raise ProfileError(
                f"This profile was fitted on {self.bound_to.model} in {fitted.held_in}; the model given has the same "
                f"weights in {precision.held_in}. Scores move with the precision: load the model in "
                f"{fitted.held_in}, or calibrate a profile in {precision.held_in}."
            )
        for what, actual, expected in (
            ("weights", fingerprint, self.bound_to.fingerprint),
            ("chat template", template, self.bound_to.template),
        ):
            if actual != expected:
                raise ProfileError(
                    f"This profile was fitted on {self.bound_to.model} with {what} {expected}; the model given has "
                    f"{actual}. Confidence does not carry over: calibrate a profile for this model. It needs labelled "
                    "questions, or with --coverage only questions."
                )

    @field_validator("version", mode="before")
    @classmethod
    def _is_known(cls, version: Any) -> Any:
        if version != _VERSION or isinstance(version, bool):
            raise ValueError(f"{version!r}: expected {_VERSION}; another semgrad-guard wrote this file")
        return version

    @field_validator("answer", "grounded", "tool_call", "argument", mode="wrap")
    @classmethod
    def _belongs(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Check that scores have the features, and that the guarantee was proved for this section."""
        section, bound, kind = handler(value), info.data.get("bound_to"), str(info.field_name)
        if section is None or bound is None:
            return section
        for name in section.features:
            if lacking := bound.lacks(name):
                raise ValueError(lacking)
        if section.guarantee is None:
            return section
        if void := _void(section, kind, bound, sealed=not isinstance(value, Section)):
            return section.model_copy(update={"guarantee": None, "void": void})
        seal = seal_of(section, kind, bound)
        proved = section.guarantee.model_copy(update={"threshold": section.threshold, "seal": seal})
        return section.model_copy(update={"guarantee": proved})

    @field_validator("preservation")
    @classmethod
    def _is_a_table(cls, table: Preservation | None) -> Preservation | None:
        if table is None:
            return None
        if not 0 < table.questions <= table.prompts < 10**12:
            raise ValueError(
                f"{table.questions} questions in {table.prompts} prompts; expected at least one prompt each"
            )
        for row in table.scores:
            if len(row) != len(table.tokens) or not all(-2.001 <= value <= 2.001 for value in row):
                raise ValueError(
                    f"scores: expected rows of {len(table.tokens)} numbers from -2 to 2, one for each token"
                )
        return table

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        features = self.answer.features
        single = {"semgrad": ("semgrad", "semgrad_unweighted")}.get(self.method, (self.method,))
        if self.method not in SEVERAL and (len(features) != 1 or features[0] not in single):
            raise ValueError(
                f"method {self.method!r}, but answer.features are {', '.join(features)}; expected {', '.join(SEVERAL)} "
                "or the name of the only feature"
            )
        sections = [getattr(self, kind) for kind in get_args(AnswerKind)]
        if self.calibrated == (self.label_source == NO_LABELS):
            raise ValueError(f"confidence_is {self.confidence_is!r}, but label_source is {self.label_source!r}")
        if not self.calibrated and any(section.guarantee for section in sections if section is not None):
            raise ValueError("confidence_is 'ordering', but there is a guarantee, which needs labels")
        return self


def seal_of(section: Section, kind: str, bound: Binding) -> str:
    """Digest all that a guarantee rests on: the test, the threshold, and what makes the confidence of this kind.

    Values at their defaults are left out, so that fields of later versions do not break seals. A seal shows that
    something changed; it is no signature.
    """
    untested = "threshold_rule void questions quantiles spread_of evidence core_sample distance_sample".split()
    without = dict.fromkeys(untested, True)
    parts = {
        "kind": kind,
        "section": section.model_dump(
            mode="json", exclude_defaults=True, exclude={**without, "guarantee": {"seal", "threshold"}}
        ),
        "bound_to": _sealed_binding(bound),
    }
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _sealed_binding(bound: Binding) -> dict[str, Any]:
    """Give what is sealed of a binding, in the form of the first seals: on one level, with the layers as `span`."""
    plain = bound.model_dump(mode="json", exclude_defaults=True, exclude={"model", "precision", "scoring"})
    scoring = bound.scoring.model_dump(mode="json", exclude_defaults=True, exclude={"layers"})
    always = {"span": list(bound.scoring.layers), "reduction": bound.scoring.reduction, "norm": bound.scoring.norm}
    return plain | scoring | always


def _void(section: Section, kind: str, bound: Binding, *, sealed: bool) -> str:
    """Say why a section's guarantee does not hold; "" if it does. One that comes from data must be sealed."""
    promise = section.guarantee
    if promise is None:
        return ""
    if promise.threshold is not None and promise.threshold != section.threshold:
        return f"the threshold was changed from {promise.threshold} to {section.threshold} after it was tested"
    if not promise.seal:
        return "the profile does not say what its guarantee was proved for; calibrate again" if sealed else ""
    if promise.seal != seal_of(section, kind, bound):
        return "the profile was changed after its threshold was tested"
    return ""


def agreed_prompt(profile: Profile | None, wanted: PromptForm | None) -> PromptForm | None:
    """Give the prompt to ask with: the profile's, which the caller may only repeat; None for the bare question.

    Args:
        profile: None leaves the choice to the caller.
        wanted: the caller's prompt; None for the profile's.

    Raises:
        ConfigurationError: they differ.
    """
    calibrated = None if profile is None else profile.bound_to.prompt
    if profile is None or wanted is None:
        return wanted if profile is None else calibrated
    if wanted != (calibrated or BARE):
        how = "the question by itself" if calibrated is None else f"the prompt {calibrated.fingerprint}"
        raise ConfigurationError(
            f"The profile was calibrated with {how}, and the prompt given is {wanted.fingerprint}. Leave the prompt "
            "out to ask as in the calibration, or calibrate a profile with this prompt."
        )
    return calibrated


def agreed_scoring(profile: Profile | None, token_position: int | None) -> ScoringSettings:
    """Give how scores are computed: as the profile says, or at the caller's t* without one.

    Args:
        profile: None leaves the choice to the caller.
        token_position: the caller's t*; None for that of the profile, or of the chat template.

    Raises:
        ConfigurationError: it is not the profile's.
    """
    if profile is None:
        return ScoringSettings(token_position=token_position)
    calibrated = profile.bound_to.scoring.token_position
    if token_position not in (None, calibrated):
        raise ConfigurationError(
            f"The profile was calibrated with t* = {calibrated}, and token_position={token_position} is given. Leave "
            "it out, or calibrate a profile there."
        )
    return profile.bound_to.scoring
