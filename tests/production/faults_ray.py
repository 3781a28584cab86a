"""Faults of the service on Ray: the same as its tests bring about."""

from __future__ import annotations

import importlib.util
import os
import signal
from contextlib import suppress
from pathlib import Path

from faulty import NotRun, fault


@fault(
    "a replica on Ray is killed in the middle of load",
    "every request is answered, every review is in the queue once, and another replica is started",
)
def replica_killed(folder: Path) -> str:
    if importlib.util.find_spec("ray") is None:
        raise NotRun("the extra `ray` is not installed")
    import test_ray_serve as tested

    served = tested.Served(folder)
    try:
        tested.until(served.ready, 180)
        tested.until(lambda: len(served.replicas()) == 2, 60)
        tested.kill_a_replica_under_load(served)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(served.process.pid, signal.SIGKILL)
        served.process.wait()
    return "every request is answered, every review is in the queue once, and another replica is started"
