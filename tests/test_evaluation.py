"""Evaluation at the end of a run and afterwards, against scipy, scikit-learn and numpy."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, log_loss

import vitreous
from conftest import TINY
from vitreous.bundle import load_bundle
from vitreous.data.arrays import from_arrays
from vitreous.errors import VitreousError
from vitreous.evaluation import TEMPERATURES, fit_temperature
from vitreous.label_errors import find_suspects
from vitreous.run import Run

SETTINGS: dict[str, Any] = {"device": "cpu", "precision": "32", "overrides": dict(TINY)}


def blobs(count: int = 300, size: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of 3 classes that differ in brightness, by so little that some are misclassified."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    shade = 12 * labels + generator.normal(0, 8, count)
    images = generator.integers(0, 100, (count, size, size, 3)) + shade[:, None, None, None] + 60
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run for each judge, on the same arrays."""
    place = tmp_path_factory.mktemp("runs")
    for judge in ("both", "val", "test"):
        vitreous.train(blobs(), steps=25, out=place / judge, judge=judge, **SETTINGS)
    return {judge: place / judge for judge in ("both", "val", "test")}


@pytest.fixture
def run(trained: dict[str, Path], tmp_path: Path) -> Run:
    """A copy of the run that was judged by validation and test."""
    return Run(shutil.copytree(trained["both"], tmp_path / "run"))


def ece(logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error by its definition, a bin at a time."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


# ---- temperature


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_against_scipy(classes: int, scale: float) -> None:
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, 600)
    logits = generator.normal(size=(600, classes))
    logits[np.arange(600), labels] += 1.5
    logits = (scale * logits).astype(np.float32)

    def loss(temperature: float) -> float:
        return -log_softmax(logits.astype(np.float64) / temperature, axis=1)[np.arange(600), labels].mean()

    expected = minimize_scalar(loss, bounds=TEMPERATURES, method="bounded", options={"xatol": 1e-9}).x
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(expected, rel=1e-4)
    assert loss(fitted) <= loss(expected) + 1e-12


def test_temperature_where_none_is_best() -> None:
    labels = np.arange(6) % 3
    right = np.eye(3, dtype=np.float32)[labels]
    assert fit_temperature(right, labels) == 1  # the sharper the better, without end
    assert fit_temperature(np.full((6, 3), np.nan, np.float32), labels) == 1
    assert fit_temperature(np.full((6, 3), np.inf, np.float32), labels) == 1
    assert fit_temperature(-right, labels) == 1  # worse than a guess: the flatter the better, without end
    nearly = np.vstack([1e-3 * np.repeat(right, 50, axis=0), 1e-3 * np.eye(3, dtype=np.float32)[[1]]])
    assert fit_temperature(nearly, np.r_[np.repeat(labels, 50), 0]) == 1  # best far below the lowest
    assert fit_temperature(np.zeros((6, 3), np.float32), labels) == 1
    generator = np.random.default_rng(0)
    diverged = (1e13 * generator.normal(size=(60, 3))).astype(np.float32)
    assert fit_temperature(diverged, generator.integers(0, 3, 60)) == 1


# ---- at the end of a run


def test_predictions_are_kept_and_the_figures_are_theirs(run: Run) -> None:
    images, _ = blobs()
    summary = run.summary
    assert set(run.predictions) == {"val", "test"}
    for split, output in run.predictions.items():
        probabilities = softmax(output.logits.astype(np.float64), axis=1)
        assert summary[f"{split}_acc"] == accuracy_score(output.labels, probabilities.argmax(axis=1))
        assert summary[f"{split}_loss"] == pytest.approx(log_loss(output.labels, probabilities), rel=1e-5)
        assert summary[f"{split}_ece"] == pytest.approx(ece(output.logits, output.labels), abs=1e-5)
        calibrated = output.logits / summary["temperature"]
        assert summary[f"{split}_ece_calibrated"] == pytest.approx(ece(calibrated, output.labels), abs=1e-5)
        source = [int(name.rpartition(":")[2]) for name in output.names]
        np.testing.assert_array_equal(output.labels, blobs()[1][source])
        np.testing.assert_allclose(run.bundle.logits(images[source]), output.logits, atol=1e-4)


def test_the_temperature_is_that_of_validation_and_used_for_probabilities(run: Run) -> None:
    output = run.predictions["val"]
    temperature = run.summary["temperature"]
    assert temperature == fit_temperature(output.logits, output.labels) != 1
    assert run.bundle.temperature == temperature
    expected = softmax(output.logits / temperature, axis=1)
    images = blobs()[0][[int(name.rpartition(":")[2]) for name in output.names]]
    np.testing.assert_allclose(run.predict_proba(images), expected, atol=1e-4)
    with np.load(run.path / "mistakes.npz") as mistakes:
        output = run.predictions["test"]
        probabilities = softmax(output.logits / temperature, axis=1)
        wrong = probabilities.argmax(axis=1) != output.labels
        assert mistakes["confidence"][0] == pytest.approx(probabilities[wrong].max(), rel=1e-5)


def test_probable_label_errors_keep_their_images_and_training_images_are_counted(run: Run) -> None:
    images, labels = blobs()
    trained = np.bincount(labels, minlength=len(run.classes))
    expected: dict[tuple[str, int], np.ndarray] = {}
    for split, output in run.predictions.items():
        source = [int(name.rpartition(":")[2]) for name in output.names]
        trained = trained - np.bincount(output.labels, minlength=len(trained))
        probabilities = softmax(output.logits.astype(np.float64) / run.summary["temperature"], axis=1)
        found = find_suspects(output.labels, probabilities).positions[:24]
        expected |= {(split, int(place)): images[source[place]] for place in found}
    assert run.evaluation["training_images"] == trained.tolist()
    assert expected and run.suspect_images.keys() == expected.keys()
    for key, image in expected.items():
        np.testing.assert_array_equal(run.suspect_images[key], image)
    with (run.path / "label-errors.csv").open(newline="") as file:
        assert {row["split"] for row in csv.DictReader(file)} == {split for split, _ in expected}


def test_a_bundle_knows_its_data_its_baseline_and_its_figures(run: Run) -> None:
    bundle = load_bundle(run.path / "bundle")
    assert bundle.data == {"name": "arrays", "fingerprint": run.resolved["fingerprint"]}
    for name, value in bundle.figures.items():
        assert run.summary[name] == value
    assert {"val_acc", "test_acc", "test_ece_calibrated"} <= set(bundle.figures)
    trained_on = set(range(300)) - {
        int(name.rpartition(":")[2]) for output in run.predictions.values() for name in output.names
    }
    counts = np.bincount(blobs()[1][sorted(trained_on)])
    assert bundle.majority == (str(counts.argmax()), counts.max() / counts.sum())


def test_without_validation_images_the_temperature_is_1_and_that_is_said(
    trained: dict[str, Path],
) -> None:
    run = Run(trained["test"])
    assert run.summary["temperature"] == run.bundle.temperature == 1
    assert "temperature: 1" in (run.path / "log.txt").read_text()
    assert set(run.predictions) == {"test"}
    assert run.summary["test_ece_calibrated"] == run.summary["test_ece"]


# ---- reads of test


def test_reads_of_test_are_counted(run: Run) -> None:
    assert [read["by"] for read in run.test_reads] == ["train"]
    vitreous.evaluate(run, "val", data=blobs())
    assert len(run.test_reads) == 1
    vitreous.evaluate(run, data=blobs())
    assert [read["by"] for read in run.test_reads] == ["train", "evaluate"]


def test_an_unread_test_split_asks_before_it_is_read(trained: dict[str, Path], tmp_path: Path) -> None:
    run = Run(shutil.copytree(trained["val"], tmp_path / "run"))
    assert run.test_reads == [] and set(run.predictions) == {"val"}
    with pytest.raises(VitreousError, match="left its test split unread; add --read-test"):
        vitreous.evaluate(run, data=blobs())
    assert run.test_reads == []
    first = vitreous.evaluate(run, data=blobs(), read_test=True)
    assert first.named("test")["test_acc"] > 0.3
    assert vitreous.evaluate(str(run.path), data=blobs()) == first  # it is no longer unread
    assert len(run.test_reads) == 2


def test_an_interrupted_run_has_not_read_its_test_split_either(run: Run) -> None:
    (run.path / "test_reads.json").unlink()
    early = Run(shutil.copytree(run.path, run.path.with_name("early")))
    (run.path / "summary.json").unlink()  # as if stopped with the bundle written and nothing judged yet
    with pytest.raises(VitreousError, match="left its test split unread; add --read-test"):
        vitreous.evaluate(Run(run.path), data=blobs())
    assert run.test_reads == []
    vitreous.evaluate(Run(run.path), data=blobs(), read_test=True)
    vitreous.evaluate(early, data=blobs())  # it has its test figures, from before reads were counted
    assert len(run.test_reads) == len(early.test_reads) == 1


# ---- other data


def folder(path: Path, images: np.ndarray, labels: np.ndarray, names: list[str]) -> Path:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = path / names[label] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return path


def test_other_data_are_evaluated_and_not_the_runs_own(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = blobs(40, seed=5)
    expected = accuracy_score(labels, run.predict(images))
    store = from_arrays(images, labels, classes=["0", "1", "2"])
    place = folder(tmp_path / "pets", images, labels, ["0", "1", "2"])
    for data in ((images, labels), store, place, str(place)):
        figures = vitreous.evaluate(run, data=data, data_dir=tmp_path)
        assert figures.scalars["acc"] == expected
        assert sum(map(sum, figures.confusion)) == 40
        assert "40 images" in capsys.readouterr().err
    assert len(run.test_reads) == 1  # they are not the run's test split


def test_other_data_of_another_size_are_brought_to_the_models(run: Run, tmp_path: Path) -> None:
    images, labels = blobs(30, size=40, seed=6)
    expected = accuracy_score(labels, run.predict(images))
    place = folder(tmp_path / "large", images, labels, ["0", "1", "2"])
    for data in ((images, labels), place):
        assert vitreous.evaluate(run, data=data, data_dir=tmp_path).scalars["acc"] == expected


def test_classes_are_matched_by_name(run: Run) -> None:
    images, labels = blobs(40, seed=5)
    plain = vitreous.evaluate(run, data=(images, labels))
    turned = from_arrays(images, 2 - labels, classes=["2", "1", "0"])
    same = vitreous.evaluate(run, data=turned)
    assert same.confusion == plain.confusion and same.per_class == plain.per_class
    assert same.scalars == pytest.approx(plain.scalars, rel=1e-5)
    some = labels != 1
    fewer = from_arrays(images[some], labels[some] // 2, classes=["0", "2"])
    figures = vitreous.evaluate(run, data=fewer)
    assert np.sum(figures.confusion, axis=1).tolist() == [*np.bincount(labels[some], minlength=3)]
    with pytest.raises(VitreousError, match=r"does not know \(cat, dog\); .* The run knows 0, 1, 2"):
        vitreous.evaluate(run, data=from_arrays(images, labels, classes=["cat", "1", "dog"]))
    with pytest.raises(VitreousError, match="Labels range from"):
        vitreous.evaluate(run, data=(images, labels + 1))


def test_the_split_of_other_data(run: Run) -> None:
    images, labels = blobs(40, seed=5)
    both = from_arrays(images, labels, classes=["0", "1", "2"], test=(images[:7], labels[:7]))
    assert sum(map(sum, vitreous.evaluate(run, data=both).confusion)) == 7
    with pytest.raises(VitreousError, match="no split of arrays 'val'"):
        vitreous.evaluate(run, "val", data=both)


def test_own_arrays_with_a_test_part_and_names(tmp_path: Path) -> None:
    data = (blobs(200), blobs(40, seed=5))
    own = vitreous.train(data, classes=["a", "b", "c"], steps=5, out=tmp_path / "own", **SETTINGS)
    figures = vitreous.evaluate(own, data=data)
    assert figures.scalars["acc"] == own.summary["test_acc"]
    assert [read["by"] for read in own.test_reads] == ["train", "evaluate"]  # known for the run's own
    listed = vitreous.evaluate(own, data=[list(blobs(40, seed=7)[0]), blobs(40, seed=7)[1]])
    assert sum(map(sum, listed.confusion)) == 40


def test_arrays_and_stores_of_another_size_are_brought_to_the_models(run: Run) -> None:
    images, labels = blobs(30, size=40, seed=6)
    expected = accuracy_score(labels, run.predict(images))
    store = from_arrays(images, labels, classes=["0", "1", "2"])
    for data in (store, ((images[:9], labels[:9]), (images, labels))):
        assert vitreous.evaluate(run, data=data).scalars["acc"] == expected


def test_evaluation_times_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitreous.machine.product_speeds", lambda device: pytest.fail("a stopwatch"))
    assert vitreous.evaluate(run, data=blobs()).scalars["acc"] == run.summary["test_acc"]


def test_a_named_set_is_not_ignored(run: Run) -> None:
    with pytest.raises(VitreousError, match=r"shapes has classes that the run does not know"):
        vitreous.evaluate(run, data="shapes")


# ---- what is damaged


@pytest.mark.parametrize("table", ["[resolved]", "[resolved.machine]", "[resolved.request]"])
def test_a_missing_table_is_a_sentence(table: str, run: Run) -> None:
    recipe = (run.path / "recipe.toml").read_text()
    assert table in recipe
    (run.path / "recipe.toml").write_text(recipe.replace(table, table.replace("resolved", "lost")))
    with pytest.raises(VitreousError, match=r"recipe\.toml"):
        vitreous.evaluate(run.path, data=blobs())


def test_a_run_without_its_arrays_asks_for_them(run: Run) -> None:
    with pytest.raises(VitreousError, match="trained on arrays; give them again"):
        vitreous.evaluate(run)


def test_data_that_have_changed_since_are_refused(run: Run, tmp_path: Path) -> None:
    images, labels = blobs(60)
    place = folder(tmp_path / "pets", images, labels, ["0", "1", "2"])
    own = vitreous.train(place, steps=2, out=tmp_path / "own", data_dir=tmp_path / "cache", **SETTINGS)
    assert vitreous.evaluate(own).scalars["acc"] == own.summary["test_acc"]
    next((place / "1").iterdir()).unlink()
    with pytest.raises(VitreousError, match="no longer holds the images of this run"):
        vitreous.evaluate(own)


def test_the_command_line_takes_other_data_and_read_test(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitreous.cli import main

    images, labels = blobs(40, seed=5)
    place = folder(tmp_path / "pets", images, labels, ["0", "1", "2"])
    run = Run(shutil.copytree(trained["val"], tmp_path / "run"))
    words = ["evaluate", str(run.path), "--data", str(place), "--data-dir", str(tmp_path), "--json"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["test_acc"] == accuracy_score(labels, run.predict(images))
    assert main(["evaluate", "--read-test", str(run.path)]) == 2
    assert "give them again" in capsys.readouterr().err


# ---- other data are seen as training saw its own


def deep_folder(path: Path, count: int, seed: int) -> tuple[Path, list[Path], np.ndarray]:
    """Grey PNGs of 12 bits and 30 by 20 pixels in class folders; also their paths and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    paths = []
    for i, label in enumerate(labels):
        coarse = generator.integers(0, 2800, (5, 6)) + 640 * label  # differs after resizing, too
        values = coarse.repeat(4, 0).repeat(5, 1)
        file = path / "abc"[label] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint16)).save(file)
        paths.append(file)
    return path, paths, labels


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_other_files_are_read_with_the_runs_own_settings(fit: str, tmp_path: Path) -> None:
    """Size, range and fit are those of the run, even where other data alone would give others."""
    place, _, _ = deep_folder(tmp_path / "own", 90, 0)
    own = vitreous.train(
        place, steps=25, out=tmp_path / "run", data_dir=tmp_path, image_size=16, fit=fit, **SETTINGS
    )
    assert own.bundle.preprocess.value_range == (0, 4095)
    other, paths, labels = deep_folder(tmp_path / "other", 30, 7)
    dim = [
        np.asarray(Image.open(path)) // 5 for path in paths
    ]  # 10 bits: alone, it would have a white of its own
    for path, values in zip(paths, dim, strict=True):
        Image.fromarray(values).save(path)
    predicted = own.predict([str(path) for path in paths])
    expected = accuracy_score(labels, predicted)
    names = ["abc"[label] for label in labels]
    for data in (
        other,
        (paths, names),
        (dim, names),
        (np.stack(dim)[:, None], names),
        {"test": (paths, names)},
    ):
        figures = vitreous.evaluate(own, data=data, data_dir=tmp_path)
        assert figures.scalars["acc"] == expected
        confusion = np.zeros((3, 3), int)
        np.add.at(confusion, (labels, predicted), 1)
        np.testing.assert_array_equal(figures.confusion, confusion)


def test_other_data_have_figures_of_their_own(run: Run) -> None:
    images, labels = blobs(60, seed=9)
    turned = (labels + 1) % 3
    figures = vitreous.evaluate(run, data=(images, turned))
    assert figures.scalars["acc"] == accuracy_score(turned, run.predict(images)) != run.summary["test_acc"]
    logits = run.bundle.logits(images).numpy()
    assert figures.scalars["loss"] == pytest.approx(log_loss(turned, softmax(logits, axis=1)), rel=1e-5)
    with pytest.raises(VitreousError, match="no split of arrays 'val'"):
        vitreous.evaluate(run, "val", data=((images, turned), (images, turned)))
    assert vitreous.evaluate(run, "val", data={"val": (images, turned), "test": (images, labels)}) == figures


def test_labels_of_other_data_in_any_form(run: Run) -> None:
    images, labels = blobs(40, seed=5)
    expected = vitreous.evaluate(run, data=(images, labels))
    few = labels[:2], images[:2]
    for given in (labels.astype(str), [str(label) for label in labels], np.eye(3)[labels], labels[:, None]):
        assert vitreous.evaluate(run, data=(images, given)) == expected
    assert (
        sum(map(sum, vitreous.evaluate(run, data=(few[1], few[0])).confusion)) == 2
    )  # not every class occurs
    for form in (images.transpose(0, 3, 1, 2), images / 255, [Image.fromarray(image) for image in images]):
        assert vitreous.evaluate(run, data=(form, labels)) == expected
    with pytest.raises(VitreousError, match=r"has classes that the run does not know \(emu\)"):
        vitreous.evaluate(run, data=(images, ["emu"] * 40))


def test_own_data_are_known_in_any_form(run: Run) -> None:
    images, labels = blobs()
    for data in (
        (images.transpose(0, 3, 1, 2), labels),
        (list(images), labels.astype(str)),
        {"train": (images, labels)},
    ):
        assert vitreous.evaluate(run, data=data).scalars["acc"] == run.summary["test_acc"]


def test_the_folders_of_splits_that_a_run_names_are_not_asked_of_other_data(tmp_path: Path) -> None:
    images, labels = blobs(90)
    names = ["a", "b", "c"]
    folder(tmp_path / "own" / "mine", images, labels, names)
    options: dict[str, Any] = {"data_dir": tmp_path / "cache", "splits": {"train": "mine"}}
    own = vitreous.train(
        tmp_path / "own", steps=5, out=tmp_path / "run", image_size=16, **options, **SETTINGS
    )
    other_images, other_labels = blobs(30, seed=4)
    place = folder(tmp_path / "other", other_images, other_labels, names)
    figures = vitreous.evaluate(own, data=place)
    assert figures.scalars["acc"] == accuracy_score(other_labels, own.predict(other_images))
    assert sum(map(sum, figures.confusion)) == 30
