"""Runs on data with copies: what they say and record, and which images they take up again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitreous
from conftest import TINY
from vitreous.data.splits import resolve_splits
from vitreous.data.store import ImageStore, in_memory
from vitreous.errors import VitreousError
from vitreous.report import write_report
from vitreous.run import Run

SETTINGS: dict[str, Any] = {"device": "cpu", "precision": "32", "overrides": dict(TINY)}


def noise(number: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)


def copied_store() -> ImageStore:
    """120 training images, 40 of them copies, and 30 test images; test 0 to 3 are copies, test 3 with another label."""
    train, test = noise(120, 0), noise(30, 1)
    labels, test_labels = np.arange(120) % 3, np.arange(30) % 3
    train[80:] = train[:40]
    labels[80:] = labels[:40]
    test[:4] = train[[0, 1, 2, 4]]
    test[1] = test[1, :, ::-1]
    test_labels[:4] = [0, 1, 2, 0]
    return in_memory(
        name="copied",
        classes=("<b>ant</b>", "bee", "cat"),
        splits={
            "train": (train, labels, [f"train/{i}.png" for i in range(120)]),
            "test": (test, test_labels, [f"test/<i>{i}.png" for i in range(30)]),
        },
        source="a test",
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("copied") / "run"
    vitreous.train(copied_store(), steps=12, out=path, **SETTINGS)
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(trained, tmp_path / "run"))


def text_of(path: Path) -> str:
    html = write_report(path).read_text(encoding="utf-8")
    return " ".join(re.sub(r"<[^>]+>", " ", html[html.index("<main") :]).split())


def test_copies_across_splits_are_said_and_recorded(run: Run) -> None:
    log = (run.path / "log.txt").read_text()
    assert (
        "4 of 30 test images are copies or near-copies of training images of copied (the report lists them)"
        in log
    )
    assert "40 of 120 training images are copies or near-copies of others; copies stay together." in log
    assert "on 30 images, 4 of them in training too (" in log
    assert "never seen" not in log
    assert {leak["name"] for leak in run.copies["leaks"]} == {f"test/<i>{i}.png" for i in range(4)}
    assert [conflict["name"] for conflict in run.copies["conflicts"]] == ["test/<i>3.png"]


def test_the_report_shows_copies_and_the_accuracy_without_them(run: Run) -> None:
    text = text_of(run.path)
    output = run.predictions["test"]
    right = output.logits.argmax(axis=1) == output.labels
    copied = np.isin(output.names, [f"test/<i>{i}.png" for i in range(4)])
    assert copied.sum() == 4
    assert "4 of 30 test images are copies or near-copies of training images" in text
    assert (
        f"Without them, test accuracy is {100 * right[~copied].mean():.0f} % on 26 images, instead of "
        in text
    )
    assert f"instead of {100 * right.mean():.0f} %." in text
    assert "1 image has a copy with another label" in text
    assert "mirrored copy of train/1.png" in text
    html = (run.path / "report.html").read_text()
    assert html.count("data:image/png") >= 10  # four pairs across splits, and one with different labels
    assert "<i>3.png" not in html
    assert "<b>ant" not in html


def test_a_run_without_copies_has_no_such_section(tmp_path: Path) -> None:
    images, labels = noise(60, 0), np.arange(60) % 3
    run = vitreous.train((images, labels), steps=2, out=tmp_path / "run", **SETTINGS)
    assert not run.has("copies.json")
    assert run.copies == {}
    assert "Copies" not in text_of(run.path)
    assert "it had never seen" in (run.path / "log.txt").read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["leaks"][0].pop("name"),
        lambda content: content["leaks"][0].update(images=["no PNG", "no PNG"]),
        lambda content: content["leaks"][0].update(images=[content["leaks"][0]["images"][0]]),
        lambda content: content["conflicts"][0].update(label=3),
        lambda content: content.update(leaks=None),
        lambda content: content.update(leaks=["text"]),
        lambda content: content.update(images={"test": "many"}),
        lambda content: content.pop("images"),
    ],
)
def test_a_damaged_record_of_copies_is_a_sentence(run: Run, change: Any) -> None:
    content = json.loads((run.path / "copies.json").read_text())
    change(content)
    (run.path / "copies.json").write_text(json.dumps(content))
    with pytest.raises(VitreousError, match=r"copies\.json cannot be read .* restore it or delete it"):
        write_report(run.path)


def other_record(run: Run, old: bool) -> None:
    """Replaces the run's record: by one of an earlier version, or one of other positions."""
    record = json.loads((run.path / "split.json").read_text())
    if old:
        del record["cut_positions"], record["fingerprint"]
    else:
        record["cut_positions"]["val"] = list(range(30))
    (run.path / "split.json").write_text(json.dumps(record))


@pytest.mark.parametrize("old", [True, False])
def test_a_run_is_evaluated_on_the_images_that_it_cut(run: Run, old: bool) -> None:
    store = copied_store()
    other_record(run, old)
    expected = resolve_splits(store, 0.1, 42, recorded=Run(run.path).split).val
    assert list(expected.names) != list(resolve_splits(store).val.names)
    figures = vitreous.evaluate(run.path, "val", data=store)
    right = run.predict_proba(np.asarray(expected.images)).argmax(axis=1) == expected.labels
    assert figures.scalars["acc"] == pytest.approx(right.mean())
    if not old:
        assert list(expected.names) == [store.splits["train"].names[i] for i in range(30)]


def test_a_run_without_its_record_is_refused(run: Run) -> None:
    (run.path / "split.json").unlink()
    with pytest.raises(VitreousError, match=r"has no split\.json, which says which images .* restore it"):
        vitreous.evaluate(run.path, "val", data=copied_store())


def test_a_repeat_and_a_resumed_run_cut_the_same_images(run: Run, tmp_path: Path) -> None:
    other_record(run, old=False)
    images = {"data": copied_store()}
    repeated = vitreous.repeat(run.path, images["data"], out=tmp_path / "again")
    assert repeated.split["cut_positions"]["val"] == list(range(30))
    assert len(repeated.predictions["val"].labels) == 30
    assert repeated.copies == run.copies

    summary = json.loads((run.path / "summary.json").read_text())
    (run.path / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    shutil.rmtree(run.path / "checkpoints")
    resumed = vitreous.resume(run.path, images["data"])
    assert len(resumed.predictions["val"].labels) == 30
