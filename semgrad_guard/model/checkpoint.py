"""The place of a checkpoint: a GGUF file, a folder, or the hub; and a check that its files are whole."""

from __future__ import annotations

import json
import os
import queue
import re
import threading
from pathlib import Path

import huggingface_hub
from safetensors import SafetensorError, safe_open

from semgrad_guard.errors import ConfigurationError, UnsupportedModelError

GGUF_MAGIC = b"GGUF"
_POINTER = b"version https://git-lfs"  # what git leaves in the place of a large file without git-lfs
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)[/:](.+\.gguf)")
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")
_PATIENCE = 10.0  # seconds that the hub has to answer at all


def cannot_load(name: str | Path, why: str) -> UnsupportedModelError:
    """Make the error that says why a model cannot be loaded."""
    return UnsupportedModelError(f"Cannot load {str(name)!r}: {why}")


def locate(name: str | Path, *, revision: str | None = None) -> Path | str:
    """Tell files and folders from hub ids; a GGUF file on the hub is fetched, and without network the cache is used.

    A name that begins as a path, or whose folder exists, is a path and never a hub id.

    Args:
        name: a GGUF file, a folder with safetensors or with one GGUF file, a hub id `owner/name`, or a hub id with a
            file, `owner/name/file.gguf` or `owner/name:file.gguf`.
        revision: commit, tag or branch on the hub.

    Returns:
        The path of a GGUF file, the path of a folder, or a hub id.

    Raises:
        UnsupportedModelError: there is no such model, its files are damaged, or the hub does not answer.
        ConfigurationError: a revision is given for a file or folder.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text and path.exists():
        if revision is not None:
            raise ConfigurationError(f"revision={revision!r}: {text!r} is no hub id, so it has no revisions.")
        return _checked_folder(path) if path.is_dir() else _checked_file(path)
    hub_file = _HUB_FILE.fullmatch(text)
    as_path = isinstance(name, Path) or text.startswith(("/", ".", "~")) or "\\" in text
    if as_path or (path.parent != Path() and path.parts and Path(path.parts[0]).exists()):
        raise cannot_load(name, "there is no such file or folder.")
    if hub_file is not None:
        owner, file = hub_file.groups()
        return _fetch(name, owner, file, revision)
    if not _HUB_ID.fullmatch(text) or text.endswith(".gguf"):
        raise cannot_load(name, "it is neither a file, nor a folder, nor a hub id such as owner/name.")
    failure = hub_failure()
    return _checked_folder(_cached(text, revision, failure)) if failure else text


def _checked_file(path: Path) -> Path:
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        raise cannot_load(path, "it is a pointer of Git LFS and not the file itself. Run git lfs pull.")
    if path.suffix == ".gguf" or start.startswith(GGUF_MAGIC):
        return path
    raise cannot_load(path, "it is not a GGUF file. For safetensors, name the folder that holds them.")


def _checked_folder(folder: Path) -> Path:
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    if any(name.endswith(".safetensors") or name == "model.safetensors.index.json" for name in files):
        _check_safetensors(folder)
        return folder
    packed = [name for name in files if name.endswith(".gguf")]
    if len(packed) == 1:
        return _checked_file(folder / packed[0])
    if packed:
        raise cannot_load(folder, f"it holds several GGUF files; name one of them: {', '.join(packed)}")
    pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)})
    if pickles:
        raise cannot_load(
            folder,
            f"its weights are pickled ({', '.join(pickles[:3])}), and unpickling can run code. Save the model "
            "again as safetensors: model.save_pretrained(folder)",
        )
    holds = f"it holds {', '.join(files[:5])}{', ...' if len(files) > 5 else ''}" if files else "it holds no files"
    raise cannot_load(folder, f"{holds}; expected config.json with *.safetensors, or one .gguf file.")


def _check_safetensors(folder: Path) -> None:
    """Open every weight file of a folder, which reads its header and compares the length."""
    paths = set(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists() and not (folder / "model.safetensors").exists():
        try:
            paths |= {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise cannot_load(folder, f"{index.name} is damaged ({type(error).__name__}: {error}).") from error
    for path in sorted(paths):
        if not path.exists():
            raise cannot_load(folder, f"the weight file {path.name} is missing.")
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise cannot_load(folder, f"{path.name} is a pointer of Git LFS and not weights. Run git lfs pull.")
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise cannot_load(folder, f"{path.name} is cut off or damaged ({error}). Fetch it again.") from error


def hub_failure() -> str:
    """Say why the hub does not answer; "" if it answers.

    It is asked only once. Otherwise a missing file is tried five times, and an id that does not exist takes most of a
    minute. A name look-up has no time limit of its own, so another thread waits for it.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: queue.Queue[str] = queue.Queue()

    def call() -> None:
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PATIENCE)
            answers.put("")
        except Exception as error:  # whatever the network, a proxy or a certificate gets wrong
            answers.put(f"{type(error).__name__}: {error}")

    threading.Thread(target=call, daemon=True, name="hub").start()
    try:
        return answers.get(timeout=_PATIENCE)
    except queue.Empty:
        return f"no answer within {_PATIENCE:g} s"


def _fetch(name: str | Path, repository: str, file: str, revision: str | None) -> Path:
    """Fetch a file from the hub, or take it from the cache."""
    failure = hub_failure()
    try:
        return Path(
            huggingface_hub.hf_hub_download(repository, file, revision=revision, local_files_only=bool(failure))
        )
    except (OSError, ValueError) as error:
        raise _not_on_hub(name, failure, error) from error


def _cached(name: str, revision: str | None, failure: str) -> Path:
    """Find a model in the hub's cache on this machine."""
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise _not_on_hub(name, failure, error) from error


def _not_on_hub(name: str | Path, failure: str, error: Exception) -> UnsupportedModelError:
    """Say why a hub id cannot be loaded: the hub does not answer, or what it answers."""
    if not failure:
        return cannot_load(name, first_line(error))
    return cannot_load(
        name,
        "there is no such folder, the hub's cache on this machine does not hold it, and the hub cannot be asked "
        f"({failure}).",
    )


def hub_commit(path: Path) -> str | None:
    """Read the commit off a path in the hub's cache; None for other paths."""
    match = _SNAPSHOT.search(path.as_posix())
    return match and match[1]


def first_line(error: Exception) -> str:
    """Give the first line of a library's message, and the kind of error where the line says little by itself."""
    line = next(iter(str(error).strip().splitlines()), "").rstrip(" :")
    if line and isinstance(error, OSError | ValueError | RuntimeError | ImportError):
        return line
    return f"{type(error).__name__}: {line}".removesuffix(": ")
