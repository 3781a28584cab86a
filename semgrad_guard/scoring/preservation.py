"""The Semantic Preservation Score: at which prompt token, and in which layers, the meaning of a question gathers.

    SPS(l, t) = mean cosine of h_{-t}^(l) over paraphrases of one question - the same over different questions

(arXiv 2605.04638). A high SPS means that hidden states are alike for questions of one meaning and unlike for questions
of different meanings. t counts prompt tokens from the end, 1 being the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard.errors import DataError
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.replay import mirror


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Preservation:
    """SPS by hidden state and token: `scores[l][t - 1]`, from -2 to 2, *higher = the meaning is better preserved*.

    `tokens[t - 1]` is the text of the t-th prompt token from the end in the first question. `questions` and `prompts`
    count what it was measured on.
    """

    scores: tuple[tuple[float, ...], ...]
    tokens: tuple[str, ...]
    questions: int
    prompts: int

    def position(self, layers: Sequence[int]) -> int:
        """Give t*: the token with the highest SPS on average over these layers."""
        means = [sum(self.scores[layer][place] for layer in layers) for place in range(len(self.tokens))]
        return 1 + max(range(len(means)), key=means.__getitem__)


def preservation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    paraphrases: Sequence[Sequence[str]],
    *,
    last: int = 10,
    batch: int = 16,
    messages: Callable[[str], list[dict[str, str]]] = lambda text: [{"role": "user", "content": text}],
) -> Preservation:
    """Measure SPS; only sums of hidden states are kept.

    The cosines of all pairs of n unit vectors u add up to |sum u|^2 - n. So the sum of each group and the sum of all
    are enough.

    Args:
        model: a decoder-only model.
        tokenizer: its tokenizer, with a chat template.
        paraphrases: for each question, ways of asking it; at least two questions, of two or more wordings each.
        last: prompt tokens from the end to look at.
        batch: prompts at a time.
        messages: the messages that put a question to the model; by default the question alone.

    Raises:
        DataError: there are too few questions or wordings, or a prompt is shorter than `last`.
    """
    if len(paraphrases) < 2 or any(len(set(group)) < 2 for group in paraphrases):
        raise DataError(
            f"SPS compares at least two questions of two or more wordings each; {len(paraphrases)} were given, the "
            f"smallest with {min((len(set(group)) for group in paraphrases), default=0)}."
        )
    decoder = mirror(model.get_decoder())
    shape = (model.config.get_text_config(decoder=True).num_hidden_layers + 1, last)
    within, squares = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    total: Tensor | None = None
    for group in tqdm(paraphrases, desc="measuring SPS"):
        prompts = [encode_chat(tokenizer, messages(text)) for text in group]
        parts = [_unit_sums(decoder, model, prompts[at : at + batch], last) for at in range(0, len(group), batch)]
        sums = torch.stack(parts).sum(0)
        square = sums.square().sum(-1)
        within += (square - len(group)) / (len(group) * (len(group) - 1))
        squares += square
        total = sums if total is None else total + sums
    count = sum(map(len, paraphrases))
    everything = torch.zeros(()) if total is None else total.square().sum(-1)
    between = (everything - squares) / (count**2 - sum(len(group) ** 2 for group in paraphrases))
    ids = encode_chat(tokenizer, messages(paraphrases[0][0]))
    return Preservation(
        scores=tuple(tuple(row) for row in (within / len(paraphrases) - between).flip(-1).tolist()),
        tokens=tuple(str(tokenizer.decode([token])) for token in reversed(ids[-last:])),
        questions=len(paraphrases),
        prompts=count,
    )


def _unit_sums(decoder: torch.nn.Module, model: PreTrainedModel, prompts: Sequence[Sequence[int]], last: int) -> Tensor:
    """Add up the unit hidden states of some prompts: [L + 1, last, D] in float64, in the order of the prompt."""
    short = min(map(len, prompts))
    if short < last:
        raise DataError(f"A prompt has {short} tokens; the last {last} were to be looked at. Lower it.")
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    attended = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.no_grad():
        hidden = decoder(
            input_ids=ids,
            attention_mask=attended,
            position_ids=(attended.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
    states = torch.stack([state[:, -last:].double() for state in hidden])
    return torch.nn.functional.normalize(states, dim=-1).sum(1).cpu()
