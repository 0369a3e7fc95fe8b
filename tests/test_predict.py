"""vitreous predict and the prediction in Python: files of every kind, answers, accuracy, copies, bad input."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix

import vitreous
from image_files import P3_XY, cmyk_profile, deep_png, grey_profile, rgb_profile, tiff
from sample_data import encoded, random_image, random_png, write_files, write_zip
from vitreous import predict as predicting
from vitreous.bundle import Bundle, load_bundle, save_bundle
from vitreous.cli import main
from vitreous.coverage import coverage_of
from vitreous.data.decode import decode_to
from vitreous.data.normalize import normalize, to_float
from vitreous.errors import VitreousError
from vitreous.evaluation import open_split
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.preprocess import Preprocess
from vitreous.run import Run

CLASSES = ("cat", "dog", "=1+1")
SIZE = 16


def make_bundle(architecture: Architecture | None = None, classes: tuple[str, ...] = CLASSES) -> Bundle:
    torch.manual_seed(0)
    architecture = architecture or Architecture(
        4, 32, 1, 2, 32, stem="conv", stem_dims=(16, 16), pool="attention", qk_norm=True
    )
    model = VisionTransformer(architecture, SIZE, len(classes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.init_from_data(torch.randn(64, 3, SIZE, SIZE))
    probabilities = np.random.default_rng(0).dirichlet([0.3] * len(classes), 500).astype(np.float32)
    labels = np.where(np.arange(500) % 5, probabilities.argmax(axis=1), 0)
    return Bundle(
        model, classes, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), Preprocess(SIZE), temperature=1.5,
        images={"train": 4000, "val": 500}, coverage=coverage_of(probabilities, labels),
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "bundle"
    save_bundle(make_bundle(), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of each class in folders, one elsewhere, and what is passed over."""
    files = {f"cat/{i}.png": random_png(i, 20 + i) for i in range(2)}
    files |= {f"dog/{i}.png": random_png(10 + i) for i in range(2)}
    files |= {f"=1+1/{i}.png": random_png(20 + i) for i in range(2)} | {"rest/10.png": random_png(30)}
    files |= {".hidden/a.png": random_png(1), "cat/notes.txt": b"hello", "Thumbs.db": b"x"}
    return write_files(tmp_path / "photos", files)


def probabilities_of(bundle: Bundle, image: Image.Image) -> np.ndarray:
    """By torch alone, from an image that Pillow has resized."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    square = square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    x = (np.asarray(square, np.float32) / 255 - bundle.mean) / np.array(bundle.std)
    with torch.no_grad():
        logits = bundle.model(torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None])
    return (logits / bundle.temperature).softmax(dim=1)[0].numpy()


def answers(capsys: pytest.CaptureFixture[str], *words: Any, status: int = 0) -> list[dict[str, Any]]:
    assert main(["predict", *map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


TURNED = Image.Exif()
TURNED[0x0112] = 6  # orientation
INKS = np.zeros((2, 2, 2, 2, 3))  # the Lab colour of each corner of the cube of inks
INKS[..., 0] = 100 - 25 * np.indices((2, 2, 2, 2)).sum(axis=0)
KINDS = {
    "png": random_png(1, 40, 30),
    "own size": random_png(2, SIZE, SIZE),
    "jpeg": encoded(random_image(3, 61, 50), "JPEG"),
    "cmyk jpeg": encoded(Image.fromarray(random_image(4)).convert("CMYK"), "JPEG"),
    "palette": encoded(Image.fromarray(random_image(5)).convert("P"), "GIF"),
    "opacity": encoded(Image.fromarray(np.dstack([random_image(6), random_image(7)[..., :1]])), "PNG"),
    "grey": encoded(random_image(8)[..., 0], "BMP"),
    "bilevel": encoded(Image.fromarray(random_image(8)).convert("1"), "PNG"),
    "webp": encoded(random_image(9), "WEBP"),
    "turned": encoded(random_image(10, 40, 30), "JPEG", exif=TURNED),
    "16 bits": deep_png(np.arange(40 * 40, dtype=np.uint16).reshape(40, 40, 1) * 37),
    "16 bits rgb": deep_png(np.arange(40 * 40 * 3, dtype=np.uint16).reshape(40, 40, 3) * 13),
    "tiff": tiff(random_image(11)),
    "big tiff": tiff(random_image(11), big=True),
    "float tiff": tiff(np.linspace(0, 1, 900, dtype=np.float32).reshape(30, 30)),
    "profile": encoded(random_image(12), "PNG", icc_profile=rgb_profile(P3_XY)),
    "grey profile": encoded(random_image(12)[..., 0], "PNG", icc_profile=grey_profile(1.0)),
    "cmyk profile": encoded(
        Image.fromarray(random_image(13)).convert("CMYK"), "JPEG", icc_profile=cmyk_profile(INKS)
    ),
}  # fmt: skip


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_of_the_import(kind: str, fit: str) -> None:
    settings = Preprocess(SIZE, fit)
    imported, _ = decode_to(settings, KINDS[kind])
    assert imported.std() > 0
    np.testing.assert_array_equal(predicting._pixels(settings, KINDS[kind]), imported)


def test_json_of_a_second_process(saved: Path, photos: Path) -> None:
    command = [sys.executable, "-m", "vitreous", "predict", str(saved), str(photos), "--json", "--top", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bundle = load_bundle(saved)
    records = json.loads(done.stdout)
    names = ["=1+1/0.png", "=1+1/1.png", "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "rest/10.png"]
    assert [record["path"] for record in records] == [str(photos / name) for name in names]
    assert [record.get("folder_class") for record in records] == [
        *("=1+1",) * 2,
        *("cat",) * 2,
        *("dog",) * 2,
        None,
    ]
    for record in records:
        expected = probabilities_of(bundle, Image.open(record["path"]))
        best = np.argsort(-expected)[:2]
        assert record["class"] == CLASSES[best[0]]
        assert [entry["class"] for entry in record["top"]] == [CLASSES[place] for place in best]
        np.testing.assert_allclose(
            [entry["probability"] for entry in record["top"]], expected[best], atol=2e-5
        )
        assert record["probability"] == record["top"][0]["probability"]
    assert "1 .txt file" in done.stderr and "accuracy" in done.stderr


def test_the_table(saved: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(saved), str(photos / "cat" / "0.png"), str(photos / "dog" / "1.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(str(photos / "cat" / "0.png")) and lines[0].count("%") == 3
    assert {line.index("%") for line in lines[:2]} == {lines[0].index("%")}  # aligned
    assert "2 images" in lines[3]


def test_csv_opens_in_a_spreadsheet(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path, {'=1+1/a,"b".png': random_png(0), "=1+1/c.png": b"\x89PNG\r\n\x1a\n"})
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(saved), "=1+1", "--csv", "--all-probabilities"]) == 3
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == ['\'=1+1/a,"b".png', "'=1+1/c.png"]
    assert rows[0]["folder_class"] == "'=1+1"
    expected = probabilities_of(load_bundle(saved), Image.open(folder / '=1+1/a,"b".png'))
    found = [float(rows[0][f"probability of {name}"]) for name in CLASSES]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert rows[0]["class"].lstrip("'") == CLASSES[int(expected.argmax())]
    assert rows[1]["class"] == "" and "truncated" in rows[1]["error"]
    for row in csv.reader(io.StringIO(capsys.readouterr().out)):
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)


def test_csv_has_a_byte_order_mark_only_where_a_name_needs_it(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mark in (("a.png", ""), ("žluť.png", "\ufeff")):
        write_files(tmp_path, {name: random_png(0)})
        assert main(["predict", str(saved), str(tmp_path / name), "--csv"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(mark + "path,") and name in out


def test_accuracy_and_confusions_as_sklearn_counts_them(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = np.random.default_rng(1).integers(0, 3, 60)
    write_files(tmp_path, {f"test/{CLASSES[c].upper()}/{i}.png": random_png(i) for i, c in enumerate(truth)})
    assert main(["predict", str(saved), str(tmp_path)]) == 0
    out = capsys.readouterr().out
    bundle = load_bundle(saved)
    predicted = [
        int(probabilities_of(bundle, Image.open(tmp_path / f"test/{CLASSES[c].upper()}/{i}.png")).argmax())
        for i, c in enumerate(truth)
    ]
    right = accuracy_score(truth, predicted, normalize=False)
    assert f"{int(right)} of 60 images" in out
    matrix = confusion_matrix(truth, predicted, labels=range(3))
    worst = max((matrix[i, j], i, j) for i in range(3) for j in range(3) if i != j)
    assert f"{CLASSES[worst[1]]} taken for {CLASSES[worst[2]]}: {worst[0]} of {matrix[worst[1]].sum()}" in out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on class folders with a test split; its files are in photos/ beside it."""
    place = tmp_path_factory.mktemp("run")
    generator = np.random.default_rng(0)
    files = {}
    for split, images in (("train", 40), ("test", 20)):
        for c, name in enumerate(("ant", "bee")):
            for i in range(images):
                shade = generator.integers(0, 160, (SIZE, SIZE, 3)) + 40 * c
                files[f"{split}/{name}/{i}.png"] = encoded(shade.astype(np.uint8), "PNG")
    write_files(place / "photos", files)
    overrides = {
        "embed_dim": 32,
        "num_heads": 2,
        "mlp_dim": 32,
        "depth": 1,
        "stem_dims": [16, 16],
        "batch_size": 16,
    }
    vitreous.train(
        place / "photos", steps=12, out=place / "run", device="cpu", precision="32", data_dir=place / "cache",
        image_size=SIZE, overrides=overrides,
    )  # fmt: skip
    return place


def test_the_accuracy_of_a_run_on_its_own_test_files(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(trained / "run")
    right = round(run.summary["test_acc"] * 40)
    capsys.readouterr()
    files = [str(path) for path in (trained / "photos" / "test").glob("*/*.png")]
    assert len(files) == 40
    assert main(["predict", str(trained / "run"), *files]) == 0
    assert f"{right} of 40 images" in capsys.readouterr().out
    _, part = open_split(run, "test")
    np.testing.assert_array_equal(run.embed(part.images), run.bundle.embed(np.asarray(part.images)))
    assert main(["predict", str(trained / "run"), str(trained / "photos" / "train")]) == 0
    assert "most of which it was trained on" in capsys.readouterr().err


def test_tta_averages_calibrated_probabilities(
    saved: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, differences = load_bundle(saved), []
    for record in answers(capsys, saved, photos, "--tta", "--all-probabilities"):
        image = Image.open(record["path"]).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        both = [
            probabilities_of(bundle, each)
            for each in (square, square.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        ]
        found = {entry["class"]: entry["probability"] for entry in record["top"]}
        np.testing.assert_allclose([found[name] for name in CLASSES], np.mean(both, axis=0), atol=2e-5)
        differences.append(abs(both[0] - both[1]).max())
    assert max(differences) > 1e-3


def test_embeddings_are_what_the_head_sees(
    saved: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "dog" / "0.png").write_bytes(b"not an image")
    records = answers(capsys, saved, photos, "--embeddings", tmp_path / "new" / "e.npy", status=3)
    plain = answers(capsys, saved, photos, status=3)
    assert records == plain  # the head on the features gives the same bits
    good = [record["path"] for record in records if "error" not in record]
    assert json.loads((tmp_path / "new" / "e.names.json").read_text()) == good and len(good) == 6
    found = np.load(tmp_path / "new" / "e.npy", allow_pickle=False)
    assert found.shape == (6, 32) and found.dtype == np.float32
    bundle, seen = load_bundle(saved), []
    bundle.model.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pixels = np.stack([predicting._pixels(bundle.preprocess, Path(path).read_bytes()) for path in good])
    with torch.no_grad():
        bundle.model(normalize(to_float(torch.from_numpy(pixels)), bundle.mean, bundle.std))
    np.testing.assert_allclose(found, seen[0].numpy(), atol=2e-5)
    assert main(["predict", str(saved), str(photos), "--embeddings", str(tmp_path / "new" / "e.npy")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["cls", "mean", "head"])
def test_embeddings_of_every_pooling(kind: str) -> None:
    choices: dict[str, Any] = {"cls": {"pool": "cls"}, "mean": {"pool": "mean"}, "head": {"head_hidden": 8}}
    bundle = make_bundle(dataclasses.replace(Architecture(4, 32, 2, 2, 32), **choices[kind]))
    images = np.stack([random_image(i, SIZE, SIZE) for i in range(3)])
    found = bundle.embed(images)
    assert found.shape == (3, 32) and found.dtype == np.float32
    with torch.no_grad():
        logits = bundle.model.head(torch.from_numpy(found))
    assert torch.equal(logits, bundle.logits(images))
    assert bundle.embed([]).shape == (0, 32)


def test_the_size_of_a_batch_does_not_change_answers() -> None:
    for architecture in (None, Architecture(4, 32, 2, 2, 32)):
        bundle = make_bundle(architecture)
        images = np.random.default_rng(0).integers(0, 256, (70, SIZE, SIZE, 3), dtype=np.uint8)
        alone = torch.cat([bundle.logits(image) for image in images])
        torch.testing.assert_close(bundle.logits(images), alone, rtol=0, atol=1e-5)


def test_classify_in_python(saved: Path, photos: Path) -> None:
    model = vitreous.load(saved)
    image = Image.open(photos / "cat" / "0.png")
    (one,) = model.classify(image, top=2)
    assert one == model.classify([str(photos / "cat" / "0.png")], top=2)[0]
    probabilities = model.predict_proba(image)[0]
    assert one.label == model.classes[model.predict(image)[0]] == one.top[0][0]
    assert one.probability == probabilities.max() and len(one.top) == 2
    grey = np.linspace(0, 1, 900, dtype=np.float32).reshape(30, 30)
    as_bytes = np.round(grey * 255).astype(np.uint8)
    np.testing.assert_allclose(model.predict_proba(grey), model.predict_proba(as_bytes), atol=1e-5)
    assert len(model.classify([image, grey, np.dstack([as_bytes] * 3)])) == 3
    with pytest.raises(VitreousError, match="top is 0"):
        model.classify(image, top=0)
    with pytest.raises(VitreousError, match="dict"):
        model.classify([image, {"a": 1}])


# ---- reject


def test_reject(saved: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = answers(capsys, saved, photos)
    threshold = round(float(np.median([record["probability"] for record in plain])), 3)
    assert main(["predict", str(saved), str(photos), "--json", "--reject", str(threshold)]) == 0
    out, err = capsys.readouterr()
    for record, before in zip(json.loads(out), plain, strict=True):
        expected = before["class"] if before["probability"] >= threshold else "unknown"
        assert record["class"] == expected and record["top"] == before["top"]
    coverage = load_bundle(saved).coverage
    assert coverage is not None
    accepted, correct = coverage.at(threshold)
    assert "On 500 validation images" in err and f"accepted {100 * accepted / 500:.0f} %" in err
    assert f"{100 * correct / accepted:.0f} % (95 %" in err
    model = vitreous.load(saved)
    labels = [prediction.label for prediction in model.classify([r["path"] for r in plain], reject=threshold)]
    assert labels == [record["class"] for record in json.loads(out)] and {"unknown"} < set(labels)


def test_reject_is_refused_where_it_means_nothing(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    write_files(tmp_path, {"a.png": random_png(0)})

    def refusal(bundle: Bundle, *more: str) -> str:
        save_bundle(bundle, tmp_path / "bundle")
        assert main(["predict", str(tmp_path / "bundle"), str(tmp_path / "a.png"), *more]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    trained_on_val = dataclasses.replace(bundle, coverage=None, images={"train": 9, "test": 9})
    assert "trained on its validation images" in refusal(trained_on_val, "--reject", "0.9")
    earlier = dataclasses.replace(bundle, coverage=None, images={})
    assert "earlier format" in refusal(earlier, "--reject", "0.9")
    diverged = dataclasses.replace(bundle, coverage=None)
    assert "diverged" in refusal(diverged, "--reject", "0.9")
    with_unknown = dataclasses.replace(bundle, classes=("cat", "unknown", "dog"))
    assert "has a class 'unknown'" in refusal(with_unknown, "--reject", "0.9")
    for wrong in ("0", "1", "0.12345", "nan"):
        assert "above 0 and below 1" in refusal(bundle, "--reject", wrong)
    assert "--tta" in refusal(bundle, "--reject", "0.9", "--tta")


def test_an_earlier_run_counts_its_coverage_from_its_predictions(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    file = run / "bundle" / "config.json"
    config = json.loads(file.read_text())
    recorded = load_bundle(run / "bundle").coverage
    assert recorded is not None
    for name in ("images", "confused", "coverage"):
        del config[name]
    file.write_text(json.dumps(config | {"format": 3}))
    image = random_image(0)
    assert Run(run).bundle.coverage == recorded
    Run(run).classify(image, reject=0.6)
    with pytest.raises(VitreousError, match="give the folder of its run"):
        vitreous.load(run / "bundle").classify(image, reject=0.6)
    arrays = dict(np.load(run / "predictions.npz"))
    np.savez(
        run / "predictions.npz", **{name: array for name, array in arrays.items() if name.startswith("test")}
    )
    with pytest.raises(VitreousError, match="trained on its validation images"):
        Run(run).classify(image, reject=0.6)


# ---- copies


def test_sort_into_copies_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(classes=("../../up", "a/b", ".."))
    save_bundle(bundle, tmp_path / "bundle")
    content = {f"photos/{i}/same.png": random_png(i) for i in range(6)} | {"photos/6/SAME.png": random_png(6)}
    write_files(tmp_path, content)
    write_zip(tmp_path / "more.zip", {"x/same.png": random_png(7)})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    words = ["predict", str(tmp_path / "bundle"), str(tmp_path / "photos"), str(tmp_path / "more.zip")]
    assert main([*words, "--sort-into", str(tmp_path / "out" / "sorted"), "--json", "--reject", "0.5"]) == 0
    records = json.loads(capsys.readouterr().out)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(
        path.is_relative_to(tmp_path / "out" / "sorted") and len(path.relative_to(tmp_path).parts) == 4
        for path in new
    )
    assert sorted(path.read_bytes() for path in new) == sorted([*content.values(), random_png(7)])
    names = [path.name.lower() for path in new]
    assert len({(path.parent, path.name.lower()) for path in new}) == len(names) == 8
    folders = {
        label: {path.parent.name for path in new if path.read_bytes() in data}
        for label, data in group(records, content).items()
    }
    assert all(len(folder) == 1 for folder in folders.values())
    assert folders.get("unknown", {"unknown"}) == {"unknown"}
    for name, data in content.items():
        assert (tmp_path / name).read_bytes() == data
    assert main([*words, "--sort-into", str(tmp_path / "out" / "sorted")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main([*words, "--sort-into", str(tmp_path / "photos" / "sorted")]) == 2
    assert "is inside" in capsys.readouterr().err and not (tmp_path / "photos" / "sorted").exists()


def group(records: list[dict[str, Any]], content: dict[str, bytes]) -> dict[str, list[bytes]]:
    """The bytes of the images of each label, by the answers."""
    groups: dict[str, list[bytes]] = {}
    for record in records:
        parts = record["path"].split("/")
        data = random_png(7) if "more.zip" in parts else content["/".join(parts[-3:])]
        groups.setdefault(record["class"], []).append(data)
    return groups


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "..", ".", "", ".hidden", "a\nb", "C:\\x", "x. ", "\x1b[31m", "é" * 300 + ".png"],
)
def test_names_cannot_escape(name: str, tmp_path: Path) -> None:
    safe = predicting.safe_name(name)
    target = (tmp_path / safe).resolve()
    assert target.parent == tmp_path.resolve() and not safe.startswith(".") and safe.isprintable()
    target.write_bytes(b"")


@pytest.mark.parametrize("name", ["nul", "CON.png", "com1.tar.gz", "Lpt9"])
def test_names_are_no_devices_of_windows(name: str) -> None:
    assert predicting.safe_name(name) == f"_{name}"
    assert predicting.safe_name(f"x{name}") == f"x{name}"


def test_names_that_differ_in_how_an_accent_is_written_are_one_name() -> None:
    taken: set[str] = set()
    assert predicting._free_name("caf\u00e9.png", taken) == "caf\u00e9.png"
    assert predicting._free_name("cafe\u0301.png", taken) == "cafe\u0301-2.png"


def test_the_name_of_the_searched_folder_is_no_label_of_what_lies_deeper(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data set may be called like one of its classes."""
    for place in ("cat/dog/0.png", "cat/misc/1.png", "cat/2.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(random_png(1))
    records = answers(capsys, saved, tmp_path / "cat")
    labels = {Path(record["path"]).name: record.get("folder_class") for record in records}
    assert labels == {"0.png": "dog", "1.png": None, "2.png": "cat"}


# ---- input


def test_zips_patterns_and_names_on_standard_input(
    saved: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [record["path"] for record in answers(capsys, saved, photos)]
    zipped = write_zip(
        photos.parent / "photos.zip",
        {str(Path(p).relative_to(photos)): Path(p).read_bytes() for p in expected},
    )
    inside = answers(capsys, saved, zipped)
    assert [record["path"] for record in inside] == [p.replace(str(photos), str(zipped)) for p in expected]
    assert [record["top"] for record in inside] == [
        record["top"] for record in answers(capsys, saved, photos)
    ]
    assert [r["path"] for r in answers(capsys, saved, f"{photos}/**/1*.png")] == sorted(
        p for p in expected if "/1" in p
    )
    assert len(answers(capsys, saved, f"{photos}/*/*")) == 7  # notes.txt is passed over
    names = "".join(f"{path}\n" for path in expected)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    assert [record["path"] for record in answers(capsys, saved, "-")] == expected


def test_ten_thousand_names(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(random_png(0, SIZE, SIZE))
    names = "".join(f"{tmp_path}/a.png\n" if i % 10 else f"{tmp_path}/missing\n" for i in range(10_000))
    command = [sys.executable, "-m", "vitreous", "predict", str(saved), "-", "--json", "--top", "1"]
    done = subprocess.run(command, capture_output=True, text=True, input=names)
    records = json.loads(done.stdout)
    assert done.returncode == 3 and len(records) == 10_000
    assert [("error" in record) for record in records] == [i % 10 == 0 for i in range(10_000)]
    assert {record.get("probability") for record in records} - {None} <= {records[1]["probability"]}


def test_bad_files_are_reported_and_the_rest_go_on(
    saved: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "evil\x1b[31m\nname.png"
    write_files(
        photos, {f"cat/{evil}": random_png(5), "dog/cut.png": random_png(6)[:-30], "dog/empty.jpg": b""}
    )
    (photos / "loop").symlink_to(photos)
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    words = [
        str(saved),
        str(photos),
        str(photos / "missing.png"),
        str(photos / "cat" / "notes.txt"),
        "none*.png",
    ]
    assert main(["predict", *words, "--json"]) == 3
    out, err = capsys.readouterr()
    failed = {Path(record["path"]).name: record["error"] for record in json.loads(out) if "error" in record}
    assert failed.keys() == {"cut.png", "empty.jpg", "gone.png", "missing.png", "notes.txt", "none*.png"}
    assert failed["cut.png"] == "truncated (incomplete PNG)" and failed["notes.txt"].startswith(
        "not an image"
    )
    assert [Path(r["path"]).name for r in json.loads(out)].count(evil) == 1
    for name, reason in failed.items():
        assert f"{name}: {reason}" in err
    assert "1 link leads back" in err
    assert main(["predict", *words]) == 3
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err


def test_nothing_that_could_be_read(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for words in (["missing.png"], [str(tmp_path / "empty")], [str(saved / "config.json")]):
        assert main(["predict", str(saved), *words]) == 2
        err = capsys.readouterr().err
        assert Path(words[0]).name in err and "No image could be read (1 file failed" in err
    assert main(["predict", str(tmp_path), "a.png"]) == 2
    assert "neither a run folder" in capsys.readouterr().err
    assert main(["predict", str(saved), "a.png", "--json", "--csv"]) == 2
    assert main(["predict", str(saved), "a.png", "--top", "0"]) == 2
    assert "top is 0" in capsys.readouterr().err
    assert main(["predict", str(saved), "a.png", "--embeddings", "e.txt"]) == 2
    assert "must end in .npy" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(saved: Path, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitreous", "predict", str(saved), str(photos)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "disk is full" in done.stderr and "Traceback" not in done.stderr
    write = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    write += "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); from vitreous.cli import main; sys.exit(main())"
    words = [
        "predict",
        str(saved),
        str(photos),
        "--embeddings",
        str(tmp_path / "out" / "e.npy"),
        "--sort-into",
        str(tmp_path / "s"),
    ]
    done = subprocess.run([sys.executable, "-c", write, *words], capture_output=True, text=True)
    assert done.returncode == 2 and "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(photos)] == []


def test_the_first_answer_needs_no_training_code(saved: Path, photos: Path) -> None:
    code = "import sys; from vitreous.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "predict", str(saved), str(photos)]
    loaded = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    )
    assert "torch" in loaded
    slow = {"pytorch_lightning", "torchmetrics", "matplotlib", "torch._dynamo", "sympy", "sklearn", "jinja2"}
    assert not slow & set(loaded)
