"""What a caller may still choose under a profile: nothing that its confidence was not calibrated with."""

from __future__ import annotations

from typing import Any

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.calibration.prompts import BARE, PromptForm
from semgrad_guard.errors import ConfigurationError


def agreed_prompt(profile: Profile | None, wanted: PromptForm | None) -> PromptForm | None:
    """Give the prompt to ask with: the profile's, which the caller may only repeat; None for the question by itself.

    Args:
        profile: None leaves the choice to the caller.
        wanted: what the caller asks for; None for whatever the profile says.

    Raises:
        ConfigurationError: they differ.
    """
    calibrated = None if profile is None else profile.bound_to.prompt
    if profile is None or wanted is None:
        return wanted if profile is None else calibrated
    if wanted != (calibrated or BARE):
        how = "the question by itself" if calibrated is None else f"the prompt {calibrated.fingerprint}"
        raise ConfigurationError(
            f"The profile was calibrated with {how}, and the prompt given is {wanted.fingerprint}. Leave the prompt "
            "out to ask as in the calibration, or calibrate a profile with this prompt."
        )
    return calibrated


def agreed_scoring(profile: Profile | None, token_position: int | None) -> dict[str, Any]:
    """Give the keywords of `SemGradScorer`: the profile's, or the caller's t* without one.

    Args:
        profile: None leaves the choice to the caller.
        token_position: t* that the caller asks for; None for whatever the profile, or the chat template, says.

    Raises:
        ConfigurationError: it is not the profile's.
    """
    if profile is None:
        return {"token_position": token_position}
    calibrated = profile.bound_to.token_position
    if token_position not in (None, calibrated):
        raise ConfigurationError(
            f"The profile was calibrated with t* = {calibrated}, and token_position={token_position} is given. Leave "
            "it out, or calibrate a profile there."
        )
    return profile.bound_to.settings()
