"""Write the drawn parts of docs/how_it_is_built.md: the rooms and what they import, and the ways of a few calls.

`make structure` writes them; a test compares with the code what follows from it alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from tools.moves import PACKAGE, QUESTION, moves


def modules() -> dict[str, list[Path]]:
    """Give the modules of each room, `__init__` aside; a module beside the rooms is a room of its own."""
    rooms: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            rooms.setdefault(path.relative_to(PACKAGE).with_suffix("").parts[0], []).append(path)
    return rooms


def imports(rooms: dict[str, list[Path]]) -> dict[str, set[str]]:
    """Give the rooms that each room imports."""
    edges: dict[str, set[str]] = {room: set() for room in rooms}
    for room, paths in rooms.items():
        for path in paths:
            for target in _imported(ast.parse(path.read_text(encoding="utf-8"))):
                if target != room and target in rooms:
                    edges[room].add(target)
    return edges


def _imported(node: ast.AST) -> Iterator[str]:
    """Give the rooms that code imports when it runs."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("semgrad_guard."):
        yield node.module.split(".")[1]
    for child in ast.iter_child_nodes(node):
        yield from _imported(child)


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
    """List every module with what it says of itself."""
    lines = ["| module | what is in it |", "| --- | --- |"]
    for path in (path for paths in rooms.values() for path in paths):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = about.split("\n\n")[0].replace("\n", " ")
        lines.append(f"| `{path.relative_to(PACKAGE).as_posix()}` | {first} |")
    return "\n".join(lines)


def way(calls: Iterable[tuple[str, str]]) -> str:
    """Tell of a call which files it enters, in that order, and how many moves from file to file it takes."""
    calls = list(calls)
    files = list(dict.fromkeys(file for _, file in calls))
    return f"{len(files)} files, {len(calls)} moves: {', '.join(f'`{file}`' for file in files)}."


def ways() -> dict[str, str]:
    """Follow one `invoke`, one `batch`, one HTTP request and one calibration through the package."""
    from fastapi.testclient import TestClient

    from semgrad_guard import Abstain, SemGradGuard
    from semgrad_guard.demo import embedded_model, embedded_profile, labelled_questions
    from semgrad_guard.serving.app import application
    from semgrad_guard.serving.local import LocalEngine
    from semgrad_guard.serving.worker import Worker

    guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[Abstain("no")])
    examples = [*labelled_questions("known")[:40], *labelled_questions("withheld")[:40]]
    asked = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}]}

    def request() -> None:
        with TestClient(application(LocalEngine(Worker(guard, name="demo")))) as client:
            client.post("/v1/chat/completions", json=asked)

    return {
        "invoke": way(moves(lambda: guard.invoke(QUESTION))),
        "batch": way(moves(lambda: guard.batch([QUESTION] * 4))),
        "request": way(moves(request)),
        "calibration": way(moves(lambda: guard.calibrated(examples, risk=0.3, delta=0.2, search=False))),
    }


def written_into(page: str, parts: Mapping[str, str]) -> str:
    """Put each part between its marks in a page."""
    for name, text in parts.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"\n<!-- /{name} -->")
        page = f"{before}{mark}{text}{end}{after}"
    return page


def drawn() -> dict[str, str]:
    """Draw what follows from the code alone."""
    rooms = modules()
    return {"picture": picture(rooms, imports(rooms)), "modules": table(rooms)}


def main(page: Annotated[Path, typer.Option(help="Page to write the parts into.")]) -> None:
    """Draw the rooms, list the modules, and follow a few calls through them."""
    text = page.read_text(encoding="utf-8")
    page.write_text(written_into(text, drawn() | ways()), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
