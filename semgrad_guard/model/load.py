"""A local model with its tokenizer: loaded from a name or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import commit_of
from semgrad_guard.errors import UnsupportedModelError


def load_model(
    name: str | Path, *, revision: str | None = None, **settings: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a hub id or a folder, from safetensors only and without remote code.

    Args:
        name: hub id or folder.
        revision: commit, tag or branch; pin a commit to get the same weights every time.
        settings: further keywords of `AutoModelForCausalLM.from_pretrained`, for example `dtype` or `device_map`.

    Raises:
        UnsupportedModelError: there is no such model, or it has no safetensors weights.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, trust_remote_code=False, use_safetensors=True, **settings
        )
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"Cannot load {str(name)!r} as a causal language model with safetensors weights: "
            f"{cause[0] if cause else type(error).__name__}"
        ) from error
    return model.eval(), tokenizer


def without_adapter_shell(model: Any) -> Any:
    """Take a PEFT model's shell off: the transformers model inside has the adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def revision(model: PreTrainedModel) -> str | None:
    """Give the commit of the hub that a model was loaded from; None where it came from elsewhere."""
    return commit_of(model)
