"""A run as one HTML page, made from those files of the run folder that exist."""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from vitreous.files import atomic_write
from vitreous.metrics import FIGURES, FINAL_FIGURES
from vitreous.run import Run
from vitreous.wording import duration

MAX_MISTAKES = 40
MAX_MATRIX_CLASSES = 20  # larger matrices are drawn as an image, since numbers would not fit the cells
MAX_CLASS_BARS = 200
MAX_PAIRS = 12
MAX_POINTS = 100  # per curve; neighbouring rows are averaged beyond that
NO_VALUE = "–"

# Correct and wrong in the image of a large confusion matrix; legible on light and dark backgrounds.
RIGHT, WRONG = (13, 148, 136), (234, 88, 12)


def write_report(path: Path) -> Path:
    """Writes `report.html` into the run folder `path` and returns its path.

    The page is self-contained: no script, no request, images inside. A run that was interrupted is reported with
    the files it has.

    Raises:
        VitreousError: `path` is not a run folder, one of its files is damaged, or the page cannot be written.
    """
    run = Run(path)
    recipe = {key: value for key, value in run.tables.items() if key != "resolved"}
    resolved = run.tables.get("resolved", {})
    summary = run.summary if run.has("summary.json") else {}
    rows = _logged_rows(run)
    evaluation = run.evaluation if run.has("evaluation.json") else {}
    classes = evaluation.get("classes", [])

    # An interrupted run may have no evaluation. Its last validation is in the summary or among the rows.
    figures = {
        split: _logged(split, *rows, summary) | evaluation.get(split, {}).get("figures", {})
        for split in ("val", "test")
    }
    headline = next((split for split in ("test", "val") if "acc" in figures[split]), None)
    detailed = next((split for split in ("test", "val") if split in evaluation), None)
    details = {}
    if detailed:
        entry = evaluation[detailed]
        details = {
            "matrix": _matrix(entry["confusion"]) if len(classes) <= MAX_MATRIX_CLASSES else None,
            "heat_map": _heat_map(entry["confusion"]) if len(classes) > MAX_MATRIX_CLASSES else None,
            "pairs": _confused_pairs(classes, entry["confusion"]),
            "bars": _class_bars(classes, entry["per_class"]),
        }

    request = resolved.get("request", {})
    page = _environment().from_string(
        resources.files("vitreous").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    html = page.render(
        title=summary.get("data") or Path(str(request.get("data", path))).name,
        run=run.path.name,
        recipe_name=recipe.get("name", ""),
        finished="acc" in figures["test"] or summary.get("status") == "finished",
        headline=headline,
        figures=figures,
        table=[row for row in _rows() if any(row.key in figures[split] for split in figures)],
        temperature=summary.get("temperature"),
        # Runs from before reads were counted have read test for their figures.
        test_reads=_times_read(max(len(run.test_reads), "acc" in figures["test"])),
        costs=_costs(summary),
        charts=_charts(rows),
        frame=FRAME,
        classes=classes,
        detailed=detailed,
        **details,
        mistakes=_mistakes(run, classes) if classes and run.has("mistakes.npz") else [],
        copies=_copies(run),
        facts=_facts(recipe, resolved, summary),
        command=_command(run.path, request),
        resume=shlex.join(["vitreous", "train", "--resume", str(run.path)]),
    )
    # The folder's name may hold bytes that are not text. They must not keep the report from being written.
    atomic_write(run.path / "report.html", html.encode("utf-8", errors="replace"))
    return run.path / "report.html"


# Reading ---------------------------------------------------------------------------------------------


def _logged_rows(run: Run) -> list[dict[str, float]]:
    """Rows of `metrics.csv` by step, with their filled cells only; none where there is no file."""
    rows = run.metrics if run.has("metrics.csv") else []
    filled = [{key: cell for key, cell in row.items() if cell is not None} for row in rows]
    return sorted(filled, key=lambda row: row["step"])


def _mistakes(run: Run, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The most confident mistakes, with their images as data: URIs."""
    columns = zip(*vars(run.mistakes).values(), strict=True)
    return [
        {
            "image": _data_uri(image),
            "true": classes[label],
            "predicted": classes[predicted],
            "confidence": float(confidence),
            "name": str(name),
        }
        for image, label, predicted, confidence, name in islice(columns, MAX_MISTAKES)
    ]


def _copies(run: Run) -> dict[str, Any] | None:
    """What the section about copies says, or None where no copy matters for the figures."""
    if not run.copies:
        return None
    leaks, conflicts = run.copies["leaks"], run.copies["conflicts"]
    splits = []
    for split, title in (("test", "test"), ("val", "validation")):
        names = {pair["name"] for pair in leaks if pair["split"] == split}
        if names:
            splits.append({"title": title, "copies": len(names), **_without(run, split, names)})
    return {
        "splits": splits,
        "leaks": len(leaks),
        "conflicts": len(conflicts),
        "shown": [
            (title, [pair for pair in pairs if "images" in pair][:MAX_PAIRS], len(pairs))
            for title, pairs in (
                ("Copies of training images", leaks),
                ("Copies with different labels", conflicts),
            )
            if pairs
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


def _rows() -> list[Row]:
    """The lines of the table of figures, whatever of them this run has."""
    known = FIGURES | FINAL_FIGURES
    return [Row(key, *known[key], percent=key != "loss") for key in SHOWN]


def _costs(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, amount) of each known cost of the run."""
    known = (
        ("Training time", "train_seconds", _time),
        ("Total time", "total_seconds", _time),
        ("Training FLOPs", "train_flops", _scientific),
        ("Images per second", "images_per_second", _count),
        ("Epochs", "epochs", _number),
        ("Steps", "steps", _count),
        ("Parameters", "parameters", _count),
    )
    return [
        (title, write(summary[key]))
        for title, key, write in known
        if isinstance(summary.get(key), int | float)
    ]


def _matrix(confusion: list[list[int]]) -> list[list[dict[str, Any]]]:
    """Cells [true][predicted]; `shade` 0..1 is the square root of the fraction of the true class."""
    return [
        [
            {"count": count, "shade": round(math.sqrt(count / (sum(row) or 1)), 3), "correct": i == j}
            for j, count in enumerate(row)
        ]
        for i, row in enumerate(confusion)
    ]


def _heat_map(confusion: list[list[int]]) -> str:
    """The matrix as an image with one pixel per cell, transparent where a cell is 0."""
    counts = np.asarray(confusion)
    fraction = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.empty((*counts.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(np.eye(len(counts), dtype=bool)[..., None], RIGHT, WRONG)
    pixels[..., 3] = np.rint(255 * np.sqrt(fraction))
    return _data_uri(pixels)


def _confused_pairs(classes: Sequence[str], confusion: list[list[int]]) -> list[dict[str, Any]]:
    """The most frequent mistakes: true class, predicted class, count, and fraction of the true class."""
    counts = np.array(confusion)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    return [
        {
            "true": classes[i],
            "predicted": classes[j],
            "count": int(counts[i, j]),
            "fraction": counts[i, j] / totals[i],
        }
        for i, j in pairs
        if counts[i, j]
    ]


def _class_bars(classes: Sequence[str], per_class: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures of each class that occurs, weakest F1 first."""
    bars = [
        {"name": name, **entry} for name, entry in zip(classes, per_class, strict=True) if entry["support"]
    ]
    return sorted(bars, key=lambda bar: (bar["f1"], bar["recall"]))[:MAX_CLASS_BARS]


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


# Curves ----------------------------------------------------------------------------------------------

# One unit is one CSS pixel at the width of a phone, so labels stay legible there.
FRAME = {"width": 360, "height": 236, "left": 52, "right": 344, "top": 10, "bottom": 176}
LEFT, RIGHT_EDGE, TOP, BOTTOM = (FRAME[side] for side in ("left", "right", "top", "bottom"))


class Tick(NamedTuple):
    at: float
    labels: list[str]


class Line(NamedTuple):
    name: str
    style: str  # a CSS class
    points: list[tuple[float, float]]
    last: str


class Hover(NamedTuple):
    """A column of the chart, and the text shown when the pointer is over it."""

    x: float
    width: float
    text: list[str]
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A line chart in units of the SVG's view box."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    hovers: list[Hover]


def _charts(rows: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Loss, accuracy and learning rate, as far as they were logged."""
    plans: tuple[tuple[str, Callable[[float], str], dict[str, tuple[str, str]]], ...] = (
        ("Loss", _short, {"train_loss": ("training", "a"), "val_loss": ("validation", "b")}),
        ("Accuracy", _percent, {"val_acc": ("validation", "b")}),
        ("Learning rate", _short, {"learning_rate": ("AdamW", "c"), "muon_learning_rate": ("Muon", "a")}),
    )
    charts = []
    for title, write, columns in plans:
        series = {
            key: _thin([(r["step"], r[key]) for r in rows if math.isfinite(r.get(key, math.nan))])
            for key in columns
        }
        if any(series.values()):
            charts.append(
                _chart(title, write, {columns[key]: points for key, points in series.items() if points}, rows)
            )
    return charts


def _chart(
    title: str,
    write: Callable[[float], str],
    series: Mapping[tuple[str, str], list[tuple[float, float]]],
    rows: Sequence[Mapping[str, float]],
) -> Chart:
    last_step = max(rows[-1]["step"], 1)
    y_marks = _round_marks(max(value for points in series.values() for _, value in points), 5)
    top = y_marks[-1]

    def x_of(step: float) -> float:
        return round(LEFT + (RIGHT_EDGE - LEFT) * step / last_step, 1)

    def y_of(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value / top, 1)

    def at(step: float, column: str) -> float | None:
        known = [(row["step"], row[column]) for row in rows if column in row]
        return float(np.interp(step, *np.array([(0.0, 0.0), *known]).T)) if known else None

    def moment(step: float) -> list[str]:
        epoch, seconds = at(step, "epoch"), at(step, "seconds")
        return [
            _count(step),
            NO_VALUE if epoch is None else _number(epoch),
            NO_VALUE if seconds is None else duration(seconds),
        ]

    def tick_text(value: float) -> str:
        return f"{100 * value:g}\u202f%" if write is _percent else f"{value:g}"

    lines = [
        Line(name, style, [(x_of(step), y_of(value)) for step, value in points], write(points[-1][1]))
        for (name, style), points in series.items()
    ]
    values: dict[float, list[tuple[str, str, float]]] = {}
    for (name, style), points in series.items():
        for step, value in points:
            values.setdefault(step, []).append((name, style, value))
    steps = sorted(values)
    edges = [LEFT, *(x_of((a + b) / 2) for a, b in pairwise(steps)), RIGHT_EDGE]
    hovers = []
    for i, step in enumerate(steps):
        step_text, epoch_text, clock_text = moment(step)
        hovers.append(
            Hover(
                edges[i],
                round(edges[i + 1] - edges[i], 1),
                [
                    f"step {step_text}, epoch {epoch_text}, {clock_text}",
                    *(f"{name or title.lower()}: {write(value)}" for name, _, value in values[step]),
                ],
                [(x_of(step), y_of(value), style) for _, style, value in values[step]],
            )
        )
    x_marks = [mark for mark in _round_marks(last_step, 4) if mark <= last_step]
    return Chart(
        title,
        lines,
        [Tick(x_of(mark), moment(mark)) for mark in x_marks],
        [Tick(y_of(mark), [tick_text(mark)]) for mark in y_marks],
        hovers,
    )


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points (step, value), by averaging neighbours."""
    if len(points) <= MAX_POINTS:
        return points
    bins = np.array_split(np.array(points), MAX_POINTS)
    # The last point is not averaged: the curve ends where the run ended.
    return [tuple(part.mean(axis=0).tolist()) for part in bins[:-1]] + [points[-1]]


def _round_marks(high: float, most: int) -> list[float]:
    """0 and up to `most` round numbers above it; the last is at least `high`."""
    if high <= 0:
        return [0.0, 1.0]
    rough = high / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]


# Text ------------------------------------------------------------------------------------------------


def _percent(value: float, decimals: int = 2) -> str:
    """Two decimals by default: one image of 10,000 makes a difference."""
    return f"{100 * value:.{decimals}f}\u202f%"


def _times_read(count: int) -> str:
    return {0: "has not been read", 1: "was read once", 2: "was read twice"}.get(
        count, f"was read {count:,} times"
    )


def _short(value: float) -> str:
    return f"{value:.3g}"


def _number(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def _count(value: float) -> str:
    return f"{value:,.0f}"


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
    environment.filters |= {"percent": _percent, "count": _count}
    return environment
