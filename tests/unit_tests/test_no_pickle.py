"""Nothing that the package reads may run code: no pickle, no remote code, no weights but safetensors."""

import ast
from pathlib import Path

import pytest

import semgrad_guard

PACKAGE = Path(semgrad_guard.__file__).parent
# Modules whose files can hold code, and functions that run text.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_of(call):
    return ast.unparse(call.func)


def settings_of(call):
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def complaints(source):
    """List what in a module's source could run code that comes from a file or from the network."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES]
    for call in calls(tree):
        name, settings = name_of(call), settings_of(call)
        if name in UNSAFE_CALLS:
            found.append(f"calls {name}")
        if name == "torch.load" and settings.get("weights_only") != "True":
            found.append("calls torch.load without weights_only=True")
        if name == "np.load" and settings.get("allow_pickle", "False") != "False":
            found.append("calls np.load with allow_pickle")
        if name in ("yaml.load", "yaml.unsafe_load"):
            found.append(f"calls {name}")
        if name.endswith(".from_pretrained") and name != "ChatSemGrad.from_pretrained":  # which calls load_model
            if settings.get("trust_remote_code") != "False":
                found.append(f"calls {name} without trust_remote_code=False")
            if "Tokenizer" not in name and settings.get("use_safetensors") != "True":
                found.append(f"calls {name} without use_safetensors=True")
    return found


def test_the_package_reads_nothing_that_could_run():
    found = {
        str(path.relative_to(PACKAGE)): wrong
        for path in PACKAGE.rglob("*.py")
        if (wrong := complaints(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "AutoTokenizer.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "AutoModel.from_pretrained(name, trust_remote_code=True, use_safetensors=True)",
    ],
)
def test_the_check_sees(source):
    assert complaints(source)
