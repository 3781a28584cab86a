"""Gradients checked by number: the backward is compared with what a small change of the input does.

torch marks the output of a kernel without a backward, as many quantised ones, as differentiable all the same, and its
gradient is zero. The residual stream goes round such a module, so that no score looks wrong: only a number shows it.

Each module inside the decoder is tried by itself, on its own inputs from a few tokens, so that the error can name it. A
change of the embeddings, followed through the layers, tries what stands between the modules. The cost is about that of
fifteen forward passes over the 24 tokens of the probe.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from semgrad_guard.errors import UnsupportedModelError
from semgrad_guard.model.replay import decoder_layers, mirror

_ROWS, _COLUMNS = 8, 3
_STRIDE = 7919  # a prime: the tokens of the probe lie all over the vocabulary
_NAMES = 3


def check_gradients(model: PreTrainedModel) -> None:
    """Refuse a model whose gradients are not those of its forward pass, in whole or in part.

    Call it after a forward pass without gradients: some kernels repack their weights in the first one and have no
    backward from then on.

    Raises:
        UnsupportedModelError: naming the modules at fault.
    """
    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*autograd kernel was not registered")  # that is what we are about to tell
        probe = _Probe(model)
        try:
            probe.try_modules()
            probe.try_head()
            probe.try_layers()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be run with gradients: {type(error).__name__}: {error}"
            ) from error
    failed = probe.failed()
    if failed:
        more = f" and {len(failed) - _NAMES} more" if len(failed) > _NAMES else ""
        raise UnsupportedModelError(
            f"Gradients do not pass {', '.join(failed[:_NAMES])}{more} in {type(model).__name__}: the backward gives "
            "something else than a small change of the input does, so the scores would be wrong. Load the model "
            "without quantisation, or with kernels that have a backward."
        )


class _Probe:
    """Tries the modules of a model on their own inputs from a few tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._decoder = model, model.get_decoder()
        self._name = _name(model, self._decoder)
        self._draw = torch.Generator().manual_seed(0)
        self._failed: dict[str, str] = {}
        self._rounding: set[type[nn.Module]] = set()
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        ids = torch.arange(1, 1 + _ROWS * _COLUMNS).mul(_STRIDE).remainder(vocabulary).reshape(_ROWS, _COLUMNS)
        self._embedded = model.get_input_embeddings()(ids.to(model.device)).detach()
        self._half = self._embedded.dtype.itemsize < 4

    def failed(self) -> list[str]:
        """Name the modules at fault; what holds one of them is left out."""
        return [
            label
            for name, label in self._failed.items()
            if not any(other.startswith(f"{name}.") for other in self._failed)
        ]

    def try_modules(self) -> None:
        """Run the probe and try each module inside the decoder, those within it first."""
        twin = mirror(self._decoder, leaves=True)
        # Layers are tried by themselves where a change cannot be followed through all of them.
        apart = {twin} if self._half else {twin, *decoder_layers(self._model, twin)}
        names = {module: f"{self._name}.{name}" for name, module in twin.named_modules() if module not in apart}
        reached: set[nn.Module] = set()
        trying = False

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            nonlocal trying
            reached.add(module)
            if not trying and _floating(output):
                trying = True  # the trial calls the module again, and those within it
                self._try(names[module], module, args, kwargs)
                trying = False

        for module in names:
            module.register_forward_hook(look, with_kwargs=True)
        twin(inputs_embeds=self._embedded.clone().requires_grad_(), use_cache=False)
        trying = True
        for module, name in names.items():
            width = getattr(module, "in_features", None)
            if module not in reached and isinstance(width, int):  # an expert that no token was sent to
                drawn = torch.randn(_ROWS * _COLUMNS, width, generator=self._draw)
                self._try(name, module, (drawn.to(self._embedded).requires_grad_(),), {})

    def try_head(self) -> None:
        """Try the output head on the last hidden state."""
        head = self._model.get_output_embeddings()
        with torch.no_grad():
            last = self._decoder(inputs_embeds=self._embedded, use_cache=False).last_hidden_state
        self._try(_name(self._model, head), mirror(head), (last.detach().requires_grad_(),), {})

    def try_layers(self) -> None:
        """Follow a change of the embeddings, and the gradient that comes back to them, through the layers."""
        twin = mirror(self._decoder)
        layers = decoder_layers(self._model, twin)
        place = _name(twin, layers)

        def states(inputs: Stage) -> list[Stage]:
            output = twin(inputs_embeds=inputs[0], use_cache=False, output_hidden_states=True)
            return [[state] for state in output.hidden_states]

        trial = Trial(states, [self._embedded], self._draw)
        # Over many layers in half precision, differences are mostly rounding.
        outcomes = trial.reached() if self._half or self._rounds(twin) else trial.outcomes()
        steps = [self._name, *(f"{self._name}.{place}.{layer}" for layer in range(len(layers)))]
        for name, module, outcome in zip(steps, (twin, *layers), outcomes, strict=True):
            self._record(name, module, outcome)

    def _try(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received = {place: value for place, value in (*enumerate(args), *kwargs.items()) if _has_gradient(value)}
        if not received or any(value.numel() == 0 for value in received.values()):
            return

        def compute(inputs: Stage) -> list[Stage]:
            replaced = dict(zip(received, inputs, strict=True))
            output = module(
                *(replaced.get(place, value) for place, value in enumerate(args)),
                **{place: replaced.get(place, value) for place, value in kwargs.items()},
            )
            return [_floating(output)]

        linear = hasattr(module, "in_features") and not any(True for _ in module.children())
        trial = Trial(compute, [value.detach() for value in received.values()], self._draw, linear=linear)
        (outcome,) = trial.reached() if self._rounds(module) else trial.outcomes()
        if outcome == "rounds":
            self._rounding.add(type(module))
        self._record(name, module, outcome)

    def _rounds(self, module: nn.Module) -> bool:
        """Tell whether a module holds others that round their inputs more coarsely than its precision."""
        return any(type(part) in self._rounding for part in module.modules() if part is not module)

    def _record(self, name: str, module: nn.Module, outcome: Outcome) -> None:
        if outcome == "fails":
            kind = repr(module).partition("(")[0]  # torch's quantised layers are called Linear, and show themselves so
            self._failed.setdefault(name, f"{name} ({kind})")


def _name(model: nn.Module, module: nn.Module) -> str:
    names: Iterator[str] = (name for name, candidate in model.named_modules() if candidate is module)
    return next(names)


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _floating(output: Any) -> Stage:
    """Give the floating tensors of a module's output, however they are packed."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _floating(part)]


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
