"""Runs on data that have moved: evaluate, resume, repeat and report find them again, and nothing else instead."""

from __future__ import annotations

import difflib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitreous
from conftest import TINY
from test_training import interrupt_at
from vitreous import api, recipe
from vitreous.cli import main
from vitreous.data.sources import open_data
from vitreous.errors import VitreousError
from vitreous.run import Run, record_data

SETTINGS: dict[str, Any] = {"device": "cpu", "precision": "32", "overrides": dict(TINY)}


def make_pets(place: Path, seed: int = 0) -> Path:
    """24 images of 20 by 30 pixels in each of two class folders in `all`, and two images beside it that are unused."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(("cat", "dog")):
        for i in range(24):
            file = place / "all" / name / f"patient{i % 12}-{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 180, (5, 6, 3)) + 70 * number  # differs after resizing, too
            Image.fromarray(coarse.repeat(4, 0).repeat(5, 1).astype(np.uint8)).save(file)
        (place / "spare" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / "spare" / name)
    return place


# Options that change pixels and splits: a run that is read without them has another fingerprint or another cut.
READING: dict[str, Any] = {"image_size": 16, "fit": "pad", "group_by": r"patient(\d+)", "splits": "train=all"}


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITREOUS_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return make_pets(tmp_path / "pets")


@pytest.fixture
def run(pets: Path, tmp_path: Path) -> Run:
    """A finished run whose data have moved since, to `moved`."""
    run = vitreous.train(pets, steps=4, out=tmp_path / "run", **READING, **SETTINGS)
    pets.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "cache")
    return run


def recorded_data(path: Path) -> str:
    return Run(path).resolved["request"]["data"]


def test_data_that_are_gone_name_the_option(run: Run, pets: Path) -> None:
    for call in (vitreous.evaluate, vitreous.repeat):
        with pytest.raises(
            VitreousError, match=rf"no longer at {pets}; say where .* --data PATH \(in Python data=\)"
        ):
            call(run.path)


def test_evaluate_knows_the_runs_own_data_where_they_are_now(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = vitreous.evaluate(run, data=tmp_path / "moved")
    assert figures.scalars["acc"] == run.summary["test_acc"]
    assert sum(map(sum, figures.confusion)) == len(run.predictions["test"].labels)
    assert "holds the images of this run, so its own test split is used" in capsys.readouterr().err
    assert [read["by"] for read in run.test_reads] == ["train", "evaluate"]
    assert (
        vitreous.evaluate(run, "val", data=str(tmp_path / "moved")).scalars["acc"] == run.summary["val_acc"]
    )
    assert main(["evaluate", str(run.path), "--data", str(tmp_path / "moved"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_acc"] == run.summary["test_acc"]


def test_repeat_finds_moved_data_and_records_where_they_are(run: Run, pets: Path, tmp_path: Path) -> None:
    again = vitreous.repeat(run.path, tmp_path / "moved", out=tmp_path / "again")
    assert again.resolved["exact"] is True
    assert again.summary["test_acc"] == run.summary["test_acc"]
    assert recorded_data(again.path) == str(tmp_path / "moved")
    assert recorded_data(run.path) == str(pets)  # the other run stays as it was
    assert "are now read from" in (again.path / "log.txt").read_text()
    assert vitreous.evaluate(again).scalars["acc"] == run.summary["test_acc"]
    words = [
        "train",
        "--repeat",
        str(run.path),
        "--data",
        str(tmp_path / "moved"),
        "--out",
        str(tmp_path / "third"),
    ]
    assert main(words) == 0
    assert recorded_data(tmp_path / "third") == str(tmp_path / "moved")


def test_resume_finds_moved_data_and_goes_on_bit_for_bit(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vitreous.train(pets, steps=9, out=tmp_path / "whole", **READING, **SETTINGS)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            vitreous.train(pets, steps=9, out=tmp_path / "run", **READING, **SETTINGS)
    pets.rename(tmp_path / "moved")
    with pytest.raises(VitreousError, match="say where they are now with --data"):
        vitreous.resume(tmp_path / "run")
    make_pets(tmp_path / "other", seed=1)
    with pytest.raises(
        VitreousError, match=r"other does not hold the images of this run .*; give the data that it"
    ):
        vitreous.resume(tmp_path / "run", tmp_path / "other")
    assert recorded_data(tmp_path / "run") == str(pets)
    assert main(["train", "--resume", str(tmp_path / "run"), "--data", "moved"]) == 0
    weights = [(tmp_path / name / "bundle" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]
    assert Run(tmp_path / "run").summary["test_acc"] == whole.summary["test_acc"]
    assert recorded_data(tmp_path / "run") == str(tmp_path / "moved")


def test_other_data_are_refused_where_the_runs_own_are_needed(run: Run, tmp_path: Path) -> None:
    other = make_pets(tmp_path / "other", seed=1)
    before = (run.path / "recipe.toml").read_text()
    for call in (vitreous.repeat, api.report):
        with pytest.raises(VitreousError, match=r"does not hold the images of this run .its fingerprint is"):
            call(run.path, other)
        with pytest.raises(VitreousError, match=r"There is no folder or file .*nowhere; check the path"):
            call(run.path, tmp_path / "nowhere")
    assert (run.path / "recipe.toml").read_text() == before
    assert main(["report", str(run.path), "--data", str(other)]) == 2


def test_report_records_where_the_data_are_and_changes_nothing_else(
    run: Run, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run.path / "recipe.toml").read_text()
    assert main(["report", str(run.path), "--data", "moved"]) == 0
    assert "are those of" in capsys.readouterr().out
    after = (run.path / "recipe.toml").read_text()
    changes = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert changes == [f'- data = "{pets}"', f'+ data = "{tmp_path / "moved"}"']
    assert vitreous.evaluate(run.path).scalars["acc"] == run.summary["test_acc"]  # found without being told


@pytest.mark.parametrize(
    "text",
    [
        '[resolved.request]\ndata = "/old"\nseed = 3\n[data]\nval_fraction = 0.1\n',
        '# mine\n[data]\ndata = "x"\n\n[resolved.request]\n# where\nseed = 3\ndata="/old" # here\n\n[z]\ndata = "y"\n',
        '[resolved]\nrequest = { data = "/old", seed = 3 }\n',
        '[resolved.request]\nsplits = "data = 3"\n"data" = "/old"\n',
    ],
)
@pytest.mark.parametrize("place", ["/new", 'C:\\a "b"', "/ü/\\1"])
def test_only_the_place_of_the_data_is_recorded(text: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    expected = tomllib.loads(text)
    expected["resolved"]["request"]["data"] = place
    record_data(tmp_path, place)
    assert tomllib.loads((tmp_path / "recipe.toml").read_text()) == expected
    if text.startswith("# mine"):
        new = (tmp_path / "recipe.toml").read_text()
        assert new == text.replace('data="/old" # here', f"data = {recipe.toml_value(place)}")


def test_the_recorded_cut_is_used_again(run: Run, tmp_path: Path) -> None:
    """A run keeps its split even if today's rules would cut another one from its data."""
    file = run.path / "split.json"
    record = json.loads(file.read_text())
    test = list(range(7))
    record["cut_positions"] = {"test": test, "val": list(range(20, 25))}
    file.write_text(json.dumps(record))
    train = open_data(tmp_path / "moved", say=lambda line: None, **READING).splits["train"]
    figures = vitreous.evaluate(run, data=tmp_path / "moved")
    assert np.sum(figures.confusion) == 7
    assert figures.scalars["acc"] == np.mean(run.predict(train.images[test]) == train.labels[test])
