"""A run as one HTML page, made from those files of the run folder that exist."""

from __future__ import annotations

import base64
import io
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from vitreous import advice, charts
from vitreous.advice import Advice
from vitreous.attribution import heat_map
from vitreous.balance import is_unequal
from vitreous.calibration import Bin, calibration_error, probabilities_of, reliability
from vitreous.charts import NO_VALUE, number, percent
from vitreous.confusion import confusions, groups_of
from vitreous.dial import strengths_at
from vitreous.errors import VitreousError
from vitreous.files import atomic_write
from vitreous.label_errors import Suspects, find_suspects, suspects_csv
from vitreous.metrics import FIGURES, FINAL_FIGURES, in_order
from vitreous.model.summary import count_flops
from vitreous.request import OPTIONS, READING
from vitreous.run import Run
from vitreous.statistics import accuracy_text, digits_of, interval, mean_recall_interval
from vitreous.training.schedule import Timeline, phases
from vitreous.wording import duration

MAX_MISTAKES = 24
MAX_SUSPECTS = 12  # of each split
MAX_MATRIX_CLASSES = (
    24  # larger matrices are drawn as an image, with a table for each group of confused classes
)
MAX_GROUPS = 12
MAX_CLASS_BARS, OPEN_CLASS_BARS = 200, 24
MAX_PAIRS, WORST_PAIRS = 12, 3
OPEN_ADVICE = 4
HEAT_FLOPS = (
    5e11  # for all heat maps of a report: some seconds on two cores, and the same number of maps on any
)
FAINT = 0.05  # the drop of a probability from which a heat map has its full colour
SPLITS = {"test": "test", "val": "validation"}

# Correct and wrong in the image of a large confusion matrix; legible on light and dark backgrounds.
RIGHT, WRONG = (13, 148, 136), (234, 88, 12)
FOR, AGAINST = (220, 30, 40), (30, 90, 240)  # in heat maps


def write_report(path: Path) -> Path:
    """Writes `report.html` into the run folder `path` and returns its path.

    The page is self-contained: no script, no request, images inside. A run that was interrupted, or one of an earlier
    version, is reported with the files it has. Probable label errors are written beside it as `label-errors.csv`. No
    image of the test split is read for it.

    Raises:
        VitreousError: `path` is not a run folder, one of its files is damaged, or the page cannot be written.
    """
    run = Run(path)
    recipe = {key: value for key, value in run.tables.items() if key != "resolved"}
    resolved = run.tables.get("resolved", {})
    request = resolved.get("request", {})
    summary = run.summary if run.has("summary.json") else {}
    rows = _logged_rows(run)
    evaluation = run.evaluation if run.has("evaluation.json") else {}
    classes = evaluation.get("classes", [])

    # An interrupted run may have no evaluation. Its last validation is in the summary or among the rows.
    figures = {
        split: _logged(split, *rows, summary) | evaluation.get(split, {}).get("figures", {})
        for split in ("val", "test")
    }
    sizes = {split: _images_of(run, evaluation, split) for split in ("val", "test")}
    headline = next((split for split in ("test", "val") if "acc" in figures[split]), None)
    detailed = next((split for split in ("test", "val") if split in evaluation), None)
    # Runs from before reads were counted have read test for their figures.
    test_reads = max(len(run.test_reads), "acc" in figures["test"])
    finished = "acc" in figures["test"] or summary.get("status") == "finished"
    macro = _macro_result(evaluation[headline]) if headline in evaluation else None
    predictions = run.predictions if run.has("predictions.npz") else {}
    temperature = summary.get("temperature")
    temperature = float(temperature) if isinstance(temperature, int | float) and temperature > 0 else 1.0
    suspects = {
        split: find_suspects(output.labels, probabilities_of(output.logits, temperature))
        for split, output in predictions.items()
        if output.logits.shape[1] == len(classes)
    }
    copies = _copies(run)
    diagrams = _diagrams(run, temperature, headline) if predictions else None
    advised = _advice(
        run, recipe, summary, rows, evaluation, figures, sizes, headline, suspects, copies, diagrams
    )

    page = _environment().from_string(
        resources.files("vitreous").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    html = page.render(
        title=summary.get("data") or Path(str(request.get("data", path))).name,
        run=run.path.name,
        recipe_name=recipe.get("name", ""),
        finished=finished,
        split_names=SPLITS,
        headline=headline,
        result=_result(figures[headline], sizes[headline]) if headline else None,
        macro_result=macro,
        without_copies=next((c for c in copies["splits"] if c["split"] == headline), None)
        if copies
        else None,
        failures=_failures(classes, evaluation[detailed]) if detailed else None,
        advised=[_filled(each, run, request) for each in advised],
        open_advice=OPEN_ADVICE,
        figures=figures,
        digits={split: digits_of(images or 1000) for split, images in sizes.items()},
        table=[
            row for row in _rows(macro is not None) if any(row.key in figures[split] for split in figures)
        ],
        temperature=summary.get("temperature"),
        test_reads=_times_read(test_reads),
        costs=_costs(summary),
        charts=charts.curves(rows, _phases(run, resolved)),
        frame=charts.FRAME,
        classes=classes,
        detailed=detailed,
        confusion=_confusion(classes, evaluation[detailed]["confusion"]) if detailed else None,
        bars=_class_bars(classes, evaluation[detailed]["per_class"]) if detailed else [],
        open_bars=OPEN_CLASS_BARS,
        diagrams=diagrams,
        diagram=charts.DIAGRAM,
        mistakes=_mistakes(run, classes) if classes and run.has("mistakes.npz") else None,
        suspects=_suspects(run, classes, suspects),
        held_out=request.get("judge") != "test",
        copies=copies,
        facts=_facts(recipe, resolved, summary),
        command=_command(run.path, request),
        resume=shlex.join(["vitreous", "train", "--resume", str(run.path)]),
    )
    if suspects:
        names = {split: output.names for split, output in predictions.items()}
        labels = {split: output.labels for split, output in predictions.items()}
        text = suspects_csv(classes, names, labels, suspects)
        atomic_write(run.path / "label-errors.csv", text.encode("utf-8", errors="replace"))
    # The folder's name may hold bytes that are not text. They must not keep the report from being written.
    atomic_write(run.path / "report.html", html.encode("utf-8", errors="replace"))
    return run.path / "report.html"


# Reading ---------------------------------------------------------------------------------------------


def _logged_rows(run: Run) -> list[dict[str, float]]:
    """Rows of `metrics.csv` by step, with their filled cells only; none where there is no file."""
    rows = run.metrics if run.has("metrics.csv") else []
    filled = [{key: cell for key, cell in row.items() if cell is not None} for row in rows]
    return sorted(filled, key=lambda row: row["step"])


def _images_of(run: Run, evaluation: Mapping[str, Any], split: str) -> int:
    """The number of images of a split; 0 where it is not known, as in an interrupted run on a given split."""
    if split in evaluation:
        return int(np.sum(evaluation[split]["confusion"]))
    cut = run.split.get("cut_from_train") if run.has("split.json") else None
    names = cut.get(split) if isinstance(cut, dict) else None
    return len(names) if isinstance(names, list) else 0


def _phases(run: Run, resolved: Mapping[str, Any]) -> list[tuple[float, int]]:
    """(first step, side of the images) of each phase of the run, as far as its timeline is recorded."""
    fits = resolved.get("timeline", {}).get("fits")
    if not fits or "image_size" not in resolved:
        return []
    try:
        parts = phases(run.recipe.schedule, int(resolved["image_size"]))
        timeline = Timeline([(int(start), int(total)) for start, total in fits])
    except (VitreousError, ValueError, TypeError):
        return []
    begins, first = [], 0
    for part in parts:
        begins.append((float(first), part.side))
        while first < timeline.total and timeline.fraction(first) < part.until:
            first += 1
    return begins


def _copies(run: Run) -> dict[str, Any] | None:
    """What the section about copies says, or None where no copy matters for the figures."""
    if not run.copies:
        return None
    leaks, conflicts = run.copies["leaks"], run.copies["conflicts"]
    splits = []
    for split, title in (("test", "test"), ("val", "validation")):
        names = {pair["name"] for pair in leaks if pair["split"] == split}
        if names:
            splits.append(
                {"split": split, "title": title, "copies": len(names), **_without(run, split, names)}
            )
    return {
        "splits": splits,
        "leaks": len(leaks),
        "conflicts": len(conflicts),
        "shown": [
            (title, drawn[: grid.shown], len(pairs), grid)
            for title, pairs in (
                ("Copies of training images", leaks),
                ("Copies with different labels", conflicts),
            )
            if pairs
            for drawn in [[pair for pair in pairs if "images" in pair]]
            for grid in [_grid(min(len(drawn), MAX_PAIRS), **TWINS)]
        ],
    }


def _without(run: Run, split: str, names: set[str]) -> dict[str, Any]:
    """The size of a split, and its accuracy with and without the images of these names, once it was evaluated."""
    size = run.copies["images"].get(split, len(names))
    predictions = run.predictions if run.has("predictions.npz") else {}
    if split not in predictions:
        return {"size": size}
    output = predictions[split]
    correct = output.logits.argmax(axis=1) == output.labels
    others = ~np.isin(output.names, list(names))
    return {
        "size": size,
        "accuracy": float(correct.mean()),
        "without": float(correct[others].mean()) if others.any() else None,
        "others": int(others.sum()),
        "digits": digits_of(len(correct)),
    }


def _logged(split: str, *sources: Mapping[str, Any]) -> dict[str, float]:
    """A split's figures from logged names such as `val_loss`; a later source overrides an earlier one."""
    prefix = f"{split}_"
    return {
        key.removeprefix(prefix): float(value)
        for source in sources
        for key, value in source.items()
        if key.startswith(prefix) and isinstance(value, int | float)
    }


# The first screen ------------------------------------------------------------------------------------


def _result(figures: Mapping[str, float], images: int) -> dict[str, Any]:
    """An accuracy with its interval and no more digits than its images can tell."""
    accuracy, digits = figures["acc"], digits_of(images or 1000)
    known = {"value": accuracy, "text": percent(accuracy, digits), "images": images, "interval": None}
    if images:
        low, high = interval(round(accuracy * images), images)
        known |= {
            "interval": f"{100 * low:.{digits}f} to {100 * high:.{digits}f}\u202f%",
            "low": low,
            "high": high,
        }
    if "majority" in figures:
        known |= {"baseline": figures["majority"], "baseline_text": percent(figures["majority"], digits)}
    return known


def _macro_result(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mean of the classes' recalls with its interval; None where the classes are not unequal."""
    matrix = np.asarray(entry["confusion"])
    hits, support = np.diag(matrix).tolist(), matrix.sum(axis=1).tolist()
    if not is_unequal(support):
        return None
    recall, digits = entry["figures"]["cat_recall"], digits_of(sum(support))
    baseline = 1 / sum(map(bool, support))
    result = {
        "value": recall,
        "text": percent(recall, digits),
        "interval": None,
        "baseline": baseline,
        "baseline_text": percent(baseline, digits),
        "ratio": f"{max(support) / min(filter(None, support)):.1f}",
    }
    if all(support):  # a class without images that is predicted counts as a recall of 0
        low, high = mean_recall_interval(hits, support)
        text = f"{100 * low:.{digits}f} to {100 * high:.{digits}f}\u202f%"
        result |= {"low": low, "high": high, "interval": text}
    return result


def _failures(classes: Sequence[str], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The worst pairs of classes and the class that is recognised least often, with their counts."""
    matrix = np.asarray(entry["confusion"])
    hits, support = np.diag(matrix), matrix.sum(axis=1)
    wrong = int(support.sum() - hits.sum())
    pairs = confusions(classes, entry["confusion"], WORST_PAIRS)
    occurring = [i for i in range(len(classes)) if support[i]]
    weakest = min(occurring, key=lambda i: hits[i] / support[i], default=None)
    result: dict[str, Any] = {"wrong": wrong, "images": int(support.sum()), "pairs": pairs, "weakest": None}
    if weakest is not None and wrong:
        high = interval(int(hits[weakest]), int(support[weakest]))[1]
        result["weakest"] = {
            "name": classes[weakest],
            "text": accuracy_text(int(hits[weakest]), int(support[weakest])),
            "hits": int(hits[weakest]),
            "images": int(support[weakest]),
            # Other classes whose recall may as well be the lowest.
            "rivals": [classes[i] for i in occurring if i != weakest and hits[i] / support[i] <= high],
        }
    return result


def _advice(
    run: Run,
    recipe: Mapping[str, Any],
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    evaluation: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, int],
    headline: str | None,
    suspects: Mapping[str, Suspects],
    copies: Mapping[str, Any] | None,
    diagrams: Mapping[str, Any] | None,
) -> list[Advice]:
    """What the rules of `advice` say about the run, the most serious first."""
    again = " ".join(("vitreous train DATA --recipe RUN/recipe.toml", *_reading_options(run)))
    optimizer, budget = recipe.get("optimizer", {}), recipe.get("budget", {})
    if summary.get("diverged"):
        rates = [key for key in ("learning_rate", "muon_learning_rate") if key in optimizer]
        if optimizer.get("name") == "adamw":
            rates = rates[:1]
        lower = " ".join(f"{key}={optimizer[key] / 3:.1g}" for key in rates)
        return [advice.diverged(f"{again} {lower}".strip())]

    found: list[Advice | None] = []
    correct = {
        split: (round(figures[split]["acc"] * images), images)
        for split, images in sizes.items()
        if images and "acc" in figures[split]
    }
    if headline in correct and "majority" in figures[headline]:
        found.append(advice.no_better_than_guessing(*correct[headline], figures[headline]["majority"]))
    for split in copies["splits"] if copies else []:
        if split["split"] not in evaluation:  # it flatters no figure yet
            continue
        found.append(advice.copies_across(split["title"], split["copies"], split["size"]))
    all_images = sum(evaluation.get("training_images", [])) + sum(sizes.values())
    found.append(advice.conflicting_copies(copies["conflicts"] if copies else 0, all_images))
    contradicted = {
        SPLITS[split]: (
            int(((each.label_probability < advice.CONTRADICTED) & (each.probability >= advice.SURE)).sum()),
            sizes[split],
        )
        for split, each in suspects.items()
    }
    found.append(advice.labels_contradicted(contradicted))
    if headline and headline in evaluation and "training_images" in evaluation:
        matrix = np.asarray(evaluation[headline]["confusion"])
        hits, support = np.diag(matrix).tolist(), matrix.sum(axis=1).tolist()
        training = evaluation["training_images"]
        as_it_is = recipe.get("training", {}).get("balance", "none") == "none"
        balanced = f"{again} --balance loss" if as_it_is else ""
        few = advice.few_images(evaluation["classes"], training, hits, support)
        found.append(few or advice.unequal_classes(training, hits, support, balanced))
    if {"val", "test"} <= set(correct):
        found.append(advice.worse_on_test(correct["val"], correct["test"]))

    unit, amount = next(iter(budget.items()), ("", 0.0))
    validations = [
        (row["step"], row["val_acc"]) for row in rows if math.isfinite(row.get("val_acc", math.nan))
    ]
    losses = [(row["step"], row["val_loss"]) for row in rows if math.isfinite(row.get("val_loss", math.nan))]
    found.append(advice.far_from_plan(summary, run.tables.get("resolved", {})))
    found.append(advice.overfitted(losses, f"{again} {_stronger(recipe, run)}"))
    known = unit in OPTIONS and isinstance(amount, int | float) and 0 < amount < math.inf
    if known and summary.get("status") == "finished":
        twice, half = (_another_length(run, summary, again, unit, amount, factor) for factor in (2, 0.5))
        found.append(advice.still_rising(validations, sizes["val"], twice))
        if half:
            found.append(advice.long_flat(validations, sizes["val"], half))
    if diagrams:
        found.append(
            advice.poorly_calibrated(diagrams["bins"], "" if "val" in suspects else f"{again} --judge both")
        )
    if headline in correct:
        share = recipe.get("data", {}).get("val_fraction", 0.5)
        cut = run.split.get("cut_from_train") if run.has("split.json") else None
        holds_more = isinstance(cut, dict) and headline in cut and share <= 0.2
        more = f"{again} val_fraction={2 * share:g}" if holds_more else ""
        found.append(advice.uncertain(SPLITS[headline], *correct[headline], more))
    return [each for each in found if each]


def _reading_options(run: Run) -> list[str]:
    """The options by which the run read its data, as far as a person set them; a recipe does not hold them."""
    request = run.tables.get("resolved", {}).get("request", {})
    options = []
    for name in READING:
        value = request.get(name, OPTIONS[name].default)
        if value in (None, False, OPTIONS[name].default):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, Mapping):  # as in train=DIR,test=DIR
            value = [f"{split}={folder}" for split, folder in value.items()]
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        options.append(flag if value is True else f"{flag} {shlex.quote(text)}")
    return options


def _another_length(
    run: Run, summary: Mapping[str, Any], again: str, unit: str, amount: float, factor: float
) -> str:
    """The command `again` with `factor` times the run's budget; "" if that is the run's own.

    Args:
        unit, amount: of the run's budget. Epochs and steps stay whole.
    """
    if OPTIONS[unit].kind is not int:
        return " ".join((again, f"--{unit} {factor * amount:g}", *_rechosen(run, summary, factor)))
    whole = max(math.ceil(factor * amount), 1)
    if whole == amount:
        return ""
    return " ".join((again, f"--{unit} {whole:d}", *_rechosen(run, summary, whole / amount)))


def _rechosen(run: Run, summary: Mapping[str, Any], factor: float) -> list[str]:
    """The dial's choices for a run `factor` times as long, where they differ from the run's own recipe."""
    resolved = run.tables.get("resolved", {})
    if not summary.get("steps") or not {"dial", "steps_per_epoch", "image_size"} <= set(resolved):
        return []
    steps, side = round(factor * summary["steps"]), resolved["image_size"]
    values = strengths_at(run.recipe, steps, resolved["steps_per_epoch"], side, resolved["dial"])
    own = {key: run.tables[key.partition(".")[0]][key.partition(".")[2]] for key in values}
    return [f"{key}={value:g}" for key, value in values.items() if value != own[key]]


def _stronger(recipe: Mapping[str, Any], run: Run) -> str:
    """Recipe keys of an augmentation that the run did not have."""
    augment = recipe.get("augment", {})
    scale = max(round(run.tables.get("resolved", {}).get("image_size", 32) / 32), 1)
    if not augment.get("cutout"):
        return f"crop={4 * scale} cutout={8 * scale}"
    return "mixup=0.5" if augment.get("trivial") else "trivial=true"


def _filled(each: Advice, run: Run, request: Mapping[str, Any]) -> Advice:
    """The advice with the run's own paths in its command."""
    data, path = str(request.get("data", "DATA")), run.path
    if data == "arrays":
        data = "DATA"
    elif each.command.startswith("vitreous data check") and not re.search(r"[/\\.]", data):
        return each._replace(command="")  # it checks folders and zips
    words = {"DATA": shlex.quote(data), "RUN/recipe.toml": shlex.quote(str(path / "recipe.toml"))}
    words["RUN"] = shlex.quote(str(path))
    command = re.sub(r"RUN/recipe\.toml|RUN|DATA", lambda match: words[match[0]], each.command)
    return each._replace(command=command)


# Figures ---------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of the table of figures."""

    key: str
    title: str
    meaning: str
    percent: bool = True


# The order of the page. Micro-averaged precision, recall and F1 are equal, so one of them is shown.
SHOWN = (
    "acc", "majority", "top5", "loss", "cat_prec", "cat_recall", "cat_f1", "ovr_f1", "ece", "ece_calibrated",
)  # fmt: skip


def _rows(macro_first: bool) -> list[Row]:
    """The lines of the table of figures, whatever of them this run has."""
    known = FIGURES | FINAL_FIGURES
    return [Row(key, *known[key], percent=key != "loss") for key in in_order(SHOWN, macro_first)]


def _costs(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, amount) of each known cost of the run."""
    known = (
        ("Training time", "train_seconds", _time),
        ("Total time", "total_seconds", _time),
        ("Epochs", "epochs", number),
        ("Steps", "steps", _count),
        ("Training FLOPs", "train_flops", _scientific),
        ("Parameters", "parameters", _count),
    )
    return [
        (title, write(summary[key]))
        for title, key, write in known
        if isinstance(summary.get(key), int | float)
    ]


def _confusion(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The matrix as a table, or as an image with a table for each group of confused classes; and the worst pairs."""
    counts = np.asarray(confusion)
    entry: dict[str, Any] = {
        "pairs": confusions(classes, confusion, MAX_PAIRS),
        "table": None,
        "image": None,
        "groups": [],
    }
    if len(classes) <= MAX_MATRIX_CLASSES:
        return {**entry, "table": _matrix(classes, counts, list(range(len(classes))))}
    order, groups = groups_of(counts)
    tables = [_matrix(classes, counts, group) for group in groups[:MAX_GROUPS]]
    return {
        **entry,
        "image": _matrix_image(counts[np.ix_(order, order)]),
        "groups": tables,
        "all_groups": len(groups),
    }


def _matrix(classes: Sequence[str], counts: np.ndarray, chosen: Sequence[int]) -> dict[str, Any]:
    """The cells [true][predicted] of the chosen classes; `shade` is the square root of the fraction of the true class.

    `elsewhere` are the images of each true class that were taken for a class that is not chosen.
    """
    totals = np.maximum(counts.sum(axis=1), 1)
    return {
        "classes": [classes[i] for i in chosen],
        "rows": [
            {
                "name": classes[i],
                "elsewhere": int(counts[i].sum() - counts[i, chosen].sum()),
                "cells": [
                    {
                        "count": int(counts[i, j]),
                        "shade": round(math.sqrt(counts[i, j] / totals[i]), 3),
                        "correct": i == j,
                    }
                    for j in chosen
                ],
            }
            for i in chosen
        ],
        "part": len(chosen) < len(classes),
    }


def _matrix_image(counts: np.ndarray) -> str:
    """The matrix as an image with one pixel per cell, transparent where a cell is 0."""
    fraction = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.empty((*counts.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(np.eye(len(counts), dtype=bool)[..., None], RIGHT, WRONG)
    pixels[..., 3] = np.where(counts > 0, np.rint(55 + 200 * np.sqrt(fraction)), 0)
    return _data_uri(pixels)


def _class_bars(classes: Sequence[str], per_class: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures of each class that occurs, weakest F1 first."""
    bars = [
        {"name": name, **entry, "digits": digits_of(entry["support"])}
        for name, entry in zip(classes, per_class, strict=True)
        if entry["support"]
    ]
    return sorted(bars, key=lambda bar: (bar["f1"], bar["recall"]))[:MAX_CLASS_BARS]


def _diagrams(run: Run, temperature: float, headline: str | None) -> dict[str, Any] | None:
    """Reliability diagrams before and after the temperature, on the split of the headline."""
    if headline not in run.predictions:
        return None
    output = run.predictions[headline]
    before = reliability(probabilities_of(output.logits), output.labels)
    after = reliability(probabilities_of(output.logits, temperature), output.labels)
    if not after:  # the network diverged
        return None
    drawn = [("Before the temperature", before), (f"After the temperature of {temperature:.3g}", after)]
    if temperature == 1:
        drawn = [("Without a temperature", after)]
    return {
        "split": headline,
        "bins": after,
        "shown": [_diagram(title, bins) for title, bins in drawn],
        "fitted": temperature != 1,
    }


def _diagram(title: str, bins: Sequence[Bin]) -> dict[str, Any]:
    return {
        "title": title,
        "error": percent(calibration_error(bins)),
        "bins": [(each, interval(each.correct, each.images)) for each in bins],
        "dots": charts.reliability_dots(bins),
    }


# Images ----------------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """How many cards are shown, and in how many columns on wide, middle and narrow screens, with no row of one card."""

    shown: int
    wide: int
    middle: int
    narrow: int


def _grid(cards: int, wide: Sequence[int], middle: Sequence[int], narrow: Sequence[int]) -> Grid:
    """The largest grid of at most so many cards; each screen has several numbers of columns to choose from."""

    def first(shown: int, choices: Sequence[int]) -> int | None:
        fitting = [columns for columns in choices if shown <= columns or shown % columns != 1]
        return min(fitting, key=lambda columns: shown > columns and shown % columns > 0, default=None)

    for shown in range(cards, 0, -1):
        columns = [first(shown, choices) for choices in (wide, middle, narrow)]
        if all(columns):
            return Grid(shown, *(c or 1 for c in columns))
    return Grid(0, wide[0], middle[0], narrow[0])


CARDS = {"wide": (8, 7, 6), "middle": (6, 5, 4), "narrow": (3, 2)}
TWINS = {"wide": (6, 5, 4), "middle": (4, 3), "narrow": (2, 3)}


def _mistakes(run: Run, classes: Sequence[str]) -> dict[str, Any]:
    """The most confident mistakes, with their images and heat maps as data: URIs."""
    kept = run.mistakes
    grid = _grid(min(len(kept.names), MAX_MISTAKES), **CARDS)
    maps = _heat_maps(run, kept.images[: grid.shown], kept.predicted[: grid.shown])
    columns = zip(*vars(kept).values(), strict=True)
    cards = [
        {
            "image": _data_uri(image),
            "true": classes[label],
            "predicted": classes[predicted],
            "confidence": float(confidence),
            "name": str(name),
            "heat": maps[i] if i < len(maps) else None,
        }
        for i, (image, label, predicted, confidence, name) in enumerate(islice(columns, grid.shown))
    ]
    return {"grid": grid, "cards": cards, "maps": len(maps)}


def _heat_maps(run: Run, images: np.ndarray, predicted: np.ndarray) -> list[str]:
    """What speaks for the wrong class in the first images, as data: URIs; as many as `HEAT_FLOPS` allow.

    Returns:
        Nothing if there are no images, if the bundle is missing or damaged, or if one map costs too much.
    """
    try:
        bundle = run.bundle
        # A map takes a forward pass for each cell.
        maps = int(HEAT_FLOPS / (bundle.model.grid**2 * count_flops(bundle.model)))
        if not len(images[:maps]):
            return []
        pixels = bundle.preprocess.batch(images[:maps])
        return [
            _heat_uri(heat_map(bundle, pixels[i : i + 1], predicted[i : i + 1])[0])
            for i in range(len(pixels))
        ]
    except VitreousError:
        return []


def _heat_uri(heat: np.ndarray) -> str:
    """A heat map [G, G] as a transparent image: red speaks for the class, blue against it."""
    strength = np.abs(heat) / max(float(np.abs(heat).max()), FAINT)
    pixels = np.empty((*heat.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where((heat > 0)[..., None], FOR, AGAINST)
    pixels[..., 3] = np.rint(190 * np.clip(strength, 0, 1))
    return _data_uri(pixels)


def _suspects(run: Run, classes: Sequence[str], suspects: Mapping[str, Suspects]) -> list[dict[str, Any]]:
    """The most probable label errors of each split that has any, with their images where the run kept them."""
    images = run.suspect_images if suspects and run.has("label_errors.npz") else {}
    sections = []
    for split, found in suspects.items():
        output = run.predictions[split]
        grid = _grid(min(len(found.positions), MAX_SUSPECTS), **CARDS)
        cards = []
        for place, predicted, probability, own in islice(zip(*vars(found).values(), strict=True), grid.shown):
            image = images.get((split, int(place)))
            cards.append(
                {
                    "image": _data_uri(image) if image is not None else None,
                    "label": classes[output.labels[place]],
                    "predicted": classes[predicted],
                    "probability": float(probability),
                    "label_probability": float(own),
                    "name": str(output.names[place]),
                }
            )
        total = len(found.positions)
        sections.append(
            {"split": SPLITS[split], "total": total, "of": len(output.labels), "grid": grid, "cards": cards}
        )
    return sections


# Settings --------------------------------------------------------------------------------------------


def _facts(
    recipe: Mapping[str, Any], resolved: Mapping[str, Any], summary: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(key, value)]) of the run, its recipe, and what was resolved when it began."""
    groups = [("run", {k: v for k, v in summary.items() if not k.startswith(("val_", "test_"))})]
    groups += _tables("recipe", recipe)
    groups += _tables("resolved", resolved)
    return [(name, [(k, _plain(v)) for k, v in table.items()]) for name, table in groups if table]


def _tables(name: str, table: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield name, {key: value for key, value in table.items() if not isinstance(value, dict)}
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _tables(f"{name} · {key}", value)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_plain, value)) or NO_VALUE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if value not in ("", None) else NO_VALUE


def _command(path: Path, request: Mapping[str, Any]) -> str:
    """The command that repeats the run at `path`."""
    if request.get("data") == "arrays":
        return f"vitreous.repeat({str(path)!r}, (images, labels))  # in Python"
    return shlex.join(["vitreous", "train", "--repeat", str(path)])


# Text ------------------------------------------------------------------------------------------------


def _times_read(count: int) -> str:
    return {0: "has not been read", 1: "was read once", 2: "was read twice"}.get(
        count, f"was read {count:,} times"
    )


def _breakable(name: str) -> Markup:
    """A file name that may be broken after its folders."""
    return Markup("<wbr>").join(re.split(r"(?<=[/\\\\:])", name))


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _probability(value: float) -> str:
    """A probability in percent, with no claim of certainty: "97 %", "0.3 %", "< 0.1 %"."""
    if value < 0.001:
        return "<\u202f0.1\u202f%"
    if value > 0.999:
        return ">\u202f99.9\u202f%"
    return percent(value, 1 if value < 0.0995 or value > 0.99 else 0)


def _scientific(value: float) -> str:
    if not 1e4 <= value < math.inf:
        return _count(value) if math.isfinite(value) else NO_VALUE
    exponent = math.floor(math.log10(value))
    digits = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value / 10**exponent:.2f}\u202f×\u202f10{digits}"


def _time(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else NO_VALUE


def _data_uri(pixels: np.ndarray) -> str:
    """uint8 [H, W, 3 or 4] as a data: URI; large photographs are shrunk to display size."""
    image = Image.fromarray(pixels)
    content = io.BytesIO()
    if image.mode == "RGB" and max(image.size) > 64:
        image.thumbnail((224, 224))
        image.save(content, "JPEG", quality=88)
        kind = "jpeg"
    else:
        image.save(content, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "count": _count,
        "probability": _probability,
        "breakable": _breakable,
    }
    return environment
