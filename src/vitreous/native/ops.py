"""Encoder and stem on a CPU, written out: what our own kernels (`kernels.cpp`) are given, forward and backward.

torch runs a network operator by operator, and for narrow networks half of a step goes into what stands between the
products: casts, norms, activations, copies. Here a branch of the encoder is one pass, products and all, and so is a
stage of the stem. The results are those of `vit.py` and `stem.py`, which say what is computed; tests hold the two
together.

Letters in the shape comments: B batch, N tokens, D embed_dim, H heads, K = D / H, M mlp_dim, G tokens along a side.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vitreous.native.build import ROOM, call

Weights = Sequence[Tensor | None]
LAYER, OPTIONAL = 16, {2, 6, 7, 8, 9}  # tensors of a layer, and which of them it may lack


def _shape(weight: Tensor | None) -> torch.Size | None:
    return None if weight is None else weight.shape


def encode(x, weights, keys, rate, wanted, num_heads, eps, bf16):
    depth = len(weights) // LAYER
    seeds = [0] * 2 * depth if keys is None else (keys[:, 0].long() & 0xFFFFFFFF).tolist()
    sizes = (wanted, *x.shape[:2], num_heads, x.shape[2] // num_heads, weights[10].shape[0])
    return Encoder.apply(x, sizes, float(eps), seeds, float(rate), torch.is_grad_enabled(), bf16, *weights)


class Encoder(torch.autograd.Function):
    """All layers of the encoder: attention and the MLP of each, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sizes: tuple[int, ...],
        eps: float,
        seeds: Sequence[int],
        rate: float,
        keep: bool,
        bf16: bool,
        *weights: Tensor | None,
    ) -> Tensor:
        dtype, x, depth = torch.bfloat16 if bf16 else torch.float32, x.contiguous(), len(weights) // LAYER
        kept = depth if keep else 1
        room = torch.empty(_kept_bytes(dtype, kept, *sizes[1:]), dtype=torch.uint8)
        out = torch.empty(len(x), sizes[0], x.shape[2])
        given = (x, out, room, _addresses(weights), _integers(seeds), depth, kept)
        call("encoder", dtype, *given, *sizes, eps, rate)
        ctx.save_for_backward(room, *weights)
        ctx.seeds, ctx.sizes, ctx.dtype, ctx.rate = seeds, sizes, dtype, rate
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        room, *weights = ctx.saved_tensors
        _, B, N, H, K, M = ctx.sizes
        D, wide = H * K, _rounded(H * K)
        of_attention = [3 * D * wide, D * wide, _rounded(3 * D), wide, D, D, *[K] * 4]
        depth = len(weights) // LAYER
        lengths = [*of_attention, M * wide, D * _rounded(M), _rounded(M), wide, D, D] * depth
        dx, sums = torch.empty(B, N, D), torch.empty(sum(lengths))
        given = (grad.contiguous(), dx, room, _addresses(weights), sums, _integers(ctx.seeds), depth)
        call("encoder_backward", ctx.dtype, *given, *ctx.sizes, ctx.rate)
        grads = [_like(w, piece) for w, piece in zip(weights, sums.split(lengths), strict=True)]
        return dx, None, None, None, None, None, None, *grads


def _rounded(width: int) -> int:
    return -(-width // ROOM) * ROOM


@functools.cache
def _kept_bytes(dtype: torch.dtype, *sizes: int) -> int:
    """Bytes that layers keep."""
    found = ctypes.c_int64()
    call("encoder_room", dtype, ctypes.byref(found), *sizes)
    return found.value


def _addresses(weights: Weights) -> ctypes.Array[Any]:
    assert all(w is None or w.is_contiguous() for w in weights)
    return (ctypes.c_void_p * len(weights))(*[None if w is None else w.data_ptr() for w in weights])


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _like(weight: Tensor | None, sums: Tensor) -> Tensor | None:
    """A weight's gradient, without what rounds its rows up."""
    if weight is None:
        return None
    if sums.numel() > weight.numel():
        sums = sums.view(len(weight), -1)[:, : weight.shape[1]] if weight.ndim > 1 else sums[: len(weight)]
    return sums.view_as(weight)


def pool(x, norm, norm_bias, query, eps, bf16):
    return Pool.apply(x, norm, norm_bias, query, float(eps), bf16)


class Pool(torch.autograd.Function):
    """The last norm and the mean of tokens by their softmax."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Tensor, norm_bias: Tensor, weight: Tensor, eps: float, bf16: bool
    ) -> Tensor:
        dtype = torch.bfloat16 if bf16 else torch.float32
        B, N, D = x.shape
        x, out, stats, p = x.contiguous(), torch.empty(B, D), torch.empty(B, N, 2), torch.empty(B, N)
        call("pool", dtype, x, out, stats, p, norm, norm_bias, weight, B, N, D, eps)
        ctx.save_for_backward(x, stats, p, norm, norm_bias, weight)
        ctx.dtype = dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *known = ctx.saved_tensors
        dx, sums = torch.empty_like(x), torch.empty(3, x.shape[2])
        call("pool_backward", ctx.dtype, grad.contiguous(), dx, x, *known, sums, *x.shape)
        return dx, sums[0], sums[1], sums[2:], None, None


def stem(x, position, weights, eps, bf16):
    return Stem.apply(x, position, float(eps), bf16, *weights)


class Stem(torch.autograd.Function):
    """Whitening, stages that halve the picture, one more with what it is given added, projection, position."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        position: Tensor | None,
        eps: float,
        bf16: bool,
        whitening: Tensor,
        proj: Tensor,
        proj_bias: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        dtype, (B, _, S, _) = torch.bfloat16 if bf16 else torch.float32, x.shape
        a, saved = torch.empty(B, S - 1, S - 1, len(whitening), dtype=dtype), []
        place, strides = ctypes.c_void_p(x.data_ptr()), _integers(x.stride())
        call("whiten", dtype, place, strides, whitening.contiguous(), a, B, S)
        for i in range(0, len(weights), 3):
            conv, weight, bias = weights[i : i + 3]
            last = i + 3 == len(weights)
            window, side, C = (1 if last else 2), a.shape[1], len(conv)
            G, into = side // window, a.shape[3]
            out, pooled = torch.empty(B, G, G, C, dtype=dtype), torch.empty(B, G, G, C, dtype=dtype)
            which, stats = torch.empty(B, G, G, C, dtype=torch.uint8), torch.empty(B, G, G, 2)
            kept, sizes = (out, pooled, which, stats), (B, side, into, C, window)
            call("stage", dtype, a, conv.contiguous(), *kept, weight, bias, *sizes, int(last), eps)
            saved += [a, pooled, which, stats]
            a = out
        ctx.save_for_backward(proj, a, *weights, *saved)
        ctx.count, ctx.dtype, ctx.placed = len(weights), dtype, _shape(position)
        found = torch.empty(B, a.shape[1] * a.shape[2], len(proj))
        given = (proj, proj_bias, None if position is None else position.contiguous())
        call(
            "linear", dtype, a, found, *given, a.numel() // a.shape[3], found.shape[1], a.shape[3], len(proj)
        )
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dtype, placed = ctx.dtype, ctx.placed
        proj, a, *rest = ctx.saved_tensors
        weights, saved = rest[: ctx.count], rest[ctx.count :]
        B, N, D = grad.shape
        da: Tensor | None = torch.empty_like(a)
        positions = 0 if placed is None else N
        lengths = [D * _rounded(a.shape[3]), D, _rounded(D) - D, positions * D]
        sums = torch.empty(sum(lengths))
        call("linear_backward", dtype, grad.contiguous(), a, da, proj, sums, positions, B * N, a.shape[3], D)
        of_proj, of_bias, _, of_position = sums.split(lengths)
        grads: list[Tensor | None] = []
        for i in reversed(range(0, ctx.count, 3)):
            conv, weight, bias = weights[i : i + 3]
            before, pooled, which, stats = saved[i // 3 * 4 : i // 3 * 4 + 4]
            last = i + 3 == ctx.count
            window, side, C, into = (1 if last else 2), before.shape[1], len(conv), conv.shape[1]
            through = torch.empty_like(before) if i > 0 else None  # the whitening is frozen
            sums = torch.empty(2 * C + conv.numel())
            known = (da, pooled, which, stats, weight, bias, before, conv.contiguous())
            call("stage_backward", dtype, *known, through, sums, B, side, into, C, window, int(last))
            of_norm, of_norm_bias, of_conv = sums.split([C, C, conv.numel()])
            grads[:0] = [of_conv.view(conv.shape), of_norm, of_norm_bias]
            da = through
        dposition = None if placed is None else of_position.view(placed)
        dproj = of_proj.view(D, -1)[:, : a.shape[3]].unflatten(1, (-1, 1, 1))
        return None, dposition, None, None, None, dproj, of_bias, *grads
