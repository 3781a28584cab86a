"""The command line: `semgrad-guard demo`, `semgrad-guard ask` and `semgrad-guard bench`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.prompt import Prompt
from tqdm.auto import tqdm

from semgrad_guard.demo.embedded import PROFILE, embedded_model
from semgrad_guard.demo.embedded import corpus as embedded_corpus
from semgrad_guard.demo.walkthrough import ladder, walk_through
from semgrad_guard.errors import ConfigurationError, SemGradError
from semgrad_guard.evaluation.overhead import as_table, measure_overhead, random_llama
from semgrad_guard.langchain.guard import SemGradGuard
from semgrad_guard.model.load import load_model
from semgrad_guard.routing.routes import ReviewAnswer, ReviewRequest

app = typer.Typer(
    help="The confidence layer for local language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_FIELDS = ("decision", "confidence", "scores", "threshold", "reason", "steps", "sources")


@app.command()
def demo() -> None:
    """Walk through what the guard does, on the embedded model, offline."""
    walk_through(Console(), _ask_human if sys.stdin.isatty() else None)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    model: Annotated[str | None, typer.Option(help="Hub id or folder; the embedded model if not given.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Profile of the model, a JSON file.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Least confidence that passes, in [0, 1].")] = None,
    score_threshold: Annotated[
        float | None, typer.Option(help="Without a profile: largest raw SemGrad score that passes.")
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Text file to retrieve from, one passage a line.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer a question if the model is sure; else look it up, ask a human when interactive, or abstain."""
    try:
        if not question.strip():
            raise ConfigurationError("The question is empty; expected some text.")
        human = None if as_json or not sys.stdin.isatty() else _ask_human
        source = embedded_model() if model is None else load_model(model, revision=revision)
        if model is None and profile is None and score_threshold is None:
            profile = PROFILE
        own = embedded_corpus() if model is None else ()
        passages = own if corpus is None else _passages(corpus)
        guard = SemGradGuard(
            source,
            profile=profile,
            threshold=threshold,
            score_threshold=score_threshold,
            routes=ladder(passages, human),
        )
        message = guard.invoke(question)
    except SemGradError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from error
    record = message.response_metadata["semgrad"]
    if as_json:
        print(json.dumps({"answer": message.content} | {field: record[field] for field in _FIELDS}))
        return
    console = Console()
    console.print(escape(str(message.content)), style="bold")
    console.print(f"{record['decision']}: {escape(record['reason'])}")
    for source in record["sources"] if record["decision"] == "retrieve" else []:
        console.print(f"source: {escape(source['text'])}")


@app.command()
def bench(
    prompts: Annotated[str, typer.Option(help="Prompt lengths.")] = "32,512,2048",
    responses: Annotated[str, typer.Option(help="Response lengths.")] = "8,32",
    hidden: Annotated[int, typer.Option(help="Hidden size of the random Llama; a multiple of 64.")] = 512,
    layers: Annotated[int, typer.Option(help="Its layers.")] = 12,
    vocabulary: Annotated[int, typer.Option(help="Its vocabulary.")] = 32_000,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed repeats; medians are given.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what scoring costs on top of generation, beside other ways of computing it, on a random Llama."""
    sizes = [(prompt, response) for prompt in _numbers(prompts) for response in _numbers(responses)]
    torch.set_num_threads(threads)
    model, tokenizer = random_llama(hidden, layers, vocabulary), embedded_model()[1]
    if torch.cuda.is_available():
        torch.nn.Module.to(model, "cuda", torch.bfloat16)
    rows = [
        measure_overhead(model, tokenizer, prompt, response, repeats=repeats)
        for prompt, response in tqdm(sizes, desc="measuring")
    ]
    setting = {"hidden": hidden, "layers": layers, "vocabulary": vocabulary, "threads": threads, "repeats": repeats}
    if as_json:
        print(json.dumps({**setting, "device": model.device.type, "rows": [vars(row) for row in rows]}))
    else:
        shape = ", ".join(f"{name} {value}" for name, value in setting.items())
        Console().print(Markdown("\n".join([f"{model.device.type}: {shape}", "", *as_table(rows)])))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: expected numbers with commas between, such as 32,512.") from error


def _passages(path: Path) -> list[str]:
    try:
        passages = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read the corpus {path}: {error}") from error
    if not passages:
        raise ConfigurationError(f"The corpus {path} has no text; expected one passage a line.")
    return passages


def _ask_human(request: ReviewRequest) -> ReviewAnswer:
    console = Console()
    console.print(f"\n[bold]{escape(request.question)}[/]\ndraft: {escape(request.draft)}\n{escape(request.reason)}")
    decision = Prompt.ask("Your decision", choices=["approve", "edit", "reject", "respond"], default="reject")
    text = Prompt.ask("Text") if decision in ("edit", "respond") else None
    return ReviewAnswer.model_validate({"decision": decision, "text": text})
