"""A real browser, and the review page on a port of this machine, for tests and screenshots."""

import shutil
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from semgrad_guard.review.page import application

_FLAGS = (
    "--no-sandbox",  # for whoever runs tests as root
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser():
    """Start Debian's chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(_FLAGS))
        try:
            yield started
        finally:
            started.close()


@contextmanager
def served(queue, token, *, port=0, **settings):
    """Serve the page and give its address; the server is gone afterwards."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        app = application(queue, token=token, **settings)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
