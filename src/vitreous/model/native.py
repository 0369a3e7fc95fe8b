"""Encoder and stem on a CPU, written out: what our own kernels (`kernels.cpp`) are given, forward and backward.

torch runs a network operator by operator, and for narrow networks half of a step goes into what stands between the
products: casts, norms, activations, copies. Here a branch of the encoder is one pass, products and all, and so is a
stage of the stem. The results are those of `vit.py` and `stem.py`, which say what is computed; tests hold the two
together.

Letters in the shape comments: B batch, N tokens, D embed_dim, H heads, K = D / H, M mlp_dim, R = B·N, G tokens along a
side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitreous.model.kernels import ROOM, call, library
from vitreous.model.variants import Architecture


def fits(a: Architecture) -> bool:
    """Whether the kernels know such a network: no stochastic depth, and no row shorter than a register."""
    widths = (a.embed_dim, a.embed_dim // a.num_heads, a.mlp_dim, *a.stem_dims)
    even = a.embed_dim // a.num_heads % 2 == 0
    return a.drop_path == 0 and min(widths) >= ROOM and even


def supports(a: Architecture, dtype: torch.dtype) -> bool:
    """Whether there are kernels for such a network here, with activations of `dtype`."""
    return fits(a) and library(dtype) is not None


def takes(x: Tensor, module: nn.Module) -> bool:
    """Whether the kernels can read such pictures or tokens, and weights: float32 on a CPU, and not empty."""
    ours = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, *module.parameters()))
    return ours and len(x) > 0 and activation_dtype() in (torch.float32, torch.bfloat16)


def activation_dtype() -> torch.dtype:
    """What autocast makes of activations here."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


HEAD_NORMS = ("attn.q_norm.weight", "attn.q_norm.bias", "attn.k_norm.weight", "attn.k_norm.bias")
OPTIONAL = {*HEAD_NORMS, "attn.qkv.bias"}
# Of a layer, in the order in which they are given.
LAYER = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", *HEAD_NORMS),
    *("attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias"),
    *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
)
Weights = dict[str, Any]  # tensors, or None for what a layer lacks


def encode(x: Tensor, blocks: Sequence[nn.Module], wanted: int) -> Tensor:
    """Tokens float [B, N, D] through the layers of `vit.Block` to the first `wanted` [B, wanted, D].

    The last layer lets all tokens be attended to, and does the rest of its work for those that are wanted only.
    """
    weights = [
        parameters.get(name) if name in OPTIONAL else parameters[name]
        for parameters in map(_parameters, blocks)
        for name in LAYER
    ]
    first: Any = blocks[0]
    rate = float(first.mlp.dropout.rate) if first.training else 0.0  # C takes an int's bits for a float
    seeds = torch.randint(2**32, (len(blocks), 2)).tolist() if rate else [[0, 0]] * len(blocks)
    return Encoder.apply(
        x,
        first.attn.num_heads,
        float(first.norm1.eps),
        wanted,
        seeds,
        rate,
        torch.is_grad_enabled(),
        *weights,
    )


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


class Encoder(torch.autograd.Function):
    """All layers of the encoder: attention and the MLP of each, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        heads: int,
        eps: float,
        wanted: int,
        seeds: Sequence[Sequence[int]],
        rate: float,
        keep: bool,
        *weights: Tensor | None,
    ) -> Tensor:
        dtype, N = activation_dtype(), x.shape[1]
        stream, saved, layers = x.detach().contiguous(), [], _layers(weights)
        for i, layer in enumerate(layers):
            count = wanted if i + 1 == len(layers) else N
            stream, of_attention = _attention(stream, layer, heads, count, dtype, eps)
            stream, of_mlp = _mlp(stream, layer, dtype, eps, seeds[i], rate)
            saved += [*of_attention, *of_mlp] if keep else []
        ctx.save_for_backward(*weights, *saved)
        ctx.heads, ctx.wanted, ctx.dtype, ctx.count = heads, wanted, dtype, len(weights)
        ctx.seeds, ctx.rate = seeds, rate
        return stream

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layers = _layers(ctx.saved_tensors[: ctx.count])
        saved = ctx.saved_tensors[ctx.count :]
        per = len(saved) // len(layers)
        stream = grad.detach().contiguous()
        grads: list[Tensor | None] = []
        for i, layer in reversed(list(enumerate(layers))):
            kept = saved[per * i : per * (i + 1)]
            stream, of_mlp = _mlp_backward(stream, layer, kept[ATTENTION:], ctx.dtype, ctx.seeds[i], ctx.rate)
            stream, of_attention = _attention_backward(stream, layer, kept[:ATTENTION], ctx.dtype, ctx.heads)
            found = of_attention | of_mlp
            grads[:0] = [None if layer[name] is None else found[name] for name in LAYER]
        return stream, None, None, None, None, None, None, *grads


def _layers(weights: Sequence[Tensor | None]) -> list[Weights]:
    per = len(LAYER)
    return [dict(zip(LAYER, weights[i : i + per], strict=True)) for i in range(0, len(weights), per)]


def _room(width: int) -> int:
    return -(-width // ROOM) * ROOM


def _head_weights(w: Weights) -> Tensor | None:
    """Weights and biases of the norms of q and k, [4K], or None."""
    return torch.cat([w[name] for name in HEAD_NORMS]) if w[HEAD_NORMS[0]] is not None else None


ATTENTION = 6  # tensors that its backward pass needs


def _attention(
    x: Tensor, w: Weights, heads: int, wanted: int, dtype: torch.dtype, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """x [B, N, D] plus attention, of each picture the first `wanted` tokens; what the backward pass needs."""
    (B, N, D), H = x.shape, heads
    out, stats = torch.empty(B, wanted, D), torch.empty(B, N, 2)
    qkv, head_stats = torch.empty(B, N, 3 * D, dtype=dtype), torch.empty(B, N, 2, H, 2)
    p, merged = torch.empty(B, H, wanted, _room(N), dtype=dtype), torch.empty(B, wanted, D, dtype=dtype)
    bias = torch.zeros(3 * D) if w["attn.qkv.bias"] is None else w["attn.qkv.bias"]
    joined = (w["norm1.weight"], w["norm1.bias"], w["attn.qkv.weight"], bias, _head_weights(w))
    proj, sizes = (w["attn.proj.weight"], w["attn.proj.bias"]), (B, N, wanted, H, D // H)
    scale = (D // H) ** -0.5
    call("attention", dtype, x, out, stats, qkv, head_stats, p, merged, *joined, *proj, *sizes, scale, eps)
    return out, [x, stats, qkv, head_stats, p, merged]


def _attention_backward(
    dout: Tensor, w: Weights, kept: Sequence[Tensor], dtype: torch.dtype, heads: int
) -> tuple[Tensor, Weights]:
    """The gradient of the tokens [B, N, D], and those of the weights by name."""
    (B, N, D), wanted, wide = kept[0].shape, dout.shape[1], _room(dout.shape[2])
    dx, H, K = torch.empty(B, N, D), heads, D // heads
    sizes = [3 * D * wide, D * wide, _room(3 * D), wide, D, D, 4 * K]
    parts = torch.empty(sum(sizes))
    given = (
        w["norm1.weight"],
        w["norm1.bias"],
        w["attn.qkv.weight"],
        _head_weights(w),
        w["attn.proj.weight"],
    )
    call("attention_backward", dtype, dout, dx, *kept, *given, parts, B, N, wanted, H, K, K**-0.5)
    sums = parts.split(sizes)
    d = {"attn.qkv.weight": _matrix(sums[0], D), "attn.proj.weight": _matrix(sums[1], D)}
    d |= {"attn.qkv.bias": sums[2][: 3 * D], "attn.proj.bias": sums[3][:D]}
    d |= {"norm1.weight": sums[4], "norm1.bias": sums[5]}
    return dx, d | dict(zip(HEAD_NORMS, sums[6].view(4, K), strict=True))


def _mlp(
    x: Tensor, w: Weights, dtype: torch.dtype, eps: float, seeds: Sequence[int], rate: float
) -> tuple[Tensor, list[Tensor]]:
    """x [B, N, D] plus the MLP, and what the backward pass needs."""
    R, D, M = x.shape[0] * x.shape[1], x.shape[2], len(w["mlp.fc1.weight"])
    out, stats = torch.empty_like(x), torch.empty(R, 2)
    slope, g = (torch.empty(R, _room(M), dtype=dtype) for _ in range(2))
    given = [w[f"{layer}.{part}"] for layer in ("norm2", "mlp.fc1", "mlp.fc2") for part in ("weight", "bias")]
    call("mlp", dtype, x, out, stats, slope, g, *given, R, D, M, eps, *seeds, rate)
    return out, [x, stats, slope, g]


def _mlp_backward(
    dout: Tensor, w: Weights, kept: Sequence[Tensor], dtype: torch.dtype, seeds: Sequence[int], rate: float
) -> tuple[Tensor, Weights]:
    """The gradient of the tokens [B, N, D], and those of the weights by name."""
    R, D, M = dout.shape[0] * dout.shape[1], dout.shape[2], len(w["mlp.fc1.weight"])
    dx, sizes = torch.empty_like(dout), [M * _room(D), D * _room(M), _room(M), _room(D), D, D]
    parts = torch.empty(sum(sizes))
    given = (w["norm2.weight"], w["norm2.bias"], w["mlp.fc1.weight"], w["mlp.fc2.weight"])
    call("mlp_backward", dtype, dout, dx, *kept, *given, parts, R, D, M, seeds[1], rate)
    sums = parts.split(sizes)
    d = {"mlp.fc1.weight": _matrix(sums[0], D), "mlp.fc2.weight": _matrix(sums[1], M)}
    d |= {"mlp.fc1.bias": sums[2][:M], "mlp.fc2.bias": sums[3][:D]}
    return dx, d | {"norm2.weight": sums[4], "norm2.bias": sums[5]}


def _matrix(sums: Tensor, columns: int) -> Tensor:
    """Without what rounds its rows up."""
    return sums.view(-1, _room(columns))[:, :columns]


def tokens(x: Tensor, stem: nn.Module) -> Tensor:
    """Pictures [B, 3, S, S] through `stem.ConvStem` to tokens, float [B, N, D]."""
    named, anyone = _parameters(stem), cast(Any, stem)
    stages = [f"stages.{i}" for i in range(len(anyone.stages))] + ["mix"]
    weights = [
        named[f"{stage}.{part}"] for stage in stages for part in ("conv.weight", "norm.weight", "norm.bias")
    ]
    return Stem.apply(
        x,
        anyone.whiten.weight,
        float(anyone.mix.norm.eps),
        named["proj.weight"],
        named["proj.bias"],
        *weights,
    )


class Stem(torch.autograd.Function):
    """Whitening, stages that halve the picture, one more with what it is given added, projection."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, whitening: Tensor, eps: float, proj: Tensor, proj_bias: Tensor, *weights: Tensor
    ) -> Tensor:
        dtype, (B, _, S, _) = activation_dtype(), x.shape
        a, saved = torch.empty(B, S - 1, S - 1, len(whitening), dtype=dtype), []
        place, strides = ctypes.c_void_p(x.data_ptr()), (ctypes.c_int64 * 4)(*x.stride())
        directions = F.pad(whitening[:12].flatten(1).mT, (0, ROOM - 12)).contiguous()
        call("whiten", dtype, place, strides, directions, a, B, S)
        for i in range(0, len(weights), 3):
            conv, weight, bias = weights[i : i + 3]
            last = i + 3 == len(weights)
            window, side, C = (1 if last else 2), a.shape[1], len(conv)
            G, into = side // window, a.shape[3]
            taps = _paired(conv.to(dtype).permute(2, 3, 1, 0))
            out, pooled = torch.empty(B, G, G, C, dtype=dtype), torch.empty(B, G, G, C, dtype=dtype)
            which, stats = torch.empty(B, G, G, C, dtype=torch.uint8), torch.empty(B, G, G, 2)
            kept, sizes = (out, pooled, which, stats), (B, side, into, C, window)
            call("stage", dtype, a, taps, *kept, weight, bias, *sizes, int(last), eps)
            saved += [a, pooled, which, stats]
            a = out
        ctx.save_for_backward(proj, a, *weights, *saved)
        ctx.count, ctx.dtype = len(weights), dtype
        found = torch.empty(B, a.shape[1] * a.shape[2], len(proj))
        call("linear", dtype, a, found, proj, proj_bias, *_linear_sizes(a, proj))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dtype = ctx.dtype
        proj, a, *rest = ctx.saved_tensors
        weights, saved = rest[: ctx.count], rest[ctx.count :]
        B = len(grad)
        da: Tensor | None = torch.empty_like(a)
        sums = torch.empty(len(proj) * _room(a.shape[3]) + _room(len(proj)))
        call("linear_backward", dtype, grad.contiguous(), a, da, proj, sums, *_linear_sizes(a, proj))
        dproj, dproj_bias = sums.tensor_split([len(proj) * _room(a.shape[3])])
        grads: list[Tensor | None] = []
        for i in reversed(range(0, ctx.count, 3)):
            conv, weight, bias = weights[i : i + 3]
            before, pooled, which, stats = saved[i // 3 * 4 : i // 3 * 4 + 4]
            last = i + 3 == ctx.count
            window, side, C = (1 if last else 2), before.shape[1], len(conv)
            into, wide = conv.shape[1], _room(9 * conv.shape[1])
            through = torch.empty_like(before) if i > 0 else None  # the whitening is frozen
            turned = _paired(conv.to(dtype).flip(2, 3).permute(2, 3, 0, 1)) if i > 0 else None
            sums = torch.empty(2 * C + C * wide)
            known = (pooled, which, stats, weight, bias, before)
            call(
                "stage_backward",
                dtype,
                da,
                *known,
                turned,
                through,
                sums,
                B,
                side,
                into,
                C,
                window,
                int(last),
            )
            taps = sums[2 * C :].view(C, wide)[:, : 9 * into].reshape(C, 3, 3, into)
            dconv, dnorm, da = taps.permute(0, 3, 1, 2), sums[: 2 * C].view(2, C), through
            grads[:0] = [dconv.to(conv.dtype), dnorm[0].to(weight.dtype), dnorm[1].to(bias.dtype)]
        dproj = _matrix(dproj, a.shape[3]).unflatten(1, (-1, 1, 1))
        return None, None, None, dproj, dproj_bias[: len(proj)], *grads


def _linear_sizes(a: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """Rows, width before, width after."""
    return a.numel() // a.shape[-1], a.shape[-1], len(weight)


def _paired(w: Tensor) -> Tensor:
    """Rows [..., R, C] to units of 32 bits along R, [..., R / 2, C, 2] in bf16, both rounded up; C to ROOM."""
    pair = 4 // w.dtype.itemsize
    w = F.pad(w, (0, -w.shape[-1] % ROOM, 0, -w.shape[-2] % pair))
    return w.unflatten(-2, (-1, pair)).transpose(-1, -2).contiguous()
