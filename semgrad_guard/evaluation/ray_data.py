"""Questions answered by a pool of processes on Ray Data, on one machine or many; the extra `ray`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semgrad_guard.calibration.examples import Example
from semgrad_guard.cluster import connected
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.evaluation.parquet import clear_unfinished, read_part, read_parts, write_part
from semgrad_guard.evaluation.run import Answerer, Result

Prepare = Callable[[torch.device], Answerer]
"""Loads a model onto a device and gives what answers with it; is sent to the processes, so it must be picklable."""


@dataclass(frozen=True)
class RayPool:
    """Processes that answer in place of this one; an `Elsewhere` of `evaluate`.

    Each loads the model once and writes what it has answered part by part into `folder`, which all machines must see.
    A part that is there is not answered again, whoever is killed; a process that dies is replaced and its part begun
    anew.

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
