"""`semgrad-guard review`: the page on which people review, and commands on the queue behind it."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.markup import escape

from semgrad_guard.cli.app import JsonOption, app, plain_errors
from semgrad_guard.errors import ConfigurationError, needs
from semgrad_guard.settings import DAY, check_seconds
from semgrad_guard.web.keys import LOCAL_HOSTS, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from semgrad_guard.review.queue import ReviewQueue

TOKEN = "SEMGRAD_GUARD_REVIEW_TOKEN"
QUEUE = "SEMGRAD_GUARD_REVIEWS"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}

reviews = typer.Typer(help="Serve the review page, and work on the queue behind it.")
app.add_typer(reviews, name="review")

QueueOption = Annotated[
    str | None,
    typer.Option("--queue", help=f"URL of the queue's database. The default is ${QUEUE}, else sqlite:///reviews.db."),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the review.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Delete without asking for confirmation.")]
WhoOption = Annotated[str | None, typer.Option("--who", help="Name for the trail. The default is the login name.")]


@reviews.callback(invoke_without_command=True)
def page(
    context: typer.Context,
    queue: QueueOption = None,
    host: Annotated[str, typer.Option(help="Address to listen to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen to; 0 for any free one.")] = 8010,
    name: Annotated[
        list[str] | None, typer.Option(help="Host name that the page answers to. The option may be repeated.")
    ] = None,
    lease: Annotated[float, typer.Option(help="Time that a reviewer has for a review, in seconds.")] = 900.0,
    secure: Annotated[
        bool, typer.Option("--secure", help="Set this where browsers reach the page by HTTPS only, through a proxy.")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Fill an empty queue with unsure answers of the embedded model.")
    ] = False,
) -> None:
    """Start the review page, or run one of the commands on the queue.

    Reviewers log in with the token in SEMGRAD_GUARD_REVIEW_TOKEN; without one, the command makes a token and shows it.
    """
    context.obj = queue
    if context.invoked_subcommand is not None:
        return
    token = os.environ.get(TOKEN, "")
    shown = token or secrets.token_urlsafe()
    with plain_errors():
        check_seconds("--lease", lease)
    from semgrad_guard.review.page import application

    with plain_errors(), _listening(host, port, token) as listening, closing(_opened(queue)) as opened:
        built = application(opened, token=shown, hosts=_hosts(host, name or []), lease=lease, secure=secure)
        if demo:
            _fill(opened)
        console = Console(soft_wrap=True)
        address = f"[{host}]" if ":" in host else host
        console.print(f"The review page: http://{escape(address)}:{listening.getsockname()[1]}/", highlight=False)
        origin = f"the one in {TOKEN}" if token else f"{escape(shown)} (new with every start, unless {TOKEN} is set)"
        console.print(f"Token to log in: {origin}", highlight=False)
        _serve(built, listening, proxied=secure)


@reviews.command("list")
def list_(
    context: typer.Context,
    queue: QueueOption = None,
    status: Annotated[
        str | None, typer.Option(help="List only these reviews: pending, claimed, decided or expired.")
    ] = None,
    decision: Annotated[
        str | None, typer.Option(help="List only reviews with this decision: approve, edit, reject or respond.")
    ] = None,
    reviewer: Annotated[
        str | None, typer.Option(help="List only reviews that this reviewer claimed or decided.")
    ] = None,
    contains: Annotated[
        str | None, typer.Option(help="List only reviews with this text in the question or the draft.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of reviews in the list.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List reviews, the oldest first."""
    from semgrad_guard.review.items import ReviewFilter

    with plain_errors(), closing(_opened(queue, context)) as opened:
        only = ReviewFilter.model_validate(
            {"status": status, "decision": decision, "reviewer": reviewer, "contains": contains}
        )
        items = opened.items(only=only, limit=limit)
        total = opened.count(only)
    if as_json:
        _print_json({"reviews": items, "total": total})
        return
    console = Console(soft_wrap=True, highlight=False)
    for item in items:
        request, answer = item.request, item.answer
        how = item.status if answer is None else f"{answer.decision} by {item.reviewer}"
        sure = "unknown" if (confidence := request.verdict.confidence) is None else f"{confidence:.2f}"
        console.print(f"{item.id}  [bold]{escape(how)}[/]  confidence {sure}")
        console.print(f"    {escape(_short(request.question))}  ->  {escape(_short(request.draft))}")
    where = "" if total else f" in {opened}"  # it may be another queue than was meant
    console.print(f"{len(items)} of {total} reviews{where}", markup=False)


@reviews.command()
def statistics(context: typer.Context, queue: QueueOption = None, as_json: JsonOption = False) -> None:
    """Count the reviews in the queue."""
    with plain_errors(), closing(_opened(queue, context)) as opened:
        figures = opened.statistics()
    if as_json:
        _print_json(figures)
        return
    console = Console()
    console.print("reviews: " + ", ".join(f"{count} {status}" for status, count in figures.counts.items()))
    console.print("decisions: " + (", ".join(f"{n} {decision}" for decision, n in figures.decisions.items()) or "none"))
    if figures.oldest is not None:
        console.print(f"the oldest without a decision has waited for {timedelta(seconds=int(figures.oldest))}")
    if figures.approved is not None:
        console.print(f"approved as drafted: {figures.approved:.0%}")


@reviews.command()
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="File to write.")],
    queue: QueueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the decided reviews as labelled questions, for `semgrad-guard calibrate --data`."""
    with plain_errors(), closing(_opened(queue, context)) as opened:
        try:
            written = opened.export(file)
        except OSError as error:
            raise ConfigurationError(f"Cannot write {file}: {error.strerror}.") from error
    _report({"exported": written, "file": str(file)}, f"{written} labelled questions written to {file}.", as_json)


@reviews.command()
def purge(
    context: typer.Context,
    older_than: Annotated[
        str, typer.Option("--older-than", help="Age of the reviews to delete, such as 90d, 12h or 30m.")
    ],
    queue: QueueOption = None,
    who: WhoOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete all reviews older than an age, decided or not. The trail still names them."""
    with plain_errors(), closing(_opened(queue, context)) as opened:
        age = _seconds(older_than)
        _confirm(f"Delete all reviews in {opened} that are older than {timedelta(seconds=age)}?", yes)
        purged = opened.purge(age, who or getpass.getuser())
    _report({"purged": purged}, f"{purged} reviews deleted.", as_json)


@reviews.command()
def delete(
    context: typer.Context,
    id_: IdArgument,
    queue: QueueOption = None,
    who: WhoOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a review. The trail still names it."""
    with plain_errors(), closing(_opened(queue, context)) as opened:
        question = _short(opened.get(id_).request.question)
        _confirm(f"Delete the review of {question!r} in {opened}?", yes)
        opened.delete(id_, who or getpass.getuser())
    _report({"deleted": id_}, f"Review {id_} deleted.", as_json)


@reviews.command()
def trail(context: typer.Context, id_: IdArgument, queue: QueueOption = None, as_json: JsonOption = False) -> None:
    """Show who did what to a review, deleted ones included."""
    with plain_errors(), closing(_opened(queue, context)) as opened:
        events = opened.trail(id_)
        if not events:
            opened.get(id_)  # says that there is none
    if as_json:
        _print_json({"trail": events})
        return
    for event in events:
        print(f"{event.at:%Y-%m-%d %H:%M:%S} UTC  {event.who}: {event.action}")


def _opened(queue: str | None, context: typer.Context | None = None) -> ReviewQueue:
    """Open the queue named after a command, before it, in the environment, or by default."""
    from semgrad_guard.review import ReviewQueue  # the other commands work without the extra

    earlier = None if context is None else context.obj
    return ReviewQueue(queue or earlier or os.environ.get(QUEUE) or "sqlite:///reviews.db")


def _fill(queue: ReviewQueue) -> None:
    if queue.items(limit=1):
        print("The queue is not empty, so --demo adds nothing to it.")
    else:
        from semgrad_guard.demo.walkthrough import hold_back

        print(f"{hold_back(queue)} answers of the embedded model were held back, and wait in the queue.")


def _hosts(host: str, names: list[str]) -> list[str]:
    """Name all hosts that the page answers to."""
    return [*LOCAL_HOSTS, host, *names]


@contextmanager
def _listening(host: str, port: int, token: str) -> Iterator[socket.socket]:
    """Listen before the address is printed.

    Raises:
        ConfigurationError: the address cannot be listened to, or other machines reach it and nobody has set a token.
    """
    if not token and not is_loopback(host):
        raise ConfigurationError(f"host={host!r} can be reached from other machines: set {TOKEN}.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(f"Cannot listen to {host}, port {port}: {error.strerror or error}.") from error
    with listening:
        yield listening


def _serve(built: ASGIApp, listening: socket.socket, *, proxied: bool) -> None:
    """Serve until interrupted; requests that are being answered may end."""
    with needs("review", "The review page needs uvicorn"):
        import uvicorn

        from semgrad_guard.observability.logs import configure_logging
        from semgrad_guard.web.shelter import KEPT, Patient
    configure_logging(json=False)
    config = uvicorn.Config(
        built,
        log_config=None,
        log_level="warning",
        access_log=False,  # addresses hold what was searched for
        server_header=False,
        proxy_headers=proxied,  # of a proxy on this machine, or where FORWARDED_ALLOW_IPS says
        http=Patient,
        ws="none",
        timeout_keep_alive=KEPT,
        limit_concurrency=100,
        timeout_graceful_shutdown=10,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", age.strip())
    if match is None:
        raise ConfigurationError(f"--older-than {age!r}: expected a number and a unit, such as 90d, 12h, 30m or 45s.")
    return check_seconds("--older-than", float(match[1]) * _UNITS[match[2]], zero=True)


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True)


def _report(record: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        _print_json(record)
    else:
        print(sentence)


def _print_json(value: object) -> None:
    print(to_json(value, inf_nan_mode="null").decode())


def _short(text: str, letters: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= letters else line[: letters - 1] + "…"
