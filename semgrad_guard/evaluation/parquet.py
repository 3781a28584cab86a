"""Results as Parquet: a file holds a part of the questions, is there whole or not at all, and knows its setting."""

from __future__ import annotations

import hashlib
import json
import os
import types
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from semgrad_guard.errors import DataError
from semgrad_guard.evaluation.run import Result
from semgrad_guard.extras import needs

if TYPE_CHECKING:
    import pyarrow

_UNFINISHED = ".unfinished"
_SETTING = b"semgrad_guard.setting"


def write_part(folder: Path, results: Sequence[Result], setting: dict[str, Any]) -> Path:
    """Write results into a file of a folder, named after their questions, and give its path.

    It gets its name when it is finished, so that whoever is killed meanwhile leaves nothing that could be taken for it.
    """
    pa, pq = _pyarrow()
    rows = [result.model_dump() for result in results]
    schema = schema_of(Result).with_metadata({_SETTING: json.dumps(setting).encode()})
    name = hashlib.sha256("\0".join(result.query for result in results).encode()).hexdigest()[:32]
    unfinished = folder / f"{name}.{uuid.uuid4().hex}{_UNFINISHED}"
    with unfinished.open("wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
        file.flush()
        os.fsync(file.fileno())
    return unfinished.replace(folder / f"{name}.parquet")


def read_parts(folder: Path, setting: dict[str, Any]) -> Iterator[Result]:
    """Read the results of all finished parts.

    Raises:
        DataError: a part was written with another setting, or is damaged.
    """
    for path in sorted(folder.glob("*.parquet")):
        yield from read_part(path, setting)


def read_part(path: Path, setting: dict[str, Any]) -> list[Result]:
    """Read the results of one part.

    Raises:
        DataError: it was written with another setting, or is damaged.
    """
    pa, pq = _pyarrow()
    try:
        table = pq.read_table(path)
        found = json.loads((table.schema.metadata or {})[_SETTING])
        results = [Result.model_validate(row) for row in table.to_pylist(maps_as_pydicts="strict")]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:  # pydantic's and JSON's errors are ValueErrors
        raise DataError(
            f"{path} does not hold results of this version: {error}. Move it away to have its questions answered anew."
        ) from error
    if found != json.loads(json.dumps(setting)):
        raise DataError(
            f"{path} was written with {found}; now it is {setting}. Choose another folder, or move it away."
        )
    return results


def clear_unfinished(folder: Path) -> None:
    """Remove what workers left that were killed while writing."""
    for path in folder.glob(f"*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def schema_of(record: type[BaseModel]) -> pyarrow.Schema:
    """Give the Arrow schema of a record, field by field, so that a new field cannot be forgotten."""
    pa, _ = _pyarrow()
    return pa.schema([(name, _arrow(pa, field.annotation)) for name, field in record.model_fields.items()])


def _arrow(pa: Any, kind: Any) -> Any:
    plain = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    if kind in plain:
        return plain[kind]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return pa.struct([(name, _arrow(pa, field.annotation)) for name, field in kind.model_fields.items()])
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(_arrow(pa, inner[0]))
    if origin is dict:
        return pa.map_(pa.string(), _arrow(pa, inner[1]))
    if origin in (Union, types.UnionType):  # a value or None: every column may be empty
        (value,) = (one for one in inner if one is not types.NoneType)
        return _arrow(pa, value)
    raise TypeError(f"{kind} has no place in Parquet; expected texts, numbers, tuples, dictionaries and records.")


def _pyarrow() -> tuple[Any, Any]:
    with needs("ray", "Results in Parquet need pyarrow"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet
