"""The report page of plausible, broken, hostile and half-finished runs."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitreous.bundle import Bundle, save_bundle
from vitreous.charts import pick, round_marks, thin
from vitreous.dial import apply_strengths, strength_keys, strengths_at
from vitreous.errors import VitreousError
from vitreous.metrics import Figures, SplitMetrics
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.preprocess import Preprocess
from vitreous.recipe import load
from vitreous.report import CARDS, TWINS, _command, _grid, write_report
from vitreous.run import Predictions, note_test_read, write_predictions, write_recipe
from vitreous.statistics import interval

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUNDRED = tuple(f"kind {i:02}" for i in range(100))

RECIPE = """
name = "default"
[model]
variant = "compact"
embed_dim = 128
stem_dims = [64, 128]
qk_norm = true
[optimizer]
name = "muon"
learning_rate = 2e-3
[budget]
minutes = 5.0
[resolved]
fingerprint = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
data_source = "a mirror"
steps_per_epoch = 175
exact = true
[resolved.versions]
torch = "2.13.0"
vitreous = "0.1.0"
[resolved.machine]
name = "a processor"
precision = "bf16"
reasons = ["precision: bf16, chosen by timing", "attention: fused, chosen by timing"]
[resolved.request]
data = "cifar10"
seed = 42
image_size = 48
skip_bad = true
"""


def predictions_of(num_classes: int, strength: float, seed: int) -> Predictions:
    """Predictions of a classifier with favourite confusions, over unequal classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), rng.integers(60, 110, num_classes))
    logits = rng.normal(size=(len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += strength + rng.normal(size=num_classes)[labels]
    logits[np.arange(len(labels)), rng.permutation(num_classes)[labels]] += strength / 2
    names = np.array([f"split{seed}/image{i:05}.png" for i in range(len(labels))])
    return Predictions(names, labels, logits.astype(np.float32))


def figures_of(predictions: Predictions) -> Figures:
    metrics = SplitMetrics(predictions.logits.shape[1])
    metrics.update(torch.tensor(predictions.logits), torch.tensor(predictions.labels))
    return metrics.compute()


def make_run(path: Path, classes: tuple[str, ...] = CIFAR10, rows: int = 60) -> Path:
    """Writes a finished run with everything that a report reads."""
    path.mkdir(parents=True)
    (path / "recipe.toml").write_text(RECIPE, encoding="utf-8")

    strength = 2.0 + np.log(len(classes)) / 2
    outputs = {
        split: predictions_of(len(classes), strength, seed) for seed, split in ((1, "val"), (2, "test"))
    }
    write_predictions(path / "predictions.npz", outputs)
    val, test = map(figures_of, outputs.values())
    summary = {
        **val.named("val"),
        **test.named("test"),
        "data": "cifar10",
        "parameters": 812_394,
        "train_flops": 5.13e13,
        "train_seconds": 271.4,
        "total_seconds": 299.1,
        "images_per_second": 919.7,
        "epochs": 5.5,
        "steps": 975,
        "seed": 42,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    evaluation: dict[str, Any] = {"classes": classes}
    for split, figures in (("val", val), ("test", test)):
        evaluation[split] = {
            "figures": figures.scalars,
            "per_class": figures.per_class,
            "confusion": figures.confusion,
        }
    (path / "evaluation.json").write_text(json.dumps(evaluation))

    rng = np.random.default_rng(0)
    with (path / "metrics.csv").open("w", newline="") as file:
        names = ["step", "epoch", "seconds", "learning_rate", "train_loss", "val_loss", "val_acc"]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for i in range(1, rows + 1):
            done = i / rows
            row = {"step": round(975 * done), "epoch": 5.5 * done, "seconds": 271.4 * done}
            row["learning_rate"] = 0.02 * min(done / 0.1, (1 - done) / 0.9)
            row["train_loss"] = 0.75 + 1.6 * np.exp(-4 * done) + rng.normal() * 0.04
            if i % max(rows // 6, 1) == 0:
                row["val_loss"], row["val_acc"] = row["train_loss"] + 0.08, 0.79 - 0.6 * np.exp(-5 * done)
            writer.writerow(row)

    count = 24
    true = rng.integers(0, len(classes), count)
    np.savez(
        path / "mistakes.npz",
        images=rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2),
        label=true,
        predicted=(true + 1) % len(classes),
        confidence=np.linspace(0.999, 0.8, count, dtype=np.float32),
        name=np.array([f"test:{i}" for i in range(count)]),
    )
    return path


class Page(HTMLParser):
    """What a browser would make of the page: its elements, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, style: str = "") -> list[dict[str, str | None]]:
        return [
            a
            for name, a in self.elements
            if name == tag and (not style or style in (a.get("class") or "").split())
        ]


def report(path: Path) -> Page:
    return Page(write_report(path).read_text(encoding="utf-8"))


def decode(uri: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode((uri or "").partition(",")[2])))


def test_a_finished_run_shows_its_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = report(run)
    test = json.loads((run / "evaluation.json").read_text())["test"]
    for key in ("acc", "majority", "cat_f1", "ece"):
        assert f"{100 * test['figures'][key]:.0f}\u202f%" in page.text  # fewer than 1,000 images
    assert f"{test['figures']['loss']:.3f}" in page.text
    assert "no test metrics" not in page.text
    for expected in (
        "cifar10",
        "4:31",
        "5.13\u202f×\u202f10¹³",
        "812,394",
        "2.13.0",
        "9f86d081884c7d65",
        "a processor",
    ):
        assert expected in page.text
    assert f"vitreous train --repeat {run}" in page.text


def test_the_matrix_counts_true_by_row_and_predicted_by_column(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = report(run)
    confusion = json.loads((run / "evaluation.json").read_text())["test"]["confusion"]
    titles = {title for name, a in page.elements if name == "td" and (title := a.get("title"))}
    assert titles == {f"{CIFAR10[i]} → {CIFAR10[j]}: {confusion[i][j]}" for i in range(10) for j in range(10)}


def test_mistakes_are_the_pictures_themselves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = report(run)
    stored = np.load(run / "mistakes.npz")
    shown = page.all("img")
    assert len(shown) == len(stored["images"])
    for name in stored["name"]:
        assert str(name) in page.text
    for picture, image, true, predicted in zip(
        shown, stored["images"], stored["label"], stored["predicted"], strict=True
    ):
        assert np.array_equal(np.array(decode(picture["src"])), image)
        assert picture["alt"] == f"{CIFAR10[true]}, predicted {CIFAR10[predicted]}"


def test_many_classes_become_a_picture_and_a_list(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", HUNDRED)
    page = report(run)
    confusion = np.array(json.loads((run / "evaluation.json").read_text())["test"]["confusion"])
    alpha = np.array(decode(page.all("img", "map")[0]["src"]))[..., 3]
    assert np.array_equal(np.sort((alpha > 0).sum(axis=1)), np.sort((confusion > 0).sum(axis=1)))
    assert (alpha > 0).sum() == (confusion > 0).sum() and (np.diag(alpha) > 0).sum() == (
        np.diag(confusion) > 0
    ).sum()
    wrong = confusion * (1 - np.eye(100, dtype=int))
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    first = page.text.partition("percent of the true class.")[2].split(")")[0]
    assert " ".join(first.split()).startswith(f"{HUNDRED[true]} → {HUNDRED[predicted]}{wrong.max()} ")
    cells = [title for name, a in page.elements if name == "td" and (title := a.get("title"))]
    assert cells  # of the groups
    for title in cells:
        pair, _, number = title.rpartition(": ")
        i, j = (HUNDRED.index(name) for name in pair.split(" → "))
        assert int(number) == confusion[i, j]
    assert "Top-5 accuracy" in page.text


def test_it_needs_nothing_from_anywhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = report(run)
    for name, attributes in page.elements:
        assert name not in ("script", "iframe", "object", "embed", "base")
        for key in ("src", "href", "srcset", "action", "xlink:href"):
            assert (attributes.get(key) or "data:").startswith(("data:", "#"))
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'")
    html = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://", html)
    assert len(html) < 400_000


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "cats & <dogs>",
    "</style></title><h1>",
    "猫と犬",
    "كلب",
    "\udcff.png",  # a file name that is no text
    "--></svg>",
)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    plain = report(make_run(tmp_path / "plain"))
    run = make_run(tmp_path / "<b>run & 'more'", HOSTILE)
    summary = json.loads((run / "summary.json").read_text()) | {"data": "<i>my data</i>"}
    (run / "summary.json").write_text(json.dumps(summary))
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(
        recipe.replace('"cifar10"', "'<i>my \"data\"</i>'").replace("a processor", "<u>&")
    )
    mistakes = dict(np.load(run / "mistakes.npz"))
    np.savez(run / "mistakes.npz", **(mistakes | {"name": np.array(["<img src=x>"] * 24)}))

    page = report(run)
    assert {name for name, _ in page.elements} == {name for name, _ in plain.elements}
    assert {key for _, a in page.elements for key in a} == {key for _, a in plain.elements for key in a}
    for name in HOSTILE:
        assert name.encode(errors="replace").decode() in page.text
    rows = list(csv.reader((run / "label-errors.csv").open(encoding="utf-8", newline="")))
    assert len({len(row) for row in rows}) == 1
    assert (
        "<i>my data</i>" in page.text
        and '<i>my "data"</i>' in page.text
        and "<u>&" in page.text
        and "<b>run & 'more'" in page.text
    )


@pytest.mark.parametrize("rows", [2, 60, 5000])
def test_curves_run_from_start_to_end(tmp_path: Path, rows: int) -> None:
    page = report(make_run(tmp_path / "run", rows=rows))
    curves = page.all("polyline")
    assert len(curves) == 4  # training and validation loss, validation accuracy, learning rate
    for curve in curves:
        points = [tuple(map(float, point.split(","))) for point in (curve["points"] or "").split()]
        assert 1 <= len(points) <= 100
        assert points == sorted(points)
        assert points[-1][0] == 344  # the right edge
        assert all(10 <= y <= 176 for _, y in points)


def test_a_long_curve_keeps_its_mean_and_its_end() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    points = [(float(i), float(value)) for i, value in enumerate(values)]
    thinned = thin(points)
    assert len(thinned) == 100 and thinned[-1] == points[-1]
    assert [value for _, value in thinned[:-1]] == pytest.approx(values[:990].reshape(99, 10).mean(axis=1))


@pytest.mark.parametrize(
    ("high", "marks"),
    [
        (2.3, [0, 0.5, 1.0, 1.5, 2.0, 2.5]),
        (0.79, [0, 0.2, 0.4, 0.6, 0.8]),
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (975, [0, 200, 400, 600, 800, 1000]),
        (0, [0, 1]),
    ],
)
def test_axis_marks_are_round_and_reach_the_top(high: float, marks: list[float]) -> None:
    assert round_marks(high, 5) == pytest.approx(marks)


def test_an_interrupted_run_says_that_it_has_no_test_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("evaluation.json", "summary.json", "mistakes.npz", "predictions.npz"):
        (run / name).unlink()
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text + "976,5.51,27")  # killed while writing
    page = report(run)
    assert "There are no test metrics." in page.text
    assert f"vitreous train --resume {run}" in page.text
    assert "Validation accuracy" in page.text and "Test accuracy" not in page.text
    last = [row for row in csv.DictReader(io.StringIO(text)) if row["val_acc"]][-1]
    assert f"{100 * float(last['val_acc']):.1f}" in page.text


def test_a_run_that_hardly_began_still_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path in run.iterdir():
        if path.name != "recipe.toml":
            path.unlink()
    page = report(run)
    assert "There are no test metrics." in page.text
    assert not page.all("svg") and not page.all("table")
    assert "compact" in page.text


def test_figures_of_validation_alone_show_its_matrix(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    del evaluation["test"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "summary.json").unlink()
    assert "Validation split: one row per true class" in report(run).text


@pytest.mark.parametrize(("count", "words"), [(0, "once"), (1, "once"), (2, "twice"), (3, "3 times")])
def test_calibration_and_the_reads_of_test_are_shown(tmp_path: Path, count: int, words: str) -> None:
    run = make_run(tmp_path / "run")
    extra = {"temperature": 1.2345, "val_ece_calibrated": 0.0123, "test_ece_calibrated": 0.0456}
    summary = json.loads((run / "summary.json").read_text()) | extra
    (run / "summary.json").write_text(json.dumps(summary))
    for _ in range(count):
        note_test_read(run, "evaluate")
    text = report(run).text
    assert f"The test split was read {words}." in text
    assert "temperature of 1.23, fitted on validation" in text
    assert "1\u202f%" in text and "5\u202f%" in text


def test_a_test_split_that_was_left_unread_is_said_to_be(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("summary.json", "evaluation.json"):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({k: v for k, v in content.items() if not k.startswith("test")}))
    assert "The test split has not been read." in report(run).text


@pytest.mark.parametrize(
    ("length", "slope", "expected"),
    [
        ("epochs=15", 0, "--epochs 8"),
        ("epochs=1", 0, ""),
        ("steps=3", 0, "--steps 2"),
        ("steps=1_000_000", 1, "--steps 2000000"),
        ("epochs=15", 1, "--epochs 30"),
        ("minutes=5", 0, "--minutes 2.5"),
    ],
)
def test_the_length_that_is_advised_is_one_that_the_command_takes(
    tmp_path: Path, length: str, slope: float, expected: str
) -> None:
    run = make_run(tmp_path / "run")
    write_recipe(run, load("default", [length]), tomllib.loads(RECIPE)["resolved"])
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "finished"}))
    set_validations(run, lambda step: 0.5 + slope * step / 2000)
    advised = re.findall(r"vitreous train cifar10 [^\n]*?(--(?:epochs|steps|minutes) \S+)", report(run).text)
    assert advised == ([expected] if expected else [])
    if expected:
        option, amount = expected.removeprefix("--").split()
        load("default", [f"{option}={amount}"])


def set_validations(run: Path, accuracy: Callable[[int], float]) -> None:
    """Gives a run validations whose accuracy is this function of the step."""
    rows = list(csv.DictReader(io.StringIO((run / "metrics.csv").read_text())))
    for row in rows:
        if row["val_acc"]:
            row["val_acc"] = str(accuracy(int(row["step"])))
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_training_longer_takes_the_strengths_of_a_longer_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    resolved = tomllib.loads(RECIPE)["resolved"] | {"image_size": 32}
    sized = load("default", ["cutout=3", "minutes=5"])
    recipe = apply_strengths(sized, strengths_at(sized, 975, 175, 32, strength_keys(sized)))
    dial = {"augment.crop": [2], "augment.mixup": [0.0], "optimizer.weight_decay": [0.3]}
    write_recipe(run, recipe, resolved | {"dial": dial})
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "finished"}))
    set_validations(run, lambda step: step / 1100)

    line = re.search(r"vitreous train cifar10 [^\n]*--minutes 10[^\n]*", report(run).text)
    assert line
    values = dict(re.findall(r"([\w.]+)=([\d.]+)", line[0]))
    # 1,950 steps are 11.14 epochs: the crop is still 2, mixing is 0, and the decay sums up to 4.69.
    total = 3 + 15 * math.log(1950 / 175 / 8) / math.log(150 / 8)
    assert values == {"optimizer.weight_decay": f"{total / 975 / 0.02:.4f}".rstrip("0")}


def test_a_diverged_run_is_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text + "980,5.6,280,0.1,nan,nan,inf\n")
    summary = json.loads((run / "summary.json").read_text()) | {
        "val_loss": float("nan"),
        "train_flops": float("inf"),
    }
    (run / "summary.json").write_text(json.dumps(summary))
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["test"]["figures"]["loss"] = None
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert len(report(run).all("polyline")) == 4


def test_a_run_on_arrays_is_repeated_from_python(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "recipe.toml").write_text(RECIPE.replace('data = "cifar10"', 'data = "arrays"'))
    assert f"vitreous.repeat('{run}', (images, labels))" in report(run).text


def spoil_matrix(run: Path) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["test"]["confusion"] = [[1, 2], [3, 4]]
    (run / "evaluation.json").write_text(json.dumps(evaluation))


def spoil_suspects(run: Path, **changed: Any) -> None:
    arrays = {
        "images": np.zeros((2, 8, 8, 3), np.uint8),
        "split": np.array(["val", "test"]),
        "position": np.arange(2),
    }
    np.savez(run / "label_errors.npz", **(arrays | changed))


def spoil_mistakes(run: Path, **changed: Any) -> None:
    np.savez(run / "mistakes.npz", **(dict(np.load(run / "mistakes.npz")) | changed))


SPOILERS = {
    "summary.json": [
        lambda run: (run / "summary.json").write_text("{"),
        lambda run: (run / "summary.json").write_text("[]"),
    ],
    "recipe.toml": [
        lambda run: (run / "recipe.toml").write_bytes(b"\xff\xfe"),
        lambda run: (run / "recipe.toml").write_text("a ="),
    ],
    "evaluation.json": [
        lambda run: (run / "evaluation.json").write_text("[1]"),
        lambda run: (run / "evaluation.json").write_text("[" * 100_000),
        spoil_matrix,
    ],
    "metrics.csv": [
        lambda run: (run / "metrics.csv").write_text("step,val_acc\n1,high\n"),
        lambda run: (run / "metrics.csv").write_text("epoch,val_acc\n1,0.5\n"),
        lambda run: (run / "metrics.csv").write_text("step,val_acc\n1\n"),
        lambda run: (run / "metrics.csv").write_bytes(b"\xff\xfe\n"),
    ],
    "test_reads.json": [lambda run: (run / "test_reads.json").write_text("{}")],
    "label_errors.npz": [
        lambda run: (run / "label_errors.npz").write_bytes(b"PK no zip"),
        lambda run: spoil_suspects(run, images=np.zeros((2, 8, 8, 3))),
        lambda run: spoil_suspects(run, position=np.zeros(2)),
        lambda run: spoil_suspects(run, split=np.array(["val"])),
        lambda run: spoil_suspects(run, split=np.array([print] * 2, dtype=object)),
    ],
    "mistakes.npz": [
        lambda run: (run / "mistakes.npz").write_bytes(b"PK no zip"),
        lambda run: spoil_mistakes(run, name=np.array([print] * 24, dtype=object)),  # would need pickle
        lambda run: spoil_mistakes(run, label=np.full(24, 99)),
        lambda run: spoil_mistakes(run, predicted=np.full(24, -1)),
        lambda run: spoil_mistakes(run, images=np.zeros((24, 8, 8, 3))),
        lambda run: spoil_mistakes(run, images=np.zeros((24, 0, 8, 3), np.uint8)),
        lambda run: spoil_mistakes(run, label=np.zeros(24)),
        lambda run: spoil_mistakes(run, predicted=np.zeros(24)),
        lambda run: spoil_mistakes(run, confidence=np.full(24, "high")),
        lambda run: spoil_mistakes(run, confidence=np.zeros((24, 2), np.float32)),
        lambda run: spoil_mistakes(run, label=np.zeros((24, 1), np.int64)),
        lambda run: spoil_mistakes(run, name=np.arange(24)),
        lambda run: spoil_mistakes(run, label=np.int64(3)),
    ],
}


@pytest.mark.parametrize(
    ("name", "spoil"), [(name, spoil) for name, all_ in SPOILERS.items() for spoil in all_]
)
def test_a_damaged_file_is_named_and_the_old_page_stays(tmp_path: Path, name: str, spoil: Any) -> None:
    run = make_run(tmp_path / "run")
    (run / "report.html").write_text("old")
    spoil(run)
    with pytest.raises(VitreousError) as caught:
        write_report(run)
    assert str(run / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (run / "report.html").read_text() == "old"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VitreousError, match="There is no run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(VitreousError, match="is not a run folder"):
        write_report(tmp_path)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_draws_it_without_complaint(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", HOSTILE))
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=500,900"]
    done = subprocess.run(
        [*command, f"--screenshot={tmp_path / 'page.png'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # A refused request, a broken policy or any script would be said here.
    assert "CONSOLE" not in done.stderr
    assert len(Image.open(tmp_path / "page.png").convert("RGB").getcolors(1 << 20) or []) > 50


def test_the_command_repeats_the_run() -> None:
    assert shlex.split(_command(Path("my run"), {"data": "cifar10"})) == [
        "vitreous", "train", "--repeat", "my run",
    ]  # fmt: skip
    assert _command(Path("r"), {"data": "arrays"}).startswith("vitreous.repeat('r', (images, labels))")


@pytest.mark.parametrize("choices", [CARDS, TWINS])
def test_no_row_of_cards_holds_a_single_one(choices: dict[str, tuple[int, ...]]) -> None:
    for cards in range(2, 60):
        shown, *columns = _grid(cards, **choices)
        assert cards - 1 <= shown <= cards
        assert all(shown <= each or shown % each != 1 for each in columns)
    assert _grid(1, **choices).shown == 1 and _grid(0, **choices).shown == 0


def test_the_first_screen_says_how_good_and_where_it_fails(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    text = re.sub("[ \n]+", " ", report(run).text)
    matrix = np.array(json.loads((run / "evaluation.json").read_text())["test"]["confusion"])
    images, right = matrix.sum(), np.trace(matrix)
    low, high = interval(int(right), int(images))
    assert f"{100 * low:.0f} to {100 * high:.0f}\u202f% is the 95\u00a0% interval on {images} images." in text
    assert f"{images - right} of {images} test images are classified wrongly." in text
    wrong = matrix - np.diag(np.diag(matrix))
    for place in np.argsort(-wrong, axis=None, kind="stable")[:3]:
        i, j = np.unravel_index(place, wrong.shape)
        assert f"{CIFAR10[i]} → {CIFAR10[j]}{wrong[i, j]} of {matrix[i].sum()}" in text
    weakest = int((np.diag(matrix) / matrix.sum(axis=1)).argmin())
    assert (
        f"{CIFAR10[weakest]}: {matrix[weakest, weakest]} of {matrix[weakest].sum()} images recognised."
        in text
    )


def test_planted_label_errors_are_listed_with_their_images(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(10), 60)
    logits = rng.normal(size=(600, 10)).astype(np.float32)
    logits[np.arange(600), labels] += 9
    planted = rng.choice(600, 12, replace=False)
    names = np.array([f"=folder/{i}.png" for i in range(600)])
    given = labels.copy()
    given[planted] = (given[planted] + 1 + rng.integers(0, 9, 12)) % 10
    outputs = {split: Predictions(names, given, logits) for split in ("val", "test")}
    write_predictions(run / "predictions.npz", outputs)
    images = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(run / "label_errors.npz", images=images, split=np.array(["val"] * 12), position=planted)

    page = report(run)
    rows = list(csv.DictReader((run / "label-errors.csv").open(encoding="utf-8", newline="")))
    for split in ("val", "test"):
        found = [row for row in rows if row["split"] == split]
        assert {row["name"] for row in found} == {
            f"'=folder/{i}.png" for i in planted
        }  # no formula for a spreadsheet
        for row in found:
            place = int(row["name"].split("/")[1].removesuffix(".png"))
            assert row["label"] == CIFAR10[given[place]] and row["predicted"] == CIFAR10[labels[place]]
    alts = [img["alt"] for img in page.all("img")]
    drawn = [
        np.array(decode(img["src"])) for img in page.all("img") if (img["alt"] or "").startswith("labelled")
    ]
    assert sorted(image.tobytes() for image in drawn) == sorted(image.tobytes() for image in images)
    assert f"labelled {CIFAR10[given[planted[0]]]}, predicted {CIFAR10[labels[planted[0]]]}" in alts
    assert "sure of another class than the label" in page.text


def test_an_earlier_run_without_predictions_has_neither_label_errors_nor_reliability(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "predictions.npz").unlink()
    text = report(run).text
    assert "Probable label errors" not in text and "Reliability" not in text
    assert "Most confident mistakes" in text and not (run / "label-errors.csv").exists()


def test_heat_maps_lie_over_the_mistakes_if_there_is_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitreous.report.HEAT_FLOPS", 1e15)
    run = make_run(tmp_path / "run")
    assert not report(run).all("img", "heat")
    tiny = Architecture(embed_dim=16, num_heads=2, mlp_dim=16, depth=1, patch_size=8, stem="linear")
    torch.manual_seed(0)
    model = VisionTransformer(tiny, 32, 10).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_bundle(Bundle(model, CIFAR10, (0.5,) * 3, (0.25,) * 3, Preprocess(32)), run / "bundle")
    page = report(run)
    maps = [np.array(decode(img["src"])) for img in page.all("img", "heat")]
    assert len(maps) == 24 and {heat.shape for heat in maps} == {(4, 4, 4)}
    assert all(heat[..., 3].max() > 0 for heat in maps)
    assert "speaks for the wrong class: covering it lowers that probability" in page.text
    monkeypatch.setattr("vitreous.report.HEAT_FLOPS", 0.0)
    assert not report(run).all("img", "heat")
    monkeypatch.setattr("vitreous.report.HEAT_FLOPS", 1e15)
    (run / "bundle" / "config.json").write_text("{}")  # damaged: the report does without
    assert not report(run).all("img", "heat")


def test_learning_rates_are_drawn_as_they_were(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    steps = np.arange(1, 976)
    share = np.minimum(steps / 97, (975 - steps + 1) / 878)
    rows = [
        f"{step},{step / 175},{step / 4},{2e-3 * s},{2e-2 * s}" for step, s in zip(steps, share, strict=True)
    ]
    (run / "metrics.csv").write_text(
        "step,epoch,seconds,learning_rate,muon_learning_rate\n" + "\n".join(rows) + "\n"
    )
    resolved = {"image_size": 32, "timeline": {"fits": [[0, 975]]}, "request": {"data": "cifar10"}}
    write_recipe(run, load("default"), resolved)  # its images are smaller for the first 66 %
    page = report(run)
    (curve,) = page.all("polyline")  # one, since both have the same shape
    points = [tuple(map(float, point.split(","))) for point in (curve["points"] or "").split()]
    for x, y in points:  # on the schedule's own line, at its peak, and down to nearly 0
        step = (x - 52) / 292 * 975
        exact = min(step / 97, (975 - step + 1) / 878)
        assert (176 - y) / 162 == pytest.approx(exact, abs=0.02)
    assert min(y for _, y in points) == pytest.approx(14, abs=0.2) and points[-1][1] == pytest.approx(
        176, abs=0.5
    )
    assert "AdamW 0.002, Muon 0.02" in page.text
    (mark,) = page.all("line", "mark")
    assert float(mark["x1"] or 0) == pytest.approx(52 + 292 * 0.66, abs=0.5)
    assert "32 px" in page.text


def test_picked_points_are_points_of_the_curve() -> None:
    points = [(float(i), float(-abs(i - 333))) for i in range(5000)]
    chosen = pick(points)
    assert len(chosen) <= 100 and set(chosen) <= set(points)
    assert {points[0], points[333], points[-1]} <= set(chosen)


LONG = tuple(
    f"<b>a rather long name of class {i:03} of a collection & its many friends</b>" for i in range(200)
)


def test_many_classes_with_long_names_stay_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LONG)
    assert write_report(run).stat().st_size < 2_000_000
    assert LONG[7] in report(run).text


def overflow(page: Path, width: int, folder: Path) -> tuple[int, int]:
    """The width of a page's content and of its window, which is `width` pixels wide, in a frame of another page."""
    frame = folder / f"frame{width}.html"
    frame.write_text(
        f"<body style='margin:0'><iframe id=f src='{page.name}' style='border:0;width:{width}px;height:900px'></iframe>"
        "<script>onload = () => { const d = document.getElementById('f').contentDocument.documentElement;"
        "document.title = 'measured ' + d.scrollWidth + ' ' + d.clientWidth; }</script>"
    )
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    content, window = re.findall(r"measured (\d+) (\d+)", done.stdout)[0]
    return int(content), int(window)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("classes", [CIFAR10, LONG], ids=["10", "200"])
def test_a_phone_scrolls_up_and_down_only(tmp_path: Path, classes: tuple[str, ...]) -> None:
    page = write_report(make_run(tmp_path / "run", classes))
    content, window = overflow(page, 390, page.parent)
    assert content <= window and 370 <= window <= 390  # without its scroll bar
