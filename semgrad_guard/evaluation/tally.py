"""What some work takes, counted operation by operation: the same on every machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from semgrad_guard._compat import TorchDispatchMode, operator, storage_key, tree_leaves


def peak_bytes(device: torch.device, work: Callable[[], Any]) -> int:
    """Give the most bytes that tensors made by `work` held at one moment; what existed before does not count."""
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
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _key(leaf) not in given | self._known:
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
