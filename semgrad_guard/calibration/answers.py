"""Answers for a calibration, scored and labelled, and the journal that remembers them.

Finished work is one line of a file each, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from tqdm.auto import tqdm

from semgrad_guard.calibration.counts import Counts, Outcome, Problem
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.labels import Labeler
from semgrad_guard.calibration.prompts import BARE, PromptForm
from semgrad_guard.calibration.verdict import unlikely
from semgrad_guard.errors import BudgetError, DataError, PromptTooLongError, described
from semgrad_guard.model.chat_template import encode_answer, encode_chat
from semgrad_guard.model.fingerprint import fingerprint
from semgrad_guard.model.generate import check_prompt, end_ids
from semgrad_guard.model.responses import take_apart
from semgrad_guard.records import Generation, Score
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.scoring.settings import ScoringSettings
from semgrad_guard.scoring.states import PLACES

_Line = TypeVar("_Line")


class Journal(Generic[_Line]):
    """Lines of one kind behind the setting they were made with.

    `done` holds the lines of runs before, by key. `unused_lines` counts those of other settings in the same file.
    """

    def __init__(
        self,
        path: Path,
        setting: dict[str, Any],
        kind: TypeAdapter[_Line],
        key: Callable[[_Line], str],
        *,
        shared: bool = False,
    ) -> None:
        """Open a journal, or begin one; a last line that was cut off is dropped.

        Args:
            path: JSON lines; one that holds a setting stands before those made with it.
            setting: what must be the same for a run to go on.
            kind: type of the other lines.
            key: what a line is about.
            shared: keep lines of several settings in one file, instead of refusing a file with another setting.

        Raises:
            DataError: the file cannot be read or written, holds something else, or another setting and is not shared.
        """
        self.path, self._kind, self._key = path, kind, key
        self.done: dict[str, _Line] = {}
        self.unused_lines = 0
        wanted = json.loads(json.dumps(setting))
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            current = self._read(text[: text.rfind("\n") + 1], wanted, shared)
            if current != wanted or not text.endswith("\n"):
                header = "" if current == wanted else json.dumps({"setting": setting}) + "\n"
                path.write_text(text[: text.rfind("\n") + 1] + header, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"Cannot use {path} to remember answers: {error}") from error

    def _read(self, text: str, wanted: Any, shared: bool) -> Any:
        """Sort the lines by setting, and give the last setting in the file."""
        current: Any = None
        try:
            for line in text.splitlines():
                plain = json.loads(line)
                if "setting" in plain:
                    current = plain["setting"]
                    if current != wanted and not shared:
                        raise DataError(
                            f"{self.path} was written with {current}; now it is {wanted}. Choose another folder, or "
                            "move it away."
                        )
                elif current is None:
                    raise KeyError("setting")
                elif current == wanted:
                    item = self._kind.validate_json(line)
                    self.done[self._key(item)] = item
                else:
                    self.unused_lines += 1
        except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
            raise DataError(
                f"{self.path} does not hold results of this version: {error}. Move it away to begin anew."
            ) from error
        return current

    def add(self, line: _Line) -> None:
        """Write a line down before anything else is done."""
        with self.path.open("ab") as file:
            file.write(self._kind.dump_json(line) + b"\n")
        self.done[self._key(line)] = line


logger = logging.getLogger(__name__)

_BATCH = 16
# Memory that runs out is a RuntimeError in torch. Of these the guard holds a single answer back; others are about the
# model, and end the run.
_SCORING_FAILURES = (BudgetError, RuntimeError, MemoryError)

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Answered:
    """An example with the answer that was scored; `correct` is None where there is no label.

    The answer begins at response token `start`, after what the model thought before it. `states` are hidden states,
    [3, layers, D], where they were asked for; `scored_with` are the settings of the score.
    """

    example: Example
    text: str
    score: Score
    correct: bool | None
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    start: int = 0
    states: NDArray[np.float16] | None = field(default=None, repr=False, compare=False)
    scored_with: ScoringSettings | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Answers:
    """Answers that a calibration can use, in the order of the questions, and the counts of all questions."""

    scored: list[Answered]
    counts: Counts


@dataclass(frozen=True)
class _Attempt:
    """The outcome of one prompt, as the journal keeps it: a score, or the problem with the answer."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # lines of another version are no answers

    prompt_ids: tuple[int, ...]
    answer: str | None
    response_ids: tuple[int, ...] = ()
    start: int = 0
    text: str = ""
    score: Score | None = None
    scored_with: ScoringSettings | None = None
    states: str = ""
    problem: Problem | None = None

    @property
    def key(self) -> str:
        """The prompt, and the answer that came with it, if one did."""
        return " ".join(map(str, self.prompt_ids)) + ("" if self.answer is None else f" | {self.answer}")

    @property
    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """The prompt, the response, and where the answer begins in it."""
        return self.prompt_ids, self.response_ids, self.start

    def unpacked(self, layers: int) -> NDArray[np.float16] | None:
        """Give the hidden states, [3, layers, D]; None where none were asked for."""
        if not (self.states and layers):
            return None
        return np.frombuffer(base64.b64decode(self.states), dtype=np.float16).reshape(PLACES, layers, -1)


def to_stderr(line: str) -> None:
    """Write a line to stderr, beside progress bars."""
    tqdm.write(line, file=sys.stderr)


def answered(
    scorer: SemGradScorer,
    examples: Sequence[Example],
    label: Labeler,
    generation: dict[str, Any],
    *,
    prompt: PromptForm = BARE,
    ask: Callable[[Example], str] | None = None,
    stop: Sequence[str] = (),
    journal: str | Path | None = None,
    state_layers: Sequence[int] = (),
    tell: Callable[[str], None] = to_stderr,
) -> Answers:
    """Answer and score every question, or score the answer that comes with it.

    Some answers are counted and left out: those that are empty, cut off at the token limit, without a finite score, or
    hardly the model's own. The guard holds these back whatever the threshold, so they say nothing about one. After the
    first batch `tell` gets the counts of each, and advice.

    Args:
        scorer: generates and scores.
        examples: questions; one with messages is put with these.
        label: says whether an answer is right.
        generation: keywords of `model.generate`.
        prompt: how the other questions are put to the model.
        ask: words the question; None for the question as it is.
        stop: texts that an answer is cut before.
        journal: a file that remembers answers, so that another run goes on from there, with other labels too. Answers
            to other prompts or with other settings of the generation stay in it and are not used. Each says how it was
            scored; a calibration that needs other scores computes them.
        state_layers: hidden states to keep with each answer, by layer.
        tell: takes lines that a user should read.

    Raises:
        DataError: the journal holds something else.
        ConfigurationError: the chat template refuses the messages.
    """
    settings = generation | ({"stop_strings": list(stop)} if stop else {})
    ends = end_ids(scorer.model.generation_config)
    prompted = [(example, _prompt(scorer, example, prompt, ask, ends)) for example in examples]
    file = None if journal is None else _journal(Path(journal), scorer, settings)
    known = {} if file is None else {item.key: file.done[item.key] for _, item in prompted if item.key in file.done}
    unused = 0 if file is None else len(file.done) - len(known) + file.unused_lines
    if file is not None and (known or (unused and ask is None)):  # those asked again share the file with first answers
        beside = f", {unused} to other prompts or with other settings are not" if unused else ""
        tell(f"{file.path}: {len(known)} answers from a run before are used{beside}.")
    outcomes: dict[str, Outcome] = {}

    def settle(pairs: Iterable[tuple[Example, _Attempt]]) -> None:
        for example, item in pairs:
            attempt = known[item.key]
            outcomes[example.key] = attempt.problem or _label(example, attempt.text, label)

    settle((example, item) for example, item in prompted if item.key in known)
    missing = [(example, item) for example, item in prompted if item.key not in known]
    with tqdm(total=len(prompted), initial=len(prompted) - len(missing), desc="answering") as bar:
        for number, batch in enumerate(_batches(missing, _BATCH)):
            for attempt in _attempts(scorer, [item for _, item in batch], settings, stop, state_layers):
                known[attempt.key] = attempt
                if file is not None:
                    file.add(attempt)
            settle(batch)
            bar.update(len(batch))
            if number == 0 and len(missing) > len(batch):
                _tell(Counts.of(outcomes.values()), known.values(), tell, "So far: ")
    counts = Counts.of(outcomes.values())
    _tell(counts, known.values(), tell, "")
    scored = []
    for example, item in prompted:
        attempt = known[item.key]
        if attempt.problem is None and attempt.score is not None:
            correct = _label_of(outcomes[example.key])
            states = attempt.unpacked(len(state_layers))
            scored.append(
                Answered(example, attempt.text, attempt.score, correct, *attempt.ids, states, attempt.scored_with)
            )
    return Answers(scored, counts)


def rescored(scorer: SemGradScorer, answers: Sequence[Answered], state_layers: Sequence[int] = ()) -> list[Answered]:
    """Score the same answers with another scorer; answers of one length go together, so that little is padding.

    Hidden states of these layers are kept with them.
    """
    order = sorted(range(len(answers)), key=lambda place: len(answers[place].response_ids))
    by_place: dict[int, Answered] = {}
    for places in _batches(order, _BATCH):
        batch = [answers[place] for place in places]
        generations = [Generation(item.prompt_ids, item.response_ids, "", "stop") for item in batch]
        spans = [(item.start, len(item.response_ids)) for item in batch]
        scores, states = scorer.score_with_states(generations, state_layers, spans=spans)
        by_place |= {
            place: replace(
                item,
                score=score,
                states=state.astype(np.float16) if state_layers else None,
                scored_with=scorer.scoring,
            )
            for place, item, score, state in zip(places, batch, scores, states, strict=True)
        }
    return [by_place[place] for place in range(len(answers))]


def _tell(counts: Counts, attempts: Iterable[_Attempt], tell: Callable[[str], None], when: str) -> None:
    tell(f"{when}{counts}.")
    for line in counts.advice(_longest(attempts)):
        tell(line)


def _longest(attempts: Iterable[_Attempt]) -> int:
    return max((len(attempt.response_ids) for attempt in attempts if attempt.problem == "cut_off"), default=0)


def _prompt(
    scorer: SemGradScorer,
    example: Example,
    prompt: PromptForm,
    ask: Callable[[Example], str] | None,
    ends: set[int],
) -> _Attempt:
    """Encode a question, and the answer that comes with it, as the chat template has them."""
    turns = example.turns(prompt, None if ask is None else ask(example))
    answer = None if example.answer is None else example.answer.strip()
    ids = tuple(encode_chat(scorer.tokenizer, turns))
    written = () if answer is None else tuple(encode_answer(scorer.tokenizer, turns, answer, ends))
    return _Attempt(ids, answer, written, text=answer or "")


def _attempts(
    scorer: SemGradScorer,
    items: Sequence[_Attempt],
    settings: dict[str, Any],
    stop: Sequence[str],
    state_layers: Sequence[int],
) -> list[_Attempt]:
    """Let the model answer the questions without an answer, and score all answers that can be used."""
    fitting = {item.key: item for item in items if item.answer is None and _fits(scorer, item, settings)}
    generated = scorer.generate([item.prompt_ids for item in fitting.values()], **settings)
    generations = dict(zip(fitting, generated, strict=True))
    attempts = {item.key: _taken(scorer, item, generations.get(item.key), stop) for item in items}
    usable = [attempt for attempt in attempts.values() if attempt.problem is None]
    scored = _scores(scorer, usable, generations, state_layers)
    for attempt, (score, states) in zip(usable, scored, strict=True):
        if score is None or not score.finite():
            attempts[attempt.key] = replace(attempt, problem="not_scored")
        else:
            problem: Problem | None = "not_its_own" if unlikely(score) else None
            attempts[attempt.key] = replace(
                attempt, score=score, scored_with=scorer.scoring, states=states, problem=problem
            )
    return list(attempts.values())


def _fits(scorer: SemGradScorer, item: _Attempt, settings: dict[str, Any]) -> bool:
    try:
        check_prompt(scorer.model, item.prompt_ids, settings)
    except PromptTooLongError:
        return False
    return True


def _taken(scorer: SemGradScorer, item: _Attempt, generation: Generation | None, stop: Sequence[str]) -> _Attempt:
    """Take the answer out of a response, or say why there is none."""
    if item.answer is not None:
        return item if item.response_ids else replace(item, problem="empty")
    if generation is None:
        return replace(item, problem="too_long")
    response = take_apart(scorer.tokenizer, generation, stop, ())
    text, ids = response.text.strip(), generation.response_ids
    item = replace(item, response_ids=ids, start=response.start, text=text)
    if generation.finish_reason == "length":
        return replace(item, problem="cut_off")
    return replace(item, problem="empty") if response.failure or not text else item


def _scores(
    scorer: SemGradScorer,
    items: Sequence[_Attempt],
    generations: dict[str, Generation],
    state_layers: Sequence[int],
) -> list[tuple[Score | None, str]]:
    """Score answers in one pass, each with its hidden states, packed.

    If that fails, each is scored by itself, and None stands for those that fail again.
    """
    rows = [
        generations.get(item.key) or Generation(item.prompt_ids, item.response_ids, item.text, "stop") for item in items
    ]
    if not rows:
        return []
    try:
        spans = [(item.start, len(item.response_ids)) for item in items]
        scores, states = scorer.score_with_states(rows, state_layers, spans=spans)
    except _SCORING_FAILURES as error:
        if len(items) > 1:
            return [scored for item in items for scored in _scores(scorer, [item], generations, state_layers)]
        logger.warning("Scoring failed: %s", described(error))
        return [(None, "")] * len(items)
    return [(score, _packed(row)) for score, row in zip(scores, states, strict=True)]


def _packed(states: NDArray[np.float32]) -> str:
    """Pack the hidden states of an answer for a line of the journal."""
    most = np.finfo(np.float16).max
    return base64.b64encode(states.clip(-most, most).astype(np.float16).tobytes()).decode() if states.size else ""


def _journal(path: Path, scorer: SemGradScorer, settings: dict[str, Any]) -> Journal[_Attempt]:
    setting = {
        "fingerprint": fingerprint(scorer.model),
        "generation": {name: str(value) for name, value in sorted(settings.items())},
    }
    return Journal(path, setting, TypeAdapter(_Attempt), lambda attempt: attempt.key, shared=True)


def _batches(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _label(example: Example, text: str, label: Labeler) -> bool | None:
    if example.correct is not None:
        return example.correct
    return label(example.query, text, example.answers) if example.answers is not None else None


def _label_of(outcome: Outcome) -> bool | None:
    return None if isinstance(outcome, str) else outcome
