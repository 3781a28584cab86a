"""Other wordings of questions, written by a model, to measure the semantic preservation score on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from semgrad_guard.calibration.labels import words
from semgrad_guard.errors import DataError
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.records import Generation
from semgrad_guard.scoring.scorer import SemGradScorer

_PROMPT = (
    "Put this question in other words, without changing its meaning. Reply with the new question only.\n{question}"
)


def written_paraphrases(
    scorer: SemGradScorer, questions: Sequence[str], count: int, *, max_new_tokens: int = 64, seed: int = 0
) -> list[list[str]]:
    """Let a model put questions in other words, sampled with its own generation settings.

    A response counts if it is complete, a single line, a question where the original is one, and worded otherwise than
    those before, case and punctuation aside. Nothing checks that it means the same: where that matters, read them.

    Args:
        scorer: its model writes.
        questions: what to put in other words.
        count: responses drawn for each question.
        max_new_tokens: longest wording.
        seed: random seed of sampling.

    Returns:
        For each question of which there is another wording, the question and its others.

    Raises:
        DataError: fewer than two questions are left.
    """
    torch.manual_seed(seed)
    groups = []
    for question in tqdm(questions, desc="paraphrasing"):
        prompt = encode_chat(scorer.tokenizer, [{"role": "user", "content": _PROMPT.format(question=question)}])
        rows = scorer.generate([prompt] * count, do_sample=True, max_new_tokens=max_new_tokens)
        distinct = {tuple(words(question)): question}
        for row in rows:
            if _is_wording(row, question):
                distinct.setdefault(tuple(words(row.text)), row.text.strip())
        groups.append(list(distinct.values()))
    usable = [group for group in groups if len(group) > 1]
    if len(usable) < 2:
        raise DataError(
            f"The model gave another wording of {len(usable)} of {len(questions)} questions; at least 2 are needed. "
            "Take a model that can paraphrase, or write paraphrases yourself."
        )
    return usable


def _is_wording(row: Generation, question: str) -> bool:
    text = row.text.strip()
    single = bool(text) and "\n" not in text
    return row.finish_reason == "stop" and single and text.endswith("?") == question.strip().endswith("?")
