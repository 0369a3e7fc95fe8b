"""Writes `LEADERBOARD.md` and the two plots of accuracy from the records, and from nothing else.

python benchmarks/leaderboard.py
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PLOTS = HERE.parent / "docs"

# Published figures, of papers and of the notebook that this project starts from: (what, FLOPs of the training,
# CIFAR-10, CIFAR-100). Nothing here was measured by us. FLOPs: three times the forward pass's, times pictures seen.
PUBLISHED: list[tuple[str, float, float | None, float | None]] = [
    ("the notebook's ViT", 1.06e16, 78.8, None),
    ("the notebook's ViT", 4.2e16, None, 49.8),
    ("CCT-2/3x2", 2.0e15, 89.17, None),
    ("CCT-4/3x2", 2.8e15, 91.45, 70.46),
    ("ViT-Lite-7/4", 1.4e16, 91.38, 69.75),
    ("ConvMixer", 1.1e15, 92.6, None),
    ("SPT+LSA", 1.8e16, 94.53, 76.92),
    ("CCT-7/3x1", 8.8e16, 96.53, 80.92),
]


def main() -> None:
    groups = grouped()
    (HERE / "LEADERBOARD.md").write_text(text(groups), encoding="utf-8")
    plot(groups, "train_flops", "training FLOPs", 1.0, PLOTS / "accuracy-flops.svg", published=True)
    plot(
        groups,
        "total_seconds",
        "minutes on two cores, all told, of the quickest run",
        60.0,
        PLOTS / "accuracy-minutes.svg",
    )
    print(f"{len(groups)} rows: {HERE / 'LEADERBOARD.md'}")


Key = tuple[str, str, str, str]


def grouped() -> dict[Key, list[dict[str, Any]]]:
    """The training records by (data, recipe with its changes, budget, processor), seeds together."""
    groups: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted((HERE / "records").glob("*/record.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        figures = record.get("figures", {})
        if "train_flops" not in figures:
            continue
        name = file.parent.name
        label = name.removesuffix(f"-seed{figures.get('seed')}")
        data, _, kind = label.partition("-")
        machine = record["machine"]
        groups[data, kind, machine["name"], machine["precision"]].append({**record, "name": name})
    return groups


def text(groups: dict[Key, list[dict[str, Any]]]) -> str:
    reads = sum("test_acc" in record["figures"] for records in groups.values() for record in records)
    lines = [
        "# Leaderboard",
        "",
        "Made from the records by `python benchmarks/leaderboard.py`; do not edit. Accuracy in percent, the median of",
        "the runs, with the lowest and the highest. Runs with `val` in their name choose: 45,000 pictures are trained",
        "on, 5,000 judge, test is unread; with `49` before the budget, 25,500 are trained on and 24,500 judge. Runs",
        "with `test` in theirs trained on all 50,000, their recipe settled.",
        f"Test was read by the {reads} runs here that have a test accuracy, once each; those whose flips are averaged",
        "went over its pictures a second time for that column. Minutes are those of the quickest run, for other work",
        "ran beside some.",
    ]
    for data in sorted({key[0] for key in groups}):
        lines += ["", f"## {data}", ""]
        lines += [
            "| run | runs | training FLOPs | minutes | images/s | val | test | test, flips averaged | peak MiB |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        rows = [(key, records) for key, records in groups.items() if key[0] == data]
        for key, records in sorted(rows, key=lambda row: median(row[1], "train_flops") or 0):
            links = ", ".join(f"[{r['figures'].get('seed')}](records/{r['name']})" for r in records)
            minutes = min(r["figures"].get("total_seconds", 0) for r in records) / 60
            peak = median(records, "peak_memory_mib")
            lines.append(
                f"| {key[1]} | {links} | {median(records, 'train_flops'):.2g} | {minutes:.1f} | "
                f"{median(records, 'images_per_second'):,.0f} | {spread(records, 'val_acc')} | "
                f"{spread(records, 'test_acc')} | {spread(records, 'test_acc_with_flips')} | {peak or '–'} |"
            )
    machines = sorted(
        {
            f"{r['machine']['name']}, {r['machine']['threads']} threads, {r['machine']['instruction_sets']}, torch "
            f"{r['versions']['torch']}"
            for records in groups.values()
            for r in records
        }
    )
    lines += ["", "Machines: " + "; ".join(machines) + ".", ""]
    return "\n".join(lines)


def median(records: list[dict[str, Any]], figure: str) -> float | None:
    values = [record["figures"][figure] for record in records if figure in record["figures"]]
    return statistics.median(values) if values else None


def spread(records: list[dict[str, Any]], figure: str) -> str:
    values = [100 * record["figures"][figure] for record in records if figure in record["figures"]]
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "–"
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def plot(
    groups: dict[Key, list[dict[str, Any]]],
    figure: str,
    label: str,
    unit: float,
    path: Path,
    published: bool = False,
) -> None:
    """Accuracy against a cost, a panel a data set; ours filled, published figures hollow and marked as such."""
    plt.rcParams["svg.hashsalt"] = "vitreous"  # the same bytes from the same records
    chart, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, data, column in zip(axes, ("CIFAR-10", "CIFAR-100"), (2, 3), strict=True):
        series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for key, records in groups.items():
            accuracy = median(records, "test_acc")
            if key[0] == data.lower().replace("-", "") and accuracy is not None:
                recipe = key[1].partition("-")[0].replace("make", "default")  # make train
                if "stemlinear" in key[1]:
                    recipe += ", linear patches"
                series[records[0].get("peer", f"vitreous, {recipe}")].append(
                    (min(r["figures"][figure] for r in records) / unit, 100 * accuracy)
                )
        for number, (name, points) in enumerate(sorted(series.items())):
            points.sort()
            axis.plot(*zip(*points, strict=True), "o", color=f"C{number}", label=name)
        if published:
            for row in PUBLISHED:
                if row[column] is not None:
                    axis.plot(row[1], row[column], "o", color="grey", mfc="none")
                    axis.annotate(
                        row[0],
                        (row[1], row[column]),
                        xytext=(0, -11),
                        textcoords="offset points",
                        fontsize=7,
                        ha="center",
                    )
            axis.plot([], [], "o", color="grey", mfc="none", label="published, not measured here")
        axis.set(xscale="log", xlabel=label, ylabel="test accuracy, %", title=data)
        if not published:  # minutes
            axis.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
            axis.minorticks_off()
        axis.margins(0.12)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="best")
    chart.savefig(path, metadata={"Date": None})
    plt.close(chart)


if __name__ == "__main__":
    main()
