"""SmolLM2-135M-Instruct, a published model; without it, the tests marked `real` are skipped and say why."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from semgrad_guard.model.load import load_model

ROOT = Path(__file__).parents[2]
VARIABLE = "SEMGRAD_GUARD_MODELS"  # a folder of model files, instead of the one that `make models` fills
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def file():
    """The GGUF file, fetched once if it is not there."""
    folder = Path(os.environ.get(VARIABLE, ROOT / ".cache" / "models"))
    if not (folder / FILE).exists():
        command = [sys.executable, str(ROOT / "tools" / "fetch_models.py"), "smollm2", "--into", str(folder)]
        fetched = subprocess.run(command, capture_output=True, text=True, check=False)
        if fetched.returncode != 0:
            pytest.skip(f"{FILE} is not in {folder} and cannot be fetched: {fetched.stderr.strip()}")
    return folder / FILE


@pytest.fixture(scope="session")
def smollm2(file):
    """The model and its tokenizer, unpacked once for all tests."""
    return load_model(file, quiet=True)


@pytest.fixture(scope="session")
def facts(tmp_path_factory):
    """A folder with questions about the world and a prompt that shows how short an answer is to be."""
    folder = tmp_path_factory.mktemp("facts")
    subprocess.run([sys.executable, str(ROOT / "tools" / "world_facts.py"), "--out", str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def brief(smollm2, facts):
    """The model with a chat template that shows two short answers first: it then answers in a few tokens."""
    model, tokenizer = smollm2
    shown = json.loads((facts / "prompt.json").read_text(encoding="utf-8"))[:4]
    before = tokenizer.apply_chat_template(shown, tokenize=False)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        f"{{{{ {json.dumps(before)} }}}}"
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    return model, tokenizer


@pytest.fixture(scope="session")
def folder(brief, tmp_path_factory):
    """The same as a folder of safetensors, for what loads a model by its name."""
    path = tmp_path_factory.mktemp("smollm2")
    for part in brief:
        part.save_pretrained(path)
    return path
