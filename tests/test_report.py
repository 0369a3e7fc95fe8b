"""The report page of plausible, broken, hostile and half-finished runs."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitreous.errors import VitreousError
from vitreous.metrics import Figures, SplitMetrics
from vitreous.report import _command, _round_marks, _thin, write_report
from vitreous.run import note_test_read

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


def figures_of(num_classes: int, strength: float, seed: int) -> Figures:
    """Figures of a classifier with favourite confusions, over unequal classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), rng.integers(60, 110, num_classes))
    logits = rng.normal(size=(len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += strength + rng.normal(size=num_classes)[labels]
    logits[np.arange(len(labels)), rng.permutation(num_classes)[labels]] += strength / 2
    metrics = SplitMetrics(num_classes)
    metrics.update(torch.tensor(logits), torch.tensor(labels))
    return metrics.compute()


def make_run(path: Path, classes: tuple[str, ...] = CIFAR10, rows: int = 60) -> Path:
    """Writes a finished run with everything that a report reads."""
    path.mkdir(parents=True)
    (path / "recipe.toml").write_text(RECIPE, encoding="utf-8")

    strength = 2.0 + np.log(len(classes)) / 2
    val, test = (figures_of(len(classes), strength, seed) for seed in (1, 2))
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
        assert f"{100 * test['figures'][key]:.2f}" in page.text
    assert f"{test['figures']['loss']:.4f}" in page.text
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
    assert np.array_equal(alpha > 0, confusion > 0)
    wrong = confusion * (1 - np.eye(100, dtype=int))
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    first = page.text.partition("percent of the true class.")[2].split(")")[0]
    assert " ".join(first.split()).startswith(f"{HUNDRED[true]} → {HUNDRED[predicted]}{wrong.max()} ")
    assert not page.all("table", "matrix")
    assert "Top-5 accuracy" in page.text


def test_it_needs_nothing_from_anywhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = report(run)
    for name, attributes in page.elements:
        assert name not in ("script", "iframe", "object", "embed", "base")
        for key in ("src", "href", "srcset", "action", "xlink:href"):
            assert (attributes.get(key) or "data:").startswith("data:")
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
    thinned = _thin(points)
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
    assert _round_marks(high, 5) == pytest.approx(marks)


def test_an_interrupted_run_says_that_it_has_no_test_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("evaluation.json", "summary.json", "mistakes.npz"):
        (run / name).unlink()
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text + "976,5.51,27")  # killed while writing
    page = report(run)
    assert "There are no test metrics." in page.text
    assert f"vitreous train --resume {run}" in page.text
    assert "Validation accuracy" in page.text and "Test accuracy" not in page.text
    last = [row for row in csv.DictReader(io.StringIO(text)) if row["val_acc"]][-1]
    assert f"{100 * float(last['val_acc']):.2f}" in page.text


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
    assert "1.23\u202f%" in text and "4.56\u202f%" in text


def test_a_test_split_that_was_left_unread_is_said_to_be(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("summary.json", "evaluation.json"):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({k: v for k, v in content.items() if not k.startswith("test")}))
    assert "The test split has not been read." in report(run).text


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
