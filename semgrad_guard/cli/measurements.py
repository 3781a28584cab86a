"""Commands that measure: `evaluate` and `bench`."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Column, Table

from semgrad_guard.cli.app import (
    DtypeOption,
    JsonOption,
    ModelOption,
    RevisionOption,
    SystemOption,
    TokenPositionOption,
    app,
    bound_scorer,
    model_of,
    plain_errors,
    prompt_of,
)
from semgrad_guard.demo.embedded import PROFILE
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.scoring.registry import known_scores

if TYPE_CHECKING:
    import torch

    from semgrad_guard.calibration.labels import Labeler
    from semgrad_guard.calibration.profile import Profile
    from semgrad_guard.calibration.prompts import PromptForm
    from semgrad_guard.evaluation.run import Answerer, Work
    from semgrad_guard.scoring.scorer import SemGradScorer


@dataclass(frozen=True)
class Answering:
    """The options of `evaluate` about answering, scoring and labelling, in a form that other processes can load."""

    model: str | None
    revision: str | None
    dtype: str | None
    quiet: bool
    profile: Profile | None
    labels: str
    prompt: PromptForm
    token_position: int | None
    max_new_tokens: int
    seed: int
    samples: int
    p_true: bool
    polygraph: tuple[str, ...]
    entailment: tuple[str, ...]
    nli: Path | None
    cross_encoder: Path | None

    def loaded(self, device: torch.device) -> tuple[SemGradScorer, Labeler, Work]:
        """Load the models that it takes onto a device.

        Raises:
            SemGradError: one cannot be loaded, or an option is out of range.
        """
        import torch

        from semgrad_guard.calibration.labels import labeler
        from semgrad_guard.evaluation.classifiers import Entailment, model_folder
        from semgrad_guard.evaluation.polygraph import Polygraph
        from semgrad_guard.evaluation.run import Work

        folder = model_folder(self.entailment[0], "--nli", self.nli) if self.entailment else None
        label = labeler(self.labels)
        model, tokenizer = model_of(self.model, self.revision, self.dtype, quiet=self.quiet)
        torch.nn.Module.to(model, device)
        scorer = bound_scorer((model, tokenizer), self.profile, self.token_position)
        polygraph = (
            Polygraph(self.polygraph, nli=self.nli, cross_encoder=self.cross_encoder, device=device)
            if self.polygraph
            else None
        )
        entailment = None if folder is None else Entailment(folder, device)
        work = Work(samples=self.samples, p_true=self.p_true, polygraph=polygraph, entailment=entailment)
        return scorer, label, work

    def answerer(self, device: torch.device) -> Answerer:
        """Load the models, and make the function that answers a question with them."""
        from semgrad_guard.evaluation.run import answerer

        scorer, label, work = self.loaded(device)
        return answerer(
            scorer, label, prompt=self.prompt, max_new_tokens=self.max_new_tokens, work=work, seed=self.seed
        )


_SAMPLES = 10  # as many as the paper draws for the baselines that sample


@app.command()
def evaluate(
    data: Annotated[
        str,
        typer.Option(
            help='Labelled questions in JSON lines or CSV, with "query" and "truthful answer"; or hub:owner/name:split.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl, metrics.json and report.html.")],
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    profile: Annotated[
        Path | None, typer.Option(help="Profile of the model, a JSON file. The embedded model has one.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Prompt: plain, paper for the one of the SemGrad paper, or a file with a text with {query} in it, or "
            "with messages as JSON. The default is the profile's."
        ),
    ] = None,
    system: SystemOption = None,
    labels: Annotated[
        str,
        typer.Option(
            help="Comparison of an answer with the right one: match, contains, either, f1, or similar:FOLDER."
        ),
    ] = "match",
    methods: Annotated[
        str,
        typer.Option(
            help="Names of the methods, separated by commas, such as "
            f"{', '.join(kind.option for kind in known_scores('report'))}. The default is all that need no sampling."
        ),
    ] = "",
    samples: Annotated[
        int, typer.Option(min=0, help="Number of answers to draw for methods that sample; 0 draws 10 if there is one.")
    ] = 0,
    nli: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an entailment classifier, for self-consistency-nli, semantic-entropy-nli, degmat and "
            "semantic-density."
        ),
    ] = None,
    cross_encoder: Annotated[Path | None, typer.Option(help="Folder of a cross-encoder, for sar.")] = None,
    paraphrases: Annotated[
        Path | None,
        typer.Option(help='File to test the premise and measure SPS on, with "query" and "paraphrases" in each line.'),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="Strata to look at together too: NAME=STRATUM,STRATUM. The option may be repeated."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    token_position: TokenPositionOption = None,
    seed: Annotated[int, typer.Option(help="Random seed of sampling.")] = 0,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Answer in processes on Ray: on this machine, or in the cluster at RAY_ADDRESS."),
    ] = False,
    actors: Annotated[int, typer.Option(help="Number of processes, with --ray.")] = 2,
    gpus: Annotated[float, typer.Option(help="Number of GPUs for each process, with --ray; 0.25 to share one.")] = 0.0,
    part_size: Annotated[
        int, typer.Option(help="Number of questions in each Parquet file in OUT/parts, with --ray.")
    ] = 32,
    as_json: JsonOption = False,
) -> None:
    """Compare confidence with other scores on labelled questions; an interrupted run goes on where it stopped."""
    import torch

    from semgrad_guard.calibration.examples import read_examples, read_paraphrases
    from semgrad_guard.calibration.profile import Profile
    from semgrad_guard.evaluation.compare import ENTAILMENT, POLYGRAPH, choose
    from semgrad_guard.evaluation.ray_data import RayPool
    from semgrad_guard.evaluation.report import WHOLE, parts_of, report
    from semgrad_guard.evaluation.run import evaluate as run_evaluation
    from semgrad_guard.evaluation.run import prompt_name
    from semgrad_guard.evaluation.study import study
    from semgrad_guard.model.fingerprint import fingerprint

    with plain_errors():
        wanted = _prompt(prompt, system)
        examples, unions = read_examples(data), dict(map(_union, part or []))
        groups = () if paraphrases is None else read_paraphrases(paraphrases)
        path = PROFILE if model is None and profile is None else profile
        loaded = None if path is None else Profile.load(path)
        form = _evaluated_prompt(loaded, wanted)
        names = [name.strip() for name in methods.split(",") if name.strip()]
        chosen = choose(names, loaded, sampling=samples > 0, entailment=nli is not None)
        if any("sampling" in method.spends for method in chosen.values()):
            samples = samples or _SAMPLES
        answering = Answering(
            model=model,
            revision=revision,
            dtype=dtype,
            quiet=as_json,
            profile=loaded,
            labels=labels,
            prompt=form,
            token_position=token_position,
            max_new_tokens=max_new_tokens,
            seed=seed,
            samples=samples,
            p_true="p-true" in chosen,
            polygraph=tuple(name for name in chosen if name in POLYGRAPH),
            entailment=tuple(name for name in chosen if name in ENTAILMENT),
            nli=nli,
            cross_encoder=cross_encoder,
        )
        scorer, label, work = answering.loaded(torch.device("cpu"))
        setting = {"model": model or "embedded", "fingerprint": fingerprint(scorer.model), "labels": labels}
        out.mkdir(parents=True, exist_ok=True)
        results = run_evaluation(
            scorer,
            examples,
            label,
            out=out / "results.jsonl",
            prompt=form,
            max_new_tokens=max_new_tokens,
            work=work,
            seed=seed,
            setting=setting,
            elsewhere=RayPool(answering.answerer, out / "parts", actors, gpus, part_size) if ray else None,
        )
        compared, parts = list(chosen.values()), parts_of(results, unions)
        further = study(
            scorer,
            results,
            compared,
            parts,
            prompt=form,
            max_new_tokens=max_new_tokens,
            paraphrases=groups,
        )
        page = report(
            parts,
            compared,
            loaded,
            further,
            title=f"Evaluation on {Path(data).name}",
            setting={"data": str(data), **setting, **work.setting, "prompt": prompt_name(form), "seed": seed},
        )
    (out / "metrics.json").write_text(json.dumps(page.metrics, indent=1) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page.html, encoding="utf-8")
    whole = page.metrics["parts"][WHOLE]
    if as_json:
        print(json.dumps(page.metrics))
        return
    method, interval = (Column(name, no_wrap=True) for name in ("method", "95 % interval"))
    table = Table(method, "AUROC", interval, "PRR", "accuracy at 80 %", "overhead")
    for name, row in whole["methods"].items():
        if row["failed"] == whole["labelled"]:
            table.add_row(name, "failed")
            continue
        low, high = row["auroc_interval"]
        table.add_row(
            name,
            f"{row['auroc']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row['prr']:.3f}",
            f"{row['accuracy_at_80%']:.1%}",
            "-" if row["overhead"] is None else f"{row['overhead']['median']:.2f}",
        )
    Console().print(table)
    print(f"{whole['questions']} questions, {whole['failed']} without a score. {whole['missing']}")
    print(f"Report: {out / 'report.html'}")


@app.command()
def bench(
    prompts: Annotated[str, typer.Option(help="Prompt lengths, in tokens.")] = "32,512,2048",
    responses: Annotated[str, typer.Option(help="Response lengths, in tokens.")] = "8,32",
    batches: Annotated[str, typer.Option(help="Rows in a batch.")] = "1",
    layers: Annotated[str, typer.Option(help="Layers of the random Llama.")] = "12",
    vocabularies: Annotated[str, typer.Option(help="Vocabulary sizes.")] = "32000",
    hidden: Annotated[int, typer.Option(help="Hidden size, a multiple of 64.")] = 512,
    threads: Annotated[int, typer.Option(help="Number of CPU threads.")] = 1,
    repeats: Annotated[int, typer.Option(help="Number of timed repeats. The table shows medians.")] = 5,
    plot: Annotated[Path | None, typer.Option(help="SVG file to draw the overhead into.")] = None,
    page: Annotated[Path | None, typer.Option(help="Markdown file to write the table into.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what scoring costs on top of generation, beside other ways of computing it, on a random Llama.

    Options take lists such as 32,512; every combination is measured.
    """
    import torch
    from tqdm.auto import tqdm

    from semgrad_guard.evaluation.figures import draw_overhead
    from semgrad_guard.evaluation.overhead import as_page, as_table, measure_overhead, numbered_tokenizer, random_llama

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = list(itertools.product(*map(_numbers, (layers, vocabularies, batches, prompts, responses))))
    rows = []
    for depth, vocabulary, batch, prompt, response in tqdm(sizes, desc="measuring"):
        model = random_llama(hidden, depth, vocabulary)
        if device.type == "cuda":
            torch.nn.Module.to(model, device, torch.bfloat16)
        tokenizer = numbered_tokenizer(vocabulary)
        rows.append(measure_overhead(model, tokenizer, prompt, response, batch=batch, repeats=repeats))
    if plot is not None:
        draw_overhead(rows, plot)
    setting = {"device": device.type, "hidden": hidden, "threads": threads, "repeats": repeats}
    shape = ", ".join(f"{name} {value}" for name, value in setting.items())
    if page is not None:
        page.write_text(as_page(rows, f"{shape}, torch {torch.__version__}", plot), encoding="utf-8")
    if as_json:
        print(json.dumps({**setting, "rows": [vars(row) for row in rows]}))
    else:
        Console(width=220).print(Markdown("\n".join([shape, "", *as_table(rows)])))


def _prompt(name: str | None, system: str | None) -> PromptForm | None:
    """Build the prompt from its name or file; None if the options ask for none."""
    from semgrad_guard.evaluation.run import PROMPTS

    if name in PROMPTS:
        return PROMPTS[name] if system is None else PROMPTS[name].with_system(system)
    if name is not None and not Path(name).is_file():
        raise ConfigurationError(f"prompt={name!r}: expected one of {', '.join(PROMPTS)}, or a file.")
    return prompt_of(None if name is None else Path(name), system)


def _evaluated_prompt(profile: Profile | None, wanted: PromptForm | None) -> PromptForm:
    """Choose the prompt; another than the profile's can be evaluated, but its confidence was not made for it."""
    from semgrad_guard.calibration.prompts import BARE

    calibrated = BARE if profile is None else profile.bound_to.prompt or BARE
    if profile is not None and wanted not in (None, calibrated):
        Console(stderr=True).print(
            "The profile was calibrated with another prompt: its confidence promises nothing here.", style="yellow"
        )
    return wanted or calibrated


def _union(text: str) -> tuple[str, list[str]]:
    name, equals, strata = text.partition("=")
    if not equals:
        raise ConfigurationError(f"part={text!r}: expected a name and strata, such as hard=several,invented.")
    return name.strip(), [stratum.strip() for stratum in strata.split(",")]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: expected numbers with commas between, such as 32,512.") from error
