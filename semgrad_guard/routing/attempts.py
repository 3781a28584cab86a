"""Routes as users pass them: what counts as a route, and how one is tried."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from typing import Any

from semgrad_guard.errors import ConfigurationError, RouteError
from semgrad_guard.routing.ladder import Outcome, Route, Situation
from semgrad_guard.settings import shown

_EXPECTED = "expected a list of routes, such as [Retrieve(retriever), Abstain()]"
_RESERVED = "pass"  # the decision about an answer that is sure


def as_routes(routes: Any) -> list[Route]:
    """Give the list of routes: of one route, of several, and of classes that need no settings.

    Raises:
        ConfigurationError: one is no route, or its decision or `below` cannot be used.
    """
    if isinstance(routes, type) or hasattr(routes, "attempt") or hasattr(routes, "aattempt"):
        routes = [routes]
    if isinstance(routes, str | bytes | dict) or not isinstance(routes, Iterable):
        raise ConfigurationError(f"routes={shown(routes)}: {_EXPECTED}.")
    return [_route(place, route) for place, route in enumerate(routes)]


def attempted(route: Route, situation: Situation) -> Outcome:
    """Try a route.

    Raises:
        RouteError: it gave something else than an `Outcome`.
    """
    if not hasattr(route, "attempt"):
        return Outcome(False, f"{type(route).__name__} has an aattempt only; call the guard with ainvoke")
    return _checked(route, route.attempt(situation))


async def aattempted(route: Route, situation: Situation) -> Outcome:
    """Async twin of `attempted`; a route without an `aattempt` runs in a thread."""
    if not hasattr(route, "aattempt"):
        return _checked(route, await asyncio.to_thread(route.attempt, situation))
    return _checked(route, await route.aattempt(situation))


def _route(place: int, route: Any) -> Route:
    if isinstance(route, type) and (hasattr(route, "attempt") or hasattr(route, "aattempt")):
        route = _instance(route)
    name = type(route).__name__
    where = f"routes[{place}]={shown(route)}"
    if not any(callable(getattr(route, attribute, None)) for attribute in ("attempt", "aattempt")):
        raise ConfigurationError(f"{where} is not a route: it has no method attempt(situation); {_hint(route)}.")
    decision, below = getattr(route, "decision", None), getattr(route, "below", None)
    if not (isinstance(decision, str) and decision.strip()):
        raise ConfigurationError(
            f"{name}.decision is {shown(decision)}; expected a text, the name that the guard reports when the route "
            "settles."
        )
    if decision == _RESERVED:
        raise ConfigurationError(f"{name}.decision is {_RESERVED!r}, which is the name for sure answers; use another.")
    if below is not None and not (isinstance(below, int | float) and not isinstance(below, bool) and 0 <= below <= 1):
        raise ConfigurationError(f"{name}.below is {shown(below)}; expected a confidence in [0, 1], or None.")
    checked: Route = route
    return checked


def _instance(kind: type) -> Any:
    needed = [
        parameter.name
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigurationError(f"{kind.__name__} is a class; pass an instance: {kind.__name__}({', '.join(needed)}).")
    return kind()


def _hint(value: Any) -> str:
    """Say what to write where something else than a route stands."""
    if hasattr(value, "as_retriever") or hasattr(value, "_get_relevant_documents"):  # a vector store, or a retriever
        return "to look things up with it, write Retrieve(...)"
    if hasattr(value, "submit") and hasattr(value, "wait"):
        return "to put answers into it, write HumanReview(queue=...)"
    if hasattr(value, "invoke"):
        return "to ask it, write Escalate(...); to look things up with it, Retrieve(...)"
    if callable(value):
        return "to let it decide, write HumanReview(...)"
    return _EXPECTED


def _checked(route: Route, outcome: Any) -> Outcome:
    if not isinstance(outcome, Outcome):
        raise RouteError(
            f"{type(route).__name__} gave a {type(outcome).__name__}; expected an Outcome, such as "
            "Outcome(True, reason, text)."
        )
    return outcome
