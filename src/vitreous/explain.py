"""`vitreous explain`: pictures of what a trained network looks at, and of what it has learned.

Letters: S image side in pixels, G cells of a map along a side, L layers, H heads.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from vitreous.attribution import (
    AUTO,
    METHODS,
    attention_distance,
    attention_of_heads,
    heat_map,
    network_input,
)
from vitreous.bundle import Bundle
from vitreous.data.decode import read_image
from vitreous.depth import origin_of
from vitreous.errors import VitreousError, unknown
from vitreous.files import atomic_write, path_of
from vitreous.model.stem import ConvStage, ConvStem
from vitreous.preprocess import Preprocess, cut_off
from vitreous.progress import track
from vitreous.run import open_bundle
from vitreous.wording import count, percent, printable

FOLDER = "explained"  # where pictures are written by default
SOFTWARE = "vitreous explain"  # in each PNG, by which its own files are known
TOP = 5  # classes that are shown
LONGEST = 26  # characters of a class name, and of others
SHOWN = 640  # pixels: larger images are shrunk to this width or height
SMALLEST = 320  # pixels: smaller images are enlarged by whole numbers to at least this width or height
INK, GREY, FOR, AGAINST = "#1f2328", "#6b7280", "#e66100", "#1a5fd0"  # orange and blue suit the colour-blind
FAINT = 0.1  # the strongest colour stands for at least so much probability, so that small changes look small
OPAQUE = 0.85  # of the strongest colour over the image
FILTERS = 28  # that are drawn, as in figure 7 of the paper
STYLE: Any = {
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": INK,
}
# What a map's colours mean; in the sentences, the explained class takes the place of {}.
SCALES = {
    "occlusion": "mean change of the probability when covered, in points",
    "gradient": "relevance, in percent of the largest here",
    "attention": "attention, 1 × if it were spread evenly",
    "rollout": "attention, 1 × if it were spread evenly",
}
SENTENCES = {
    "occlusion": "Orange regions speak for {}: its probability falls when they are covered. Blue ones speak against.",
    "gradient": "Orange regions speak for {}, by attention and its gradients.",
    "attention": "The network attends to orange regions. This does not depend on the class.",
    "rollout": "The network attends to orange regions, through all layers. This does not depend on the class.",
}


@dataclass(frozen=True)
class Explanation:
    """What is known about one image.

    Attributes:
        name: of its file.
        image: RGB, upright, at most `SHOWN` pixels wide and high.
        pixels: what the network saw, uint8 [S, S, 3].
        probabilities: of each class, calibrated, float32 [C].
        position: of the explained class.
        map: float32 [G, G], in the unit of `SCALES`.
        heads: attention of each head, float32 [L, H, G, G], for methods of attention.
    """

    name: str
    image: Image.Image
    pixels: np.ndarray
    probabilities: np.ndarray
    position: int
    map: np.ndarray
    heads: np.ndarray | None


def explain(
    path: Path | str,
    images: Sequence[Path | str],
    method: str = "auto",
    class_name: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    out: Path | str | None = None,
    network: bool = False,
) -> int:
    """Writes a picture of each image: the regions that matter, and what the network says.

    Args:
        path: a run folder or a bundle.
        images: image files.
        method: a key of `attribution.METHODS`, or "auto".
        class_name: the class to explain; by default the predicted one of each image.
        layer, head: the layer and the head of method "attention", counted from 1.
        out: a folder, or a PNG file where there is one picture to write; by default the folder "explained".
        network: also draws what the network has learned.

    Returns:
        0, or 3 if some images could not be read.

    Raises:
        VitreousError: an argument does not fit, or no image could be read.
    """
    bundle = open_bundle(path)
    method = AUTO if method == "auto" else method
    if method not in METHODS:
        raise unknown("method", method, ("auto", *METHODS))
    if class_name is not None and class_name not in bundle.classes:
        raise unknown("class", class_name, bundle.classes)
    check_layer(bundle, method, layer, head)
    if not images and not network:
        raise VitreousError("Say which images to explain, or give --network.")
    folder, file = target_of(out, len(images) + network)
    taken: set[Path] = set()
    failed = 0
    seen = []
    for image in track(images, len(images), "explained"):
        try:
            found = explain_image(bundle, image, method, class_name, layer, head)
        except VitreousError as error:
            failed += 1
            print(f"vitreous: {error}", file=sys.stderr)
            continue
        seen.append(found.pixels)
        target = file or free_name(folder, f"{Path(image).stem}-{method}", taken)
        write_picture(draw(bundle, found, method, layer, head), target)
        sure = percent(float(found.probabilities.max()))
        said = printable(bundle.classes[int(found.probabilities.argmax())])
        explained = printable(bundle.classes[found.position])
        what = "" if explained == said else f", explained: {explained}"
        print(f"{printable(str(image))}: {said} ({sure}){what}, written: {target}")
    if failed and failed == len(images) and not network:
        raise VitreousError(f"None of {count(len(images), 'image')} could be explained; see above.")
    if network:
        target = file or free_name(folder, "network", taken)
        write_picture(draw_network(bundle, np.stack(seen) if seen else None), target)
        print(f"written: {target}")
    if failed:
        print(f"{failed} of {count(len(images), 'image')} could not be explained.", file=sys.stderr)
    return 3 if failed else 0


def check_layer(bundle: Bundle, method: str, layer: int | None, head: int | None) -> None:
    """Refuses a layer or head that the network or the method does not have."""
    a = bundle.model.architecture
    for name, value, most in (("layer", layer, a.depth), ("head", head, a.num_heads)):
        if value is None:
            continue
        if method != "attention":
            raise VitreousError(f"--{name} chooses a part of the attention; add --method attention.")
        if not 1 <= value <= most:
            raise VitreousError(
                f"There is no {name} {value}; this network has {count(most, name)}, counted from 1."
            )
    if head is not None and layer is None:
        raise VitreousError(f"--head {head} needs its layer; add --layer N, from 1 to {a.depth}.")


# ---- what is drawn


def explain_image(
    bundle: Bundle,
    source: Path | str,
    method: str,
    class_name: str | None,
    layer: int | None,
    head: int | None,
) -> Explanation:
    """Computes what is drawn of one image; raises `VitreousError` if it cannot be read."""
    if path_of(source).is_dir():
        raise VitreousError(f"{source} is a folder; give its image files, as in {source}/*.jpg.")
    opened = read_image(source)
    settings = bundle.preprocess
    try:
        pixels = settings.batch(opened)
    except VitreousError as error:  # the name of the file, not "The image"
        raise VitreousError(str(error).replace("The image", str(source), 1)) from None
    probabilities = bundle.predict_proba(pixels)[0]
    position = int(probabilities.argmax()) if class_name is None else bundle.classes.index(class_name)
    heads = None
    if method in ("attention", "rollout"):
        heads = attention_of_heads(bundle, network_input(bundle, pixels))[0].cpu().numpy()
    if heads is not None and layer is not None:
        chosen = heads[layer - 1]
        map_ = chosen.mean(axis=0) if head is None else chosen[head - 1]
    else:
        map_ = heat_map(bundle, pixels, np.array([position]), method)[0]
    if heads is not None:
        map_ = map_ * map_.size  # 1 where all regions get the same
    return Explanation(
        Path(source).name, original(opened, settings), pixels[0], probabilities, position, map_, heads
    )


def original(opened: Image.Image, settings: Preprocess) -> Image.Image:
    """The whole image in RGB, with the colours that the network sees, at most `SHOWN` pixels wide and high."""
    rgb, colours = settings.rgb(opened, origin_of(opened))
    shown = rgb.copy()
    shown.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    if max(shown.size) < SMALLEST:
        times = -(-SMALLEST // max(shown.size))
        shown = shown.resize((times * shown.width, times * shown.height), Image.Resampling.NEAREST)
    return colours(shown) if colours else shown


def spread(map_: np.ndarray, size: tuple[int, int], settings: Preprocess) -> np.ma.MaskedArray:
    """A map [G, G] laid over an image of `size` (width, height): [height, width], masked where the network saw nothing.

    Undoes `preprocess.fit`: values are interpolated between the centres of the cells, within the map's range.
    """
    width, height = size
    grid = map_.shape[0]
    left, top, right, bottom = cut_off(width, height, settings.fit)
    box = (0.0, 0.0, float(grid), float(grid))  # the part of the map that lies on the image
    if settings.fit == "pad":
        longer = max(width, height)
        inside = [max(1, round(side * settings.size / longer)) for side in (width, height)]
        begin = [(settings.size - side) // 2 for side in inside]
        cell = grid / settings.size
        box = (
            begin[0] * cell,
            begin[1] * cell,
            (begin[0] + inside[0]) * cell,
            (begin[1] + inside[1]) * cell,
        )
    part = Image.fromarray(map_.astype(np.float32)).resize(
        (right - left, bottom - top), Image.Resampling.BICUBIC, box=box
    )
    # Zeros under the mask, since matplotlib computes with them.
    laid = np.ma.array(np.zeros((height, width), np.float32), mask=True)
    laid[top:bottom, left:right] = np.clip(np.asarray(part), map_.min(), map_.max())
    return laid


def overlay(
    axes: Axes, image: Image.Image, map_: np.ndarray, settings: Preprocess, limit: float, signed: bool
) -> Any:
    """Draws an image in grey with a map over it; returns what a colour bar needs. Unseen parts are hatched."""
    laid = spread(map_, image.size, settings)
    grey = np.asarray(image.convert("L").convert("RGB")).astype(np.float32)
    grey = 0.25 * 255 + 0.75 * grey  # lighter, so that colours stand out
    axes.imshow(grey.astype(np.uint8), interpolation="nearest", aspect="equal")
    if laid.mask.any():
        unseen = np.zeros((*laid.shape, 4))
        unseen[laid.mask] = (1, 1, 1, 0.75)
        axes.imshow(unseen, interpolation="nearest")
    low = -limit if signed else 0.0
    drawn = axes.imshow(laid, cmap=colours(signed), vmin=low, vmax=limit, interpolation="nearest")
    bare(axes)
    return drawn


def colours(signed: bool) -> LinearSegmentedColormap:
    """Transparent at 0, orange above and, if signed, blue below."""
    above = matplotlib.colors.to_rgb(FOR)
    below = matplotlib.colors.to_rgb(AGAINST)
    ramp = [(*above, 0.0), (*above, OPAQUE)]
    if signed:
        ramp = [(*below, OPAQUE), (*below, 0.0), *ramp]
        return LinearSegmentedColormap.from_list("map", list(zip((0, 0.5, 0.5, 1), ramp, strict=True)))
    return LinearSegmentedColormap.from_list("map", ramp)


def bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def short(text: str, most: int = LONGEST) -> str:
    """`text` on one printable line, shortened in the middle, where names differ least."""
    text = printable(text)
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1]}…{text[-end:]}"


# ---- pictures


def draw(
    bundle: Bundle, found: Explanation, method: str, layer: int | None = None, head: int | None = None
) -> Figure:
    """The picture of one image: the image, its map, and the most likely classes."""
    name = short(bundle.classes[found.position])
    title = method
    if layer is not None:
        title += f", layer {layer}" + (f", head {head}" if head else ", mean of its heads")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), facecolor="white")
        if found.heads is None:
            top = cast(Any, figure)
        else:
            extra = 0.65 + found.heads.shape[1] * 10.5 / max(found.heads.shape[0], 8)
            figure.set_size_inches(11, 4.6 + extra)
            parts: Any = figure.subfigures(2, 1, height_ratios=[4.6, extra])
            top, bottom = parts
        top.text(0.02, 0.945, short(found.name, 70), size=13, weight="bold", va="center")
        sentence = SENTENCES[method].format(name)
        signed = method == "occlusion"
        limit = float(np.abs(found.map).max()) or 1.0
        if signed and limit < FAINT:
            sentence = f"No region decides: covering one changes the probability of {name} by at most "
            sentence += f"{100 * limit:.1f} points on average."
            limit = FAINT
        if layer is not None:
            sentence = "This part of the network attends to orange regions."
        top.text(0.02, 0.875, f"Method {title}. {sentence}", size=10, color=GREY, va="center")

        left = top.add_axes((0.02, 0.19, 0.325, 0.62), anchor="NW")
        left.imshow(np.asarray(found.image), interpolation="nearest")
        bare(left)

        middle = top.add_axes((0.36, 0.19, 0.325, 0.62), anchor="N")
        drawn = overlay(middle, found.image, found.map, bundle.preprocess, limit, signed)
        bar = top.colorbar(drawn, cax=top.add_axes((0.40, 0.125, 0.245, 0.025)), orientation="horizontal")
        bar.ax.set_facecolor("#d0d0d0")
        label_bar(bar, method, limit)

        draw_classes(top.add_axes((0.715, 0.19, 0.26, 0.62)), bundle, found)
        if found.heads is not None:
            draw_heads(bottom, bundle, found)
    return figure


def label_bar(bar: Any, method: str, limit: float) -> None:
    bar.outline.set_visible(False)
    bar.set_label(SCALES[method], size=9)
    bar.ax.tick_params(labelsize=9, length=2)
    low = -limit if method == "occlusion" else 0.0
    ticks = [low, 0.0, limit] if low else [0.0, limit / 2, limit]
    if method == "occlusion":
        texts = [f"{-100 * value:+.3g}".replace("-", "\u2212") if value else "0" for value in ticks]
    elif method == "gradient":
        texts = [f"{100 * value:.0f} %" for value in ticks]
    else:
        texts = [f"{value:.1f} ×" if value else "0" for value in ticks]
    bar.set_ticks(ticks, labels=texts)


def draw_classes(axes: Axes, bundle: Bundle, found: Explanation) -> None:
    """The most likely classes as bars, and the explained one if it is not among them."""
    order = list(np.argsort(-found.probabilities, kind="stable")[:TOP])
    if found.position not in order:
        order[-1] = found.position
    values = found.probabilities[order]
    rows = np.arange(len(order))
    axes.barh(rows, values, height=0.34, color=[FOR if i == found.position else "#9aa3af" for i in order])
    for row, (position, value) in enumerate(zip(order, values, strict=True)):
        explained = position == found.position
        weight = "bold" if explained else "normal"
        axes.text(0, row - 0.25, short(bundle.classes[position], 30), va="bottom", size=10, weight=weight)
        axes.text(1, row - 0.25, percent(float(value)), va="bottom", ha="right", size=10, weight=weight)
    axes.set_xlim(0, 1)
    axes.set_ylim(TOP - 0.6, -1.1)
    axes.text(0, -1.1, "The network says", size=10, color=GREY, va="top")
    bare(axes)


def draw_heads(figure: Any, bundle: Bundle, found: Explanation) -> None:
    """Small maps of each head (rows) and layer (columns)."""
    assert found.heads is not None
    layers, heads = found.heads.shape[:2]
    reader = "the class token attends" if bundle.model.cls_token is not None else "the pooled tokens attend"
    height = figure.bbox.height / figure.dpi  # in inches
    figure.text(
        0.02,
        1,
        f"Where {reader}, in each head and layer. Each map's strongest colour is its own largest share.",
        size=10,
        color=GREY,
        va="top",
    )
    grid = figure.add_gridspec(
        heads,
        max(layers, 8),
        left=0.075,
        right=0.98,
        top=1 - 0.5 / height,
        bottom=0.1 / height,
        wspace=0.06,
        hspace=0.06,
    )
    small = found.image.copy()
    small.thumbnail((160, 160))
    for layer in range(layers):
        for head in range(heads):
            axes = figure.add_subplot(grid[head, layer])
            map_ = found.heads[layer, head]
            overlay(axes, small, map_, bundle.preprocess, float(map_.max()) or 1.0, signed=False)
            if head == 0:
                axes.set_title(f"layer {layer + 1}", size=9, color=GREY, pad=3)
            if layer == 0:
                axes.set_ylabel(f"head {head + 1}", size=9, color=GREY, rotation=0, ha="right", va="center")


def draw_network(bundle: Bundle, pixels: np.ndarray | None) -> Figure:
    """What the network has learned: its first filters, its positions and, with images, the reach of its attention."""
    model = bundle.model
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13 if pixels is not None else 9.5, 5.2), facecolor="white")
        widths = [1, 1.15, 0.95] if pixels is not None else [1, 1.15]
        parts: Any = figure.subfigures(1, len(widths), width_ratios=widths)
        filters, title = first_filters(bundle)
        part_title(parts[0], title)
        columns = 7
        rows = -(-len(filters) // columns)
        height = 0.88 * parts[0].bbox.width / columns * rows / parts[0].bbox.height  # for square cells
        grid = parts[0].add_gridspec(
            rows, columns, left=0.06, right=0.94, top=0.80, bottom=0.80 - height, wspace=0.1, hspace=0.1
        )
        for i, picture in enumerate(filters):
            axes = parts[0].add_subplot(grid[i // columns, i % columns])
            axes.imshow(picture, interpolation="nearest")
            bare(axes)

        side = model.grid
        similar = position_similarity(bundle)
        learned = model.architecture.pos_embed == "learned"
        part_title(
            parts[1],
            "Position embeddings"
            + ("" if learned else ", fixed sines")
            + "\nEach small map: the cosine similarity of one\nposition with all others.",
        )
        step = max(1, -(-side // 8))  # at most 8 x 8 maps
        chosen = range(0, side, step)
        grid = parts[1].add_gridspec(
            len(chosen), len(chosen), left=0.04, right=0.84, top=0.80, bottom=0.06, wspace=0.08, hspace=0.08
        )
        for row, i in enumerate(chosen):
            for column, j in enumerate(chosen):
                axes = parts[1].add_subplot(grid[row, column])
                drawn = axes.imshow(similar[i, j], cmap="cividis", vmin=-1, vmax=1, interpolation="nearest")
                bare(axes)
        bar = parts[1].colorbar(drawn, cax=parts[1].add_axes((0.87, 0.06, 0.03, 0.74)))
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=2)

        if pixels is not None:
            distances = attention_distance(bundle, network_input(bundle, pixels)).cpu().numpy()
            part_title(
                parts[2],
                f"How far attention reaches\nMean distance in pixels, of {model.image_size}, over\n"
                f"{count(len(pixels), 'image')}. One dot for each head.",
            )
            axes = parts[2].add_axes((0.17, 0.12, 0.78, 0.66))
            for layer, values in enumerate(distances, 1):
                axes.plot([layer] * len(values), values, "o", color=FOR, alpha=0.8, markersize=6)
            axes.set_xlabel("layer")
            axes.set_ylabel("pixels")
            axes.set_xticks(range(1, len(distances) + 1, -(-len(distances) // 12)))
            axes.set_xlim(0.5, len(distances) + 0.5)
            axes.set_ylim(0, max(float(distances.max()) * 1.15, 1))
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def part_title(figure: Any, text: str) -> None:
    title, _, rest = text.partition("\n")
    figure.text(0.05, 0.965, title, size=12, weight="bold", va="top")
    figure.text(0.05, 0.915, rest, size=9, color=GREY, va="top", linespacing=1.25)


def first_filters(bundle: Bundle) -> tuple[list[np.ndarray], str]:
    """Filters that act on the image's own pixels, as pictures [P, P, 3] from 0 to 1, and their title."""
    stem = bundle.model.patch_embed
    with torch.no_grad():
        if isinstance(stem, ConvStem):
            whitening, first = (
                stem.whiten.weight,
                cast("ConvStage", stem.stages[0]).conv.weight,
            )  # [24, 3, 2, 2], [C, 24, 3, 3]
            # Near 0, GELU halves its input, so both layers together are one filter of P = 4 pixels, or 6 with a stride.
            stride = stem.whiten.stride
            together = (
                torch.nn.functional.conv_transpose2d(first, whitening, stride=stride) / 2
            )  # [C, 3, P, P]
            side = together.shape[-1]
            order = together.flatten(1).norm(dim=1).argsort(descending=True, stable=True)
            weight = together[order][:FILTERS]
            title = (
                f"First filters of the stem\nWhitening and first convolution as one filter\n"
                f"of {side} × {side} pixels, the strongest {len(weight)} of {len(together)}."
            )
        else:
            flat = stem.proj.weight.flatten(1).double()  # [D, 3P²]
            directions = torch.linalg.svd(flat, full_matrices=False).Vh[:FILTERS]
            weight = directions.unflatten(1, stem.proj.weight.shape[1:])
            title = (
                f"Patch embedding\nThe first {len(weight)} principal components of its\nfilters of "
                f"{weight.shape[-1]} × {weight.shape[-1]} pixels."
            )
    pictures = weight.permute(0, 2, 3, 1).cpu().float().numpy()
    largest = np.abs(pictures).max(axis=(1, 2, 3), keepdims=True)
    return list(0.5 + 0.5 * pictures / np.where(largest > 0, largest, 1)), title


def position_similarity(bundle: Bundle) -> np.ndarray:
    """The cosine similarity of each position's embedding with all others, [G, G, G, G]; without a class token's."""
    grid = bundle.model.grid
    positions = bundle.model.pos_embed.detach()[0, -grid * grid :].double()
    normed = positions / positions.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (normed @ normed.T).view(grid, grid, grid, grid).cpu().numpy()


# ---- files


def target_of(out: Path | str | None, pictures: int) -> tuple[Path, Path | None]:
    """The folder for the pictures, and the file where `out` names one; refuses what is neither."""
    path = path_of(out) if out is not None else Path(FOLDER)
    if path.is_dir() or not path.suffix:
        if path.exists() and not path.is_dir():
            raise VitreousError(f"{path} is a file; give a folder, or a name that ends in .png.")
        return path, None
    if path.suffix.lower() != ".png":
        raise VitreousError(f"{path} would be a PNG; give a name that ends in .png, or a folder.")
    if pictures > 1:
        raise VitreousError(f"{path} is one file, but there are {pictures} pictures to write; give a folder.")
    if path.exists() and not is_own(path):
        raise VitreousError(
            f"{path} exists and is not a picture of vitreous explain, so it is not replaced; give another name."
        )
    return path.parent, path


def free_name(folder: Path, stem: str, taken: set[Path]) -> Path:
    """STEM.png in the folder, or STEM-2.png and so on where that is another's file or was written just now."""
    number = 1
    while True:
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}.png"
        if path not in taken and not path.is_symlink() and (not path.exists() or is_own(path)):
            taken.add(path)
            return path
        number += 1


def is_own(path: Path) -> bool:
    """Whether a file is a PNG that this command wrote."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError):  # Pillow raises the last two on damaged files
        return False


def write_picture(figure: Figure, path: Path) -> None:
    """Writes the picture as a PNG, whole or not at all."""
    FigureCanvasAgg(figure)

    def write(file: BinaryIO) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # they are drawn as boxes
            figure.savefig(file, format="png", dpi=110, metadata={"Software": SOFTWARE})

    atomic_write(path, write)
