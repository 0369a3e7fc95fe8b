"""Heat maps: which regions of an image matter to the network, and which speak for a class.

A map has as many cells along a side as the network has tokens, and the cells cover the whole image evenly: cell
(row, column) covers the pixels from `edges[row]` up to `edges[row + 1]`, see `cell_edges`.

Letters: B batch, S image side in pixels, G cells along a side, N tokens (G², and 1 for a class token), L layers,
H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.bundle import Bundle, predictor, shallow_copy
from vitreous.data.normalize import normalize, to_float
from vitreous.errors import VitreousError, unknown
from vitreous.machine import full_float32
from vitreous.model.vit import Attention, VisionTransformer, attention_weights
from vitreous.native.accelerate import plain

AUTO = "occlusion"  # what `auto` stands for: the most faithful on validation (benchmarks/faithfulness.py)
OCCLUDED_CELLS = 3  # side of the covered square, in cells; odd
OCCLUDED_BATCH = 500  # covered copies in one forward pass
TRACED_FLOATS = 2**25  # attention of so many rows and columns is held at a time: 128 MiB


def heat_map(
    bundle: Bundle, pixels: np.ndarray, classes: np.ndarray | None = None, method: str = "auto"
) -> np.ndarray:
    """How much each region of an image matters to the network.

    The model and its mode, gradients, attention path and hooks stay as they are.

    Args:
        pixels: uint8 [B, S, S, 3], as `bundle.preprocess.batch` returns them.
        classes: int [B], positions in `bundle.classes`; by default the predicted class of each image. "attention" and
            "rollout" do not depend on them.
        method: a key of `METHODS`, or "auto" for the one that proved most faithful (`docs/using.md`).

    Returns:
        float32 [B, G, G]. Positive cells speak for the class. The scale depends on the method:
        "occlusion": the mean drop of the class's probability when a square that holds the cell is covered, from -1
        to 1.
        "gradient": relevance for the class, from 0 to 1, the image's largest value.
        "attention", "rollout": shares of attention, from 0; an image's shares have the sum 1.

    Raises:
        VitreousError: unknown method, or pixels or classes do not fit the bundle.
    """
    method = AUTO if method == "auto" else method
    if method not in METHODS:
        raise unknown("method", method, ("auto", *METHODS))
    with torch.inference_mode(False):
        x = network_input(bundle, pixels)
        if classes is None:
            classes = bundle.predict(pixels) if len(x) else np.zeros(0, np.int64)
        classes = np.asarray(classes)
        if classes.shape != (len(x),) or not np.isin(classes, np.arange(len(bundle.classes))).all():
            raise VitreousError(
                f"Heat maps need one class for each of the {len(x)} images, "
                f"from 0 to {len(bundle.classes) - 1}."
            )
        if not len(x):
            return np.zeros((0, bundle.model.grid, bundle.model.grid), np.float32)
        chosen = torch.from_numpy(classes.astype(np.int64)).to(x.device)
        with torch.autocast(x.device.type, enabled=False), full_float32(x.device.type):
            return METHODS[method](bundle, x, chosen).detach().cpu().numpy()


def network_input(bundle: Bundle, pixels: np.ndarray) -> Tensor:
    """Pixels, uint8 [B, S, S, 3], as the network takes them: normalised, float32 [B, 3, S, S], on its device.

    Raises:
        VitreousError: the pixels have another type or shape.
    """
    size, pixels = bundle.model.image_size, np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise VitreousError(
            f"Heat maps need uint8 pixels [N, {size}, {size}, 3], not {pixels.dtype} {[*pixels.shape]}; "
            "convert images by bundle.preprocess.batch."
        )
    device = next(bundle.model.parameters()).device
    return normalize(to_float(torch.from_numpy(np.array(pixels)).to(device)), bundle.mean, bundle.std)


def cell_edges(model: VisionTransformer) -> list[int]:
    """The borders of the map's cells in pixels, G + 1 numbers from 0 to S: i · S / G, halves rounded up."""
    return [(2 * i * model.image_size + model.grid) // (2 * model.grid) for i in range(model.grid + 1)]


# ---- occlusion


@torch.no_grad()
def occlusion(bundle: Bundle, x: Tensor, classes: Tensor) -> Tensor:
    """The drop of the class's probability when a square of the image is covered (Zeiler and Fergus, arXiv 1311.2901).

    For each cell (row, column), a copy of the image is covered from `edges[max(row - 1, 0)]` up to, but without,
    `edges[min(row + 2, G)]`, and the columns alike. So the square has 3 x 3 cells, fewer at the border of the image.
    It gets the mean colour of the training images, which is 0 in the normalised input. Its drop is the calibrated
    probability of the class for the whole image, minus that for the covered one.

    The map's value at a cell is the mean drop of all squares that cover the cell: those around itself and its up to
    eight neighbours. That is more faithful than the drop of the one square around it (benchmarks/faithfulness.py).

    Args:
        x: normalised images, float32 [B, 3, S, S].
        classes: int64 [B].

    Returns:
        float32 [B, G, G], from -1 to 1.
    """
    model, grid = predictor(bundle.model), bundle.model.grid
    covered = cover_masks(bundle.model).to(x.device)  # [G², S, S]

    def probability(copies: Tensor, image: Tensor) -> Tensor:
        chosen = classes[image, None]
        return (model(copies) / bundle.temperature).softmax(dim=1).gather(1, chosen).squeeze(1)

    image = torch.arange(len(x), device=x.device)
    whole = torch.cat([probability(x[part], part) for part in image.split(OCCLUDED_BATCH)])
    drops = []
    for part in torch.arange(len(x) * grid * grid, device=x.device).split(OCCLUDED_BATCH):
        image, cell = part // (grid * grid), part % (grid * grid)
        copies = torch.where(covered[cell, None], 0.0, x[image])
        drops.append(whole[image] - probability(copies, image))
    squares = torch.cat(drops).view(len(x), 1, grid, grid)
    # Padding is left out of the means, as squares begin and end at the border of the image.
    mean = F.avg_pool2d(squares, OCCLUDED_CELLS, 1, OCCLUDED_CELLS // 2, count_include_pad=False)
    return mean.squeeze(1)


def cover_masks(model: VisionTransformer) -> Tensor:
    """The pixels that `occlusion` covers for each cell, row by row: bool [G², S, S]."""
    edges, grid, reach = cell_edges(model), model.grid, OCCLUDED_CELLS // 2
    pixel = torch.arange(model.image_size)
    spans = torch.stack(
        [(pixel >= edges[max(i - reach, 0)]) & (pixel < edges[min(i + reach + 1, grid)]) for i in range(grid)]
    )  # [G, S]
    return (spans[:, None, :, None] & spans[None, :, None, :]).flatten(0, 1)


# ---- attention


@dataclass(frozen=True)
class Trace:
    """One forward pass.

    Attributes:
        attention: of each layer, [B, H, N, N]. Row i says how much token i attends to each token, and sums to 1.
        pooling: how much of each token is in the vector that the head reads, [B, N]; sums to 1. With a class token,
            it is 1 for that token and 0 for all others.
        logits: [B, C].
    """

    attention: list[Tensor]
    pooling: Tensor
    logits: Tensor


class _TracedAttention(Attention):
    """An `Attention` that keeps its weights."""

    kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        self.kept = attention_weights(q, k)
        return self.proj((self.kept @ v).transpose(1, 2).flatten(2))


def traced(model: VisionTransformer, x: Tensor) -> Trace:
    """Runs normalised images [B, 3, S, S] through a copy of the model that keeps its attention.

    Attention and pooling are part of the graph of the logits if gradients are enabled, even for frozen weights.
    """
    twin = plain(shallow_copy(model)).eval()
    for block in twin.blocks:
        block.attn.__class__ = _TracedAttention
    tokens = twin.embed(x).detach().requires_grad_(torch.is_grad_enabled())
    for block in twin.blocks:
        tokens = block(tokens)
    tokens = twin.norm(tokens)
    weights = pooling_weights(twin, tokens)
    logits = twin.head((weights[:, None] @ tokens).squeeze(1))
    return Trace([cast(_TracedAttention, block.attn).kept for block in twin.blocks], weights, logits)


def pooling_weights(model: VisionTransformer, tokens: Tensor) -> Tensor:
    """The weights [B, N] by which `model.pool` averages normalised tokens [B, N, D]."""
    if model.attn_pool is not None:
        return model.attn_pool(tokens).softmax(dim=1).squeeze(2)
    weights = torch.zeros_like(tokens[..., 0])
    if model.cls_token is not None:
        weights[:, 0] = 1
    else:
        weights += 1 / tokens.shape[1]
    return weights.requires_grad_(torch.is_grad_enabled())


@torch.no_grad()
def attention(bundle: Bundle, x: Tensor, classes: Tensor) -> Tensor:
    """What the network pools: the weights of attention pooling, or the last layer's attention, averaged over heads.

    With a class token, this is how much that token attends to each region. With mean pooling, it is how much the
    tokens attend to each region on average. The classes do not matter.

    Args:
        x: normalised images, float32 [B, 3, S, S].

    Returns:
        float32 [B, G, G], shares with the sum 1.
    """
    if bundle.model.attn_pool is not None:
        return _in_parts(bundle.model, x, lambda trace, _: shares(bundle.model, trace.pooling), classes)
    return _in_parts(
        bundle.model,
        x,
        lambda trace, _: shares(
            bundle.model, torch.einsum("bn,bhnm->bm", trace.pooling, trace.attention[-1])
        ),
        classes,
    )


@torch.no_grad()
def attention_of_heads(bundle: Bundle, x: Tensor) -> Tensor:
    """How much each head attends to each region, for the tokens that are pooled.

    With a class token, that token's attention counts alone. Else each token's attention counts as much as the token
    does in the pooled vector.

    Args:
        x: normalised images, float32 [B, 3, S, S].

    Returns:
        float32 [B, L, H, G, G], each map with the sum 1.
    """

    def of_heads(trace: Trace, _: Tensor) -> Tensor:
        rows = torch.stack(
            [torch.einsum("bn,bhnm->bhm", trace.pooling, layer) for layer in trace.attention], 1
        )
        return shares(bundle.model, rows)

    return _in_parts(bundle.model, x, of_heads, torch.zeros(len(x)))


@torch.no_grad()
def attention_distance(bundle: Bundle, x: Tensor) -> Tensor:
    """How far each head attends on average, in pixels of the network's input (figure 7, right, of arXiv 2010.11929).

    The distance is that between the centres of two tokens, weighted by attention and averaged over tokens and images.
    A class token is left out.

    Args:
        x: normalised images, float32 [B, 3, S, S], at least one.

    Returns:
        float32 [L, H].
    """
    grid = bundle.model.grid
    centres = token_centres(bundle.model)
    points = torch.cartesian_prod(centres, centres).to(x.device)  # [G², 2]
    apart = torch.cdist(points, points)

    def of_heads(trace: Trace, _: Tensor) -> Tensor:
        patches = torch.stack(trace.attention, 1)[..., -grid * grid :, -grid * grid :]
        patches = patches / patches.sum(dim=-1, keepdim=True)
        return (patches * apart).sum(dim=-1).mean(dim=-1)  # [B, L, H]

    return _in_parts(bundle.model, x, of_heads, torch.zeros(len(x))).mean(dim=0)


@torch.no_grad()
def rollout(bundle: Bundle, x: Tensor, classes: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema, arXiv 2005.00928): attention multiplied through all layers.

    Each layer is the average over heads, and half of it the identity for the residual connection. The result is read
    at the tokens that are pooled, each by its weight. The classes do not matter.

    Args:
        x: normalised images, float32 [B, 3, S, S].

    Returns:
        float32 [B, G, G], shares with the sum 1.
    """

    def rolled(trace: Trace, _: Tensor) -> Tensor:
        row = trace.pooling[:, None]  # [B, 1, N]; from the last layer to the first, it stays one row
        for layer in reversed(trace.attention):
            row = (row + row @ layer.mean(dim=1)) / 2
        return shares(bundle.model, row.squeeze(1))

    return _in_parts(bundle.model, x, rolled, classes)


@torch.enable_grad()
def gradient(bundle: Bundle, x: Tensor, classes: Tensor) -> Tensor:
    """Attention weighted by gradients (Chefer, Gur and Wolf, arXiv 2103.15679).

    Relevance R begins as the identity. Each layer adds Ā R to it, where Ā is the mean over heads of the positive part
    of attention times the gradient of the class's logit. With a class token, the map is that token's row of R. Mean
    and attention pooling count as one more layer with a single row: the positive part of the pooling weights times
    their gradient, times R.

    Args:
        x: normalised images, float32 [B, 3, S, S].
        classes: int64 [B].

    Returns:
        float32 [B, G, G], from 0 to 1, the image's largest value; all 0 where nothing speaks for the class.
    """
    has_token = bundle.model.cls_token is not None

    def relevant(trace: Trace, chosen: Tensor) -> Tensor:
        logit = trace.logits.gather(1, chosen[:, None]).sum()
        *slopes, pooling_slope = torch.autograd.grad(logit, [*trace.attention, trace.pooling])
        row = trace.pooling if has_token else (trace.pooling * pooling_slope).clamp(min=0)
        row = row.detach()[:, None]  # [B, 1, N]
        for layer, slope in zip(reversed(trace.attention), reversed(slopes), strict=True):
            # R ← R + Ā R from the first layer on, read at `row`: row (1 + Ā) … (1 + Ā), from the last layer on.
            row = row + row @ (layer.detach() * slope).clamp(min=0).mean(dim=1)
        cells = _cells(bundle.model, row.squeeze(1))
        return cells / cells.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(cells.dtype).tiny)

    return _in_parts(bundle.model, x, relevant, classes)


def shares(model: VisionTransformer, weights: Tensor) -> Tensor:
    """Weights of tokens [..., N] as a map [..., G, G] with the sum 1; a class token's own weight is left out."""
    cells = _cells(model, weights)
    return cells / cells.sum(dim=(-2, -1), keepdim=True)


def _cells(model: VisionTransformer, tokens: Tensor) -> Tensor:
    """Values of tokens [..., N] as values of the map's cells [..., G, G], interpolated where their centres differ."""
    grid = model.grid
    plane = tokens[..., -grid * grid :].unflatten(-1, (grid, grid))
    centres = token_centres(model)
    cell = (torch.arange(grid) + 0.5) * model.image_size / grid
    matrix = torch.zeros(grid, grid)  # from tokens to cells, along one side
    for i, position in enumerate(((cell - centres[0]) / model.architecture.patch_size).clamp(0, grid - 1)):
        low = min(int(position), grid - 1)
        high = min(low + 1, grid - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, high] += position - low
    matrix = matrix.to(plane)
    return matrix @ plane @ matrix.T


def token_centres(model: VisionTransformer) -> Tensor:
    """The centres of the tokens along a side of the image, float32 [G], in pixels.

    The linear stem cuts patches from the top left. The conv stem does so too, but its 2 x 2 whitening shifts all
    centres by half of its stride.
    """
    a = model.architecture
    return (torch.arange(model.grid) + 0.5) * a.patch_size + (a.stem_stride / 2 if a.stem == "conv" else 0.0)


def _in_parts(
    model: VisionTransformer, x: Tensor, of: Callable[[Trace, Tensor], Tensor], classes: Tensor
) -> Tensor:
    """`of` a trace and its classes, for as many images at a time as fit into memory."""
    a = model.architecture
    images = max(1, TRACED_FLOATS // (a.depth * a.num_heads * model.num_tokens**2))
    parts = zip(x.split(images), classes.split(images), strict=True)
    return torch.cat([of(traced(model, part), chosen).detach() for part, chosen in parts])


METHODS: Mapping[str, Callable[[Bundle, Tensor, Tensor], Tensor]] = {
    "occlusion": occlusion,
    "attention": attention,
    "rollout": rollout,
    "gradient": gradient,
}
