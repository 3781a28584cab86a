"""Foreign data, such as a document's metadata, as plain data that JSON, databases and checkpoints can hold."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator
from pydantic_core import to_jsonable_python

CUT = "\N{HORIZONTAL ELLIPSIS}"  # stands where something was left out
_DEEPEST, _MOST, _LONGEST = 16, 10_000, 100_000  # levels, values in all, characters of a text
_LARGEST = 2**63  # integers that binary formats hold


def plain(value: object) -> Any:
    """Make any value plain: None, booleans, numbers, texts, and lists and dictionaries of these.

    Arrays and tensors become lists, dates and paths texts, numbers that are not finite and integers of more than 64
    bits texts too. Any other object becomes its own text, or the name of its class where it has none. Keys become
    texts. Whatever is nested too deeply, contains itself, or is too much is cut, with an ellipsis in its place. Nothing
    is raised.
    """
    return _Reader().read(value, 0)


def sound_text(text: str) -> str:
    """Replace halves of surrogate pairs, which no encoding has."""
    return text.encode("utf-8", "replace").decode()


def _short(text: str) -> str:
    sound = sound_text(text[: _LONGEST + 1])
    return sound if len(sound) <= _LONGEST else sound[:_LONGEST] + CUT


def _sound(text: object) -> object:
    return sound_text(text) if isinstance(text, str) else text


def _plain(value: object) -> object:
    return plain(value) if isinstance(value, Mapping) else value


# Fields of models, made sound and plain before they are checked.
SoundText = Annotated[str, BeforeValidator(_sound)]
PlainDict = Annotated[dict[str, Any], BeforeValidator(_plain)]


class _Reader:
    """Reads one value; counts what it has read, so that no structure takes more than it may."""

    def __init__(self) -> None:
        self._left = _MOST

    def read(self, value: object, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            return CUT
        try:
            return self._scalar(value) if isinstance(value, _SCALARS) else self._read(value, depth)
        except Exception:  # a foreign object may raise anything whenever it is looked at
            return f"<{type(value).__name__}>"

    def _scalar(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            return self._scalar(value.value) if isinstance(value.value, _SCALARS) else str(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, int):
            return int(value) if -_LARGEST <= value < _LARGEST else _short(str(value))
        return _short(str(value) if isinstance(value, str) else bytes(value).decode("utf-8", "backslashreplace"))

    def _read(self, value: Any, depth: int) -> Any:
        if isinstance(value, Enum):
            return self.read(value.value, depth + 1)
        if isinstance(value, BaseModel):
            return self._mapping(dict(value), depth)
        if is_dataclass(value) and not isinstance(value, type):
            return self._mapping({field.name: getattr(value, field.name, None) for field in fields(value)}, depth)
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, list | tuple | Set | deque | range):
            return self._items(value, depth)
        if hasattr(value, "tolist") and hasattr(value, "shape"):  # NumPy, PyTorch, JAX, pandas
            many = math.prod(value.shape) > _MOST
            return (
                f"<{type(value).__name__} of shape {tuple(value.shape)}>" if many else self.read(value.tolist(), depth)
            )
        if isinstance(value, Iterator):  # reading it would use it up, and might not end
            return f"<{type(value).__name__}>"
        known = to_jsonable_python(value, fallback=_shown, inf_nan_mode="strings")
        return _short(known) if isinstance(known, str) else self.read(known, depth + 1)

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, inner in value.items():
            if self._left < 0:
                entries[CUT] = CUT
                break
            entries[key if type(key) is str and key.isascii() else _key(key)] = self.read(inner, depth + 1)
        return entries

    def _items(self, value: Any, depth: int) -> list[Any]:
        values = []
        for inner in value:
            values.append(self.read(inner, depth + 1))
            if self._left < 0:
                break
        return values


_SCALARS = (type(None), bool, int, float, str, bytes, bytearray, memoryview)


def _key(key: object) -> str:
    return _short(key) if isinstance(key, str) else str(plain(key))


def _shown(value: object) -> str:
    """Show an object by its own text; one that has none would show its place in memory."""
    kind = type(value)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        return f"<{kind.__name__}>"
    return str(value)
