"""A plugin: names the versions tested, and fails a test in which transformers logs that something is deprecated.

transformers logs some deprecations in the place of warnings, and each of them once in a process.
"""

import logging
from importlib.metadata import version

import pytest

import semgrad_guard
from semgrad_guard._compat import untested_transformers

SHOWN = ("transformers", "torch", "langchain", "langchain-core", "langgraph", "ray", "uvicorn")
# What a model of the tests asks for, which older versions need.
_OF_THE_TESTS = ("use_mamba_kernels",)
_said = []


class _Listener(logging.Handler):
    def emit(self, record):
        text = record.getMessage()
        if "deprecated" in text and not any(name in text for name in _OF_THE_TESTS):
            _said.append(text)


def pytest_configure(config):
    logging.getLogger("transformers").addHandler(_Listener())


def pytest_report_header(config):
    versions = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    note = untested_transformers()
    return [f"tested: {semgrad_guard.__file__}", f"with: {versions}", *([f"NOTE: {note}"] if note else [])]


@pytest.fixture(autouse=True)
def _nothing_is_logged_as_deprecated():
    yield
    said, _said[:] = list(_said), []
    assert said == []
