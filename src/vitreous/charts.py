"""Charts of a report as coordinates in an SVG's view box: curves over the steps of a run, and reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from vitreous.calibration import Bin
from vitreous.statistics import interval
from vitreous.wording import duration

MAX_POINTS = 100  # per curve
NO_VALUE = "–"
# One unit is one CSS pixel at the width of a phone, so labels stay legible there.
FRAME = {"width": 360, "height": 236, "left": 52, "right": 344, "top": 14, "bottom": 176}
LEFT, RIGHT, TOP, BOTTOM = (FRAME[side] for side in ("left", "right", "top", "bottom"))

Points = list[tuple[float, float]]


class Tick(NamedTuple):
    at: float
    labels: list[str]


class Line(NamedTuple):
    name: str
    style: str  # a CSS class
    points: Points
    note: str  # beside the name in the legend


class Hover(NamedTuple):
    """A column of the chart, and the text shown when the pointer is over it."""

    x: float
    width: float
    text: list[str]
    dots: list[tuple[float, float, str]]


class Mark(NamedTuple):
    """A moment of the run, as a vertical line with a text."""

    x: float
    text: str
    before: bool  # whether the text stands to the left


class Chart(NamedTuple):
    """A line chart in units of the SVG's view box."""

    title: str
    summary: str  # for who cannot see it
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    hovers: list[Hover]
    marks: list[Mark]


class Curve(NamedTuple):
    """A column of metrics.csv that is drawn: points (step, value), and for each step the text of its value."""

    name: str
    style: str
    points: Points
    note: str
    texts: Mapping[float, str]


def curves(rows: Sequence[Mapping[str, float]], sizes: Sequence[tuple[float, int]] = ()) -> list[Chart]:
    """Loss, accuracy and learning rate, as far as they were logged.

    Args:
        rows: those of metrics.csv by step, with their filled cells only.
        sizes: (first step, side of the images in pixels) of each phase of the run.
    """
    loss = [
        _curve(rows, *column, short)
        for column in (("train_loss", "training", "a"), ("val_loss", "validation", "b"))
    ]
    accuracy = [_curve(rows, "val_acc", "validation", "b", percent)]
    plans = (
        ("Loss", short, loss),
        ("Validation accuracy", percent, accuracy),
        ("Learning rate", *_learning_rate(rows)),
    )
    return [
        _chart(title, write, drawn, rows, sizes)
        for title, write, all_curves in plans
        if (drawn := [curve for curve in all_curves if curve.points])
    ]


def _curve(
    rows: Sequence[Mapping[str, float]], key: str, name: str, style: str, write: Callable[[float], str]
) -> Curve:
    points = thin(_logged(rows, key))
    return Curve(
        name, style, points, write(points[-1][1]) if points else "", {s: write(v) for s, v in points}
    )


def _logged(rows: Sequence[Mapping[str, float]], key: str) -> Points:
    return [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]


def _learning_rate(rows: Sequence[Mapping[str, float]]) -> tuple[Callable[[float], str], list[Curve]]:
    """The learning rates as they were logged, never averaged.

    Muon's is ten times that of AdamW in the default recipe and has the same shape, which would flatten the other one on
    a common axis. So rates of one shape are drawn as one curve, in percent of their peaks.
    """
    rates = {"AdamW": _logged(rows, "learning_rate"), "Muon": _logged(rows, "muon_learning_rate")}
    rates = {name: pick(points) for name, points in rates.items() if points}
    peaks = {name: max(value for _, value in points) for name, points in rates.items()}
    if len(rates) == 2 and all(peaks.values()):
        shares = [[(step, value / peaks[name]) for step, value in points] for name, points in rates.items()]
        if len(shares[0]) == len(shares[1]) and np.allclose(shares[0], shares[1], rtol=1e-3, atol=1e-6):
            texts: dict[float, str] = {
                step: f"AdamW {short(value)}, Muon {short(muon)}"
                for (step, value), (_, muon) in zip(rates["AdamW"], rates["Muon"], strict=True)
            }
            note = ", ".join(f"{name} {short(peak)}" for name, peak in peaks.items())
            return percent, [Curve("of the peak:", "c", shares[0], note, texts)]
    return short, [
        Curve(
            name,
            "a" if name == "Muon" else "c",
            points,
            f"up to {short(peaks[name])}",
            {s: short(v) for s, v in points},
        )
        for name, points in rates.items()
    ]


def _chart(
    title: str,
    write: Callable[[float], str],
    drawn: Sequence[Curve],
    rows: Sequence[Mapping[str, float]],
    sizes: Sequence[tuple[float, int]],
) -> Chart:
    last_step = max(rows[-1]["step"], 1)
    y_marks = round_marks(max(value for curve in drawn for _, value in curve.points), 5)
    top = y_marks[-1]

    def x_of(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / last_step, 1)

    def y_of(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value / top, 1)

    clocks = {
        column: np.array([(0.0, 0.0), *_logged(rows, column)]).T
        for column in ("epoch", "seconds")
        if any(column in row for row in rows)
    }

    def moment(step: float) -> list[str]:
        epoch, seconds = (
            float(np.interp(step, *clocks[column])) if column in clocks else None
            for column in ("epoch", "seconds")
        )
        return [
            f"{step:,.0f}",
            NO_VALUE if epoch is None else number(epoch),
            NO_VALUE if seconds is None else duration(seconds),
        ]

    def tick_text(value: float) -> str:
        return f"{100 * value:g}\u202f%" if write is percent else f"{value:g}"

    steps = sorted({step for curve in drawn for step, _ in curve.points})
    edges = [LEFT, *(x_of((a + b) / 2) for a, b in pairwise(steps)), RIGHT]
    hovers = []
    for i, step in enumerate(steps):
        here = [(curve, value) for curve in drawn for at, value in curve.points if at == step]
        step_text, epoch_text, clock_text = moment(step)
        texts = [f"step {step_text}, epoch {epoch_text}, {clock_text}"]
        texts += [f"{curve.name + ': ' if len(drawn) > 1 else ''}{curve.texts[step]}" for curve, _ in here]
        dots = [(x_of(step), y_of(value), curve.style) for curve, value in here]
        hovers.append(Hover(edges[i], round(edges[i + 1] - edges[i], 1), texts, dots))
    ends = "; ".join(
        f"{curve.name} from {curve.texts[curve.points[0][0]]} to {curve.texts[curve.points[-1][0]]}"
        for curve in drawn
    )
    return Chart(
        title,
        f"{title} against step, up to step {last_step:,.0f}: {ends}",
        [
            Line(
                curve.name,
                curve.style,
                [(x_of(step), y_of(value)) for step, value in curve.points],
                curve.note,
            )
            for curve in drawn
        ],
        [Tick(x_of(mark), moment(mark)) for mark in round_marks(last_step, 4) if mark <= last_step],
        [Tick(y_of(mark), [tick_text(mark)]) for mark in y_marks],
        hovers,
        [
            Mark(x_of(step), f"{side} px", x_of(step) > RIGHT - 40)
            for step, side in sizes[1:]
            if 0 < step <= last_step
        ],
    )


def thin(points: Points) -> Points:
    """At most `MAX_POINTS` points (step, value), by averaging neighbours."""
    if len(points) <= MAX_POINTS:
        return points
    bins = np.array_split(np.array(points), MAX_POINTS)
    # The last point is not averaged: the curve ends where the run ended.
    return [tuple(part.mean(axis=0).tolist()) for part in bins[:-1]] + [points[-1]]


def pick(points: Points) -> Points:
    """At most `MAX_POINTS` points (step, value) as they are, with the first, the highest and the last one."""
    if len(points) <= MAX_POINTS:
        return points
    chosen = set(np.linspace(0, len(points) - 1, MAX_POINTS - 1).round().astype(int).tolist())
    chosen.add(max(range(len(points)), key=lambda i: points[i][1]))
    return [points[i] for i in sorted(chosen)]


def round_marks(high: float, most: int) -> list[float]:
    """0 and up to `most` round numbers above it; the last is at least `high`."""
    if high <= 0:
        return [0.0, 1.0]
    rough = high / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]


# ---- reliability

DIAGRAM = {"width": 360, "height": 418, "left": 52, "right": 344, "top": 26, "bottom": 318, "base": 382}


class Dot(NamedTuple):
    """A bin of a reliability diagram: its place, the interval of its accuracy, its column of images, and its text."""

    x: float
    y: float
    low: float
    high: float
    left: float
    width: float
    column: float  # height
    text: str


def reliability_dots(bins: Sequence[Bin]) -> list[Dot]:
    """The bins in units of `DIAGRAM`: accuracy against confidence, and below it the share of the images."""
    side, low_end = DIAGRAM["right"] - DIAGRAM["left"], DIAGRAM["bottom"]
    most = max((each.images for each in bins), default=1)
    room = DIAGRAM["base"] - DIAGRAM["bottom"] - 26
    dots = []
    for each in bins:
        accuracy = each.correct / each.images
        low, high = interval(each.correct, each.images)
        text = (
            f"confidence {100 * each.low:.0f} to {100 * each.high:.0f} %: {each.images:,} images, mean confidence "
            f"{100 * each.confidence:.1f} %, {each.correct:,} correct ({100 * accuracy:.0f} %, 95 %: "
            f"{100 * low:.0f} to {100 * high:.0f})"
        )
        x, y, y_low, y_high = (
            round(DIAGRAM["left"] + side * each.confidence, 1),
            *(round(low_end - side * value, 1) for value in (accuracy, low, high)),
        )
        left = DIAGRAM["left"] + side * each.low
        width = side * (each.high - each.low)
        dots.append(
            Dot(
                x,
                y,
                y_low,
                y_high,
                round(left + 1, 1),
                round(width - 2, 1),
                round(room * each.images / most, 1),
                text,
            )
        )
    return dots


# ---- numbers


def percent(value: float, decimals: int = 1) -> str:
    return f"{100 * value:.{decimals}f}\u202f%"


def short(value: float) -> str:
    return f"{value:.3g}"


def number(value: float) -> str:
    """Three digits or more: "0.34", "13.7", "1,204"."""
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text
