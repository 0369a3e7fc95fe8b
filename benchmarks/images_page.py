"""The tables of `docs/images.md`, from the records."""

from __future__ import annotations

import statistics
from pathlib import Path

from pages import fill
from record import load

FITS = {"stretch": "stretch (the default)", "pad": "pad", "crop": "crop"}


def fill_page(page: Path) -> None:
    """Fills the tables of `docs/images.md` at `page`."""
    fill(page, "fits", fits_table())


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
