"""The page about overhead: a table of measurements and what its columns mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semgrad_guard.evaluation.overhead import Overhead

_PAGE = """\
# What a score costs

Written by `semgrad-guard bench`: a random Llama, every contender timed in the same run, medians of the ratios within a
repeat. {setting}.

{picture}{table}

Columns with a plus are shares of plain generation, on top of it. *SemGrad* computes SemGrad alone, *all scores* also
ParaGrad, ExGrad and HybridGrad; *upper* is upper-half replay, *all layers* takes gradients at every layer. *Official*
differentiates everything, as the paper describes it; *re-forward* reads the whole sequence again and takes one backward
to the same layers; both are over SemGrad on upper-half replay. *Operations* are those of all scores (upper) over those
of generation: what the overhead would be if every operation took as long. *In products* is the share of the time of
all scores (upper) in matrix products and attention, which no other way of writing the rest would save. *Memory* is the
peak of all scores (plain path), beside the model and the generation's cache.
"""


def as_table(rows: Sequence[Overhead]) -> list[str]:
    """Render rows as a Markdown table."""
    head = (
        *("P", "T", "batch", "layers", "V", "generate, s", "+ SemGrad", "+ all scores"),
        *("+ SemGrad, upper", "+ all scores, upper", "+ all layers", "+ 10 samples"),
        *("official / ours", "re-forward / ours", "operations", "in products", "memory, ours / official"),
    )
    body = [
        (
            *map(str, (row.prompt, row.response, row.batch, row.layers, row.vocabulary)),
            f"{row.plain_seconds:.2f}",
            *(
                f"{share:.1%}"
                for share in (row.semgrad, row.scores, row.upper_semgrad, row.upper_scores, row.all_layers)
            ),
            f"{row.samples:.0%}",
            *(f"{ratio:.1f}x" for ratio in (row.official, row.competent)),
            *(f"{share:.1%}" for share in (row.operations, row.products, row.memory)),
        )
        for row in rows
    ]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def as_page(rows: Sequence[Overhead], setting: str, plot: Path | None) -> str:
    """Render rows as a page of documentation."""
    picture = "" if plot is None else f"![What scoring costs on top of generation]({plot.name})\n\n"
    return _PAGE.format(setting=setting, picture=picture, table="\n".join(as_table(rows)))
