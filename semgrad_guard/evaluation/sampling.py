"""Baselines that ask the model again: self-consistency, semantic entropy, P(True)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from semgrad_guard.calibration.labels import words
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.scoring.scorer import SemGradScorer

_P_TRUE = (
    "Question: {question}\nProposed answer: {answer}\nIs the proposed answer true or false? Answer with True or False."
)


def inconsistency(answer: str, samples: Sequence[str]) -> float:
    """Give the share of samples that do not say what the answer says, in [0, 1] (self-consistency, reversed).

    NaN without samples.
    """
    given = words(answer)
    return sum(words(sample) != given for sample in samples) / len(samples) if samples else math.nan


def semantic_entropy(samples: Sequence[str]) -> float:
    """Give the entropy, in nats, of the samples sorted by what they say: by words, case and articles aside.

    Discrete semantic entropy (Farquhar et al. 2024) with exact-match clusters, which is right for short answers.
    NaN without samples.
    """
    if not samples:
        return math.nan
    counts = Counter(tuple(words(sample)) for sample in samples)
    shares = [count / len(samples) for count in counts.values()]
    return -sum(share * math.log(share) for share in shares)


def p_true(scorer: SemGradScorer, question: str, answer: str) -> float:
    """Give the probability, of "True" against "False", that the model gives its own answer (Kadavath et al. 2022)."""
    text = _P_TRUE.format(question=question, answer=answer)
    ids = encode_chat(scorer.tokenizer, [{"role": "user", "content": text}])
    first = [scorer.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" True", " False")]
    with torch.no_grad():
        logits = scorer.model(input_ids=torch.tensor([ids], device=scorer.model.device), use_cache=False).logits[0, -1]
    return float(torch.softmax(logits[first].float(), dim=-1)[0])
