"""How much of a step is its matrix products and convolutions, each timed alone at its own shapes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution")


class Recorder(TorchDispatchMode):
    """Notes each product that runs inside: the operator, and size, stride and type of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[Any, str]] = Counter()
        self.arguments: dict[tuple[Any, str], Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.startswith(PRODUCTS):
            described = tree_map(
                lambda a: ("tensor", tuple(a.shape), a.stride(), a.dtype) if isinstance(a, Tensor) else a,
                (args, kwargs or {}),
            )
            key = (func, repr(described))
            self.calls[key] += 1
            self.arguments[key] = described
        return func(*args, **(kwargs or {}))


def _made(described: Any) -> Any:
    """Tensors again, from what was noted of them."""

    def is_note(a: Any) -> bool:
        return isinstance(a, tuple) and len(a) == 4 and a[0] == "tensor"

    def make(a: Any) -> Any:
        if not is_note(a):
            return a
        _, shape, strides, dtype = a
        length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        return torch.randn(length).to(dtype).as_strided(shape, strides)

    return tree_map(make, described, is_leaf=is_note)


def product_seconds(step: Callable[[], Any], repeats: int = 5) -> tuple[float, list[tuple[float, int, str]]]:
    """Sum over the products of `step`, each at its median alone; and (seconds, times a step, what) of each kind."""
    with Recorder() as recorder:
        step()
    found = []
    for key, times in recorder.calls.items():
        args, kwargs = _made(recorder.arguments[key])
        func = key[0]
        func(*args, **kwargs)
        measured = []
        for _ in range(repeats):
            start = time.perf_counter()
            func(*args, **kwargs)
            measured.append(time.perf_counter() - start)
        shapes = " ".join("x".join(map(str, a.shape)) for a in args if isinstance(a, Tensor))
        found.append(
            (sorted(measured)[repeats // 2], times, f"{func._schema.name.removeprefix('aten::')} {shapes}")
        )
    return sum(seconds * times for seconds, times, _ in found), sorted(found, reverse=True)
