"""A training step of this version beside another version's, in pairs.

    python benchmarks/pairs.py OTHER/src --width 96 --pairs 30

OTHER is a checkout of another version. Each version has a process of its own; in every pair both run a few steps, in
an order that is drawn anew. Leave the machine alone meanwhile. The record holds this version's time as a multiple of
the other's: the median, and its 95 % interval by bootstrap.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

STEPS = 4  # in each turn
BATCH, SIDE = 256, 32
THIS, OTHER = "this", "other"


def main() -> None:
    args = make_parser().parse_args()
    if args.work:
        serve_steps(args.width, args.precision == "bf16")
    else:
        measure(args)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="src of the other version")
    parser.add_argument(
        "--width", type=int, default=96, help="of the network, as the dial sizes it (default: 96)"
    )
    parser.add_argument("--precision", default="bf16", choices=("bf16", "32"))
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument(
        "--replace", action="store_true", help="replace a record with this id that another command made"
    )
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    return parser


def measure(args: argparse.Namespace) -> None:
    """Times both versions in pairs and writes the record."""
    # Imported here, because a process of the other version must not load this one's modules.
    import record
    from race import compare, random_orders

    from vitreous.machine import instruction_sets, processor

    precision = {"32": "float32"}.get(args.precision, args.precision)
    id = f"pairs-{args.width}-{args.precision}"
    command = (
        f"python benchmarks/pairs.py OTHER/src --width {args.width} --precision {args.precision} "
        f"--pairs {args.pairs}"
    )
    record.check_replacement(id, command, args.replace)
    source_state = record.state()
    other_state = state_of_other(args.other)
    seconds: dict[str, list[float]] = {THIS: [], OTHER: []}
    orders = random_orders([THIS, OTHER], args.pairs, seed=0)
    source = Path(__file__).parent.parent / "src"
    with version(source, args) as this, version(args.other, args) as other:
        processes = {THIS: this, OTHER: other}
        for order in orders:
            for name in order:
                seconds[name].append(step_seconds(processes[name]))
    ratio = compare(seconds[THIS], seconds[OTHER])
    low, high = ratio["interval"]
    figures = {
        "other_ms": 1000 * statistics.median(seconds[OTHER]),
        "this_ms": 1000 * statistics.median(seconds[THIS]),
        "ratio": ratio["median"],
        "low": low,
        "high": high,
    }
    print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    ratios = [this / other for this, other in zip(seconds[THIS], seconds[OTHER], strict=True)]
    record.add(
        id,
        study="pairs",
        arm=f"{args.width} wide, {precision}",
        path=f"native, {precision}",
        command=command,
        machine={"name": processor(), "instruction_sets": instruction_sets()},
        versions={"torch": torch.__version__},
        figures=figures | {"ratios": ratios},
        source_state=source_state,
        replace=args.replace,
        **other_state,
        note="OTHER is a checkout of the commit in `other`, with the changes in `other_changed_since`.",
    )


def state_of_other(source: Path) -> dict[str, Any]:
    """The other version's commit, and the files of its `src` that differ from it.

    Raises:
        SystemExit: `source` is in no git checkout, so a record could not say what was timed.
    """
    import record

    try:
        commit = record.git("rev-parse", "HEAD", folder=source).strip()
        changed = record.changed_files(".", folder=source)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(f"{source} is in no git checkout, so its version is unknown.") from None
    if changed:
        print(f"{source} has uncommitted changes: {', '.join(changed)}")
    return {"other": commit, "other_changed_since": changed}


@contextlib.contextmanager
def version(source: Path, args: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    """A process that serves steps of the version whose `src` is `source`."""
    command = [sys.executable, __file__, str(source), "--work"]
    command += ["--width", str(args.width), "--precision", args.precision]
    environment = os.environ | {"PYTHONPATH": str(source.resolve())}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"The version in {source} does not run; its error is above.")
        yield process
        process.kill()


def step_seconds(process: subprocess.Popen[str]) -> float:
    """Lets a process run a turn; returns the seconds of one step."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def serve_steps(width: int, bf16: bool) -> None:
    """Runs a turn for each line that it reads, using only what every version has."""
    from vitreous import dial
    from vitreous import machine as machines
    from vitreous import recipe as recipes
    from vitreous.model.vit import VisionTransformer
    from vitreous.training.classifier import make_optimizer

    memory = machines.keep_memory()
    if hasattr(memory, "__enter__"):
        memory.__enter__()
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
    except ImportError:  # in early versions the kernels were an attention path
        from vitreous.training.classifier import counted_noise  # type: ignore[attr-defined]

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
