"""Results as Parquet: a file holds a part of the questions, is whole or not there at all, and names its setting."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import types
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import BaseModel

from semgrad_guard.calibration.examples import Example
from semgrad_guard.cluster import connected
from semgrad_guard.errors import ConfigurationError, DataError, needs
from semgrad_guard.evaluation.run import Answerer, Result

if TYPE_CHECKING:
    import pyarrow


_UNFINISHED = ".unfinished"
_SETTING = b"semgrad_guard.setting"


def write_part(folder: Path, results: Sequence[Result], setting: dict[str, Any]) -> Path:
    """Write results into a file of a folder, named after their questions, and give its path.

    The file gets its name when it is finished, so that a process that is killed leaves nothing that looks like one.
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
        written = json.loads((table.schema.metadata or {})[_SETTING])
        results = [Result.model_validate(row) for row in table.to_pylist(maps_as_pydicts="strict")]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:  # pydantic's and JSON's errors are ValueErrors
        raise DataError(
            f"{path} does not hold results of this version: {error}. Move it away to have its questions answered anew."
        ) from error
    if written != json.loads(json.dumps(setting)):
        raise DataError(
            f"{path} was written with {written}; now it is {setting}. Choose another folder, or move it away."
        )
    return results


def clear_unfinished(folder: Path) -> None:
    """Remove the unfinished files of killed workers."""
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


Prepare = Callable[[torch.device], Answerer]
"""Loads a model onto a device and gives what answers with it; is sent to the processes, so it must be picklable."""


@dataclass(frozen=True)
class RayPool:
    """Processes that answer in place of this one; an `Elsewhere` of `evaluate`.

    Each loads the model once and writes its answers part by part into `folder`, which all machines must see. A finished
    part is never answered again. A process that dies is replaced, and its part is done anew.

    Args:
        prepare: loads what answers.
        folder: where the parts go, a Parquet file each.
        actors: how many processes.
        gpus: how many GPUs each holds; 0.25 lets four share one, 0 keeps to the CPU.
        part_size: questions per part: the most that a killed process has to do again.
    """

    prepare: Prepare
    folder: Path
    actors: int = 2
    gpus: float = 0.0
    part_size: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigurationError: a number is out of range.
        """
        if not (self.actors >= 1 and self.gpus >= 0 and self.part_size >= 1):
            raise ConfigurationError(
                f"actors={self.actors}, gpus={self.gpus}, part_size={self.part_size}: expected at least one actor, "
                "gpus >= 0 and at least one question per part."
            )

    def __call__(self, examples: Sequence[Example], setting: dict[str, Any]) -> Iterator[Result]:
        """Give the results of all questions, those first that are there already.

        Raises:
            DataError: a part in the folder was written with another setting, or is damaged.
            ConfigurationError: Ray is not installed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_unfinished(self.folder)
        missing = {example.query: example for example in examples}
        for result in read_parts(self.folder, setting):
            if missing.pop(result.query, None) is not None:
                yield result
        if missing:
            with connected(cpus=self.actors):
                yield from self._answered(list(missing.values()), setting)

    def _answered(self, examples: Sequence[Example], setting: dict[str, Any]) -> Iterator[Result]:
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False  # `evaluate` shows one of its own
        # A row is a part, and a batch a row: Ray may cut and join blocks as it likes, parts stay what they are.
        starts, lines = range(0, len(examples), self.part_size), [example.model_dump_json() for example in examples]
        rows = [{"examples": lines[start : start + self.part_size]} for start in starts]
        written = ray.data.from_items(rows).map_batches(
            _Actor,
            fn_constructor_args=(self.prepare, str(self.folder.resolve()), setting, self.gpus > 0),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=self.actors),
            num_cpus=1,
            num_gpus=self.gpus,
        )
        for row in written.iter_rows():
            yield from read_part(Path(row["part"]), setting)


class _Actor:
    """One of the processes: loads the model, then answers part after part."""

    def __init__(self, prepare: Prepare, folder: str, setting: dict[str, Any], on_gpu: bool) -> None:
        self._answer = prepare(torch.device("cuda" if on_gpu else "cpu"))
        self._folder, self._setting = Path(folder), setting

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        parts = []
        for lines in batch["examples"]:
            results = [self._answer(Example.model_validate_json(line)) for line in lines]
            parts.append(str(write_part(self._folder, results, self._setting)))
        return {"part": parts}
