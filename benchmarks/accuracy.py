"""Accuracy at a budget of training FLOPs, over seeds: trains, keeps a record of each run, renews the leaderboard.

    make bench-accuracy BUDGET=6e13
    make bench-accuracy BUDGET=6e13 DATA=cifar100 SEEDS="42 43 44" FINAL=1

Without `--final`, for choosing: 45,000 pictures are trained on, 5,000 judge, test stays unread. With it, for a recipe
that is settled: all 50,000 are trained on and each run reads test once.
"""

from __future__ import annotations

import argparse
import re
import statistics

import leaderboard
import numpy as np
import torch
from record import training

from vitreous.data.sources import open_data
from vitreous.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", metavar="cifar10|cifar100")
    parser.add_argument("--flops", default="6e13", help="training FLOPs of each run (default: 6e13)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--final", action="store_true", help="train on everything and read test, once a run")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for vitreous train")
    args = parser.parse_args()
    changes = re.sub(r"[^\w.-]", "", "".join(f"-{word.rpartition('.')[2]}" for word in args.overrides))
    found = []
    for seed in args.seeds:
        judge = "test" if args.final else "val"
        name = f"{args.data}-{args.recipe}{changes}-{float(args.flops):.2g}-{judge}-seed{seed}".replace(
            "+", ""
        )
        words = [args.data, *args.overrides, "--recipe", args.recipe, "--flops", args.flops]
        final = ["--final"] if args.final else []
        command = [
            "python",
            "benchmarks/accuracy.py",
            *args.overrides,
            "--data",
            args.data,
            "--recipe",
            args.recipe,
        ]
        command += ["--flops", args.flops, "--seeds", str(seed), *final]
        record = training(
            name,
            [*words, "--seed", str(seed), "--judge", judge],
            " ".join(command),
            with_flips if args.final else lambda run: {},
        )
        found.append(record["figures"][f"{judge}_acc"])
    print(
        f"{args.data} at {args.flops} FLOPs, {judge} accuracy of {len(found)} runs: median "
        f"{statistics.median(found):.4f}, from {min(found):.4f} to {max(found):.4f}"
    )
    leaderboard.main()


def with_flips(run: Run) -> dict[str, float]:
    """Test accuracy when logits of each picture and its mirror image are averaged; for a column of its own."""
    test = open_data(str(run.resolved["request"]["data"]), None, say=print).splits["test"]
    images = np.asarray(test.images)
    logits = run.bundle.logits(images) + run.bundle.logits(np.ascontiguousarray(images[:, :, ::-1]))
    labels = torch.as_tensor(np.asarray(test.labels))
    return {"test_acc_with_flips": (logits.argmax(1) == labels).float().mean().item()}


if __name__ == "__main__":
    main()
