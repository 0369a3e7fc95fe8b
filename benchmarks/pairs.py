"""A training step of this version against another's, in pairs: each process does a few steps in turn.

    python benchmarks/pairs.py OTHER/src --width 96 --pairs 30

OTHER is a checkout of another version. Leave the machine alone meanwhile. Writes `records/pairs-WIDTH-PRECISION`: the
ratio of this version's step to the other's, its median and the 95 % interval of that median by bootstrap.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

STEPS = 4  # in turn
BATCH, SIDE = 256, 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="src of the other version")
    parser.add_argument("--width", type=int, default=96, help="of the dial's sizes (default: 96)")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "32"))
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.width, args.precision == "bf16")
        return
    here = Path(__file__).parent.parent / "src"
    with worker(args.other, args) as old, worker(here, args) as new:
        times = []
        for number in range(args.pairs):
            pair = (
                [(old, steps(old)), (new, steps(new))]
                if number % 2
                else [(new, steps(new)), (old, steps(old))]
            )
            times.append(dict(pair))
    ratios = [each[new] / each[old] for each in times]
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(4000))
    found = {
        "other_ms": 1000 * statistics.median(each[old] for each in times),
        "this_ms": 1000 * statistics.median(each[new] for each in times),
        "ratio": statistics.median(ratios),
        "low": medians[100],
        "high": medians[3899],
    }
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    from record import RECORDS, write

    from vitreous.machine import instruction_sets, processor

    write(
        RECORDS / f"pairs-{args.width}-{args.precision}",
        f"python benchmarks/pairs.py OTHER/src --width {args.width} --precision {args.precision} "
        f"--pairs {args.pairs}",
        machine={"name": processor(), "instruction_sets": instruction_sets()},
        versions={"torch": torch.__version__},
        other=subprocess.run(
            ["git", "-C", str(args.other), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        figures=found,
        ratios=ratios,
    )


@contextlib.contextmanager
def worker(source: Path, args: argparse.Namespace):
    command = [sys.executable, __file__, str(source), "--work"]
    command += ["--width", str(args.width), "--precision", args.precision]
    environment = os.environ | {"PYTHONPATH": str(source.resolve())}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == "ready"
        yield process
        process.kill()


def steps(process: subprocess.Popen[str]) -> float:
    """Seconds of a step."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def work(width: int, bf16: bool) -> None:
    """Does steps whenever it is told to; of what both versions have."""
    from vitreous import dial
    from vitreous import machine as machines
    from vitreous import recipe as recipes
    from vitreous.model.vit import VisionTransformer
    from vitreous.training.classifier import make_optimizer

    kept = machines.keep_memory()
    if hasattr(kept, "__enter__"):
        kept.__enter__()
    recipe = recipes.load("default")
    size = next(size for _, size in dial.SIZES if size["embed_dim"] == width)
    torch.manual_seed(0)
    model = VisionTransformer(dataclasses.replace(recipe.model, **size), SIDE, 10).train()
    samples = torch.arange(BATCH)
    try:
        from vitreous.model.dropout import keyed_noise
        from vitreous.native.accelerate import accelerate

        accelerate(model)
        noise = lambda step: keyed_noise(model, 42, step, samples)  # noqa: E731
    except ImportError:  # the kernels were an attention path once
        from vitreous.training.classifier import counted_noise

        model.set_attention("native")
        noise = lambda step: counted_noise(42, step, torch.device("cpu"))  # noqa: E731
    optimizer = make_optimizer(model, recipe.optimizer, bf16=bf16)
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, 10, (BATCH,))

    def step(number: int) -> None:
        with noise(number), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()

    for number in range(3):
        step(number)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for number in range(STEPS):
            step(number)
        print((time.perf_counter() - start) / STEPS, flush=True)


if __name__ == "__main__":
    main()
