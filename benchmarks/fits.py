"""How images that are not square should become square: crop, pad and stretch, judged on validation.

    python benchmarks/fits.py trash.zip

Two data sets: TrashNet (Gary Thung and Mindy Yang, 2,527 photographs of 4:3, six classes; a zip or folder of class
folders), and strips of 200×40 pixels, which this script draws: an image of CIFAR-10, 40 pixels high, somewhere on a
smooth ground. Three seeds each, which also cut three validation splits. Test stays unread. The record is `fits`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import add, add_replace_option, check_replacement, computed_by, state

import vitreous
from vitreous.data.sources import open_data
from vitreous.machine import instruction_sets
from vitreous.request import FITS

COMMAND = "python benchmarks/fits.py trash.zip"
SEEDS = (42, 43, 44)
BUDGETS = {"trash": 2e13, "strips": 1e13}
IMAGE_SIZE = 64
VAL_FRACTION = 0.2
PER_CLASS = 300
HEIGHT, WIDTH = 40, 200


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trash", type=Path, help="TrashNet, as a zip or folder of class folders")
    add_replace_option(parser)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    check_replacement("fits", COMMAND, args.replace)
    source_state = state()
    accuracies: dict[str, dict[str, list[float]]] = {name: {fit: [] for fit in FITS} for name in BUDGETS}
    with tempfile.TemporaryDirectory() as folder:
        paths = {"trash": args.trash, "strips": draw_strips(Path(folder) / "strips")}
        for seed in SEEDS:
            for name, path in paths.items():
                for fit in FITS:
                    run = vitreous.train(
                        path,
                        flops=BUDGETS[name],
                        seed=seed,
                        fit=fit,
                        image_size=IMAGE_SIZE,
                        judge="val",
                        overrides={"split_seed": seed, "val_fraction": VAL_FRACTION},
                        data_dir=Path(folder) / "packed",
                        out=Path(folder) / f"{name}-{fit}-{seed}",
                    )
                    accuracies[name][fit].append(run.summary["val_acc"])
                    print(table(accuracies), flush=True)
        machine = run.resolved["machine"] | {"instruction_sets": instruction_sets()}
    add(
        "fits",
        study="fits",
        arm="crop, pad and stretch",
        command=COMMAND,
        path=computed_by(machine),
        machine=machine,
        versions={"vitreous": vitreous.__version__, "torch": torch.__version__},
        figures={"flops": BUDGETS, "image_size": IMAGE_SIZE, "seeds": SEEDS, "val_acc": accuracies},
        source_state=source_state,
        replace=args.replace,
    )


def table(accuracies: dict[str, dict[str, list[float]]]) -> str:
    """Validation accuracy in percent of each way on each data set: mean, lowest and highest over the seeds."""
    rows = ["data    fit      mean   lowest highest"]
    for name, by_fit in accuracies.items():
        for fit, shares in by_fit.items():
            if shares:
                mean, low, high = (
                    100 * value for value in (statistics.mean(shares), min(shares), max(shares))
                )
                rows.append(f"{name:7} {fit:8} {mean:5.1f}  {low:5.1f}  {high:5.1f}")
    return "\n".join(rows)


def draw_strips(root: Path) -> Path:
    """Writes a folder of class folders of strips: an image of CIFAR-10 somewhere on a smooth ground."""
    train = open_data("cifar10").splits["train"]
    rng = np.random.default_rng(0)
    for label in range(10):
        members = np.flatnonzero(np.asarray(train.labels) == label)[:PER_CLASS]
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number, position in enumerate(members):
            coarse = rng.integers(0, 256, (3, 9, 3), dtype=np.uint8)
            strip = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            image = Image.fromarray(np.asarray(train.images[position])).resize((HEIGHT, HEIGHT))
            strip.paste(image, (int(rng.integers(0, WIDTH - HEIGHT + 1)), 0))
            strip.save(folder / f"{number}.png")
    return root


if __name__ == "__main__":
    main()
