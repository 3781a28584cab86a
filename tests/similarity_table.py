"""Write docs/similarity.md: how well labels by similarity tell right from wrong, on answers labelled by hand.

Run: python tests/similarity_table.py FOLDER_OR_ID_OF_A_SENTENCE_TRANSFORMERS_MODEL
"""

import re
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sklearn.metrics import roc_auc_score

from semgrad_guard.calibration.labels import contains, same, shares_words

PAGE = Path(__file__).parents[1] / "docs" / "similarity.md"
CASES = Path(__file__).parent / "similarity_cases.txt"
ALONE, CONTEXT = (0.6, 0.7, 0.75, 0.8, 0.85), (0.9, 0.92, 0.95, 0.97)
HEAD = """# Labels by similarity

Written by `python tests/similarity_table.py`, with all-MiniLM-L6-v2. {n} answers to {questions} questions,
{right} of them right, were written and labelled by hand (`tests/similarity_cases.txt`): right ones in other words,
wrong ones near by. Each is compared with one right answer by the cosine similarity of their embeddings, *alone* or *in
context*, with the question behind it. *Precision* is the share of right ones among those called right, *recall* the
share of right ones called right. *Evasive* answers repeat a word or two of the question, or all of it, or say "I do not
know."; the column is the share of them called right.

In context more of the right answers are recognised, and so are evasive ones, which small models often give; hence the
default is alone, at 0.8, chosen on these answers for its precision. `contains` does as well where right answers keep
the words of the data file.

"""


def rows():
    """Yield (question, right answer, answer given, whether it is right)."""
    for line in CASES.read_text(encoding="utf-8").splitlines()[1:]:
        question, reference, right, wrong = line.split("|")
        for answers, correct in ((right, True), (wrong, False)):
            yield from ((question, reference, answer, correct) for answer in answers.split(";"))


def evasive(cases):
    """Yield answers that say nothing, four to a question."""
    for question, reference in {case[:2]: None for case in cases}:
        asked = question.rstrip("?")
        longest = max(re.findall(r"\w+", asked)[1:], key=len)
        for answer in (longest, " ".join(asked.split()[-2:]), asked, "I do not know."):
            yield question, reference, answer, False


def main(folder):
    encoder, labelled = SentenceTransformer(folder), list(rows())
    cases = [*labelled, *evasive(labelled)]
    counted = np.arange(len(cases)) < len(labelled)
    correct = np.array([case[3] for case in cases])

    def similarities(shown):
        given, expected = (
            encoder.encode([shown(case[0], case[place]) for case in cases], normalize_embeddings=True)
            for place in (2, 1)
        )
        return (given * expected).sum(axis=1)

    alone = similarities(lambda question, answer: answer)
    context = similarities(lambda question, answer: f"{answer.rstrip('.')}. {question}")
    called = {
        **{f"alone, at least {least}": alone >= least for least in ALONE},
        **{f"in context, at least {least}": context >= least for least in CONTEXT},
        **{
            name: np.array([label(question, answer, [reference]) for question, reference, answer, _ in cases])
            for name, label in (("match", same), ("contains", contains), ("f1", shares_words))
        },
    }
    lines = ["| called right | precision | recall | evasive |", "|---|---|---|---|"]
    for name, found in called.items():
        figures = (correct[counted & found].mean(), found[correct].mean(), found[~counted].mean())
        lines.append(f"| {name} | {' | '.join(f'{figure:.1%}' for figure in figures)} |")
    areas = [
        f"{name}: {roc_auc_score(correct[counted], values[counted]):.3f}, with evasive ones "
        f"{roc_auc_score(correct, values):.3f}"
        for name, values in (("alone", alone), ("in context", context))
    ]
    worst = [int(place) for place in np.argsort(-alone) if not correct[place]][:6]
    fooled = "; ".join(f"{cases[i][2]} for {cases[i][1]} ({alone[i]:.2f})" for i in worst)
    head = HEAD.format(n=len(labelled), questions=len({case[0] for case in cases}), right=correct.sum())
    told = [*lines, "", f"AUROC {'; '.join(areas)}.", "", f"Most alike though wrong, alone:\n{fooled}."]
    PAGE.write_text(head + "\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
