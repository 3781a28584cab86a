"""From what a pass measured to the score of one response."""

from __future__ import annotations

import math

from semgrad_guard.records import Score
from semgrad_guard.scoring.engine import Measured


def hybridgrad(semgrad: float, paragrad: float, mean_entropy: float, *, tau: float, beta: float) -> float:
    """Mix SemGrad and ParaGrad: the surer the model on average, the more the parameters' gradient counts (eq. 6)."""
    certain = math.exp(-mean_entropy / tau)
    return (1.0 - certain) * semgrad + beta * certain * paragrad


def as_score(measured: Measured, row: int, span: tuple[int, ...], *, tau: float, beta: float) -> Score:
    """Read the score of one row; `tau` and `beta` are those of HybridGrad."""
    marked = measured.mask[row]
    log_probs = measured.terms.log_probs[row, marked].double()
    entropies = measured.terms.entropies[row, marked].double()
    layers, *later = measured.layers[row]
    unweighted = None if measured.layers_unweighted is None else measured.layers_unweighted[row]
    semgrad = float(layers.mean())
    paragrad, exgrad = (None if found is None else float(found[row]) for found in (measured.paragrad, measured.exgrad))
    entropy = float(entropies.mean())
    return Score(
        semgrad=semgrad,
        paragrad=paragrad,
        exgrad=exgrad,
        hybridgrad=None if paragrad is None else hybridgrad(semgrad, paragrad, entropy, tau=tau, beta=beta),
        nll=-float(log_probs.sum()),
        mean_nll=-float(log_probs.mean()),
        mean_entropy=entropy,
        max_entropy=float(entropies.max()),
        length=len(log_probs),
        path=measured.path,
        span=span,
        layers=tuple(layers.tolist()),
        semgrad_unweighted=None if unweighted is None else float(unweighted.mean()),
        layers_unweighted=() if unweighted is None else tuple(unweighted.tolist()),
        later=tuple(tuple(token.tolist()) for token in later),
    )
