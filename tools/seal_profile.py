"""Seal the guarantees of a profile that does not say what they were proved for: python tools/seal_profile.py FILE...

For profiles from before guarantees were sealed, and for those bound anew to the same weights, when their fingerprint is
computed in another way. It vouches for the file: run it only on one that is as its calibration wrote it.
"""

import sys
from typing import get_args

from semgrad_guard.calibration.checked import read_json
from semgrad_guard.calibration.guarantee import Guarantee
from semgrad_guard.calibration.profile import Profile
from semgrad_guard.records import AnswerKind


def sealed(path: str) -> Profile:
    """Read a profile, and give it the guarantees that its file tells of."""
    plain, profile = read_json(path), Profile.load(path)
    sections = {}
    for kind in get_args(AnswerKind):
        promise = (plain.get(kind) or {}).get("guarantee")
        if promise is not None:
            guarantee = Guarantee.model_validate({**promise, "threshold": None, "seal": ""})
            sections[kind] = getattr(profile, kind).model_copy(update={"guarantee": guarantee, "void": ""})
    return profile.model_copy(update=sections)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sealed(name).save(name)
