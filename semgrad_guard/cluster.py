"""A connection with Ray: with a cluster, or with one of this machine alone, for as long as the work takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from semgrad_guard.errors import needs

_OBJECT_STORE = 200 * 1024**2  # bytes; questions and answers are small, and a model is loaded by whoever needs it
_WORKERS = {
    "OMP_NUM_THREADS": "1",  # each has a core; with more threads they get in each other's way
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",  # a replica that computes is slow to say how much it has to do
}


@contextmanager
def connected(cpus: int) -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS, or start a small one here; a connection that is there already is used and left.

    The ports of one that is started here ask for Ray's token, unless RAY_AUTH_MODE is "disabled".

    Args:
        cpus: how many a cluster that is started here may hand out; those of the machine need not be as many.

    Raises:
        ConfigurationError: Ray is not installed.
    """
    with needs("ray", "Scaling out needs Ray"):
        import ray
    if ray.is_initialized():
        yield
        return
    small = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    limits: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else small
    ray.init(runtime_env={"env_vars": _WORKERS}, logging_level=logging.WARNING, **limits)
    try:
        yield
    finally:
        ray.shutdown()
