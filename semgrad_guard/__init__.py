"""The confidence layer for local language models: SemGrad scores, calibrated confidence, and what to do when unsure.

A name is imported when it is first used, so that `import semgrad_guard` loads neither torch nor LangChain.
"""

import importlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from semgrad_guard.scoring.registry import ScoreKind, register_score
    from semgrad_guard.scoring.scorer import SemGradScorer, score_sentences
    from semgrad_guard.scoring.settings import ScoringSettings

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
    "ScoreKind",
    "ScoringSettings",
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
    "register_score",
    "score_sentences",
]

__version__ = "0.1.0"

# The module of each public name; the imports above say the same to type checkers and editors.
_MODULES = {
    "Abstain": "routing.routes",
    "Answer": "routing.ladder",
    "AtMost": "routing.limits",
    "BM25Retriever": "langchain.passages",
    "Budget": "scoring.budget",
    "BudgetError": "errors",
    "ChatSemGrad": "langchain.chat_model",
    "ConfigurationError": "errors",
    "DataError": "errors",
    "Decision": "records",
    "EmptyResponseError": "errors",
    "Escalate": "langchain.routes",
    "Example": "calibration.examples",
    "Failure": "records",
    "Generation": "records",
    "HumanReview": "routing.routes",
    "LLMJudge": "langchain.judge",
    "Labeler": "calibration.labels",
    "LongScore": "records",
    "LowConfidenceError": "errors",
    "Outcome": "routing.ladder",
    "Profile": "calibration.profile",
    "ProfileError": "errors",
    "PromptTooLongError": "errors",
    "Raise": "routing.routes",
    "RateLimit": "routing.limits",
    "Retrieve": "langchain.routes",
    "ReviewAnswer": "routing.routes",
    "ReviewConflictError": "errors",
    "ReviewError": "errors",
    "ReviewRequest": "routing.routes",
    "Route": "routing.ladder",
    "RouteError": "errors",
    "Score": "records",
    "ScoreKind": "scoring.registry",
    "ScoringSettings": "scoring.settings",
    "Search": "langchain.routes",
    "SemGradError": "errors",
    "SemGradGuard": "langchain.guard",
    "SemGradScorer": "scoring.scorer",
    "Situation": "routing.ladder",
    "Source": "records",
    "Step": "records",
    "TokenPositionError": "errors",
    "TokenUncertainty": "records",
    "UnsupportedModelError": "errors",
    "Verdict": "records",
    "get_confidence": "langchain.metadata",
    "get_decision": "langchain.metadata",
    "get_scores": "langchain.metadata",
    "grounded_question": "routing.grounding",
    "judged_by": "langchain.judge",
    "register_score": "scoring.registry",
    "score_sentences": "scoring.scorer",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "TokenDoubt":
        warnings.warn(
            "TokenDoubt is TokenUncertainty now; the old name goes with the next release.", DeprecationWarning, 2
        )
        name = "TokenUncertainty"
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
