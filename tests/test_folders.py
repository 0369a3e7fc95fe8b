"""The bench of folders: its cuts, its peer, its records, and the pages that are made from them."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from vitreous.data.splits import plan_splits
from vitreous.data.store import Split

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def empty_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import record

    monkeypatch.setattr(record, "RECORDS", tmp_path / "records.jsonl")
    return tmp_path / "records.jsonl"


# ---- data sets


def test_five_folds_share_out_few_images_by_class_and_keep_groups_together() -> None:
    import folder_sets

    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [300, 150, 50]))
    groups = np.arange(500)
    for first in range(0, 400, 20):  # three images of one class in each group
        same = np.flatnonzero(labels == labels[first])[:60]
        groups[rng.choice(same, 3, replace=False)] = 1000 + first
    fold = folder_sets.folds_of(labels, 3, groups)
    assert set(fold) == {0, 1, 2, 3, 4}
    for label, size in enumerate([300, 150, 50]):
        assert np.abs(np.bincount(fold[labels == label]) - size / 5).max() <= 4
    for group in np.unique(groups):
        assert len(set(fold[groups == group])) == 1


def test_many_images_hold_out_what_vitreous_holds_out() -> None:
    import folder_sets

    labels = np.random.default_rng(0).integers(0, 4, 6000)
    test = np.zeros(4, np.int64)
    plan = plan_splits("data", "abcd", {"train": labels, "test": test}, 0.1, 42)
    fold = folder_sets.folds_of(labels, 4, np.arange(6000))
    assert np.array_equal(np.flatnonzero(fold == 0), plan.positions["val"])
    assert set(fold) == {folder_sets.NEVER, 0}


def test_drawn_classes_fall_exponentially() -> None:
    import folder_sets

    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 500))
    chosen = folder_sets.draw(labels, 10, None, 20.0)
    sizes = np.bincount(labels[chosen])
    assert sizes[0] == 500 and sizes[-1] == 25
    ratios = sizes[1:] / sizes[:-1]
    assert np.allclose(ratios, 20 ** (-1 / 9), rtol=0.02)
    even = folder_sets.draw(labels, 10, 20, 1.0)
    assert np.bincount(labels[even]).tolist() == [20] * 10 and len(set(even)) == 200


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_file_is_read(tmp_path: Path, zipped: bool) -> None:
    import folder_sets

    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 3, 4) + values.tobytes()
    name = "train-images-idx3-ubyte"
    if zipped:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    else:
        (tmp_path / name).write_bytes(content)
    assert np.array_equal(folder_sets.read_idx(tmp_path, name), values)


def some_images(side: int = 16) -> Any:
    """60 images of three classes that differ in brightness, in two folds, with 9 test images."""
    import folder_sets

    rng = np.random.default_rng(0)

    def part(name: str, size: int) -> Split:
        labels = np.arange(size) % 3
        noise = rng.integers(0, 60, (size, side, side, 3))
        images = (noise + 90 * labels[:, None, None, None]).astype(np.uint8)
        return Split(images, labels, [f"{name}:{i}" for i in range(size)])

    fold = np.arange(60) // 30
    return folder_sets.Images("made-up", part("train", 60), part("test", 9), fold, ("a", "b", "c"), "f00")


def test_a_fold_trains_on_the_others_and_has_their_statistics() -> None:
    images = some_images()
    store = images.store(1)
    assert np.array_equal(store.splits["train"].images, images.train.images[:30])
    assert store.splits["val"].names == [f"train:{i}" for i in range(30, 60)]
    pixels = images.train.images[:30] / 255
    assert np.allclose(store.mean, pixels.mean((0, 1, 2))) and np.allclose(store.std, pixels.std((0, 1, 2)))
    everything = images.store(None)
    assert len(everything.splits["train"]) == 60 and set(everything.splits) == {"train", "test"}


# ---- the peer


@pytest.mark.parametrize(("side", "width"), [(32, 32), (96, 16)])
def test_the_flops_of_the_resnet_are_those_of_its_convolutions(side: int, width: int) -> None:
    import resnet9

    grid = side // 2 if side == 96 else side
    # (inputs, outputs, height of the output) of each convolution
    layers = [(3, width, side), (width, 2 * width, grid), *[(2 * width, 2 * width, grid // 2)] * 2]
    layers += [(2 * width, 4 * width, grid // 2), (4 * width, 8 * width, grid // 4)]
    layers += [(8 * width, 8 * width, grid // 8)] * 2
    forward = [2 * 9 * a * b * h * h for a, b, h in layers] + [2 * 8 * width * 10]
    # The backward pass makes two products of the same size, but the images need no gradient.
    assert resnet9.step_flops(10, side, width, batch=4) == 4 * (3 * sum(forward) - forward[0])


def test_the_resnet_learns_and_spends_its_budget() -> None:
    import resnet9

    images = some_images()
    each = resnet9.step_flops(3, 16, 4, 10)
    trainer, costs = resnet9.train(
        30.4 * each,
        images.train.images,
        images.train.labels,
        3,
        batch=10,
        width=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        rate=1e-2,
        seed=0,
        device="cpu",
        bf16=False,
    )
    assert costs["steps"] == 30 and costs["train_flops"] == 30 * each and costs["epochs"] == 5
    assert (trainer.predict(images.test.images) == images.test.labels).mean() > 0.8


# ---- records


def test_the_bits_of_a_record_survive() -> None:
    import folders

    correct = np.random.default_rng(0).random(1003) < 0.4
    assert np.array_equal(folders.unpack(folders.packed(correct), 1003), correct)
    assert folders.packed(np.array([True, False, False, False, True])) == "88"


def made_up_record(
    data: str,
    arm: str,
    seed: int,
    counts: list[int],
    share: float,
    split: str = "val",
    overrides: tuple[str, ...] = (),
) -> None:
    """Adds a record by way of the results of the folds."""
    import folder_sets
    import folders

    rng = np.random.default_rng(zlib.crc32(f"{arm} {seed}".encode()))  # `hash` differs in each process
    labels = np.repeat(np.arange(len(counts)), counts)
    dots = np.zeros((len(labels), 1, 1, 3), np.uint8)
    part = Split(dots, labels, [str(i) for i in range(len(labels))])
    fold = rng.integers(0, 5, len(labels)) if split == "val" else np.zeros(len(labels), int)
    images = folder_sets.Images(data, part, part, fold, tuple("abcdefghij"[: len(counts)]), "f00")
    entry = folders.Entry(data, "3e13", arm, seed, overrides=overrides, final=split == "test")
    results = []
    for number in [None] if split == "test" else range(5):
        right = rng.random(len(images.judged_labels(number))) < share
        cost = {"train_flops": 3e13, "epochs": 5.0, "train_seconds": 60.0, "parameters": 9, "steps": 9}
        known = {"name": "a processor", "threads": 2, "instruction_sets": "avx2"}
        results.append(
            {**cost, "batch": 8, "path": "torch, bf16", "machine": known}
            | {"judged": len(right), "correct": folders.packed(right)}
        )
    args = folders.make_parser().parse_args([])
    state = {"commit": "0" * 40, "changed_since": []}
    folders.add_record(entry, images, results, args, state)


def test_a_record_has_the_figures_of_all_folds(empty_records: Path) -> None:
    import folder_sets
    import folders
    import record

    images = some_images()
    predicted = np.random.default_rng(3).integers(0, 3, 60)
    results = []
    for fold in (0, 1):
        here = images.positions(fold)[1]
        right = predicted[here] == images.train.labels[here]
        results.append(
            {
                "train_flops": 1.0 + fold,
                "epochs": 2,
                "train_seconds": 3,
                "parameters": 4,
                "steps": 5,
                "batch": 6,
            }
            | {"path": "p", "machine": {"name": "m", "threads": 1, "instruction_sets": ""}}
            | {"judged": len(here), "correct": folders.packed(right)}
        )
    entry = folders.Entry("cifar10", "3e13", "vitreous", 42)
    folders.add_record(entry, images, results, folders.make_parser().parse_args([]), {"commit": "c"})
    (known,) = record.load("folders")
    figures = known["figures"]
    assert figures["acc"] == pytest.approx(accuracy_score(images.train.labels, predicted))
    assert figures["balanced_acc"] == pytest.approx(balanced_accuracy_score(images.train.labels, predicted))
    assert figures["train_flops"] == 1.5 and figures["training_images"] == 30
    import folders_page

    by_class = np.lexsort((np.arange(60), images.train.labels))
    assert np.array_equal(folders_page.bits(figures), (predicted == images.train.labels)[by_class])
    assert folder_sets.SETS[known["data"]].title == "CIFAR-10"


def test_the_pages_show_ours_ahead_of_the_best_peer(empty_records: Path, tmp_path: Path) -> None:
    import folders_page
    import record

    counts = [400, 200, 50]
    for seed in (42, 43, 44):
        made_up_record("trashnet", "vitreous", seed, counts, 0.85)
        made_up_record("trashnet", "resnet9", seed, counts, 0.80)
        made_up_record("trashnet", "notebook", seed, counts, 0.30)
    (case,) = folders_page.cases(record.load("folders"), "val")
    assert case.balanced and case.peer == "resnet9"
    labels = np.repeat([0, 1, 2], counts)
    for arm in case.arms:
        for r, weighted in zip(case.arms[arm], case.correct(arm), strict=True):
            right = folders_page.bits(r["figures"])
            expected = balanced_accuracy_score(labels, np.where(right, labels, (labels + 1) % 3))
            assert weighted.mean() == pytest.approx(expected) == pytest.approx(r["figures"]["balanced_acc"])
    found = case.ahead("vitreous", "resnet9")
    assert found is not None
    assert found.value == pytest.approx(np.mean(case.shares("vitreous")) - np.mean(case.shares("resnet9")))
    assert found.low < 0.05 < found.high
    (row,) = folders_page.tables()["folders"][2:]
    assert "balanced accuracy" in row and folders_page.points(found) in row and "#folders-trashnet" in row
    (row,) = folders_page.readme_table()[2:]
    assert "validation" in row and "(ResNet-9)" in row
    for arm in ("vitreous", "resnet9"):
        made_up_record("trashnet", arm, 42, [40, 20, 5], 0.8, split="test")
    (row,) = folders_page.readme_table()[2:]
    assert "on test" in row
    assert len(folders_page.tables()["folders-runs"]) == 2 + 5
    assert folders_page.plot(tmp_path / "folders.svg")
    drawn = (tmp_path / "folders.svg").read_text()
    assert "TrashNet" in drawn


def test_a_table_tells_what_its_intervals_cover_and_leaves_out_empty_columns(empty_records: Path) -> None:
    import folders_page
    import record

    def cells(lines: list[str]) -> dict[str, str]:
        head, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        return dict(zip(head, row, strict=True))

    for arm in ("vitreous", "resnet9"):
        made_up_record("cifar10", arm, 42, [60, 40], 0.8)
    assert cells(folders_page.tables()["folders"])["ahead of the best peer, points (95 %)"].endswith(
        "), one seed"
    )
    shown = cells(folders_page.readme_table())
    assert (
        shown["ahead, points (95 %)"].endswith("), one seed") and shown["seeds, vitreous / peer"] == "1 / 1"
    )
    made_up_record("cifar10", "resnet9", 43, [60, 40], 0.8)
    shown = cells(folders_page.readme_table())
    assert "seed" not in shown["ahead, points (95 %)"] and shown["seeds, vitreous / peer"] == "1 / 2"
    assert folders_page.tables()["folders-test"] == ["No test split has been read yet."]

    assert "minutes on two cores" not in cells(folders_page.tables()["folders"])
    record.add(
        "folders-minutes",
        study="folders-minutes",
        arm="all arms",
        command="c",
        machine={},
        versions={},
        figures={"cifar10": {"3e13": {"vitreous": {"minutes": 2.4}}}},
        source_state={},
    )
    assert cells(folders_page.tables()["folders"])["minutes on two cores"] == "2.4 / –"


@pytest.mark.parametrize("change", ["fingerprint", "images_of_class"])
def test_records_of_other_images_are_not_compared(empty_records: Path, change: str) -> None:
    import folders_page
    import record

    for arm in ("vitreous", "resnet9"):
        made_up_record("cifar10", arm, 42, [60, 40], 0.8)
    ours, peer = (r for arm in ("vitreous", "resnet9") for r in record.load("folders") if r["arm"] == arm)
    assert len(folders_page.cases([ours, peer], "val")) == 1
    if change == "fingerprint":
        peer["fingerprint"] = "another"
    else:
        peer["figures"]["images_of_class"] = [40, 60]  # as many in all
    with pytest.raises(SystemExit, match=f"{ours['id']} and {peer['id']} are not of the same judged images"):
        folders_page.cases([ours, peer], "val")


def test_a_changed_recipe_is_compared_with_the_default_on_its_own_seeds(empty_records: Path) -> None:
    import folders_page
    import record

    for seed in (42, 43):
        made_up_record("cifar10-2k", "vitreous", seed, [300, 300], 0.9)
    made_up_record("cifar10-2k", "without-decay", 43, [300, 300], 0.8, overrides=("weight_decay=0",))
    (default,) = [r for r in record.load("folders") if r["arm"] == "vitreous" and r["seed"] == 43]
    (row,) = folders_page.tables()["folders-changes"][2:]
    cells = [cell.strip() for cell in row.split("|")]
    assert "`weight_decay=0`" in cells and f"{100 * default['figures']['acc']:.1f}" in cells
    assert cells[-3].startswith("+")  # the default is ahead
    assert folders_page.tables()["folders"] == []  # there is no peer


def test_the_plots_interval_of_one_balanced_seed_is_that_of_its_classes(empty_records: Path) -> None:
    import folders_page
    import record

    counts = np.array([400, 200, 50])
    made_up_record("trashnet", "resnet9", 42, counts.tolist(), 0.8)
    (case,) = folders_page.cases(record.load("folders"), "val")
    right = folders_page.bits(case.arms["resnet9"][0]["figures"])
    recalls = np.array([part.mean() for part in np.split(right, np.cumsum(counts)[:-1])])
    half = 1.96 * np.sqrt((recalls * (1 - recalls) / counts).sum()) / len(counts)  # the normal approximation
    low, high = case.interval("resnet9")
    assert (high - low) / 2 == pytest.approx(half, rel=0.06) and low < recalls.mean() < high


def test_the_learning_rate_is_chosen_when_all_are_on_record(empty_records: Path) -> None:
    import folders
    import record

    def add(rate: str, share: float) -> None:
        entry = folders.Entry("cifar10", "1e13", "resnet9", 42, rate)
        record.add(
            entry.id,
            study="folders-rates",
            arm=f"resnet9 lr {rate}",
            command="c",
            data="cifar10",
            machine={},
            versions={},
            figures={"judged_by": "acc", "acc": share, "budget": 1e13},
            source_state={},
        )

    entry = folders.Entry("cifar10", "3e13", "resnet9", 43)
    waiting = [folders.Task(entry, 0), folders.Task(folders.Entry("cifar10", "3e13", "vitreous", 43), 0)]
    add("1e-3", 0.3)
    add("3e-3", 0.5)
    task = folders.next_task(waiting, "1e13")
    assert task is not None and task.entry.arm == "vitreous"  # the ResNet-9 waits
    assert folders.next_task(waiting, "1e13") is None
    add("1e-2", 0.4)
    task = folders.next_task(waiting, "1e13")
    assert task is not None and task.rate == "3e-3" and not waiting


def test_parts_survive_a_killed_process(tmp_path: Path) -> None:
    import folders

    file = tmp_path / "x.parts.jsonl"
    parts = folders.Parts(file, "c1")
    for key in ("a/0", "a/1", "b/0"):
        parts.add(key, {"n": key})
    with file.open("a") as torn:
        torn.write('{"key": "b/1", "resu')
    again = folders.Parts(file, "c1")
    assert set(again.results) == {"a/0", "a/1", "b/0"}
    again.add("b/2", {"n": "b/2"})
    assert set(folders.Parts(file, "c1").results) == {"a/0", "a/1", "b/0", "b/2"}
    again.forget(["a/0", "a/1"])
    assert folders.Parts(file, "c1").results == {"b/0": {"n": "b/0"}, "b/2": {"n": "b/2"}}
    assert folders.Parts(file, "c2").results == {} and not file.exists()  # a record names one commit


def test_changed_sources_are_told_apart_without_a_commit(tmp_path: Path) -> None:
    import folders

    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return folders.source_hash(tmp_path)

    first = write("src/vitreous/dial.py", "a = 1")
    hashes = [
        first,
        write("src/vitreous/dial.py", "a = 2"),
        write("src/vitreous/recipes/default.toml", "a = 1"),
        write("src/vitreous/native/kernel.cpp", "int a;"),
        write("benchmarks/resnet9.py", "a = 1"),
    ]
    assert len(set(hashes)) == 5
    assert write("benchmarks/records.jsonl", "{}") == write("src/vitreous/x.pyc", "b") == hashes[-1]
    file = tmp_path / "x.parts.jsonl"
    folders.Parts(file, f"unknown {hashes[3]}").add("a/0", {})
    assert folders.Parts(file, f"unknown {hashes[3]}").results == {"a/0": {}}
    assert folders.Parts(file, f"unknown {hashes[4]}").results == {}


def test_another_recipe_of_the_same_name_shares_no_parts() -> None:
    import folders

    keys = {
        folders.Task(folders.Entry("cifar10", "3e13", "mine", 42, "", changes), fold).key
        for changes in ((), ("mixup=0.3",), ("mixup=0.5",))
        for fold in (0, 1)
    }
    assert len(keys) == 6


@pytest.mark.parametrize(
    "words",
    [
        ["--only", "cifar10-2k", "trashnet", "--arms", "resnet9", "--seeds", "42"],
        ["--name", "mixed", "mixup=0.5", "stem_dims=[1, 2]", "--only", "cifar10", "--final"],
    ],
)
def test_the_command_of_a_record_asks_for_it(words: list[str]) -> None:
    import folders

    args = folders.make_parser().parse_args(words)
    for entry in folders.entries_of(args):
        python, script, *own = shlex.split(folders.command(entry, args))
        assert (python, script) == ("python", "benchmarks/folders.py")
        assert entry in folders.entries_of(folders.make_parser().parse_args(own))


def test_the_command_of_every_record_on_file_asks_for_it() -> None:
    import folders

    lines = (BENCHMARKS / "records.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    for known in map(json.loads, lines):
        if known["study"] in ("folders", "folders-rates"):
            args = folders.make_parser().parse_args(shlex.split(known["command"])[2:])
            entries = {entry.id: folders.command(entry, args) for entry in folders.entries_of(args)}
            assert entries.get(known["id"]) == known["command"]


def test_another_recipe_needs_a_name_of_its_own() -> None:
    import folders

    for words in (["crop=0"], ["--name", "vitreous", "crop=0"]):
        with pytest.raises(SystemExit, match="name"):
            folders.entries_of(folders.make_parser().parse_args(words))


def test_records_of_another_machine_are_taken_over_unless_others_have_their_ids(
    empty_records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import folders
    import record

    made_up_record("trashnet", "vitreous", 42, [50, 50], 0.5)
    made_up_record("trashnet", "vitreous", 43, [50, 50], 0.5)
    elsewhere = tmp_path / "elsewhere.jsonl"
    lines = [json.loads(line) for line in record.lines_of(empty_records)]
    lines[0]["figures"]["acc"] = 0.123
    lines.append(lines[1] | {"id": "folders-new"})
    elsewhere.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folders.merge(elsewhere, replaces=False)
    assert "1 record of 3" in capsys.readouterr().out
    assert len(record.load()) == 3 and record.load()[1]["figures"]["acc"] != 0.123
    folders.merge(elsewhere, replaces=True)
    assert 0.123 in [r["figures"]["acc"] for r in record.load()]


def train_for_minutes() -> None:
    """What a worker in the middle of a training looks like from outside."""
    import folders

    folders.end_with_parent()
    print("training", flush=True)
    time.sleep(600)


def test_a_worker_ends_with_a_killed_bench() -> None:
    script = "import multiprocessing, time, test_folders\n"
    script += "context = multiprocessing.get_context('spawn')\n"
    script += "context.Process(target=test_folders.train_for_minutes, daemon=True).start()\ntime.sleep(600)"
    paths = os.pathsep.join([str(Path(__file__).parent), str(BENCHMARKS)])
    environment = os.environ | {"PYTHONPATH": paths}
    bench = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert bench.stdout is not None
    try:
        assert bench.stdout.readline() == "training\n"
        bench.kill()
        bench.communicate(timeout=20)  # until the worker, too, has closed its output
    finally:
        with contextlib.suppress(ProcessLookupError):  # both are gone
            os.killpg(bench.pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_bench_stops_continues_and_reads_test_at_the_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, size in enumerate((40, 24, 12)):
        folder = tmp_path / "photos" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(size):
            pixels = rng.integers(0, 80, (48, 64, 3)) + 80 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    file = tmp_path / "records.jsonl"
    command = [sys.executable, str(BENCHMARKS / "folders.py"), "--only", "trashnet", "--budgets", "2e9"]
    command += ["--rates-at", "1e9", "--seeds", "42", "--arms", "vitreous", "resnet9", "--jobs", "2"]
    command += ["--trashnet", str(tmp_path / "photos"), "--records", str(file), "--device", "cpu"]
    command += ["--data-dir", str(tmp_path / "cache")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    first = start()
    parts = file.with_suffix(".parts.jsonl")
    while not parts.exists() and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    output = first.communicate(timeout=60)[0]
    assert first.returncode == 130 and "Stopped" in output, output
    assert not list(tmp_path.glob("bench-folders-*"))
    kept = len(parts.read_text().splitlines())
    assert kept >= 1
    second = start()
    output = second.communicate(timeout=300)[0]
    assert second.returncode == 0, output
    assert f"{25 - kept} trainings to do" in output  # three learning rates and two arms, five folds each
    assert not parts.exists()
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == 5
    assert all(
        sum(r["figures"]["images_of_class"]) == 69 for r in records
    )  # 76 without the tenth that is test
    command += ["--final"]
    third = start()
    output = third.communicate(timeout=300)[0]
    assert third.returncode == 0 and "2 trainings to do" in output, output
    tested = [
        json.loads(line) for line in file.read_text().splitlines() if "-test-" in json.loads(line)["id"]
    ]
    assert [sum(r["figures"]["images_of_class"]) for r in tested] == [7, 7]
    assert {r["figures"]["training_images"] for r in tested} == {69}
    command = [word for word in command if word not in ("--final", "--arms", "vitreous", "resnet9")]
    command += ["--name", "broken", "small_sides=[0.01]", "small_until=[0.5]"]
    fourth = start()
    output = fourth.communicate(timeout=300)[0]
    assert fourth.returncode == 1 and output.count("FAILED") == 5, output
    assert "too small for patch_size" in output and "5 trainings failed" in output
