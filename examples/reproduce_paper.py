"""Table 1 of the SemGrad paper (arXiv 2605.04638) for one model and one data file: AUROC, ours beside the paper's.

    python examples/reproduce_paper.py --model Qwen/Qwen3-4B --data sciq.jsonl --out results

Only the embedded model on questions of its own, the default, has been run: none of the published models has. Lines of
the data file hold "query" and "truthful answer"; the paper's figure stands beside ours where model and file have its
names. It labels answers with BEM, this with "contains". A model of that size wants a GPU and `pip install accelerate`.
"""

import argparse
import tempfile
from pathlib import Path

from semgrad_guard import SemGradScorer
from semgrad_guard.calibration.examples import Example, read_examples
from semgrad_guard.calibration.labels import contains
from semgrad_guard.demo import embedded_model, labelled_questions
from semgrad_guard.evaluation.compare import choose, compare
from semgrad_guard.evaluation.run import evaluate
from semgrad_guard.model.fingerprint import fingerprint
from semgrad_guard.model.load import load_model

MODELS, FILES = ("Qwen3-4B", "Mistral-Nemo", "Llama-3.1-8B"), ("SciQ", "TriviaQA", "TruthfulQA")
PAPER = {  # three files for each of three models, %
    "SemGrad": (72.20, 80.40, 69.06, 75.55, 82.37, 72.27, 75.76, 84.72, 69.42),
    "HybridGrad": (72.83, 81.69, 69.61, 76.90, 84.13, 72.72, 76.31, 85.89, 69.25),
    "ParaGrad": (72.09, 82.02, 66.40, 77.99, 85.91, 70.54, 74.98, 86.49, 63.91),
    "ExGrad": (71.34, 80.37, 63.77, 77.53, 84.53, 66.40, 74.11, 85.22, 62.00),
    "G-NLL": (72.70, 81.01, 60.44, 76.83, 84.61, 63.67, 75.49, 85.91, 57.51),
}

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--model", help="hub id or folder; the embedded model if not given")
parser.add_argument("--data", help="JSON lines or CSV, or hub:owner/name:split; a few questions of ours if not given")
parser.add_argument("--out", help="folder for results, from which a run can go on")
given, _ = parser.parse_known_args()

source = load_model(given.model, dtype="auto", device_map="auto") if given.model else embedded_model()
ours = [
    Example.model_validate(line)
    for stratum in ("several", "withheld")
    for line in labelled_questions(stratum, "report")[:40]
]
examples = read_examples(given.data) if given.data else ours
out = Path(given.out or tempfile.mkdtemp(), "results.jsonl")
out.parent.mkdir(parents=True, exist_ok=True)
setting = {"fingerprint": fingerprint(source[0]), "data": given.data}
results = evaluate(SemGradScorer(*source), examples, contains, out=out, prompt="paper", setting=setting)
found = compare(results, list(choose((), None).values()), None)

model = [place for place, name in enumerate(MODELS) if given.model and name.lower() in given.model.lower()]
file = [place for place, name in enumerate(FILES) if given.data and name.lower() in given.data.lower()]
print(f"{found['labelled']} answers, labelled by 'contains' (the paper: BEM). {found['missing']}")
print("AUROC, %    ours [95 % interval]     the paper's")
for method, figures in PAPER.items():
    if row := found["methods"].get(method):
        low, high = row["auroc_interval"]
        theirs = f"{figures[3 * model[0] + file[0]]:.2f}" if model and file else "-"
        print(f"{method:<12}{100 * row['auroc']:6.2f} [{100 * low:.2f}, {100 * high:.2f}]   {theirs}")
