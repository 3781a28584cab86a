"""A mirror of a module: the same weights under module objects of our own."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def mirror(module: M) -> M:
    """Copy the module objects of a tree, not their weights.

    transformers answers `output_hidden_states=True` by setting forward hooks that stay. On a mirror they are set and
    thrown away with it, and the user's modules stay free of them. The user's own hooks are kept. A mirror takes
    microseconds per module, so it is made afresh for each pass and is never out of date.
    """
    twin = copy.copy(module)
    twin._forward_hooks = module._forward_hooks.copy()
    twin._modules = {name: None if child is None else mirror(child) for name, child in module._modules.items()}
    return twin
