"""Log-probabilities of an answer's tokens, in the shape that OpenAI gave them and LangChain's users know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.records import TokenLogProb


def asked_for(given: dict[str, Any]) -> int | None:
    """Take `logprobs` and `top_logprobs` out of what a call was given: how many alternatives; None for nothing.

    Raises:
        ConfigurationError: `top_logprobs` without `logprobs=True`, or no whole number >= 0.
    """
    logprobs, most = given.pop("logprobs", None), given.pop("top_logprobs", None)
    if most is not None and not (logprobs and isinstance(most, int) and most >= 0):
        raise ConfigurationError(
            f"logprobs={logprobs!r}, top_logprobs={most!r}: expected logprobs=True and a whole number >= 0."
        )
    return (most or 0) if logprobs else None


def as_openai(tokenizer: PreTrainedTokenizerBase, log_probs: Sequence[TokenLogProb]) -> dict[str, Any]:
    """Give `{"content": [{"token", "logprob", "bytes", "top_logprobs"}, ...]}`; log-probabilities are in nats."""

    def entry(token: int, log_prob: float) -> dict[str, Any]:
        text = str(tokenizer.decode([token]))
        whole = "\ufffd" not in text  # a token may hold a part of a character only, which has no text
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode()) if whole else None}

    return {
        "content": [
            {**entry(found.token, found.log_prob), "top_logprobs": [entry(*other) for other in found.top]}
            for found in log_probs
        ]
    }
