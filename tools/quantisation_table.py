"""Score the same real answers with the weights held in many ways, and write which ways are accepted and how close.

    python -m tools.quantisation_table [--only ROW ...] [--again]

SmolLM2-135M-Instruct (`make models`) answers questions about the world in float32. Every row loads the same weights in
another way, builds a scorer, and scores the same answers. What a row needs and is not installed makes it "not run".
Rows that were measured before are read from `.cache/quantisation`; the table goes into docs/architectures.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from semgrad_guard import SemGradScorer, UnsupportedModelError
from semgrad_guard.model.chat_template import encode_chat
from tools.world_facts import questions

ROOT = Path(__file__).parents[1]
GGUF = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = ROOT / ".cache" / "quantisation"
PLAIN = CACHE / "plain"
PAGE = ROOT / "docs" / "architectures.md"
TITLE = "## Weights held in other ways"
ANSWERS, TOKENS, BATCH = 64, 12, 16
MEASURES = ("semgrad", "nll")


HEAD = f"""{TITLE}

Written by `python -m tools.quantisation_table`. SmolLM2-135M-Instruct answered {ANSWERS} questions about the world in
float32, on a CPU; every row holds the same weights in another way and scores the same answers, at the upper half of the
layers. *Rank correlation* is Spearman's with the scores of float32, *error* the median relative difference of SemGrad
from float32. When a scorer is built, gradients are compared with what small changes of the inputs do, module by module
and in the model's own precision; a model is *refused* where they do not agree, and the error names the modules.

| weights held as | outcome | SemGrad, rank correlation | SemGrad, error | NLL, rank correlation | remarks |
|---|---|---|---|---|---|"""
TAIL = """
What rounds weights alone keeps its backward. Kernels that round activations to 8 bits have one only where somebody
wrote it: LLM.int8 of bitsandbytes does, the int8 kernels of torch and torchao do not. On processors with AVX512-BF16,
bitsandbytes repacks 4-bit weights in the first forward pass without gradients, for a kernel without a backward; with
`support_avx512bf16_for_cpu = False` on each of its layers before that, it keeps the one that has one."""


class Answers(NamedTuple):
    """Prompts and responses in ids."""

    prompts: list[list[int]]
    responses: list[list[int]]


def loaded(**settings: Any) -> Any:
    """Load the plain weights with settings of `from_pretrained`."""
    return AutoModelForCausalLM.from_pretrained(PLAIN, **settings).eval()


def from_gguf() -> Any:
    """Load the file itself."""
    return AutoModelForCausalLM.from_pretrained(GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32).eval()


def with_config(name: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Load with one of the quantisation configurations of transformers."""
    return loaded(quantization_config=getattr(transformers, name)(**settings), dtype=dtype)


def four_bits_unpacked() -> Any:
    """Keep the layers of bitsandbytes from repacking their weights for a kernel that has no backward."""
    model = with_config("BitsAndBytesConfig", load_in_4bit=True, bnb_4bit_quant_type="nf4")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def dynamic(part: str) -> Any:
    """Quantise with torch's own int8 layers: the whole model, or one part of it."""
    model = loaded(dtype=torch.float32)
    if not part:
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    holder = torch.nn.Sequential(model.get_submodule(part))
    model.set_submodule(part, torch.ao.quantization.quantize_dynamic(holder, {torch.nn.Linear}, dtype=torch.qint8)[0])
    return model


def torchao(config: str, place: str = "torchao.quantization", **settings: Any) -> Any:
    """Quantise the decoder with a configuration of torchao."""
    quantize = importlib.import_module("torchao.quantization").quantize_
    model = loaded(dtype=torch.bfloat16)
    quantize(model.model, getattr(importlib.import_module(place), config)(**settings))
    return model


def half_quadratic() -> Any:
    """Quantise the decoder with HQQ's own layers; transformers cannot at present."""
    hqq = importlib.import_module("hqq.core.quantize")
    model = loaded(dtype=torch.float32)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            settings = hqq.BaseQuantizeConfig(nbits=4, group_size=64)
            held = hqq.HQQLinear(module, settings, compute_dtype=torch.float32, device="cpu")
            model.model.set_submodule(name, held)
    return model


def gptq() -> Any:
    """Quantise once, on a few sentences, and keep the result."""
    folder = CACHE / "gptq"
    if not folder.exists():
        texts = [" ".join(item["query"] for item in questions(1)[start : start + 24]) for start in range(0, 192, 24)]
        tokenizer = AutoTokenizer.from_pretrained(PLAIN)
        config = transformers.GPTQConfig(bits=4, group_size=32, dataset=texts, tokenizer=tokenizer)
        model = loaded(quantization_config=config, dtype=torch.float32, device_map="cpu")
        model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").eval()


INT4 = "torchao.prototype.quantization.int4"
ROWS: dict[str, Callable[[], Any]] = {
    "float32": lambda: loaded(dtype=torch.float32),
    "GGUF Q4_1, dequantised to float32": from_gguf,
    "bfloat16": lambda: loaded(dtype=torch.bfloat16),
    "float16": lambda: loaded(dtype=torch.float16),
    "bitsandbytes 8-bit, float32": lambda: with_config("BitsAndBytesConfig", load_in_8bit=True),
    "bitsandbytes 8-bit, bfloat16": lambda: with_config("BitsAndBytesConfig", torch.bfloat16, load_in_8bit=True),
    "bitsandbytes 4-bit (nf4)": lambda: with_config("BitsAndBytesConfig", load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes 4-bit (nf4), not repacked": four_bits_unpacked,
    "torchao int8, weights only": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao int8, activations too": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao int4, weights only": lambda: torchao("PrototypeInt4WeightOnlyConfig", INT4, group_size=32),
    "quanto int8": lambda: with_config("QuantoConfig", weights="int8"),
    "quanto int4": lambda: with_config("QuantoConfig", weights="int4"),
    "HQQ 4-bit": half_quadratic,
    "GPTQ 4-bit (gptqmodel)": gptq,
    "torch quantize_dynamic (int8)": lambda: dynamic(""),
    "the same, one layer of 210 alone": lambda: dynamic("model.layers.20.mlp.down_proj"),
    "the same, output head alone": lambda: dynamic("lm_head"),
}


def prepare() -> None:
    """Write the weights of the GGUF file as a plain folder."""
    if PLAIN.exists():
        return
    model = from_gguf()
    config = type(model.config).from_dict({**model.config.to_dict(), "quantization_config": None})
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(PLAIN)
    AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name).save_pretrained(PLAIN)


def answers() -> Answers:
    """Answer in float32 and keep the ids; the questions are spread evenly over all kinds."""
    path = CACHE / "answers.json"
    if not path.exists():
        scorer = SemGradScorer(loaded(dtype=torch.float32), AutoTokenizer.from_pretrained(PLAIN))
        every = questions(0)
        chosen = every[:: len(every) // ANSWERS][:ANSWERS]
        prompts = [encode_chat(scorer.tokenizer, [{"role": "user", "content": item["query"]}]) for item in chosen]
        responses = []
        for start in range(0, ANSWERS, BATCH):
            rows = scorer.generate(prompts[start : start + BATCH], max_new_tokens=TOKENS, do_sample=False)
            responses += [list(row.response_ids) for row in rows]
        path.write_text(json.dumps([prompts, responses]))
    return Answers(*json.loads(path.read_text()))


def measure(name: str, inputs: Answers) -> dict[str, Any]:
    """Load, build a scorer, and score; or say why not."""
    try:
        model = ROWS[name]()
    except Exception as error:
        lines = str(error).strip().splitlines()
        return {"outcome": "not run", "why": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    try:
        scorer = SemGradScorer(model, AutoTokenizer.from_pretrained(PLAIN))
    except UnsupportedModelError as error:
        return {"outcome": "refused", "why": str(error)}
    scores = []
    for start in range(0, len(inputs.prompts), BATCH):
        part = slice(start, start + BATCH)
        scores += scorer.score_ids(inputs.prompts[part], inputs.responses[part], parameters=False)
    failures = [failure.text for score in scores if (failure := score.failure())]
    values = {name: [getattr(score, name) for score in scores] for name in MEASURES}
    return {"outcome": "accepted", "why": "; ".join(failures[:1]), "failures": len(failures), "values": values}


def row(name: str, result: dict[str, Any], exact: dict[str, Any]) -> str:
    """Write a row: the outcome, and how near the scores are to those of float32."""
    if result["outcome"] != "accepted":
        why = result["why"].split(": the backward gives")[0].replace("|", "\\|")
        return f"| {name} | {result['outcome']} | | | | {why} |"
    ours, theirs = (np.array(one["values"]["semgrad"]) for one in (result, exact))
    ranks = [f"{spearmanr(result['values'][name], exact['values'][name])[0]:.3f}" for name in MEASURES]
    cells = [ranks[0], f"{np.median(np.abs(ours / theirs - 1)):.1e}", ranks[1]]
    failed = f"{result['failures']} answers not scored: {result['why']}" if result["failures"] else ""
    return f"| {name} | accepted | {' | '.join(cells)} | {failed} |"


def section(results: dict[str, dict[str, Any]]) -> str:
    """Write the section of the page."""
    lines = [row(name, result, results["float32"]) for name, result in results.items()]
    return "\n".join([HEAD, *lines, *TAIL.splitlines(), ""])


def main() -> None:
    """Measure what has not been measured, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS), help="rows to measure")
    parser.add_argument("--again", action="store_true", help="measure these rows again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    CACHE.mkdir(parents=True, exist_ok=True)
    prepare()
    inputs = answers()
    results = {}
    for name in ROWS:
        path = CACHE / f"{name.replace(' ', '-').replace(',', '').replace('/', '-')}.json"
        if name in options.only and (options.again or not path.exists()):
            path.write_text(json.dumps(measure(name, inputs)))
        if path.exists():
            results[name] = json.loads(path.read_text())
            print(row(name, results[name], results["float32"]), flush=True)
    before = PAGE.read_text(encoding="utf-8").split(TITLE)[0].rstrip()
    PAGE.write_text(f"{before}\n\n{section(results)}", encoding="utf-8")


if __name__ == "__main__":
    main()
