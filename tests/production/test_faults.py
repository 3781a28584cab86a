"""Every fault of the table: what is seen is what was expected."""

import faults
import pytest
from faulty import NotRun

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.mark.parametrize("fault", faults.known(), ids=lambda fault: fault.name)
def test_fault(fault):
    try:
        seen = faults.seen(fault)
    except NotRun as reason:
        pytest.skip(str(reason))
    assert seen == fault.expected
