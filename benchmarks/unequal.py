"""Compares ways to train on unequal classes: the choices of `--balance`, and class weights, at several ratios.

    python benchmarks/unequal.py                              # all trainings that are not on record
    python benchmarks/unequal.py --cases cifar10-20           # those of one case
    python benchmarks/unequal.py --table                      # what is on record

CIFAR-10 is made unequal as by Cui et al. (arXiv 1901.05555): class sizes fall exponentially from 4,500 images to
4,500 / ratio. Another class is the largest with each seed. 500 other images of each class are the validation split, so
that the recall of a small class is known as well as that of a large one. From the recalls follow two figures: their
mean (balanced accuracy), and the accuracy on images whose classes are as unequal as those in training. The calibration
error is that of a part of validation whose classes are as unequal. TrashNet (six classes, 4.3 to 1) is cut anew with
each seed. Test stays unread.

`weights` is no choice of `--balance`: cross-entropy with each image weighted by the inverse of its class's frequency,
which was compared with it. The records are `unequal-CASE`, with the figures by arm and seed. `make leaderboard` makes
the table of docs/images.md from them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import add, computed_by, load, state
from torch import Tensor

import vitreous
from vitreous.data.sources import open_data
from vitreous.evaluation import figures_of, fit_temperature
from vitreous.machine import instruction_sets
from vitreous.run import Predictions, Run
from vitreous.training.classifier import Classifier

RATIOS = (3, 10, 20, 100)
CASES = (*(f"cifar10-{ratio}" for ratio in RATIOS), "trash")
ARMS = ("none", "weights", "loss", "sampler")
SEEDS = (42, 43)
FLOPS = 1e13
LARGEST, JUDGED = 4500, 500  # images of a class to train on, and to validate on
TRASH = Path("trash.zip")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="CASE")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="N")
    parser.add_argument(
        "--trash", type=Path, default=TRASH, help="TrashNet, as a zip or folder of class folders"
    )
    parser.add_argument(
        "--table", action="store_true", help="print the table of the records, and train nothing"
    )
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if not args.table:
        for seed in args.seeds:
            for case in args.cases:
                for arm in args.arms:
                    run(case, arm, seed, args.trash)
    print(table())


def run(case: str, arm: str, seed: int, trash: Path) -> None:
    """One training, unless it is on record; its figures are added to the record of the case."""
    if str(seed) in on_record(case).get(arm, {}):
        return
    source_state = state()
    data: Any = trash
    changes: dict[str, Any] = {"split_seed": seed, "val_fraction": 0.2}
    options: dict[str, Any] = {"image_size": 64}
    if case != "trash":
        data, changes, options = unequal_cifar10(float(case.partition("-")[2]), seed), {}, {}
    with tempfile.TemporaryDirectory() as folder, balance(arm) as choice:
        trained = vitreous.train(
            data,
            balance=choice,
            flops=FLOPS,
            seed=seed,
            judge="val",
            overrides=changes,
            out=Path(folder) / "run",
            **options,
        )
        machine = trained.resolved["machine"] | {"instruction_sets": instruction_sets()}
        found = with_new(case, arm, seed, figures(trained), source_state)
        add(
            f"unequal-{case}",
            study="unequal",
            arm="all",
            command=f"python benchmarks/unequal.py --cases {case}",
            data=case,
            path=computed_by(machine),
            machine=machine,
            versions={"vitreous": vitreous.__version__, "torch": torch.__version__},
            figures={"flops": FLOPS, "by_arm_and_seed": found},
            source_state=source_state,
            timing=False,
        )
    print(table(), flush=True)


def with_new(
    case: str, arm: str, seed: int, new: dict[str, Any], source_state: dict[str, Any]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures of a case on record and those of a new training, each with its own `commit` and `changed_since`.

    The record as a whole names the sources of the last training. Figures that were added before each had its own names
    get those that their record has now.
    """
    found = on_record(case)
    kept = next((record for record in load("unequal") if record["data"] == case), {})
    for entry in (entry for seeds in found.values() for entry in seeds.values()):
        if "commit" not in entry:
            entry |= {key: kept[key] for key in source_state}
    found.setdefault(arm, {})[str(seed)] = new | source_state
    return found


def on_record(case: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures of a case by arm and seed, as far as they are on record."""
    kept = next((record for record in load("unequal") if record["data"] == case), None)
    return kept["figures"]["by_arm_and_seed"] if kept else {}


def unequal_cifar10(ratio: float, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Training images of exponentially falling class sizes, and the same number of other images of each class."""
    train = open_data("cifar10").splits["train"]
    images, labels = np.asarray(train.images), np.asarray(train.labels)
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for place, label in enumerate(rng.permutation(10)):
        members = rng.permutation(np.flatnonzero(labels == label))
        size = round(LARGEST * ratio ** (-place / 9))
        parts["val"].append(members[:JUDGED])
        parts["train"].append(members[JUDGED : JUDGED + size])
        parts["test"].append(members[:1])  # never read
    chosen = {split: np.concatenate(part) for split, part in parts.items()}
    return {split: (images[part], labels[part]) for split, part in chosen.items()}


@contextmanager
def balance(arm: str) -> Iterator[str]:
    """The choice of `--balance` for an arm; "weights" exchanges the loss until the block ends."""
    if arm != "weights":
        yield arm
        return
    own: Callable[..., Tensor] = Classifier._loss
    Classifier._loss = weighted_loss  # type: ignore[method-assign]
    try:
        yield "loss"
    finally:
        Classifier._loss = own  # type: ignore[method-assign]


def weighted_loss(self: Classifier, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, times N / (C · images of its class), which is 1 on average over the images."""
    smoothing = self.recipe.training.label_smoothing
    weights = 1 / (len(self.prior) * self.prior)
    return weights[labels] * F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")


def figures(trained: Run) -> dict[str, Any]:
    """The figures of a run on validation; fractions from 0 to 1."""
    evaluation = trained.evaluation
    recalls = [entry["recall"] for entry in evaluation["val"]["per_class"]]
    counts = np.array(evaluation["training_images"])
    part = as_unequal_as(trained.predictions["val"], counts)
    temperature = fit_temperature(part.logits, part.labels)
    calibrated = replace(part, logits=part.logits / np.float32(temperature))
    return {
        "balanced_accuracy": statistics.mean(recalls),
        "accuracy": float(np.dot(recalls, counts) / counts.sum()),
        "macro_f1": evaluation["val"]["figures"]["cat_f1"],
        "ece": figures_of(part).scalars["ece"],
        "ece_calibrated": figures_of(calibrated).scalars["ece"],
        "temperature": temperature,
        "recalls": recalls,
        "training_images": counts.tolist(),
        "epochs": trained.summary["epochs"],
        "train_seconds": trained.summary["train_seconds"],
    }


def as_unequal_as(predictions: Predictions, counts: np.ndarray) -> Predictions:
    """The first images of each class of a split, as many as make its classes as unequal as `counts`."""
    sizes = np.bincount(predictions.labels, minlength=len(counts))
    share = (sizes / counts).min()
    kept = np.concatenate(
        [np.flatnonzero(predictions.labels == c)[: round(share * counts[c])] for c in range(len(counts))]
    )
    return Predictions(predictions.names[kept], predictions.labels[kept], predictions.logits[kept])


def table() -> str:
    """Mean over the seeds of each arm in percent, and in brackets its differences to `none`, seeds paired."""
    rows = [f"{'case':12} {'arm':8} {'balanced accuracy':>32} {'accuracy':>32}  calibration error"]
    for case in CASES:
        found = on_record(case)
        for arm in filter(found.__contains__, ARMS):
            cells = [f"{case:12} {arm:8}"]
            for key in ("balanced_accuracy", "accuracy"):
                mean = 100 * statistics.mean(entry[key] for entry in found[arm].values())
                paired = ", ".join(f"{change:+.1f}" for change in differences(found, arm, key))
                cells.append(f"{mean:8.1f} ({paired:>20})")
            error = 100 * statistics.mean(entry["ece_calibrated"] for entry in found[arm].values())
            rows.append("  ".join([*cells, f"{error:6.1f}"]))
    return "\n".join(rows)


def differences(found: dict[str, dict[str, dict[str, Any]]], arm: str, key: str) -> list[float]:
    """How much a figure of an arm is above that of `none`, in points, for each seed that both have."""
    none = found.get("none", {})
    return [100 * (entry[key] - none[seed][key]) for seed, entry in found[arm].items() if seed in none]


if __name__ == "__main__":
    main()
