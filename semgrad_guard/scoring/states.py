"""Hidden states as features: what the pass holds anyway, projected on a few directions that a profile keeps.

At three places of the prompt and the answer (see `Pass.states`) and in a few layers, a hidden state is centred and
projected on its main components over the answers of the calibration. Nothing else of a text is kept. A component has no
direction of its own: labels decide what it means.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from semgrad_guard.settings import Settings

PLACES = 3  # the first token of the answer is predicted there, the last but one, and the last
_DEPTHS = (0.67, 1.0)


def state_layers(count: int) -> tuple[int, ...]:
    """Give the hidden states to read, by index, for a model of so many decoder layers."""
    return tuple(sorted({max(1, round(depth * count)) for depth in _DEPTHS}))


class StateReading(Settings):
    """The hidden states that are read, and the components that each is projected on.

    `layers` are the indices l of the hidden states h^(l). `components` holds, for each place and layer, the mean and K
    directions, [3, len(layers), 1 + K, `size`] in float16, packed and written in base64. Directions are scaled so that
    a component has variance 1 over the answers that they were computed from.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    size: int = Field(ge=1)
    components: str = Field(repr=False)

    @model_validator(mode="after")
    def _can_be_unpacked(self) -> Self:
        try:
            held = len(zlib.decompress(base64.b64decode(self.components, validate=True)))
        except (ValueError, zlib.error) as error:
            raise ValueError(f"components cannot be unpacked: {error}") from None
        row = 2 * PLACES * len(self.layers) * self.size
        if held % row or held < 2 * row:
            raise ValueError(f"components hold {held} bytes; expected a multiple of {row}, at least twice that")
        if not np.isfinite(self._unpacked).all():
            raise ValueError("components hold a number that is not finite")
        return self

    @classmethod
    def fit(cls, states: NDArray[np.floating[Any]], layers: Sequence[int], count: int) -> Self:
        """Find the main components of the states of some answers.

        Args:
            states: [n, 3, len(layers), D].
            layers: their indices.
            count: directions at each place and layer, fewer where there are not as many answers.
        """
        count = max(1, min(count, len(states) - 1, states.shape[-1]))
        kept = np.zeros((*states.shape[1:3], 1 + count, states.shape[-1]))
        for place in np.ndindex(states.shape[1:3]):
            values = states[(slice(None), *place)].astype(np.float64)
            kept[place][0] = mean = values.mean(0)
            _, spread, directions = np.linalg.svd(values - mean, full_matrices=False)
            scale = spread[:count] / np.sqrt(len(values))
            kept[place][1:] = np.where(scale > 1e-6 * scale.max(initial=1e-30), 1.0 / np.maximum(scale, 1e-12), 0.0)[
                :, None
            ] * _with_fixed_sign(directions[:count])
        packed = base64.b64encode(zlib.compress(kept.astype(np.float16).tobytes(), 9)).decode()
        return cls(layers=tuple(layers), size=states.shape[-1], components=packed)

    @property
    def count(self) -> int:
        """How many numbers an answer gets: components times places times layers."""
        return int(np.prod(self._unpacked.shape[:2])) * (self._unpacked.shape[2] - 1)

    def project(self, states: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Project states, [n, 3, len(layers), D], on the components: [n, `count`], the first components first."""
        centred = states.astype(np.float64) - self._unpacked[:, :, 0]
        projected = np.einsum("npld,plkd->nkpl", centred, self._unpacked[:, :, 1:])
        return projected.reshape(len(states), -1)

    @cached_property
    def _unpacked(self) -> NDArray[np.float64]:
        raw = np.frombuffer(zlib.decompress(base64.b64decode(self.components)), dtype=np.float16)
        return raw.reshape(PLACES, len(self.layers), -1, self.size).astype(np.float64)


def _with_fixed_sign(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn each direction so that its largest entry is positive: a decomposition leaves that open."""
    largest = np.abs(directions).argmax(1)
    return directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
