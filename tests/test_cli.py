"""The command line: what its words are turned into, its help, and a sentence for every typo."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vitreous import api, cli, plan
from vitreous.cli import COMMANDS, main
from vitreous.errors import VitreousError
from vitreous.request import OPTIONS, Request

Capture = pytest.CaptureFixture[str]
HEAVY = ("torch", "numpy", "PIL", "pytorch_lightning", "matplotlib")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The calls that the command line makes, recorded and not carried out."""
    made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for name in ("train", "resume", "repeat", "show"):
        monkeypatch.setattr(api, name, lambda *args, **options: made.append((args, options)))
    return made


def run(line: str) -> int:
    return main(line.split())


def refused(line: str, capsys: Capture) -> str:
    """The one sentence with which a line is refused, with status 2 and nothing on standard output."""
    assert run(line) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert (
        output.err.startswith("vitreous: ")
        and output.err.count("\n") == 1
        and output.err.endswith((".\n", "?\n"))
    )
    return output.err.removeprefix("vitreous: ").strip()


def in_a_process(*words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vitreous", *words], capture_output=True, text=True
    )
    return result, time.perf_counter() - start


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick_lists_examples_and_needs_nothing_heavy(command: str) -> None:
    tries = [in_a_process(*command.split(), "--help") for _ in range(1)]
    result, seconds = tries[0]
    if seconds > 0.5:  # a busy machine; the best of three counts
        seconds = min(seconds, *(in_a_process(*command.split(), "--help")[1] for _ in range(2)))
    assert result.returncode == 0
    assert seconds < 0.5
    assert re.search(rf"examples:\n  vitreous {command}", result.stdout)
    imported = set(re.findall(r"\| +([\w.]+)$", result.stderr, re.MULTILINE))
    assert "vitreous.cli" in imported or "argparse" in imported
    assert not imported & set(HEAVY)


@pytest.mark.parametrize(
    "line",
    ["", "-h", "--help", "help", "data", "data --help", "help data", "--help data", "data -h", "help --help"],
)
def test_the_overview(line: str, capsys: Capture) -> None:
    assert run(line) == 0
    text = capsys.readouterr().out
    assert "data check" in text and ("recipes" in text) == ("data" not in line)


@pytest.mark.parametrize(
    "line",
    [
        "help train", "train --help", "train -h", "--help train", "train cifar10 --epochs 3 --help",
        "train --help cifar10", "train --minutes x --help", "train --bogus --help",
    ],
)  # fmt: skip
def test_help_may_stand_anywhere(line: str, capsys: Capture) -> None:
    assert run(line) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: vitreous train DATA [key=value …] [--option …]\n")
    assert "--minutes M" in text and "vitreous train cifar10 --minutes 5" in text
    assert "augment.cutout" in text and "model.depth" in text and "blanked" in text


def test_help_of_a_command_of_two_words(capsys: Capture) -> None:
    assert run("help data fetch") == 0
    assert "--from PATH" in capsys.readouterr().out
    assert (
        refused("help data fecth", capsys) == "There is no command 'data fecth'; did you mean 'data fetch'?"
    )


def test_version(capsys: Capture) -> None:
    assert run("--version") == 0
    assert re.fullmatch(r"vitreous \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("line", "args", "options"),
    [
        ("train cifar10", ("cifar10", "default"), {"overrides": []}),
        ("train cifar10 --minutes=5", ("cifar10", "default"), {"overrides": [], "minutes": 5.0}),
        ("train --epochs 3 cifar10", ("cifar10", "default"), {"overrides": [], "epochs": 3}),
        ("train cifar10 --flops 6e13", ("cifar10", "default"), {"overrides": [], "flops": 6e13}),
        ("train cifar10 --seed -1", ("cifar10", "default"), {"overrides": [], "seed": -1}),
        ("train x --skip-bad --image-size 64", ("x", "default"), {"overrides": [], "skip_bad": True, "image_size": 64}),
        ("train x --recipe notebook --out o", ("x", "notebook"), {"overrides": [], "out": Path("o")}),
        ("train x --device cpu --precision 32 --logger csv --data-dir d", ("x", "default"),
         {"overrides": [], "device": "cpu", "precision": "32", "logger": "csv", "data_dir": Path("d")}),
        ("data show x crop=8 --out y.png", ("x",), {"overrides": ["crop=8"], "out": Path("y.png")}),
        ("data show x --epochs 30", ("x",), {"overrides": [], "epochs": 30}),
        ("train --resume runs/x", (Path("runs/x"),), {}),
        ("train --resume=runs/x", (Path("runs/x"),), {}),
        ("train --repeat runs/x --out y", (Path("runs/x"),), {"out": Path("y")}),
        ("train x --backend torch", ("x", "default"), {"overrides": [], "backend": "torch"}),
    ],
)  # fmt: skip
def test_words_become_a_call_and_what_is_not_said_is_not_passed(
    line: str, args: tuple[Any, ...], options: dict[str, Any], calls: list[Any]
) -> None:
    assert run(line) == 0
    assert calls == [(args, options)]


@pytest.mark.parametrize(
    "line",
    [
        "train cifar10 depth=6 dropout=-0.1 --steps 9",
        "train cifar10 --steps 9 depth=6 dropout=-0.1",
        "train cifar10 depth=6 --steps 9 dropout=-0.1",
        "train --steps 9 cifar10 depth=6 dropout=-0.1",
        "train --steps=9 depth=6 cifar10 dropout=-0.1",
        "train depth=6 dropout=-0.1 cifar10 --steps 9",
    ],
)
def test_data_overrides_and_options_stand_in_any_order(line: str, calls: list[Any]) -> None:
    assert run(line) == 0
    assert calls == [(("cifar10", "default"), {"overrides": ["depth=6", "dropout=-0.1"], "steps": 9})]


def test_a_path_may_hold_an_equals_sign(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("year=2024").mkdir()
    assert run("train year=2024 depth=6") == 0
    assert calls == [(("year=2024", "default"), {"overrides": ["depth=6"]})]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("trian cifar10", "There is no command 'trian'; did you mean 'train'?"),
        ("fetch cifar10", "There is no command 'fetch'; did you mean 'data fetch'?"),
        ("data chek x", "There is no command 'data chek'; did you mean 'data check'?"),
        ("recipe", "There is no command 'recipe'; did you mean 'recipes'?"),
        ("train cifar10 --epoch 3", "There is no option '--epoch'; did you mean '--epochs'?"),
        ("train --recpie=x cifar10", "There is no option '--recpie'; did you mean '--recipe'?"),
        ("evaluate x --jsn", "There is no option '--jsn'; did you mean '--json'?"),
        ("data check x --data-dir y", "There is no option '--data-dir'"),
        ("evaluate a b", "'b' is one word too many; see vitreous evaluate --help."),
        ("evaluate", "The following arguments are required: RUN; see vitreous evaluate --help."),
        (
            "data fetch",
            "The following arguments are required: cifar10|cifar100; see vitreous data fetch --help.",
        ),
        (
            "train cifar10 --epochs 3.5",
            "--epochs takes a whole number, not '3.5'; see vitreous train --help.",
        ),
        ("train cifar10 --minutes abc", "--minutes takes a number, not 'abc'; see vitreous train --help."),
        ("train cifar10 --epochs", "--epochs expected one argument; see vitreous train --help."),
        ("train", "Say what to train on: cifar10, cifar100, shapes, or a folder or zip of class folders."),
        ("train depth=6 --steps 1", "Say what to train on"),
        ("data show", "Say what to show"),
        ("train --resume x --seed 42", "--resume needs nothing else"),
        ("train cifar10 --resume x", "--resume needs nothing else"),
        ("train --resume x depth=6", "--resume needs nothing else"),
        ("train --resume x --repeat y", "--resume needs nothing else"),
        ("train --repeat x --seed 1", "--repeat needs nothing else but --out"),
        ("train --repeat nowhere", "There is no run folder nowhere"),
        ("train cifar10 --recipe defualt", "There is no recipe 'defualt'; did you mean 'default'?"),
        ("train cifar10 depht=6", "There is no recipe key 'depht'; did you mean 'depth'?"),
        ("train cifar10 modle.depth=6", "There is no recipe key 'modle.depth'; did you mean 'model.depth'?"),
        ("train cifar10 variant=vit-ti5", "There is no model variant 'vit-ti5'; did you mean 'vit-ti4'?"),
        ("train cifar10 6", "'6' is not an override; write key=value, as in depth=6."),
        ("train cifar10 --minutes 5 --epochs 3", "Give one budget, not minutes and epochs."),
        ("train cifar10 --minutes -5", "A budget of -5 minutes cannot be trained; give more than zero."),
        ("train cifar10 --steps 0", "A budget of 0 steps cannot be trained; give more than zero."),
        ("train cifar10 --minutes nan", "A budget of nan minutes cannot be trained"),
        ("train cifar10 --device cdua", "There is no device 'cdua'; did you mean 'cuda'?"),
        ("train cifar10 --backend navite", "There is no backend 'navite'; did you mean 'native'?"),
        ("train cifar10 --judge tests", "There is no judge 'tests'; did you mean 'test'?"),
        ("train cifar10 --precision bf61", "There is no precision 'bf61'; did you mean 'bf16'?"),
        ("train cifar10 --logger wandv", "There is no logger 'wandv'; did you mean 'wandb'?"),
        ("train --resume nowhere", "There is no run folder nowhere"),
        ("evaluate nowhere", "There is no run folder nowhere"),
        ("evaluate x --split tset", "There is no split 'tset'; did you mean 'test'?"),
        ("report nowhere", "There is no run at nowhere"),
        ("model vit-b61", "There is no model 'vit-b61'; did you mean 'vit-b16'?"),
        ("recipes defualt", "There is no recipe 'defualt'; did you mean 'default'?"),
        ("recipes notebook", "notebook stands for two recipes"),
        ("data fetch cifar01", "There is no data set to fetch 'cifar01'; did you mean 'cifar10'?"),
        ("data info cifar01", "There is no data set or folder 'cifar01'; did you mean 'cifar10'?"),
        ("data clear", "Say what to remove, or --all for everything; "),
        ("data check nowhere/x", "There is no folder or file nowhere/x; check the path."),
    ],
)
def test_every_mistake_is_a_sentence(
    line: str, sentence: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITREOUS_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "open_module", lambda *_, **__: pytest.fail("it is training"))
    assert refused(line, capsys).startswith(sentence)
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_recipes_are_listed_and_printed_whole(capsys: Capture) -> None:
    assert run("recipes") == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == sorted(row.split()[0] for row in rows)
    assert {"default", "notebook-cifar10", "notebook-cifar100"} <= {row.split()[0] for row in rows}
    assert run("recipes default") == 0
    text = capsys.readouterr().out
    assert text.startswith("# ") and "[model]" in text and text.endswith("\n") and not text.endswith("\n\n")


def test_networks_are_listed_and_described(capsys: Capture) -> None:
    assert run("model") == 0
    assert {"compact", "vit-b16"} <= set(capsys.readouterr().out.split())
    assert run("model notebook-cifar10 --num-classes 100 --json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 3_374_948
    assert run("model notebook-cifar10") == 0
    assert "3,328,778" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (VitreousError("Mend this."), 2, "vitreous: Mend this.\n"),
        (KeyboardInterrupt(), 130, "\nvitreous: interrupted\n"),
        (OSError(28, "No space left on device", "runs"), 2, "vitreous: The disk is full"),
    ],
)
def test_how_a_command_ends(
    error: BaseException, status: int, words: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(api, "train", fail)
    assert run("train cifar10") == status
    assert capsys.readouterr().err.startswith(words)


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api, "train", fail)
    with pytest.raises(ZeroDivisionError):
        run("train cifar10")


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "vitreous", "--help"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_name_that_the_terminal_cannot_show_is_escaped() -> None:
    code = "from vitreous import cli; cli.overview = lambda group: 'Žluť 猫'; raise SystemExit(cli.main([]))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and result.stdout == "\\u017dlu\\u0165 \\u732b\n"


def test_the_table_of_options_is_what_train_takes_and_what_its_help_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One table: names and defaults of `train` and `Request`, its docstring, and the command line's help."""
    monkeypatch.setenv("COLUMNS", "1000")  # no line of the help is broken
    parameters = inspect.signature(api.train).parameters
    assert set(parameters) - set(OPTIONS) == {"data", "overrides"}
    request = {field.name: field.default for field in dataclasses.fields(Request)}
    documented = " ".join(str(api.train.__doc__).split())
    printed = " ".join(cli.make_parser("train", COMMANDS["train"]).format_help().split())
    for name, option in OPTIONS.items():
        assert parameters[name].default == option.default
        assert request.get(name, option.default) == option.default
        assert f" {name}: {option.help}" in documented
        if option.kind is not tuple:
            assert f"--{name.replace('_', '-')} {option.metavar}".strip() in printed
            assert option.help in printed
            assert f"(default: {option.default})" in printed or not option.default


def test_an_option_of_one_patch_is_described(capsys: Capture) -> None:
    assert run("model vit-b16 --image-size 16") == 0
    assert "images of 16 x 16" in capsys.readouterr().out
