"""Directional derivatives from both sides: <J^T v, u> by the backward, and <v, J u> by two forward passes.

They agree where the backward belongs to the forward. They differ where it gives zeros or something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Steps relative to each entry, and the relative error allowed. Half precision drowns small steps in its rounding.
_FINE_STEPS, _FINE_ERROR = (1e-3, 1e-2), 0.02
_COARSE_STEPS, _COARSE_ERROR = (0.05, 0.1, 0.2), 0.25
_ROUNDED = 0.05  # what is linear agrees better than this over the widest of them, unless it rounds more coarsely
# Relative to the root mean square of a vector. What rounds its inputs to 8 bits is a staircase, and only across many
# of its steps does a difference mean anything.
_WIDE_STEPS, _WIDE_ERROR = (0.3, 1.0), 0.3
_TRUST = 4.0  # so many times closer to each other than to the gradient: the gradient is wrong, not the difference
_FLOOR = 0.1  # entries near zero change by this much of the mean entry

Outcome = Literal["agrees", "rounds", "fails"]
Stage = list[Tensor]


class Trial:
    """A computation in stages, from its inputs to its outputs, with a random change u and random weights v.

    The change reaches every stage, and so does the gradient of the weighted outputs. Their product is the same at each
    stage, to first order.
    """

    def __init__(
        self, compute: Callable[[Stage], list[Stage]], inputs: Stage, draw: torch.Generator, *, linear: bool = False
    ) -> None:
        """Run the computation with gradients.

        Args:
            compute: gives the stages after the inputs; the last are the outputs.
            inputs: floating tensors.
            draw: draws u and v, on the CPU.
            linear: the computation is linear but for its roundings, so that wide steps may be taken.
        """
        self._compute, self._inputs, self._draw, self._linear = compute, inputs, draw, linear
        self._half = any(value.dtype.itemsize < 4 for value in inputs)
        self._choices = _Choices()
        leaves = [value.detach().clone().requires_grad_() for value in inputs]
        with self._choices:
            stages = [leaves, *compute([leaf.clone() for leaf in leaves])]
        weights = [self._normal(output) for output in stages[-1]]
        self._gradients = [*_gradients(stages, weights), weights]
        self._directions = [self._normal(value) for value in inputs]
        self._rows = math.gcd(*(value.shape[0] if value.ndim > 1 else 1 for stage in stages for value in stage))

    def outcomes(self) -> list[Outcome]:
        """Compare both sides at each step between stages: they agree, agree but for rounding, or fail."""
        pairs = range(len(self._gradients) - 1)
        silent = [pair for pair in pairs if not any(bool(value.any()) for value in self._gradients[pair])]
        decided: dict[int, Outcome] = {}
        if silent:  # no gradient is right only where no change, however large, comes through
            products = self._products(_WIDE_STEPS[-1], wide=True)
            decided = {pair: "fails" if bool(products[pair + 1].any()) else "agrees" for pair in silent}
        fine: list[list[Tensor]] = []
        if not self._half:
            fine = [self._decide(decided, step, _FINE_ERROR) for step in _FINE_STEPS if len(decided) < len(pairs)]
        for pair in pairs if len(fine) == len(_FINE_STEPS) else ():
            if pair not in decided and _trustworthy([(products[pair], products[pair + 1]) for products in fine]):
                decided[pair] = "fails"
        for step in _COARSE_STEPS[-1:] if self._linear else _COARSE_STEPS:
            if len(decided) < len(pairs):
                self._decide(decided, step, _COARSE_ERROR)
        for step in _WIDE_STEPS if self._linear else ():
            if len(decided) < len(pairs):
                self._decide(decided, step, _WIDE_ERROR, wide=True)
        return [decided.get(pair, "fails") for pair in pairs]

    def reached(self) -> list[Outcome]:
        """Check each step only for a gradient that is finite and not all zero.

        Many roundings on the way drown all other differences.
        """
        return ["agrees" if _is_something(stage) else "fails" for stage in self._gradients[:-1]]

    def _decide(self, decided: dict[int, Outcome], step: float, allowed: float, *, wide: bool = False) -> list[Tensor]:
        products = self._products(step, wide=wide)
        for pair, (before, after) in enumerate(pairwise(products)):
            if pair not in decided and (distance := _distance(before, after)) <= allowed:
                decided[pair] = "rounds" if self._linear and distance > _ROUNDED else "agrees"
        return products

    def _products(self, step: float, *, wide: bool = False) -> list[Tensor]:
        """Give <gradient, change per unit of the step> at each stage, one number per row of the batch."""
        scales = [_root_mean_square(value) if wide else _entries(value) for value in self._inputs]
        reached: list[list[Stage]] = []
        for signed in (step, -step):
            changed = [
                (value + signed * scale * direction).to(value.dtype)
                for value, scale, direction in zip(self._inputs, scales, self._directions, strict=True)
            ]
            with torch.no_grad(), self._choices.again():
                reached.append([changed, *self._compute([value.clone() for value in changed])])
        return [
            torch.stack([self._product(gradient, up, down) for gradient, up, down in zip(*stages, strict=True)])
            .sum(0)
            .div(2 * step)
            for stages in zip(self._gradients, *reached, strict=True)
        ]

    def _product(self, gradient: Tensor, up: Tensor, down: Tensor) -> Tensor:
        product = gradient.cpu().double() * (up.cpu().double() - down.cpu().double())
        return product.reshape(self._rows, -1).sum(-1)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._draw).to(like.device, like.dtype)


class _Choices(TorchFunctionMode):
    """Remembers the choice of experts, so that a small change does not choose others: derivatives end there."""

    def __init__(self) -> None:
        super().__init__()
        self._chosen: list[Tensor] = []
        self._next: int | None = None

    def again(self) -> _Choices:
        """Choose as the first time."""
        self._next = 0
        return self

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function not in (torch.topk, Tensor.topk):
            return result
        if self._next is None:
            self._chosen.append(result.indices)
            return result
        chosen = self._chosen[self._next] if self._next < len(self._chosen) else result.indices
        self._next += 1
        if chosen.shape != result.indices.shape:
            return result
        values = args[0] if args else (kwargs or {})["input"]
        dimension = (kwargs or {}).get("dim", args[2] if len(args) > 2 else -1)
        return torch.return_types.topk((values.gather(dimension, chosen), chosen))


def _gradients(stages: list[Stage], weights: Stage) -> list[Stage]:
    """Pull the weights at the last stage back to the others; zeros where no gradient comes."""
    places = [place for place, output in enumerate(stages[-1]) if output.requires_grad]
    reachable = [value for stage in stages[:-1] for value in stage if value.requires_grad]
    by_value: dict[int, Tensor] = {}
    if places:
        outputs, at_outputs = ([stage[place] for place in places] for stage in (stages[-1], weights))
        pulled: tuple[Tensor | None, ...]
        try:
            pulled = torch.autograd.grad(outputs, reachable, at_outputs, allow_unused=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # "derivative for ... is not implemented", or whatever a kernel's own backward raises
            pulled = (None,) * len(reachable)
        pairs = zip(reachable, pulled, strict=True)
        by_value = {id(value): gradient for value, gradient in pairs if gradient is not None}
    return [[by_value.get(id(value), torch.zeros_like(value)).detach() for value in stage] for stage in stages[:-1]]


def _is_something(gradients: Stage) -> bool:
    """Tell whether gradients are finite and not all zero."""
    return all(bool(value.isfinite().all()) for value in gradients) and any(bool(value.any()) for value in gradients)


def _distance(one: Tensor, other: Tensor) -> float:
    """Give the relative distance of two vectors; 0 if both are zero, infinity if one is not finite."""
    largest = max(float(one.norm()), float(other.norm()))
    if largest == 0.0:
        return 0.0
    distance = float((one - other).norm()) / largest
    return distance if math.isfinite(distance) else math.inf


def _trustworthy(sides: list[tuple[Tensor, Tensor]]) -> bool:
    """Tell whether two differences, taken with different steps, agree far better than with the gradient."""
    (_, one), (_, other) = sides
    return _TRUST * _distance(one, other) < min(_distance(before, after) for before, after in sides)


def _entries(value: Tensor) -> Tensor:
    return value.abs() + _FLOOR * value.abs().mean(-1, keepdim=True)


def _root_mean_square(value: Tensor) -> Tensor:
    return value.float().square().mean(-1, keepdim=True).sqrt().to(value.dtype)
