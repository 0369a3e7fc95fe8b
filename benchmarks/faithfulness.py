"""Measures which heat maps are faithful to the network, by deletion and insertion.

    python benchmarks/faithfulness.py RUN --images 500 --record cifar10-default
    python benchmarks/faithfulness.py --fill-page

Deletion covers the cells of an image in the order of its map, the most important first, and follows the probability of
the predicted class. A faithful map makes it fall early, so the area under the curve is small. Insertion begins with the
covered image and uncovers the cells in that order, so a large area is good (Petsiuk et al. 2018, arXiv 1806.07421). The
score is insertion minus deletion.

Cells are covered by the mean colour of the training images, and, in a second measurement, by a blurred copy of the
image. The method `occlusion` covers with the mean colour too, so only the blur is a test of it by other means.

Images are those of the validation split. If it has fewer than `--images`, those of the test split follow. Their labels
are not used: maps and curves are of the predicted class, so no accuracy becomes known.

Baselines are random maps and a map that falls with the distance from the centre. `--record` writes the record
`faithfulness-NAME`, and `--fill-page` makes the table of docs/using.md from the records.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pages import fill
from record import HERE, add, load, state, this_command
from torch import Tensor

import vitreous
from vitreous.attribution import METHODS, cell_edges, heat_map, network_input
from vitreous.bundle import Bundle, predictor
from vitreous.evaluation import open_split
from vitreous.machine import instruction_sets, processor
from vitreous.progress import track
from vitreous.run import Run
from vitreous.statistics import Z

FILLS = ("mean colour", "blur")
STEPS = 8  # of a curve, or one for each cell where these are fewer
BLUR = 1 / 8  # standard deviation of the Gaussian, as a share of the image's side
IMAGES_AT_A_TIME = 20
Maps = Callable[[Bundle, np.ndarray], np.ndarray]  # uint8 [B, S, S, 3] -> float [B, G, G]


def main() -> None:
    args = make_parser().parse_args()
    if args.run:
        source_state = state()
        run = Run(args.run)
        pixels, splits = images_of(run, args.images)
        figures = measure(run.bundle, pixels, all_maps(args.seed))
        for name, values in figures.items():
            print(f"{name:10s}", {key: f"{mean:.3f} ± {half:.3f}" for key, (mean, half) in values.items()})
        if args.record:
            add(
                f"faithfulness-{args.record}",
                study="faithfulness",
                arm=args.title or args.record,
                command=this_command("faithfulness.py"),
                data=run.bundle.data.get("name"),
                seed=args.seed,
                path="native, float32",
                machine={
                    "name": processor(),
                    "threads": os.cpu_count(),
                    "instruction_sets": instruction_sets(),
                },
                versions={"vitreous": vitreous.__version__, "torch": torch.__version__},
                figures=figures,
                images=splits,
                source_state=source_state,
                replace=args.replace,
            )
    if args.fill_page:
        fill(HERE.parent / "docs" / "using.md", "faithfulness", table())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--images", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images, and of random maps")
    parser.add_argument("--record", metavar="NAME", help="write the record faithfulness-NAME")
    parser.add_argument("--title", help="the row's name in the table")
    parser.add_argument("--replace", action="store_true", help="replace a record of another command")
    parser.add_argument("--fill-page", action="store_true", help="make the table of docs/using.md")
    return parser


def images_of(run: Run, number: int, seed: int = 0) -> tuple[np.ndarray, dict[str, int]]:
    """Images that the run was not trained on, uint8 [N, S, S, 3], and how many of each split."""
    parts, counts = [], {}
    for name in ("val", "test"):
        split = open_split(run, name)[1]
        missing = number - sum(map(len, parts))
        if missing > 0:
            chosen = np.sort(np.random.default_rng(seed).permutation(len(split))[:missing])
            parts.append(np.asarray(split.images)[chosen])
            counts[name] = len(chosen)
    return np.concatenate(parts), counts


def all_maps(seed: int) -> dict[str, Maps]:
    generator = np.random.default_rng(seed)

    def shape(bundle: Bundle, pixels: np.ndarray) -> tuple[int, int, int]:
        return len(pixels), bundle.model.grid, bundle.model.grid

    def centre(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
        from_centre = np.arange(bundle.model.grid) - (bundle.model.grid - 1) / 2
        map_ = -np.hypot(from_centre[:, None], from_centre[None])
        return np.broadcast_to(map_, shape(bundle, pixels))

    return {
        **{name: (lambda b, p, name=name: heat_map(b, p, method=name)) for name in METHODS},
        "centre": centre,
        "random": lambda bundle, pixels: generator.random(shape(bundle, pixels)),
    }


def measure(
    bundle: Bundle, pixels: np.ndarray, methods: dict[str, Maps]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and half of its 95 % interval by method: deletion, insertion and score of each fill, and the mean score."""
    areas: dict[str, dict[str, list[np.ndarray]]] = {}
    starts = range(0, len(pixels), IMAGES_AT_A_TIME)
    for start in track(starts, len(starts), f"parts of {IMAGES_AT_A_TIME} images"):
        part = pixels[start : start + IMAGES_AT_A_TIME]
        x = network_input(bundle, part)
        chosen = torch.from_numpy(bundle.predict(part))
        for name, maps in methods.items():
            order = orders(maps(bundle, part))
            of_method = areas.setdefault(name, {})
            scores = []
            for fill_, covered in zip(FILLS, (torch.zeros_like(x), blurred(x)), strict=True):
                deletion = area(bundle, x, covered, order, chosen)
                insertion = area(bundle, covered, x, order, chosen)
                scores.append(insertion - deletion)
                for key, values in (
                    ("deletion", deletion),
                    ("insertion", insertion),
                    ("score", scores[-1]),
                ):
                    of_method.setdefault(f"{key}, {fill_}", []).append(values)
            of_method.setdefault("score", []).append(sum(scores) / len(scores))
    return {
        name: {key: mean_and_half(np.concatenate(values)) for key, values in of_method.items()}
        for name, of_method in areas.items()
    }


def orders(maps: np.ndarray) -> Tensor:
    """The rank of each cell in its map, int64 [B, G²]: 0 for the most important."""
    order = np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")
    return torch.from_numpy(np.argsort(order, axis=1, kind="stable"))


@torch.no_grad()
def area(bundle: Bundle, begin: Tensor, end: Tensor, ranks: Tensor, chosen: Tensor) -> np.ndarray:
    """The area under the class's probability while the cells of `begin` become those of `end`, [B]."""
    model, grid = predictor(bundle.model), bundle.model.grid
    sizes = torch.tensor(np.diff(cell_edges(bundle.model)))
    changes = torch.linspace(0, grid * grid, min(STEPS, grid * grid) + 1).round().long()
    cells = (ranks < changes[:, None, None]).unflatten(2, (grid, grid))  # [steps, B, G, G]
    masks = cells.repeat_interleave(sizes, 2).repeat_interleave(sizes, 3)[:, :, None]
    logits = model(torch.where(masks, end, begin).flatten(0, 1)) / bundle.temperature
    chosen = chosen.repeat(len(changes))[:, None]
    curve = logits.softmax(dim=1).gather(1, chosen).view(len(changes), -1)
    return torch.trapezoid(curve, changes / (grid * grid), dim=0).numpy()


def blurred(x: Tensor) -> Tensor:
    """Images [B, 3, S, S], blurred by a Gaussian; the border's pixels are repeated outwards."""
    size = x.shape[-1]
    position = torch.arange(size)
    # Row i holds the weights of all pixels for pixel i. Those outside go to the border's pixel.
    outside = torch.arange(-size, 2 * size)
    weights = torch.exp(-((outside[None] - position[:, None]) ** 2) / (2 * (BLUR * size) ** 2))
    matrix = torch.zeros(size, size).index_add_(1, outside.clamp(0, size - 1), weights)
    matrix /= matrix.sum(dim=1, keepdim=True)
    return matrix @ x @ matrix.T


def mean_and_half(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(Z * values.std(ddof=1) / np.sqrt(len(values)))


def table() -> list[str]:
    """The score of each method (rows) for each record (columns)."""
    records = load("faithfulness")
    heads = [f"{record['arm']}, {sum(record['images'].values())} images" for record in records]
    lines = [" | ".join(["| method", *heads]) + " |", "|---|" + "---|" * len(records)]
    for name in records[0]["figures"]:
        cells = ["{:.3f} ± {:.3f}".format(*record["figures"][name]["score"]) for record in records]
        lines.append(" | ".join([f"| {name}", *cells]) + " |")
    return lines


if __name__ == "__main__":
    main()
