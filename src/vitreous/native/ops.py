"""The kernels as operators of torch: declared types, shapes for tracing, and gradients.

What the kernels need for their backward pass is an output of the forward operator, `kept`. The network itself is in
`model/vit.py` and `model/stem.py`, and tests hold kernels and network together.

Letters in the shape comments: B batch, S image side, N tokens, D embed_dim, H heads, K = D / H, M mlp_dim, G tokens
along a side, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitreous.native.build import MIN_WIDTH, call

LAYER = 16  # tensors of a layer
Q_NORM, FC1 = 6, 10


def encode(
    x: Tensor,
    weights: Sequence[Tensor | None],
    keys: Tensor | None,
    rate: float,
    wanted: int,
    num_heads: int,
    eps: float,
    bf16: bool,
) -> Tensor:
    """All layers of the encoder, from tokens x [B, N, D] to the first `wanted` of each picture, [B, wanted, D].

    The last layer lets all tokens be attended to and does the rest of its work for those that are wanted only.

    Args:
        x: float32; N, K = D / num_heads and M at least 16, K even.
        weights: 16 for each layer, float32: the weights of qkv and proj, their biases; weight and bias of norm1, of
            the norms of q and of k; the weights of fc1 and fc2, their biases; weight and bias of norm2. None for
            qkv's bias and for all norms of q and k, where a layer has none.
        keys: dropout's keys, int32 [layers, 2, B]: inside the MLP, and of its output. None for no dropout.
        rate: of dropout, in [0, 1).
        bf16: whether activations are bfloat16 and not float32.

    Raises:
        ValueError: types or sizes do not fit.
        VitreousError: there are no kernels here, or not enough memory.
    """
    absent = x.new_empty(0)
    given = [absent if w is None else w for w in weights]
    if keys is None:
        rate = 0.0
    keep = torch.is_grad_enabled()
    return _encode(x, given, keys, float(rate), wanted, num_heads, float(eps), bf16, keep)[0]


@torch.library.custom_op("vitreous::encode", mutates_args=(), device_types="cpu")
def _encode(
    x: Tensor,
    weights: list[Tensor],
    keys: Tensor | None,
    rate: float,
    wanted: int,
    num_heads: int,
    eps: float,
    bf16: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out, kept = _encode_outputs(x, weights, keys, rate, wanted, num_heads, eps, bf16, keep)
    room = (
        kept
        if keep
        else x.new_empty(_encoder_room(x, weights, 1, wanted, num_heads, bf16), dtype=torch.uint8)
    )
    tensors = (x.contiguous(), out, _contiguous(keys), *map(_contiguous, weights), room)
    depth = len(weights) // LAYER
    sizes = (depth, depth if keep else 1, wanted, *_encoder_sizes(x, weights, num_heads), _threshold(rate))
    call("encoder", _dtype(bf16), tensors, sizes, (eps, 1 / (1 - rate)))
    return out, kept


@_encode.register_fake
def _encode_outputs(
    x: Tensor,
    weights: list[Tensor],
    keys: Tensor | None,
    rate: float,
    wanted: int,
    num_heads: int,
    eps: float,
    bf16: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    if len(weights) == 0 or len(weights) % LAYER or x.ndim != 3:
        raise ValueError(f"encode needs tokens [B, N, D] and {LAYER} weights for each layer.")
    if num_heads < 1 or not 1 <= wanted <= x.shape[1]:
        raise ValueError(
            f"encode needs at least one head and 1 to {x.shape[1]} wanted tokens, not {num_heads} and {wanted}."
        )
    if weights[FC1].ndim != 2:
        raise ValueError(f"encode needs fc1's weight as [M, D], not {list(weights[FC1].shape)}.")
    if not 0 <= rate < 1:
        raise ValueError(f"encode needs a dropout rate in [0, 1), not {rate}.")
    kept = _encoder_room(x, weights, len(weights) // LAYER, wanted, num_heads, bf16) if keep else 0
    return x.new_empty(x.shape[0], wanted, x.shape[2]), x.new_empty(kept, dtype=torch.uint8)


@torch.library.custom_op("vitreous::encode_backward", mutates_args=(), device_types="cpu")
def _encode_backward(
    grad: Tensor,
    kept: Tensor,
    weights: list[Tensor],
    keys: Tensor | None,
    rate: float,
    tokens: int,
    num_heads: int,
    bf16: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of all weights, the latter one after another."""
    dx, dweights = _encode_gradients(grad, kept, weights, keys, rate, tokens, num_heads, bf16)
    tensors = (grad.contiguous(), dx, _contiguous(keys), *map(_contiguous, weights), kept, dweights)
    depth = len(weights) // LAYER
    sizes = (depth, depth, grad.shape[1], *_encoder_sizes(dx, weights, num_heads), _threshold(rate))
    call("encoder_backward", _dtype(bf16), tensors, sizes, (1 / (1 - rate),))
    return dx, dweights


@_encode_backward.register_fake
def _encode_gradients(
    grad: Tensor,
    kept: Tensor,
    weights: list[Tensor],
    keys: Tensor | None,
    rate: float,
    tokens: int,
    num_heads: int,
    bf16: bool,
) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape[0], tokens, grad.shape[2]), grad.new_empty(
        sum(w.numel() for w in weights)
    )


def _encode_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weights, keys, rate, _, num_heads, _, bf16, keep = inputs
    if not keep:
        raise ValueError("encode needs keep=True for a backward pass.")
    _has_no_gradient(ctx, output[1])
    ctx.save_for_backward(output[1], keys, *weights)
    ctx.settings = rate, x.shape[1], num_heads, bf16


def _encode_vjp(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    kept, keys, *weights = ctx.saved_tensors
    rate, tokens, num_heads, bf16 = ctx.settings
    dx, dweights = _encode_backward(grad, kept, weights, keys, rate, tokens, num_heads, bf16)
    return dx, _split(dweights, weights), None, None, None, None, None, None, None


_encode.register_autograd(_encode_vjp, setup_context=_encode_setup)


def pool(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, query: Tensor, eps: float, bf16: bool) -> Tensor:
    """Tokens x [B, N, D] through a layer norm and attention pooling to [B, D].

    `query` [1, D] scores each token; the result is their mean, weighted by the softmax of the scores. All float32;
    `bf16` says only which of the two libraries does it.

    Raises: as `encode` does.
    """
    return _pool(x, norm_weight, norm_bias, query, float(eps), bf16)[0]


@torch.library.custom_op("vitreous::pool", mutates_args=(), device_types="cpu")
def _pool(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, query: Tensor, eps: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    out, kept = _pool_outputs(x, norm_weight, norm_bias, query, eps, bf16)
    tensors = (x, out, kept, norm_weight, norm_bias, query)
    call("pool", _dtype(bf16), [x.contiguous(), out, kept, *map(_contiguous, tensors[3:])], x.shape, (eps,))
    return out, kept


@_pool.register_fake
def _pool_outputs(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, query: Tensor, eps: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    if x.ndim != 3:
        raise ValueError("pool needs tokens [B, N, D].")
    B, N, D = x.shape
    return x.new_empty(B, D), x.new_empty(B, N, 3)


@torch.library.custom_op("vitreous::pool_backward", mutates_args=(), device_types="cpu")
def _pool_backward(
    grad: Tensor, x: Tensor, kept: Tensor, norm_weight: Tensor, norm_bias: Tensor, query: Tensor, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and [3, D] of the norm's weight and bias and of the query."""
    dx, dweights = _pool_gradients(grad, x, kept, norm_weight, norm_bias, query, bf16)
    given = [_contiguous(t) for t in (x, kept, norm_weight, norm_bias, query)]
    call("pool_backward", _dtype(bf16), [grad.contiguous(), dx, *given, dweights], x.shape)
    return dx, dweights


@_pool_backward.register_fake
def _pool_gradients(
    grad: Tensor, x: Tensor, kept: Tensor, norm_weight: Tensor, norm_bias: Tensor, query: Tensor, bf16: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(3, x.shape[2])


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, norm_weight, norm_bias, query, _, ctx.bf16 = inputs
    _has_no_gradient(ctx, output[1])
    ctx.save_for_backward(x, output[1], norm_weight, norm_bias, query)


def _pool_vjp(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    x, kept, norm_weight, norm_bias, query = ctx.saved_tensors
    dx, dweights = _pool_backward(grad, x, kept, norm_weight, norm_bias, query, ctx.bf16)
    return dx, dweights[0], dweights[1], dweights[2].view_as(query), None, None


_pool.register_autograd(_pool_vjp, setup_context=_pool_setup)


def stem(x: Tensor, position: Tensor | None, weights: Sequence[Tensor], eps: float, bf16: bool) -> Tensor:
    """Pictures x [B, 3, S, S] through the convolutional stem to tokens [B, N, D].

    Args:
        x: float32, in any memory order. It has no gradient here.
        position: [1, N, D], added to the tokens.
        weights: the whitening [24, 3, 2, 2], whose second half is the first's negative and which has no gradient
            either; the projection [D, C, 1, 1] and its bias; then, for each stage, the convolution [C, I, 3, 3] and
            weight and bias of its norm. All stages but the last halve the picture; the last adds its input.
        bf16: whether activations are bfloat16 and not float32.

    Raises: as `encode` does.
    """
    return _stem(x, position, list(weights), float(eps), bf16)[0]


@torch.library.custom_op("vitreous::stem", mutates_args=(), device_types="cpu")
def _stem(
    x: Tensor, position: Tensor | None, weights: list[Tensor], eps: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    out, kept = _stem_outputs(x, position, weights, eps, bf16)
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    memory = x.as_strided((x.numel(),), (1,))  # in whatever order: the kernel goes by strides
    tensors = (memory, out, kept, _contiguous(position), *map(_contiguous, weights))
    call("stem", _dtype(bf16), tensors, (*_stem_sizes(len(x), x.shape[2], weights), *x.stride()), (eps,))
    return out, kept


@_stem.register_fake
def _stem_outputs(
    x: Tensor, position: Tensor | None, weights: list[Tensor], eps: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    if len(weights) < 6 or len(weights) % 3 or x.ndim != 4 or x.shape[1:] != (3, x.shape[2], x.shape[2]):
        raise ValueError("stem needs pictures [B, 3, S, S], three weights, and three for each stage.")
    if any(w.ndim != 4 for w in (*weights[:2], *weights[3::3])):
        raise ValueError("stem needs whitening, projection and convolutions as four-dimensional weights.")
    B, S, D = x.shape[0], x.shape[2], len(weights[1])
    kept, grid = stem_kept_bytes(_dtype(bf16).itemsize, B, S, [len(w) for w in weights[3::3]])
    if grid < 1:
        raise ValueError(f"stem needs larger pictures than {S} by {S} for {len(weights) // 3 - 1} stages.")
    return x.new_empty(B, grid * grid, D), x.new_empty(kept, dtype=torch.uint8)


@torch.library.custom_op("vitreous::stem_backward", mutates_args=(), device_types="cpu")
def _stem_backward(
    grad: Tensor, kept: Tensor, weights: list[Tensor], side: int, bf16: bool, with_position: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of all weights but the whitening, one after another, and of the position [N, D], or nothing."""
    dweights, dposition = _stem_gradients(grad, kept, weights, side, bf16, with_position)
    used = (weights[1], *weights[3:])
    tensors = (
        grad.contiguous(),
        kept,
        *map(_contiguous, used),
        dweights,
        dposition if with_position else None,
    )
    call("stem_backward", _dtype(bf16), tensors, _stem_sizes(len(grad), side, weights))
    return dweights, dposition


@_stem_backward.register_fake
def _stem_gradients(
    grad: Tensor, kept: Tensor, weights: list[Tensor], side: int, bf16: bool, with_position: bool
) -> tuple[Tensor, Tensor]:
    dposition = grad.new_empty(grad.shape[1:] if with_position else 0)
    return grad.new_empty(sum(w.numel() for w in weights[1:])), dposition


def _stem_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, position, weights, _, bf16 = inputs
    if x.requires_grad or weights[0].requires_grad:
        raise ValueError("stem has no gradients for pictures and for the whitening.")
    _has_no_gradient(ctx, output[1])
    ctx.save_for_backward(output[1], *weights)
    ctx.settings = x.shape[2], bf16, None if position is None else position.shape


def _stem_vjp(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    kept, *weights = ctx.saved_tensors
    side, bf16, placed = ctx.settings
    dweights, dposition = _stem_backward(grad, kept, weights, side, bf16, placed is not None)
    dpos = None if placed is None else dposition.view(placed)
    return None, dpos, [None, *_split(dweights, weights[1:])], None, None


_stem.register_autograd(_stem_vjp, setup_context=_stem_setup)


def muon_step(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    learning_rate: float,
    momentum: float,
    decay: float,
    bf16: bool,
    steps: int,
    coefficients: Sequence[float],
) -> None:
    """A step of Muon: `momenta` and then `weights` are updated in place. No gradients.

    Args:
        weights: float32, contiguous, at least 16 elements each; of more than two dimensions, it counts as a matrix
            [rows, all others]. `momenta` likewise.
        learning_rate: scaled for each matrix by sqrt(max(1, rows / columns)).
        steps: of Newton-Schulz, each the polynomial a x + b x^3 + c x^5 of the three `coefficients`.
        bf16: whether products are of bfloat16 and not of float32.

    Raises: as `encode` does.
    """
    if not weights or not len(weights) == len(grads) == len(momenta):
        raise ValueError("muon_step needs at least one matrix, and as many gradients and momenta.")
    rates = (float(learning_rate), float(momentum), float(decay))
    _muon_step(weights, grads, momenta, *rates, bf16, steps, [float(c) for c in coefficients])


@torch.library.custom_op("vitreous::muon_step", mutates_args=("weights", "momenta"), device_types="cpu")
def _muon_step(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    learning_rate: float,
    momentum: float,
    decay: float,
    bf16: bool,
    steps: int,
    coefficients: list[float],
) -> None:
    tensors, sizes = [], [len(weights), steps]
    for weight, average, grad in zip(weights, momenta, grads, strict=True):
        tensors += [weight, average, grad.contiguous()]
        rows = len(weight) if weight.ndim > 1 else 1
        sizes += [rows, weight.numel() // max(rows, 1)]
    call("muon", _dtype(bf16), tensors, sizes, (learning_rate, momentum, decay, *coefficients))


@_muon_step.register_fake
def _(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    learning_rate: float,
    momentum: float,
    decay: float,
    bf16: bool,
    steps: int,
    coefficients: list[float],
) -> None:
    return None


def _has_no_gradient(ctx: Any, kept: Tensor) -> None:
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)  # or torch makes zeros for it, as large as it is


def _dtype(bf16: bool) -> torch.dtype:
    return torch.bfloat16 if bf16 else torch.float32


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None or tensor.numel() == 0 else tensor.contiguous()


def _split(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    pieces = flat.split([w.numel() for w in weights])
    return [piece.view(w.shape) for piece, w in zip(pieces, weights, strict=True)]


def _threshold(rate: float) -> int:
    """Below which a hash leaves its element out; as `model/dropout.py` has it."""
    return int(rate * 2**32)


def _encoder_sizes(x: Tensor, weights: Sequence[Tensor], num_heads: int) -> tuple[int, ...]:
    """B, N, H, K, M."""
    return x.shape[0], x.shape[1], num_heads, x.shape[2] // num_heads, len(weights[FC1])


def _encoder_room(
    x: Tensor, weights: Sequence[Tensor], kept_layers: int, wanted: int, num_heads: int, bf16: bool
) -> int:
    """Bytes that `kept_layers` layers keep: all of them, or one that all use in turn."""
    sizes, last = _encoder_sizes(x, weights, num_heads), kept_layers == len(weights) // LAYER
    size, normed = _dtype(bf16).itemsize, weights[Q_NORM].numel() > 0
    whole = kept_bytes(size, sizes, x.shape[1], normed)
    return (kept_layers - 1) * whole + (kept_bytes(size, sizes, wanted, normed) if last else whole)


def kept_bytes(itemsize: int, sizes: Sequence[int], tokens: int, normed: bool) -> int:
    """Bytes that a layer keeps (`Kept` in encoder.cpp, which checks it).

    `itemsize` is that of activations, `sizes` B, N, H, K, M; the layer works on `tokens` of N after attention.
    """
    B, N, H, K, M = sizes
    D, rows, last_rows = H * K, B * N, B * tokens
    pieces = [4 * rows, 4 * last_rows, 16 * rows * H if normed else 0]
    pieces += [itemsize * rows * width for width in (D, 3 * D)]
    pieces += [itemsize * last_rows * width for width in (H * _round_up(N), D, D, _round_up(M), _round_up(M))]
    return sum(_aligned(piece) for piece in pieces)


def stem_kept_bytes(itemsize: int, batch: int, side: int, channels: Sequence[int]) -> tuple[int, int]:
    """Bytes that the stem keeps (`StemSizes` in stem.cpp), and the number of tokens along a side."""
    side -= 1
    total = _aligned(itemsize * batch * side * side * 24)
    for i, C in enumerate(channels):
        side = side if i + 1 == len(channels) else side // 2
        pixels = batch * side * side
        total += 2 * _aligned(itemsize * pixels * C) + _aligned(pixels * C) + _aligned(8 * pixels)
    return total, side


def _stem_sizes(batch: int, side: int, weights: Sequence[Tensor]) -> list[int]:
    channels = [len(w) for w in weights[3::3]]
    return [batch, side, len(weights[1]), len(channels), *channels]


def _round_up(width: int) -> int:
    return -(-width // MIN_WIDTH) * MIN_WIDTH


def _aligned(size: int) -> int:
    return -(-size // 64) * 64
