"""The tables of `docs/images.md`, from the records."""

from __future__ import annotations

import statistics
from pathlib import Path

from pages import fill
from record import load
from unequal import CASES, FLOPS, differences, on_record

FITS = {"stretch": "stretch (the default)", "pad": "pad", "crop": "crop"}


def fill_page(page: Path) -> None:
    """Fills the tables of `docs/images.md` at `page`."""
    fill(page, "fits", fits_table())
    fill(page, "unequal", unequal_table())


BALANCED = {"loss": "`loss`", "sampler": "`sampler`", "weights": "class weights (not kept)"}


def fits_table() -> list[str]:
    """Validation accuracy by how images become square: mean and range of three seeds."""
    figures = next(record for record in load("fits"))["figures"]["val_acc"]
    rows = [
        "| `--fit` | TrashNet, photographs of 4:3 | strips of 200×40, the object anywhere |",
        "| --- | --- | --- |",
    ]
    for fit, title in FITS.items():
        cells = []
        for name in ("trash", "strips"):
            shares = [100 * share for share in figures[name][fit]]
            cells.append(f"{statistics.mean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f}) %")
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return [
        *rows,
        "",
        "Validation accuracy at 64 pixels, mean and range of three seeds, 2e13 and 1e13 training FLOPs "
        "(`python benchmarks/fits.py trash.zip`, record `fits`).",
    ]


def unequal_table() -> list[str]:
    """Each choice of `--balance` at several ratios: the difference to `none`, one value for each seed."""
    rows = [
        f"| largest : smallest class | `none` | {' | '.join(BALANCED.values())} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        found = on_record(case)
        name = "TrashNet, 4.3 : 1" if case == "trash" else f"CIFAR-10, {case.partition('-')[2]} : 1"
        levels = [
            100 * statistics.mean(entry[key] for entry in found["none"].values())
            for key in ("balanced_accuracy", "accuracy")
        ]
        cells = [f"{levels[0]:.1f} / {levels[1]:.1f} %"]
        for arm in BALANCED:
            if arm not in found:
                cells.append("–")
                continue
            recall, accuracy = (differences(found, arm, key) for key in ("balanced_accuracy", "accuracy"))
            cells.append(f"{changes(recall)} / {changes(accuracy)}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return [
        *rows,
        "",
        f"Mean of the classes' recalls / accuracy on validation images as unequal as those in training, at {FLOPS:.0e} "
        "training FLOPs, of the recipe before weight decay and mixing. "
        "Columns 3 to 5 are differences to `none` in points with the same seed, one value a seed "
        "(`make bench-unequal`, records `unequal-…`).".replace("+", ""),
    ]


def changes(points: list[float]) -> str:
    return ", ".join(f"{value:+.1f}".replace("-", "−") for value in points)
