"""Muon for matrices and convolutions, AdamW for the rest, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a weight matrix by
roughly the nearest semi-orthogonal matrix, which five Newton-Schulz steps compute. In torch, matrices of the same shape
are multiplied as a batch. On a CPU, a native kernel can process each matrix on a core of its own. Both methods are in
one optimizer, because Lightning steps, counts and saves a single one without extra code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from vitreous.native.build import MIN_WIDTH
from vitreous.native.ops import muon_step

# Coefficients of a x + b x^3 + c x^5 for singular values x: steep at 0, while values near 1 stay near 1.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


def orthogonalize(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices, with singular values between 0.7 and 1.2.

    Args:
        matrices: [K, M, N], of any float type, which is also the type of the products.

    Returns:
        [K, M, N], of the same type.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


def _is_supported(matrix: Tensor) -> bool:
    """Whether the native kernel can process the matrix: contiguous float32 of at least a register's width."""
    plain = matrix.device.type == "cpu" and matrix.dtype == torch.float32 and matrix.is_contiguous()
    return plain and matrix.numel() >= MIN_WIDTH


class Muon(torch.optim.Optimizer):
    """Muon on parameters of two and more dimensions, AdamW on all others.

    Args:
        matrices: parameters for Muon. A convolution [O, I, h, w] counts as a matrix [O, I*h*w].
        others: parameters for AdamW (biases, norms, positions, the head).
        learning_rate, betas: of AdamW.
        weight_decay: decoupled, for all parameters.
        muon_learning_rate: multiplied for each matrix by sqrt(max(1, rows / columns)).
        momentum: of Muon, Nesterov's.
        dtype: type of the Newton-Schulz products; bfloat16 is precise enough.
        native: use the native kernel for the matrices that it supports. The kernels must be available for `dtype`.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        learning_rate: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        muon_learning_rate: float = 0.02,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
        native: bool = False,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "muon": True, "lr": muon_learning_rate, "momentum": momentum},
            # With "fused", torch loads the saved number of steps onto the device of the parameter, as the kernel needs.
            {
                "params": list(others),
                "muon": False,
                "lr": learning_rate,
                "betas": betas,
                "eps": 1e-8,
                "fused": True,
            },
        ]
        super().__init__(groups, {"weight_decay": weight_decay})
        self.dtype, self.native = dtype, native

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step for all parameters; `closure` computes loss and gradients, as in torch's own optimizers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["muon"] else self._adamw)(group, params)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        if self.native and all(map(_is_supported, (*params, *buffers))):
            settings = (group["lr"], group["momentum"], group["weight_decay"])
            bf16 = self.dtype == torch.bfloat16
            muon_step(params, grads, buffers, *settings, bf16, STEPS, (A, B, C))
            return
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, buffers, group["momentum"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, p in enumerate(params):
            by_shape[p.size(0), p.numel() // p.size(0)].append(index)
        for (rows, columns), indices in by_shape.items():
            stacked = torch.stack([nesterov[i].reshape(rows, columns) for i in indices])  # [K, rows, columns]
            update = orthogonalize(stacked.to(self.dtype)).to(params[0].dtype)
            scale = group["lr"] * max(1.0, rows / columns) ** 0.5
            for i, matrix in zip(indices, update, strict=True):
                params[i].add_(matrix.view_as(params[i]), alpha=-scale)

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """AdamW (Loshchilov & Hutter, arXiv 1711.05101) by torch's fused kernel, for all parameters at once."""
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if "step" not in self.state[p]:
                step = torch.zeros((), device=p.device)
                self.state[p].update(step=step, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        means, squares, steps = ([self.state[p][name] for p in params] for name in ("mean", "square", "step"))
        beta1, beta2 = group["betas"]
        adamw(
            params,
            grads,
            means,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
