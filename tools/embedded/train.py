"""Train the embedded model from scratch: `python -m tools.embedded.train`.

Fixed seed; every step draws its rows from a generator seeded by the step's number, so a run that was interrupted goes
on from its last checkpoint as if nothing had happened. The same command uses a GPU where there is one.
"""

import json
import math
import random
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from semgrad_guard.demo.embedded import WEIGHTS
from semgrad_guard.routing.grounding import grounded_question
from tools.embedded.examples import MIXES, SYSTEM, Curriculum, Row, World, curriculum, small_talk
from tools.embedded.facts import relations, strata
from tools.embedded.names import pieces
from tools.embedded.network import new_model
from tools.embedded.tokenizer import build_tokenizer
from tools.embedded.tool_use import PHRASES
from tools.embedded.tools import DAYS, REFUSAL, Tool, tools

CORE_STEPS, POLISH_STEPS = 3200, 800
_ROWS = 64  # a step, on average
_GROUP = 4  # batches drawn together and cut by length, so that little is padded
_PEAK_RATES = (0.01, 2e-3)  # of the matrices inside the layers (Muon), of everything else (AdamW)
_PROMPT_SHARE = 0.2  # of the prompt tokens are predicted too, beside all answer tokens


def world_texts() -> list[str]:
    """List every text whose words the tokenizer must know whole."""
    texts = [grounded_question("?", ["1", "2", "3", "4", "5"])]
    for relation in relations():
        texts += [relation.ask(wording, " ") for wording in (*relation.questions, *relation.held_out)]
        texts += [relation.state(wording, " ", " ") for wording in relation.statements]
        for fact in relation.facts:
            texts += [text for name in (fact.subject, *fact.answers) for text in (name, name[:1].upper() + name[1:])]
    for tool in (*tools(), Tool("no_arguments", "", {})):
        texts += [tool.name, *tool.requests, *tool.held_out, *tool.lacking, *tool.results, tool.reply]
        call = tool.call({name: 1 if kind == "number" else "x" for name, kind in tool.arguments.items()})
        shown = [call["tool_calls"][0]["function"], *(tool.schema(type_first=first) for first in (False, True))]
        texts += [
            f" <tool_call>{json.dumps(entry)}</tool_call>"
            for entry in (shown[0], *(schema["function"] for schema in shown[1:]))
        ]
    for dialogue in small_talk():
        texts += [text for turn in dialogue.values() for text in ([turn] if isinstance(turn, str) else turn)]
    return [
        *texts,
        *PHRASES,
        *SYSTEM,
        *DAYS,
        REFUSAL,
        "Tools:",
        '{"result": 1}',
        'x("x", "x", 1, "x")',
        "x(1, 1)",
        "x()?",
    ]


class Batches:
    """Turns conversations into token tensors with a mark on every token that is to be predicted."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Remember the ids that delimit an answer."""
        self.tokenizer = tokenizer
        self.answer_head = tokenizer.encode("<|im_start|>assistant\n")
        self.end = tokenizer.eos_token_id

    def group(self, step: int, mix: Curriculum) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Draw the batches of a group of steps: ids and predicted-token marks, each of shape [rows, tokens]."""
        world = World(strata()["seed"] * 1_000_003 + step)
        drawn = [world.row(mix) for _ in range(_ROWS * _GROUP)]
        rows = sorted(self.encode(drawn, world.rng), key=lambda row: len(row[0]))
        weights = list(accumulate(len(ids) ** 0.5 for ids, _ in rows))  # between equal rows and equal tokens
        cuts = [bisect(weights, weights[-1] * part / _GROUP) for part in range(1, _GROUP)]
        batches = [self.pad(rows[start:end]) for start, end in pairwise((0, *cuts, len(rows)))]
        world.rng.shuffle(batches)
        return batches

    def encode(self, drawn: list[Row], rng: random.Random) -> list[tuple[list[int], list[bool]]]:
        """Render the conversations with the chat template; mark all answer tokens and a share of the others."""
        texts = [
            self.tokenizer.apply_chat_template(row.messages, tools=list(row.tools) or None, tokenize=False)
            for row in drawn
        ]
        rows = []
        for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]:
            head, inside, marks = self.answer_head, False, []
            for position, token in enumerate(ids):
                marks.append(inside or rng.random() < _PROMPT_SHARE)
                inside = token != self.end if inside else ids[position + 1 - len(head) : position + 1] == head
            rows.append((ids, marks))
        return rows

    def pad(self, rows: list[tuple[list[int], list[bool]]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad rows on the right; padding is never predicted."""
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        marks = torch.zeros(len(rows), width, dtype=torch.bool)
        for index, (row_ids, row_marks) in enumerate(rows):
            ids[index, : len(row_ids)] = torch.tensor(row_ids)
            marks[index, : len(row_marks)] = torch.tensor(row_marks)
        return ids, marks


def learning_rate(step: int, core: int, polish: int) -> float:
    """Give the share of the peak rate: up over 150 steps, held, then from 0.4 of the main part on a cosine to zero.

    Polishing is another cosine, from 0.3 of the peak down to zero.
    """
    if step >= core:
        return 0.15 * (1 + math.cos(math.pi * (step - core) / polish))
    start = 0.4 * core
    decay = 1.0 if step < start else 0.5 * (1 + math.cos(math.pi * (step - start) / (core - start)))
    return min(1.0, (step + 1) / 150) * decay


def _optimizers(model: LlamaForCausalLM) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which learns rare facts sooner; AdamW for everything else."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    inside = {id(parameter) for parameter in matrices}
    outer = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return (
        torch.optim.Muon(matrices, lr=_PEAK_RATES[0], weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"),
        torch.optim.AdamW(outer, lr=_PEAK_RATES[1], betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    )


def train(
    core: int, polish: int, checkpoint: Path, mix: Callable[[float], Curriculum] = curriculum
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train for a number of steps and polish for some more, going on from the checkpoint where there is one."""
    steps = core + polish
    seed = strata()["seed"]
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer(world_texts(), pieces())
    model = new_model(tokenizer)
    torch.nn.Module.to(model, device)
    optimizers = _optimizers(model)
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first = saved["step"]
    batches = Batches(tokenizer)
    smoothed = None
    bar = tqdm(
        range(first, steps, _GROUP), initial=first // _GROUP, total=steps // _GROUP, desc="training", mininterval=5
    )
    for group_step in bar:
        for offset, (ids, marks) in enumerate(batches.group(group_step, mix(group_step / core))):
            ids, marks = ids.to(device), marks.to(device)[:, 1:]
            for optimizer, peak in zip(optimizers, _PEAK_RATES, strict=True):
                optimizer.param_groups[0]["lr"] = peak * learning_rate(group_step + offset, core, polish)
            with torch.autocast(device.type, torch.bfloat16):
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
                logits = model.lm_head(hidden[marks])
            loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][marks])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad(set_to_none=True)
            smoothed = loss.item() if smoothed is None else 0.98 * smoothed + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smoothed:.3f}")
        if (group_step // _GROUP + 1) % 50 == 0 or group_step + _GROUP >= steps:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": group_step + _GROUP,
            }
            partial = checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(checkpoint)
    return model, tokenizer


def main(
    steps: Annotated[int, typer.Option(help="Steps of 64 rows in the main part.")] = CORE_STEPS,
    polish: Annotated[
        int, typer.Option(help="Steps after it, mostly on questions with several answers.")
    ] = POLISH_STEPS,
    mix: Annotated[
        Literal["everything", "single-answers"],
        typer.Option(help="What is learnt; single-answers: a world of facts with one right answer each."),
    ] = "everything",
    out: Annotated[Path, typer.Option(help="Folder for the model.")] = WEIGHTS,
    checkpoint: Annotated[Path, typer.Option(help="Goes on from here when it exists.")] = Path(
        ".cache/embedded-model.pt"
    ),
) -> None:
    """Train the embedded model and write weights, tokenizer and template."""
    model, tokenizer = train(steps, polish, checkpoint, MIXES[mix])
    model.eval().to("cpu", torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
