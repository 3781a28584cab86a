"""What tests of production share: a PostgreSQL server, the caller's or one of their own."""

import os

import pytest
from postgres import MISSING, VARIABLE, private_server, programs


@pytest.fixture(scope="session")
def postgres_url():
    """The URL of a PostgreSQL database; skips where there is none."""
    if VARIABLE in os.environ:
        yield os.environ[VARIABLE]
    elif programs() is None:
        pytest.skip(MISSING)
    else:
        with private_server() as server:
            yield server.url


@pytest.fixture
def postgres_server():
    """A PostgreSQL server that a test may stop and start; skips where there is none."""
    if programs() is None:
        pytest.skip(MISSING)
    with private_server() as server:
        yield server
