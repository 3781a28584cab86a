"""Write the drawn parts of docs/how_it_is_built.md: the rooms and what they import, and the ways of a few calls.

`python -m tools.structure --page docs/how_it_is_built.md` writes them; a test compares the page with the code.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import semgrad_guard

PACKAGE = Path(semgrad_guard.__file__).parent
_PART = "<!-- {name} -->\n{text}\n<!-- /{name} -->"


def modules() -> dict[str, list[Path]]:
    """Give the modules of each room, `__init__` aside; a module beside the rooms is a room of its own."""
    rooms: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            rooms.setdefault(path.relative_to(PACKAGE).with_suffix("").parts[0], []).append(path)
    return rooms


def imports(rooms: dict[str, list[Path]]) -> dict[str, set[str]]:
    """Give the rooms that each room imports."""
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for room, paths in rooms.items():
        for path in paths:
            for target in _imported(ast.parse(path.read_text(encoding="utf-8"))):
                if target != room and target in rooms:
                    found[room].add(target)
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("semgrad_guard."):
            yield node.module.split(".")[1]


def picture(rooms: dict[str, list[Path]], edges: dict[str, set[str]]) -> str:
    """Draw the rooms, in Mermaid: an arrow for each import that no way over other rooms implies."""
    packages = [room for room in rooms if (PACKAGE / room).is_dir()]
    lines = ["```mermaid", "graph TD"]
    for room in packages:
        lines += [f"    {room} --> {target}" for target in sorted(_direct(room, edges, packages))]
    return "\n".join([*lines, "```"])


def _direct(room: str, edges: dict[str, set[str]], packages: list[str]) -> set[str]:
    targets = edges[room] & set(packages)
    implied = {far for near in targets for far in _reached(near, edges, packages)}
    return targets - implied


def _reached(room: str, edges: dict[str, set[str]], packages: list[str]) -> set[str]:
    near = edges[room] & set(packages)
    return near | {far for step in near for far in _reached(step, edges, packages)}


def table(rooms: dict[str, list[Path]]) -> str:
    """List every module with its number of lines and what it says of itself."""
    lines = ["| module | lines | what is in it |", "| --- | ---: | --- |"]
    for path in (path for paths in rooms.values() for path in paths):
        text = path.read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| `{path.relative_to(PACKAGE).as_posix()}` | {len(text.splitlines())} | {about} |")
    return "\n".join(lines)


def summary(rooms: dict[str, list[Path]]) -> str:
    """Say how many modules there are, and how long they are."""
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for paths in rooms.values() for path in paths]
    return f"{len(lengths)} modules; the median has {statistics.median(lengths):.0f} lines, the longest {max(lengths)}."
