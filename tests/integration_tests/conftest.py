"""How tests ended, for the one that compares the README's counts with them."""

import pytest

_OUTCOMES = {}
_LEFT_OUT = []


def pytest_deselected(items):
    _LEFT_OUT.extend(items)


def pytest_runtest_logreport(report):
    if report.when == "call" or report.skipped:
        expected = hasattr(report, "wasxfail")
        _OUTCOMES[report.nodeid] = "xfailed" if expected and report.skipped else report.outcome


@pytest.fixture
def outcomes(request):
    """Outcomes of the tests of the present file that came before, by node; skips where not all of it is run."""
    left_out = any(item.path == request.path for item in _LEFT_OUT)
    if left_out or any("::" in argument for argument in request.config.args):
        pytest.skip("only some tests of the file are run")
    ours = [item.nodeid for item in request.session.items if item.path == request.path and item is not request.node]
    return {node: _OUTCOMES[node] for node in ours}
