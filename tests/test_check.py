"""The pre-flight check against folders whose faults are known."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitreous.data.check import REASONS, Check, check
from vitreous.data.folder import import_folder
from vitreous.errors import VitreousError


def png(seed: int, width: int = 32, height: int = 32, **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pets() -> dict[str, bytes]:
    names = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in range(4)]
    return {name: png(seed) for seed, name in enumerate(names)}


def problems(found: Check) -> set[tuple[str, str]]:
    return {(problem.reason, problem.name) for problem in found.problems}


def test_nothing_wrong(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", pets())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.png")}
    found = check(root)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.png")}
    assert found.ok and not found.problems and not found.notes
    assert found.counts == {"train": {"a": 4, "b": 4}, "test": {"a": 4, "b": 4}}
    assert (found.files, found.pictures, found.balance) == (16, 16, 1.0)
    assert found.sizes == {"width": (32, 32, 32), "height": (32, 32, 32)}
    assert "No problems found." in found.text()


def test_every_bad_file_with_its_reason(tmp_path: Path) -> None:
    huge = bytearray(png(0))
    huge[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height, and their checksum
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    damaged = bytearray(png(1))
    damaged[60:90] = bytes(30)
    bad = {
        "train/a/renamed text.jpg": (b"hello", "not a picture"),
        "train/b/cut.PNG": (png(2)[:500], "truncated"),
        "train/b/empty.png": (b"", "truncated"),
        "test/a/huge.png": (bytes(huge), "too large"),
        "test/b/damaged ü.png": (bytes(damaged), "unreadable"),
    }
    root = write(tmp_path / "pets", pets() | {name: data for name, (data, _) in bad.items()})
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for file in root.rglob("*.*"):
            archive.write(file, file.relative_to(root))
    for path in (root, tmp_path / "pets.zip"):
        found = check(path)
        assert not found.ok
        assert problems(found) == {(reason, name) for name, (_, reason) in bad.items()}
        assert (found.files, found.pictures) == (21, 16)
        text = found.text()
        assert all(name in text and reason in text for name, (_, reason) in bad.items())
        assert "5 problems found" in text
        # The check and the import agree on what is bad.
        with pytest.raises(VitreousError) as caught:
            import_folder(path, tmp_path / "data", None, False, lambda line: None)
        assert all(name in str(caught.value) for name in bad)


def test_duplicates_are_told_by_their_pixels(tmp_path: Path) -> None:
    files = pets()
    as_bmp = io.BytesIO()
    Image.open(io.BytesIO(files["train/a/0.png"])).save(as_bmp, "BMP")
    files |= {
        "test/a/leak.bmp": as_bmp.getvalue(),  # other bytes, the same pixels
        "test/b/confused.png": files["train/a/1.png"],
        "train/b/torn.png": files["train/a/2.png"],
        "train/b/again.png": files["train/b/0.png"],
        "test/b/mirror.png": png(77, 20, 30),
        "train/a/mirror.png": png(77, 30, 20),  # the same bytes of pixels in another shape
    }
    found = check(write(tmp_path / "pets", files))
    assert problems(found) == {
        ("duplicate between splits with the same label", "test/a/leak.bmp"),
        ("duplicate between splits with another label", "test/b/confused.png"),
        ("duplicate inside a split with another label", "train/b/torn.png"),
    }
    assert {problem.detail for problem in found.problems} == {
        f"the same picture as train/a/{i}.png" for i in range(3)
    }
    assert [note for note in found.notes if "twice" in note and note.startswith("1 picture is")]


def test_missing_and_empty_classes(tmp_path: Path) -> None:
    files = pets() | {
        "train/c/1.png": png(100),
        "test/d/1.png": png(101),
        "train/e/1.png": b"not one good",
        "test/e/1.png": png(102),
    }
    root = write(tmp_path / "pets", files)
    (root / "train" / "f").mkdir()
    found = check(root)
    assert problems(found) - {("not a picture", "train/e/1.png")} == {
        ("class missing from a split", "c"),
        ("class missing from a split", "d"),
        ("class missing from a split", "e"),
        ("empty class", "train/f"),
    }
    assert found.balance is None
    details = {problem.name: problem.detail for problem in found.problems}
    assert details["c"].startswith("test ") and details["d"].startswith("train ")


def test_one_class(tmp_path: Path) -> None:
    found = check(write(tmp_path / "cats", {"cat/1.png": png(1), "cat/2.png": png(2)}))
    assert problems(found) == {("one class only", "cat")} and not found.ok


def test_an_empty_class_is_not_missing_too(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", {name: data for name, data in pets().items() if "test/b" not in name})
    (root / "test" / "b").mkdir()
    assert problems(check(root)) == {("empty class", "test/b")}


def test_unequal_classes_and_stray_files_are_only_notes(tmp_path: Path) -> None:
    files = {f"many/{i}.png": png(i, 40 + i, 30) for i in range(9)} | {"few/1.png": png(50, 20, 60)}
    found = check(write(tmp_path / "pets", files | {"labels.csv": b""}))
    assert found.ok and found.balance == 9.0
    assert found.sizes == {"width": (20, 43.5, 48), "height": (30, 30, 60)}
    assert any("many has 9.0 times" in note and "few" in note for note in found.notes)
    assert any("labels.csv" in note for note in found.notes)


def test_json_says_what_the_text_says(tmp_path: Path) -> None:
    files = pets() | {"train/b/4.png": png(200), "train/a/bad.png": b"x"}
    found = check(write(tmp_path / "pets", files))
    data = json.loads(json.dumps(found.to_json()))
    assert data["ok"] is False and data["files"] == 18 and data["pictures"] == 17
    assert data["splits"]["train"] == {"pictures": 9, "classes": {"a": 4, "b": 5}}
    assert data["sizes"]["width"] == {"min": 32, "median": 32, "max": 32}
    assert data["balance"] == 1.25
    assert [problem["reason"] for problem in data["problems"]] == ["not a picture"]
    assert {problem["reason"] for problem in data["problems"]} <= set(REASONS)
    lines = [line.split() for line in found.text().splitlines()]
    assert ["class", "train", "test"] in lines
    assert ["a", "4", "4"] in lines and ["b", "5", "4"] in lines and ["all", "classes", "9", "8"] in lines


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(VitreousError, match="There is no folder or file"):
        check(tmp_path / "nowhere")
    with pytest.raises(VitreousError, match="no class folders"):
        check(write(tmp_path / "flat", {"1.png": png(1)}))
