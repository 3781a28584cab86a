"""Every row of the table of bad input: a 4xx that says what is wrong, briefly."""

import bad_input
import httpx
import pytest
from serving import served

from semgrad_guard.web.keys import ApiKeys

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture(scope="module")
def client():
    with served(keys=ApiKeys([bad_input.KEY])) as (_, url), httpx.Client(base_url=url, timeout=60) as found:
        yield found


@pytest.mark.parametrize("bad", [*bad_input.requests()], ids=lambda bad: f"{bad.method} {bad.path[:30]} {bad.wrong}")
def test_what_is_not_to_be_sent_is_refused(client, bad):
    assert bad_input.fault(bad_input.answer(client, bad)) == ""


@pytest.mark.parametrize("odd", [*bad_input.odd()], ids=["accents", "astral", "from right to left", "controls"])
def test_odd_texts_are_texts(client, odd):
    assert bad_input.answer(client, odd).status_code == 200
