"""Heat maps: which regions of an image speak for a class, according to the network itself.

A map has as many cells along a side as the network has tokens, and the cells cover the whole image evenly: cell
(row, column) covers the pixels from `edges[row]` to `edges[row + 1]`, where `edges` is round(i · S / G).

Letters: N images, S image side in pixels, G cells along a side, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitreous.bundle import Bundle, predictor
from vitreous.data.normalize import normalize, to_float
from vitreous.errors import VitreousError, unknown
from vitreous.model.vit import VisionTransformer

METHODS = ("occlusion",)
AUTO = "occlusion"  # the method that `auto` stands for
OCCLUDED_CELLS = 3  # side of the covered square, in cells; odd
BATCH = 500  # occluded images in one forward pass


def heat_map(
    bundle: Bundle, pixels: np.ndarray, classes: np.ndarray | None = None, method: str = "auto"
) -> np.ndarray:
    """How much each region of an image speaks for a class.

    Args:
        pixels: uint8 [N, S, S, 3], as `bundle.preprocess.batch` returns them.
        classes: int [N], positions in `bundle.classes`; by default the predicted class of each image.
        method: one of `METHODS`, or "auto" for the one that proved most faithful (`docs/using.md`).

    Returns:
        float32 [N, G, G]. Positive cells speak for the class, negative ones against it. The scale of "occlusion" is
        the drop of the class's probability when the cell and its neighbours are covered (`occlusion`), so it is
        between -1 and 1.

    Raises:
        VitreousError: unknown method, or pixels or classes do not fit the bundle.
    """
    method = AUTO if method == "auto" else method
    if method not in METHODS:
        raise unknown("method", method, ("auto", *METHODS))
    size, model = bundle.model.image_size, bundle.model
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise VitreousError(
            f"Heat maps need uint8 pixels [N, {size}, {size}, 3], not {pixels.dtype} {[*pixels.shape]}; "
            "convert images by bundle.preprocess.batch."
        )
    if classes is None:
        classes = bundle.predict(pixels) if len(pixels) else np.zeros(0, np.int64)
    classes = np.asarray(classes)
    if classes.shape != (len(pixels),) or not np.isin(classes, np.arange(len(bundle.classes))).all():
        raise VitreousError(
            f"Heat maps need one class for each of the {len(pixels)} images, from 0 to {len(bundle.classes) - 1}."
        )
    device = next(model.parameters()).device
    x = normalize(to_float(torch.from_numpy(np.array(pixels)).to(device)), bundle.mean, bundle.std)
    chosen = torch.from_numpy(classes.astype(np.int64)).to(device)
    return occlusion(bundle, x, chosen).cpu().numpy()


@torch.no_grad()
def occlusion(bundle: Bundle, x: Tensor, classes: Tensor) -> Tensor:
    """The drop of the class's probability when a square of the image is covered (Zeiler and Fergus, arXiv 1311.2901).

    For each cell (row, column) of the map, one copy of the image is covered with the mean colour of the training
    images: from `edges[max(row - 1, 0)]` up to, but without, `edges[min(row + 2, G)]`, and the columns alike. So the
    square has 3 x 3 cells, fewer at the border of the image. Its value in the normalised input is 0. The map's value
    is the calibrated probability of the class for the whole image, minus that for the covered one.

    Args:
        x: normalised images, float32 [N, 3, S, S].
        classes: int64 [N].

    Returns:
        float32 [N, G, G], from -1 to 1.
    """
    model, grid = predictor(bundle.model), bundle.model.grid
    covered = cover_masks(bundle.model).to(x.device)  # [G², S, S]
    maps = torch.empty(len(x), grid * grid, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        for i, (image, position) in enumerate(zip(x, classes, strict=True)):
            whole = _probability(bundle, model, image[None], position)
            for start in range(0, len(covered), BATCH):
                masks = covered[start : start + BATCH, None]  # [B, 1, S, S]
                copies = torch.where(masks, 0.0, image)  # [B, 3, S, S]
                maps[i, start : start + BATCH] = whole - _probability(bundle, model, copies, position)
    return maps.unflatten(1, (grid, grid))


def _probability(bundle: Bundle, model: VisionTransformer, x: Tensor, position: Tensor) -> Tensor:
    """The calibrated probability of one class for images [B, 3, S, S]: [B]."""
    return (model(x) / bundle.temperature).softmax(dim=1)[:, position]


def cell_edges(model: VisionTransformer) -> list[int]:
    """The borders of the map's cells in pixels, G + 1 numbers from 0 to S: round(i · S / G)."""
    return [(2 * i * model.image_size + model.grid) // (2 * model.grid) for i in range(model.grid + 1)]


def cover_masks(model: VisionTransformer) -> Tensor:
    """The pixels that `occlusion` covers for each cell, row by row: bool [G², S, S]."""
    edges, grid, reach = cell_edges(model), model.grid, OCCLUDED_CELLS // 2
    pixel = torch.arange(model.image_size)
    spans = torch.stack(
        [(pixel >= edges[max(i - reach, 0)]) & (pixel < edges[min(i + reach + 1, grid)]) for i in range(grid)]
    )  # [G, S]
    return (spans[:, None, :, None] & spans[None, :, None, :]).flatten(0, 1)
