"""Accuracy at a budget of training FLOPs over several seeds: trains, records each run and renews the tables.

    make bench-accuracy BUDGET=6e13
    make bench-accuracy BUDGET=6e13 DATA=cifar100 SEEDS="42 43 44" FINAL=1

Without `--final`, to choose a recipe: 45,000 images train, 5,000 validate, and the test split stays unread. With
`--final`, for a settled recipe: all 50,000 images train, and each run is evaluated on the test split once. Accuracies
from averaged views of the test images, mirrored and shifted, are extra columns (`averaged`).
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
from pathlib import Path

import leaderboard
import numpy as np
import torch
from record import add_replace_option, check_replacement, load, training

from vitreous.data.sources import open_data
from vitreous.run import Run


def main() -> None:
    args = make_parser().parse_args()
    judge = "test" if args.final else "val"
    before = {record["id"]: record for record in load()}
    accuracies = []
    ids = {seed: f"{args.name or default_name(args)}-seed{seed}" for seed in args.seeds}
    for seed, id in ids.items():
        check_replacement(id, command(args, seed), args.replace)
    for seed, id in ids.items():
        record = training(
            id,
            train_words(args, seed),
            command(args, seed),
            study=before.get(id, {}).get("study", "final" if args.final else "choose"),
            arm=before.get(id, {}).get("arm", ", ".join(args.overrides) or "default"),
            more=averaged if args.final else lambda run: {},
            keep=args.keep / id if args.keep else None,
            replace=args.replace,
        )
        accuracies.append(record["figures"][f"{judge}_acc"])
    print(
        f"{args.data} at {args.flops} FLOPs, {judge} accuracy of {len(accuracies)} runs: median "
        f"{statistics.median(accuracies):.4f}, from {min(accuracies):.4f} to {max(accuracies):.4f}"
    )
    leaderboard.main()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", metavar="cifar10|cifar100")
    parser.add_argument("--flops", default="6e13", help="training FLOPs of each run (default: 6e13)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--final", action="store_true", help="train on everything and read test, once a run")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--name", help="the id of each record is NAME-seedSEED (default: from the options)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the run folders here, and continue interrupted ones"
    )
    add_replace_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for vitreous train")
    return parser


def default_name(args: argparse.Namespace) -> str:
    """The id without its seed: the data, the recipe, each override without its section, the budget, the split."""
    parts = (word.partition("=") for word in args.overrides)
    changes = "".join(f"-{key.rpartition('.')[2]}{value}" for key, _, value in parts)
    changes = re.sub(r"[^\w.-]", "", changes)
    judge = "test" if args.final else "val"
    return f"{args.data}-{args.recipe}{changes}-{float(args.flops):.2g}-{judge}".replace("+", "")


def train_words(args: argparse.Namespace, seed: int) -> list[str]:
    """The arguments of `vitreous train`."""
    judge = "test" if args.final else "val"
    words = [args.data, *args.overrides, "--recipe", args.recipe, "--flops", args.flops]
    return [*words, "--seed", str(seed), "--judge", judge]


def command(args: argparse.Namespace, seed: int) -> str:
    """The command that makes one record again."""
    words = ["python", "benchmarks/accuracy.py", *args.overrides]
    parser = make_parser()
    for option in ("data", "recipe"):
        if getattr(args, option) != parser.get_default(option):
            words += [f"--{option}", getattr(args, option)]
    words += ["--flops", args.flops, "--seeds", str(seed), *(["--final"] if args.final else [])]
    return shlex.join([*words, *(["--name", args.name] if args.name else [])])


def averaged(run: Run) -> dict[str, float]:
    """Test accuracies from mean logits over changed copies of each image, for columns of their own.

    `test_acc_with_flips` takes the image and its mirror image. `test_acc_with_shifts` takes both, and both moved by one
    pixel towards two opposite corners, with half of the weight on those that were not moved, as airbench does
    (Jordan, arXiv 2404.00498).
    """
    test = open_data(str(run.resolved["request"]["data"]), None, say=print).splits["test"]
    images, labels = np.asarray(test.images), torch.as_tensor(np.asarray(test.labels))

    def logits(images: np.ndarray) -> torch.Tensor:
        both = (images, np.ascontiguousarray(images[:, :, ::-1]))
        return torch.stack([run.bundle.logits(view) for view in both]).mean(0)

    flips = logits(images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    shifts = [
        logits(np.ascontiguousarray(padded[:, at:, at:][:, : images.shape[1], : images.shape[2]]))
        for at in (0, 2)
    ]
    moved = flips / 2 + (shifts[0] + shifts[1]) / 4
    means = {"flips": flips, "shifts": moved}
    return {
        f"test_acc_with_{name}": (mean.argmax(1) == labels).float().mean().item()
        for name, mean in means.items()
    }


if __name__ == "__main__":
    main()
