"""How well a score tells right answers from wrong ones. Pure numpy; *higher uncertainty = more likely wrong*."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch.utils.flop_counter import flop_registry

from semgrad_guard._compat import TorchDispatchMode, operator, storage_key, tree_leaves
from semgrad_guard.calibration import blend

Numbers = NDArray[np.float64]


def auroc(uncertainty: Numbers, correct: NDArray[np.bool_]) -> float:
    """Give the probability that a wrong answer is more uncertain than a right one, in [0, 1]; 0.5 is chance."""
    return blend.auroc(uncertainty, ~correct)


def auc_pr(uncertainty: Numbers, correct: NDArray[np.bool_]) -> float:
    """Give the average precision of finding wrong answers by uncertainty, in [0, 1]; chance is their share."""
    return float(average_precision_score(~correct, uncertainty))


def risk_coverage(uncertainty: Numbers, correct: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
    """Give coverage, 1/n to 1, and the share of wrong answers among so many of the surest ones.

    Among equally uncertain answers each place holds their mean, so that the order they come in does not count.
    """
    order = np.argsort(uncertainty, kind="stable")
    wrong, values = (~correct)[order].astype(float), uncertainty[order]
    _, start, counts = np.unique(values, return_index=True, return_counts=True)
    means = np.add.reduceat(wrong, start) / counts
    smooth = np.repeat(means, counts)
    places = np.arange(1, len(wrong) + 1)
    return places / len(wrong), np.cumsum(smooth) / places


def aurc(uncertainty: Numbers, correct: NDArray[np.bool_]) -> float:
    """Give the area under the risk-coverage curve, in [0, 1]; *lower is better*."""
    return float(risk_coverage(uncertainty, correct)[1].mean())


def excess_aurc(uncertainty: Numbers, correct: NDArray[np.bool_]) -> float:
    """Give the area above that of a score which puts every wrong answer last; >= 0, *lower is better*."""
    return aurc(uncertainty, correct) - aurc((~correct).astype(float), correct)


def prr(uncertainty: Numbers, correct: NDArray[np.bool_], most: float = 1.0) -> float:
    """Give the prediction rejection ratio: the gain over chance as a part of the best possible gain; <= 1, chance 0.

    `most` is the largest share of answers that is rejected; half of them is usual in comparisons.
    """
    first = max(0, int(np.ceil((1.0 - most) * len(correct))) - 1)
    rejected, best = (
        float(risk_coverage(values, correct)[1][first:].mean()) for values in (uncertainty, (~correct).astype(float))
    )
    chance = float((~correct).mean())
    return (chance - rejected) / (chance - best)


def selective_accuracy(uncertainty: Numbers, correct: NDArray[np.bool_], coverage: float) -> float:
    """Give the share of right answers among the surest ones that make up a coverage, in [0, 1]."""
    _, risk = risk_coverage(uncertainty, correct)
    return float(1.0 - risk[max(1, round(coverage * len(correct))) - 1])


def brier(confidence: Numbers, correct: NDArray[np.bool_]) -> float:
    """Give the mean squared difference of confidence and correctness, in [0, 1]; *lower is better*."""
    return float(np.mean((confidence - correct) ** 2))


def calibration_error(confidence: Numbers, correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Give the expected calibration error over bins of equal count, in [0, 1]; *lower is better*."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))
    gaps = [len(part) * abs(confidence[part].mean() - correct[part].mean()) for part in parts]
    return float(sum(gaps) / len(confidence))


def smooth_calibration_error(confidence: Numbers, correct: NDArray[np.bool_]) -> float:
    """Give the calibration error with a kernel in place of bins (Blasiok and Nakkiran 2023), in [0, 1].

    The width of the (reflected Gaussian) kernel is the one at which it equals the error found with it.
    """
    low, high = 1e-3, 1.0
    for _ in range(30):
        width = (low * high) ** 0.5
        if _kernel_error(confidence, correct, width) > width:
            low = width
        else:
            high = width
    return float(_kernel_error(confidence, correct, (low * high) ** 0.5))


def _kernel_error(confidence: Numbers, correct: NDArray[np.bool_], width: float) -> float:
    grid = np.linspace(0.0, 1.0, 401)
    residuals = correct - confidence
    total = np.zeros_like(grid)
    for mirrored in (confidence, -confidence, 2.0 - confidence):
        kernel = np.exp(-0.5 * ((grid[:, None] - mirrored[None, :]) / width) ** 2)
        total += kernel @ residuals
    return float(np.trapezoid(np.abs(total), grid) / (width * np.sqrt(2 * np.pi) * len(confidence)))


def bootstrap(
    metric: Callable[..., float], *values: NDArray[Any], groups: Sequence[str], repeats: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Give a 95 % interval of a metric by resampling groups; answers about the same thing stay together.

    Resamples in which the metric is not defined, all right or all wrong, are left out.
    """
    values_drawn = []
    for drawn in resamples(groups, repeats=repeats, seed=seed):
        sample = [value[drawn] for value in values]
        if len(np.unique(sample[-1])) > 1:
            values_drawn.append(metric(*sample))
    return interval(values_drawn)


def resamples(groups: Sequence[str], *, repeats: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draw groups with replacement, as many as there are, and yield the places of their members, so many times."""
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    indices = [np.array(member) for member in members.values()]
    for _ in range(repeats):
        yield np.concatenate([indices[place] for place in rng.integers(0, len(indices), len(indices))])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Give the middle 95 % of the values of resamples; NaN where there are none."""
    if len(values) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def peak_bytes(device: torch.device, work: Callable[[], Any]) -> int:
    """Give the most bytes that tensors made by `work` took at one moment; tensors from before do not count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    with _Tally() as tally:
        work()
    return int(tally.peak)


def operations(work: Callable[[], Any]) -> int:
    """Count the floating point operations of matrix products, convolutions and attention in some work."""
    with _Operations() as counter:
        work()
    return int(counter.total)


def time_in_products(work: Callable[[], Any]) -> float:
    """Give the share of some work's time that goes into matrix products and attention, in [0, 1]."""
    work()
    with torch.profiler.profile() as profiled:
        work()
    times = {event.key: event.self_cpu_time_total + event.self_device_time_total for event in profiled.key_averages()}
    products = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")
    within = sum(time for key, time in times.items() if key.startswith(products))
    return float(within) / max(float(sum(times.values())), 1e-9)


class _Mode(TorchDispatchMode):
    """PyTorch's hook on every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch has not annotated it


class _Operations(_Mode):
    """Adds up what PyTorch's registry says of every operation."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(operator(func))
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


class _Tally(_Mode):
    """Follows every storage from the operation that made it to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        inputs = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _key(leaf) not in inputs | self._known:
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage_key(storage), storage.nbytes()
        self._known.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


def _key(tensor: torch.Tensor) -> int:
    return storage_key(tensor.untyped_storage())
