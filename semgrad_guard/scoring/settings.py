"""How scores are computed: the settings that a scorer, a chat model and a profile share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.scoring.states import StateReading
from semgrad_guard.settings import Settings, shown

Reduction = Literal["mean", "sum"]
Norm = Literal["l1", "l2"]
Layers = Literal["upper-half", "all"] | Sequence[int]

_MOST = 10**9  # layers or tokens
_EXPECTED = "expected 'upper-half', 'all', or layer indices from 0 (embeddings) to"


def layer_indices(layers: Layers, count: int) -> tuple[int, ...]:
    """Give the layers as indices, for a model of that many decoder layers.

    Raises:
        ConfigurationError: an index is not one of the model's.
    """
    if layers == "upper-half":
        return tuple(range(count - max(count // 2, 1), count))
    if layers == "all":
        return tuple(range(count))
    if isinstance(layers, str) or not layers or not all(0 <= layer < count for layer in layers):
        raise ConfigurationError(f"layers={layers!r}: {_EXPECTED} {count - 1}.")
    return tuple(sorted(set(layers)))


def _checked_layers(layers: Any) -> Any:
    if layers in ("upper-half", "all"):
        return layers
    indices = tuple(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else ()
    if not indices or not all(_is_whole(index, least=0) for index in indices):
        raise ValueError(f"{_EXPECTED} the number of layers - 1")
    return indices


def _checked_position(position: Any) -> Any:
    if position is not None and not _is_whole(position, least=1):
        raise ValueError("expected 1 (last prompt token) or more")
    return position


def _is_whole(number: Any, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and least <= number <= _MOST


class ScoringSettings(Settings):
    """How scores are computed. A profile holds for exactly these settings.

    `token_position` is t*, counted from the prompt's end (1 = last token). None stands for the first token of the
    generation prompt, or the last token of the user's text where the chat template has no generation prompt.
    `layers` are the hidden states l that the gradient is taken at, of 0 (embeddings) to L - 1. "upper-half" stands for
    L - floor(L/2) to L - 1, as in the authors' code, and "all" for 0 to L - 1.
    `reduction` is the "sum" over response tokens (the paper's text, and what holds up on published models, see
    docs/real_models.md) or their "mean" (the authors' code).
    `norm` is "l1", the mean absolute entry, or "l2", the root mean square.
    `tau` is the temperature of HybridGrad's mixing weight e^(-mean entropy / tau), and `beta` weighs its ParaGrad term.
    `unweighted` computes SemGrad with w_t = 1 too, for another backward.
    `later` gives the gradients at the prompt tokens after t* too, which come with the same backward.
    `attention` reads attention weights for RAUQ too, where the model's attention can be watched.
    `states` gives components of hidden states too, which a calibration has chosen.

    Raises:
        ConfigurationError: a setting is unknown, or has a wrong type or value.
    """

    token_position: Annotated[int | None, BeforeValidator(_checked_position)] = None
    layers: Annotated[Literal["upper-half", "all"] | tuple[int, ...], BeforeValidator(_checked_layers)] = "upper-half"
    reduction: Reduction = "sum"
    norm: Norm = "l1"
    tau: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    beta: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    unweighted: bool = False
    later: bool = False
    attention: bool = False
    states: StateReading | None = None

    def changed(self, **settings: Any) -> Self:
        """Copy the settings with some changed; the new values are checked.

        Raises:
            ConfigurationError: a setting is unknown, or has a wrong type or value.
        """
        return type(self)(**dict(self) | settings)

    def resolved(self, count: int, position: int | None) -> Self:
        """Replace what stands for layers and for t* by the indices and the position that it stands for.

        Args:
            count: the model's number of decoder layers.
            position: t* where none is set; None where the tokenizer does not tell.

        Raises:
            ConfigurationError: the model has no such layer.
        """
        chosen = position if self.token_position is None else self.token_position
        layers = layer_indices(self.layers, count)
        if self.states is not None and not layers[0] <= min(self.states.layers) <= max(self.states.layers) <= count:
            raise ConfigurationError(
                f"states of the layers {', '.join(map(str, self.states.layers))}: expected layers from {layers[0]}, "
                f"the lowest with a gradient, to {count}."
            )
        return self.changed(layers=layers, token_position=chosen)


def gathered(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Gather the keywords that are settings of scoring under "scoring"; a keyword wins over what is there already.

    Raises:
        ConfigurationError: a setting of scoring has a wrong type or value.
    """
    rest = dict(settings)
    if "span" in rest:
        warnings.warn(
            "span= is layers= now; the old name goes with the next release.", DeprecationWarning, stacklevel=3
        )
        rest["layers"] = rest.pop("span")
    named = {name: rest.pop(name) for name in ScoringSettings.model_fields if name in rest}
    base = rest.pop("scoring", None) or ScoringSettings()
    if not isinstance(base, ScoringSettings):
        raise ConfigurationError(f"scoring={shown(base)}: expected a ScoringSettings, or its settings by their names.")
    return rest | {"scoring": base.changed(**named) if named else base}
