"""Gradients checked by number: what the backward gives against what a small change of the input does.

torch marks the output of a kernel without a backward, as many quantised ones, as differentiable all the same, and its
gradient is zero. The residual stream goes round such a module, so that no score looks wrong: only a number tells.

Each module inside the decoder is tried by itself, on what it receives from a few tokens, so that the error can name
it. What stands between the modules is tried by a change of the embeddings, followed through the layers. The cost is
about that of a dozen forward passes over the 16 tokens of the probe.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from semgrad_guard.errors import UnsupportedModelError
from semgrad_guard.model.directional import Outcome, Stage, Trial
from semgrad_guard.model.mirror import decoder_layers, mirror

_ROWS, _COLUMNS = 4, 4
_STRIDE = 7919  # a prime: the tokens of the probe lie all over the vocabulary
_NAMES = 3


def check_gradients(model: PreTrainedModel) -> None:
    """Refuse a model whose gradients are not those of its forward pass, in whole or in part.

    Call it after a forward pass without gradients: some kernels repack their weights in the first one, and have no
    backward from then on.

    Raises:
        UnsupportedModelError: naming the modules at fault.
    """
    with torch.inference_mode(False), torch.enable_grad():
        probe = _Probe(model)
        probe.try_modules()
        probe.try_head()
        probe.try_layers()
    failed = probe.failed()
    if failed:
        more = f" and {len(failed) - _NAMES} more" if len(failed) > _NAMES else ""
        raise UnsupportedModelError(
            f"Gradients do not pass {', '.join(failed[:_NAMES])}{more} in {type(model).__name__}: the backward does not "
            "give what a small change of the input does, so the scores would be wrong. Load the model without "
            "quantisation, or with kernels that have a backward."
        )


class _Probe:
    """Tries the modules of a model on what they receive from a few tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._decoder = model, model.get_decoder()
        self._name = _name(model, self._decoder)
        self._draw = torch.Generator().manual_seed(0)
        self._outcomes: dict[str, Outcome] = {}
        self._labels: dict[str, str] = {}
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        ids = torch.arange(1, 1 + _ROWS * _COLUMNS).mul(_STRIDE).remainder(vocabulary).reshape(_ROWS, _COLUMNS)
        self._embedded = model.get_input_embeddings()(ids.to(model.device)).detach()

    def failed(self) -> list[str]:
        """Name the modules at fault; what holds one of them is left out."""
        names = [name for name, outcome in self._outcomes.items() if outcome == "fails"]
        return [self._labels[name] for name in names if not any(_inside(other, name) for other in names)]

    def try_modules(self) -> None:
        """Run the probe and try each module inside the decoder, those within it first."""
        twin = mirror(self._decoder, leaves=True)
        layers = set(decoder_layers(self._model, twin))
        modules = {name: module for name, module in twin.named_modules() if module is not twin and module not in layers}
        reached: set[nn.Module] = set()
        trying = False

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
            nonlocal trying
            reached.add(module)
            if not trying:
                trying = True  # the trial calls the module again, and those within it
                self._try(names[module], module, args, kwargs)
                trying = False

        names = {module: f"{self._name}.{name}" for name, module in modules.items()}
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

        outcomes = self._outcomes_of(self._name, states, [self._embedded], wide=False)
        steps = [self._name, *(f"{self._name}.{place}.{layer}" for layer in range(len(layers)))]
        for name, module, outcome in zip(steps, (twin, *layers), outcomes, strict=True):
            self._record(name, module, outcome)

    def _try(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received = {place: value for place, value in (*enumerate(args), *kwargs.items()) if _has_gradient(value)}
        if not received or any(value.numel() == 0 for value in received.values()):
            return

        def compute(inputs: Stage) -> list[Stage]:
            given = dict(zip(received, inputs, strict=True))
            output = module(
                *(given.get(place, value) for place, value in enumerate(args)),
                **{place: given.get(place, value) for place, value in kwargs.items()},
            )
            return [_floating(output)]

        (outcome,) = self._outcomes_of(name, compute, [value.detach() for value in received.values()])
        self._record(name, module, outcome)

    def _outcomes_of(self, name: str, compute: Any, inputs: Stage, *, wide: bool = True) -> list[Outcome]:
        trial = Trial(compute, inputs, self._draw, wide=wide)
        outcomes = trial.outcomes()
        rounded = any(outcome == "rounds" and _inside(other, name) for other, outcome in self._outcomes.items())
        # Differences across many modules that round are mostly noise: here only a gradient of zero tells anything.
        return ["rounds"] * len(outcomes) if rounded and trial.passes_something() else outcomes

    def _record(self, name: str, module: nn.Module, outcome: Outcome) -> None:
        if self._outcomes.get(name) != "fails":
            self._outcomes[name] = outcome
        self._labels[name] = f"{name} ({type(module).__name__})"


def _name(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, candidate in model.named_modules() if candidate is module)


def _inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _floating(output: Any) -> Stage:
    """Give the floating tensors of a module's output, however they are packed."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _floating(part)]
