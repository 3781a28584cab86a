"""Every error that the package raises on its own account.

SemGradError
├── UnsupportedModelError      the model cannot be scored exactly (no gradients, unknown head, wrong state)
├── TokenPositionError         the semantic preserving token cannot be located
├── PromptTooLongError         prompt and answer do not fit into the model's context
├── EmptyResponseError         there is no response token to score
├── BudgetError                scoring would take more tokens or memory than it was given
├── DataError                  labelled questions are malformed, or too few
├── ProfileError               a profile is malformed or belongs to another model
└── ConfigurationError         settings contradict each other or are missing
"""


class SemGradError(Exception):
    """Base class: catches everything the package raises on its own account."""


class UnsupportedModelError(SemGradError):
    """The model cannot be scored exactly, or not in the state it is in."""


class TokenPositionError(SemGradError):
    """The semantic preserving token cannot be located in the prompt."""


class PromptTooLongError(SemGradError):
    """Prompt and answer do not fit into the model's context."""


class EmptyResponseError(SemGradError):
    """A response without tokens was given to be scored."""


class BudgetError(SemGradError):
    """Scoring would take more tokens or memory than it was given."""


class DataError(SemGradError):
    """Labelled questions are malformed, or too few for what they are to show."""


class ProfileError(SemGradError):
    """A profile is malformed, of another version, or belongs to another model."""


class ConfigurationError(SemGradError):
    """Settings contradict each other, are missing, or are out of range."""
