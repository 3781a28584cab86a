"""The output head: from the last hidden state to logits, with the transforms that some families put in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semgrad_guard.errors import UnsupportedModelError


@dataclass(frozen=True)
class Head:
    """logits = cap * tanh(scale * W h / cap), where cap and scale are those of the model's configuration.

    `scale` is Cohere's `logit_scale` or the inverse of Granite's `logits_scaling`; `cap` is Gemma's
    `final_logit_softcapping`, None where there is none.
    """

    module: torch.nn.Module
    scale: float
    cap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """Read the head of a model from its modules and configuration."""
        module = model.get_output_embeddings()
        if module is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no output embeddings; a causal language model with a head is expected. "
                "Load it with AutoModelForCausalLM."
            )
        config = model.config.get_text_config(decoder=True)
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(module, scale, None if cap is None else float(cap))

    def raw(self, hidden: Tensor) -> Tensor:
        """Apply the linear part alone: W h, in the module's own precision."""
        output: Tensor = self.module(hidden)
        return output

    def transform(self, raw: Tensor) -> Tensor:
        """Turn W h into logits, in float32 or better."""
        wide = raw if raw.dtype == torch.float64 else raw.float()
        logits = wide if self.scale == 1.0 else wide * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def pull_back(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn a gradient at the logits into one at W h, in closed form."""
        if self.cap is not None:
            gradient = gradient * (1.0 - (logits / self.cap).square())
        return gradient if self.scale == 1.0 else gradient * self.scale
