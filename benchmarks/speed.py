"""Training speed of this machine: beside the notebook's network as it was, and where a step's time goes.

    make bench-speed

Leave the machine alone meanwhile. Writes `records/speed/record.json` and `speed.svg` beside it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import torch.nn.functional as F

mpl.use("svg")
import matplotlib.pyplot as plt
from products import product_seconds
from race import race, ratio
from record import RECORDS, write
from torch.utils.flop_counter import FlopCounterMode

from vitreous import dial
from vitreous import machine as machines
from vitreous import recipe as recipes
from vitreous.data.augment import resized
from vitreous.data.module import ImageData
from vitreous.data.normalize import normalize
from vitreous.machine import instruction_sets
from vitreous.model.vit import VisionTransformer
from vitreous.native.accelerate import plain
from vitreous.plan import make_plan, set_up
from vitreous.recipe import Recipe
from vitreous.request import Request
from vitreous.training.classifier import make_optimizer
from vitreous.training.schedule import phases

NOTEBOOK = "notebook-cifar10"
ROUNDS = 21  # of a step and its products in turns, few of each at a time, for the machine wanders
ARMS: dict[str, dict[str, Any]] = {
    "as it was": {"by": "plain", "net": NOTEBOOK, "mode": "shipped", "task": "train"},
    "as it was, memory kept": {"by": "plain", "net": NOTEBOOK, "mode": "best", "task": "train"},
    "vitreous, float32": {"by": "ours", "net": NOTEBOOK, "precision": "32", "task": "train"},
    "vitreous": {"by": "ours", "net": NOTEBOOK, "task": "train"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--name", default="speed", help="of the record (default: speed)")
    args = parser.parse_args()
    machine = machines.choose_precision(machines.detect_machine("cpu"), "auto")
    rate = 1e9 * max(machine.float32_gflops, machine.bf16_gflops)
    print("\n".join(machine.reasons))

    times = race(ARMS, args.rounds)
    ratios = {name: ratio(times["as it was"], times[name]) for name in times}
    for name, (middle, low, high) in ratios.items():
        print(
            f"{name:24} {statistics.median(times[name]):7.0f} ms a step, {middle:.2f} times ({low:.2f} to {high:.2f})"
        )
    forward_backward = 3 * 256 * flops_of_notebook()
    print(f"roofline: {1000 * forward_backward / rate:.0f} ms, were every FLOP a large product")

    shares = default_step(machine, rate)
    starts = start_up()
    target = RECORDS / args.name
    plot(times, 1000 * forward_backward / rate, target / "speed.svg")
    write(
        target,
        f"python benchmarks/speed.py --rounds {args.rounds} --name {args.name}",
        machine=machine.record() | {"instruction_sets": instruction_sets()},
        versions={"python": sys.version.split()[0], "torch": torch.__version__},
        notebook_ms_a_step=times,
        notebook_ratio_median_low_high=ratios,
        notebook_roofline_ms=1000 * forward_backward / rate,
        default_step=shares,
        start_up_seconds=starts,
    )


def flops_of_notebook() -> int:
    from vitreous.model.summary import count_flops
    from vitreous.model.vit import create_model

    return count_flops(create_model(NOTEBOOK))


def default_step(machine: machines.Machine, rate: float) -> list[dict[str, float]]:
    """The default recipe's step on CIFAR-10, for each of the dial's sizes phase by phase: its time, its products'.

    `share_of_own_products` is what torch takes for each of the step's products alone, those of attention and of the
    convolutions' backward pass included, which the native kernels do themselves.
    """
    found = []
    for _, size in dial.SIZES:
        plan = make_plan(
            recipes.load("default", {**size, "steps": 1000}),
            Request("cifar10", device="cpu"),
            lambda line, detail=False: print(line),
        )
        data, model, recipe = plan.data, plan.model, plan.recipe
        loader = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))  # epoch after epoch
        batch = next(loader)

        def prepared(batch: dict[str, Any] = batch, data: ImageData = data) -> torch.Tensor:
            assert data.augment is not None
            image = data.augment(batch["image"], batch["index"], batch["epoch"])
            return normalize(image, data.store.mean, data.store.std)

        images, labels = prepared(), batch["label"]
        model.train()
        for phase in phases(recipe.schedule, data.store.image_size):
            small = resized(images, phase.side)

            def step(
                optimizer: torch.optim.Optimizer,
                small: torch.Tensor = small,
                labels: torch.Tensor = labels,
                model: VisionTransformer = model,
            ) -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=machine.precision == "bf16"):
                    logits = model(small)
                F.cross_entropy(logits.float(), labels).backward()
                optimizer.step()
                optimizer.zero_grad()

            def optimizer(model: VisionTransformer = model, recipe: Recipe = recipe) -> torch.optim.Optimizer:
                return make_optimizer(model, recipe.optimizer, bf16=machine.precision == "bf16")

            native = functools.partial(step, optimizer())
            plain(model).set_attention("explicit")
            torchs = functools.partial(step, optimizer())
            with FlopCounterMode(display=False) as counter:
                torchs()
            times, alone, data_times = [], [], []
            for _ in range(ROUNDS):
                set_up(model, plan.machine)
                times.append(timed(native, repeats=3))
                plain(model).set_attention("explicit")  # the kernels have products inside
                products, kinds = product_seconds(torchs, repeats=3)
                alone.append(products)
                fetching = timed(functools.partial(next, loader), repeats=1) + timed(prepared, repeats=3)
                data_times.append(fetching + timed(functools.partial(resized, images, phase.side), repeats=3))
            set_up(model, plan.machine)
            seconds = statistics.median(times)
            shares = sorted(products / each for products, each in zip(alone, times, strict=True))
            found.append(
                {
                    "side": phase.side,
                    "embed_dim": size["embed_dim"],
                    "ms": 1000 * seconds,
                    "gflop": counter.get_total_flops() / 1e9,
                    "share_of_product_rate": counter.get_total_flops() / seconds / rate,
                    "share_of_own_products": statistics.median(shares),
                    "share_of_own_products_low": shares[0],
                    "share_of_own_products_high": shares[-1],
                    "share_of_data_and_augmentation": statistics.median(data_times) / seconds,
                }
            )
            print(", ".join(f"{key} {value:.3g}" for key, value in found[-1].items()))
            for each, count, what in kinds[:8]:
                print(f"    {1000 * each * count:6.1f} ms  {count} x {what}")
    return found


def timed(run: Callable[[], Any], repeats: int = 9) -> float:
    """Median seconds of `run`, warm."""
    run()
    run()
    measured = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        measured.append(time.perf_counter() - start)
    return statistics.median(measured)


def start_up() -> list[float]:
    """Seconds from the command to the end of the first step, three times; the first may be cold."""
    command = [sys.executable, "-u", "-m", "vitreous", "train", "cifar10", "--minutes", "5", "--judge", "val"]
    found = []
    for _ in range(3):
        start = time.perf_counter()
        with (
            tempfile.TemporaryDirectory() as folder,
            subprocess.Popen(
                [*command, "--out", f"{folder}/run"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                if "step 1/" in line:
                    break
            found.append(time.perf_counter() - start)
            process.kill()
            process.wait()
        print(f"first step {found[-1]:.1f} s after the command")
    return found


def plot(times: dict[str, list[float]], roofline: float, path: Path) -> None:
    """Images a second of each arm, all rounds as dots, and the roofline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "vitreous"
    chart, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
    for row, (name, each) in enumerate(times.items()):
        axis.barh(row, 256_000 / statistics.median(each), color="C0", alpha=0.5)
        axis.plot([256_000 / ms for ms in each], [row] * len(each), "k.", ms=3)
        axis.text(2, row, f"{name}: {256_000 / statistics.median(each):.0f}", va="center", fontsize=8)
    axis.axvline(256_000 / roofline, color="C3", lw=1, label="roofline")
    axis.set(yticks=[], xlabel="training images a second, the notebook's CIFAR-10 network")
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    chart.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
