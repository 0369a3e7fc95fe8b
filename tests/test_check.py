"""The check of a folder against faults that are put there, and against what an import really does."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from sample_data import encoded, random_png, write_files, write_zip
from vitreous.cli import main
from vitreous.data import check as check_module
from vitreous.data.check import REASONS, Check, check
from vitreous.data.folder import Tree
from vitreous.data.importing import Survey, import_folder
from vitreous.data.layout import Entry, Layout, Problem
from vitreous.data.reading import ReadOptions, read_options
from vitreous.data.sources import open_data
from vitreous.data.splits import resolve_splits
from vitreous.data.values import Facts
from vitreous.errors import VitreousError
from vitreous.preprocess import Preprocess

SCHEMA = Path(__file__).parents[1] / "docs" / "check.schema.json"


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
    assert (result.images, result.balance) == (16, 1.0)
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
        assert result.images == 16
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


def test_near_copies_are_named(tmp_path: Path) -> None:
    files = {
        f"{split}/{label}/{i}.png": smooth_png(seed_of(split, label, i))
        for split in ("train", "test")
        for label in "ab"
        for i in range(4)
    }
    files |= {
        "test/a/leak.png": smooth_png(seed_of("train", "a", 1), 5),
        "test/b/confused.png": smooth_png(seed_of("train", "a", 2), 5),
        "train/b/torn.png": smooth_png(seed_of("train", "a", 3), 5),
        "train/b/again.png": smooth_png(seed_of("train", "b", 0), 5),
    }
    result = check(write_files(tmp_path / "pets", files))
    found = {(problem.reason, problem.name, problem.detail) for problem in result.problems}
    between = {entry for entry in found if "between" in entry[0]}
    assert between == {
        (
            "duplicate between splits with the same label",
            "test/a/leak.png",
            "nearly the same image as train/a/1.png",
        ),
        (
            "duplicate between splits with another label",
            "test/b/confused.png",
            "nearly the same image as train/a/2.png",
        ),
    }
    [(reason, *names)] = found - between
    assert reason == "duplicate inside a split with another label"
    assert " ".join(names).replace("nearly the same image as ", "") in (
        "train/b/torn.png train/a/3.png",
        "train/a/3.png train/b/torn.png",
    )
    assert "1 image nearly repeats another image of the same class and split." in result.notes


def seed_of(split: str, label: str, i: int) -> int:
    return zlib.crc32(f"{split}{label}{i}".encode())


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
    result = check(write_files(tmp_path / "pets", files | {"notes.md": b""}))
    assert result.ok and result.balance == 9.0
    assert result.sizes == {"width": (20, 43.5, 48), "height": (30, 30, 60)}
    assert any("many has 9.0 times" in note and "few" in note for note in result.notes)
    assert [name for kind in result.passed_over for name in kind.names] == ["notes.md"]
    assert "(notes.md)" in result.text()


def test_json_says_what_the_text_says(tmp_path: Path) -> None:
    files = pets() | {"train/b/4.png": random_png(200), "train/a/bad.png": b"x"}
    result = check(write_files(tmp_path / "pets", files))
    data = json.loads(json.dumps(result.to_json()))
    assert data["ok"] is False and data["pictures"] == 17 and data["classes"] == ["a", "b"]
    assert data["splits"]["train"] == {"pictures": 9, "classes": {"a": 4, "b": 5}}
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
    result = check(write_files(tmp_path / "flat", {"1.png": random_png(1)}))
    assert not result.ok and not result.would_train
    assert result.verdict.startswith("train would stop: ") and "no class folders" in result.verdict
    assert result.text().endswith(result.verdict)


# ---- the check and the import agree


def images(*counts: int, split: str = "", start: int = 0, names: str = "abcdefgh") -> dict[str, bytes]:
    """So many random images of each class."""
    return {
        f"{split}{names[label]}/{i}.png": random_png(start + 100 * label + i)
        for label, count in enumerate(counts)
        for i in range(count)
    }


def smooth_png(seed: int, brighter: int = 0) -> bytes:
    """A smooth image, and with `brighter` nearly the same one."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(20, 220, (8, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((32, 32), Image.Resampling.BICUBIC)).astype(int) + brighter
    return encoded(pixels.clip(0, 255).astype(np.uint8))


BAD = {"a/bad.png": b"hello", "b/cut.png": random_png(3)[:500]}
FOLDERS: dict[str, tuple[dict[str, bytes], dict[str, Any]]] = {
    "twenty a class": (images(20, 20), {}),
    "two a class": (images(2, 2), {}),
    "three of one class": (images(3, 1), {}),
    "one a class": (images(1, 1, 1), {}),
    "one class": (images(9), {}),
    "no images": ({"a/notes.md": b"", "b/notes.md": b""}, {}),
    "flat": ({"1.png": random_png(1), "2.png": random_png(2)}, {}),
    "empty": ({}, {}),
    "train and test": (images(9, 9, split="train/") | images(3, 3, split="test/", start=1000), {}),
    "train and val": (images(9, 9, split="train/") | images(3, 4, split="val/", start=1000), {}),
    "all three": (
        images(9, 9, split="train/")
        | images(3, 4, split="val/", start=1000)
        | images(5, 5, split="test/", start=2000),
        {},
    ),
    "only test": (images(9, 9, split="test/"), {}),
    "a class missing in test": (
        images(9, 9, 9, split="train/") | images(3, 3, split="test/", start=1000),
        {},
    ),
    "a class missing in train": (
        images(9, 9, split="train/") | images(3, 3, 3, split="test/", start=1000),
        {},
    ),
    "bad files": (images(9, 9) | BAD, {}),
    "bad files, few others": (images(2, 2) | BAD, {}),
    "a class of bad files": (images(9, 9) | {"c/bad.png": b"x"}, {}),
    "all files bad": ({"a/1.png": b"x", "b/1.png": b"y"}, {}),
    "loose files": (images(9, 9) | {"loose.png": random_png(5), "labels.txt": b"x"}, {}),
    "captions": (images(9, 9) | {"a/0.txt": b"a cat", "b/0.json": b"{}"}, {}),
    "an empty class": (images(9, 9) | {"c/": b""}, {}),
    "copies": (
        {f"{label}/{i}.png": random_png(i // 3 + 50 * (label == "b")) for label in "ab" for i in range(24)},
        {},
    ),
    "near-copies": (
        {
            f"{label}/{i}.png": smooth_png(i // 3 + 50 * (label == "b"), 4 * (i % 3))
            for label in "ab"
            for i in range(24)
        },
        {},
    ),
    "only copies": (
        {f"{label}/{i}.png": random_png(7 * (label == "b")) for label in "ab" for i in range(9)},
        {},
    ),
    "copies between splits": (images(9, 9, split="train/") | images(5, 5, split="test/"), {}),
    "copies with other labels": (images(9, 9) | {"b/again.png": random_png(0)}, {}),
    "groups": (images(12, 12), {"group_by": r"(\d)\.png"}),
    "one group": (images(12, 12), {"group_by": "png"}),
    "groups without a match": (images(12, 12), {"group_by": "patient"}),
    "splits as classes": (
        images(9, 9, split="train/") | images(5, 5, split="test/", start=500),
        {"splits": "none"},
    ),
    "splits named by hand": (
        images(9, 9, split="one/") | images(5, 5, split="two/", start=500),
        {"splits": "train=one,test=two"},
    ),
    "splits under usual names": (
        images(9, 9, split="Training/") | images(5, 5, split="Testing/", start=500),
        {},
    ),
    "splits or classes": (images(9, 9, split="train/") | images(5, 5, split="other/", start=500), {}),
    "test without labels": (
        images(9, 9, split="train/") | {f"test/images/{i}.png": random_png(500 + i) for i in range(20)},
        {},
    ),
    "a table of labels": (
        {f"images/{i}.png": random_png(i) for i in range(12)}
        | {
            "labels.csv": b"file,label\n"
            + b"".join(b"images/%d.png,%s\n" % (i, b"ab"[i % 2 :][:1]) for i in range(12))
        },
        {},
    ),
    "stretched": (
        {f"{label}/{i}.png": random_png(i, 20, 60 + (label == "a")) for label in "ab" for i in range(9)},
        {"fit": "stretch"},
    ),
}


@pytest.mark.parametrize("skip_bad", [False, True], ids=["", "skip-bad"])
@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("case", FOLDERS)
def test_the_check_says_what_an_import_does(tmp_path: Path, case: str, zipped: bool, skip_bad: bool) -> None:
    files, options = FOLDERS[case]
    path = tmp_path / ("pets.zip" if zipped else "pets")
    if zipped:
        write_zip(path, files)
    else:
        path.mkdir()
        write_files(path, {name: data for name, data in files.items() if not name.endswith("/")})
        for name in files:
            (path / name).mkdir() if name.endswith("/") else None
    result = check(path, read_options(**options, skip_bad=skip_bad))
    verdict = result.verdict
    said: list[str] = []
    try:
        store = open_data(path, tmp_path / "data", say=said.append, skip_bad=skip_bad, **options)
        splits = resolve_splits(store)
    except VitreousError as error:
        assert not result.would_train and not result.ok
        if re.match(r"[\d,]+ of the", str(error)):  # a list of bad files, which the check has already listed
            bad = str(error).split()[0]
            assert verdict.startswith(f"train would stop at {bad} file")
            after = check(path, read_options(**options, skip_bad=True))
            endings = [
                re.split(r" use |would stop: |stop as well: ", text)[-1] for text in (after.verdict, verdict)
            ]
            assert endings[0] == endings[1]
            assert after.would_train == ("stop as well" not in verdict)
        else:
            assert verdict == f"train would stop: {error}"
        return
    assert result.would_train
    sizes = [len(split) for split in (splits.train, splits.val, splits.test)]
    numbers = [int(text) for text in re.findall(r"(\d+)(?= to (?:train|validate|test))", verdict)]
    assert numbers == sizes
    assert f"use {sum(map(len, store.splits.values()))} images of {store.num_classes} classes" in verdict
    assert verdict.count("cut from training") == (1 if splits.cut else 0)
    # What was passed over or left out is said by both.
    lost = len(files) - sum(map(len, store.splits.values())) - ("c/" in files) - ("labels.csv" in files)
    notes = " ".join(said)
    if lost:
        assert re.search(rf"(pass over|leave out) {lost} file", verdict)
        assert "Passed over: " in notes or f"{lost} of " in notes
    for note in result.notes:
        assert note in said or note in splits.warnings or " repeat" in note or "times as many" in note
    if any(problem.reason == "empty class" for problem in result.problems):
        assert "1 class folder has no images" in notes
    if any(problem.reason == "class missing from a split" for problem in result.problems):
        assert "no images of 1 class" in notes


def test_the_exit_status_and_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case, status in (
        ("twenty a class", 0),
        ("loose files", 0),
        ("two a class", 1),
        ("flat", 1),
        ("copies between splits", 1),
    ):
        path = write_files(tmp_path / case, FOLDERS[case][0])
        assert main(["data", "check", str(path)]) == status
        out, err = capsys.readouterr()
        assert out.splitlines()[-1].startswith("train would ") and not err
    assert main(["data", "check", str(path), "--group-by", "("]) == 2
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2


def test_classes_are_named_even_if_they_are_equal(tmp_path: Path) -> None:
    text = check(write_files(tmp_path / "pets", images(3, 3, 3))).text()
    assert "classes: a, b, c" in text.splitlines()
    files = {f"class no {i:03d}/{j}.png": random_png(3 * i + j, 40, 40) for i in range(30) for j in range(3)}
    result = check(write_files(tmp_path / "many", files))
    lines = result.text().splitlines()
    short = " ".join(" ".join(lines).split())
    assert "class no 019 … and 10 more" in short and "class no 020" not in short
    assert all(label in result.text(everything=True) for label in result.classes)
    assert max(map(len, lines[1:-1])) <= 100
    start, end = (
        lines.index(next(line for line in lines if "classes: " in line)),
        lines.index("width: 40 pixels"),
    )
    assert end - start > 2  # wrapped, between names
    assert all(line.startswith("  class no ") for line in lines[start + 1 : end])


def test_a_long_list_is_shortened_unless_all_are_asked_for(tmp_path: Path) -> None:
    bad = {f"a/bad {i}.png": b"x" for i in range(30)} | {f"loose{i}.txt": b"" for i in range(30)}
    result = check(write_files(tmp_path / "pets", images(5, 5) | bad))
    assert [problem.name for problem in result.problems] == [f"a/bad {i}.png" for i in range(30)]
    lines = result.text().splitlines()
    assert "  30  not an image" in lines and "  … and 20 more (--all lists them)" in lines
    assert sum("bad" in line for line in lines) <= 12
    assert sum("loose" in line for line in lines) == 1
    everything = result.text(everything=True)
    assert all(name.partition("/")[2] in everything for name in bad if "/" in name)
    assert all(name in everything for name in bad if "/" not in name)
    assert len(result.to_json()["problems"]) == 30


def test_ten_thousand_problems_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(number: int) -> float:
        entries = tuple(Entry(f"a/{i}.png", "train", "ab"[i % 2], f"a/{i}.png") for i in range(number))
        tree = Tree(Path("pets"), Layout(entries, ("a", "b")), lambda location, limit=None: b"")
        # Half of the files are bad, and the others are copies of one image with labels of two kinds.
        good = number // 2
        pixels = np.zeros((good, 4, 4, 3), np.uint8)
        survey = Survey(
            tree=tree,
            preprocess=Preprocess(4),
            splits={"train": (pixels, np.arange(good) % 2, [f"a/{i}.png" for i in range(good)])},
            groups=None,
            problems=tuple(Problem("truncated", f"a/{i}.png") for i in range(good, number)),
            facts=(Facts(4, 4),) * good,
            notes=(),
        )
        start = time.process_time()
        result = check_module._checked(survey, ReadOptions(skip_bad=True))
        assert len(result.problems) > good + good // 3
        result.text(everything=True)
        json.dumps(result.to_json())
        return time.process_time() - start

    few, many = (min(seconds(number) for _ in range(3)) for number in (4_000, 40_000))
    assert many < 30 * few  # ten times as many; a quadratic step would take a hundred times as long


def written_to(pid: int, folder: Path) -> int:
    """The bytes of the nameless files that a process has open in a folder."""
    total = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            total += file.stat().st_size if str(folder) in str(file.readlink()) else 0
    return total


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads which files a process has open")
def test_nothing_is_left_behind_and_ctrl_c_is_clean(tmp_path: Path) -> None:
    files = {f"{label}/{i}.png": random_png(i, 500, 500) for label in "ab" for i in range(4)}
    root = write_files(tmp_path / "pets", files)
    for label in "ab":
        for i in range(4, 1500):
            (root / label / f"{i}.png").hardlink_to(root / label / f"{i % 4}.png")
    (tmp_path / "scratch").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "vitreous", "data", "check", str(root), "--image-size", "500"],
        env=os.environ | {"TMPDIR": str(tmp_path / "scratch")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while child.poll() is None and written_to(child.pid, tmp_path / "scratch") < 1_000_000:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130 and err.endswith("vitreous: interrupted\n") and not out, err
    assert "Traceback" not in err
    assert not list((tmp_path / "scratch").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"pets", "scratch"}


def test_no_room_for_the_temporary_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path / "pets", images(5, 5))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(VitreousError, match=r"needs 62 kB for a temporary file.*TMPDIR"):
        check(root)


# ---- JSON


@pytest.mark.parametrize("case", FOLDERS)
def test_the_json_has_its_documented_form(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    files, options = FOLDERS[case]
    path = write_zip(tmp_path / "pets.zip", files)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    status = main(["data", "check", str(path), "--json", *words])
    record = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema).validate(record)
    assert set(record) == set(schema["properties"]) == set(schema["required"])
    assert record["ok"] == (status == 0)
    assert record["pictures"] == sum(split["pictures"] for split in record["splits"].values())
    for split in record["splits"].values():
        assert list(split["classes"]) == record["classes"]
        assert sum(split["classes"].values()) == split["pictures"]
    assert all(kind["count"] == len(kind["files"]) for kind in record["passed_over"])


def test_the_schema_is_one_and_names_the_reasons() -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    problem = schema["properties"]["problems"]["items"]["properties"]
    assert problem["reason"]["examples"] == list(REASONS)
