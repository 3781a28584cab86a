"""Gradients checked by number: the backward is compared with what a small change of the input does.

torch marks the output of a kernel without a backward, as many quantised ones, as differentiable all the same, and its
gradient is zero. The residual stream goes round such a module, so that no score looks wrong: only a number shows it.

Each module inside the decoder is tried by itself, on its own inputs from a few tokens, so that the error can name it. A
change of the embeddings, followed through the layers, tries what stands between the modules. The cost is about that of
fifteen forward passes over the 24 tokens of the probe.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from semgrad_guard.errors import UnsupportedModelError
from semgrad_guard.model.directional import Outcome, Stage, Trial
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
