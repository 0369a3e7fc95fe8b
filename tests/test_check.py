"""The check of a folder against faults that are put there."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import pytest
from PIL import Image

from sample_data import random_png, write_files, write_zip
from vitreous.data.check import REASONS, Check, check
from vitreous.data.importing import import_folder
from vitreous.data.reading import ReadOptions
from vitreous.errors import VitreousError


def pets() -> dict[str, bytes]:
    names = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in range(4)]
    return {name: random_png(seed) for seed, name in enumerate(names)}


def problems(result: Check) -> set[tuple[str, str]]:
    return {(problem.reason, problem.name) for problem in result.problems}


def test_nothing_wrong(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", pets())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.png")}
    result = check(root)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.png")}
    assert result.ok and not result.problems and not result.notes
    assert result.counts == {"train": {"a": 4, "b": 4}, "test": {"a": 4, "b": 4}}
    assert (result.files, result.images, result.balance) == (16, 16, 1.0)
    assert result.sizes == {"width": (32, 32, 32), "height": (32, 32, 32)}
    assert "No problems found." in result.text()


def test_every_bad_file_with_its_reason(tmp_path: Path) -> None:
    huge = bytearray(random_png(0))
    huge[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height, and their checksum
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    damaged = bytearray(random_png(1))
    damaged[60:90] = bytes(30)
    bad = {
        "train/a/renamed text.jpg": (b"hello", "not an image"),
        "train/b/cut.PNG": (random_png(2)[:500], "truncated"),
        "train/b/empty.png": (b"", "empty file"),
        "test/a/huge.png": (bytes(huge), "too large"),
        "test/b/damaged ü.png": (bytes(damaged), "unreadable"),
    }
    root = write_files(tmp_path / "pets", pets() | {name: data for name, (data, _) in bad.items()})
    write_zip(tmp_path / "pets.zip", pets() | {name: data for name, (data, _) in bad.items()})
    for path in (root, tmp_path / "pets.zip"):
        result = check(path)
        assert not result.ok
        assert problems(result) == {(reason, name) for name, (_, reason) in bad.items()}
        assert (result.files, result.images) == (21, 16)
        text = result.text()
        assert all(name in text and reason in text for name, (_, reason) in bad.items())
        assert "5 problems found" in text
        # The check and the import agree on what is bad.
        with pytest.raises(VitreousError) as caught:
            import_folder(path, tmp_path / "data", ReadOptions(), lambda line: None)
        assert all(name in str(caught.value) for name in bad)


def test_duplicates_are_recognised_by_their_pixels(tmp_path: Path) -> None:
    files = pets()
    as_bmp = io.BytesIO()
    Image.open(io.BytesIO(files["train/a/0.png"])).save(as_bmp, "BMP")
    files |= {
        "test/a/leak.bmp": as_bmp.getvalue(),  # other bytes, the same pixels
        "test/b/confused.png": files["train/a/1.png"],
        "train/b/torn.png": files["train/a/2.png"],
        "train/b/again.png": files["train/b/0.png"],
        "test/b/mirror.png": random_png(77, 30, 20),
        "train/a/mirror.png": random_png(77, 20, 30),  # the same bytes of pixels in another shape
    }
    result = check(write_files(tmp_path / "pets", files))
    assert problems(result) == {
        ("duplicate between splits with the same label", "test/a/leak.bmp"),
        ("duplicate between splits with another label", "test/b/confused.png"),
        ("duplicate inside a split with another label", "train/b/torn.png"),
    }
    assert {problem.detail for problem in result.problems} == {
        f"the same image as train/a/{i}.png" for i in range(3)
    }
    assert [
        note for note in result.notes if note.startswith("1 image repeats another image of the same class")
    ]


def test_missing_and_empty_classes(tmp_path: Path) -> None:
    files = pets() | {
        "train/c/1.png": random_png(100),
        "test/d/1.png": random_png(101),
        "train/e/1.png": b"not one good",
        "test/e/1.png": random_png(102),
    }
    root = write_files(tmp_path / "pets", files)
    (root / "train" / "f").mkdir()
    result = check(root)
    assert problems(result) - {("not an image", "train/e/1.png")} == {
        ("class missing from a split", "c"),
        ("class missing from a split", "d"),
        ("class missing from a split", "e"),
        ("empty class", "train/f"),
    }
    assert result.balance is None
    details = {problem.name: problem.detail for problem in result.problems}
    assert details["c"].startswith("test ") and details["d"].startswith("train ")


def test_one_class(tmp_path: Path) -> None:
    result = check(write_files(tmp_path / "cats", {"cat/1.png": random_png(1), "cat/2.png": random_png(2)}))
    assert problems(result) == {("one class only", "cat")} and not result.ok


def test_an_empty_class_is_not_missing_too(tmp_path: Path) -> None:
    root = write_files(
        tmp_path / "pets", {name: data for name, data in pets().items() if "test/b" not in name}
    )
    (root / "test" / "b").mkdir()
    assert problems(check(root)) == {("empty class", "test/b")}


def test_unequal_classes_and_stray_files_are_only_notes(tmp_path: Path) -> None:
    files = {f"many/{i}.png": random_png(i, height=30, width=40 + i) for i in range(9)}
    files["few/1.png"] = random_png(50, height=60, width=20)
    result = check(write_files(tmp_path / "pets", files | {"labels.csv": b""}))
    assert result.ok and result.balance == 9.0
    assert result.sizes == {"width": (20, 43.5, 48), "height": (30, 30, 60)}
    assert any("many has 9.0 times" in note and "few" in note for note in result.notes)
    assert any("labels.csv" in note for note in result.notes)


def test_json_says_what_the_text_says(tmp_path: Path) -> None:
    files = pets() | {"train/b/4.png": random_png(200), "train/a/bad.png": b"x"}
    result = check(write_files(tmp_path / "pets", files))
    data = json.loads(json.dumps(result.to_json()))
    assert data["ok"] is False and data["files"] == 18 and data["images"] == 17
    assert data["splits"]["train"] == {"images": 9, "classes": {"a": 4, "b": 5}}
    assert data["sizes"]["width"] == {"min": 32, "median": 32, "max": 32}
    assert data["balance"] == 1.25
    assert [problem["reason"] for problem in data["problems"]] == ["not an image"]
    assert {problem["reason"] for problem in data["problems"]} <= set(REASONS)
    lines = [line.split() for line in result.text().splitlines()]
    assert ["class", "train", "test"] in lines
    assert ["a", "4", "4"] in lines and ["b", "5", "4"] in lines and ["all", "classes", "9", "8"] in lines


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(VitreousError, match="There is no folder or file"):
        check(tmp_path / "nowhere")
    with pytest.raises(VitreousError, match="no class folders"):
        check(write_files(tmp_path / "flat", {"1.png": random_png(1)}))
