"""The benchmarks' own arithmetic, the records, and the pages that are made from them."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import multiprocessing
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import pytest
import torch
import torch.nn.functional as F

from vitreous import recipe as recipes
from vitreous.dial import apply_size, apply_strengths, strength_keys, strengths_at
from vitreous.plan import fit_to_data
from vitreous.recipe import Budget
from vitreous.training.budget import Sizes, planned_steps
from vitreous.training.cost import count_cost

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def line(id: str, **figures: Any) -> dict[str, Any]:
    """A training's record as `record.add` takes it."""
    return {
        "id": id,
        "study": "final",
        "arm": "default",
        "command": "a command",
        "data": "cifar10",
        "seed": int(id.rpartition("seed")[2]),
        "path": "torch, float32",
        "machine": {"name": "a processor", "threads": 2, "instruction_sets": "avx2"},
        "versions": {"torch": "2.13.0"},
        "recipe": {
            "model": {"embed_dim": 96, "depth": 4, "stem": "conv"},
            "augment": {"crop": 2, "cutout": 0},
            "optimizer": {},
        },
        "figures": {"train_flops": 3e13, "total_seconds": 120, "epochs": 4.8, **figures},
        "source_state": {"commit": "0" * 40, "changed_since": []},
    }


@pytest.fixture
def empty_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import record

    monkeypatch.setattr(record, "RECORDS", tmp_path / "records.jsonl")
    return tmp_path / "records.jsonl"


def test_a_record_round_trips_and_replaces_the_one_with_its_id(empty_records: Path) -> None:
    import record

    accuracy = 0.1 + 0.2  # needs all its digits
    record.add(**line("b-seed2", test_acc=0.5))
    record.add(**line("a-seed1", test_acc=0.5))
    record.add(**line("b-seed2", test_acc=accuracy))
    assert [r["id"] for r in record.load()] == ["a-seed1", "b-seed2"]
    assert record.load("final")[1]["figures"]["test_acc"] == accuracy and record.load("law") == []
    with pytest.raises(ValueError, match="JSON compliant"):
        record.add(**line("c-seed3", test_acc=float("nan")))
    assert len(record.load()) == 2


def test_only_the_same_command_replaces_a_record_unless_told_to(empty_records: Path) -> None:
    import record

    record.add(**line("a-seed1", test_acc=0.5) | {"command": "python script.py stem_dims=[1,2]"})
    record.add(**line("a-seed1", test_acc=0.6) | {"command": "python script.py 'stem_dims=[1,2]'"})
    with pytest.raises(
        SystemExit, match=r"a-seed1 was made by another command \(python script.py .*--replace"
    ):
        record.add(**line("a-seed1", test_acc=0.7))
    assert [r["figures"]["test_acc"] for r in record.load()] == [0.6]
    record.add(**line("a-seed1", test_acc=0.7), replace=True)
    assert [r["figures"]["test_acc"] for r in record.load()] == [0.7]


def test_a_training_that_may_not_replace_its_record_does_not_begin(
    empty_records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import record

    record.add(**line("a-seed1"))
    monkeypatch.setattr(record.subprocess, "Popen", lambda *_args: pytest.fail("the training began"))
    with pytest.raises(SystemExit, match="another command"):
        record.training("a-seed1", ["cifar10"], "other command", study="final", arm="default")


def test_a_record_may_hold_the_line_breaks_of_unicode(empty_records: Path) -> None:
    import record

    note = "one\u2028two\u0085three\x0bfour"
    record.add(**line("a-seed1"), note=note)
    record.add(**line("b-seed2"))
    assert [r.get("note") for r in record.load()] == [note, None]


def test_default_names_tell_decimal_values_apart() -> None:
    import accuracy

    def name(*words: str) -> str:
        return accuracy.default_name(accuracy.make_parser().parse_args(words))

    assert name("augment.cutmix=0.5") == name("cutmix=0.5") == "cifar10-default-cutmix0.5-6e13-val"
    names = {name(f"{key}={value}") for key in ("cutmix", "mixup") for value in ("0.5", "1.5", "5")}
    assert len(names) == 6


def test_a_run_without_meaningful_times_counts_for_accuracy_only(empty_records: Path) -> None:
    import leaderboard
    import record

    id = "cifar10-default-3e13-test-seed"
    record.add(**line(f"{id}1", test_acc=0.8, total_seconds=60, images_per_second=500))
    record.add(**line(f"{id}2", test_acc=0.9, total_seconds=6000, images_per_second=5), timing=False)
    assert record.load()[1]["timing"] is False
    (row,) = leaderboard.final_table()[2:]
    assert "| 1.0 |" in row and "| 85.0 (80.0 to 90.0) |" in row
    timed, untimed = ([cell.strip() for cell in row.split("|")] for row in leaderboard.runs_table()[2:])
    head = [cell.strip() for cell in leaderboard.runs_table()[0].split("|")]
    columns = head.index("minutes"), head.index("images/s")
    assert [timed[column] for column in columns] == ["1.0", "500"]
    assert [untimed[column] for column in columns] == ["–", "–"]
    record.add(**line(f"{id}1", test_acc=0.8, total_seconds=60, images_per_second=500), timing=False)
    assert "[–](" in leaderboard.readme_table()[2] and "85.0" in leaderboard.readme_table()[2]


def add_ten(name: str) -> None:
    import record

    for number in range(10):
        record.add(**line(f"{name}{number}-seed{number}"))


def test_records_added_at_the_same_time_are_all_kept(empty_records: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=add_ten, args=(name,)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    ids = [record["id"] for record in map(json.loads, empty_records.read_text().split("\n")[:-1])]
    assert ids == sorted(f"{name}{number}-seed{number}" for name in "abcd" for number in range(10))


def test_a_kept_training_goes_on_unless_it_is_finished(tmp_path: Path) -> None:
    import record

    assert not record.interrupted(tmp_path / "not there") and not record.interrupted(tmp_path)
    (tmp_path / "recipe.toml").write_text('name = "default"')
    assert record.interrupted(tmp_path)
    for status, goes_on in (("interrupted", True), ("finished", False)):
        (tmp_path / "summary.json").write_text(f'{{"status": "{status}"}}')
        assert record.interrupted(tmp_path) == goes_on


class FakeTraining:
    """Stands in for the process of `vitreous train`: writes the files of a run, whose status is `ends`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import record

        self.calls: list[list[str]] = []
        self.ends = "finished"
        process = subprocess.Popen

        def popen(words: list[str], *args: Any, **options: Any) -> subprocess.Popen[Any]:
            if words[0] != sys.executable:  # git
                return process(words, *args, **options)
            self.calls.append(words[4:])
            self.write(Path(words[-1]))
            return process(["true"])

        monkeypatch.setattr(record.subprocess, "Popen", popen)

    def write(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        summary = {"status": self.ends, "data": "cifar10", "seed": 1, "test_acc": 0.5}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.csv").write_text("step,train_loss,val_loss,val_acc\n1,2.0,,\n")
        (folder / "recipe.toml").write_text(
            'name = "default"\n[resolved]\nfingerprint = "f00"\n[resolved.versions]\ntorch = "2.13.0"\n'
            '[resolved.machine]\nname = "a processor"\nbackend = "torch"\nprecision = "32"\ncompile = false\n'
        )


def test_a_kept_run_keeps_the_words_and_sources_of_its_start(
    empty_records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import record

    fake, kept = FakeTraining(monkeypatch), tmp_path / "kept" / "run"
    start = {"commit": record.state()["commit"], "changed_since": []}
    monkeypatch.setattr(record, "state", lambda: dict(start))

    def train(*words: str, more: Any = lambda run: {}) -> dict[str, Any]:
        options = {"study": "final", "arm": "default", "keep": kept, "more": more}
        return record.training("a-seed1", ["cifar10", *words], "a command", **options)

    def crash(run: Any) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        train("crop=2", more=crash)
    with pytest.raises(
        SystemExit, match=r"other arguments \(cifar10 crop=2\); delete .* or give another --keep"
    ):
        train("crop=4")
    monkeypatch.setattr(record, "state", lambda: {"commit": "f" * 40, "changed_since": ["src/new.py"]})
    known = train("crop=2", more=lambda run: {"test_acc_with_flips": 0.6})
    assert known["commit"] == start["commit"] and "changed_since" in known and known["changed_since"] == []
    assert known["figures"]["test_acc_with_flips"] == 0.6 and known["figures"]["peak_memory_mib"] > 0
    assert fake.calls == [["cifar10", "crop=2", "--out", str(kept)]]  # the finished run did not train again

    fake.ends = "interrupted"
    fake.write(kept)
    fake.ends = "finished"
    known = train("crop=2")
    assert fake.calls[1:] == [["--resume", str(kept)]]
    assert known["commit"] == start["commit"] and known["changed_since"] == ["src/new.py"]

    record.start_file(kept).unlink()
    with pytest.raises(SystemExit, match=r"no run\.start\.json tells what began it; delete"):
        train("crop=2")


def test_a_curve_keeps_its_ends_and_all_validations() -> None:
    from record import CURVE_POINTS, short_curve

    rows = [f"{step},{1 / step:.9f},{0.25 if step % 50 == 0 else ''},{'0.5' if step % 50 == 0 else ''}"
            for step in range(1, 201)]  # fmt: skip
    curve = short_curve("\n".join(["step,train_loss,val_loss,val_acc", *rows]))
    assert curve["train"][0] == [1, 1.0] and curve["train"][-1] == [200, 0.005]
    assert len(curve["train"]) == CURVE_POINTS and curve["train"][1][1] == float(
        f"{1 / curve['train'][1][0]:.5g}"
    )
    assert curve["val"] == [[step, 0.25, 0.5] for step in (50, 100, 150, 200)]


def test_a_page_is_filled_between_its_markers(tmp_path: Path) -> None:
    from pages import fill

    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table t: made by benchmarks/leaderboard.py -->\nold\n<!-- end t -->\nb\n")
    fill(page, "t", ["| x |", "| --- |"])
    fill(page, "t", ["| x |", "| --- |"])
    assert page.read_text().splitlines()[2:5] == ["", "| x |", "| --- |"] and "old" not in page.read_text()
    assert page.read_text().startswith("a\n") and page.read_text().endswith("<!-- end t -->\nb\n")
    with pytest.raises(ValueError, match="table other"):
        fill(page, "other", [])


def test_a_row_takes_accuracy_and_minutes_from_the_same_runs(empty_records: Path) -> None:
    import leaderboard
    import record

    for seed, accuracy, seconds in ((1, 0.81, 240), (2, 0.85, 120), (3, 0.82, 180)):
        record.add(**line(f"cifar10-default-3e13-test-seed{seed}", test_acc=accuracy, total_seconds=seconds))
    record.add(**line("cifar10-default-3e13-val-seed1", val_acc=0.7) | {"study": "choose"})
    (row,) = leaderboard.final_table()[2:]
    assert "| 82.0 (81.0 to 85.0) |" in row and "| 3.0 (2.0 to 4.0) |" in row and "crop 2" in row
    (row,) = leaderboard.readme_table()[2:]
    assert row == (
        "| 3e13 | [3.0 (2.0 to 4.0)](docs/results.md#cifar10-3e13) | "
        "[82.0 (81.0 to 85.0) %](docs/results.md#cifar10-3e13) |"
    )
    assert leaderboard.reads_text()[0].startswith("3 runs on record read a test split, 3 on CIFAR-10.")


def test_the_page_counts_every_pass_over_a_test_split(empty_records: Path) -> None:
    import leaderboard
    import record

    record.add(**line("a-seed1", test_acc=0.8))
    record.add(**line("b-seed2", test_acc=0.8, test_acc_with_flips=0.8))
    assert "1 then made a pass over the mirrored" in leaderboard.reads_text()[0]
    assert "shifted" not in leaderboard.reads_text()[0]
    record.add(**line("c-seed3", test_acc=0.8, test_acc_with_flips=0.8, test_acc_with_shifts=0.8))
    (text,) = leaderboard.reads_text()
    assert text.startswith("3 runs on record read a test split, 3 on CIFAR-10.")
    assert "2 then made a pass over the mirrored images" in text
    assert "1 of these also made four passes over shifted images" in text


def test_a_pair_of_stems_is_alike_in_all_else(empty_records: Path) -> None:
    import leaderboard
    import record

    record.add(**line("conv-seed1", test_acc=0.9))
    linear = line("linear-seed1", test_acc=0.8)
    linear["recipe"]["model"]["stem"] = "linear"
    record.add(**linear)
    rows = leaderboard.stem_table()[2:]
    assert ["80.0" in row for row in rows] == [True, False] and ["90.0" in row for row in rows] == [
        False,
        True,
    ]
    for section, other in (("augment", {"crop": 4, "cutout": 8}), ("optimizer", {"weight_decay": 0.1})):
        record.add(**{**linear, "recipe": linear["recipe"] | {section: other}})
        assert leaderboard.stem_table()[2:] == []


def test_adamw_is_shown_at_the_learning_rate_that_is_best_on_common_seeds(empty_records: Path) -> None:
    import leaderboard
    import record

    for rate, seed, accuracy in (("2e-3", 1, 0.80), ("2e-3", 2, 0.99), ("1e-3", 1, 0.82)):
        id = f"adamw-{rate}-seed{seed}"
        record.add(
            **line(id, val_acc=accuracy, val_loss=0.5) | {"study": "ablation", "arm": f"adamw lr {rate}"}
        )
    record.add(**line("d-seed1", val_acc=0.9, val_loss=0.4) | {"study": "ablation", "arm": "default"})
    rows = leaderboard.ablation_table()[2:]
    assert len(rows) == 2 and "learning rate 1e-3 (the best of 1e-3, 2e-3) | 82.0 (82.0) | -8.0" in rows[1]


# ---- the records and the pages as they are


def records() -> list[dict[str, Any]]:
    text = (BENCHMARKS / "records.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_every_record_is_complete() -> None:
    ids = [record["id"] for record in records()]
    assert ids == sorted(set(ids))
    needed = {"id", "study", "arm", "command", "date", "commit", "changed_since"}
    needed |= {"versions", "machine", "figures"}
    for record in records():
        assert needed <= set(record), record["id"]
        if record["study"] not in ("peers", "speed"):  # the competitors of a race have a path each
            assert record["path"], record["id"]
        assert record["command"] or record["note"], record["id"]
        if "train_flops" in record["figures"]:
            assert {"data", "seed"} <= set(record) and (
                "recipe" in record or record["study"] in ("peer-recipe", "folders", "folders-rates")
            )


def test_every_id_that_a_page_cites_is_on_record() -> None:
    ids = {record["id"] for record in records()}
    shape = re.compile(r"`((?:cifar10|cifar100)-[\w.-]+|pairs-[\w.-]+|ablation-seconds)`")
    cited = {page.name: set(shape.findall(page.read_text(encoding="utf-8"))) for page in PAGES}
    assert len(cited["results.md"]) > 50
    for page, cited_ids in cited.items():
        assert cited_ids <= ids, f"{page}: {cited_ids - ids}"


def test_every_anchor_of_the_results_is_there() -> None:
    results = ROOT / "docs" / "results.md"
    text = results.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    anchors = set(re.findall(r'<a id="([^"]+)">', text))
    anchors |= {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    inner = set(re.findall(r"\]\(#([^)]+)\)", text))
    outer = set(re.findall(r"results\.md#([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(inner) > 50 and inner | outer <= anchors, (inner | outer) - anchors


def copy_of_pages(target: Path) -> None:
    (target / "docs").mkdir()
    for page in ("README.md", "docs/results.md", "docs/speed.md", "docs/images.md"):
        shutil.copy(ROOT / page, target / page)


def test_tables_and_plots_are_those_of_the_records(tmp_path: Path) -> None:
    import leaderboard

    copy_of_pages(tmp_path)
    leaderboard.render(tmp_path)
    for page in ("README.md", "docs/results.md", "docs/speed.md", "docs/images.md"):
        assert (tmp_path / page).read_bytes() == (ROOT / page).read_bytes(), f"{page}: run make leaderboard"
    drawn = sorted((tmp_path / "docs").glob("*.svg"))
    expected = ["accuracy-flops.svg", "accuracy-minutes.svg", "dial.svg", "law.svg"]
    expected += ["folders.svg"] if any(record["study"] == "folders" for record in records()) else []
    assert [plot.name for plot in drawn] == sorted(expected)
    if f"Matplotlib v{matplotlib.__version__}," not in (ROOT / "docs" / "law.svg").read_text():
        pytest.skip("the plots were drawn by another version of Matplotlib")
    for plot in drawn:
        assert plot.read_bytes() == (ROOT / "docs" / plot.name).read_bytes(), (
            f"{plot.name}: run make leaderboard"
        )


@pytest.mark.parametrize(
    ("id", "figure", "changed"),
    [
        ("cifar10-undecayed-6e13-test-seed42", "test_acc", ["docs/results.md", "docs/accuracy-flops.svg"]),
        (
            "cifar10-undecayed-6e13-test-seed42",
            "total_seconds",
            ["docs/results.md", "docs/accuracy-minutes.svg"],
        ),
        ("cifar10-law-96wide-3e13-val-seed42", "val_acc", ["docs/results.md", "docs/law.svg"]),
        ("cifar10-ablation-crop-6e13-val-seed43", "val_loss", ["docs/results.md"]),
    ],
)
def test_a_changed_figure_shows_up(
    id: str, figure: str, changed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import leaderboard

    altered = records()
    next(record for record in altered if record["id"] == id)["figures"][figure] *= 1.02
    monkeypatch.setattr(
        leaderboard, "load", lambda study=None: [r for r in altered if study in (None, r["study"])]
    )
    copy_of_pages(tmp_path)
    leaderboard.render(tmp_path)
    for page in changed:
        assert (tmp_path / page).read_bytes() != (ROOT / page).read_bytes()


# ---- commands


def train_words(command: str) -> tuple[str, list[str]]:
    """The id of the record that a command makes, and what it tells `vitreous train`."""
    import accuracy

    _, script, *words = shlex.split(command)
    if script == "benchmarks/record.py":
        return words[0], words[words.index("--") + 1 :]
    args = accuracy.make_parser().parse_args(words)
    (seed,) = args.seeds
    return f"{args.name or accuracy.default_name(args)}-seed{seed}", accuracy.train_words(args, seed)


def test_every_command_is_one_that_its_script_understands() -> None:
    scripts = set()
    for record in records():
        if record["command"] is None:
            continue
        python, script, *words = shlex.split(record["command"])
        assert python == "python" and script.startswith("benchmarks/"), record["id"]
        module = importlib.import_module(Path(script).stem)
        try:
            module.make_parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{record['id']}: {script} does not understand {words}")
        scripts.add(module.__name__)
    assert scripts == {
        "accuracy",
        "faithfulness",
        "exports",
        "fits",
        "folders",
        "golden",
        "pairs",
        "peer_recipe",
        "peers",
        "record",
        "speed",
        "study",
        "unequal",
        "near_copies",
        "html_speed",
        "predict_speed",
    }


def test_a_rerun_writes_the_recorded_command_of_an_accuracy_run() -> None:
    import accuracy

    commands = [r["command"] for r in records() if "benchmarks/accuracy.py" in (r["command"] or "")]
    assert len(commands) > 20
    for command in commands:
        args = accuracy.make_parser().parse_args(shlex.split(command)[2:])
        assert shlex.split(accuracy.command(args, args.seeds[0])) == shlex.split(command)


def resolve(words: list[str], figures: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The tables and the steps that `vitreous train` would come to; for minutes, with the recorded steps.

    The steps that fit into minutes depend on the machine, and the strengths follow them.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="+")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--judge", default="both")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--flops", type=float)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_intermixed_args(words)
    data, *overrides = args.words
    name = f"notebook-{data}" if args.recipe == "notebook" else args.recipe
    unit = "flops" if args.flops else "minutes"
    recipe = recipes.load(name, overrides)
    recipe = dataclasses.replace(recipe, budget=Budget(getattr(args, unit), unit))
    budget = Budget(args.flops or figures["train_flops"], "flops")
    classes = {"cifar10": 10, "cifar100": 100}
    images = 50_000 if args.judge == "test" else round(50_000 * (1 - recipe.data.val_fraction))
    steps = None if args.flops else figures["steps"]
    return resolved(recipe, 32, [images // classes[data]] * classes[data], budget, steps)


def resolved(
    recipe: recipes.Recipe, side: int, counts: list[int], budget: Budget, steps: int | None = None
) -> tuple[dict[str, Any], int]:
    """The tables and the steps of a run on images of `side` pixels; `counts` are the training images of each class."""
    data = SimpleNamespace(
        store=SimpleNamespace(image_size=side, classes=[f"class {label}" for label in range(len(counts))]),
        splits=SimpleNamespace(train=range(sum(counts))),
        class_counts=counts,
    )
    fitted = fit_to_data(recipe, data, lambda line, detail=False: None)  # type: ignore[arg-type]
    batch = fitted.training.batch_size
    steps_per_epoch = sum(counts) // batch if recipe.training.drop_last else math.ceil(sum(counts) / batch)
    sized, _ = apply_size(fitted, lambda architecture: budget.amount)
    cost = count_cost(sized, side, len(counts), batch)
    steps = steps or planned_steps(budget, cost, Sizes(batch, steps_per_epoch, 0, 0))
    complete = apply_strengths(sized, strengths_at(sized, steps, steps_per_epoch, side, strength_keys(sized)))
    return json.loads(json.dumps(complete.tables())), steps


def complete(tables: dict[str, Any]) -> dict[str, Any]:
    """A recorded recipe with the keys that have come since, at the values that change nothing."""
    later = {
        "augment": {"trivial": False, "mixup": 0.0, "cutmix": 0.0},
        "schedule": {"small_sides": [], "small_until": []},
        "training": {"balance": "none"},
        "model": {"stem_stride": 1},
    }
    return tables | {section: values | tables[section] for section, values in later.items()}


# Their weight decay is that of the first form of the law. Empty this when the new records are here.
BEING_TRAINED_AGAIN: tuple[str, ...] = ("cifar10-default-6e13-test-",)
TRAININGS = [r for r in records() if "recipe" in r and r["study"] not in ("peer-recipe", "folders")]
FOLDERS = [r for r in records() if "recipe" in r and r["study"] == "folders"]  # a ResNet-9 has no recipe
# Seeds share a recipe.
DISTINCT = {re.sub(r"seeds? ?\d+", "", record["command"] or record["id"]): record for record in TRAININGS}


def test_the_command_makes_the_record_of_its_id_and_seed() -> None:
    for record in TRAININGS:
        if record["command"] is None:
            assert f"at commit {record['commit'][:7]}" in record["note"]
            continue
        id, words = train_words(record["command"])
        seed = int(words[words.index("--seed") + 1]) if "--seed" in words else 42
        assert (id, seed) == (record["id"], record["seed"])


@pytest.mark.parametrize(
    "record",
    [record for record in DISTINCT.values() if record["command"]],
    ids=lambda record: record["id"],
)
def test_the_command_makes_the_recorded_recipe(record: dict[str, Any]) -> None:
    _, words = train_words(record["command"])
    tables, steps = resolve(words, record["figures"])
    recorded = complete(record["recipe"])
    if record["id"].startswith(BEING_TRAINED_AGAIN):
        tables["optimizer"]["weight_decay"] = recorded["optimizer"]["weight_decay"]
    assert tables == recorded
    assert steps == record["figures"]["steps"]


@pytest.mark.parametrize("record", FOLDERS, ids=lambda record: record["id"])
def test_the_command_of_the_bench_of_folders_makes_the_recorded_recipe(record: dict[str, Any]) -> None:
    import folders
    from folder_sets import SETS

    args = folders.make_parser().parse_args(shlex.split(record["command"])[2:])
    (entry,) = (entry for entry in folders.entries_of(args) if entry.id == record["id"])
    name = folders.RECIPES.get(entry.arm, "default")
    recipe = recipes.load(recipes.notebook(entry.data) if name == "notebook" else name, entry.overrides)
    budget = Budget(float(entry.budget), "flops")
    row, judged, images = (
        SETS[entry.data],
        record["figures"]["images_of_class"],
        record["figures"]["training_images"],
    )
    # The classes of the judged images are as unequal as those of the images that train, but for a test split, which is
    # as it was.
    sizes = [row.ratio ** (-k / (len(judged) - 1)) for k in range(len(judged))] if row.ratio > 1 else judged
    counts = [int(images * each / sum(sizes)) for each in sizes]
    counts[0] += images - sum(counts)
    side = row.image_size or (28 if entry.data == "fashion-mnist" else 32)
    tables, steps = resolved(dataclasses.replace(recipe, budget=budget), side, counts, budget)
    recorded = complete(record["recipe"])
    if record["machine"]["name"].startswith("NVIDIA"):
        # These were trained by the first form of the law, whose weight decay was up to 4 % higher or lower.
        decay = tables["optimizer"].pop("weight_decay")
        assert recorded["optimizer"].pop("weight_decay") == pytest.approx(decay, rel=0.04)
    assert tables == recorded
    assert steps == record["figures"]["steps"]


def test_the_studies_train_by_the_recorded_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    import study

    made: dict[str, str] = {}
    monkeypatch.setattr(study, "load", lambda: [])  # as if nothing were on record
    monkeypatch.setattr(study, "training", lambda id, words, command, **names: made.update({id: command}))
    study.law()
    study.ablation()
    known = {r["id"]: r["command"] for r in records() if r["study"] in ("law", "ablation")}
    assert len(known) >= 40 and known.items() <= made.items()


def test_figures_of_unequal_classes_keep_the_sources_of_each_training(empty_records: Path) -> None:
    import record
    import unequal

    known: dict[str, Any] = {"id": "unequal-trash", "study": "unequal", "arm": "all", "command": "c"}
    known |= {"data": "trash", "machine": {}, "versions": {}}

    def train(arm: str, commit: str) -> None:
        """Stands in for `unequal.run`."""
        state = {"commit": commit, "changed_since": ["src/x.py"]}
        found = unequal.with_new("trash", arm, 42, {"accuracy": 0.5}, state)
        record.add(**known, figures={"by_arm_and_seed": found}, source_state=state)

    before = {"none": {"42": {"accuracy": 0.4}}}  # as records were before each training had its sources
    source_state = {"commit": "a", "changed_since": []}
    record.add(**known, figures={"by_arm_and_seed": before}, source_state=source_state)
    train("loss", "b")
    train("sampler", "c")
    found = unequal.on_record("trash")
    assert {arm: entry["42"]["commit"] for arm, entry in found.items()} == {
        "none": "a",
        "loss": "b",
        "sampler": "c",
    }
    assert found["none"]["42"] == {"accuracy": 0.4, "commit": "a", "changed_since": []}
    assert found["loss"]["42"]["changed_since"] == ["src/x.py"]


def test_every_product_of_a_step_is_found_with_its_shape() -> None:
    from products import product_seconds

    weight = torch.randn(24, 16, requires_grad=True)
    kernel = torch.randn(5, 3, 3, 3, requires_grad=True)
    x, picture = torch.randn(8, 16), torch.randn(2, 3, 9, 9)

    def step() -> None:
        (F.linear(x, weight).relu().sum() + F.conv2d(picture, kernel).sum()).backward()

    seconds, products = product_seconds(step, repeats=1)
    assert seconds == pytest.approx(sum(once * times for once, times, _ in products)) and seconds > 0
    names = sorted(name for _, _, name in products)
    assert any(name.startswith("convolution_backward 2x5x7x7 2x3x9x9 5x3x3x3") for name in names)
    assert any(name.startswith("convolution 2x3x9x9 5x3x3x3") for name in names)
    assert "mm 8x16 16x24" in names and any(name in ("mm 24x8 8x16", "mm 16x8 8x24") for name in names)
    assert len(names) == 4


def test_import_speed_takes_the_faster_base_and_pairs_the_repeats() -> None:
    import_speed = importlib.import_module("import_speed")

    def run(seconds: float) -> dict[str, Any]:
        return {
            "seconds": seconds,
            "cpu_seconds": seconds,
            "threads": 2,
            "parts": {"pack": seconds / 2},
            "peak_bytes": 3e6,
            "peak_bytes_before": 1e6,
        }

    results = {
        "import": [run(3), run(8), run(4)],
        "pillow_1": [run(2), run(4), run(2)],
        "pillow_n": [run(1), run(4), run(3)],
    }
    summary = import_speed.summarize(100, results)
    assert summary["seconds"] == {"import": 4, "pillow_1": 2, "pillow_n": 3}
    assert summary["base"] == "pillow_1" and summary["import_over_base"] == 2
    assert summary["import_over"] == {"pillow_1": 2.0, "pillow_n": 2.0}  # of 1.5, 2, 2 and of 3, 2, 1.33
    assert summary["import_parts"] == {"pack": 2} and summary["files_per_second"]["import"] == 25


def test_import_speed_runs(tmp_path: Path) -> None:
    import_speed = importlib.import_module("import_speed")
    import_speed.make_files(tmp_path / "files", 40)
    assert (
        len(list((tmp_path / "files").glob("*/*.png")))
        == len(list((tmp_path / "files").glob("*/*.jpg")))
        == 20
    )
    command = [sys.executable, str(BENCHMARKS / "import_speed.py"), "--files", "40", "--repeats", "1"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["files"] == 40 and all(summary["seconds"].values()) and summary["import_over_base"] > 0
    assert sum(summary["import_parts"].values()) > 0 and summary["peak_memory_mb"]["import"] > 10
    assert [file.name for file in tmp_path.iterdir()] == ["files"]


def test_predict_speed_runs_and_pairs_the_repeats(tmp_path: Path) -> None:
    predict_speed = importlib.import_module("predict_speed")
    predict_speed.make_files(tmp_path / "small", 3, (32, 32))
    bundle = predict_speed.make_bundle(tmp_path / "bundle", 32)
    for mode in predict_speed.MODES:
        assert predict_speed.measure(mode, tmp_path / "small", bundle) > 0
    results = {f"{name} {mode}": [2.0, 3.0] for name in predict_speed.FOLDERS for mode in predict_speed.MODES}
    results |= {"first": [1.0, 2.0], "small predict": [1.0, 6.0]}
    figures = predict_speed.summarize(results)
    assert figures["small_over_decode"] == {"median": 1.25, "smallest": 0.5, "largest": 2.0}
    assert figures["first_answer_seconds"]["median"] == 1.5
