"""Write docs/architectures.md: which path each model family takes, and how far its scores are from the reference.

Run: python tests/architecture_table.py
"""

import random
from pathlib import Path

import transformers
from models import FAMILIES, VOCABULARY, tiny_model, tiny_tokenizer
from reference import reference

from semgrad_guard import SemGradScorer

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
HEAD = f"""# Architectures

Written by `python tests/architecture_table.py`, with transformers {transformers.__version__}. Each family is a random
model of four small layers in float32, run on a CPU; windows are shorter than the sequences. *Error* is the largest
relative difference of any score from a float64 reference that reads the whole sequence and differentiates it all.

- **cache**: the suffix is run again on the generation's own key-value cache;
- **prefix**: the cache has dropped what lies outside its window, so the positions before t* are read again first;
- **full**: the model keeps a running state instead of keys and values, so everything is read again, with gradients.

From ids alone (`score_ids`) there is no cache, and "cache" becomes "prefix". Real weights are tested
apart (`tests/real`): SmolLM2-135M-Instruct, unpacked from GGUF, has the scores of the reference within 1e-5.
Mamba, Gemma3n and encoder-decoders are refused, and so is every model whose output head transforms logits in a way not
known here.

| family | model class | path | error |
|---|---|---|---|
"""


def worst_error(score, expected):
    names = ("semgrad", "paragrad", "exgrad", "hybridgrad", "nll", "mean_entropy", "semgrad_unweighted")
    return max(abs(getattr(score, name) - getattr(expected, name)) / abs(getattr(expected, name)) for name in names)


def row(family):
    model = tiny_model(family)
    scorer = SemGradScorer(model, tiny_tokenizer(), token_position=3, unweighted=True)
    rng = random.Random(0)
    prompts = [[rng.randrange(5, VOCABULARY) for _ in range(length)] for length in (17, 9)]
    generations = scorer.generate(prompts, max_new_tokens=7)
    scores = scorer.score(generations)
    errors = [
        worst_error(score, reference(model, item.prompt_ids, item.response_ids, 3, score.layer_indices))
        for item, score in zip(generations, scores, strict=True)
    ]
    return f"| {family} | `{type(model).__name__}` | {scores[0].path} | {max(errors):.0e} |"


if __name__ == "__main__":
    _, mark, other = PAGE.read_text(encoding="utf-8").partition("\n## ")  # what another command has written
    PAGE.write_text(HEAD + "\n".join(map(row, FAMILIES)) + "\n" + mark + other, encoding="utf-8")
