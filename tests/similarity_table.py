"""Write docs/similarity.md: how well labels by similarity tell right from wrong, on answers labelled by hand.

Run: python tests/similarity_table.py FOLDER_OR_ID_OF_A_SENTENCE_TRANSFORMERS_MODEL
"""

import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sklearn.metrics import roc_auc_score

from semgrad_guard.calibration.labels import alike, contains, same
from semgrad_guard.calibration.similarity import in_context

PAGE = Path(__file__).parents[1] / "docs" / "similarity.md"
CASES = Path(__file__).parent / "similarity_cases.txt"
THRESHOLDS = (0.85, 0.9, 0.92, 0.95, 0.97)
HEAD = """# Labels by similarity

Written by `python tests/similarity_table.py`, with all-MiniLM-L6-v2. {n} answers to {questions} questions,
{right} of them right, were written and labelled by hand (`tests/similarity_cases.txt`): right ones in other words,
wrong ones near by. Each is compared with one right answer by the cosine similarity of their embeddings, alone and *in
context*, with the question behind it. *Precision* is the share of right ones among those called right, *recall* the
share of right ones called right. The default, 0.95 in context, was chosen on these answers for its precision.

"""


def rows():
    """Yield (question, right answer, answer given, whether it is right)."""
    for line in CASES.read_text(encoding="utf-8").splitlines()[1:]:
        question, reference, right, wrong = line.split("|")
        for answers, correct in ((right, True), (wrong, False)):
            yield from ((question, reference, answer, correct) for answer in answers.split(";"))


def main(folder):
    cases, encoder = list(rows()), SentenceTransformer(folder)
    correct = np.array([case[3] for case in cases])

    def similarities(shown):
        given, expected = (
            encoder.encode([shown(case[0], case[place]) for case in cases], normalize_embeddings=True)
            for place in (2, 1)
        )
        return (given * expected).sum(axis=1)

    alone, context = similarities(lambda question, answer: answer), similarities(in_context)
    called = {
        **{f"alone, at least {least}": alone >= least for least in (0.6, 0.7, 0.8)},
        **{f"in context, at least {least}": context >= least for least in THRESHOLDS},
        **{
            name: np.array([label(question, answer, [reference]) for question, reference, answer, _ in cases])
            for name, label in (("match", same), ("contains", contains), ("f1", alike))
        },
    }
    lines = ["| called right | accuracy | precision | recall |", "|---|---|---|---|"]
    for name, found in called.items():
        figures = ((found == correct).mean(), correct[found].mean(), found[correct].mean())
        lines.append(f"| {name} | {' | '.join(f'{figure:.1%}' for figure in figures)} |")
    auroc = f"AUROC of the similarity: {roc_auc_score(correct, alone):.3f} alone, " + (
        f"{roc_auc_score(correct, context):.3f} in context."
    )
    worst = [int(place) for place in np.argsort(-context) if not correct[place]][:6]
    fooled = "; ".join(f"{cases[i][2]} for {cases[i][1]} ({context[i]:.2f})" for i in worst)
    head = HEAD.format(
        n=len(cases),
        questions=len({case[0] for case in cases}),
        right=correct.sum(),
    )
    told = [*lines, "", auroc, "", f"Most alike though wrong, in context:\n{fooled}."]
    PAGE.write_text(head + "\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
