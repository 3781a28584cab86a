"""Long responses: a score for every sentence. In a score of the whole, the right sentences dilute a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from semgrad_guard.errors import EmptyResponseError
from semgrad_guard.model.text_spans import sentence_spans, token_spans
from semgrad_guard.records import Generation, LongScore, SentenceScore
from semgrad_guard.scoring.scorer import SemGradScorer


def score_sentences(
    scorer: SemGradScorer,
    generations: Sequence[Generation],
    *,
    aggregate: Literal["max", "mean"] = "max",
    parameters: bool = True,
) -> list[LongScore]:
    """Score every sentence of each response by itself, all from one forward pass; each sentence costs one backward.

    Args:
        scorer: has generated them.
        generations: what `scorer.generate` returned.
        aggregate: how the sentences are read as one: by the most uncertain, or by their mean.
        parameters: also compute `paragrad`, `exgrad` and `hybridgrad`.

    Raises:
        EmptyResponseError: a response has no text.
    """
    sentences = [sentence_spans(generation.text) for generation in generations]
    for index, places in enumerate(sentences):
        if not places:
            raise EmptyResponseError(f"Response {index} has no text; there is no sentence to score.")
    tokens = [
        token_spans(scorer.tokenizer, generation.response_ids, generation.text, places)
        for generation, places in zip(generations, sentences, strict=True)
    ]
    scores = scorer.score(generations, spans=tokens, parameters=parameters)
    return [
        LongScore(
            sentences=tuple(
                SentenceScore(text=generation.text[slice(*place)], tokens=span, score=score)
                for place, span, score in zip(places, spans, sentence_scores, strict=True)
            ),
            aggregate=aggregate,
        )
        for generation, places, spans, sentence_scores in zip(generations, sentences, tokens, scores, strict=True)
    ]
