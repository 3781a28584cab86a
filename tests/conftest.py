"""Sockets are off in every test, and none may hang (see pyproject.toml); torch stays on the cores there are."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(2, os.cpu_count() or 1))

_LONG = 1800  # seconds that a test may take that runs processes, browsers or published models, or is marked slow


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name in ("production", "real") or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(_LONG))  # after its own mark, if it has one
