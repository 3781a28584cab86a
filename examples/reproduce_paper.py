"""Table 1 of the SemGrad paper (arXiv 2605.04638) for one model and one data file: AUROC, ours beside the paper's.

    python examples/reproduce_paper.py --model Qwen/Qwen3-4B-Instruct-2507 --data sciq.jsonl --out results \
        --bem folder/of/answer-equivalence-bem --judge some/chat-model

As in the paper: greedy, 150 new tokens, bfloat16, its prompt, no system message; SemGrad as its code has it. BEM, as in
table 1, and a judge that replies yes or no, to a prompt of ours, label the answers; "contains" does without either.
Not run here: models of the hub, BEM and a judge. The embedded model was, and random weights in each of these roles.

Qwen3-4B ties its embeddings to its head. Autograd adds both paths up, so the authors' ParaGrad, ExGrad and HybridGrad
hold the gradient through the input embeddings as well. Ours are those of the head alone, as in the paper's equations.
"""

import argparse
import tempfile
from pathlib import Path

from semgrad_guard import ChatSemGrad, LLMJudge, SemGradScorer
from semgrad_guard.calibration.examples import Example, read_examples
from semgrad_guard.calibration.labels import contains
from semgrad_guard.demo import embedded_model, labelled_questions
from semgrad_guard.evaluation.classifiers import BEM
from semgrad_guard.evaluation.compare import choose, compare
from semgrad_guard.evaluation.run import evaluate, relabelled
from semgrad_guard.model.fingerprint import fingerprint
from semgrad_guard.model.load import load_model

MODELS = ("Qwen3-4B-Instruct-2507", "Mistral-Nemo-Instruct-2407", "Llama-3.1-8B-Instruct")
FILES = ("sciq", "trivia", "truthful")
PAPER = {  # three files for each model, labelled by BEM, %
    "SemGrad": (72.20, 80.40, 69.06, 75.55, 82.37, 72.27, 75.76, 84.72, 69.42),
    "HybridGrad": (72.83, 81.69, 69.61, 76.90, 84.13, 72.72, 76.31, 85.89, 69.25),
    "ParaGrad": (72.09, 82.02, 66.40, 77.99, 85.91, 70.54, 74.98, 86.49, 63.91),
    "ExGrad": (71.34, 80.37, 63.77, 77.53, 84.53, 66.40, 74.11, 85.22, 62.00),
    "G-NLL": (72.70, 81.01, 60.44, 76.83, 84.61, 63.67, 75.49, 85.91, 57.51),
}
parser = argparse.ArgumentParser(allow_abbrev=False)
for option in ("--model", "--data", "--out", "--bem", "--judge"):
    parser.add_argument(option)  # without the first two: the embedded model, on a few questions of its own
given, loading = parser.parse_known_args()[0], {"dtype": "bfloat16", "device_map": "auto"}
model, tokenizer = load_model(given.model, **loading) if given.model else embedded_model()
own = [line for name in ("several", "withheld") for line in labelled_questions(name, "report")[:40]]
examples = read_examples(given.data) if given.data else [Example.model_validate(line) for line in own]
scorer = SemGradScorer(model, tokenizer, layers="upper-half", reduction="mean")
(out := Path(given.out or tempfile.mkdtemp())).mkdir(parents=True, exist_ok=True)  # an interrupted run goes on there
asked = {"prompt": "paper", "max_new_tokens": 150, "setting": {"model": fingerprint(model), "data": given.data}}
results = evaluate(scorer, examples, contains, out=out / "results.jsonl", **asked)
labels = {"BEM": BEM(Path(given.bem), model.device)} if given.bem else {}
if given.judge:
    judge = ChatSemGrad.from_model(*load_model(given.judge, **loading), scored=False, temperature=0, max_tokens=5)
    labels["a judge"] = LLMJudge(judge)
models = [place for place, name in enumerate(MODELS) if name in str(given.model)]
files = [place for place, name in enumerate(FILES) if name in str(given.data).lower()]
for name, label in (labels or {"contains": contains}).items():
    found = compare(relabelled(results, examples, label), list(choose((), None).values()), None)
    print(f"{found['labelled']} labels by {name}. {found['missing']}\nAUROC, %    ours    95 % interval    the paper's")
    for method in (name for name in PAPER if name in found["methods"]):
        row, theirs = found["methods"][method], [f"{PAPER[method][3 * m + f]:.2f}" for m in models for f in files]
        low, high = (100 * bound for bound in row["auroc_interval"])
        print(f"{method:<13}{100 * row['auroc']:5.2f}    [{low:.2f}, {high:.2f}]    {(theirs or ['-'])[0]}")
