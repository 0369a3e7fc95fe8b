"""The plan: made by facts, recorded, and used again to the same bits."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import vitreous
from vitreous import api, plan
from vitreous import machine as machines
from vitreous import recipe as recipes
from vitreous.data import module
from vitreous.data.arrays import from_arrays
from vitreous.data.augment import Augment
from vitreous.data.reading import read_options
from vitreous.errors import VitreousError
from vitreous.model.vit import VisionTransformer
from vitreous.request import Request
from vitreous.training import budget as budgets
from vitreous.training.checkpoint import CheckpointKeeper
from vitreous.training.classifier import Classifier

Arrays = tuple[np.ndarray, np.ndarray]
Capture = pytest.CaptureFixture[str]


def digest(run: vitreous.Run) -> str:
    return hashlib.sha256((run.path / "bundle" / "model.safetensors").read_bytes()).hexdigest()


def silent(line: str, detail: bool = False) -> None:
    pass


def slow_steps(patch: pytest.MonkeyPatch, later: float = 0.2) -> None:
    """A made-up clock on which a step takes 50 ms at first and `later` seconds after the thirtieth."""
    now = [1000.0]
    step = Classifier.training_step

    def slow_step(self: Classifier, batch: Any, index: int) -> torch.Tensor:
        now[0] += 0.05 if self.global_step < 30 else later
        return step(self, batch, index)

    patch.setattr(time, "monotonic", lambda: now[0])
    patch.setattr(Classifier, "training_step", slow_step)
    patch.setattr(budgets, "REPORT_SECONDS", 0.0)


# ---- made once


@pytest.mark.parametrize(("budget", "networks"), [({"epochs": 2}, 1), ({"minutes": 0.1}, 2)])
def test_the_data_are_opened_and_the_network_is_built_once(
    budget: dict[str, float], networks: int, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget of minutes needs a second network, to time its steps on."""
    built: list[str] = []

    def count_instances(kind: type, name: str, counts: Any = lambda self: True) -> None:
        original = getattr(kind, "__init__")  # noqa: B009

        def wrapper(self: Any, *args: Any, **options: Any) -> None:
            original(self, *args, **options)
            if counts(self):
                built.append(name)

        monkeypatch.setattr(kind, "__init__", wrapper)

    count_instances(VisionTransformer, "network", lambda self: self.pos_embed.device.type != "meta")
    count_instances(Augment, "augment")
    opened = module.open_data
    monkeypatch.setattr(module, "open_data", lambda *a, **k: built.append("data") or opened(*a, **k))  # type: ignore[func-returns-value]
    recipe = recipes.load("default", [f"{unit}={amount}" for unit, amount in budget.items()])
    made_plan = plan.make_plan(recipe, Request(arrays, device="cpu"), silent)
    assert sorted(built) == ["augment", "data", *["network"] * networks]
    assert not made_plan.recipe.dial and made_plan.data.augment is not None
    assert made_plan.data.augment.crop == made_plan.recipe.augment.crop == 1  # 2 of 32 pixels


def test_the_shown_augmentation_is_that_of_the_training(
    arrays: Arrays,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """For the budget that is given, of which only minutes are measured."""
    shown: list[Augment] = []
    monkeypatch.setattr(plan, "measure_seconds", lambda *_, **__: pytest.fail("it is measuring"))
    monkeypatch.setattr(api, "draw", lambda store, augment, path: shown.append(augment))
    for epochs in (1, 26):
        api.show(arrays, out=tmp_path / "x.png", epochs=epochs, overrides=tiny["overrides"])
        assert f"as in a training of {epochs} epoch" in capsys.readouterr().out
        run = vitreous.train(arrays, out=tmp_path / str(epochs), epochs=epochs, **tiny)
        assert (shown[-1].crop, shown[-1].cutout) == (run.recipe.augment.crop, run.recipe.augment.cutout)
    assert [(augment.crop, augment.cutout) for augment in shown] == [
        (1, 0),
        (2, 3),
    ]  # 2 and 3, 5 of 32 pixels


# ---- by facts


def test_three_identical_commands_under_load_give_one_hash(arrays: Arrays, tmp_path: Path) -> None:
    """The real choices, beside busy loops that come and go."""
    runs = []
    for number in range(3):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
        try:
            tiny = {"embed_dim": 32, "num_heads": 2, "depth": 1, "batch_size": 16}
            runs.append(vitreous.train(arrays, steps=3, out=tmp_path / str(number), overrides=tiny))
        finally:
            for process in busy:
                process.kill()
    assert len({digest(run) for run in runs}) == 1
    choices = [{k: v for k, v in run.resolved["machine"].items() if "gflops" not in k} for run in runs]
    assert choices[0] == choices[1] == choices[2]


def test_a_backend_that_cannot_be_is_refused_or_left(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["overrides"] |= {"embed_dim": 8, "num_heads": 1}  # narrower than a register
    with pytest.raises(VitreousError, match=r"native kernels cannot be used.*--backend torch"):
        vitreous.train(arrays, steps=1, out=tmp_path / "run", backend="native", **tiny)
    assert not (tmp_path / "run").exists()
    run = vitreous.train(arrays, steps=1, out=tmp_path / "run", **tiny)
    assert run.resolved["machine"]["backend"] == "torch"
    assert any("native kernels cannot be used" in reason for reason in run.resolved["machine"]["reasons"])


# ---- used again


@pytest.mark.parametrize("budget", [{"steps": 7}, {"minutes": 0.1}])
def test_a_repeated_run_has_the_same_bits(
    budget: dict[str, float],
    arrays: Arrays,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first run was on a machine that got slower on the way, the second is not; it is interrupted, too."""
    tiny["overrides"] |= {"dropout": 0.1, "schedule.warmup": 0.5}
    with monkeypatch.context() as patch:
        slow_steps(patch)
        first = vitreous.train(arrays, out=tmp_path / "first", seed=5, **budget, **tiny)
    fits = first.resolved["timeline"]["fits"]
    assert len(fits) > (3 if "minutes" in budget else 0)
    monkeypatch.setattr(machines, "product_speeds", lambda device: (20.0, 60.0))
    again = vitreous.repeat(first.path, arrays, out=tmp_path / "again")
    assert digest(again) == digest(first)
    assert again.resolved["exact"] and again.resolved["timeline"]["fits"] == fits
    assert again.resolved["repeats"] == str(first.path)
    assert {key: again.summary[key] for key in ("train_flops", "steps", "test_loss")} == {
        key: first.summary[key] for key in ("train_flops", "steps", "test_loss")
    }
    save = CheckpointKeeper.on_train_batch_end
    cut_at = fits[len(fits) // 2][0] if len(fits) > 1 else 5  # some fits lie behind it, some ahead

    def interrupt(self: CheckpointKeeper, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == cut_at:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        save(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointKeeper, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            vitreous.repeat(first.path, arrays, out=tmp_path / "cut")
    with pytest.raises(VitreousError, match="is not finished"):
        vitreous.repeat(tmp_path / "cut", arrays)
    assert digest(vitreous.resume(tmp_path / "cut", arrays)) == digest(first)


def test_a_choice_that_cannot_be_honoured_is_said(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = vitreous.train(arrays, steps=3, out=tmp_path / "first", **tiny)
    if first.resolved["machine"]["backend"] != "native":
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(plan, "unsupported", lambda network, dtypes: "there is no C++ compiler")
    monkeypatch.setattr(machines, "cpp_compiler", lambda: None)
    again = vitreous.repeat(first.path, arrays, out=tmp_path / "again")
    log = (again.path / "log.txt").read_text()
    assert "The recorded backend 'native' is not possible here" in log
    assert "backend was native and is torch" in log
    assert not again.resolved["exact"]
    other = vitreous.train(arrays, first.path / "recipe.toml", out=tmp_path / "other", device="cpu")
    assert "The recorded backend 'native' is not possible here" in (other.path / "log.txt").read_text()
    with pytest.raises(VitreousError, match="cannot be used"):  # but never without a word what was asked for
        vitreous.train(arrays, first.path / "recipe.toml", out=tmp_path / "x", backend="native")


def test_a_run_is_not_resumed_with_another_backend(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What began natively would go on with other bits; that is for a person to decide."""
    run = vitreous.train(arrays, steps=3, out=tmp_path / "run", **tiny)
    if run.resolved["machine"]["backend"] != "native":
        pytest.skip("no C++ compiler")
    (run.path / "summary.json").unlink()
    monkeypatch.setattr(plan, "unsupported", lambda network, dtypes: "there is no C++ compiler")
    with pytest.raises(VitreousError, match=r"there is no C\+\+ compiler"):
        vitreous.resume(run.path, arrays)


def test_a_runs_recipe_brings_its_choices(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    first = vitreous.train(arrays, steps=2, out=tmp_path / "first", backend="torch", **tiny)
    file = first.path / "recipe.toml"
    file.write_text(file.read_text().replace('attention = "explicit"', 'attention = "fused"'))
    again = vitreous.train(arrays, file, out=tmp_path / "again")
    recorded = {"precision": "32", "backend": "torch", "attention": "fused", "compile": False}
    assert again.resolved["machine"].items() >= recorded.items()
    assert "repeats" not in again.resolved


def test_records_of_another_version_or_damaged_ones_are_told_apart(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    run = vitreous.train(arrays, steps=2, out=tmp_path / "run", **tiny)
    file = run.path / "recipe.toml"
    whole = file.read_text()

    def with_lines(drop: str = "", add: tuple[str, str] = ("", "")) -> str:
        lines = [line for line in whole.splitlines() if not (drop and line.startswith(drop))]
        return "\n".join(lines).replace(add[0], "\n".join(add)) if add[0] else "\n".join(lines)

    for text in (with_lines("backend ="), with_lines(add=("[resolved.request]", "colour = 1"))):
        file.write_text(text)
        with pytest.raises(
            VitreousError, match=f"other entries than vitreous {vitreous.__version__} writes; restore it"
        ):
            vitreous.repeat(run.path, arrays)
    version = f'vitreous = "{vitreous.__version__}"'
    assert version in whole
    file.write_text(with_lines("backend =").replace(version, 'vitreous = "0.0.1"'))
    with pytest.raises(VitreousError, match=r"was written by vitreous 0\.0\.1.*use vitreous 0\.0\.1"):
        vitreous.repeat(run.path, arrays)
    file.write_text(with_lines("backend ="))
    vitreous.train(arrays, file, out=tmp_path / "again", device="cpu")
    assert "does not record backend" in capsys.readouterr().out
    for table in ("machine", "request", "versions"):
        tables = tomllib.loads(whole)
        del tables["resolved"][table]
        file.write_text(recipes.dump(tables))
        with pytest.raises(VitreousError, match=rf"has no \[resolved.{table}\]"):
            vitreous.repeat(run.path, arrays)
    file.write_text(whole.replace('data = "arrays"', 'data = "shapes"'))
    with pytest.raises(VitreousError, match="no longer holds the images of this run"):
        vitreous.repeat(run.path)
    file.write_text(whole.replace("[training]", "[trainings]"))
    with pytest.raises(VitreousError, match="trainings"):
        vitreous.repeat(run.path, arrays)


def test_a_repeat_that_is_killed_goes_on_as_one(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its first checkpoint, and between two fits: a kill leaves what was written by then."""
    with monkeypatch.context() as patch:
        slow_steps(patch)
        first = vitreous.train(arrays, out=tmp_path / "first", minutes=0.1, **tiny)
    fits = first.resolved["timeline"]["fits"]
    assert len(fits) > 3
    save = CheckpointKeeper.on_train_batch_end
    for cut_at in (2, fits[len(fits) // 2][0]):
        path = tmp_path / f"cut at {cut_at}"

        def kill(self: CheckpointKeeper, trainer: pl.Trainer, *args: Any, at: int = cut_at) -> None:
            save(self, trainer, *args)
            if trainer.global_step == at - 1 and at > 2:
                self.save(trainer)
            if trainer.global_step == at:
                raise SystemError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointKeeper, "on_train_batch_end", kill)
            with pytest.raises(SystemError):
                vitreous.repeat(first.path, arrays, out=path)
        again = vitreous.resume(path, arrays)
        assert digest(again) == digest(first) and again.resolved["exact"]
        assert again.resolved["timeline"]["fits"] == fits


def test_a_repeat_is_exact_by_its_weights(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    first = vitreous.train(arrays, steps=2, out=tmp_path / "first", **tiny)
    again = vitreous.repeat(first.path, arrays, out=tmp_path / "again")
    assert again.resolved["exact"]
    assert f"The weights are those of {first.path}, to the bit." in capsys.readouterr().out
    weights = first.path / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    other = vitreous.repeat(first.path, arrays, out=tmp_path / "other")
    assert not other.resolved["exact"]
    assert f"The weights differ from {first.path}'s." in capsys.readouterr().out
    weights.unlink()
    assert vitreous.repeat(first.path, arrays, out=tmp_path / "third").resolved["exact"]
    assert "so they are not compared" in capsys.readouterr().out


def test_what_changes_bits_is_told(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    first = vitreous.train(arrays, steps=1, out=tmp_path / "first", **tiny)
    file = first.path / "recipe.toml"
    machine, versions = first.resolved["machine"], first.resolved["versions"]
    assert machine["capability"] == torch.backends.cpu.get_cpu_capability()
    assert machine["matmul_precision"] == torch.get_float32_matmul_precision()
    for old, new in (
        (f'capability = "{machine["capability"]}"', 'capability = "SSE"'),
        (f'matmul_precision = "{machine["matmul_precision"]}"', 'matmul_precision = "medium"'),
        (f'vitreous = "{versions["vitreous"]}"', 'vitreous = "0.0.1"'),
    ):
        whole = file.read_text()
        assert old in whole
        file.write_text(whole.replace(old, new))
        capsys.readouterr()
        vitreous.repeat(first.path, arrays, out=tmp_path / new[:5])
        file.write_text(whole)
        name, value = new.replace('"', "").split(" = ")
        assert f"in their last bits: {name} was {value} and is" in capsys.readouterr().out
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    limited = vitreous.repeat(first.path, arrays, out=tmp_path / "limited")
    assert "in their last bits: ONEDNN_MAX_CPU_ISA was none and is AVX2" in capsys.readouterr().out
    assert vitreous.repeat(limited.path, arrays, out=tmp_path / "alike").resolved["environment"] == {
        "ONEDNN_MAX_CPU_ISA": "AVX2"
    }
    assert "in their last bits" not in capsys.readouterr().out


def test_recorded_choices_are_said_to_be_recorded(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path
) -> None:
    first = vitreous.train(arrays, steps=1, out=tmp_path / "first", backend="torch", **tiny)
    assert "backend: torch, as given" in first.resolved["machine"]["reasons"]
    again = vitreous.train(arrays, first.path / "recipe.toml", out=tmp_path / "again", device="cpu")
    for run in (again, vitreous.repeat(first.path, arrays, out=tmp_path / "third")):
        reasons = run.resolved["machine"]["reasons"]
        assert {"precision: 32, as recorded", "backend: torch, as recorded"} <= set(reasons)
        assert not any("as given" in reason for reason in reasons)
        assert any(reason.startswith("attention:") and "as recorded" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timeline.fits", "abc"),
        ("timeline.fits", []),
        ("timeline.fits", [[0]]),
        ("timeline.fits", [["a", "b"]]),
        ("timeline.fits", [[0, 0]]),
        ("timeline.fits", [[0, 5], [0, 4]]),
        ("timeline", 3),
        ("versions", "x"),
        ("versions.torch", None),
        ("versions.torch", 3),
        ("machine", 3),
        ("machine.threads", -4),
        ("machine.threads", 0),
        ("machine.threads", "two"),
        ("machine.compile", "maybe"),
        ("machine.attention", "some"),
        ("machine.backend", "fast"),
        ("request", 3),
        ("request.data_dir", 3),
        ("request.image_size", "32"),
        ("exact", 1),
        ("fingerprint", 1),
        ("", 3),
    ],
)
def test_a_malformed_record_is_a_sentence(
    key: str, value: Any, arrays: Arrays, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = vitreous.train(arrays, steps=1, out=tmp_path / "run", **tiny)
    file = run.path / "recipe.toml"
    tables = tomllib.loads(file.read_text())
    *way, last = ["resolved", *filter(None, key.split("."))]
    table = tables
    for name in way:
        table = table[name]
    table[last] = value  # none is not written
    file.write_text(recipes.dump(tables))
    with pytest.raises(VitreousError):
        vitreous.repeat(run.path, arrays, out=tmp_path / "again")
    (run.path / "summary.json").unlink()
    with pytest.raises(VitreousError):
        vitreous.resume(run.path, arrays)
    if "machine" in key or not key:
        with pytest.raises(VitreousError, match=r"[Rr]estore it, or train anew"):
            vitreous.train(arrays, file, out=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_torch_is_left_as_it_was(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "processor", lambda: "a processor")
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        run = vitreous.train(arrays, steps=2, out=tmp_path / "run", **tiny)
        assert torch.equal(torch.get_rng_state(), state)
        torch.set_num_threads(threads + 1)
        vitreous.repeat(run.path, arrays, out=tmp_path / "again")
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_numpys_whole_numbers_are_written_as_such(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path
) -> None:
    size: Any = np.int64(16)
    run = vitreous.train(arrays, steps=1, image_size=size, seed=np.int32(3), out=tmp_path / "run", **tiny)
    assert run.resolved["request"].items() >= {"image_size": 16, "seed": 3}.items()
    assert digest(vitreous.repeat(run.path, arrays, out=tmp_path / "again")) == digest(run)


def test_an_unusable_logger_is_met_before_anything_is_written(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = vitreous.train(arrays, steps=1, out=tmp_path / "run", **tiny)

    def refuse(name: str) -> None:
        raise VitreousError("no key")

    monkeypatch.setattr(api, "check_logger", refuse)
    with pytest.raises(VitreousError, match="no key"):
        vitreous.repeat(run.path, arrays, out=tmp_path / "again")
    assert not (tmp_path / "again").exists()
    (run.path / "summary.json").unlink()
    before = (run.path / "log.txt").read_text()
    with pytest.raises(VitreousError, match="no key"):
        vitreous.resume(run.path, arrays)
    assert (run.path / "log.txt").read_text() == before


def test_torch_set_otherwise_is_a_sentence(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    with torch.no_grad(), pytest.raises(VitreousError, match=r"outside of torch.no_grad"):
        vitreous.train(arrays, steps=1, out=tmp_path / "run", **tiny)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(VitreousError, match="float32 as torch's default"):
            vitreous.train(arrays, steps=1, out=tmp_path / "run", **tiny)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not (tmp_path / "run").exists()


# ---- what cannot be trained, in a sentence


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: vitreous.train(x, y), r"one pair: train\(\(images, labels\)\)"),
        (lambda x, y: vitreous.train((x, y), (x, y)), r"train\(\(\(images, labels\), \(test_images"),
        (lambda x, y: vitreous.train((x, y), 3), "second argument is a recipe.*not int"),
        (lambda x, y: vitreous.train((x, 0 * y), steps=1), "at least two classes"),
        (lambda x, y: vitreous.train("shapes", classes=["a"], steps=1), "leave `classes` out"),
        (lambda x, y: vitreous.train((x, y), classes=["a", "b"], steps=1), "Labels range"),
        (lambda x, y: vitreous.train((x, y), steps=1, overrides={"small_sides": [0.01]}), "no pixel of 16"),
        (
            lambda x, y: vitreous.train((x, y), steps=1, overrides={"small_sides": [0.1]}),
            "too small for patch_size 2",
        ),
        (lambda x, y: vitreous.train((x, y), steps=1, overrides={"crop": 16}), "crop of 16"),
        (lambda x, y: vitreous.train((x, y), sed=1), "did you mean 'seed'"),
        (lambda x, y: vitreous.train((x, y), steps=1, classes="abc"), "class names are 'abc'"),
        (lambda x, y: vitreous.train((x, y), steps=1, classes=3), "class names are 3"),
        (lambda x, y: vitreous.train((x, y), steps=1, image_size=16.0), "image_size is 16.0"),
        (lambda x, y: vitreous.train((x, y), steps=1, seed=True), "seed is True"),
        (lambda x, y: vitreous.train((x, y), steps=1, logger=None), "no logger None"),
        (lambda x, y: vitreous.train((x, y), steps=1, device=3), "no device 3"),
        (lambda x, y: vitreous.train((x, y), steps=1, out=3), "3 cannot be used as a path"),
        (lambda x, y: vitreous.train((x, y), steps=1, data_dir=3), "data_dir is 3"),
        (lambda x, y: vitreous.train((x, y), steps=1, overrides=3), "overrides are 3"),
        (lambda x, y: vitreous.train((x, y), steps=1, overrides="depth=6"), "overrides are 'depth=6'"),
        (lambda x, y: vitreous.train((x, y), steps=1, overrides={3: 4}), "overrides are {3: 4}"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence_and_leaves_nothing(
    call: Any, words: str, arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VitreousError, match=words):
        call(*arrays)
    assert not list(tmp_path.iterdir())


def test_a_home_folder_is_recorded_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    request = Request("~/images", data_dir="~/cache")
    recorded = plan.record_request(request)
    assert recorded["data"] == str((tmp_path / "images").resolve())
    assert recorded["data_dir"] == str(tmp_path.resolve() / "cache")


def test_a_request_is_recorded_so_that_the_data_are_read_alike() -> None:
    for options in (
        {},
        {"fit": "pad", "value_range": (0, np.int64(4095)), "group_by": r"patient(\d+)"},
        {"value_range": "0,4095", "splits": {"train": Path("a b"), "test": "c"}, "image_size": np.int64(48)},
        {"splits": "none", "group_by": re.compile("ward\\d", re.IGNORECASE), "classes": ("a", "b")},
    ):
        request = Request("cifar10", **options)
        text = recipes.dump({"resolved": {"request": plan.record_request(request)}})
        stored = Request(**tomllib.loads(text)["resolved"]["request"])
        assert read_options(**stored.reading) == read_options(**request.reading)
        assert (stored.data, stored.classes, stored.seed) == (request.data, request.classes, request.seed)


def test_a_run_from_before_the_options_of_reading_is_read_as_it_was(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = vitreous.train(arrays, steps=1, out=tmp_path / "run", **tiny)
    file = run.path / "recipe.toml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(
        "".join(line for line in lines if not line.startswith(("fit =", "splits =", "value_range =")))
    )
    assert plan.stored_request(vitreous.Run(run.path), arrays).fit == "crop"
    assert vitreous.evaluate(str(run.path), data=arrays).scalars["acc"] == run.summary["test_acc"]
    assert vitreous.repeat(run.path, arrays, out=tmp_path / "again").resolved["request"]["fit"] == "crop"


def test_a_data_path_gives_the_run_its_last_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaves.v2" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "leaves.v2")
    monkeypatch.chdir(tmp_path / "leaves.v2" / "below")
    names = [api.data_name(data) for data in ("..", "../../leaves.v2", "../../link", ".", "cifar10", "/")]
    assert names == ["leaves", "leaves", "link", "below", "cifar10", "data"]


def test_show_writes_into_the_home_folder(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VitreousError, match="3 cannot be used as a path"):
        api.show(arrays, out=3, steps=1)  # type: ignore[arg-type]
    assert api.show(arrays, out="~/x.png", steps=1) == tmp_path / "home" / "x.png"
    assert (tmp_path / "home" / "x.png").exists()


def test_arrays_may_have_names_and_a_test_split(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    images, labels = arrays
    run = vitreous.train(arrays, steps=1, classes=["dark", "grey", "light"], out=tmp_path / "a", **tiny)
    assert run.classes == ("dark", "grey", "light")
    assert vitreous.repeat(run.path, arrays, out=tmp_path / "b").classes == run.classes
    store = from_arrays(images, labels, test=(images[:30], labels[:30]))
    assert len(plan.open_module(recipes.load("default"), Request(store), silent).splits.test) == 30


def test_a_training_that_diverges_says_so(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    well = vitreous.train(arrays, steps=2, out=tmp_path / "well", **tiny)
    assert "diverged" not in well.summary and "diverged" not in capsys.readouterr().out
    tiny["overrides"] |= {"learning_rate": 10.0, "muon_learning_rate": 10.0}
    run = vitreous.train(arrays, steps=12, out=tmp_path / "run", **tiny)
    assert run.summary["diverged"] is True
    assert "Warning: the training diverged" in capsys.readouterr().out
    assert api.has_diverged({"test_loss": float("nan")}, 3) and not api.has_diverged({"test_loss": 3.0}, 3)


def test_too_few_minutes_are_said_beforehand(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    run = vitreous.train(arrays, minutes=0.01, out=tmp_path / "run", **tiny)
    assert (
        "The budget of 0.01 minutes is too short here"
        in (run.path / "log.txt").read_text().split("budget:")[0]
    )
    assert run.summary["steps"] <= 2
