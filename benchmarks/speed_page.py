"""Fills the tables of `docs/speed.md` from the records.

`leaderboard.py` calls it, so `make leaderboard` fills this page too.

A cell whose measurement has no record shows "–".
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pages
import record

NETS = {"vit-xs4": "ViT-XS/4", "vit-ti16": "ViT-Ti/16"}
TASKS = {"train": "training", "infer": "inference"}
PEERS = ("timm", "transformers", "torchvision", "vit-pytorch")
NONE = "–"

Records = Sequence[Mapping[str, Any]]


def fill_page(page: Path) -> None:
    """Fills every table of the page from the records."""
    for name, lines in tables(record.load()).items():
        pages.fill(page, name, lines)


def tables(records: Records) -> dict[str, list[str]]:
    """The lines of each table of the page, by the table's name."""
    return {
        "peers-best": peers_table(records, "best mode"),
        "peers-shipped": peers_table(records, "as shipped"),
        "peers-modes": modes_table(records),
        "notebook": notebook_table(records),
        "notebook-times": notebook_times(records),
        "default-step": default_step_table(records),
        "starts": starts_table(records),
        "pairs": pairs_table(records),
        "speed-machines": machines_table(records),
    }


def figures_of(records: Records, study: str, arm: str) -> Mapping[str, Any]:
    """The figures of a study's record for `arm`, or none."""
    return next((r["figures"] for r in records if (r["study"], r["arm"]) == (study, arm)), {})


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, its first column aligned to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def with_interval(comparison: Mapping[str, Any] | None) -> str:
    """The median of a comparison with its 95 % interval."""
    if not comparison:
        return NONE
    low, high = comparison["interval"]
    return f"{comparison['median']:.2f} ({low:.2f} to {high:.2f})"


# ---- the peers


def peers_table(records: Records, mode: str) -> list[str]:
    """How many times as long as ours a step of each library takes, with equal work; ours in milliseconds."""
    columns = [figures_of(records, "peers", f"{net} {task}") for net in NETS for task in TASKS]
    header = ["", *(f"{net}, {task}" for net in NETS.values() for task in TASKS.values())]
    rows = [
        [peer, *(with_interval(column.get("equal_work", {}).get(f"{peer}, {mode}")) for column in columns)]
        for peer in PEERS
    ]
    rows.append(
        ["vitreous, all tokens", *(milliseconds(column, "vitreous, all tokens") for column in columns)]
    )
    rows.append(["vitreous, as it runs", *(milliseconds(column, "vitreous") for column in columns)])
    return table(header, rows)


def milliseconds(figures: Mapping[str, Any], arm: str) -> str:
    values = figures.get("ms", {}).get(arm)
    return f"{statistics.median(values):,.0f} ms" if values else NONE


def modes_table(records: Records) -> list[str]:
    """The mode in which each library was fastest."""
    columns = [figures_of(records, "peers", f"{net} {task}") for net in NETS for task in TASKS]
    header = ["", *(f"{net}, {task}" for net in NETS.values() for task in TASKS.values())]
    rows = [
        [peer, *(column.get("best_modes", {}).get(peer, {}).get("mode", NONE) for column in columns)]
        for peer in PEERS
    ]
    return table(header, rows)


# ---- the notebook's network


def notebook_table(records: Records) -> list[str]:
    """How many times as long as ours a step of the notebook's network takes."""
    comparisons = figures_of(records, "speed", "notebook").get("comparisons", [])
    rows = [
        [comparison["baseline"], comparison["ours"], with_interval(comparison)] for comparison in comparisons
    ]
    return table(["plain torch", "vitreous", "times as long"], rows or [[NONE] * 3])


def notebook_times(records: Records) -> list[str]:
    """Milliseconds per step and images per second of each contestant."""
    figures = figures_of(records, "speed", "notebook")
    rows = []
    for name, values in figures.get("ms", {}).items():
        ms = statistics.median(values)
        label = f"plain torch, {name}" if not name.startswith("vitreous") else name
        if name == "best mode":
            label += f": {figures['best_mode']['mode_text']}"
        rows.append([label, f"{ms:,.0f}", f"{1000 * figures['batch'] / ms:,.0f}"])
    if figures:
        ms = figures["products_ms"]
        label = "all FLOPs at the rate of large matrix multiplications"
        rows.append([label, f"{ms:,.0f}", f"{1000 * figures['batch'] / ms:,.0f}"])
    return table(["", "ms per step", "images/s"], rows or [[NONE] * 3])


# ---- the default step, starts, pairs


def default_step_table(records: Records) -> list[str]:
    header = [
        "network, image",
        "ms per step",
        "GFLOP",
        "matrix multiplications alone",
        "of the peak rate",
        "data and augmentation",
    ]
    rows = [
        [
            f"{row['embed_dim']} wide, {row['side']} pixels",
            f"{row['ms']:,.0f}",
            f"{row['gflop']:,.0f}",
            percent_with_interval(row["products_alone"]),
            f"{100 * row['share_of_product_rate']:.0f} %",
            f"{100 * row['data_and_augmentation']:.1f} %",
        ]
        for row in figures_of(records, "speed", "default-step").get("rows", [])
    ]
    return table(header, rows or [[NONE] * len(header)])


def percent_with_interval(comparison: Mapping[str, Any]) -> str:
    low, high = comparison["interval"]
    return f"{100 * comparison['median']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def starts_table(records: Records) -> list[str]:
    seconds = figures_of(records, "speed", "starts").get("seconds", [])
    header = ["", "first", "second", "third"]
    return table(header, [["seconds to the first step", *([f"{s:.1f}" for s in seconds] or [NONE] * 3)]])


def pairs_table(records: Records) -> list[str]:
    """This version's step beside another's, for every pair of versions that was timed."""
    rows = [
        [
            f"{r['arm']}, {r['commit'][:7]} beside {r['other'][:7]}",
            f"{r['figures']['this_ms']:.1f}",
            f"{r['figures']['other_ms']:.1f}",
            f"{r['figures']['ratio']:.3f} ({r['figures']['low']:.3f} to {r['figures']['high']:.3f})",
        ]
        for r in records
        if r["study"] == "pairs"
    ]
    header = ["network, versions", "ms per step", "of the other", "ratio"]
    return table(header, rows or [[NONE] * len(header)])


def machines_table(records: Records) -> list[str]:
    """Where and when each record of the page's tables was measured."""
    shown = {("peers", f"{net} {task}") for net in NETS for task in TASKS}
    shown |= {("speed", part) for part in ("notebook", "default-step", "starts")}
    rows: list[list[str]] = []
    for r in records:
        if r["study"] != "pairs" and (r["study"], r["arm"]) not in shown:
            continue
        machine = r["machine"]
        cells = [
            r["id"],
            f"{machine['name']}, {machine['instruction_sets']}",
            str(machine.get("threads", NONE)),
            r["versions"]["torch"],
            r["date"],
            r["commit"][:7],
        ]
        rows.append(cells)
    header = ["record", "processor", "threads", "torch", "date", "commit"]
    return table(header, rows or [[NONE] * len(header)])
