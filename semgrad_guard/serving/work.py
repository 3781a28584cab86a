"""What travels between the HTTP application and whatever answers: plain frozen records, which any process can read."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal, Protocol, overload

from pydantic import BaseModel, ConfigDict, Field

from semgrad_guard.records import Decision, TokenUncertainty

PolicyName = Literal["abstain", "annotate", "review"]


class Record(BaseModel):
    """A frozen record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Policy(Record):
    """What becomes of an answer that is not sure enough.

    "abstain": a message goes out in its place; "annotate": it goes out all the same, and its record tells; "review": it
    waits in the queue for a human, and the text that goes out says so. `threshold` is the least confidence that passes,
    in [0, 1], None for the model's own; `message` is the text of an abstention, or that of an answer that waits.
    """

    name: PolicyName = "abstain"
    threshold: float | None = None
    message: str | None = None


class Sampling(Record):
    """How an answer is written; None is the model's own way.

    With a `seed` the answer is the same again. `logprobs` asks for the tokens' log-probabilities, `top_logprobs` for
    those of so many likeliest tokens beside each.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0


class ChatJob(Record):
    """One answer that is wanted; messages, tools and the choice of one are in OpenAI's shape."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    sampling: Sampling = Sampling()
    policy: Policy = Policy()


class ScoreJob(Record):
    """An answer from elsewhere that is to be scored: a prompt in one of three shapes, a response in one of two.

    `prompt` is the whole text, chat template applied. Ids of a response hold the end-of-turn token where the model
    produced it; to a text it is added. `grounded`: the answer was given from passages or tool results. `tokens` also
    asks where in the response the uncertainty sits, for another backward per token.
    """

    messages: tuple[dict[str, Any], ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    response: str | None = None
    response_ids: tuple[int, ...] | None = None
    grounded: bool = False
    threshold: float | None = None
    tokens: bool = False


Job = ChatJob | ScoreJob


class Usage(Record):
    """Tokens read and written; those of the reasoning are among the written."""

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0


class Judgement(Decision):
    """The record `semgrad` beside every choice: what was decided, the verdict it rests on, and what a service adds.

    `score` is the uncertainty, of the raw score that `verdict.method` names or else SemGrad (*higher = more
    uncertain*). Without one, `decision` is never "pass".
    """

    score: float | None
    version: str


class Called(Record):
    """A tool call; `arguments` are JSON."""

    id: str
    name: str
    arguments: str


class ChatAnswer(Record):
    """An answer, or what goes out in its place; `finish_reason` tells why the model ended, whatever went out."""

    text: str
    judgement: Judgement
    finish_reason: Literal["stop", "length", "tool_calls"] = "stop"
    reasoning: str = ""
    tool_calls: tuple[Called, ...] = ()
    logprobs: tuple[dict[str, Any], ...] | None = None
    usage: Usage = Usage()


class ScoreAnswer(Record):
    """How sure an answer from elsewhere is; `judgement.verdict.scores` are all that were computed."""

    judgement: Judgement
    tokens: tuple[TokenUncertainty, ...] | None = None
    usage: Usage = Usage()


Result = ChatAnswer | ScoreAnswer


class Limits(Record):
    """What a job may take, in tokens, and how many of them share a pass of the model."""

    prompt_tokens: int = Field(default=4096, ge=1)
    response_tokens: int = Field(default=1024, ge=1)
    batch_size: int = Field(default=32, ge=1)


class ModelCard(Record):
    """The model that is served: its id, how its answers are judged, and what it takes.

    `calibrated` tells whether confidence is a probability, fitted on labels; otherwise it only orders answers, or there
    is none.

    `least_threshold` is the lowest that a request may ask for where drafts that are not sure are not to be seen; None
    where a request may ask for none. `context` is in tokens, None for no limit.
    """

    id: str
    scored: bool
    calibrated: bool
    method: str
    threshold: float | None
    least_threshold: float | None
    context: int | None
    policies: tuple[PolicyName, ...]
    limits: Limits


class BusyError(Exception):
    """No more jobs are taken for now; `retry_after` says in how many seconds it may be otherwise."""

    def __init__(self, retry_after: int) -> None:
        """Tell when to come back."""
        super().__init__(f"The service is busy; try again in {retry_after} s.")
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[BusyError], tuple[int]]:
        """Let it travel between processes."""
        return type(self), (self.retry_after,)


class StoppingError(Exception):
    """The service is being stopped, and takes or ends no more jobs."""


class Engine(Protocol):
    """Takes jobs and gives results.

    Whoever waits for one may be cancelled, because the client has gone or time is up: the job is dropped then, or ends
    at its next token. Of what it raises, `SemGradError`s are the job's own fault; anything else is the service's.
    """

    @property
    def card(self) -> ModelCard:
        """The model that is served."""

    @overload
    async def answer(self, job: ChatJob) -> ChatAnswer: ...

    @overload
    async def answer(self, job: ScoreJob) -> ScoreAnswer: ...

    async def answer(self, job: ChatJob | ScoreJob) -> ChatAnswer | ScoreAnswer:
        """Give the result of a job.

        Raises:
            BusyError: the queue is full.
            StoppingError: the service is being stopped.
            SemGradError: the job cannot be done as it was given.
        """

    def stream(self, job: ChatJob) -> AsyncGenerator[str | ChatAnswer]:
        """Yield the draft's text as it comes, and then the answer, whose text begins with all of it; raises alike."""

    async def ready(self) -> bool:
        """Tell whether jobs are taken."""

    async def start(self) -> None:
        """Begin to take jobs."""

    async def stop(self, grace: float) -> None:
        """Take no more jobs, let those that are accepted end for so many seconds, and end those that are left."""
