"""The limits of a scoring pass, checked by an estimate before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from semgrad_guard._compat import attends_eagerly
from semgrad_guard.errors import BudgetError, ConfigurationError
from semgrad_guard.model.replay import Layout

_LOGIT_COPIES = 4  # of [B, T, V] in float32: the head's output, its logarithms and probabilities, and one on the way


@dataclass(frozen=True)
class Budget:
    """The most that one scoring pass may take; None sets no limit.

    `tokens` counts the columns of the batch that are run again times its rows; `memory` is in bytes, beside the model
    and the generation's cache.
    """

    tokens: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        """Refuse limits that nothing fits into."""
        for name, limit in (("tokens", self.tokens), ("memory", self.memory)):
            if limit is not None and limit < 1:
                raise ConfigurationError(f"Budget({name}={limit}): expected 1 or more, or None for no limit.")

    def check(self, model: PreTrainedModel, layout: Layout) -> None:
        """Refuse a batch that would exceed the budget.

        Raises:
            BudgetError: naming what it would take, and what to do.
        """
        rows, columns = layout.ids.shape
        tokens = rows * (columns - layout.start)
        if self.tokens is not None and tokens > self.tokens:
            raise BudgetError(
                f"Scoring would run {tokens} tokens again; the budget is {self.tokens}. Score fewer rows at a time, "
                "limit max_new_tokens, or raise the budget."
            )
        needed = estimated_memory(model, layout) if self.memory is not None else 0
        if self.memory is not None and needed > self.memory:
            raise BudgetError(
                f"Scoring would take about {needed / 1e6:,.0f} MB; the budget is {self.memory / 1e6:,.0f} MB. Score "
                "fewer rows at a time, limit max_new_tokens, or raise the budget."
            )


def estimated_memory(model: PreTrainedModel, layout: Layout) -> int:
    """Estimate the bytes a pass takes at its peak, beside the model and the generation's cache.

    The backward needs the activations of every layer over the columns that are run again, and the keys and values of
    all columns, which are joined anew. The estimate comes from the configuration and is good to about a factor of two.
    """
    config = model.config.get_text_config(decoder=True)
    size = next(model.parameters()).element_size()
    rows, columns = layout.ids.shape
    again, response = columns - layout.start, layout.mask.shape[1]
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = getattr(config, "num_attention_heads", 1)
    head_size = getattr(config, "head_dim", None) or hidden // heads
    shared = (getattr(config, "num_key_value_heads", None) or heads) * head_size
    activations = again * (10 * hidden + 5 * inner)
    keys_and_values = 4 * columns * shared
    weights = 2 * heads * again * columns if attends_eagerly(model) else 0
    layers = config.num_hidden_layers * (activations + keys_and_values + weights) * size
    return int(rows * (layers + _LOGIT_COPIES * response * config.vocab_size * 4))
