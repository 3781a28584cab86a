"""Write docs/numerics.md: scores in half precision against float32, on the embedded model.

Run: python tests/numerics_table.py
"""

from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from semgrad_guard import SemGradScorer
from semgrad_guard.demo import embedded_model, embedded_profile
from semgrad_guard.model.chat_template import encode_chat
from tools.embedded.questions import questions

PAGE = Path(__file__).parents[1] / "docs" / "numerics.md"
STRATA = ("known", "several", "invented")
EACH = 100
NAMES = ("semgrad", "paragrad", "exgrad", "hybridgrad", "nll", "mean_entropy", "max_entropy")
HEAD = f"""# Half precision

Written by `python tests/numerics_table.py`. The same {EACH} answers of each of the strata {", ".join(STRATA)} of the
embedded model, generated in float32 and scored in three precisions, on a CPU. *Error* is the median and the 95th
percentile of
the relative difference from float32, *rank correlation* is Spearman's. Softmax, entropies and everything at the logits
are computed in float32 in all of them; gradients are scaled by powers of two on their way down. What remains is the
rounding of the model itself, whose hidden states and weights have 8 (bfloat16) or 11 (float16) significant bits.

"""


def scored(dtype):
    """Score the answers with the model in a precision."""
    model, tokenizer = embedded_model()
    plain = SemGradScorer(model, tokenizer, layers="all")
    asked = [item for name in STRATA for item in questions(name, "report")[:EACH]]
    generations = []
    for start in range(0, len(asked), 50):
        prompts = [encode_chat(tokenizer, item.messages) for item in asked[start : start + 50]]
        generations += plain.generate(prompts, max_new_tokens=24, do_sample=False)
    scorer = SemGradScorer(torch.nn.Module.to(model, dtype), tokenizer, layers="all")
    found = []
    for start in range(0, len(generations), 50):
        part = generations[start : start + 50]
        found += scorer.score_ids([row.prompt_ids for row in part], [row.response_ids for row in part])
    return found


def main():
    section = embedded_profile().answer
    exact = scored(torch.float32)
    lines = ["| precision | score | error, median | error, 95 % | rank correlation |", "|---|---|---|---|---|"]
    agreement = []
    for dtype in (torch.bfloat16, torch.float16):
        rough = scored(dtype)
        for name in NAMES:
            ours, theirs = (np.array([getattr(score, name) for score in scores]) for scores in (rough, exact))
            error = np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-30)
            cells = (f"{np.median(error):.1e}", f"{np.quantile(error, 0.95):.1e}", f"{spearmanr(ours, theirs)[0]:.4f}")
            lines.append(f"| {str(dtype).removeprefix('torch.')} | {name} | {' | '.join(cells)} |")
        same = np.mean([section.passes(one) == section.passes(other) for one, other in zip(rough, exact, strict=True)])
        agreement.append(f"In {str(dtype).removeprefix('torch.')}, {same:.1%} of the decisions are those of float32.")
    PAGE.write_text(HEAD + "\n".join([*lines, "", *agreement]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
