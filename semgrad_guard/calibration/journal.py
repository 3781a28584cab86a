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
    """Lines of a kind behind the setting they were made with.

    `done` holds what runs before have left, by key; `others` counts lines of other settings in the same file.
    """

    def __init__(
        self,
        path: Path,
        setting: dict[str, Any],
        kind: TypeAdapter[_Line],
        key: Callable[[_Line], str],
        *,
        shared: bool = False,
    ) -> None:
        """Open a journal, or begin one; a last line that was cut off is dropped.

        Args:
            path: JSON lines; one that holds a setting stands before those made with it.
            setting: what must be the same for a run to go on.
            kind: of the other lines.
            key: what a line is about.
            shared: keep lines of several settings in one file, instead of refusing a file with another setting.

        Raises:
            DataError: the file cannot be read or written, holds something else, or another setting and is not shared.
        """
        self.path, self._kind, self._key = path, kind, key
        self.done: dict[str, _Line] = {}
        self.others = 0
        wanted = json.loads(json.dumps(setting))
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            current = self._read(text[: text.rfind("\n") + 1], wanted, shared)
            if current != wanted or not text.endswith("\n"):
                header = "" if current == wanted else json.dumps({"setting": setting}) + "\n"
                path.write_text(text[: text.rfind("\n") + 1] + header, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"Cannot use {path} to remember answers: {error}") from error

    def _read(self, text: str, wanted: Any, shared: bool) -> Any:
        """Sort the lines by setting, and give the last setting in the file."""
        current: Any = None
        try:
            for line in text.splitlines():
                plain = json.loads(line)
                if "setting" in plain:
                    current = plain["setting"]
                    if current != wanted and not shared:
                        raise DataError(
                            f"{self.path} was written with {current}; now it is {wanted}. Choose another folder, or "
                            "move it away."
                        )
                elif current is None:
                    raise KeyError("setting")
                elif current == wanted:
                    item = self._kind.validate_json(line)
                    self.done[self._key(item)] = item
                else:
                    self.others += 1
        except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
            raise DataError(
                f"{self.path} does not hold results of this version: {error}. Move it away to begin anew."
            ) from error
        return current

    def add(self, line: _Line) -> None:
        """Write a line down before anything else is done."""
        with self.path.open("ab") as file:
            file.write(self._kind.dump_json(line) + b"\n")
        self.done[self._key(line)] = line
