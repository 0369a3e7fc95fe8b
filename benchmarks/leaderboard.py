"""Draws every table and plot of results from `records.jsonl`.

    python benchmarks/leaderboard.py

Fills the tables of `docs/results.md`, `docs/speed.md` and `docs/images.md`, and the table of results in `README.md`.
Draws `docs/accuracy-flops.svg`, `docs/accuracy-minutes.svg`, `docs/law.svg` and `docs/folders.svg`, and `docs/dial.svg`
from the tables of `vitreous/dial.py`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import folders_page
import images_page
import matplotlib.pyplot as plt
import numpy as np
import speed_page
from folder_sets import SETS
from pages import fill, markers
from record import HERE, load

from vitreous import dial

Record = dict[str, Any]

DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
# In this order in the table of all runs: what each study was for.
STUDIES = {
    "final": "final",
    "make-train": "`make train`",
    "choose": "choosing",
    "ablation": "ablation",
    "law": "network size",
    "earlier": "earlier default",
    "notebook": "notebook",
    "peer-recipe": "another library's recipe",
}
ABLATED_AT = "6e13"  # training FLOPs
# Row of the ablation: what it changes of the default recipe, in words and in overrides.
ABLATION: dict[str, tuple[str, list[str]]] = {
    "default": ("nothing: the default recipe", []),
    "adamw lr 2e-3": ("AdamW in place of Muon", ["optimizer.name=adamw"]),
    "fullsize": ("full-size images from the start", ["small_sides=[1.0]"]),
    "linear": ("linear patches in place of the convolutional stem", ["stem=linear", "stem_dims=[]"]),
    "qknorm": ("no normalisation of queries and keys", ["qk_norm=false"]),
    "mean": ("mean of the tokens in place of attention pooling", ["pool=mean"]),
    "cls": ("class token in place of attention pooling", ["pool=cls"]),
    "zeroinit": ("residual branches not initialised to zero", ["zero_init=false"]),
    "smoothing": ("no label smoothing", ["label_smoothing=0"]),
    "flip": ("random flips in place of alternating ones", ["flip=random"]),
    "crop": ("no crop", ["crop=0"]),
}


@dataclass(frozen=True)
class Published:
    """A figure that others published, which was not measured here.

    Attributes:
        arxiv: the paper of the network.
        source: where the accuracy is from, if not from the paper.
        macs: multiply-adds of one image's forward pass in millions, attention included.
        images: that the training went through, in millions.
        accuracy: on the test split by data set, in percent.
        marker: in the plot.
    """

    name: str
    arxiv: str
    source: str
    epochs: int
    images: float
    macs: int
    accuracy: dict[str, float]
    marker: str

    @property
    def train_flops(self) -> float:
        """Two FLOPs a multiply-add; the backward pass costs twice the forward pass."""
        return 3 * 2 * self.macs * 1e6 * self.images * 1e6


CCT = "https://github.com/SHI-Labs/Compact-Transformers"
CONVMIXER = "https://github.com/locuslab/convmixer-cifar10"
PUBLISHED = (
    Published("ConvMixer-256/8", "2201.09792", CONVMIXER, 25, 1.25, 148, {"cifar10": 92.6}, "P"),
    Published("CCT-2/3x2", "2104.05704", CCT, 200, 10, 35, {"cifar10": 89.17, "cifar100": 66.9}, "^"),
    Published("CCT-4/3x2", "2104.05704", CCT, 200, 10, 50, {"cifar10": 91.45, "cifar100": 70.46}, "v"),
    Published("ViT-Lite-7/4", "2104.05704", CCT, 200, 10, 254, {"cifar10": 91.38, "cifar100": 69.75}, "s"),
    Published(
        "ViT with SPT and LSA", "2112.13492", "", 100, 15, 190, {"cifar10": 94.53, "cifar100": 76.92}, "X"
    ),
    Published("CCT-7/3x1", "2104.05704", "", 300, 15, 1181, {"cifar10": 96.53, "cifar100": 80.92}, "D"),
)


def main() -> None:
    render(HERE.parent)
    print(
        f"{len(load())} records: README.md, docs/results.md with its plots, docs/speed.md and docs/images.md"
    )


def render(root: Path) -> None:
    """Fills the pages under `root`, and draws the plots into its `docs`."""
    results, readme = root / "docs" / "results.md", root / "README.md"
    for name, table in TABLES.items():
        fill(results, name, table())
    for name, lines in folders_page.tables().items():
        fill(results, name, lines)
    if markers("results")[0] in readme.read_text(encoding="utf-8"):
        fill(readme, "results", readme_table())
    if markers("folders")[0] in readme.read_text(encoding="utf-8"):
        fill(readme, "folders", folders_page.readme_table())
    speed_page.fill_page(root / "docs" / "speed.md")
    images_page.fill_page(root / "docs" / "images.md")
    plot_accuracy(root / "docs" / "accuracy-flops.svg", "train_flops")
    plot_accuracy(root / "docs" / "accuracy-minutes.svg", "total_seconds")
    plot_law(root / "docs" / "law.svg")
    folders_page.plot(root / "docs" / "folders.svg")
    plot_dial(root / "docs" / "dial.svg")


# ---- what a record says


def trainings() -> list[Record]:
    """The records of trainings, by study, data set and budget."""
    order = list(STUDIES)
    records = [record for record in load() if record["study"] in STUDIES]
    return sorted(
        records,
        key=lambda r: (order.index(r["study"]), r["data"], float(f"{flops(r):.2g}"), r["id"]),
    )


def flops(record: Record) -> float:
    return record["figures"]["train_flops"]


def budget(record: Record) -> str:
    """Training FLOPs as people write them, e.g. "1.2e14"."""
    return short(flops(record))


def short(number: float) -> str:
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def augmentation(record: Record) -> str:
    """The augmentation of the recipe as trained, e.g. "crop 4, cutout 8"."""
    augment = record["recipe"]["augment"]
    parts = [f"{key} {augment[key]:.3g}" for key in ("crop", "cutout", "mixup", "cutmix") if augment.get(key)]
    return ", ".join(parts) or "no crop"


def weight_decay(record: Record) -> float:
    return record["recipe"]["optimizer"].get("weight_decay", 0.0)


def network(record: Record) -> str:
    model = record["recipe"]["model"]
    return f"{model['embed_dim']} wide, {model['depth']} layers"


def values(records: Iterable[Record], figure: str, scale: float = 1.0) -> list[float]:
    return [scale * r["figures"][figure] for r in records if figure in r["figures"]]


def accuracies(records: Iterable[Record], figure: str) -> list[float]:
    """In percent."""
    return values(records, figure, 100.0)


def timed(records: Iterable[Record]) -> list[Record]:
    """The records whose times mean something: a run that was halted has `timing: false`."""
    return [r for r in records if r.get("timing", True)]


def minutes(records: Iterable[Record]) -> list[float]:
    return values(timed(records), "total_seconds", 1 / 60)


def images_per_second(records: Iterable[Record]) -> list[float]:
    return values(timed(records), "images_per_second")


def spread(numbers: list[float], form: str = ".1f") -> str:
    """The median with the lowest and the highest."""
    if not numbers:
        return "–"
    low, middle, high = (format(f(numbers), form) for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def grouped(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups


def links(records: Iterable[Record]) -> str:
    """The seeds, each linked to its run in the table of all runs."""
    return ", ".join(f"[{r['seed']}](#{r['id']})" for r in records)


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


# ---- tables


def final_groups() -> dict[tuple[str, str], list[Record]]:
    """The final runs of the default recipe by data set and budget."""
    records = [r for r in trainings() if r["study"] == "final" and r["arm"] == "default"]
    return grouped(records, lambda r: (r["data"], budget(r)))


def final_table() -> list[str]:
    rows = []
    for (data, amount), records in final_groups().items():
        rows.append(
            [
                f'<a id="{data}-{amount}"></a>{DATA[data]}',
                amount,
                network(records[0]),
                spread(values(records, "epochs")),
                augmentation(records[0]),
                spread(minutes(records)),
                spread(accuracies(records, "test_acc")),
                spread(accuracies(records, "test_acc_with_flips")),
                spread(accuracies(records, "test_acc_with_shifts")),
                " / ".join(sorted({r["path"] for r in records})),
                links(records),
            ]
        )
    head = ("data", "training FLOPs", "network", "epochs", "augmentation", "minutes", "test, %")
    averages = ("test with flips, %", "with flips and shifts, %")
    return table([*head, *averages, "backend, precision", "seeds"], rows)


def readme_table() -> list[str]:
    """Accuracy by budget, with the minutes of the first data set's runs."""
    groups = final_groups()
    shown = [data for data in DATA if any(data == known for known, _ in groups)]
    rows = []
    for amount in sorted({amount for _, amount in groups}, key=float):
        runs = {data: groups[data, amount] for data in DATA if (data, amount) in groups}
        cells = [
            f"[{spread(accuracies(runs[data], 'test_acc'))} %](docs/results.md#{data}-{amount})"
            if data in runs
            else "–"
            for data in shown
        ]
        first = next(iter(runs))
        rows.append([amount, f"[{spread(minutes(runs[first]))}](docs/results.md#{first}-{amount})", *cells])
    return table(
        ["training FLOPs", f"minutes ({next(iter(DATA.values()))})", *(DATA[data] for data in shown)], rows
    )


def stem_table() -> list[str]:
    """Linear patches beside the convolutional stem: each pair alike in all but the stem, at one budget and data set."""
    read_test = [r for r in trainings() if r["study"] in ("final", "earlier") and "recipe" in r]
    pairs = grouped(read_test, lambda r: (r["data"], budget(r), network(r), augmentation(r), weight_decay(r)))
    rows = []
    for (data, amount, net, augment, decay), records in pairs.items():
        stems = grouped(records, lambda r: r["recipe"]["model"]["stem"])
        if "linear" not in stems or "conv" not in stems:
            continue
        for stem, name in (("linear", "linear patches"), ("conv", "convolutional")):
            runs = stems[stem]
            epochs, accuracy = spread(values(runs, "epochs")), spread(accuracies(runs, "test_acc"))
            rows.append(
                [DATA[data], amount, net, augment, f"{decay:.3g}", name, epochs, accuracy, links(runs)]
            )
    head = (
        "data",
        "training FLOPs",
        "network",
        "augmentation",
        "weight decay",
        "stem",
        "epochs",
        "test, %",
        "seeds",
    )
    return table([*head], rows)


def adamw_records() -> dict[str, list[Record]]:
    """AdamW's rows of the ablation by learning rate, which goes up."""
    records = [r for r in load("ablation") if r["arm"].startswith("adamw lr ")]
    groups = grouped(records, lambda r: r["arm"].removeprefix("adamw lr "))
    return dict(sorted(groups.items(), key=lambda group: float(group[0])))


def best_adamw() -> str:
    """The learning rate with the best validation accuracy on the seed that all of them have."""
    tried = adamw_records()
    seeds = set.intersection(*({r["seed"] for r in records} for records in tried.values()))
    return max(
        tried,
        key=lambda rate: statistics.mean(
            accuracies((r for r in tried[rate] if r["seed"] in seeds), "val_acc")
        ),
    )


def ablation_table() -> list[str]:
    rows = grouped(load("ablation"), lambda r: r["arm"])
    texts = {arm: text for arm, (text, _) in ABLATION.items()}
    tried, best = adamw_records(), best_adamw()
    for rate in tried:
        if rate != best:
            del rows[f"adamw lr {rate}"]
    rates = ", ".join(tried)
    tuned = f"the best of {rates}" if len(tried) > 1 else "not tuned"
    texts[f"adamw lr {best}"] = f"AdamW in place of Muon, learning rate {best} ({tuned})"

    def accuracy(arm: str) -> float:
        return statistics.mean(accuracies(rows[arm], "val_acc"))

    def points(arm: str) -> str:
        """The difference from the default recipe on the seeds that both have."""
        seeds = {r["seed"] for r in rows["default"]} & {r["seed"] for r in rows[arm]}
        own, default = (
            statistics.mean(accuracies((r for r in rows[name] if r["seed"] in seeds), "val_acc"))
            for name in (arm, "default")
        )
        difference = Decimal(own - default).quantize(Decimal("0.0001"))  # drops the noise of floats at a tie
        return f"{difference.quantize(Decimal('0.1'), ROUND_HALF_UP):+}"

    by_id = {record["id"]: record["figures"]["seconds"] for record in load("seconds")}
    seconds = by_id.get("ablation-seconds", {})
    lines = []
    for arm in sorted(rows, key=lambda arm: (arm != "default", accuracy(arm))):
        records = rows[arm]
        key = arm.partition(" ")[0]
        lines.append(
            [
                texts.get(arm, arm),
                f"{accuracy(arm):.1f} ({', '.join(f'{a:.1f}' for a in accuracies(records, 'val_acc'))})",
                "" if arm == "default" else points(arm),
                f"{statistics.mean(values(records, 'val_loss')):.3f}",
                f"{statistics.median(seconds[key]):.0f}" if key in seconds else "–",
                f"{statistics.mean(values(records, 'epochs')):.1f}",
                links(records),
            ]
        )
    head = ("changed", "validation, % (each seed)", "points", "loss", "seconds", "epochs", "seeds")
    return table(head, lines)


def adamw_table() -> list[str]:
    rows = [
        [
            rate,
            spread(accuracies(records, "val_acc"), ".2f"),
            spread(values(records, "val_loss"), ".3f"),
            links(records),
        ]
        for rate, records in adamw_records().items()
    ]
    return table(("AdamW's learning rate", "validation, %", "loss", "seeds"), rows)


def law_table() -> list[str]:
    records = load("law")
    columns = sorted({(r["data"], budget(r)) for r in records}, key=lambda c: (c[0], float(c[1])))
    cells = {(r["arm"], r["data"], budget(r)): r for r in records}
    best = {c: max(values((r for k, r in cells.items() if k[1:] == c), "val_acc")) for c in columns}
    rows = []
    for arm in sorted({r["arm"] for r in records}, key=lambda arm: int(arm.split()[0])):
        row = [arm]
        for column in columns:
            record = cells.get((arm, *column))
            if record is None:
                row.append("–")
                continue
            figures = record["figures"]
            accuracy = f"[{100 * figures['val_acc']:.1f}](#{record['id']})"
            if figures["val_acc"] == best[column]:
                accuracy = f"**{accuracy}**"
            row.append(f"{accuracy} (loss {figures['val_loss']:.3f}, {figures['epochs']:.1f} epochs)")
        rows.append(row)
    return table(["network", *(f"{DATA[data]}, {amount}" for data, amount in columns)], rows)


def runs_table() -> list[str]:
    rows = []
    for record in trainings():
        figures = record["figures"]
        peak = figures.get("peak_memory_mib")
        rows.append(
            [
                f'<a id="{record["id"]}"></a>`{record["id"]}`',
                f"{STUDIES[record['study']]}: {record['arm']}",
                budget(record),
                f"{figures['epochs']:.1f}",
                spread(minutes([record])),
                spread(images_per_second([record]), ",.0f"),
                spread(accuracies([record], "val_acc")),
                spread(accuracies([record], "test_acc")),
                spread(accuracies([record], "test_acc_with_flips")),
                f"{peak:,}" if peak else "–",
                record["path"],
                machine_letters()[machine(record)],
                f"`{record['commit'][:7]}`",
            ]
        )
    head = (
        "id",
        "study: variant",
        "training FLOPs",
        "epochs",
        "minutes",
        "images/s",
        "validation, %",
        "test, %",
    )
    return table(
        [*head, "test with flips, %", "peak MiB", "backend, precision", "machine", "commit"],
        rows,
    )


def other_table() -> list[str]:
    """The records that are no trainings."""
    rows = [
        [
            f'<a id="{record["id"]}"></a>`{record["id"]}`',
            f"`{record['command']}`" if record["command"] else "–",
            machine_letters()[machine(record)],
            f"`{record['commit'][:7]}`",
        ]
        for record in load()
        if record["study"] not in (*STUDIES, "folders", "folders-rates")  # these have tables of their own
    ]
    return table(("id", "command", "machine", "commit"), rows)


def notes_table() -> list[str]:
    rows = [[f"`{record['id']}`", record["note"]] for record in load() if "note" in record]
    return table(("id", "note"), rows)


def machine(record: Record) -> tuple[str, str, str, str]:
    known = record["machine"]
    threads = str(known.get("threads", "not recorded"))
    return known["name"], threads, known["instruction_sets"], record["versions"].get("torch", "not used")


def machine_letters() -> dict[tuple[str, str, str, str], str]:
    return {each: chr(ord("A") + n) for n, each in enumerate(sorted({machine(r) for r in load()}))}


def machines_table() -> list[str]:
    rows = []
    for each, letter in machine_letters().items():
        own = [record["machine"] for record in load() if machine(record) == each]
        speeds = [known["bf16_gflops"] for known in own if "bf16_gflops" in known]
        rows.append([letter, *each, spread(speeds, ".0f"), len(own)])
    head = ("", "processor", "threads", "vector extensions", "torch")
    return table([*head, "bf16 matrix multiplications, GFLOP/s", "records"], rows)


def reads_text() -> list[str]:
    """How often the test split was read."""
    reads = [r for r in load() if "test_acc" in r["figures"]]
    flips, shifts = (
        [r for r in reads if f"test_acc_with_{views}" in r["figures"]] for views in ("flips", "shifts")
    )
    replaced = [r for r in reads if r["study"] == "make-train" and r["command"] is None]
    titles = DATA | {"trashnet": "TrashNet", "fashion-mnist": "Fashion-MNIST"}
    kinds = grouped(reads, lambda r: SETS[r["data"]].origin if r["data"] in SETS else r["data"])
    golden_runs = [
        case["summary"]
        for record in load("golden")
        for cases in record["figures"].values()
        for case in cases.values()
    ]
    short_runs = [s for s in golden_runs if s.get("data") == "cifar10" and "test_acc" in s]
    counts = listed([f"{len(records)} on {titles[data]}" for data, records in sorted(kinds.items())])
    sentences = [
        f"{len(reads)} runs on record read a test split, {counts}.",
        "Each evaluated on it once, at its end, and `test_acc` is from that pass.",
        f"{len(flips)} then made a pass over the mirrored images too, for a column of its own.",
    ]
    if shifts:
        sentences += [
            f"{len(shifts)} of these also made four passes over shifted images: by one pixel towards two opposite "
            "corners, each as it is and mirrored."
        ]
    if replaced:
        sentences += [
            f"{len(replaced)} of the {len(reads)} are earlier runs of `make train`. Later runs had replaced their "
            "records, which were restored from the git history.",
        ]
    if short_runs:
        steps = [summary["steps"] for summary in short_runs]
        sentences += [
            f"The record `golden` holds {len(golden_runs)} short trainings. {len(short_runs)} of them, of "
            f"{min(steps)} to {max(steps)} steps, also read CIFAR-10's test split. "
            f"The other {len(golden_runs) - len(short_runs)} train on a folder of images.",
            "They compare bits between versions, and nothing is chosen by their accuracy.",
        ]
    return [" ".join(sentences)]


def listed(items: list[str]) -> str:
    """Items as a sentence lists them: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def published_table() -> list[str]:
    rows = []
    for row in sorted(PUBLISHED, key=lambda row: row.train_flops):
        source = f"[arXiv {row.arxiv}](https://arxiv.org/abs/{row.arxiv})"
        rows.append(
            [
                row.name,
                source + (f", [authors' repository]({row.source})" if row.source else ""),
                row.epochs,
                f"{row.images:g} million",
                f"{row.macs} million",
                short(row.train_flops),
                *(f"{row.accuracy[data]:g}" if data in row.accuracy else "–" for data in DATA),
            ]
        )
    head = ("network", "source", "epochs", "images seen", "multiply-adds an image", "training FLOPs")
    return table([*head, *(f"{name} test, %" for name in DATA.values())], rows)


TABLES = {
    "final": final_table,
    "reads": reads_text,
    "stem": stem_table,
    "ablation": ablation_table,
    "adamw": adamw_table,
    "law": law_table,
    "published": published_table,
    "machines": machines_table,
    "runs": runs_table,
    "other": other_table,
    "notes": notes_table,
}


# ---- plots

SERIES = {  # each has one colour in all panels and plots
    "default recipe": "C0",
    "default recipe, linear patches": "C3",
    "make train (45,000 images train)": "C2",
    "earlier default recipes": "C1",
    "notebook's network and recipe": "C4",
    "CCT-2/3x2 by its own recipe": "C5",
}
TICKS = (30, 40, 50, 60, 70, 80, 85, 90, 93, 95, 97)  # of a wide range of accuracies
WIDTHS = {"96 wide": "C6", "128 wide": "C8", "192 wide": "C9"}
WIDTH, HEIGHT = 6.2, 8.4  # inches: two panels above each other, readable on a phone


def series_of(record: Record) -> str:
    kinds = {
        "make-train": "make train (45,000 images train)",
        "earlier": "earlier default recipes",
        "notebook": "notebook's network and recipe",
        "peer-recipe": "CCT-2/3x2 by its own recipe",
    }
    if record["study"] in kinds:
        return kinds[record["study"]]
    return (
        "default recipe, linear patches" if record["arm"].startswith("linear patches") else "default recipe"
    )


def plot_accuracy(file: Path, cost: str) -> None:
    """Test accuracy against training FLOPs, with published figures, or against minutes: a panel for each data set."""
    scale = 1 / 60 if cost == "total_seconds" else 1.0
    records = [r for r in trainings() if "test_acc" in r["figures"] and r["command"] is not None]
    if cost == "total_seconds":
        records = timed(records)
    chart, axes = panels(HEIGHT + 1.4 if cost == "train_flops" else HEIGHT)
    for axis, (data, title) in zip(axes, DATA.items(), strict=True):
        own = [r for r in records if r["data"] == data]
        arms = grouped(own, lambda r: (series_of(r), r["study"], r["arm"], r["id"].rpartition("-seed")[0]))
        for (series, *_), runs in arms.items():
            x, y = values(runs, cost, scale), accuracies(runs, "test_acc")
            middle = statistics.median(x), statistics.median(y)
            for numbers, errors in ((x, "xerr"), (y, "yerr")):
                if len(numbers) > 1 and max(numbers) > min(numbers):
                    at = statistics.median(numbers)
                    low_high = [[at - min(numbers)], [max(numbers) - at]]
                    axis.errorbar(*middle, **{errors: low_high}, color=SERIES[series], lw=1, capsize=2)
            axis.plot(*middle, "o", color=SERIES[series], ms=7, mec="white", mew=0.6)
        if cost == "train_flops":
            for row in PUBLISHED:
                if data in row.accuracy:
                    axis.plot(row.train_flops, row.accuracy[data], row.marker, color="0.35", mfc="none", ms=7)
        axis.set(xscale="log", ylabel="test accuracy, % (log scale of the error)", title=title)
        shown = accuracies(own, "test_acc")
        if cost == "train_flops":
            shown += [row.accuracy[data] for row in PUBLISHED if data in row.accuracy]
        scale_errors(axis, shown)
        axis.grid(alpha=0.3)
    if cost == "total_seconds":
        axes[1].set_xticks([3, 5, 10, 20, 40], ["3", "5", "10", "20", "40"])
        axes[1].minorticks_off()
        axes[1].set_xlabel("minutes on two cores, all told (median and range of the same runs)")
    else:
        axes[1].set_xlabel("training FLOPs")
    used = {series_of(r) for r in records}
    handles = [dot("o", color, name) for name, color in SERIES.items() if name in used]
    if cost == "train_flops":
        handles += [
            dot(row.marker, "0.35", f"{row.name}, published (arXiv {row.arxiv})", hollow=True)
            for row in PUBLISHED
        ]
    save(chart, file, handles)


def plot_law(file: Path) -> None:
    """Validation accuracy against training FLOPs, a line for each width, a panel for each data set."""
    records = load("law")
    chart, axes = panels()
    for axis, (data, title) in zip(axes, DATA.items(), strict=True):
        for arm, runs in grouped((r for r in records if r["data"] == data), lambda r: r["arm"]).items():
            points = sorted((flops(r), 100 * r["figures"]["val_acc"], r["figures"]["epochs"]) for r in runs)
            axis.plot([p[0] for p in points], [p[1] for p in points], "o-", color=WIDTHS[arm])
        axis.set(xscale="log", ylabel="validation accuracy, %", title=title)
        axis.grid(alpha=0.3)
    amounts = sorted({budget(r) for r in records}, key=float)
    axes[1].set_xticks([float(amount) for amount in amounts], amounts)
    axes[1].minorticks_off()
    axes[1].set_xlabel("training FLOPs")
    save(chart, file, [dot("o", color, arm) for arm, color in WIDTHS.items()])


def plot_dial(file: Path) -> None:
    """The choices of the dial: the network by training FLOPs above, the strengths by epochs below."""
    chart, (sizes, strengths) = panels(sharex=False)
    starts = [max(start, dial.SIZES[1][0] / 10) for start, _ in dial.SIZES]
    widths = [size["embed_dim"] for _, size in dial.SIZES]
    ends = [*starts, 10 * starts[-1]]
    sizes.stairs(widths, ends, baseline=None, color="C0")
    for start, end, (_, size) in zip(ends, ends[1:], dial.SIZES, strict=False):
        text = f"{size['embed_dim']} wide\n{size['depth']} layers"
        sizes.text(np.sqrt(start * end), size["embed_dim"], text, ha="center", va="bottom", fontsize=9)
    sizes.set(xscale="log", xlim=(ends[0], ends[-1]), ylim=(0, 1.25 * max(widths)))
    sizes.set(xlabel="training FLOPs", ylabel="width of a token", title="network")

    epochs = np.geomspace(1, 256, 400)
    for index, (key, line) in enumerate(dial.STRENGTHS.items()):
        strongest = max(line.strength)
        unit = {"1": "", "side": " of the side", "run": " times a weight over the run"}[line.unit]
        label = f"{key.partition('.')[2]}, up to {strongest:g}{unit}"
        shares = [line.at(number) / strongest for number in epochs]
        strengths.plot(epochs, shares, color=f"C{index}", ls=("-", "--", ":", "-.")[index % 4], label=label)
    ticks = [2**power for power in range(9)]
    strengths.set(
        xscale="log",
        xlim=(1, 256),
        ylim=(0, None),
        xlabel="epochs that the run makes",
        ylabel="share of the strongest",
    )
    strengths.set_title("strengths")
    strengths.set_xticks(ticks, [str(tick) for tick in ticks])
    for axis in (sizes, strengths):
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    save(chart, file, strengths.get_legend_handles_labels()[0])


def scale_errors(axis: Any, shown: list[float]) -> None:
    """Stretches high accuracies on the y axis: equal steps are equal ratios of errors."""
    low, high = np.log(100 - np.array([min(shown), max(shown)]))
    margin = 0.08 * (low - high)
    axis.set_yscale("function", functions=(lambda y: -np.log(100.0 - y), lambda z: 100.0 - np.exp(-z)))
    axis.set_ylim(100 - np.exp(low + margin), 100 - np.exp(high - margin))
    span = max(shown) - min(shown)
    locator = mpl.ticker.MultipleLocator(2 if span < 12 else 5)
    axis.yaxis.set_major_locator(mpl.ticker.FixedLocator(TICKS) if span > 30 else locator)


def panels(height: float = HEIGHT, sharex: bool = True) -> tuple[Any, Any]:
    plt.rcParams["svg.hashsalt"] = "vitreous"  # the same bytes from the same records
    return plt.subplots(2, 1, figsize=(WIDTH, height), sharex=sharex, layout="constrained")


def dot(marker: str, color: str, label: str, hollow: bool = False) -> Any:
    fill_color = "none" if hollow else color
    return mpl.lines.Line2D([], [], ls="", marker=marker, color=color, mfc=fill_color, label=label)


def save(chart: Any, file: Path, handles: list[Any]) -> None:
    longest = max(len(handle.get_label()) for handle in handles)
    columns = 3 if longest < 12 else 2 if longest < 34 else 1
    chart.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    chart.savefig(file, metadata={"Date": None})
    plt.close(chart)


if __name__ == "__main__":
    main()
