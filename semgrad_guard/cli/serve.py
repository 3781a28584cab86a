"""The command `serve`: the HTTP service."""

from __future__ import annotations

import signal
from pathlib import Path
from threading import Event
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.markup import escape

from semgrad_guard.cli.answers import read_passages
from semgrad_guard.cli.app import (
    DtypeOption,
    LongestOption,
    ModelOption,
    PromptOption,
    RevisionOption,
    SystemOption,
    TokenPositionOption,
    app,
    plain_errors,
    prompt_of,
    watched,
)
from semgrad_guard.errors import ConfigurationError, needs
from semgrad_guard.web.keys import VARIABLE, ApiKeys


@app.command()
def serve(
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    profile: Annotated[
        Path | None, typer.Option(help="Profile of the model, a JSON file. The embedded model has one.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest confidence that passes. The default is the profile's.")
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest raw SemGrad score that passes, for experts without a profile. It differs from model to "
            "model; calibrate --coverage chooses a threshold without labels.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen to. One that other machines reach needs API keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen to.")] = 8000,
    name: Annotated[
        list[str] | None, typer.Option(help="Host name that requests may use. The option may be repeated.")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(help=f"File of API keys, one a line. The default is the variable {VARIABLE}, with commas."),
    ] = None,
    policy: Annotated[str, typer.Option(help="Policy for unsure answers: abstain, annotate or review.")] = ("abstain"),
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Policy that a request may choose. The option may be repeated; the default is all."),
    ] = None,
    reviews: Annotated[str | None, typer.Option(help="URL of the review queue, such as sqlite:///reviews.db.")] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(help="Text file of passages, one a line. The service retrieves from them before it abstains."),
    ] = None,
    prompt: PromptOption = None,
    system: SystemOption = None,
    max_new_tokens: LongestOption = None,
    token_position: TokenPositionOption = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Largest number of requests that share a pass of the model.")
    ] = 32,
    queue_size: Annotated[
        int, typer.Option(min=1, help="Largest number of requests that wait. One more is answered 429.")
    ] = 256,
    deadline: Annotated[float, typer.Option(min=0.001, help="Longest time for a request, in seconds.")] = 60.0,
    grace: Annotated[
        float, typer.Option(min=0, help="Longest time for accepted requests when the service ends, in seconds.")
    ] = 30.0,
    max_prompt: Annotated[int, typer.Option(min=1, help="Longest prompt, in tokens.")] = 4096,
    max_response: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    device: Annotated[str, typer.Option(help="Device of the model, such as cuda.")] = "cpu",
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Serve from processes on Ray: on this machine, or in the cluster at RAY_ADDRESS."),
    ] = False,
    replicas: Annotated[int, typer.Option(min=1, help="Smallest number of processes, with --ray.")] = 2,
    max_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Largest number of processes under load, with --ray. The default is --replicas."),
    ] = None,
    gpus: Annotated[
        float, typer.Option(min=0, help="Number of GPUs for each process, with --ray; 0.5 to share one.")
    ] = 0.0,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Write log lines as JSON objects, to stderr.")] = False,
    unscored: Annotated[
        bool,
        typer.Option("--unscored", help="Answer without scoring, to measure what scoring costs. No answer passes."),
    ] = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's API does, with the confidence of every answer."""
    with plain_errors():
        with needs("server", "serve needs fastapi, uvicorn and prometheus-client"):
            from semgrad_guard.observability.logs import configure_logging
            from semgrad_guard.observability.metrics import Metrics
            from semgrad_guard.serving.app import application
            from semgrad_guard.serving.local import LocalEngine
            from semgrad_guard.serving.server import Setup, server
            from semgrad_guard.serving.service import Terms
            from semgrad_guard.serving.work import Limits, PolicyName
        configure_logging(json=json_logs)
        policies = get_args(PolicyName)
        allowed = tuple(allow or policies)
        if unknown := [each for each in (policy, *allowed) if each not in policies]:
            raise ConfigurationError(f"Policy {unknown[0]!r}: expected one of {', '.join(policies)}.")
        if "review" in (policy, *(allow or ())) and reviews is None:
            raise ConfigurationError("The policy 'review' needs a queue: such as --reviews sqlite:///reviews.db.")
        if policy not in allowed:
            raise ConfigurationError(f"The policy {policy!r} is not among those allowed: {', '.join(allowed)}.")
        keys = ApiKeys.read(api_keys)
        setup = Setup(
            model=model,
            revision=revision,
            dtype=dtype,
            quiet=json_logs or not watched(),
            profile=profile,
            threshold=threshold,
            score_threshold=score_threshold,
            passages=() if corpus is None else tuple(read_passages(corpus)),
            reviews=reviews,
            limits=Limits(prompt_tokens=max_prompt, response_tokens=max_response, batch_size=batch_size),
            scored=not unscored,
            device="cuda" if ray and gpus else device,
            prompt=prompt_of(prompt, system),
            max_new_tokens=max_new_tokens,
            token_position=token_position,
        )
        terms = Terms.model_validate({"policy": policy, "policies": allowed, "deadline": deadline, "grace": grace})
        if ray:
            from semgrad_guard.serving.ray_serve import Scale, Site, running

            scale = Scale(replicas=replicas, most=max_replicas, gpus=gpus, queue_size=queue_size)
            site = Site(setup=setup, terms=terms, scale=scale, hosts=(host, *(name or ())), json_logs=json_logs)
            with running(site, keys, host=host, port=port):
                _announce(model, host, port, keys, unscored)
                _until_interrupted()
            return
        metrics = Metrics()
        engine = LocalEngine(setup.worker(), queue_size=queue_size, batched=metrics.batch)
        metrics.watch_queue(engine.depth, engine.age)
        if reviews is not None:
            from semgrad_guard.review import ReviewQueue  # the service works without the extra

            metrics.watch_reviews(ReviewQueue(reviews).statistics)
        service = server(
            application(engine, terms, metrics), engine, host=host, port=port, names=name or (), keys=keys, grace=grace
        )
    _announce(model, host, port, keys, unscored)
    with metrics.listen():
        service.run()


def _announce(model: str | None, host: str, port: int, keys: ApiKeys, unscored: bool) -> None:
    console = Console(stderr=True)
    reached = "with an API key" if keys else f"from this machine only, by everybody on it: no {VARIABLE}"
    console.print(f"{escape(model or 'demo')}: http://{escape(host)}:{port}/v1, {reached}", soft_wrap=True)
    if unscored:
        console.print("[red]unscored:[/] answers go out unjudged, and none is ever passed", soft_wrap=True)


def _until_interrupted() -> None:
    """Wait for an interrupt or a request to end, which are not to end anything else first."""
    ended = Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: ended.set())
    ended.wait()
