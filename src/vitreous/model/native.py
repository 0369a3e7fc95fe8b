"""Encoder and stem on a CPU, written out: torch's large matrix products, and our passes between them.

torch runs a network operator by operator, and for narrow networks half of a step goes into what stands between the
products: casts, norms, activations, copies. Here each such stretch is one pass over memory (`kernels.cpp`), forward
and backward. The results are those of `vit.py` and `stem.py`, which say what is computed; tests hold the two together.

Letters in the shape comments: B batch, N tokens, T = B·N, D embed_dim, H heads, K = D / H, G tokens along a side.
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


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels can read such pictures or tokens, and weights: float32 on a CPU, and not empty."""
    ours = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, weight))
    return ours and len(x) > 0 and activation_dtype() in (torch.float32, torch.bfloat16)


def activation_dtype() -> torch.dtype:
    """What autocast makes of activations here."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


HEAD_NORMS = ("attn.q_norm.weight", "attn.q_norm.bias", "attn.k_norm.weight", "attn.k_norm.bias")
# Of a layer, in the order in which they are given; qkv's bias and the norms of the heads may be missing.
LAYER = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", *HEAD_NORMS),
    *("attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias"),
    *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
)
Weights = dict[str, Any]  # tensors, or None for what a layer lacks
Noise = tuple[int, float]  # of dropout: a seed, and the rate
STILL: Noise = (0, 0.0)
Branch = tuple[
    Tensor | None, Tensor | None, Noise
]  # to be added to the stream: [T, D], its bias [D], its dropout


def encode(x: Tensor, blocks: Sequence[nn.Module], wanted: int) -> Tensor:
    """Tokens float [B, N, D] through the layers of `vit.Block` to the first `wanted` [B, wanted, D].

    The last layer lets all tokens be attended to, and does the rest of its work for those that are wanted only.
    """
    weights = [parameters.get(name) for parameters in map(_parameters, blocks) for name in LAYER]
    first: Any = blocks[0]
    rate = float(first.mlp.dropout.rate) if first.training else 0.0  # C takes an int's bits for a float
    seeds = torch.randint(2**32, (len(blocks), 2)).tolist() if rate else [[0, 0]] * len(blocks)
    noises = [[(seed, rate) for seed in layer] for layer in seeds]  # inside each MLP, and of what it adds
    return Encoder.apply(
        x, first.attn.num_heads, float(first.norm1.eps), wanted, noises, torch.is_grad_enabled(), *weights
    )


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


class Encoder(torch.autograd.Function):
    """All layers of the encoder: `_layer` forward, `_layer_backward` backward, which read in parallel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        heads: int,
        eps: float,
        wanted: int,
        noises: Sequence[Sequence[Noise]],
        keep: bool,
        *weights: Tensor | None,
    ) -> Tensor:
        dtype, (B, N, D) = activation_dtype(), x.shape
        stream, saved = x.detach().reshape(B * N, D).contiguous(), []
        branch: Branch = (None, None, STILL)
        layers = _layers(weights)
        for i, layer in enumerate(layers):
            count = wanted if i + 1 == len(layers) else N
            stream, branch, kept = _layer(stream, branch, layer, dtype, (B, N, heads), count, noises[i], eps)
            saved += kept if keep else []
        out = torch.empty_like(stream)
        added, shift, noise = branch
        nothing = (None, None, None, None)
        call("add_norm", dtype, stream, added, shift, out, *nothing, len(out), D, eps, *noise)
        ctx.save_for_backward(*weights, *saved)
        ctx.sizes, ctx.wanted, ctx.dtype, ctx.count = (B, N, heads), wanted, dtype, len(weights)
        ctx.noises = noises
        return out.view(B, wanted, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layers = _layers(ctx.saved_tensors[: ctx.count])
        saved = ctx.saved_tensors[ctx.count :]
        per = len(saved) // len(layers)
        # The gradient of the residual stream, float [T, D]; then the same for products, and of the last bias.
        stream = grad.detach().reshape(-1, grad.shape[-1]).clone()
        half, bias = torch.empty_like(stream, dtype=ctx.dtype), torch.empty(stream.shape[1])
        call("end_backward", ctx.dtype, stream, half, bias, *stream.shape, *ctx.noises[-1][1])
        grads: list[Tensor | None] = []
        for i, layer in reversed(list(enumerate(layers))):
            kept = saved[per * i : per * (i + 1)]
            count = ctx.wanted if i + 1 == len(layers) else ctx.sizes[1]
            stream, half, bias, found = _layer_backward(
                stream,
                half,
                bias,
                layer,
                kept,
                ctx.dtype,
                ctx.sizes,
                count,
                ctx.noises[i - 1][1] if i else STILL,
            )
            grads[:0] = [None if layer[name] is None else found[name].to(layer[name].dtype) for name in LAYER]
        B, N, _ = ctx.sizes
        return stream.view(B, N, -1), None, None, None, None, None, *grads


def _layers(weights: Sequence[Tensor | None]) -> list[Weights]:
    per = len(LAYER)
    return [dict(zip(LAYER, weights[i : i + per], strict=True)) for i in range(0, len(weights), per)]


def _product(x: Tensor, w: Weights, name: str) -> Tensor:
    """What `x` [T, in] gives in the linear layer of that name, in its own type, without the bias: [T, out]."""
    return x @ w[f"{name}.weight"].to(x.dtype).mT


def _qkv_bias(w: Weights) -> Tensor:
    bias = w["attn.qkv.bias"]
    return torch.zeros(len(w["attn.qkv.weight"])) if bias is None else bias


def _head_weights(w: Weights) -> Tensor | None:
    """Weights and biases of the norms of q and k, [4K], or None."""
    return torch.cat([w[name] for name in HEAD_NORMS]) if w[HEAD_NORMS[0]] is not None else None


def _layer(
    stream: Tensor,
    branch: Branch,
    w: Weights,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    wanted: int,
    noises: Sequence[Noise],
    eps: float,
) -> tuple[Tensor, Branch, list[Tensor]]:
    """One layer: the stream before its last branch, that branch, and what the backward pass needs.

    Branches and biases are added in the pass that comes next: `branch` is that of the layer before. Of each picture
    the first `wanted` tokens come out.
    """
    (T, D), (B, N, H) = stream.shape, sizes
    K = D // H

    def add_norm(stream: Tensor, branch: Branch, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """The stream with the branch added; the same normalised; its rows' mean and 1/deviation."""
        out, rows = stream if branch[0] is None else torch.empty_like(stream), len(stream)
        h, stats = torch.empty(rows, D, dtype=dtype), torch.empty(rows, 2)
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        added, shift, noise = branch
        call("add_norm", dtype, stream, added, shift, out, h, stats, weight, bias, rows, D, eps, *noise)
        return out, h, stats

    x1, h1, stats1 = add_norm(stream, branch, "norm1")
    qkv = _product(h1, w, "attn.qkv")  # [T, 3D]
    p = torch.empty(B, H, N, -(-N // ROOM) * ROOM, dtype=dtype)  # attention's weights, and zeros
    merged, head_stats = torch.empty(T, D, dtype=dtype), torch.empty(B, N, 2, H, 2)
    before, after = (qkv, _qkv_bias(w)), (merged, p, head_stats)
    call("attend", dtype, *before, *after, _head_weights(w), B, N, H, K, K**-0.5, eps)

    skip = x1
    if wanted < N:
        skip, merged = (t.view(B, N, D)[:, :wanted].reshape(-1, D).contiguous() for t in (x1, merged))
    x2, h2, stats2 = add_norm(skip, (_product(merged, w, "attn.proj"), w["attn.proj.bias"], STILL), "norm2")
    slope = _product(h2, w, "mlp.fc1")  # [T, mlp_dim]; before the GELU at first, its slope afterwards
    g = torch.empty_like(slope)
    call("gelu_forward", dtype, slope, w["mlp.fc1.bias"], g, *g.shape, *noises[0])
    branch = _product(g, w, "mlp.fc2"), w["mlp.fc2.bias"], noises[1]
    return x2, branch, [x1, stats1, h1, qkv, head_stats, p, merged, x2, stats2, h2, slope, g]


def _layer_backward(
    stream: Tensor,
    half: Tensor,
    bias: Tensor,
    w: Weights,
    kept: Sequence[Tensor],
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    wanted: int,
    before: Noise,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Brings `stream` and `half`, its copy for products, to before the layer, mostly in place.

    `half` is what the branch that was added last is given: the stream's gradient after the dropout of that branch.
    For the layer before this one, that is `before`.

    Returns both, the next earlier layer's `bias`, which is that of the bias that it adds last, and the gradients by
    name.
    """
    D, (B, N, H) = stream.shape[1], sizes
    K = D // H
    x1, stats1, h1, qkv, head_stats, p, merged, x2, stats2, h2, slope, g = kept
    d: dict[str, Tensor] = {}

    def product_backward(dy: Tensor, x: Tensor, name: str) -> Tensor:
        d[f"{name}.weight"] = dy.mT @ x
        return dy @ w[f"{name}.weight"].to(dtype)

    def add_norm_backward(x: Tensor, dh: Tensor, stats: Tensor, name: str, noise: Noise) -> Tensor:
        """Adds what came through a norm to the stream; returns the gradient of the bias that was added before."""
        sums = torch.empty(3, D)
        weight, sizes = w[f"{name}.weight"], stream.shape
        call("add_norm_backward", dtype, x, dh, stats, weight, stream, half, sums, *sizes, *noise)
        d[f"{name}.weight"], d[f"{name}.bias"], before = sums
        return before

    d["mlp.fc2.bias"] = bias
    du = product_backward(half, g, "mlp.fc2")
    d["mlp.fc1.bias"] = torch.empty(g.shape[1])
    call("gelu_backward", dtype, slope, du, d["mlp.fc1.bias"], *g.shape)
    dh = product_backward(du, h2, "mlp.fc1")
    d["attn.proj.bias"] = add_norm_backward(x2, dh, stats2, "norm2", STILL)

    dmerged = product_backward(half, merged, "attn.proj")
    if wanted < N:  # nothing comes from the other tokens
        dmerged, stream, half = (
            F.pad(t.view(B, wanted, D), (0, 0, 0, N - wanted)).view(-1, D) for t in (dmerged, stream, half)
        )
    dqkv, sums = torch.empty_like(qkv), torch.empty(3 * D + 4 * K)
    given = (dmerged, p, qkv, _qkv_bias(w), head_stats, _head_weights(w))
    call("attend_backward", dtype, *given, dqkv, sums, B, N, H, K, K**-0.5)
    d["attn.qkv.bias"] = sums[: 3 * D]
    d |= zip(HEAD_NORMS, sums[3 * D :].view(4, K), strict=True)
    dh = product_backward(dqkv, h1, "attn.qkv")
    bias = add_norm_backward(x1, dh, stats1, "norm1", before)
    return stream, half, bias, d


def tokens(x: Tensor, stem: nn.Module) -> Tensor:
    """Pictures [B, 3, S, S] through `stem.ConvStem` to tokens [B, N, D], in the type of activations."""
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
            G = side // window
            y = _convolution(a, conv.to(dtype))
            out, pooled = torch.empty(B, G, G, C, dtype=dtype), torch.empty(B, G, G, C, dtype=dtype)
            which, stats = torch.empty(B, G, G, C, dtype=torch.uint8), torch.empty(B, G, G, 2)
            skip = a if last else None
            call("stage", dtype, y, skip, out, pooled, which, stats, weight, bias, B, side, C, window, eps)
            saved += [a, pooled, which, stats]
            a = out
        ctx.save_for_backward(proj, a, *weights, *saved)
        ctx.count, ctx.dtype = len(weights), dtype
        flat = a.view(-1, a.shape[-1])
        return torch.addmm(proj_bias.to(dtype), flat, proj.flatten(1).to(dtype).mT).view(B, -1, len(proj))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dtype = ctx.dtype
        proj, a, *rest = ctx.saved_tensors
        weights, saved = rest[: ctx.count], rest[ctx.count :]
        B, flat = len(grad), grad.flatten(0, 1).to(dtype)
        dproj = (flat.mT @ a.flatten(0, 2)).to(proj.dtype).view_as(proj)
        da = (flat @ proj.flatten(1).to(dtype)).view_as(a)
        grads: list[Tensor | None] = []
        for i in reversed(range(0, ctx.count, 3)):
            conv, weight, bias = weights[i : i + 3]
            before, pooled, which, stats = saved[i // 3 * 4 : i // 3 * 4 + 4]
            last = i + 3 == ctx.count
            window, side, C = (1 if last else 2), before.shape[1], len(conv)
            into, wide = conv.shape[1], -(-9 * conv.shape[1] // ROOM) * ROOM
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
        return None, None, None, dproj, grad.sum((0, 1)).to(proj.dtype), *grads


def _convolution(a: Tensor, weight: Tensor) -> Tensor:
    """3x3, padded by one, [B, S, S, C] to [B, S, S, O]."""
    y = torch.conv2d(a.permute(0, 3, 1, 2), weight, padding=1)
    return y.permute(0, 2, 3, 1).contiguous()


def _paired(w: Tensor) -> Tensor:
    """Rows [..., R, C] to units of 32 bits along R, [..., R / 2, C, 2] in bf16, both rounded up; C to ROOM."""
    pair = 4 // w.dtype.itemsize
    w = F.pad(w, (0, -w.shape[-1] % ROOM, 0, -w.shape[-2] % pair))
    return w.unflatten(-2, (-1, pair)).transpose(-1, -2).contiguous()
