"""What no application has foreseen: an answer for the client, an id in the log, and no text of either in it."""

from __future__ import annotations

import logging
import traceback
import uuid
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


class Contained:
    """Keeps exceptions from the server, which would log their texts: those may hold what was asked or answered."""

    def __init__(self, app: ASGIApp, answer: Callable[[Exception], Response]) -> None:
        """Guard an application; `answer` tells the client, where nothing has been sent yet."""
        self._app, self._answer = app, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through; where an answer breaks off, the connection ends with it."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            response = self._answer(error)
            if scope["type"] == "http" and not begun:
                await response(scope, receive, send)


def logged(error: Exception) -> str:
    """Log what went wrong and where, without the error's own text, and give the id under which that stands."""
    id_ = uuid.uuid4().hex
    frames = "".join(traceback.format_tb(error.__traceback__, limit=-20))  # the innermost
    logger.error("Request %s failed: %s\n%s", id_, type(error).__name__, frames)
    return id_
