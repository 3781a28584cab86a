"""Baselines that ask the model again: self-consistency, semantic entropy, P(True)."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard.calibration.labels import words
from semgrad_guard.errors import ConfigurationError, SemGradError
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.replay import mirror
from semgrad_guard.records import Generation
from semgrad_guard.scoring.scorer import SemGradScorer

_P_TRUE = (
    "Question: {question}\nProposed answer: {answer}\nIs the proposed answer true or false? Answer with True or False."
)


def same_words(texts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Take the words of answers for what they mean, case and articles aside.

    That is right for short answers. Sentences are hardly ever the same in every word, so that all seem to differ;
    `Entailment.meanings` tells what they mean.
    """
    return tuple(tuple(words(text)) for text in texts)


def inconsistency(meanings: Sequence[Hashable]) -> float:
    """Give the share of samples that do not mean what the answer means, in [0, 1] (self-consistency, reversed).

    `meanings` are that of the answer and, after it, those of the samples. NaN without samples.
    """
    answer, *samples = meanings or (None,)
    return sum(sample != answer for sample in samples) / len(samples) if samples else math.nan


def semantic_entropy(meanings: Sequence[Hashable]) -> float:
    """Give the entropy of what the samples mean, in nats, >= 0: discrete semantic entropy (Farquhar et al. 2024).

    `meanings` are that of the answer, which does not count, and, after it, those of the samples. NaN without samples.
    """
    samples = meanings[1:]
    if not samples:
        return math.nan
    shares = [count / len(samples) for count in Counter(samples).values()]
    return -sum(share * math.log(share) for share in shares)


def p_true(scorer: SemGradScorer, question: str, answer: str) -> float:
    """Give P(True) / (P(True) + P(False)), in [0, 1], as the model judges its own answer (Kadavath et al. 2022).

    The probabilities are those of the next token, each summed over all spellings of its word: which one a model writes,
    "True" or " True" or "TRUE", says nothing about what it means.

    Raises:
        ConfigurationError: a word is no single token of the model's, so that its probability is not that of one token.
    """
    text = _P_TRUE.format(question=question, answer=answer)
    spellings = _spellings(scorer.tokenizer)
    for word, tokens in spellings.items():
        if not tokens:
            raise ConfigurationError(
                f"P(True) reads the probability of the next token, and no single token of this model is the word "
                f"{word!r}. Leave the method p-true out."
            )
    ids = encode_chat(scorer.tokenizer, [{"role": "user", "content": text}])
    with torch.no_grad():
        logits = scorer.model(input_ids=torch.tensor([ids], device=scorer.model.device), use_cache=False).logits[0, -1]
    true, false = (torch.logsumexp(logits[tokens].double(), dim=-1) for tokens in spellings.values())
    return float(torch.sigmoid(true - false))


@lru_cache(maxsize=8)
def _spellings(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """List the ids whose text, without blanks and case, is "true", and those whose text is "false"."""
    spellings: dict[str, list[int]] = {"true": [], "false": []}
    for token, index in tokenizer.get_vocab().items():
        plain = token.casefold()
        # Decoding a vocabulary of 262,000 tokens takes seconds. A token's own form marks blanks in its own way, but
        # letters of ASCII stand in it as they are.
        if any(word in plain for word in spellings):
            text = str(tokenizer.decode([index])).strip().casefold()
            if text in spellings:
                spellings[text].append(index)
    return spellings


def official_style(model: PreTrainedModel, generation: Generation, position: int, layers: tuple[int, ...]) -> float:
    """Compute SemGrad as the paper describes it: all hidden states, one backward over all layers and positions.

    The whole sequence is read again with logits at every position, and autograd goes through the output head.
    """
    hidden, logits = _forward(model, generation, keep=0)
    objective = _objective(logits, generation)
    gradients = torch.autograd.grad(objective, hidden[:-1], materialize_grads=True)
    anchor = len(generation.prompt_ids) - position
    return float(torch.stack([gradients[layer][0, anchor].abs().mean() for layer in layers]).mean())


def competent(model: PreTrainedModel, generation: Generation, position: int, layers: tuple[int, ...]) -> float:
    """Compute SemGrad with one full re-forward that keeps the response's logits, and one backward to the layers."""
    hidden, logits = _forward(model, generation, keep=len(generation.response_ids) + 1)
    objective = _objective(logits, generation)
    gradients = torch.autograd.grad(objective, [hidden[layer] for layer in layers])
    anchor = len(generation.prompt_ids) - position
    return float(torch.stack([gradient[0, anchor].abs().mean() for gradient in gradients]).mean())


def _forward(model: PreTrainedModel, generation: Generation, keep: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Read a sequence from its embeddings on; `keep` is how many last positions get logits, 0 for all."""
    ids = torch.tensor([[*generation.prompt_ids, *generation.response_ids]], device=model.device)
    with torch.enable_grad():
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        output = mirror(model)(
            inputs_embeds=embeddings, output_hidden_states=True, use_cache=False, logits_to_keep=keep
        )
    return output.hidden_states, output.logits


def _objective(logits: Tensor, generation: Generation) -> Tensor:
    """Give the entropy-weighted mean log-likelihood of the response, ready for a backward."""
    length = len(generation.response_ids)
    targets = torch.tensor(generation.response_ids, device=logits.device)
    with torch.enable_grad():
        log_p = torch.log_softmax(logits[0, -length - 1 : -1].float(), dim=-1)
        entropy = -(log_p.exp() * log_p).sum(-1).detach()
        return (entropy * log_p[torch.arange(length), targets]).mean()


_Made = TypeVar("_Made")
# Memory that runs out is a RuntimeError in torch; a value that is not finite is an ArithmeticError here.
_FAILURES = (SemGradError, RuntimeError, MemoryError, ArithmeticError)


class Attempts:
    """Runs pieces of work by name; `seconds` holds the times of the finished ones, `failures` why others failed."""

    def __init__(self) -> None:
        """Begin with nothing done."""
        self.seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}

    def __call__(self, name: str, work: Callable[[], _Made]) -> _Made | None:
        """Run a piece of work and give its result; None if it failed."""
        start = time.perf_counter()
        try:
            made = work()
        except _FAILURES as error:
            self.failures[name] = f"{type(error).__name__}: {error}"
            return None
        self.seconds[name] = time.perf_counter() - start
        return made
