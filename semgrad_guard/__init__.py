"""The confidence layer for local language models: SemGrad scores, calibrated confidence, and what to do when unsure."""

import logging

from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.labels import Labeler
from semgrad_guard.calibration.profile import Profile
from semgrad_guard.errors import (
    BudgetError,
    ConfigurationError,
    DataError,
    EmptyResponseError,
    LowConfidenceError,
    ProfileError,
    PromptTooLongError,
    ReviewConflictError,
    ReviewError,
    RouteError,
    SemGradError,
    TokenPositionError,
    UnsupportedModelError,
)
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.langchain.guard import SemGradGuard
from semgrad_guard.langchain.judge import LLMJudge, judged_by
from semgrad_guard.langchain.metadata import get_confidence, get_decision, get_scores
from semgrad_guard.langchain.passages import BM25Retriever
from semgrad_guard.langchain.routes import Escalate, Retrieve, Search
from semgrad_guard.records import (
    Decision,
    Failure,
    Generation,
    LongScore,
    Score,
    Source,
    Step,
    TokenUncertainty,
    Verdict,
)
from semgrad_guard.routing.grounding import grounded_question
from semgrad_guard.routing.ladder import Answer, Outcome, Route, Situation
from semgrad_guard.routing.limits import AtMost, RateLimit
from semgrad_guard.routing.routes import Abstain, HumanReview, Raise, ReviewAnswer, ReviewRequest
from semgrad_guard.scoring.budget import Budget
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.scoring.sentences import score_sentences
from semgrad_guard.version import VERSION

__all__ = [
    "Abstain",
    "Answer",
    "AtMost",
    "BM25Retriever",
    "Budget",
    "BudgetError",
    "ChatSemGrad",
    "ConfigurationError",
    "DataError",
    "Decision",
    "EmptyResponseError",
    "Escalate",
    "Example",
    "Failure",
    "Generation",
    "HumanReview",
    "LLMJudge",
    "Labeler",
    "LongScore",
    "LowConfidenceError",
    "Outcome",
    "Profile",
    "ProfileError",
    "PromptTooLongError",
    "Raise",
    "RateLimit",
    "Retrieve",
    "ReviewAnswer",
    "ReviewConflictError",
    "ReviewError",
    "ReviewRequest",
    "Route",
    "RouteError",
    "Score",
    "Search",
    "SemGradError",
    "SemGradGuard",
    "SemGradScorer",
    "Situation",
    "Source",
    "Step",
    "TokenPositionError",
    "TokenUncertainty",
    "UnsupportedModelError",
    "Verdict",
    "__version__",
    "get_confidence",
    "get_decision",
    "get_scores",
    "grounded_question",
    "judged_by",
    "score_sentences",
]

__version__ = VERSION

logging.getLogger(__name__).addHandler(logging.NullHandler())
