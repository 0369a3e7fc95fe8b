"""Training speed of this machine: beside the notebook's own network, and where the time of a default step goes.

    make bench-speed

Measures three things in about eleven minutes on two cores: the notebook's CIFAR-10 network, written in plain torch and
trained by vitreous; the default recipe's step, beside its matrix products timed alone; and the seconds from a command
to the first step. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import record
import torch
import torch.nn.functional as F
from arms import NETS, Mode
from products import product_seconds
from race import add_race_options, compare, comparison_text, race, surroundings
from torch.utils.flop_counter import FlopCounterMode

from vitreous import dial
from vitreous import machine as machines
from vitreous import recipe as recipes
from vitreous.data.augment import resized
from vitreous.data.module import ImageData
from vitreous.data.normalize import normalize
from vitreous.model.summary import count_flops
from vitreous.model.vit import VisionTransformer, create_model
from vitreous.native.accelerate import plain
from vitreous.plan import make_plan, set_up
from vitreous.recipe import Recipe
from vitreous.request import Request
from vitreous.training.classifier import make_optimizer
from vitreous.training.schedule import phases

PARTS = ("notebook", "default-step", "starts")
NOTEBOOK = "notebook-cifar10"
AS_PUBLISHED, MEMORY_KEPT, BEST = "as published", "memory kept, float32", "best mode"
OURS, OURS_FLOAT32, EQUAL_WORK = "vitreous", "vitreous, float32", "vitreous, all tokens"
# (baseline, ours), of which the first is the headline: equal work, and all that torch offers.
COMPARISONS = [
    (BEST, EQUAL_WORK),
    (BEST, OURS),
    (MEMORY_KEPT, OURS_FLOAT32),
    (AS_PUBLISHED, OURS_FLOAT32),
    (AS_PUBLISHED, OURS),
]
# A step and its products are timed in turns, a few of each at a time, because the machine's speed drifts.
MAX_TURNS, MIN_TURNS, TURN_SECONDS = 21, 7, 25.0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    add_race_options(parser)
    record.add_replace_option(parser)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    command = record.this_command("speed.py")
    for part in args.parts:
        record.check_replacement(f"speed-{part}", command, args.replace)
    source_state = record.state()
    machine = machines.choose_precision(machines.detect_machine("cpu"), "auto")
    print("\n".join(machine.reasons))
    measure = {"notebook": notebook, "default-step": default_step, "starts": starts}
    for part in args.parts:
        record.add(
            f"speed-{part}",
            study="speed",
            arm=part,
            command=command,
            seed=args.seed,
            figures=measure[part](machine, args),
            source_state=source_state,
            replace=args.replace,
            **surroundings(machine),
        )


def product_rate(machine: machines.Machine) -> float:
    """FLOPs per second of large matrix products on this machine, in its faster precision."""
    return 1e9 * max(machine.float32_gflops, machine.bf16_gflops)


def notebook_arms(bf16: bool) -> dict[str, dict[str, Any]]:
    """The competitors that train the notebook's network; `bf16` where this machine multiplies faster in it."""
    base = {"net": NOTEBOOK, "task": "train"}
    best = [
        Mode(
            tuned=True,
            fused_attention=fused,
            precision="autocast" if bf16 else "float32",
            compiled=compiled,
        )
        for fused in (False, True)
        for compiled in (False, True)
    ]
    return {
        AS_PUBLISHED: {**base, "by": "plain", "modes": [asdict(Mode(fused_attention=False))]},
        MEMORY_KEPT: {**base, "by": "plain", "modes": [asdict(Mode(tuned=True, fused_attention=False))]},
        BEST: {**base, "by": "plain", "modes": [asdict(mode) for mode in best]},
        OURS: {**base, "by": "ours"},
        EQUAL_WORK: {**base, "by": "ours", "all_tokens": True},
        OURS_FLOAT32: {**base, "by": "ours", "precision": "32"},
    }


def notebook(machine: machines.Machine, args: argparse.Namespace) -> dict[str, Any]:
    """The notebook's network, trained in plain torch and by vitreous; comparisons as in `COMPARISONS`."""
    arms = notebook_arms(machine.precision == "bf16")
    result = race(arms, args.rounds, seed=args.seed, round_seconds=args.seconds, required=list(arms))
    batch = NETS[NOTEBOOK][-1]
    step_flops = 3 * batch * count_flops(create_model(NOTEBOOK))  # forward, and backward twice that
    comparisons = [
        {"baseline": baseline, "ours": ours, **compare(result.ms[baseline], result.ms[ours])}
        for baseline, ours in COMPARISONS
    ]
    for name, values in result.ms.items():
        print(f"{name:24} {statistics.median(values):7.0f} ms a step")
    for comparison in comparisons:
        print(
            f"{comparison['baseline']} takes {comparison_text(comparison)} times as long as {comparison['ours']}"
        )
    return {
        **result.record(),
        "batch": batch,
        "best_mode": {name: result.ready[BEST][name] for name in ("mode_text", "ms_by_mode")},
        "comparisons": comparisons,
        "products_ms": 1000 * step_flops / product_rate(machine),
    }


def default_step(machine: machines.Machine, args: argparse.Namespace) -> dict[str, Any]:
    """The default recipe's step on CIFAR-10, for each network size and each image size of its schedule.

    `products_alone` is the time of the step's matrix products and convolutions, each timed alone in torch at its own
    shapes, as a share of the step's time. They include those of attention and of the convolutions' backward pass,
    which the native kernels compute themselves.
    """
    rate, rows = product_rate(machine), []
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

            native_step = functools.partial(step, optimizer())
            plain(model).set_attention("explicit")
            torch_step = functools.partial(step, optimizer())
            with FlopCounterMode(display=False) as counter:
                torch_step()
            step_times: list[float] = []
            product_times: list[float] = []
            data_times: list[float] = []
            began = time.monotonic()
            while len(step_times) < MIN_TURNS or (
                len(step_times) < MAX_TURNS and time.monotonic() - began < TURN_SECONDS
            ):
                set_up(model, plan.machine)
                step_times.append(timed(native_step, repeats=3))
                plain(model).set_attention("explicit")  # products inside the kernels cannot be seen
                products, kinds = product_seconds(torch_step, repeats=3)
                product_times.append(products)
                fetching = timed(functools.partial(next, loader), repeats=1) + timed(prepared, repeats=3)
                data_times.append(fetching + timed(functools.partial(resized, images, phase.side), repeats=3))
            set_up(model, plan.machine)
            seconds = statistics.median(step_times)
            flops = counter.get_total_flops()
            rows.append(
                {
                    "embed_dim": size["embed_dim"],
                    "side": phase.side,
                    "batch": data.batch_size,
                    "ms": 1000 * seconds,
                    "gflop": flops / 1e9,
                    "share_of_product_rate": flops / seconds / rate,
                    "products_alone": compare(product_times, step_times),
                    "data_and_augmentation": statistics.median(data_times) / seconds,
                }
            )
            print(
                f"{size['embed_dim']} wide, {phase.side} pixels: {1000 * seconds:.0f} ms, its products alone "
                f"{comparison_text(rows[-1]['products_alone'])} of it",
                flush=True,
            )
            for product, repeats, description in kinds[:8]:
                print(f"    {1000 * product * repeats:6.1f} ms  {repeats} x {description}")
    return {"rows": rows}


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of `run`, after two runs to warm up."""
    run()
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def starts(_machine: machines.Machine, _args: argparse.Namespace) -> dict[str, Any]:
    """Seconds from a five-minute command to the end of its first step, three times; the first may be cold."""
    command = [sys.executable, "-u", "-m", "vitreous", "train", "cifar10", "--minutes", "5", "--judge", "val"]
    seconds = []
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
                if re.search(r"\bstep [\d,]+/", line):
                    break
            else:
                raise SystemExit(
                    "The training ended without a first step; run `vitreous train cifar10` to see why."
                )
            seconds.append(time.perf_counter() - start)
            process.kill()
            process.wait()
        print(f"first step {seconds[-1]:.1f} s after the command")
    return {"seconds": seconds}


if __name__ == "__main__":
    main()
