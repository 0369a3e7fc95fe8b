"""Two studies on validation: the law of network sizes, and what each ingredient of the default recipe is worth.

    python benchmarks/study.py law          # three network sizes at three budgets, and fewer on CIFAR-100
    python benchmarks/study.py ablation     # one ingredient changed at a time, two seeds a row
    python benchmarks/study.py seconds      # the training time of each row of the ablation; needs an idle machine

Runs that are on record are not run again, so a study may be stopped and continued. `make leaderboard` then renews the
tables and plots.

Both studies chose the default recipe before it had weight decay and mixing. They set every key that the dial would
choose today, so that a new row is comparable with those on record.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict

import torch
from leaderboard import ABLATED_AT, ABLATION, best_adamw
from record import add, command, load, state, training

from vitreous import recipe as recipes
from vitreous.machine import instruction_sets
from vitreous.plan import make_plan
from vitreous.recipe import Budget
from vitreous.request import Request
from vitreous.training.cost import measure_seconds

SIZES = (  # the stems of the first two have become narrower since
    ("embed_dim=96", "depth=4", "num_heads=3", "mlp_dim=192", "stem_dims=[28,96]"),
    ("embed_dim=128", "depth=4", "num_heads=2", "mlp_dim=256", "stem_dims=[40,128]"),
    ("embed_dim=192", "depth=5", "num_heads=3", "mlp_dim=384", "stem_dims=[64,192]"),
)
STRENGTHS = ("crop=2", "cutout=0", "mixup=0", "cutmix=0", "weight_decay=0")
BUDGETS = {"cifar10": ("3e13", "6e13", "1.2e14"), "cifar100": ("3e13", "1.2e14")}
ABLATION_SEEDS = (42, 43)
ADAMW_RATES = ("5e-4", "1e-3", "4e-3", "8e-3")  # beside 2e-3, which AdamW has in the default recipe
SECONDS_ROUNDS = 7


def main() -> None:
    {"law": law, "ablation": ablation, "seconds": time_ablation}[make_parser().parse_args().study]()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=["law", "ablation", "seconds"])
    return parser


def law() -> None:
    for data, budgets in BUDGETS.items():
        for budget in budgets:
            for size in SIZES:
                wide = size[0].partition("=")[2]
                changes = [*size, *STRENGTHS]
                run(f"{data}-law-{wide}wide", "law", f"{wide} wide", data, budget, 42, changes)


def ablation() -> None:
    for arm, (_, changes) in ABLATION.items():
        for seed in ABLATION_SEEDS:
            name = f"cifar10-ablation-{arm.partition(' ')[0]}"
            run(name, "ablation", arm, "cifar10", ABLATED_AT, seed, ablated(changes))
    for rate in ADAMW_RATES:
        run_adamw(rate, ABLATION_SEEDS[0])
    if (best := best_adamw()) in ADAMW_RATES:
        for seed in ABLATION_SEEDS[1:]:
            run_adamw(best, seed)


def run_adamw(rate: str, seed: int) -> None:
    changes = ablated(["optimizer.name=adamw", f"optimizer.learning_rate={rate}"])
    run(f"cifar10-adamw-lr{rate}", "ablation", f"adamw lr {rate}", "cifar10", ABLATED_AT, seed, changes)


def ablated(changes: list[str]) -> list[str]:
    """The overrides of a row: those of the study's recipe, and `changes` in their place."""
    words = {word.partition("=")[0]: word for word in (*SIZES[0], *STRENGTHS, *changes)}
    return list(words.values())


def run(name: str, study: str, arm: str, data: str, budget: str, seed: int, changes: list[str]) -> None:
    """One training judged on validation, unless it is on record."""
    id = f"{name}-{budget}-val-seed{seed}"
    if any(record["id"] == id for record in load()):
        return
    words = [data, *changes, "--flops", budget, "--judge", "val"]
    words += ["--seed", str(seed)]
    training(id, words, command(id, words), study=study, arm=arm)


def time_ablation() -> None:
    """Times a step of each row, all rows in turns, and multiplies it by the steps of the row's budget."""
    source_state = state()
    seconds: dict[str, list[float]] = defaultdict(list)
    plans = {}
    for arm, (_, changes) in ABLATION.items():
        recipe = dataclasses.replace(
            recipes.load("default", ablated(changes)), budget=Budget(float(ABLATED_AT), "flops")
        )
        plans[arm] = make_plan(
            recipe, Request("cifar10", judge="val", device="cpu"), lambda line, detail=False: None
        )
    for number in range(SECONDS_ROUNDS):
        for arm, plan in plans.items():
            bf16 = plan.machine.precision == "bf16"
            cost = measure_seconds(plan.cost, plan.model, plan.recipe, plan.sizes.batch, "cpu", bf16=bf16)
            step_flops, step_seconds = cost.mean()
            seconds[arm.partition(" ")[0]].append(step_seconds * float(ABLATED_AT) / step_flops)
        print(f"round {number + 1}: default {seconds['default'][-1]:.0f} s", flush=True)
    machine = plans["default"].machine
    add(
        "ablation-seconds",
        study="seconds",
        arm="all rows",
        command="python benchmarks/study.py seconds",
        data="cifar10",
        path=f"{machine.backend}, {machine.precision}",
        machine=machine.record() | {"instruction_sets": instruction_sets()},
        versions={"torch": torch.__version__},
        figures={"seconds": seconds},
        source_state=source_state,
    )


if __name__ == "__main__":
    main()
