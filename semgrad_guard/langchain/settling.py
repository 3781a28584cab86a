"""From a draft to the message that goes out: each route that applies is a child run, and the decision is announced."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import AIMessage

from semgrad_guard._compat import steers_a_graph
from semgrad_guard.errors import described, named
from semgrad_guard.langchain.asking import Asking
from semgrad_guard.langchain.child_runs import astep, step
from semgrad_guard.langchain.outgoing import outgoing
from semgrad_guard.records import Decision
from semgrad_guard.routing.attempts import aattempted, attempted
from semgrad_guard.routing.ladder import Answer, Outcome, Resolution, Route, climb
from semgrad_guard.routing.routes import Abstain, Raise

logger = logging.getLogger(__name__)

DECIDED = "semgrad.decision"  # the event


def settled(asking: Asking, draft: Answer, routes: Sequence[Route]) -> AIMessage:
    """Let routes settle a draft that is not sure enough, announce the decision, and give the message that goes out.

    Raises:
        LowConfidenceError: a route wants that.
    """
    ladder = climb(draft, _applicable(asking, routes))
    try:
        route, sources = next(ladder)
        while True:
            attempt = partial(attempted, route, asking.situation(draft, sources))
            try:
                outcome = step("route", {"route": route.decision}, attempt, _told)
            except Exception as error:  # fail closed: a route that breaks does not settle
                outcome = _broken(route, error)
            route, sources = ladder.send(outcome)
    except StopIteration as end:
        resolution: Resolution = end.value
    dispatch_custom_event(DECIDED, _announced(resolution.decision))
    return outgoing(resolution)


async def asettled(asking: Asking, draft: Answer, routes: Sequence[Route]) -> AIMessage:
    """Async twin of `settled`."""
    ladder = climb(draft, _applicable(asking, routes))
    try:
        route, sources = next(ladder)
        while True:
            attempt = partial(aattempted, route, asking.situation(draft, sources))
            try:
                outcome = await astep("route", {"route": route.decision}, attempt, _told)
            except Exception as error:  # fail closed: a route that breaks does not settle
                outcome = _broken(route, error)
            route, sources = ladder.send(outcome)
    except StopIteration as end:
        resolution: Resolution = end.value
    await adispatch_custom_event(DECIDED, _announced(resolution.decision))
    return outgoing(resolution)


def _applicable(asking: Asking, routes: Sequence[Route]) -> Sequence[Route]:
    """Give the routes to try: where nothing was asked, there is nothing to look up, and nobody to bother with it."""
    return [route for route in routes if isinstance(route, Abstain | Raise)] if asking.blank else routes


def _broken(route: Route, error: Exception) -> Outcome:
    if steers_a_graph(error):
        return Outcome(True, "the run is interrupted", error=error)
    logger.warning("The route %s failed: %s", route.decision, described(error))
    return Outcome(False, named(error))


def _told(outcome: Outcome) -> dict[str, Any]:
    return {"settled": outcome.settled, "reason": outcome.reason}


def _announced(decision: Decision) -> dict[str, Any]:
    return decision.model_dump(mode="json", include={"decision", "confidence", "threshold", "reason"})
