"""Calibrate a guard on labelled questions, keep its profile, and let it answer with a promise."""

import tempfile
from pathlib import Path

from semgrad_guard import Abstain, ChatSemGrad, SemGradGuard, get_decision
from semgrad_guard.demo import embedded_model, labelled_questions

# In your own project: read_examples("questions.jsonl"), with lines {"query": ..., "truthful answer": [...]}.
examples = [*labelled_questions("known"), *labelled_questions("withheld")]

llm = ChatSemGrad.from_model(*embedded_model(), generation={"max_new_tokens": 16, "do_sample": False})
guard = SemGradGuard(llm, score_threshold=0.0, routes=[Abstain("I am not sure.")])  # nothing passes before calibration
guard = guard.calibrated(examples, risk=0.1, delta=0.1, search=False)
section = guard.profile.answer
print(f"passes at confidence >= {section.threshold}: {section.threshold_rule}")

with tempfile.TemporaryDirectory() as folder:  # calibrate once, load ever after
    path = Path(folder, "profile.json")
    guard.profile.save(path)
    guard = SemGradGuard(llm, profile=path, routes=guard.routes)

for question in ("What is the capital of France?", "What is the capital of Zubrovia?"):
    message = guard.invoke(question)
    decision = get_decision(message)
    print(
        f"{question} {message.content} [confidence {decision.confidence:.2f}, promised: {decision.verdict.guarantee}]"
    )
