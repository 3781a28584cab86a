"""Hidden states as features: what the pass holds anyway, projected on a few directions that a profile keeps.

At three places of the prompt and the answer (see `Pass.states`), in two layers, a hidden state is brought to unit root
mean square, centred, and projected on its main components over the answers of the calibration. Nothing else of a text
is kept. A component has no direction of its own: labels decide what it means.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from semgrad_guard.settings import Settings

PLACES = 3  # where the answer's first token is predicted, the last but one, and the last
_DEPTHS = (0.67, 1.0)
_ROUNDING = 1e-4  # states that have a root mean square of 1 and differ by less do so by chance


def state_layers(count: int) -> tuple[int, ...]:
    """Give the hidden states to read, by index, for a model of so many decoder layers."""
    return tuple(sorted({max(1, round(depth * count)) for depth in _DEPTHS}))


def _as_tuple(layers: Any) -> Any:
    """Take the list that a file has."""
    return tuple(layers) if isinstance(layers, list) else layers


class StateReading(Settings):
    """The hidden states that are read, and the components that each is projected on.

    `layers` are the indices l of the hidden states h^(l), each of `size` numbers. `components` holds for each place and
    layer the mean, K directions, and a row whose first number is the spread of what the directions leave over:
    [3, len(layers), K + 2, `size`] in float16, packed and written in base64. A direction is scaled so that its
    component has variance 1 over the answers that it comes from.
    """

    layers: Annotated[tuple[int, ...], BeforeValidator(_as_tuple)] = Field(min_length=1)
    size: int = Field(ge=1)
    components: str = Field(repr=False)

    @model_validator(mode="after")
    def _can_be_unpacked(self) -> Self:
        try:
            held = len(zlib.decompress(base64.b64decode(self.components, validate=True)))
        except (ValueError, zlib.error) as error:
            raise ValueError(f"components cannot be unpacked: {error}") from None
        row = 2 * PLACES * len(self.layers) * self.size
        if held % row or held < 3 * row:
            raise ValueError(f"components hold {held} bytes; expected a multiple of {row}, at least three times that")
        if not np.isfinite(self._unpacked).all():
            raise ValueError("components hold a number that is not finite")
        return self

    @classmethod
    def fit(cls, states: NDArray[np.floating[Any]], layers: Sequence[int], count: int) -> Self:
        """Find the main components of the states of some answers.

        Args:
            states: [n, 3, len(layers), D].
            layers: their indices.
            count: directions K at each place and layer; fewer where there are not as many answers.
        """
        count = max(1, min(count, len(states) - 1, states.shape[-1]))
        unit = _unit(states)
        kept = np.zeros((*states.shape[1:3], count + 2, states.shape[-1]))
        for place in np.ndindex(states.shape[1:3]):
            values = unit[(slice(None), *place)]
            mean = values.mean(0)
            _, spread, directions = np.linalg.svd(values - mean, full_matrices=False)
            scale = spread / np.sqrt(len(values))
            told = scale[:count] > _ROUNDING
            kept[place][0] = mean
            lengths = np.where(told, 1.0 / np.maximum(scale[:count], _ROUNDING), 0.0)
            kept[place][1:-1] = lengths[:, None] * _with_fixed_sign(directions[:count])
            kept[place][-1, 0] = max(float(np.sqrt((scale[count:] ** 2).sum())), 1e-3)
        packed = base64.b64encode(zlib.compress(kept.astype(np.float16).tobytes(), 9)).decode()
        return cls(layers=tuple(layers), size=states.shape[-1], components=packed)

    @property
    def fingerprint(self) -> str:
        """A digest that tells readings apart: what is held is too long to be shown."""
        return hashlib.sha256(f"{self.layers} {self.size} {self.components}".encode()).hexdigest()[:16]

    @property
    def count(self) -> int:
        """How many numbers an answer gets: components times places times layers."""
        return PLACES * len(self.layers) * (len(self._unpacked[0, 0]) - 2)

    def project(self, states: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Project states, [n, 3, len(layers), D], on the components: [n, `count`], first components first."""
        projected = np.einsum("npld,plkd->nkpl", self._centred(states), self._unpacked[:, :, 1:-1])
        rows: NDArray[np.float64] = projected.reshape(len(states), -1)
        return rows

    def distance(self, states: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Give how far states lie from those that the components come from, [n], >= 0; about 1 for their like.

        At the last token before the answer, it is the root mean square of the components and of what they leave over,
        each over its spread. The answer itself does not count: a new kind of question should show before it is given.
        """
        centred = self._centred(states)[:, 0]
        directions, spread = self._unpacked[0, :, 1:-1], self._unpacked[0, :, -1, 0]
        components = np.einsum("nld,lkd->nlk", centred, directions)
        lengths = (directions**2).sum(-1)
        inside = (components**2 / np.where(lengths > 0, lengths, 1.0)).sum(-1)
        rest = np.sqrt(np.maximum((centred**2).sum(-1) - inside, 0.0)) / spread
        squares = np.concatenate([components**2, rest[..., None] ** 2], axis=-1)
        distance: NDArray[np.float64] = np.sqrt(squares.mean((-2, -1)))
        return distance

    def _centred(self, states: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        return _unit(states) - self._unpacked[:, :, 0]

    @property
    def _unpacked(self) -> NDArray[np.float64]:
        return _unpacked(self.components, len(self.layers), self.size)


@lru_cache(maxsize=8)
def _unpacked(components: str, layers: int, size: int) -> NDArray[np.float64]:
    """Unpack what a profile holds; not kept with the reading, which is compared with others."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(components)), dtype=np.float16)
    return raw.reshape(PLACES, layers, -1, size).astype(np.float64)


def _unit(states: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Bring states to unit root mean square: their length differs from layer to layer and says little."""
    wide = states.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(np.sqrt((wide**2).mean(-1, keepdims=True)), 1e-12)
    return unit


def _with_fixed_sign(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn each direction so that its largest entry is positive: a decomposition leaves that open."""
    largest = np.abs(directions).argmax(1)
    fixed: NDArray[np.float64] = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    return fixed
