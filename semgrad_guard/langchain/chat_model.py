"""`ChatSemGrad`: a chat model over a local Hugging Face model that scores every message it gives."""

from __future__ import annotations

import logging
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr

from semgrad_guard.langchain.messages import to_template
from semgrad_guard.langchain.source import local_model
from semgrad_guard.model.chat_template import encode_chat, generation_prompt_position, user_text_position
from semgrad_guard.model.load import fingerprint
from semgrad_guard.records import Generation, Score
from semgrad_guard.scoring.gradients import Norm
from semgrad_guard.scoring.objective import Reduction
from semgrad_guard.scoring.scorer import SemGradScorer

logger = logging.getLogger(__name__)


class ChatSemGrad(BaseChatModel):
    """A local chat model whose messages carry their uncertainty.

    `response_metadata["semgrad"]` of every message is `{"scores": ..., "failure": ...}`: the scores (*higher = more
    uncertain*; None if scoring failed), and why the answer must not be trusted whatever its scores ("" if it may).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: Any = Field(repr=False, exclude=True)
    tokenizer: Any = Field(repr=False, exclude=True)
    generation: dict[str, Any] = Field(default_factory=dict)
    token_position: int | None = None
    span: Any = "upper-half"
    reduction: Reduction = "mean"
    norm: Norm = "l1"
    _scorer: SemGradScorer = PrivateAttr()
    _fingerprint: str = PrivateAttr()

    @classmethod
    def of(
        cls, source: Any, *, revision: str | None = None, generation: dict[str, Any] | None = None, **settings: Any
    ) -> ChatSemGrad:
        """Wrap whatever the user has.

        Args:
            source: a hub id or folder, a `(model, tokenizer)` pair, a `HuggingFacePipeline`, a `ChatHuggingFace`, or a
                `ChatSemGrad`, which is copied.
            revision: for a hub id: commit, tag or branch.
            generation: keywords of `model.generate`; what is not given is the source's own setting.
            settings: `token_position`, `span`, `reduction` and `norm` of `SemGradScorer`.

        Raises:
            UnsupportedModelError: there is no local model behind the source, or it cannot be scored exactly.
        """
        if isinstance(source, ChatSemGrad):
            update = settings | {"generation": source.generation | (generation or {})}
            return cls(**{name: getattr(source, name) for name in cls.model_fields} | update)
        model, tokenizer, own = local_model(source, revision=revision)
        return cls(model=model, tokenizer=tokenizer, generation=own | (generation or {}), **settings)

    def model_post_init(self, context: Any, /) -> None:
        """Build the scorer, which checks the model."""
        super().model_post_init(context)
        position = (
            self.token_position or generation_prompt_position(self.tokenizer) or user_text_position(self.tokenizer)
        )
        self._scorer = SemGradScorer(
            self.model,
            self.tokenizer,
            token_position=position,
            span=self.span,
            reduction=self.reduction,
            norm=self.norm,
        )

        self._fingerprint = fingerprint(self.model)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model's weights."""
        return self._fingerprint

    @property
    def scorer(self) -> SemGradScorer:
        """The scorer that generates and scores."""
        return self._scorer

    @property
    def _llm_type(self) -> str:
        return "semgrad"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.model.config.name_or_path,
            "fingerprint": self._fingerprint,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "generation": {key: str(value) for key, value in sorted(self.generation.items())},
            "token_position": self.token_position,
            "span": str(self.span),
            "reduction": self.reduction,
            "norm": self.norm,
        }

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        settings = self.generation | kwargs | ({"stop_strings": stop} if stop else {})
        prompt = encode_chat(self.tokenizer, to_template(messages))
        (generation,) = self.scorer.generate([prompt], **settings)
        text = generation.text
        for mark in stop or ():
            text = text.split(mark, 1)[0]
        message = self._message(generation, text.strip(), *self._score(generation, text))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _score(self, generation: Generation, text: str) -> tuple[Score | None, str]:
        """Score a generation; whatever goes wrong is a reason not to trust the answer, not an exception."""
        if not text.strip():
            return None, "the response is empty"
        try:
            (score,) = self.scorer.score([generation])
        except Exception as error:  # fail closed: an answer without a score is withheld, and says why
            logger.exception("Scoring failed")
            return None, f"scoring failed: {type(error).__name__}: {error}"
        if not score.finite():
            return None, "the score is not a finite number"
        if generation.finish_reason == "length":
            return score, f"the answer was cut off at the limit of {len(generation.response_ids)} tokens"
        return score, ""

    def _message(self, generation: Generation, text: str, score: Score | None, failure: str) -> AIMessage:
        read, written = len(generation.prompt_ids), len(generation.response_ids)
        return AIMessage(
            content=text,
            response_metadata={
                "model_name": self.model.config.name_or_path,
                "finish_reason": generation.finish_reason,
                "semgrad": {"scores": None if score is None else score.model_dump(mode="json"), "failure": failure},
            },
            usage_metadata=UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written),
        )
