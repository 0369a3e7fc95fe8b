"""Tables and plot of `folders.py`, from its records.

`leaderboard.py` calls it, so `make leaderboard` makes them too. The tables are in `docs/results.md`, a short one is in
`README.md`, and the plot is `docs/folders.svg`.

A cell whose measurement has no record shows "–".
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import record
from folder_sets import SETS

from vitreous.statistics import Difference, difference, mean_interval, mean_recall_interval

Records = Sequence[Mapping[str, Any]]

OURS = "vitreous"
PEERS = {"resnet9": "ResNet-9", "resnet9-narrow": "ResNet-9, half as wide", "notebook": "notebook's recipe"}
TITLES = {OURS: "vitreous", **PEERS}
COLORS = {OURS: "C0", "resnet9": "C1", "resnet9-narrow": "C3", "notebook": "C4"}
MARKERS = {OURS: "o", "resnet9": "s", "resnet9-narrow": "D", "notebook": "^"}
NONE = "–"
WIDTH = 6.2  # inches, readable on a phone
ROW, FOOT = 0.62, 1.5  # inches of the plot's height: for each row, and for the axis and the legend


@dataclass(frozen=True)
class Case:
    """A data set at a budget on a split, with the records of each arm, sorted by seed.

    Arms are compared image by image, so all records have to be of the same judged images.

    Raises:
        SystemExit: two records are of different data, or judged different numbers of images of a class.
    """

    data: str
    budget: str
    split: str
    arms: dict[str, list[Mapping[str, Any]]]

    def __post_init__(self) -> None:
        first, *others = (r for runs in self.arms.values() for r in runs)
        for other in others:
            if judged(first) != judged(other):
                raise SystemExit(
                    f"The records {first['id']} and {other['id']} are not of the same judged images, so they cannot "
                    "be compared; train the one of the older data again with --replace."
                )

    @property
    def balanced(self) -> bool:
        """Whether balanced accuracy is the figure."""
        return any(r["figures"]["judged_by"] == "balanced_acc" for runs in self.arms.values() for r in runs)

    @property
    def title(self) -> str:
        return SETS[self.data].title if self.data in SETS else self.data

    @property
    def ours(self) -> list[Mapping[str, Any]]:
        return self.arms.get(OURS, [])

    @property
    def peer(self) -> str:
        """The peer with the highest mean figure, or "" without any."""
        peers = [arm for arm in PEERS if arm in self.arms]
        return max(peers, key=lambda arm: statistics.mean(self.shares(arm)), default="")

    def shares(self, arm: str) -> list[float]:
        """The figure of each seed, as a fraction."""
        key = "balanced_acc" if self.balanced else "acc"
        return [r["figures"][key] for r in self.arms[arm]]

    def correct(self, arm: str) -> np.ndarray:
        """Whether each seed classified each image correctly, float [R, N]: 0, or the weight of the image.

        The weights are 1 for accuracy. For balanced accuracy every class weighs the same, and their mean is 1. The mean
        of a row is the figure either way.
        """
        rows = [bits(r["figures"]) for r in self.arms[arm]]
        counts = np.array(self.arms[arm][0]["figures"]["images_of_class"])
        weights = (
            counts.sum() / np.count_nonzero(counts) / np.repeat(counts, counts) if self.balanced else 1.0
        )
        return np.array(rows) * weights

    def interval(self, arm: str) -> tuple[float, float]:
        """The 95 % interval of the figure, over images and, where the arm has several, seeds."""
        figures = self.arms[arm][0]["figures"]
        if self.balanced and len(self.arms[arm]) == 1:  # the weights are no part of Wilson's interval
            ends = np.cumsum(figures["images_of_class"])[:-1]
            hits = [int(part.sum()) for part in np.split(bits(figures), ends)]
            return mean_recall_interval(hits, figures["images_of_class"])
        return mean_interval(self.correct(arm))

    def ahead(self, arm: str, of: str) -> Difference | None:
        """How far `arm` is ahead of another, paired by image, with images and seeds as crossed effects."""
        if arm not in self.arms or of not in self.arms:
            return None
        return difference(self.correct(of), self.correct(arm), paired=True)


def judged(r: Mapping[str, Any]) -> tuple[str, list[int]]:
    """Tells judged images apart: the fingerprint of the data set, and the number of judged images of each class."""
    return r["fingerprint"], r["figures"]["images_of_class"]


def bits(figures: Mapping[str, Any]) -> np.ndarray:
    """Whether each image was classified correctly, bool [N], sorted by class."""
    packed = np.frombuffer(bytes.fromhex(figures["correct"]), np.uint8)
    return np.unpackbits(packed)[: sum(figures["images_of_class"])].astype(bool)


def cases(records: Records, split: str) -> list[Case]:
    """The cases of a split, in the order of the table of data sets, then by budget."""
    order = list(SETS)
    grouped: dict[tuple[str, float], dict[str, list[Mapping[str, Any]]]] = {}
    for r in sorted(records, key=lambda r: r["seed"]):
        if r["figures"]["split"] == split and r["data"] in SETS:
            arms = grouped.setdefault((r["data"], r["figures"]["budget"]), {})
            arms.setdefault(r["arm"], []).append(r)
    keys = sorted(grouped, key=lambda key: (order.index(key[0]), key[1]))
    known = list(TITLES)  # these arms come first
    found = []
    for data, amount in keys:
        arms = grouped[data, amount]
        names = sorted(arms, key=lambda arm: (known.index(arm) if arm in known else len(known), arm))
        found.append(Case(data, short(amount), split, {arm: arms[arm] for arm in names}))
    return found


def compared(records: Records, split: str) -> list[Case]:
    """The cases in which a peer was trained too."""
    return [case for case in cases(records, split) if case.peer]


def short(number: float) -> str:
    """3e13 as people write it."""
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def percent(shares: Sequence[float]) -> str:
    """Mean, lowest and highest in percent: "81.2 (80.9 to 81.5)"."""
    low, middle, high = (f"{100 * f(shares):.1f}" for f in (min, statistics.mean, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def points(found: Difference | None) -> str:
    """A difference in points with its 95 % interval: "+2.1 (+1.2 to +3.0)".

    With one seed on each side, the interval covers the images alone, and the cell ends with "one seed".
    """
    if found is None:
        return NONE
    value, low, high = (f"{100 * x:+.1f}" for x in (found.value, found.low, found.high))
    return f"{value} ({low} to {high}){'' if found.over_seeds else ', one seed'}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table; none without rows."""
    if not rows:
        return []
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


# ---- tables


def tables() -> dict[str, list[str]]:
    """The lines of each table of `docs/results.md`, by name."""
    records = record.load("folders")
    return {
        "folders": main_table(compared(records, "val"), minutes_of()),
        "folders-test": main_table(compared(records, "test"), minutes_of())
        or ["No test split has been read yet."],
        "folders-changes": changes_table(cases(records, "val")),
        "folders-runs": runs_table(records),
        "folders-rates": rates_table(record.load("folders-rates")),
    }


def minutes_of() -> Mapping[str, Any]:
    """Minutes on two cores by data, budget and arm, as measured apart from the trainings."""
    return next((r["figures"] for r in record.load("folders-minutes")), {})


def main_table(of: Sequence[Case], minutes: Mapping[str, Any]) -> list[str]:
    rows = []
    shown = [arm for arm in TITLES if any(arm in case.arms for case in of)]
    timed = {(case.data, case.budget): minutes.get(case.data, {}).get(case.budget, {}) for case in of}
    any_timed = any(arm in times for times in timed.values() for arm in shown)
    for case in of:
        first = next(iter(case.arms.values()))[0]["figures"]
        times = timed[case.data, case.budget]
        in_minutes = [f"{times[arm]['minutes']:.1f}" if arm in times else NONE for arm in shown]
        rows.append(
            [
                case.title + (", balanced accuracy" if case.balanced else ""),
                f"{first['training_images']:,} / {sum(first['images_of_class']):,}",
                case.budget,
                *(
                    f"{percent(case.shares(arm))}, {epochs(case.arms[arm])}" if arm in case.arms else NONE
                    for arm in shown
                ),
                points(case.ahead(OURS, case.peer)),
                *([" / ".join(in_minutes)] if any_timed else []),
                seed_links(case.ours),
            ]
        )
    head = ["data", "images trained on / judged", "training FLOPs"]
    head += [f"{TITLES[arm]}, %" for arm in shown]
    head += [
        "ahead of the best peer, points (95 %)",
        *(["minutes on two cores"] if any_timed else []),
        "seeds",
    ]
    return table(head, rows)


def epochs(runs: Records) -> str:
    amount = statistics.mean(r["figures"]["epochs"] for r in runs)
    return f"{amount:.1f} epochs" if amount < 10 else f"{amount:.0f} epochs"


def seed_links(runs: Records) -> str:
    return ", ".join(f"[{r['seed']}](#{r['id']})" for r in runs) or NONE


def readme_table() -> list[str]:
    """Ours beside the best peer: on test for the cases that have read it, else on validation."""
    records = record.load("folders")
    read = {(case.data, case.budget): case for case in cases(records, "test")}
    rows = []
    for validation in cases(records, "val"):
        case = read.get((validation.data, validation.budget), validation)
        if not case.ours or not case.peer:
            continue
        figure = "balanced accuracy" if case.balanced else "accuracy"
        rows.append(
            [
                f"{case.title}: {figure} on {'test' if case.split == 'test' else 'validation'}",
                f"{case.ours[0]['figures']['training_images']:,}",
                case.budget,
                f"[{percent(case.shares(OURS))}](docs/results.md#{case.ours[0]['id']})",
                f"{percent(case.shares(case.peer))} ({TITLES[case.peer]})",
                points(case.ahead(OURS, case.peer)),
                f"{len(case.ours)} / {len(case.arms[case.peer])}",
            ]
        )
    head = ["data", "images", "training FLOPs", "vitreous, %", "best peer, %", "ahead, points (95 %)"]
    return table([*head, "seeds, vitreous / peer"], rows)


def changes_table(of: Sequence[Case]) -> list[str]:
    """The default recipe beside recipes with something changed, on the same images and with the same seeds."""
    rows = []
    for case in of:
        for arm, runs in case.arms.items():
            if arm in TITLES or OURS not in case.arms:
                continue
            seeds = [r["seed"] for r in runs]
            same = Case(
                case.data,
                case.budget,
                case.split,
                {arm: runs, OURS: [r for r in case.ours if r["seed"] in seeds]},
            )
            rows.append(
                [
                    case.title + (", balanced accuracy" if case.balanced else ""),
                    case.budget,
                    epochs(runs),
                    f"`{' '.join(runs[0]['overrides'])}`",
                    percent(same.shares(OURS)),
                    percent(same.shares(arm)),
                    points(same.ahead(OURS, arm)),
                    seed_links(runs),
                ]
            )
    head = ["data", "training FLOPs", "epochs", "changed", "default recipe, %", "changed, %"]
    return table([*head, "the default is ahead, points (95 %)", "seeds"], rows)


def runs_table(records: Records) -> list[str]:
    """A row for each arm of each case, every record with an anchor."""
    rows = []
    for case in (*cases(records, "val"), *cases(records, "test")):
        for arm, runs in case.arms.items():
            known = [r["figures"] for r in runs]
            balanced = [f["balanced_acc"] for f in known]
            rate = sorted({f"{f['learning_rate']:g}" for f in known if "learning_rate" in f})
            changes = " ".join(runs[0].get("overrides", []))
            seconds = [f["train_seconds"] for f in known]
            rows.append(
                [
                    f"{case.title}, {case.split}",
                    case.budget,
                    TITLES.get(arm, arm) + (f" (`{changes}`)" if changes else ""),
                    percent([f["acc"] for f in known]),
                    percent(balanced),
                    f"{statistics.mean(f['epochs'] for f in known):.1f}",
                    f"{statistics.mean(f['train_flops'] for f in known):.3g}",
                    ", ".join(rate) or NONE,
                    f"{min(seconds):.0f} to {max(seconds):.0f}",
                    " / ".join(sorted({device(r) for r in runs})),
                    ", ".join(f'<a id="{r["id"]}"></a>{r["seed"]}' for r in runs),
                    " / ".join(sorted({f"`{r['commit'][:7]}`" for r in runs})),
                ]
            )
    head = ["data, split", "budget", "arm", "accuracy, %", "balanced accuracy, %", "epochs", "training FLOPs"]
    return table([*head, "learning rate", "seconds a training", "machine", "seeds", "commit"], rows)


def device(r: Mapping[str, Any]) -> str:
    """The machine of a record, and how many trainings shared it."""
    jobs = r["machine"].get("jobs", 1)
    return f"{r['machine']['name']}, {r['path']}" + (f", {jobs} at a time" if jobs > 1 else "")


def rates_table(records: Records) -> list[str]:
    """Validation figures of the learning rates that were tried for each ResNet-9."""
    found: dict[tuple[str, str, float], dict[str, float]] = {}
    for r in records:
        arm, _, rate = r["arm"].partition(" lr ")
        figures = r["figures"]
        found.setdefault((r["data"], arm, figures["budget"]), {})[rate] = figures[figures["judged_by"]]
    rates = sorted({rate for tried in found.values() for rate in tried}, key=float)
    order = list(SETS)
    rows = []
    for (data, arm, amount), tried in sorted(
        found.items(), key=lambda item: (order.index(item[0][0]), item[0][1:])
    ):
        cells = [
            NONE
            if rate not in tried
            else f"**{100 * tried[rate]:.1f}**"
            if tried[rate] == max(tried.values())
            else f"{100 * tried[rate]:.1f}"
            for rate in rates
        ]
        rows.append([SETS[data].title, TITLES[arm], short(amount), *cells])
    return table(["data", "network", "training FLOPs", *(f"learning rate {rate}" for rate in rates)], rows)


def text_table(records: Records, data: Sequence[str]) -> list[str]:
    """For a terminal: every arm of the chosen data sets with its lead over the best peer and over our default."""
    rows = [("data", "FLOPs", "split", "arm", "figure, %", "ahead of the best peer", "ahead of vitreous")]
    for case in (*cases(records, "val"), *cases(records, "test")):
        if case.data in data:
            for arm in case.arms:
                rows.append(
                    (
                        case.data + (" (balanced)" if case.balanced else ""),
                        case.budget,
                        case.split,
                        arm,
                        percent(case.shares(arm)),
                        NONE if arm in PEERS else points(case.ahead(arm, case.peer)),
                        NONE if arm in (OURS, *PEERS) else points(case.ahead(arm, OURS)),
                    )
                )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


# ---- plot


def plot(file: Path) -> bool:
    """Accuracy of every arm on every data set with 95 % intervals; nothing without records. Test where it was read."""
    import matplotlib.pyplot as plt

    records = record.load("folders")
    read = {(case.data, case.budget): case for case in cases(records, "test")}
    shown = [read.get((case.data, case.budget), case) for case in compared(records, "val")]
    if not shown:
        return False
    plt.rcParams["svg.hashsalt"] = "vitreous"  # the same bytes from the same records
    chart, axis = plt.subplots(figsize=(WIDTH, FOOT + ROW * len(shown)), layout="constrained")
    arms = [arm for arm in TITLES if any(arm in case.arms for case in shown)]
    for row, case in enumerate(shown):
        for place, arm in enumerate(arms):
            if arm not in case.arms:
                continue
            y = row + 0.2 * (place - (len(arms) - 1) / 2)
            value, (low, high) = statistics.mean(case.shares(arm)), case.interval(arm)
            axis.plot([100 * low, 100 * high], [y, y], color=COLORS[arm], lw=1.6)
            axis.plot(100 * value, y, MARKERS[arm], color=COLORS[arm], ms=7, mec="white", mew=0.6)
    axis.set_yticks(range(len(shown)), [label(case) for case in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    for row in range(1, len(shown)):
        axis.axhline(row - 0.5, color="0.85", lw=0.8)
    axis.set_xlabel("accuracy, % (mean of the seeds, 95 % interval)")
    axis.grid(axis="x", alpha=0.3)
    handles = [
        mpl.lines.Line2D([], [], color=COLORS[arm], marker=MARKERS[arm], label=TITLES[arm]) for arm in arms
    ]
    chart.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    chart.savefig(file, metadata={"Date": None})
    plt.close(chart)
    return True


def label(case: Case) -> str:
    """Two lines beside a row of the plot."""
    figure = "balanced accuracy, " if case.balanced else ""
    return f"{case.title}\n{figure}{case.budget} FLOPs{', test' if case.split == 'test' else ''}"
