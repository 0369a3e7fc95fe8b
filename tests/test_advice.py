"""Each rule on runs that show what it looks for, and on runs where chance explains it."""

from __future__ import annotations

import numpy as np
import pytest

from vitreous import advice
from vitreous.advice import Advice
from vitreous.calibration import Bin, probabilities_of, reliability

ABC = ("a", "b", "c")


def curve(values: list[float]) -> list[tuple[float, float]]:
    return [(100.0 * (i + 1), value) for i, value in enumerate(values)]


def calibrated_bins(images: int, sharpness: float) -> list[Bin]:
    """Bins of perfect confidences that are then sharpened."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(images, 5)) * 2
    labels = (probabilities_of(logits).cumsum(axis=1) < rng.random((images, 1))).sum(axis=1).clip(max=4)
    return reliability(probabilities_of(logits, 1 / sharpness), labels)


NOISY = (np.random.default_rng(1).normal(size=60) * 0.03).tolist()

SHOWN: dict[str, Advice | None] = {
    "guessing": advice.no_better_than_guessing(55, 100, 0.5),
    "copies": advice.copies_across("test", 3, 100),
    "conflict": advice.conflicting_copies(4, 2000),
    "labels": advice.labels_contradicted({"validation": (12, 500), "test": (9, 500)}),
    "few": advice.few_images(ABC, [20, 900, 900], [10, 95, 95], [30, 100, 100]),
    "unequal": advice.unequal_classes([200, 900, 900], [50, 95, 95], [100, 100, 100], ""),
    "rising": advice.still_rising(curve([0.4, 0.5, 0.6, 0.65, 0.7, 0.75]), 5000, "--minutes 10"),
    "flat": advice.long_flat(curve([0.5, 0.7, 0.8, 0.81, 0.8, 0.805, 0.81, 0.81]), 1000, "--minutes 2"),
    "overfitted": advice.overfitted(curve([1.0, 0.6, 0.5, 0.52, 0.6, 0.7, 0.8, 0.9]), "mixup=0.5"),
    "noisy overfitted": advice.overfitted(
        curve([0.5 + 0.01 * i + n for i, n in enumerate(NOISY)]), "mixup=0.5"
    ),
    "calibration": advice.poorly_calibrated(calibrated_bins(4000, 2.0)),
    "test below": advice.worse_on_test((900, 1000), (700, 1000)),
    "uncertain": advice.uncertain("test", 80, 100, "val_fraction=0.2"),
}

HIDDEN: dict[str, Advice | None] = {
    "guessing": advice.no_better_than_guessing(75, 100, 0.5),
    "copies": advice.copies_across("test", 0, 100),
    "conflict": advice.conflicting_copies(0, 2000),
    "a single conflict": advice.conflicting_copies(1, 60_000),
    "two labels of few images": advice.labels_contradicted({"test": (2, 500)}),
    "no images": advice.labels_contradicted({}),
    "few, but as good": advice.few_images(ABC, [20, 900, 900], [27, 95, 95], [30, 100, 100]),
    "few, seen too seldom": advice.few_images(ABC, [20, 900, 900], [2, 95, 95], [3, 100, 100]),
    "weak, but many": advice.few_images(ABC, [900, 900, 900], [10, 95, 95], [30, 100, 100]),
    "equal": advice.unequal_classes([900, 900, 900], [50, 95, 95], [100, 100, 100], ""),
    "unequal, but as good": advice.unequal_classes([200, 900, 900], [94, 95, 95], [100, 100, 100], ""),
    "rising by chance": advice.still_rising(curve([0.4, 0.7, 0.72, 0.73, 0.74, 0.75]), 300, ""),
    "rising early": advice.still_rising(curve([0.4, 0.6, 0.7, 0.75, 0.75, 0.75]), 5000, ""),
    "short": advice.still_rising(curve([0.4, 0.8]), 5000, ""),
    "still moving": advice.long_flat(curve([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8]), 1000, ""),
    "flat at the end": advice.long_flat(curve([0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 0.8, 0.8]), 1000, ""),
    "falling loss": advice.overfitted(curve([1.0, 0.8, 0.7, 0.6, 0.5, 0.45, 0.44]), ""),
    "noisy loss": advice.overfitted(curve([0.5 + 4 * n for n in NOISY]), ""),
    "calibrated": advice.poorly_calibrated(calibrated_bins(4000, 1.0)),
    "few images to calibrate": advice.poorly_calibrated(calibrated_bins(60, 1.0)),
    "test like validation": advice.worse_on_test((90, 100), (85, 100)),
    "test above": advice.worse_on_test((700, 1000), (900, 1000)),
    "certain": advice.uncertain("test", 8000, 10000, ""),
}


@pytest.mark.parametrize("case", SHOWN)
def test_what_the_figures_show_is_said_with_a_step(case: str) -> None:
    shown = SHOWN[case]
    assert shown is not None
    assert shown.shows.endswith(".") and shown.step.endswith(".")


@pytest.mark.parametrize("case", HIDDEN)
def test_what_chance_explains_is_not_said(case: str) -> None:
    assert HIDDEN[case] is None


def test_texts_name_the_figures() -> None:
    few = SHOWN["few"]
    assert few and "a (20 images)" in few.shows and "this class" in few.step
    flat = SHOWN["flat"]
    assert flat and "since step 300 of 800" in flat.shows and flat.command == "--minutes 2"
    labels = SHOWN["labels"]
    assert labels and "12 of 500 validation and 9 of 500 test images" in labels.shows
    calibration = SHOWN["calibration"]
    assert calibration and "too sure" in calibration.shows


def test_a_run_far_from_its_plan() -> None:
    dial = {
        "model.embed_dim": [96],
        "augment.crop": [4, 3, 2],
        "augment.cutout": [0, 0, 0],
        "optimizer.weight_decay": [0.3, 0.3, 0.3],
    }
    resolved = {"dial": dial}
    run = {"status": "finished", "planned_epochs": 38.04, "epochs": 8.6}
    found = advice.far_from_plan(run, resolved)
    assert found and found.shows == (
        "The machine was slower than forecast: 8.6 epochs instead of 38.0. Augmentation was chosen again for them. "
        "The network keeps the size that was chosen for the forecast."
    )
    fast = advice.far_from_plan({**run, "epochs": 50}, {})
    assert fast and fast.shows == "The machine was faster than forecast: 50.0 epochs instead of 38.0."
    short = advice.far_from_plan(
        {**run, "epochs": 0.0476, "planned_epochs": 0.1429},
        {"dial": {**dial, "optimizer.weight_decay": [0.3, 0.3, 0.2]}},
    )
    assert short and short.shows.startswith(
        "The machine was slower than forecast: 0.048 epochs instead of 0.14. Augmentation and weight decay were"
    )
    assert advice.far_from_plan({**run, "epochs": 30}, resolved) is None
    assert advice.far_from_plan({**run, "epochs": 46}, resolved) is None
    assert advice.far_from_plan({**run, "status": "interrupted"}, resolved) is None
    assert (
        advice.far_from_plan({"status": "finished", "epochs": 3}, resolved) is None
    )  # of an earlier version
    unchanged = advice.far_from_plan(
        {**run, "epochs": 3, "planned_epochs": 5}, {"dial": {"augment.crop": [2, 2]}}
    )
    assert unchanged and unchanged.shows == "The machine was slower than forecast: 3.0 epochs instead of 5.0."
    assert advice.far_from_plan(run, {**resolved, "repeats": "runs/a"}) is None  # which made no forecast
