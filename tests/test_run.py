"""Run folders: their names, their files, and an error message for each kind of damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitreous
from vitreous import recipe as recipes
from vitreous.bundle import load_bundle
from vitreous.errors import VitreousError
from vitreous.run import (
    LONGEST_NAME,
    Predictions,
    Run,
    load,
    log,
    new_folder,
    note_test_read,
    read_metrics,
    run_name,
    unreadable,
    write_json,
    write_predictions,
    write_recipe,
)

as_root = os.geteuid() == 0 if hasattr(os, "geteuid") else False


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(path: Path) -> None:
    write_recipe(path, recipes.load("default"), {"fingerprint": "00"})


def new(out: str | None = None, name: str = "cifar10-default") -> Path:
    with new_folder(out, name) as path:
        begin(path)
    return path


def test_runs_are_numbered() -> None:
    assert [str(new()) for _ in range(3)] == [f"runs/cifar10-default-00{n}" for n in (1, 2, 3)]
    assert str(new(name="shapes-default")) == "runs/shapes-default-001"


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ((), ""),
        (["depth=6"], "-depth6"),
        ({"model.depth": 6, "optimizer.learning_rate": 1e-3}, "-depth6-learning_rate0.001"),
        (["pool=mean", "trivial=true", "schedule.small_sides=[0.5, 0.75]"],
         "-pool-mean-trivial-true-small_sides0.5-0.75"),
        ({"trivial": True, "small_sides": [0.5, 0.75]}, "-trivial-true-small_sides0.5-0.75"),
        (["minutes=3", "depth=6", "budget.flops=3e13"], "-depth6"),
        (["depth=6", "model.depth=8"], "-depth8"),
        (["optimizer.name=adamw", "schedule.name=onecycle"], "-optimizer.name-adamw-schedule.name-onecycle"),
        (["small_sides=[]", "depth=6"], "-small_sides-none-depth6"),
        ({"small_sides": [], "small_until": ()}, "-small_sides-none-small_until-none"),
    ],
)  # fmt: skip
def test_a_name_tells_changes_and_seed(overrides: Any, changes: str) -> None:
    assert run_name("cifar10", "default", 42, overrides) == f"cifar10-default{changes}-seed42"


def test_a_long_name_counts_the_changes_that_it_leaves_out() -> None:
    overrides = [
        f"{key}={value}" for key in ("embed_dim", "mlp_dim", "num_heads", "depth") for value in (1024,)
    ]
    for extra in range(6):
        name = run_name("cifar10", "x" * 10 * extra, 1, overrides)
        shown = [key for key in ("embed_dim", "mlp_dim", "num_heads", "depth") if f"{key}1024" in name]
        hidden = re.search(r"(\d)-(?:more|changes?)-seed1$", name)
        assert len(shown) + (int(hidden[1]) if hidden else 0) == 4
        assert len(f"{name}-001") <= LONGEST_NAME
    assert run_name("cifar10", "x" * 50, 1, ["depth=6"]) == f"cifar10-{'x' * 50}-depth6-seed1"
    assert run_name("cifar10", "x" * 50, 1, ["embed_dim=1024"]) == f"cifar10-{'x' * 50}-1-change-seed1"
    assert run_name("cifar10", "x" * 100, 1) == "cifar10-" + "x" * (LONGEST_NAME - 18) + "-seed1"


def test_the_number_follows_the_largest_there_is() -> None:
    for name in (
        "cifar10-default-007",
        "cifar10-default-1234",
        "cifar10-default-x",
        "cifar10-default-x-9999",
        "2024",
    ):
        Path("runs", name).mkdir(parents=True)
    Path("runs/notes.txt").touch()
    assert str(new()) == "runs/cifar10-default-1235"


def test_no_name_leads_out_of_the_folder() -> None:
    name = run_name("a b", "../../mine/[x]*", 3, {"stem": "../lin ear"})
    assert name == "a-b-..-..-mine-x--stem-..-lin-ear-seed3"
    assert [str(new(name=name)) for _ in range(2)] == [f"runs/{name}-001", f"runs/{name}-002"]


@pytest.mark.parametrize("letter", ["é", "猫", "𝒳"])
def test_a_name_fits_the_file_system(letter: str) -> None:
    name = run_name(letter * 100, "default", 42)
    assert name.startswith(letter * 50) and name.endswith("-seed42")
    assert len(f"{name}-001") <= LONGEST_NAME
    assert len(f"{name}-000001".encode()) <= 255
    assert new(name=name).is_dir()


def test_a_path_may_start_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert new("~/runs/x") == tmp_path / "home" / "runs" / "x"
    assert not Path("~").exists()


@pytest.mark.parametrize("out", ["x" * 300, "deep/" + "x" * 300 + "/er"])
def test_a_name_that_is_too_long_is_a_sentence(out: str) -> None:
    with pytest.raises(VitreousError, match="too long"):
        new(out)
    assert list(Path().iterdir()) == []


def _take(folder: str, count: int, queue: Any) -> None:
    os.chdir(folder)
    queue.put([str(new()) for _ in range(count)])


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    queue = context.Queue()
    processes = [context.Process(target=_take, args=(str(tmp_path), 40, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    taken = [path for _ in processes for path in queue.get(timeout=300)]
    for process in processes:
        process.join()
    assert len(taken) == len(set(taken)) == 80


def test_a_folder_of_ones_own() -> None:
    assert new("deep/er/mine") == Path("deep/er/mine")
    Path("empty").mkdir()
    assert new("empty") == Path("empty")


def test_a_folder_with_something_in_it_is_refused_and_left_alone() -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("words")
    with pytest.raises(VitreousError, match=r"mine is not empty; give another --out\.$"):
        new("mine")
    assert Path("mine/thesis.txt").read_text() == "words"


def test_a_run_in_the_folder_can_be_resumed() -> None:
    begin(Path("my run"))
    with pytest.raises(VitreousError, match=r"my run is not empty.*--out.*--resume 'my run'$"):
        new("my run")
    with pytest.raises(VitreousError, match=r"no summary.json yet.*--resume 'my run'$"):
        _ = Run("my run").summary


def test_a_file_in_place_of_the_folder_is_refused() -> None:
    Path("file").touch()
    for out in ("file", "file/below"):
        with pytest.raises(VitreousError, match="file"):
            new(out)


@pytest.mark.parametrize("out", [None, "deep/er/mine"])
def test_where_nothing_was_begun_no_folder_is_left(out: str | None) -> None:
    with (
        pytest.raises(VitreousError, match="no such data"),
        new_folder(out, "cifar01-default") as path,
        log(path) as say,
    ):
        say("opening the data", detail=True)
        raise VitreousError("no such data")
    assert list(Path().iterdir()) == []


def test_folders_that_were_there_before_stay() -> None:
    Path("mine").mkdir()
    with pytest.raises(VitreousError), new_folder("mine/run", "x"):
        raise VitreousError("stopped")
    assert list(Path("mine").iterdir()) == []
    with pytest.raises(VitreousError), new_folder("mine", "x"):
        raise VitreousError("stopped")
    assert Path("mine").is_dir()
    kept = new()
    with pytest.raises(VitreousError), new_folder(None, "cifar10-default") as path:
        raise VitreousError("stopped")
    assert kept.is_dir() and not path.exists()


def test_a_run_that_was_begun_stays_after_a_failure() -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(None, "cifar10-default") as path:
        begin(path)
        raise KeyboardInterrupt
    assert (path / "recipe.toml").exists()


@pytest.mark.skipif(as_root, reason="root may write anywhere")
def test_a_read_only_parent_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        for out in (None, "mine"):
            with pytest.raises(VitreousError, match="You may not write"):
                new(out)
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_disk_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    for out in (None, "mine"):
        with pytest.raises(VitreousError, match=r"You may not write .*; choose a place"):
            new(out)


def test_the_log_keeps_what_is_printed_and_the_details(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log(tmp_path) as say:
        say("first")
        say("second", detail=True)
    assert capsys.readouterr().out == "first\n"
    with log(tmp_path, verbose=True) as say:  # as --resume does
        say("third")
        say("fourth \udce9", detail=True)
    assert (tmp_path / "log.txt").read_bytes() == b"first\nsecond\nthird\nfourth \\udce9\n"
    assert capsys.readouterr().out == "third\nfourth \\udce9\n"


def test_a_detail_is_printed_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log(tmp_path, verbose=True) as say:
        say("first")
        say("second", detail=True)
    assert capsys.readouterr().out == "first\nsecond\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_does_not_end_a_run_that_only_logs_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with log(tmp_path) as say:
        say("first")
        say("second")
    output = capsys.readouterr()
    assert output.out == "first\nsecond\n"
    assert output.err.startswith("Warning: The disk that holds") and output.err.count("Warning") == 1


def test_json_knows_no_nan(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    content: dict[Any, Any] = {"a": nan, "b": [1.5, inf, {"c": -inf}], "d": (1, "Žluť"), 3: True}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == {
        "a": None, "b": [1.5, None, {"c": None}], "d": [1, "Žluť"], "3": True,
    }  # fmt: skip


def test_a_run_reads_back_its_recipe_and_its_decisions(tmp_path: Path) -> None:
    recipe = recipes.load("notebook-cifar10", ["epochs=3"])
    write_recipe(
        tmp_path, recipe, {"fingerprint": "ab", "machine": {"threads": 2, "reasons": ["one", 'say "x"']}}
    )
    run = Run(tmp_path)
    assert run.recipe == recipe
    assert run.resolved == {"fingerprint": "ab", "machine": {"threads": 2, "reasons": ["one", 'say "x"']}}


def test_metrics_read_back_and_a_line_cut_short_is_no_row(tmp_path: Path) -> None:
    header = "step,epoch,seconds,train_loss,val_acc\n"
    (tmp_path / "metrics.csv").write_text(header + "1,0.5,0.25,2.5,\n2,1.0,0.5,,0.125\n3,1.5,0.7,,0.5")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert len(rows) == 2
    assert rows[0] == {"step": 1, "epoch": 0.5, "seconds": 0.25, "train_loss": 2.5, "val_acc": None}
    assert rows[1]["val_acc"] == 0.125 and rows[1]["train_loss"] is None
    assert Run(tmp_path).metrics == rows


def test_a_run_shows_its_path_status_and_accuracy(tmp_path: Path) -> None:
    assert repr(Run(tmp_path / "none")) == f"<Run {tmp_path / 'none'}: not a run folder>"
    begin(tmp_path)
    run = Run(tmp_path)
    assert repr(run) == f"<Run {tmp_path}: not finished>"
    write_json(tmp_path / "summary.json", {"status": "interrupted"})
    assert repr(run) == f"<Run {tmp_path}: interrupted>"
    write_json(tmp_path / "summary.json", {"status": "finished", "val_acc": 0.8812, "test_acc": 0.875})
    assert repr(run) == f"<Run {tmp_path}: finished, test accuracy 87.5 %, validation accuracy 88.1 %>"
    (tmp_path / "summary.json").write_text("{")
    assert repr(run) == f"<Run {tmp_path}: summary.json cannot be read>"


READERS = {
    "recipe.toml": lambda run: run.recipe,
    "summary.json": lambda run: run.summary,
    "evaluation.json": lambda run: run.evaluation,
    "metrics.csv": lambda run: run.metrics,
    "predictions.npz": lambda run: run.predictions,
}


@pytest.mark.parametrize("file", READERS)
def test_a_missing_file_is_a_sentence_with_its_mend(file: str, tmp_path: Path) -> None:
    with pytest.raises(VitreousError) as failure:
        READERS[file](Run(tmp_path))
    assert file in str(failure.value) and str(tmp_path) in str(failure.value)
    assert ("--resume" in str(failure.value)) == (file != "recipe.toml")


@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"{[",
        b"step,epoch\none,two\n",
        b"step\n1,2,3\n",
        b'"text"',
        b"null",
        b"[" * 100_000,
        b"step,epoch\n1\n",
        b"epoch\n0.5\n",
        b"step,epoch\n,0.5\n",
        b'step,epoch\n1,"0.5\n',
        b"step\n1.5\n",
    ],
)
def test_a_damaged_file_is_a_sentence(file: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    if file == "metrics.csv" and b"\n" not in content and content[:1] != b"\xff":
        assert Run(tmp_path).metrics == []  # a header of one column and no rows
        return
    with pytest.raises(VitreousError) as failure:
        READERS[file](Run(tmp_path))
    assert file in str(failure.value) and "\n" not in str(failure.value)


EVALUATION: dict[str, Any] = {
    "classes": ["a", "b"],
    "val": {
        "figures": {"acc": 0.5, "loss": None},
        "per_class": [{"precision": 0.5, "recall": 1.0, "f1": 0.67, "support": 1}] * 2,
        "confusion": [[1, 0], [1, 0]],
    },
}


def test_an_evaluation_reads_back(tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", EVALUATION)
    assert Run(tmp_path).evaluation["val"]["figures"] == {"acc": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"confusion": "[[1e400, 0], [0, 1]]"},
        {"confusion": "[[1, -1], [0, 1]]"},
        {"confusion": "[[1.5, 0], [0, 1]]"},
        {"confusion": "[[1, 0], [0]]"},
        {"confusion": "[1, 0]"},
        {"confusion": "null"},
        {"confusion": f"[[{10**30}, 0], [0, 1]]"},
        {"per_class": '[["precision", "recall", "f1", "support"], ["precision", "recall", "f1", "support"]]'},
        {"per_class": '[{"precision": 1, "recall": 1, "f1": "high", "support": 1}]'},
        {"per_class": json.dumps([{"precision": 1, "recall": 1, "f1": None, "support": 1}] * 2)},
        {"per_class": json.dumps([{"precision": 1, "recall": 1, "f1": 1, "support": -1}] * 2)},
        {"per_class": json.dumps([{"precision": 1, "recall": 1, "support": 1}] * 2)},
        {"figures": f'{{"acc": {10**400}}}'},
        {"figures": "[1]"},
    ],
)
def test_a_damaged_evaluation_is_a_sentence(change: dict[str, str], tmp_path: Path) -> None:
    entry = {key: json.dumps(value) for key, value in EVALUATION["val"].items()} | change
    text = ", ".join(f'"{key}": {value}' for key, value in entry.items())
    (tmp_path / "evaluation.json").write_text(f'{{"classes": ["a", "b"], "val": {{{text}}}}}')
    with pytest.raises(VitreousError, match=r"evaluation\.json cannot be read \(.+\); restore it, or train"):
        _ = Run(tmp_path).evaluation


def test_mistakes_without_an_evaluation_blame_the_evaluation(tmp_path: Path) -> None:
    (tmp_path / "mistakes.npz").write_bytes(b"")
    with pytest.raises(VitreousError, match=r"has no evaluation\.json yet"):
        _ = Run(tmp_path).mistakes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("classes"), "it has no 'classes'"),
        (MemoryError(), "MemoryError"),
        (ValueError("two\n  lines"), "two lines"),
    ],
)
def test_a_reason_is_always_given_on_one_line(error: Exception, reason: str) -> None:
    for name, remedy in (
        ("summary.json", "restore it, or train anew"),
        ("mistakes.npz", "restore it or delete it"),
        ("metrics.csv", "restore it or delete it"),
    ):
        assert str(unreadable(Path(name), error)) == f"{name} cannot be read ({reason}); {remedy}."


def test_a_recipe_alone_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(recipes.text("default"))
    with pytest.raises(VitreousError, match=r"no \[resolved\] table"):
        _ = Run(tmp_path).resolved


def test_no_trained_model_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VitreousError, match="no trained model"):
        _ = Run(tmp_path).model


def test_the_folder_may_be_a_string(tmp_path: Path) -> None:
    begin(tmp_path)
    assert Run(str(tmp_path)) == Run(tmp_path) == load(str(tmp_path))
    assert Run(str(tmp_path)).recipe.name == "default"


def test_what_is_neither_run_nor_bundle_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", str(tmp_path)):
        with pytest.raises(
            VitreousError, match=r"neither a run folder \(it has no recipe.toml\) nor a bundle"
        ):
            load(path)


@pytest.mark.parametrize("path", [3, None, b"runs", ""])
@pytest.mark.parametrize(
    "open_it", [load, Run, load_bundle, vitreous.resume, vitreous.repeat, vitreous.evaluate]
)
def test_what_is_no_path_is_a_sentence(open_it: Any, path: Any) -> None:
    with pytest.raises(VitreousError, match="cannot be used as a path"):
        open_it(path)


def predictions(count: int = 5, classes: int = 3) -> Predictions:
    generator = np.random.default_rng(0)
    return Predictions(
        names=np.array([f"train/Žluť 猫/{i}.png" for i in range(count)], dtype=np.str_),
        labels=generator.integers(0, classes, count),
        logits=generator.normal(size=(count, classes)).astype(np.float32),
    )


def test_predictions_read_back_and_hold_no_pickle(tmp_path: Path) -> None:
    written = {"val": predictions(5), "test": predictions(0)}
    write_predictions(tmp_path / "predictions.npz", written)
    read = Run(tmp_path).predictions
    assert set(read) == {"val", "test"}
    for split in read:
        for name, array in vars(read[split]).items():
            np.testing.assert_array_equal(array, getattr(written[split], name))
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as plain:  # by numpy's own reader
        assert plain["val_logits"].dtype == np.float32 and plain["val_names"][1] == "train/Žluť 猫/1.png"


def test_predictions_of_a_large_data_set_read_back(tmp_path: Path) -> None:
    count, classes = 140_000, 500  # 280 MB, beyond what one image of a stranger's archive may have
    logits = np.zeros((count, classes), np.float32)
    logits[-1, -1] = 1
    written = Predictions(np.full(count, "a"), np.zeros(count, np.int64), logits)
    write_predictions(tmp_path / "predictions.npz", {"val": written})
    assert np.array_equal(Run(tmp_path).predictions["val"].logits, logits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"val_logits": np.zeros((5, 3))}, "types"),
        ({"val_labels": np.zeros(4, np.int64)}, "length"),
        ({"val_labels": np.full(5, 3)}, "label"),
        ({"val_labels": np.full(5, -1)}, "label"),
        ({"val_names": np.array([None] * 5)}, "allow_pickle|[Pp]ickle|Object"),
        ({"val_names": None}, "val_names"),
        ({"val_logits": None}, "neither val nor test"),
    ],
)
def test_other_arrays_are_a_sentence(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    arrays = {f"val_{name}": array for name, array in vars(predictions()).items()} | change
    np.savez(tmp_path / "predictions.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(VitreousError, match=f"predictions.npz cannot be read.*({words})"):
        _ = Run(tmp_path).predictions


def test_a_file_of_predictions_cut_short_is_a_sentence(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.npz", {"val": predictions()})
    whole = (tmp_path / "predictions.npz").read_bytes()
    for kept in range(0, len(whole), 97):
        (tmp_path / "predictions.npz").write_bytes(whole[:kept])
        with pytest.raises(VitreousError, match=r"predictions\.npz"):
            _ = Run(tmp_path).predictions


def test_reads_of_test_are_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.test_reads == []
    note_test_read(tmp_path, "train")
    note_test_read(tmp_path, "evaluate")
    assert [read["by"] for read in run.test_reads] == ["train", "evaluate"]
    for read in run.test_reads:
        moment = datetime.fromisoformat(read["when"])
        assert moment.tzinfo and abs((datetime.now(UTC) - moment).total_seconds()) < 60
    for content in ("{", "{}", "[1]", "[" * 100_000):
        (tmp_path / "test_reads.json").write_text(content)
        with pytest.raises(VitreousError, match=r"test_reads\.json cannot be read"):
            _ = run.test_reads
        with pytest.raises(
            VitreousError, match=r"test_reads\.json cannot be read"
        ):  # nothing is written over
            note_test_read(tmp_path, "evaluate")
        assert (tmp_path / "test_reads.json").read_text() == content
