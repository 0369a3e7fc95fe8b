"""What to do next with a model: each rule looks at one thing that a run's figures can show.

A rule returns None unless the figures show it beyond what chance explains, with 95 % intervals wherever images are
counted. The thresholds below say what is large enough to act on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitreous.balance import is_unequal
from vitreous.calibration import Bin, calibration_error, error_by_chance
from vitreous.statistics import digits_of, interval
from vitreous.wording import count, series, shortened

FEW_IMAGES = 100  # training images of a class
CONTRADICTED, SURE = 0.02, 0.9  # probabilities of the label and of the predicted class
CONTRADICTIONS = 0.005  # share of images with such labels
CONFLICTS = 0.001  # share of images with copies that have another label
RISING_SINCE, FLAT_SINCE = 0.8, 0.5  # shares of the run
ENOUGH_VALIDATIONS = 4
LOSS_RISE = 1.1  # times the lowest validation loss
NOISE = 4.0  # standard deviations of the mean of neighbouring validations
MISCALIBRATED = 0.03
UNCERTAIN = 0.06  # width of the interval of an accuracy
OFF_PLAN = 0.25  # of the epochs that were planned


class Advice(NamedTuple):
    """What the figures show, what to do, and the command or recipe keys for it ("" where there is none)."""

    shows: str
    step: str
    command: str = ""


def diverged(command: str) -> Advice:
    """The advice for a run that is marked as diverged; `command` trains with a smaller learning rate."""
    return Advice(
        "The training diverged: the loss is worse than that of guessing.",
        "Train again with a smaller learning rate.",
        command,
    )


def far_from_plan(summary: Mapping[str, Any], resolved: Mapping[str, Any]) -> Advice | None:
    """A run of minutes made far fewer or far more epochs than were forecast at its start.

    Args:
        summary: with `epochs` and, unless the run is an old one, `planned_epochs`.
        resolved: the `[resolved]` table of the run. A repeat made no forecast of its own. `dial` holds each key of the
            recipe that the dial chose, as in "augment.crop", with its value at each fit of the run's length.
    """
    if "repeats" in resolved:
        return None
    made, planned = summary.get("epochs"), summary.get("planned_epochs")
    if summary.get("status") != "finished" or not made or not planned or abs(made / planned - 1) <= OFF_PLAN:
        return None
    epochs, forecast = (f"{number:,.1f}" if number >= 1 else f"{number:.2g}" for number in (made, planned))
    speed = "slower" if made < planned else "faster"
    shows = f"The machine was {speed} than forecast: {epochs} epochs instead of {forecast}."
    dial = resolved.get("dial", {})
    changed = {key.partition(".")[0] for key, values in dial.items() if any(v != values[0] for v in values)}
    again = [
        name
        for section, name in (("augment", "augmentation"), ("optimizer", "weight decay"))
        if section in changed
    ]
    if again:
        shows += (
            f" {series(again).capitalize()} {'was' if len(again) == 1 else 'were'} chosen again for them."
        )
    if any(key.startswith("model.") for key in dial):
        shows += " The network keeps the size that was chosen for the forecast."
    return Advice(
        shows,
        "For the best of these minutes, train again while the machine does nothing else. A budget of FLOPs or epochs "
        "does not depend on its speed.",
    )


def no_better_than_guessing(correct: int, images: int, majority: float) -> Advice | None:
    """The interval of the accuracy reaches down to the share of the largest class."""
    if interval(correct, images)[0] > majority:
        return None
    return Advice(
        "The model is not measurably better than always guessing the largest class.",
        "Look whether images and labels fit together, and train longer.",
        "vitreous data show DATA",
    )


def copies_across(split: str, copies: int, images: int) -> Advice | None:
    """Images of a held-out split have copies in training."""
    if not copies:
        return None
    have = "has a copy" if copies == 1 else "have copies"
    return Advice(
        f"{copies:,} of {count(images, f'{split} image')} {have} in training, which flatters the figures.",
        "Use the accuracy without them, which is under Copies.",
        "vitreous data check DATA --all",
    )


def conflicting_copies(conflicts: int, images: int) -> Advice | None:
    """Copies of one image have different labels, and they are more than a curiosity among all `images`."""
    if not conflicts or conflicts < CONFLICTS * images:
        return None
    have = "image has a copy" if conflicts == 1 else "images have copies"
    return Advice(
        f"{conflicts:,} {have} with another label, so at least one label of each pair is wrong.",
        "Look at them under Copies, and correct or remove them.",
        "vitreous data check DATA --all",
    )


def labels_contradicted(contradicted: Mapping[str, tuple[int, int]]) -> Advice | None:
    """More than a few labels have nearly no probability.

    Args:
        contradicted: for each split by name, how many probable label errors have a label with a probability below
            `CONTRADICTED` and a prediction with one of at least `SURE`, and the number of images.
    """
    number, images = (sum(part[i] for part in contradicted.values()) for i in (0, 1))
    if not images or interval(number, images)[0] <= CONTRADICTIONS:
        return None
    parts = series([f"{found:,} of {total:,} {split}" for split, (found, total) in contradicted.items()])
    return Advice(
        f"The network is sure of another class than the label for {parts} images, so some labels may be wrong.",
        "Look at them under Probable label errors, and correct the wrong labels.",
    )


def few_images(
    classes: Sequence[str],
    training: Sequence[int],
    hits: Sequence[int],
    support: Sequence[int],
) -> Advice | None:
    """Classes with few training images are recognised less often than the others.

    Args:
        training: training images of each class.
        hits, support: correct and all images of each class on the split that is shown.
    """
    total, right = sum(support), sum(hits)
    weak = [
        i
        for i in range(len(classes))
        if training[i] < FEW_IMAGES
        and support[i]
        and total > support[i]
        and interval(hits[i], support[i])[1] < interval(right - hits[i], total - support[i])[0]
    ]
    if not weak:
        return None
    weak.sort(key=lambda i: hits[i] / support[i])
    shown = shortened([f"{classes[i]} ({count(training[i], 'image')})" for i in weak], 3)
    return Advice(
        f"Few training images and a recall below that of the other classes: {shown}.",
        f"Add images of {'this class' if len(weak) == 1 else 'these classes'}, at least {FEW_IMAGES} in all, and train "
        "again.",
        "vitreous train DATA",
    )


def unequal_classes(
    training: Sequence[int], hits: Sequence[int], support: Sequence[int], balanced: str
) -> Advice | None:
    """The classes with fewer images than the median are recognised less often than those with more.

    Args:
        balanced: the command that trains with balanced classes; "" where the run did.
    """
    known = np.asarray(training)
    if not known.all() or not is_unequal(training):
        return None
    right, images = np.asarray(hits), np.asarray(support)
    small = known < np.median(known)
    parts = [(int(right[part].sum()), int(images[part].sum())) for part in (small, ~small)]
    if not all(total for _, total in parts) or interval(*parts[0])[1] >= interval(*parts[1])[0]:
        return None
    few, many = (100 * correct / total for correct, total in parts)
    return Advice(
        f"Classes are unequal: the largest has {known.max() / known.min():.0f} times as many training images as the "
        f"smallest, and {few:.0f} % of the images of the smaller classes are recognised, {many:.0f} % of the others.",
        "Judge by Recall (macro), which counts each class alike, and add images of the smaller classes."
        + (
            " Balanced training recognises them more often, and the larger classes less often."
            if balanced
            else ""
        ),
        balanced or "vitreous data check DATA",
    )


def still_rising(validations: Sequence[tuple[float, float]], images: int, longer: str) -> Advice | None:
    """Validation accuracy at the end is above the interval of that at `RISING_SINCE` of the run.

    Args:
        validations: (step, accuracy) in order.
        images: of the validation split.
        longer: the option that doubles the budget.
    """
    if len(validations) < ENOUGH_VALIDATIONS or not images:
        return None
    last_step, last = validations[-1]
    earlier = [accuracy for step, accuracy in validations if step <= RISING_SINCE * last_step]
    if not earlier or last <= interval(round(earlier[-1] * images), images)[1]:
        return None
    digits = digits_of(images)
    return Advice(
        f"Validation accuracy was still rising: from {100 * earlier[-1]:.{digits}f} to {100 * last:.{digits}f} % in "
        "the last part of the run.",
        "Train twice as long.",
        longer,
    )


def long_flat(validations: Sequence[tuple[float, float]], images: int, shorter: str) -> Advice | None:
    """Validation accuracy has stayed within the interval of its last value for more than half of the run.

    Args:
        shorter: the option that halves the budget.
    """
    if len(validations) < ENOUGH_VALIDATIONS or not images:
        return None
    last_step, last = validations[-1]
    low, high = interval(round(last * images), images)
    since = last_step
    for step, accuracy in reversed(validations):
        if not low <= accuracy <= high:
            break
        since = step
    if (
        since > (1 - FLAT_SINCE) * last_step
        or sum(step >= since for step, _ in validations) < ENOUGH_VALIDATIONS
    ):
        return None
    return Advice(
        f"Validation accuracy has not changed measurably since step {since:,.0f} of {last_step:,.0f}.",
        "More time will not help. For comparisons, half the budget does. For a better model, add images.",
        shorter,
    )


def overfitted(losses: Sequence[tuple[float, float]], stronger: str) -> Advice | None:
    """Validation loss has risen from its lowest value, and stayed above it.

    Args:
        losses: (step, validation loss) in order.
        stronger: recipe keys of a stronger augmentation.
    """
    if len(losses) < ENOUGH_VALIDATIONS:
        return None
    # Single validations are noisy, and the lowest of many is low by chance. So means of neighbours are compared.
    values, width = np.array([loss for _, loss in losses]), max(len(losses) // 8, 2)
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    changes = np.diff(values)
    spread = 1.4826 * np.median(
        np.abs(changes - np.median(changes))
    )  # of the normal distribution with this median
    noise = float(spread / np.sqrt(2 * width))
    lowest = int(means.argmin())
    if len(means) - 1 - lowest < width or means[-1] < LOSS_RISE * means[lowest]:
        return None
    if means[-1] - means[lowest] < NOISE * noise:
        return None
    return Advice(
        f"Validation loss has risen by {100 * (means[-1] / means[lowest] - 1):.0f} % since about step "
        f"{losses[lowest + width - 1][0]:,.0f}: the network learns its training images by heart.",
        "Add images, or train with stronger augmentation.",
        stronger,
    )


def poorly_calibrated(bins: Sequence[Bin], hold_out: str = "") -> Advice | None:
    """The calibration error after the temperature is large, and larger than chance explains.

    Args:
        hold_out: the command that trains with validation held out; "" if it was, so that thresholds were counted.
    """
    error = calibration_error(bins)
    if error < MISCALIBRATED or error <= error_by_chance(bins):
        return None
    sure = sum(each.correct - each.images * each.confidence for each in bins) < 0
    shows = (
        f"Confidence and accuracy differ by {100 * error:.0f} points on average. The network is too "
        f"{'sure' if sure else 'careful'}."
    )
    if hold_out:
        return Advice(shows, "Hold out validation images, on which confidences can be calibrated.", hold_out)
    return Advice(
        shows,
        "Accept predictions by a threshold whose accuracy was counted, not by the confidence itself.",
        "vitreous predict RUN IMAGES --reject 0.9",
    )


def worse_on_test(val: tuple[int, int], test: tuple[int, int]) -> Advice | None:
    """Test accuracy is below that of validation, and their intervals do not meet; both are (correct, images)."""
    if interval(*test)[1] >= interval(*val)[0]:
        return None
    return Advice(
        "Test accuracy is clearly below validation accuracy, so the test images differ from those of training.",
        "Look at both, and add training images that are like those of the test.",
        "vitreous data show DATA",
    )


def uncertain(split: str, correct: int, images: int, command: str) -> Advice | None:
    """The interval of the accuracy is wide; `command` holds out more images, and is "" if that is not possible."""
    low, high = interval(correct, images)
    if high - low <= UNCERTAIN:
        return None
    return Advice(
        f"{count(images, f'{split} image')} {'leaves' if images == 1 else 'leave'} the accuracy uncertain by about "
        f"{100 * (high - low) / 2:.0f} points either way. Smaller differences between runs mean nothing.",
        "Hold out a larger share of the images." if command else f"Add labelled images to the {split} split.",
        command,
    )
