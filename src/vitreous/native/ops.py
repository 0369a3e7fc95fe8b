"""The native kernels as torch operators: types, output shapes for tracing, and gradients.

Each forward operator has a second output, `kept`: what its backward operator needs. The kernels compute the same as
the modules in `model/vit.py` and `model/stem.py`, and the tests compare the two. Where no gradients are enabled, the
kernels are called without an operator: the first call of one loads torch's compiler, which takes over a second.

Letters in the shape comments: B batch, S image side, N tokens, D embed_dim, H heads, K = D / H, M mlp_dim, G tokens
along a side, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitreous.native.build import MIN_WIDTH, call

LAYER = 16  # weights of an encoder layer, in the order of `Field` in encoder.cpp
Q_NORM, FC1 = 6, 10  # positions in a layer


def encode(
    x: Tensor,
    weights: Sequence[Tensor | None],
    keys: Tensor | None,
    rate: float,
    out_tokens: int,
    num_heads: int,
    eps: float,
    bf16: bool,
) -> Tensor:
    """Runs all encoder layers on tokens x [B, N, D]; returns each image's first tokens, [B, out_tokens, D].

    In the last layer, only the first `out_tokens` tokens attend to all N and go through the MLP.

    Args:
        x: float32. N, K = D / num_heads and M must be at least 16, and K even.
        weights: float32, 16 for each layer: the weights of qkv and proj, and their biases; weight and bias of norm1,
            of q's norm and of k's norm; the weights of fc1 and fc2, and their biases; weight and bias of norm2. The
            bias of qkv may be None, and so may all four weights of the norms of q and k.
        keys: keys of dropout, int32 [layers, 2, B], for the MLP's hidden units and for its output. None: no dropout.
        rate: dropout rate in [0, 1).
        eps: of all layer norms.
        bf16: whether activations are bfloat16; otherwise they are float32.

    Raises:
        ValueError: types or sizes do not fit.
        VitreousError: there are no kernels on this machine, or there is not enough memory.
    """
    missing = x.new_empty(0)
    tensors = [missing if w is None else w for w in weights]
    if keys is None:
        rate = 0.0
    keep = torch.is_grad_enabled()
    run = _encode if keep else _run_encode
    return run(x, tensors, keys, float(rate), out_tokens, num_heads, float(eps), bf16, keep)[0]


def _run_encode(
    x: Tensor,
    weights: list[Tensor],
    keys: Tensor | None,
    rate: float,
    out_tokens: int,
    num_heads: int,
    eps: float,
    bf16: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out, kept = _encode_outputs(x, weights, rate, out_tokens, num_heads, bf16, keep)
    memory = kept
    if not keep:  # one layer's memory, which all layers use in turn
        memory = x.new_empty(_encoder_bytes(x, weights, 1, out_tokens, num_heads, bf16), dtype=torch.uint8)
    tensors = (x.contiguous(), out, _contiguous(keys), *map(_contiguous, weights), memory)
    depth = len(weights) // LAYER
    sizes = (
        depth,
        depth if keep else 1,
        out_tokens,
        *_encoder_sizes(x, weights, num_heads),
        _threshold(rate),
    )
    call("encoder", _dtype(bf16), tensors, sizes, (eps, 1 / (1 - rate)))
    return out, kept


_encode = torch.library.custom_op("vitreous::encode", _run_encode, mutates_args=(), device_types="cpu")


def _encode_outputs(
    x: Tensor,
    weights: list[Tensor],
    rate: float,
    out_tokens: int,
    num_heads: int,
    bf16: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    if len(weights) == 0 or len(weights) % LAYER or x.ndim != 3:
        raise ValueError(f"encode needs tokens [B, N, D] and {LAYER} weights for each layer.")
    if num_heads < 1 or not 1 <= out_tokens <= x.shape[1]:
        raise ValueError(
            f"encode needs at least one head and 1 to {x.shape[1]} out_tokens, not {num_heads} and {out_tokens}."
        )
    if weights[FC1].ndim != 2:
        raise ValueError(f"encode needs fc1's weight as [M, D], not {list(weights[FC1].shape)}.")
    if not 0 <= rate < 1:
        raise ValueError(f"encode needs a dropout rate in [0, 1), not {rate}.")
    kept = _encoder_bytes(x, weights, len(weights) // LAYER, out_tokens, num_heads, bf16) if keep else 0
    return x.new_empty(x.shape[0], out_tokens, x.shape[2]), x.new_empty(kept, dtype=torch.uint8)


_encode.register_fake(
    lambda x, weights, keys, rate, out_tokens, num_heads, eps, bf16, keep: _encode_outputs(
        x, weights, rate, out_tokens, num_heads, bf16, keep
    )
)


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
    """Gradients of x [B, tokens, D] and of all weights, these flat, one after another."""
    dx, dweights = _encode_gradients(grad, weights, tokens)
    tensors = (grad.contiguous(), dx, _contiguous(keys), *map(_contiguous, weights), kept, dweights)
    depth = len(weights) // LAYER
    sizes = (depth, depth, grad.shape[1], *_encoder_sizes(dx, weights, num_heads), _threshold(rate))
    call("encoder_backward", _dtype(bf16), tensors, sizes, (1 / (1 - rate),))
    return dx, dweights


def _encode_gradients(grad: Tensor, weights: list[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
    dx = grad.new_empty(grad.shape[0], tokens, grad.shape[2])
    return dx, grad.new_empty(sum(w.numel() for w in weights))


_encode_backward.register_fake(
    lambda grad, kept, weights, keys, rate, tokens, *_: _encode_gradients(grad, weights, tokens)
)


def _encode_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weights, keys, rate, _, num_heads, _, bf16, keep = inputs
    if not keep:
        raise ValueError("encode needs keep=True for a backward pass.")
    _without_gradient(ctx, output[1])
    ctx.save_for_backward(output[1], keys, *weights)
    ctx.settings = rate, x.shape[1], num_heads, bf16


def _encode_vjp(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    kept, keys, *weights = ctx.saved_tensors
    rate, tokens, num_heads, bf16 = ctx.settings
    dx, dweights = _encode_backward(grad, kept, weights, keys, rate, tokens, num_heads, bf16)
    return dx, _split(dweights, weights), None, None, None, None, None, None, None


_encode.register_autograd(_encode_vjp, setup_context=_encode_setup)


def pool(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, query: Tensor, eps: float, bf16: bool) -> Tensor:
    """Applies a layer norm and attention pooling (arXiv 2104.05704) to tokens x [B, N, D]; returns [B, D].

    `query` [1, D] scores each token, and the result is the mean of the tokens, weighted by the softmax of their
    scores. Everything is float32; `bf16` only selects the library, so that a run needs just one.

    Raises: like `encode`.
    """
    run = _pool if torch.is_grad_enabled() else _run_pool
    return run(x, norm_weight, norm_bias, query, float(eps), bf16)[0]


def _run_pool(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, query: Tensor, eps: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    out, kept = _pool_outputs(x)
    weights = [_contiguous(w) for w in (norm_weight, norm_bias, query)]
    call("pool", _dtype(bf16), [x.contiguous(), out, kept, *weights], x.shape, (eps,))
    return out, kept


_pool = torch.library.custom_op("vitreous::pool", _run_pool, mutates_args=(), device_types="cpu")


def _pool_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 3:
        raise ValueError(f"pool needs tokens [B, N, D], not {list(x.shape)}.")
    B, N, D = x.shape
    return x.new_empty(B, D), x.new_empty(B, N, 3)


_pool.register_fake(lambda x, *_: _pool_outputs(x))


@torch.library.custom_op("vitreous::pool_backward", mutates_args=(), device_types="cpu")
def _pool_backward(
    grad: Tensor, x: Tensor, kept: Tensor, norm_weight: Tensor, norm_bias: Tensor, query: Tensor, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of the norm's weight, its bias and the query as [3, D]."""
    dx, dweights = _pool_gradients(x)
    inputs = [_contiguous(t) for t in (x, kept, norm_weight, norm_bias, query)]
    call("pool_backward", _dtype(bf16), [grad.contiguous(), dx, *inputs, dweights], x.shape)
    return dx, dweights


def _pool_gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(3, x.shape[2])


_pool_backward.register_fake(lambda grad, x, *_: _pool_gradients(x))


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, norm_weight, norm_bias, query, _, ctx.bf16 = inputs
    _without_gradient(ctx, output[1])
    ctx.save_for_backward(x, output[1], norm_weight, norm_bias, query)


def _pool_vjp(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    x, kept, norm_weight, norm_bias, query = ctx.saved_tensors
    dx, dweights = _pool_backward(grad, x, kept, norm_weight, norm_bias, query, ctx.bf16)
    return dx, dweights[0], dweights[1], dweights[2].view_as(query), None, None


_pool.register_autograd(_pool_vjp, setup_context=_pool_setup)


def stem(
    x: Tensor, position: Tensor | None, weights: Sequence[Tensor], stride: int, eps: float, bf16: bool
) -> Tensor:
    """Runs the convolutional stem (`model/stem.py`) on images x [B, 3, S, S]; returns tokens [B, N, D].

    Args:
        x: float32, in any memory order. It gets no gradient.
        position: [1, N, D], added to the tokens.
        weights: float32. The whitening [24, 3, 2, 2], whose second half must be the negative of the first; it gets no
            gradient. Then the projection [D, C, 1, 1] and its bias. Then, for each stage, the convolution
            [C, I, 3, 3] from I to C channels, and weight and bias of its norm. Each stage halves the image, except
            the last, which adds its input to its output.
        stride: of the whitening, in pixels.
        eps: of all layer norms.
        bf16: whether activations are bfloat16; otherwise they are float32.

    Raises: like `encode`.
    """
    run = _stem if torch.is_grad_enabled() else _run_stem
    return run(x, position, list(weights), stride, float(eps), bf16)[0]


def _run_stem(
    x: Tensor, position: Tensor | None, weights: list[Tensor], stride: int, eps: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    out, kept = _stem_outputs(x, weights, stride, bf16)
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    memory = x.as_strided((x.numel(),), (1,))  # flat, in memory order: the kernel gets the strides
    tensors = (memory, out, kept, _contiguous(position), *map(_contiguous, weights))
    call(
        "stem",
        _dtype(bf16),
        tensors,
        (*_stem_sizes(len(x), x.shape[2], stride, weights), *x.stride()),
        (eps,),
    )
    return out, kept


_stem = torch.library.custom_op("vitreous::stem", _run_stem, mutates_args=(), device_types="cpu")


def _stem_outputs(x: Tensor, weights: list[Tensor], stride: int, bf16: bool) -> tuple[Tensor, Tensor]:
    if len(weights) < 6 or len(weights) % 3 or x.ndim != 4 or x.shape[1:] != (3, x.shape[2], x.shape[2]):
        raise ValueError("stem needs images [B, 3, S, S], three weights, and three more for each stage.")
    if any(w.ndim != 4 for w in (*weights[:2], *weights[3::3])):
        raise ValueError("stem needs four-dimensional weights of whitening, projection and convolutions.")
    if stride < 1:
        raise ValueError(f"stem needs a stride of at least 1, not {stride}.")
    B, S, D = x.shape[0], x.shape[2], len(weights[1])
    kept, grid = stem_kept_bytes(_dtype(bf16).itemsize, B, S, stride, [len(w) for w in weights[3::3]])
    if grid < 1:
        raise ValueError(
            f"stem needs larger images than {S} by {S} for a stride of {stride} and {len(weights) // 3 - 1} stages."
        )
    return x.new_empty(B, grid * grid, D), x.new_empty(kept, dtype=torch.uint8)


_stem.register_fake(lambda x, position, weights, stride, eps, bf16: _stem_outputs(x, weights, stride, bf16))


@torch.library.custom_op("vitreous::stem_backward", mutates_args=(), device_types="cpu")
def _stem_backward(
    grad: Tensor, kept: Tensor, weights: list[Tensor], side: int, stride: int, bf16: bool, with_position: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of all weights but the whitening, flat, one after another, and of the position [N, D], or empty."""
    dweights, dposition = _stem_gradients(grad, weights, with_position)
    inputs = [_contiguous(w) for w in (weights[1], *weights[3:])]  # the bias is not needed
    tensors = (grad.contiguous(), kept, *inputs, dweights, dposition if with_position else None)
    call("stem_backward", _dtype(bf16), tensors, _stem_sizes(len(grad), side, stride, weights))
    return dweights, dposition


def _stem_gradients(grad: Tensor, weights: list[Tensor], with_position: bool) -> tuple[Tensor, Tensor]:
    dposition = grad.new_empty(grad.shape[1:] if with_position else 0)
    return grad.new_empty(sum(w.numel() for w in weights[1:])), dposition


_stem_backward.register_fake(
    lambda grad, kept, weights, side, stride, bf16, with_position: _stem_gradients(
        grad, weights, with_position
    )
)


def _stem_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, position, weights, stride, _, bf16 = inputs
    if x.requires_grad or weights[0].requires_grad:
        raise ValueError("stem has no gradients for images and whitening; turn off their requires_grad.")
    _without_gradient(ctx, output[1])
    ctx.save_for_backward(output[1], *weights)
    ctx.settings = x.shape[2], stride, bf16, None if position is None else position.shape


def _stem_vjp(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    kept, *weights = ctx.saved_tensors
    side, stride, bf16, position_shape = ctx.settings
    dweights, dposition = _stem_backward(grad, kept, weights, side, stride, bf16, position_shape is not None)
    dposition = None if position_shape is None else dposition.view(position_shape)
    return None, dposition, [None, *_split(dweights, weights[1:])], None, None, None


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
    """One step of the Muon optimizer (kellerjordan.github.io/posts/muon): updates `momenta` and `weights` in place.

    Args:
        weights: float32, contiguous, at least 16 elements each. A tensor of more than two dimensions counts as the
            matrix [rows, all others].
        grads, momenta: one for each weight, of its shape; `momenta` contiguous.
        learning_rate: multiplied for each matrix by sqrt(max(1, rows / columns)).
        decay: weight decay, multiplied by the learning rate.
        bf16: whether the products are of bfloat16; otherwise they are of float32.
        steps: number of Newton-Schulz steps, each x -> a x + b x^3 + c x^5 with the three `coefficients`.

    Raises: like `encode`.
    """
    if not weights or not len(weights) == len(grads) == len(momenta):
        raise ValueError("muon_step needs at least one matrix, and as many gradients and momenta.")
    numbers = (float(learning_rate), float(momentum), float(decay))
    _muon_step(weights, grads, momenta, *numbers, bf16, steps, [float(c) for c in coefficients])


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


_muon_step.register_fake(lambda *_: None)


def _without_gradient(ctx: Any, kept: Tensor) -> None:
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)  # otherwise torch allocates zeros of the size of `kept`


def _dtype(bf16: bool) -> torch.dtype:
    return torch.bfloat16 if bf16 else torch.float32


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor as a kernel takes it; None for one without elements, which stands for a missing one."""
    return None if tensor is None or tensor.numel() == 0 else tensor.contiguous()


def _split(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Splits a flat tensor of gradients into one for each weight."""
    pieces = flat.split([w.numel() for w in weights])
    return [piece.view(w.shape) for piece, w in zip(pieces, weights, strict=True)]


def _threshold(rate: float) -> int:
    """Dropout drops an element if its 32-bit hash is below this, as in `model/dropout.py`."""
    return int(rate * 2**32)


def _encoder_sizes(x: Tensor, weights: Sequence[Tensor], num_heads: int) -> tuple[int, ...]:
    """The sizes B, N, H, K, M."""
    return x.shape[0], x.shape[1], num_heads, x.shape[2] // num_heads, len(weights[FC1])


def _encoder_bytes(
    x: Tensor, weights: Sequence[Tensor], kept_layers: int, out_tokens: int, num_heads: int, bf16: bool
) -> int:
    """Bytes that `kept_layers` layers keep: either all layers, or one whose memory all use in turn."""
    sizes, has_last = _encoder_sizes(x, weights, num_heads), kept_layers == len(weights) // LAYER
    itemsize, qk_norm = _dtype(bf16).itemsize, weights[Q_NORM].numel() > 0
    full = kept_bytes(itemsize, sizes, x.shape[1], qk_norm)
    last = kept_bytes(itemsize, sizes, out_tokens, qk_norm) if has_last else full
    return (kept_layers - 1) * full + last


def kept_bytes(itemsize: int, sizes: Sequence[int], tokens: int, qk_norm: bool) -> int:
    """Bytes that one encoder layer keeps for its backward pass. `Kept` in encoder.cpp must agree, and checks it.

    Args:
        itemsize: bytes of an activation.
        sizes: B, N, H, K, M.
        tokens: how many of the N tokens the layer works on after attention.
        qk_norm: whether q and k have norms.
    """
    B, N, H, K, M = sizes
    D, rows, out_rows = H * K, B * N, B * tokens
    pieces = [4 * rows, 4 * out_rows, 16 * rows * H if qk_norm else 0]
    pieces += [itemsize * rows * width for width in (D, 3 * D)]
    pieces += [itemsize * out_rows * width for width in (H * _round_up(N), D, D, _round_up(M), _round_up(M))]
    return sum(_aligned(piece) for piece in pieces)


def stem_kept_bytes(
    itemsize: int, batch: int, side: int, stride: int, channels: Sequence[int]
) -> tuple[int, int]:
    """Bytes that the stem keeps for its backward pass, and the number of tokens along a side.

    `StemSizes` in stem.cpp must agree, and checks it. `side` is the image's, `stride` the whitening's, and
    `channels` are those of each stage.
    """
    side = (side - 1) // stride
    total = _aligned(itemsize * batch * side * side * 24)
    for i, C in enumerate(channels):
        side = side if i + 1 == len(channels) else side // 2
        pixels = batch * side * side
        total += 2 * _aligned(itemsize * pixels * C) + _aligned(pixels * C) + _aligned(8 * pixels)
    return total, side


def _stem_sizes(batch: int, side: int, stride: int, weights: Sequence[Tensor]) -> list[int]:
    channels = [len(w) for w in weights[3::3]]
    return [batch, side, stride, len(weights[1]), len(channels), *channels]


def _round_up(width: int) -> int:
    """The width with padding, as `round_up` in vectors.h."""
    return -(-width // MIN_WIDTH) * MIN_WIDTH


def _aligned(size: int) -> int:
    """Bytes rounded up to whole cache lines, as `Cutter` in arguments.h."""
    return -(-size // 64) * 64
