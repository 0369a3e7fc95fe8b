"""Two studies on the validation split: the dial's law, and what each ingredient of the default recipe is worth.

    python benchmarks/study.py law          # three sizes at three budgets, and two of each on CIFAR-100
    python benchmarks/study.py ablation     # at one budget, two seeds a row
    python benchmarks/study.py seconds      # of each row of that: its steps timed in turns, on an idle machine

Each run has a record; what has one is not run again, so that a study may be stopped and continued. Writes
`docs/law.svg` and `docs/ablation.md` from the records, as far as there are any.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections import defaultdict
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import torch
from record import HERE, RECORDS, training, write

from vitreous import recipe as recipes
from vitreous.dial import SIZES
from vitreous.machine import instruction_sets
from vitreous.plan import make_plan
from vitreous.recipe import Budget
from vitreous.request import Request
from vitreous.training.cost import measure_seconds

DOCS = HERE.parent / "docs"
BUDGETS = ("3e13", "6e13", "1.2e14")
CHECKED = ("3e13", "1.2e14")  # on CIFAR-100
ABLATED_AT, ABLATION_SEEDS = "6e13", (42, 43)
SECONDS_ROUNDS = 7
# What is changed of the recipe in each row, and what that takes away or puts in its place.
ABLATION: dict[str, tuple[str, list[str]]] = {
    "default": ("the default recipe", []),
    "adamw": ("AdamW in place of Muon", ["optimizer.name=adamw"]),
    "fullsize": ("pictures of full size from the start", ["small_sides=[1.0]"]),
    "linear": ("linear patches in place of the convolutional stem", ["stem=linear", "stem_dims=[]"]),
    "qknorm": ("queries and keys not normalised", ["qk_norm=false"]),
    "mean": ("mean of the tokens in place of attention pooling", ["pool=mean"]),
    "cls": ("class token in place of attention pooling", ["pool=cls"]),
    "zeroinit": ("branches not begun at zero", ["zero_init=false"]),
    "smoothing": ("no label smoothing", ["label_smoothing=0"]),
    "flip": ("flips at random, not alternating", ["flip=random"]),
    "crop": ("no crop", ["crop=0"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=["law", "ablation", "seconds", "show"], help="`show` runs nothing")
    args = parser.parse_args()
    if args.study == "law":
        law()
    if args.study == "ablation":
        for name, (_, changes) in ABLATION.items():
            for seed in ABLATION_SEEDS:
                run(f"cifar10-ablation-{name}", "cifar10", ABLATED_AT, seed, changes)
    if args.study == "seconds":
        time_ablation()
    plot_law()
    write_ablation()


def law() -> None:
    for data, budgets in (("cifar10", BUDGETS), ("cifar100", CHECKED)):
        for budget in budgets:
            for _, size in SIZES:
                changes = [f"{key}={list(v) if isinstance(v, tuple) else v}" for key, v in size.items()]
                run(f"{data}-law-{size['embed_dim']}wide", data, budget, 42, changes)


def run(name: str, data: str, budget: str, seed: int, changes: list[str]) -> None:
    """One training judged by validation, unless there is a record of it."""
    full = f"{name}-{budget}-val-seed{seed}"
    if (RECORDS / full / "record.json").exists():
        return
    words = [data, *(change.replace(" ", "") for change in changes), "--flops", budget, "--judge", "val"]
    words += ["--seed", str(seed)]
    training(full, words, f"python benchmarks/record.py {full} -- {' '.join(words)}")


def time_ablation() -> None:
    """Seconds of each row: the steps that its runs took, at what a step takes now, all rows in turns."""
    measured: dict[str, list[float]] = defaultdict(list)
    plans = {}
    for name, (_, changes) in ABLATION.items():
        recipe = dataclasses.replace(
            recipes.load("default", changes), budget=Budget(float(ABLATED_AT), "flops")
        )
        plans[name] = make_plan(
            recipe, Request("cifar10", judge="val", device="cpu"), lambda line, detail=False: None
        )
    for number in range(SECONDS_ROUNDS):
        for name, plan in plans.items():
            bf16 = plan.machine.precision == "bf16"
            cost = measure_seconds(plan.cost, plan.model, plan.recipe, plan.sizes.batch, "cpu", bf16=bf16)
            flops, seconds = cost.mean()
            measured[name].append(seconds * float(ABLATED_AT) / flops)
        print(f"round {number + 1}: default {measured['default'][-1]:.0f} s", flush=True)
    write(
        RECORDS / "ablation-seconds",
        "python benchmarks/study.py seconds",
        machine=plans["default"].machine.record() | {"instruction_sets": instruction_sets()},
        versions={"torch": torch.__version__},
        seconds=measured,
    )


def records(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, record) of all whose name has that kind behind its data set."""
    found = []
    for file in sorted(RECORDS.glob(f"*-{kind}-*/record.json")):
        found.append((file.parent.name, json.loads(file.read_text(encoding="utf-8"))))
    return found


def plot_law() -> None:
    """Validation accuracy against training FLOPs, a line for each width, a panel for each data set."""
    lines: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for name, record in records("law"):
        data, _, wide, *_ = name.split("-")
        figures = record["figures"]
        lines[data, wide.removesuffix("wide")].append(
            (figures["train_flops"], 100 * figures["val_acc"], figures["epochs"])
        )
    if not lines:
        return
    plt.rcParams["svg.hashsalt"] = "vitreous"
    chart, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, data in zip(axes, ("cifar10", "cifar100"), strict=True):
        mine = sorted((int(wide), sorted(points)) for (of, wide), points in lines.items() if of == data)
        for number, (wide, points) in enumerate(mine):
            axis.plot([p[0] for p in points], [p[1] for p in points], "o-", label=f"{wide} wide")
            for flops, accuracy, epochs in points:
                axis.annotate(
                    f"{epochs:.0f}",
                    (flops, accuracy),
                    xytext=(5, 4 - 9 * number),
                    textcoords="offset points",
                    fontsize=7,
                    color=f"C{number}",
                )
        axis.set(
            xscale="log",
            xlabel="training FLOPs (at the points: passes over the pictures)",
            ylabel="validation accuracy, %",
            title=data.upper().replace("CIFAR", "CIFAR-"),
        )
        axis.set_xticks([float(budget) for budget in BUDGETS], BUDGETS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        if mine:
            axis.legend(fontsize=8)
    chart.savefig(DOCS / "law.svg", metadata={"Date": None})
    plt.close(chart)


def write_ablation() -> None:
    """The table of what each ingredient is worth, in points and in seconds."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, record in records("ablation"):
        rows[name.split("-")[2]].append(record["figures"])
    if "default" not in rows:
        return

    timed = RECORDS / "ablation-seconds" / "record.json"
    seconds = json.loads(timed.read_text(encoding="utf-8"))["seconds"] if timed.exists() else {}

    def mean(name: str, figure: str) -> float:
        return statistics.mean(figures[figure] for figures in rows[name])

    lines = [
        "# What each ingredient is worth",
        "",
        f"The default recipe on CIFAR-10 at {ABLATED_AT} training FLOPs with one thing changed, judged on validation",
        "(45,000 / 5,000), the mean of the seeds; two of them tell half a point and more. Made by",
        "`python benchmarks/study.py ablation`; do not edit. Seconds are those of all steps, timed for all rows in",
        "turns ([record](../benchmarks/records/ablation-seconds), `python benchmarks/study.py seconds`).",
        "",
        "| changed | accuracy | points | loss | seconds | passes | records |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (what, _) in ABLATION.items():
        if name not in rows:
            continue
        accuracy, base = 100 * mean(name, "val_acc"), 100 * mean("default", "val_acc")
        links = ", ".join(
            f"[{f['seed']}](../benchmarks/records/cifar10-ablation-{name}-{ABLATED_AT}-val-seed{f['seed']})"
            for f in rows[name]
        )
        lasted = f"{statistics.median(seconds[name]):.0f}" if name in seconds else ""
        lines.append(
            f"| {what} | {accuracy:.1f} | {accuracy - base:+.1f} | {mean(name, 'val_loss'):.3f} | "
            f"{lasted} | {mean(name, 'epochs'):.1f} | {links} |"
        )
    (DOCS / "ablation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
