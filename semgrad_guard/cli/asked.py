"""What `evaluate` was asked to do, in a form that other processes can be told."""

from dataclasses import dataclass
from pathlib import Path

import torch

from semgrad_guard.calibration.labels import Labeler, labeler
from semgrad_guard.calibration.profile import Profile
from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.cli.app import bound_scorer, model_of
from semgrad_guard.evaluation.polygraph import Polygraph
from semgrad_guard.evaluation.run import Answerer, Work, answerer
from semgrad_guard.scoring.scorer import SemGradScorer


@dataclass(frozen=True)
class Asked:
    """The options of `evaluate` that say how a question is answered, scored and labelled."""

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
    nli: Path | None
    cross_encoder: Path | None

    def loaded(self, device: torch.device) -> tuple[SemGradScorer, Labeler, Work]:
        """Load the models that it takes onto a device.

        Raises:
            SemGradError: one cannot be loaded, or an option is out of range.
        """
        label = labeler(self.labels)
        model, tokenizer = model_of(self.model, self.revision, self.dtype, quiet=self.quiet)
        torch.nn.Module.to(model, device)
        scorer = bound_scorer((model, tokenizer), self.profile, self.token_position)
        polygraph = (
            Polygraph(self.polygraph, nli=self.nli, cross_encoder=self.cross_encoder, device=device)
            if self.polygraph
            else None
        )
        return scorer, label, Work(samples=self.samples, p_true=self.p_true, polygraph=polygraph)

    def answerer(self, device: torch.device) -> Answerer:
        """Load them, and give what answers a question with them."""
        scorer, label, work = self.loaded(device)
        return answerer(
            scorer, label, prompt=self.prompt, max_new_tokens=self.max_new_tokens, work=work, seed=self.seed
        )
