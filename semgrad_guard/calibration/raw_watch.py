"""Does a threshold on a raw score fit the model at all? Its first answers tell."""

from __future__ import annotations

import threading
import warnings

_FIRST = 20
_FAR = 3.0  # times the threshold, or a part of it


class RawWatch:
    """Looks at the first twenty raw scores, and warns once if all lie far on one side of the threshold.

    Raw scores differ from model to model by orders of magnitude, so that a threshold taken from elsewhere often passes
    everything, or nothing. Threads share a watch, and so do all copies of a guard; a copy made by pickling or
    `copy.deepcopy` starts anew. It keeps numbers, no texts.
    """

    def __init__(self) -> None:
        """Start with no answer seen."""
        self._values: list[float] = []
        self._sides: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RawWatch], tuple[()]]:
        """Copy nothing that was seen: a lock cannot be copied, and no answer should count twice."""
        return RawWatch, ()

    def see(self, value: float, threshold: float, method: str) -> None:
        """Take a first answer's finite raw score into account.

        Args:
            value: score of the answer, >= 0; *higher = more uncertain*.
            threshold: largest that passes, at present.
            method: name of the score.
        """
        with self._lock:
            if len(self._values) == _FIRST:
                return
            self._values.append(value)
            self._sides.add(_side(value, threshold))
            if len(self._values) < _FIRST or self._sides not in ({"above"}, {"below"}):
                return
        side = next(iter(self._sides))
        effect = "none of them passes" if side == "above" else "all of them pass"
        warnings.warn(
            f"The first {_FIRST} answers lie far {side} score_threshold={threshold:g}, and {effect}: their {method} is "
            f"{min(self._values):.3g} to {max(self._values):.3g}. Raw scores differ from model to model. Let "
            "`semgrad-guard calibrate --data questions.jsonl --coverage 0.9 --out profile.json` find a threshold for "
            "this model (it needs no labels; with labels, leave --coverage out), and use profile='profile.json'.",
            UserWarning,
            stacklevel=2,
        )


def _side(value: float, threshold: float) -> str:
    if value > _FAR * threshold:
        return "above"
    return "below" if _FAR * value < threshold else "near"
