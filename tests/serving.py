"""The service with the embedded model, on a port of this machine, in a thread."""

import threading
import time
from contextlib import contextmanager

from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.serving.app import application
from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.server import Setup, server
from semgrad_guard.serving.service import Terms


class Counted(LocalEngine):
    """Remembers the sizes of its batches."""

    def __init__(self, worker, **settings):
        self.rows = []
        super().__init__(worker, batched=self.rows.append, **settings)


@contextmanager
def served(setup=None, terms=None, keys=None, **settings):
    """Give the engine and its base URL; ends as the command does when it is interrupted."""
    engine = Counted((setup or Setup()).worker(), **settings)
    terms = terms or Terms()
    app = application(engine, terms, Metrics())
    running = server(app, engine, port=0, keys=keys, grace=terms.grace)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        port = running.servers[0].sockets[0].getsockname()[1]
        yield engine, f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join()
