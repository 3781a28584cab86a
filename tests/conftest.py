"""No test may use the network; torch stays on few threads so that tests do not fight over cores."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _no_network(socket_disabled):
    """Sockets are off, in every test."""
