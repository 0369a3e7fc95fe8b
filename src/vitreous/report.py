"""A run as one HTML page: read from the run folder's plain files, whatever of them exists."""

from __future__ import annotations

import base64
import io
import json
import math
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from vitreous.errors import VitreousError
from vitreous.files import atomic_write
from vitreous.run import DAMAGE, read_arrays, read_metrics, read_test_reads

MAX_MISTAKES = 40
MAX_MATRIX_CLASSES = 20  # more are drawn as a picture: cells would be too small for figures
MAX_CLASS_BARS = 200
MAX_PAIRS = 12
MAX_POINTS = 100  # of a curve; more rows are averaged
NO_VALUE = "–"

# Right and wrong in the picture of a large confusion matrix; legible on light and on dark paper.
RIGHT, WRONG = (13, 148, 136), (234, 88, 12)


def write_report(path: Path) -> Path:
    """Writes `report.html` into the run folder `path`, and returns where it lies.

    The page needs nothing else: no script, no request, pictures inside. A run that was interrupted is
    reported with what there is of it.

    Raises:
        VitreousError: `path` is not a run folder, one of its files is damaged, or it cannot be written.
    """
    path = Path(path)
    if not path.is_dir():
        raise VitreousError(f"There is no run at {path}; give the folder that `vitreous train` wrote.")
    recipe = _read(path / "recipe.toml", tomllib.loads)
    if recipe is None:
        raise VitreousError(
            f"{path} is not a run, for it has no recipe.toml; give the folder that `vitreous train` wrote."
        )
    resolved = recipe.pop("resolved", {})
    summary = _read(path / "summary.json", _parse_summary) or {}
    rows = _logged_rows(path / "metrics.csv")
    evaluation = _read(path / "evaluation.json", _parse_evaluation) or {}
    classes = evaluation.get("classes", [])
    mistakes = _read_mistakes(path / "mistakes.npz", classes)

    # An interrupted run may have no evaluation: its last validation stands in the summary or the log.
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
        run=path.name,
        recipe_name=recipe.get("name", ""),
        finished="acc" in figures["test"] or summary.get("status") == "finished",
        headline=headline,
        figures=figures,
        table=[row for row in ROWS if any(row.key in figures[split] for split in figures)],
        temperature=summary.get("temperature"),
        # Runs from before reads were counted have read it for their figures.
        test_reads=_read_times(max(len(read_test_reads(path)), "acc" in figures["test"])),
        costs=_costs(summary),
        charts=_charts(rows),
        frame=FRAME,
        classes=classes,
        detailed=detailed,
        **details,
        mistakes=mistakes,
        facts=_facts(recipe, resolved, summary),
        command=_command(path, request),
        resume=shlex.join(["vitreous", "train", "--resume", str(path)]),
    )
    # A folder's name may hold bytes that are no text; they must not keep a report from being written.
    atomic_write(path / "report.html", html.encode("utf-8", errors="replace"))
    return path / "report.html"


# Reading ---------------------------------------------------------------------------------------------


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """The parsed file, or None where there is none."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> VitreousError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return VitreousError(f"{path} is damaged ({reason}); restore it or delete it, then ask again.")


def _parse_summary(text: str) -> dict[str, Any]:
    summary = json.loads(text)
    if not isinstance(summary, dict):
        raise ValueError("it should hold one object")
    return summary


def _logged_rows(path: Path) -> list[dict[str, float]]:
    """Rows of `metrics.csv` by step, with their filled cells only; none where there is no file."""
    rows = read_metrics(path) if path.exists() else []
    filled = [{key: cell for key, cell in row.items() if cell is not None} for row in rows]
    return sorted(filled, key=lambda row: row["step"])


def _parse_evaluation(text: str) -> dict[str, Any]:
    evaluation = json.loads(text)
    count = len(evaluation["classes"])
    for split in {"val", "test"} & set(evaluation):
        entry = evaluation[split]
        if np.asarray(entry["confusion"], dtype=np.int64).shape != (count, count):
            raise ValueError(f"the confusion matrix of {split} is not {count} by {count}")
        if len(entry["per_class"]) != count or not {
            "precision",
            "recall",
            "f1",
            "support",
        } <= set.intersection(*map(set, entry["per_class"])):
            raise ValueError(f"the figures of {split} do not name each of {count} classes")
        # A figure that was no number is stored as null.
        entry["figures"] = {key: float(v) for key, v in entry["figures"].items() if v is not None}
    return evaluation


def _read_mistakes(path: Path, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The most confident mistakes, first the surest; none where there is no file or no class names."""
    if not path.exists() or not classes:
        return []
    try:
        arrays = read_arrays(path)
        images, true, predicted = arrays["images"], arrays["label"], arrays["predicted"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError("its images are not uint8 [K, H, W, 3]")
        if true.min(initial=0) < 0 or predicted.min(initial=0) < 0:
            raise ValueError("a class is negative")
        columns = zip(images, true, predicted, arrays["confidence"], arrays["name"], strict=True)
        return [
            {
                "picture": _picture(image),
                "true": classes[t],
                "predicted": classes[p],
                "confidence": float(confidence),
                "name": str(name),
            }
            for image, t, p, confidence, name in list(columns)[:MAX_MISTAKES]
        ]
    except DAMAGE as error:
        raise _unreadable(path, error) from error


def _logged(split: str, *sources: Mapping[str, Any]) -> dict[str, float]:
    """A split's figures from logged names such as `val_loss`; a later source overrules an earlier one."""
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
    name: str
    meaning: str
    percent: bool = True


ROWS = (
    Row("acc", "Accuracy", "pictures whose class was predicted right"),
    Row("majority", "Majority class", "the accuracy of always guessing the largest class"),
    Row("top5", "Top-5 accuracy", "the right class is among the five likeliest"),
    Row("loss", "Loss", "mean cross-entropy, in nats", percent=False),
    Row("cat_prec", "Precision", "mean over classes (macro)"),
    Row("cat_recall", "Recall", "mean over classes (macro)"),
    Row("cat_f1", "F1", "mean over classes (macro)"),
    Row(
        "ovr_f1",
        "Precision, recall, F1",
        "over all pictures (micro): with one label each, all equal accuracy",
    ),
    Row("ece", "Calibration error", "mean gap between confidence and accuracy, 15 bins"),
    Row(
        "ece_calibrated",
        "Calibration error, calibrated",
        "the same of the probabilities that predictions give",
    ),
)


def _costs(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) of the run, as far as it is known."""
    known = (
        ("Training time", "train_seconds", _duration),
        ("Total time", "total_seconds", _duration),
        ("Training FLOPs", "train_flops", _scientific),
        ("Images per second", "images_per_second", _count),
        ("Epochs", "epochs", _number),
        ("Steps", "steps", _count),
        ("Parameters", "parameters", _count),
    )
    return [
        (name, say(summary[key])) for name, key, say in known if isinstance(summary.get(key), int | float)
    ]


def _matrix(confusion: list[list[int]]) -> list[list[dict[str, Any]]]:
    """Cells [true][predicted]; `shade` 0..1 grows with the square root of the share of the true class."""
    return [
        [
            {"count": count, "shade": round(math.sqrt(count / (sum(row) or 1)), 3), "right": i == j}
            for j, count in enumerate(row)
        ]
        for i, row in enumerate(confusion)
    ]


def _heat_map(confusion: list[list[int]]) -> str:
    """The same as a picture of one pixel a cell, transparent where nothing is."""
    counts = np.asarray(confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.empty((*counts.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(np.eye(len(counts), dtype=bool)[..., None], RIGHT, WRONG)
    pixels[..., 3] = np.rint(255 * np.sqrt(share))
    return _picture(pixels)


def _confused_pairs(classes: Sequence[str], confusion: list[list[int]]) -> list[dict[str, Any]]:
    """The commonest mistakes: true class, predicted class, how many, and what share of the true class."""
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
            "share": counts[i, j] / totals[i],
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
    """What was run on what: (heading, [(key, value)]), the recipe's tables and then what was resolved."""
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
    """The command that trains the run at `path` again, to the same bits."""
    if request.get("data") == "arrays":
        return f"vitreous.repeat({str(path)!r}, (images, labels))  # in Python"
    return shlex.join(["vitreous", "train", "--repeat", str(path)])


# Curves ----------------------------------------------------------------------------------------------

# One unit is one CSS pixel at the width of a phone, so that labels are never scaled out of legibility.
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
    """A column of the chart with what it says when pointed at."""

    x: float
    width: float
    text: list[str]
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A drawing in units of the SVG's view box."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    hovers: list[Hover]


def _charts(rows: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Loss, accuracy and learning rate against step, epoch and time, those that were logged."""
    plans: tuple[tuple[str, Callable[[float], str], dict[str, tuple[str, str]]], ...] = (
        ("Loss", _short, {"train_loss": ("training", "a"), "val_loss": ("validation", "b")}),
        ("Accuracy", _percent, {"val_acc": ("validation", "b")}),
        ("Learning rate", _short, {"learning_rate": ("AdamW", "c"), "muon_learning_rate": ("Muon", "a")}),
    )
    charts = []
    for title, say, columns in plans:
        series = {
            key: _thin([(r["step"], r[key]) for r in rows if math.isfinite(r.get(key, math.nan))])
            for key in columns
        }
        if any(series.values()):
            charts.append(
                _chart(title, say, {columns[key]: points for key, points in series.items() if points}, rows)
            )
    return charts


def _chart(
    title: str,
    say: Callable[[float], str],
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
            NO_VALUE if seconds is None else _clock(seconds),
        ]

    def mark_text(value: float) -> str:
        return f"{100 * value:g}\u202f%" if say is _percent else f"{value:g}"

    lines = [
        Line(name, style, [(x_of(step), y_of(value)) for step, value in points], say(points[-1][1]))
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
                    *(f"{name or title.lower()}: {say(value)}" for name, _, value in values[step]),
                ],
                [(x_of(step), y_of(value), style) for _, style, value in values[step]],
            )
        )
    x_marks = [mark for mark in _round_marks(last_step, 4) if mark <= last_step]
    return Chart(
        title,
        lines,
        [Tick(x_of(mark), moment(mark)) for mark in x_marks],
        [Tick(y_of(mark), [mark_text(mark)]) for mark in y_marks],
        hovers,
    )


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points (step, value): means of neighbours, where there are more."""
    if len(points) <= MAX_POINTS:
        return points
    bins = np.array_split(np.array(points), MAX_POINTS)
    # The last point stays as it is: the curve ends where the run ended.
    return [tuple(part.mean(axis=0).tolist()) for part in bins[:-1]] + [points[-1]]


def _round_marks(high: float, most: int) -> list[float]:
    """0 and up to `most` round numbers above it, the last not under `high`."""
    if high <= 0:
        return [0.0, 1.0]
    rough = high / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]


# Saying things ---------------------------------------------------------------------------------------


def _percent(value: float, decimals: int = 2) -> str:
    """Two decimals by default: one picture of 10,000 shows."""
    return f"{100 * value:.{decimals}f}\u202f%"


def _read_times(count: int) -> str:
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


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return NO_VALUE
    if seconds < 60:
        return f"{seconds:.1f}\u202fs"
    if seconds < 3600:
        return f"{seconds / 60:.1f}\u202fmin"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}\u202fh {minutes:02}\u202fmin"


def _picture(pixels: np.ndarray) -> str:
    """uint8 [H, W, 3 or 4] as a data: URI; photographs are shrunk to what is shown."""
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
