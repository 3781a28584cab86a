"""Write docs/numerics.md: scores in half precision against float32, and short answers in float32 against float64.

Run: python tests/numerics_table.py [a published model's file or folder, for short answers]
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from semgrad_guard import SemGradScorer
from semgrad_guard.demo import embedded_model, embedded_profile
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.load import load_model
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
FEW, COPIES = 12, 4
SHORT = f"""
# Short answers in float32

Written by the same command, given a published model, here {{name}}.
The relative difference of SemGrad in float32 from that of a float64 copy of the model: the median and the largest of
{FEW} answers, cut to their first tokens. "Alone" is one answer at a time, on the path
`prefix` or on the path `cache`; in "a batch" the answer stands
{COPIES} times.

{{table}}

All layers start from the gradient at the head's input, a sum over the whole vocabulary ({{vocabulary}} terms). The
product that adds it up has a row for each token of each answer, and with fewer than four rows it rounds more on this
CPU: the matrix library takes another kernel there, it seems. So the error is the same on both paths, and is gone where
the same answer stands in a batch; a full pass that differentiates the head at every position has rows enough. On an
answer of three tokens that was taken apart, the error had one sign at every layer, padding on the left and eager
attention did not change it, and log-probabilities and entropies had no part in it. The `prefix` path is not at fault.
The embedded model's {{small}} tokens are too few for it to show.
"""


def scored(dtype):
    """Score the answers with the model in a precision."""
    model, tokenizer = embedded_model()
    plain = SemGradScorer(model, tokenizer, scoring=embedded_profile().bound_to.scoring)
    asked = [item for name in STRATA for item in questions(name, "report")[:EACH]]
    generations = []
    for start in range(0, len(asked), 50):
        prompts = [encode_chat(tokenizer, item.messages) for item in asked[start : start + 50]]
        generations += plain.generate(prompts, max_new_tokens=24, do_sample=False)
    scorer = SemGradScorer(torch.nn.Module.to(model, dtype), tokenizer, scoring=plain.scoring)
    found = []
    for start in range(0, len(generations), 50):
        part = generations[start : start + 50]
        found += scorer.score_ids([row.prompt_ids for row in part], [row.response_ids for row in part])
    return found


def short_answers(model, tokenizer):
    """Compare scores of short answers with those of a float64 copy of the model: the lines of a table."""
    plain, exact = (SemGradScorer(one, tokenizer) for one in (model, copy.deepcopy(model).double()))
    lines = ["| tokens | alone, prefix | alone, cache | in a batch, prefix |", "|---|---|---|---|"]
    for count in (1, 2, 3, 4, 8):
        errors = []
        for item in questions("known", "report")[:FEW]:
            prompt = encode_chat(tokenizer, item.messages)
            kept = plain.generate([prompt], max_new_tokens=count, min_new_tokens=count, do_sample=False)
            bare = [replace(kept[0], batch=None)]
            truth = exact.score(bare, parameters=False)[0].semgrad
            ours = (plain.score(rows, parameters=False)[0].semgrad for rows in (bare, kept, bare * COPIES))
            errors.append([abs(score / truth - 1.0) for score in ours])
        columns = [f"{np.median(column):.1e}, {max(column):.1e}" for column in zip(*errors, strict=True)]
        lines.append(f"| {count} | {' | '.join(columns)} |")
    return "\n".join(lines)


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
    short = ""
    if len(sys.argv) > 1:
        model, tokenizer = load_model(sys.argv[1], dtype=torch.float32)
        sizes = {"vocabulary": model.config.vocab_size, "small": embedded_model()[0].config.vocab_size}
        short = SHORT.format(name=Path(sys.argv[1]).name, table=short_answers(model, tokenizer), **sizes)
    PAGE.write_text(HEAD + "\n".join([*lines, "", *agreement]) + "\n" + short, encoding="utf-8")


if __name__ == "__main__":
    main()
