"""Times the matrix products and convolutions of a step, each alone at its own shapes."""

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
    """Records the operator of each product that runs inside, and size, strides and type of its arguments."""

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


def _arguments(described: Any) -> Any:
    """Random tensors of the recorded sizes, strides and types, in the structure of the recorded arguments."""

    def is_description(a: Any) -> bool:
        return isinstance(a, tuple) and len(a) == 4 and a[0] == "tensor"

    def tensor(a: Any) -> Any:
        if not is_description(a):
            return a
        _, shape, strides, dtype = a
        length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        return torch.randn(length).to(dtype).as_strided(shape, strides)

    return tree_map(tensor, described, is_leaf=is_description)


def product_seconds(step: Callable[[], Any], repeats: int = 5) -> tuple[float, list[tuple[float, int, str]]]:
    """The seconds of the products of `step`, each timed alone.

    Returns:
        The sum over all products, each at its median; and (seconds, times per step, description) of every distinct
        product, the slowest first.
    """
    with Recorder() as recorder:
        step()
    products = []
    for key, times in recorder.calls.items():
        args, kwargs = _arguments(recorder.arguments[key])
        func = key[0]
        func(*args, **kwargs)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            func(*args, **kwargs)
            seconds.append(time.perf_counter() - start)
        shapes = " ".join("x".join(map(str, a.shape)) for a in args if isinstance(a, Tensor))
        name = func._schema.name.removeprefix("aten::")
        products.append((sorted(seconds)[repeats // 2], times, f"{name} {shapes}"))
    return sum(seconds * times for seconds, times, _ in products), sorted(products, reverse=True)
