"""Finished work, one line of a file each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from semgrad_guard.errors import DataError

_Line = TypeVar("_Line")


class Journal(Generic[_Line]):
    """Lines of a kind behind the setting they were made with; `done` holds what a run before has left, by key."""

    def __init__(
        self, path: Path, setting: dict[str, Any], kind: TypeAdapter[_Line], key: Callable[[_Line], str]
    ) -> None:
        """Open a journal, or begin one; a last line that was cut off is dropped.

        Args:
            path: JSON lines; the first holds the setting.
            setting: what must be the same for a run to go on.
            kind: of the other lines.
            key: what a line is about.

        Raises:
            DataError: the file holds lines of another setting, or something else.
        """
        self.path, self._kind, self._key = path, kind, key
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if not whole:
            whole = json.dumps({"setting": setting}) + "\n"
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        first, *lines = whole.splitlines()
        try:
            found = json.loads(first)["setting"]
            self.done = {key(line): line for line in map(kind.validate_json, lines)}
        except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
            raise DataError(
                f"{path} does not hold results of this version: {error}. Move it away to begin anew."
            ) from error
        if found != json.loads(json.dumps(setting)):
            raise DataError(
                f"{path} was written with {found}; now it is {setting}. Choose another folder, or move it away."
            )

    def add(self, line: _Line) -> None:
        """Write a line down before anything else is done."""
        with self.path.open("ab") as file:
            file.write(self._kind.dump_json(line) + b"\n")
        self.done[self._key(line)] = line
