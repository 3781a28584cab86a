"""What goes wrong, in the shape of OpenAI's errors: what clients learn, and what stays in here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, Field, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import Response

from semgrad_guard.errors import ConfigurationError, EmptyResponseError, PromptTooLongError, TokenPositionError
from semgrad_guard.observability.metrics import Failure
from semgrad_guard.serving.replies import Failed
from semgrad_guard.serving.turns import LONGEST, MOST_TOOLS, Given, NamedTool, Tool, Turns, few, plain, unsupported
from semgrad_guard.serving.work import BusyError, ChatJob, Policy, PolicyName, Sampling, ScoreJob, StoppingError
from semgrad_guard.web.shelter import Contained, logged, refusal

# Of what a job can fail with: the job's own fault, whose message is for whoever sent it.
_OWN_FAULT = (ConfigurationError, EmptyResponseError, PromptTooLongError, TokenPositionError)


class GoneError(Exception):
    """The client has gone before there was an answer."""


class DeadlineError(Exception):
    """There was no answer in time."""

    def __init__(self, seconds: float) -> None:
        """Tell how much time there was."""
        super().__init__(f"There was no answer within {seconds:g} s.")


class RefusedError(Exception):
    """The request asks for what is not served, or not allowed."""

    def __init__(self, status: int, code: str, message: str) -> None:
        """Say what, as status, code and text."""
        super().__init__(message)
        self.status, self.code = status, code


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document statuses of failures, among them those that every request may meet."""
    about = {
        400: "The request cannot be answered as it is",
        401: "No valid API key",
        404: "No such model",
        413: "The body is too long",
        429: "Too many requests wait; `Retry-After` says when to come back",
        500: "The service failed",
        503: "The service is being stopped",
        504: "No answer in time",
    }
    return {status: {"model": Failed, "description": about[status]} for status in sorted({400, 401, 413, *statuses})}


def failure_of(error: Exception) -> Failure | None:
    """Name the kind that metrics count a failure as; None for what is the request's own fault."""
    kinds: dict[type[Exception], Failure] = {
        BusyError: "overloaded",
        StoppingError: "overloaded",
        DeadlineError: "deadline",
        GoneError: "cancelled",
    }
    return None if isinstance(error, (*_OWN_FAULT, RefusedError)) else kinds.get(type(error), "error")


def error_response(error: Exception) -> Response:
    """Give the answer to a request that failed; of a fault of the service's own, clients learn an id only."""
    if isinstance(error, RefusedError):
        return refusal(error.status, error.code, str(error))
    if isinstance(error, _OWN_FAULT):
        too_long = isinstance(error, PromptTooLongError)
        return refusal(400, "context_length_exceeded" if too_long else "invalid_request", str(error))
    if isinstance(error, BusyError):
        busy = refusal(429, "queue_full", str(error), "rate_limit_error")
        busy.headers["Retry-After"] = str(error.retry_after)
        return busy
    if isinstance(error, StoppingError):
        return refusal(503, "stopping", str(error), "server_error")
    if isinstance(error, DeadlineError):
        return refusal(504, "deadline_exceeded", str(error), "server_error")
    if isinstance(error, GoneError):
        return Response(status_code=499)  # nobody reads it
    failed = f"The service failed; its log has more under {logged(error)}."
    return refusal(500, "internal_error", failed, "server_error")


def shape_errors(app: FastAPI) -> None:
    """Let an application answer what it refuses by itself in the same shape."""
    app.add_middleware(Contained, answer=error_response)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        _, *path = first["loc"] if first["type"] != "json_invalid" else ("body",)
        place = ".".join(brief(str(part)) for part in path[:_DEEPEST])
        text = _SAID.get(first["type"], str(first["msg"]).removeprefix("Value error, "))
        return refusal(400, "invalid_request", f"{place or 'The body'}: {text}")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        answer = refusal(error.status_code, codes.get(error.status_code, "invalid_request"), str(error.detail))
        answer.headers.update(error.headers or {})
        return answer


_SAID = {
    "extra_forbidden": "this parameter is not known or not supported here; leave it out",
    "missing": "this is required",
    "json_invalid": "this is no JSON",
    "finite_number": "expected a finite number",
    "model_attributes_type": "expected a JSON object, sent as application/json",
    "union_tag_invalid": "expected the role system, developer, user, assistant or tool",
    "union_tag_not_found": "a message needs a role",
    "string_unicode": "expected text without half surrogate pairs",
}
_DEEPEST, _LONGEST = 10, 64


def brief(name: str) -> str:
    """Shorten what a client has named, for it is told again."""
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"


_MOST_STOPS, _MOST_CHOICES = 4, 8
_SEED = 2**63 - 1

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Stop = Annotated[str, Field(min_length=1, max_length=100)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Ids = Annotated[
    list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1, max_length=LONGEST, fail_fast=True)
]
Words = Annotated[str, Field(min_length=1, max_length=LONGEST)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]


class ResponseFormat(Given):
    """Texts only; for structured answers, offer a tool and require it with `tool_choice`."""

    type: Literal["text"]


class StreamOptions(Given):
    """Whether a stream ends with a chunk that tells the usage."""

    include_usage: bool = False
    include_obfuscation: Annotated[bool, unsupported("include_obfuscation")] = False


class SemGradOptions(Given):
    """What becomes of an answer that is not sure, and how a stream comes.

    `policy`: "abstain" sends `message` in its place, "annotate" sends it all the same, "review" hands it to a human.
    `threshold`: the least confidence that passes. `stream`: "buffered" sends what was decided, "verdict" the draft as
    it comes, and the decision at its end. `timeout`: seconds after which the answer is of no use any more.
    """

    policy: PolicyName | None = None
    threshold: Share | None = None
    message: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    stream: Literal["buffered", "verdict"] = "buffered"
    timeout: Seconds | None = None


class ChatRequest(Given):
    """`POST /v1/chat/completions`."""

    model: ModelName
    messages: Turns
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    stop: Stop | Annotated[list[Stop], Field(min_length=1, max_length=_MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-_SEED, le=_SEED)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    presence_penalty: Annotated[float | None, unsupported("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, unsupported("frequency_penalty")] = None
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(few), unsupported("logit_bias")] = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Annotated[bool | None, unsupported("store")] = None
    user: Annotated[str, Field(max_length=200)] | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(few), Field(max_length=16)] | None = None
    semgrad: SemGradOptions = SemGradOptions()

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        names = {tool.function.name for tool in self.tools or ()}
        forced = self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream: true")
        if self.semgrad.stream == "verdict" and not (self.stream and self.choices == 1):
            raise ValueError("semgrad.stream 'verdict' needs stream: true, and n: 1")
        if self.tools and len(names) < len(self.tools):
            raise ValueError("tools have names of their own; some are alike")
        if self.tool_choice is not None and not self.tools:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is not among the tools")
        if self.parallel_tool_calls is False and self.tools and not forced:
            raise ValueError("parallel_tool_calls: false is kept only where tool_choice requires a call")
        return self

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        return 1 if self.n is None else self.n

    def jobs(self, default: PolicyName) -> list[ChatJob]:
        """Give a job for every answer that is wanted; those with a seed have each their own."""
        shared = ChatJob(
            messages=plain(self.messages),
            tools=tuple(tool.model_dump(exclude_none=True) for tool in self.tools or ()),
            tool_choice=self.tool_choice.model_dump() if isinstance(self.tool_choice, NamedTool) else self.tool_choice,
            sampling=Sampling(
                max_tokens=self.max_completion_tokens or self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
                logprobs=bool(self.logprobs),
                top_logprobs=self.top_logprobs or 0,
            ),
            policy=Policy(
                name=self.semgrad.policy or default, threshold=self.semgrad.threshold, message=self.semgrad.message
            ),
        )
        if self.seed is None:
            return [shared] * self.choices
        seeds = [(self.seed + place) % 2**63 for place in range(self.choices)]
        return [
            shared.model_copy(update={"sampling": shared.sampling.model_copy(update={"seed": seed})}) for seed in seeds
        ]


class ScoreOptions(Given):
    """The least confidence that passes, and seconds after which the score is of no use any more."""

    threshold: Share | None = None
    timeout: Seconds | None = None


class ScoreRequest(Given):
    """`POST /v1/score`: an answer that was given elsewhere with the same weights.

    The prompt is one of `messages`, `prompt` (the whole text, chat template applied) or `prompt_token_ids`; the
    response is `response` or `response_token_ids`, the end-of-turn token included where the model produced it. Ids are
    exact; a text may be tokenized otherwise than the model wrote it. `grounded` says that the answer was given from
    passages or tool results; `tokens` also asks where in the response the uncertainty sits.
    """

    model: ModelName
    messages: Turns | None = None
    prompt: Words | None = None
    prompt_token_ids: Ids | None = None
    response: Words | None = None
    response_token_ids: Ids | None = None
    grounded: bool = False
    tokens: bool = False
    semgrad: ScoreOptions = ScoreOptions()

    @model_validator(mode="after")
    def _one_of_each(self) -> ScoreRequest:
        if sum(field is not None for field in (self.messages, self.prompt, self.prompt_token_ids)) != 1:
            raise ValueError("give one of messages, prompt and prompt_token_ids")
        if (self.response is None) == (self.response_token_ids is None):
            raise ValueError("give one of response and response_token_ids")
        return self

    def job(self) -> ScoreJob:
        """Give the job."""
        prompt, response = self.prompt_token_ids, self.response_token_ids
        return ScoreJob(
            messages=None if self.messages is None else plain(self.messages),
            prompt=self.prompt,
            prompt_ids=None if prompt is None else tuple(prompt),
            response=self.response,
            response_ids=None if response is None else tuple(response),
            grounded=self.grounded,
            threshold=self.semgrad.threshold,
            tokens=self.tokens,
        )
