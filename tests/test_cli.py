"""The command line: the calls it makes, its help, and a sentence for every typo."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitreous import api, cli, habits, plan
from vitreous import recipe as recipes
from vitreous.cli import COMMANDS, main
from vitreous.errors import InterruptedRun, VitreousError, nearest
from vitreous.metrics import FIGURES, Figures
from vitreous.request import OPTIONS, Request
from vitreous.training.loggers import LOGGERS

Capture = pytest.CaptureFixture[str]
HEAVY = ("torch", "numpy", "PIL", "pytorch_lightning", "matplotlib")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The calls that the command line makes, recorded instead of carried out."""
    recorded: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for name in ("train", "resume", "repeat", "show"):
        monkeypatch.setattr(api, name, lambda *args, **options: recorded.append((args, options)))
    return recorded


def run(line: str) -> int:
    return main(line.split())


def refused(line: str, capsys: Capture) -> str:
    """The message that refuses a line, with status 2 and nothing on standard output."""
    assert run(line) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert (
        output.err.startswith("vitreous: ")
        and output.err.count("\n") == 1
        and output.err.endswith((".\n", "?\n"))
    )
    return output.err.removeprefix("vitreous: ").strip()


@pytest.mark.parametrize("command", ["", "train", "data show", "evaluate"])
def test_help_imports_nothing_heavy(command: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "vitreous", *command.split(), "--help"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0
    imported = set(re.findall(r"\| +([\w.]+)$", result.stderr, re.MULTILINE))
    assert "argparse" in imported
    assert not imported & set(HEAVY)


@pytest.mark.parametrize("command", ["", "data", *COMMANDS])
def test_help_fits_a_terminal_and_has_examples(command: str, capsys: Capture) -> None:
    assert run(f"{command} --help") == 0
    text = capsys.readouterr().out
    assert re.search(rf"examples:\n  vitreous {command}", text)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert not re.search(r" $|picture|None", text, re.MULTILINE)


def test_help_of_train_says_what_every_key_may_be(capsys: Capture) -> None:
    run("train --help")
    text = capsys.readouterr().out
    for section, keys in recipes.keys().items():
        table = re.search(rf"^  {section}\n((?:    .*\n?)+)", text, re.MULTILINE)
        assert table, section
        for key, facts in keys.items():
            assert re.search(rf"^    (.*, )?{key}\b", table[1], re.MULTILINE), key
            if section != "budget":
                row = re.split(rf"^    {key}=", table[1], flags=re.MULTILINE)[1]
                row = " ".join(re.split(r"^    \w", row, flags=re.MULTILINE)[0].split())
                assert facts["help"] in row, key
                assert all(choice in row for choice in facts.get("choices", ()))
    assert "learning_rate=0.002 " in text and "(0 to 10)" in text
    assert "depth=… " in text and "(at least 1)" in text  # chosen by the budget


def test_only_name_is_a_key_of_two_sections() -> None:
    """The help says so."""
    names = [key for keys in recipes.keys().values() for key in keys]
    assert {name for name in names if names.count(name) > 1} == {"name"}


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
        ("train x --verbose", ("x", "default"), {"overrides": [], "verbose": True}),
        ("train x -v", ("x", "default"), {"overrides": [], "verbose": True}),
        ("train --resume runs/x -v", (Path("runs/x"),), {"verbose": True}),
        ("train --repeat runs/x -v --out y", (Path("runs/x"),), {"verbose": True, "out": Path("y")}),
        ("train x --backend torch", ("x", "default"), {"overrides": [], "backend": "torch"}),
    ],
)  # fmt: skip
def test_words_become_a_call_and_options_that_are_not_given_are_not_passed(
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
        ("train cifar10 --epoch 3", "train has no option --epoch; write --epochs 3."),
        ("train --recpie=x cifar10", "train has no option --recpie; did you mean --recipe?"),
        ("evaluate x --jsn", "evaluate has no option --jsn; did you mean --json?"),
        ("data check x --data-dir y", "data check has no option --data-dir; see vitreous data check --help."),
        ("evaluate a b", "'b' is an unexpected argument; see vitreous evaluate --help."),
        ("evaluate", "RUN is missing; see vitreous evaluate --help."),
        ("data fetch", "NAME is missing; see vitreous data fetch --help."),
        (
            "train cifar10 --epochs 3.5",
            "--epochs takes a whole number, not '3.5'; see vitreous train --help.",
        ),
        ("train cifar10 --minutes abc", "--minutes takes a number, not 'abc'; see vitreous train --help."),
        ("train cifar10 --epochs", "--epochs needs a value; see vitreous train --help."),
        ("train", "Say what to train on: cifar10, cifar100, shapes, or a folder or zip of class folders."),
        ("train depth=6 --steps 1", "Say what to train on"),
        ("data show", "Say what to show"),
        ("train --resume x --seed 42", "--resume takes data, recipe and budget from the run folder"),
        ("train cifar10 --resume x", "--resume takes data, recipe and budget from the run folder"),
        ("train --resume x depth=6", "--resume takes data, recipe and budget from the run folder"),
        ("train --resume x --repeat y", "--resume takes data, recipe and budget from the run folder"),
        (
            "train --repeat x --seed 1",
            "--repeat takes data, recipe and budget from the run folder; give nothing else but "
            "--data, --out and --verbose.",
        ),
        (
            "train --data x",
            "--data says where the data of an earlier run are now, beside --resume or --repeat; write the data set "
            "without an option, as in vitreous train x.",
        ),
        ("train shapes --data x", "--data says where the data of an earlier run are now"),
        ("train --repeat nowhere", "There is no run folder nowhere"),
        ("train cifar10 --recipe defualt", "There is no recipe 'defualt'; did you mean 'default'?"),
        ("train cifar10 depht=6", "There is no recipe key 'depht'; did you mean 'depth'?"),
        ("train cifar10 modle.depth=6", "There is no recipe key 'modle.depth'; did you mean 'model.depth'?"),
        ("train cifar10 variant=vit-ti5", "There is no model variant 'vit-ti5'; did you mean 'vit-ti4'?"),
        ("train cifar10 model=vit-ti4", "'model' is a section of the recipe; write model.variant=vit-ti4."),
        (
            "train cifar10 augment=3",
            "'augment' is a section of the recipe; write one of its keys, as in augment.crop.",
        ),
        ("train cifar10 flip=left", "augment.flip is 'left'; choose from alternating, none, random."),
        (
            "train cifar10 pool=maen",
            "model.pool is 'maen'; did you mean 'mean'? The choices are attention, cls, mean.",
        ),
        ("train cifar10 dropout=1", "model.dropout is 1.0; it must be at least 0 and below 1."),
        ("train cifar10 6", "'6' is not an override; write key=value, as in depth=6."),
        ("train cifar10 --minutes 5 --epochs 3", "Give one budget, not minutes and epochs."),
        ("train cifar10 --minutes -5", "The budget is -5 minutes; give a finite number above zero."),
        ("train cifar10 --steps 0", "The budget is 0 steps; give a finite number above zero."),
        ("train cifar10 --minutes nan", "The budget is nan minutes; give a finite number above zero."),
        ("train cifar10 --device cdua", "There is no device 'cdua'; did you mean 'cuda'?"),
        ("train cifar10 --backend natvie", "There is no backend 'natvie'; did you mean 'native'?"),
        ("train cifar10 --judge tests", "There is no judge 'tests'; did you mean 'test'?"),
        ("train cifar10 --precision bf61", "There is no precision 'bf61'; did you mean 'bf16'?"),
        ("train cifar10 --logger wandv", "There is no logger 'wandv'; did you mean 'wandb'?"),
        ("train --resume nowhere", "There is no run folder nowhere"),
        ("evaluate nowhere", "There is no run folder nowhere"),
        ("evaluate x --split tset", "There is no split 'tset'; did you mean 'test'?"),
        ("report nowhere", "There is no run folder nowhere"),
        ("model vit-b61", "There is no model 'vit-b61'; did you mean 'vit-b16'?"),
        ("recipes defualt", "There is no recipe 'defualt'; did you mean 'default'?"),
        ("data fetch cifar01", "There is no data set to fetch 'cifar01'; did you mean 'cifar10'?"),
        ("data info cifar01", "There is no data set or folder 'cifar01'; did you mean 'cifar10'?"),
        ("data clear", "Name what to remove, or give --all; "),
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


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train c --lr 1e-3", "write learning_rate=1e-3 (a key of the recipe)."),
        ("train c --learning-rate 1e-3", "write learning_rate=1e-3 (a key of the recipe)."),
        ("train c --learning_rate=1e-3", "write learning_rate=1e-3 (a key of the recipe)."),
        ("train c lr=.1", "write learning_rate=0.1."),
        ("train --depth 6 c", "write depth=6 (a key of the recipe)."),
        ("train --init c", "write init=VALUE (a key of the recipe)."),
        ("train c --model vit-ti4", "write variant=vit-ti4 (a key of the recipe)."),
        ("train c --dropout 0.1", "write dropout=0.1 (a key of the recipe)."),
        ("train c --weight-decay 0.1", "write weight_decay=0.1 (a key of the recipe)."),
        ("train c --wd 0.1", "write weight_decay=0.1 (a key of the recipe)."),
        ("train c --bs 64", "write batch_size=64 (a key of the recipe)."),
        ("train c --batch-size 64", "write batch_size=64 (a key of the recipe)."),
        ("train c --val-split 0.2", "write val_fraction=0.2 (a key of the recipe)."),
        ("train c --optimizer adamw", "write optimizer.name=adamw (a key of the recipe)."),
        ("train c --smoothing 0.1", "did you mean label_smoothing=0.1, a key of the recipe?"),
        ("train c seed=3", "write --seed 3."),
        ("train c image_size=64", "write --image-size 64."),
        ("train c skip_bad=true", "write --skip-bad."),
        ("train c device=cuda", "write --device cuda."),
        ("train c img-size=64", "write --image-size 64."),
        ("train c classes=3", "the data set decides the number of classes."),
        ("train c --num-classes 3", "the data set decides the number of classes."),
        ("train c resume=runs/x", "write --resume runs/x."),
        ("train c epoch=3", "write epochs=3."),
        ("train c optimizer.depth=3", "write depth=3."),
        ("train c optimizer.lr=2e-3", "write learning_rate=0.002."),
        ("train c model.dim=192", "write embed_dim=192."),
        ("train c training.bs=64", "write batch_size=64."),
        ("train c --model.dim 192", "write embed_dim=192 (a key of the recipe)."),
        ("train c model.name=x", "see vitreous train --help."),
        ("train c skip_bad=false", "leave it out."),
        ("train c skip_bad=0", "leave it out."),
        ("train c amp=false", "write --precision 32."),
        ("train c --amp off", "write --precision 32."),
        ("train c gpu=0", "write --device cpu."),
        ("train c --cpu false", "leave it out."),
        ("train c --skip-bad=true", "leave out =true."),
        ("train c --skip-bad=false", "leave out the option."),
        ("train c --verbose=1", "leave out =1."),
        ("train c --split 0.2", "write val_fraction=0.2 (a key of the recipe)."),
        ("train c --split test", "write --judge test."),
        ("train c split=val", "write --judge val."),
        ("train c split=0.2", "write val_fraction=0.2."),
        ("data show c --split 0.2", "write val_fraction=0.2 (a key of the recipe)."),
        ("data show c --split val", "did you mean --splits?"),
        ("data show c seed=3", "see vitreous data show --help."),
        ("data show c device=cpu", "see vitreous data show --help."),
        ("data show c resume=runs/x", "see vitreous data show --help."),
        ("data show c skip_bad=true", "write --skip-bad."),
        ("data show c --output x", "write --out FILE.png."),
        ("data show --dataset c", "write the data set without an option, as in vitreous data show cifar10."),
        ("train c gpus=2", "a run uses one device, which --device chooses."),
        ("data show c gpus=2", "see vitreous data show --help."),
        ("evaluate x --dataset shapes", "write --data DATA."),
        ("evaluate x --JSON", "write --json."),
        ("data validate x", "write vitreous data check PATH."),
        ("data test x", "write vitreous data check PATH."),
        ("data download cifar10", "write vitreous data fetch."),
        ("data eval x", "see vitreous --help."),
        ("train c --gpu", "write --device cuda."),
        ("train c --cuda", "write --device cuda."),
        ("train c --img-size 64", "write --image-size 64."),
        ("train c --amp", "write --precision bf16."),
        ("train c --output-dir x", "write --out DIR."),
        ("train c --name x", "write --out DIR."),
        ("train c --config x.toml", "write --recipe RECIPE."),
        ("train c --checkpoint runs/x", "write --resume RUN."),
        ("train c --workers 4", "batches are prepared in the training process, so there is no number of work"),
        ("train c num_workers=4", "batches are prepared in the training process, so there is no number of work"),
        ("train c --pretrained", "every network is trained from scratch, so there are no pretrained weights."),
        ("train --dataset c", "write the data set without an option, as in vitreous train cifar10."),
        ("evaluate x --test", "write --split test."),
        ("train c --epcohs 3", "did you mean --epochs?"),
        ("train c --Epochs 3", "write --epochs 3."),
        ("train c minuts=5", "did you mean 'minutes'?"),
        ("train c dept=6", "did you mean 'depth'?"),
        ("train c wieght_decay=6", "did you mean 'weight_decay'?"),
        ("eval runs/x", "write vitreous evaluate RUN."),
        ("test runs/x", "write vitreous evaluate RUN."),
        ("resume runs/x", "write vitreous train --resume RUN."),
        ("download cifar10", "write vitreous data fetch."),
        ("show cifar10", "did you mean 'data show'?"),
        ("recipes notbook", "did you mean 'notebook'? The choices are "),
        # Names that only share letters with one of ours are not suggested.
        ("train c --bogus", "see vitreous train --help."),
        ("train c bogus=1", "see vitreous train --help."),
        ("train c --report", "see vitreous train --help."),
        ("train c depart=1", "see vitreous train --help."),
        ("data show c --seed 3", "see vitreous data show --help."),
        ("evaluate x --lr 3", "see vitreous evaluate --help."),
        ("evaluate x --batch-size 3", "see vitreous evaluate --help."),
        ("exports runs/x", "did you mean 'export'?"),
        ("train c --device gpu", "choose from auto, cpu, cuda, mps."),
    ],
)  # fmt: skip
def test_habits_and_typing_errors_get_the_right_answer(line: str, hint: str, capsys: Capture) -> None:
    sentence = refused(line, capsys)
    assert sentence.partition("; ")[2].startswith(hint)
    assert hint[-1] not in ".?" or sentence.endswith(hint)


@pytest.mark.parametrize(
    ("argument", "value", "hint"),
    [
        ("lr", 1e-3, "write overrides={'learning_rate': 0.001}."),
        ("depth", 6, "write overrides={'depth': 6}."),
        ("gpu", 1, "write device='cuda'."),
        ("cuda", False, "write device='cpu'."),
        ("amp", False, "write precision='32'."),
        ("cpu", False, "leave it out."),
        ("gpus", 1, "a run uses one device, which device= chooses."),
        ("num_classes", 3, "the data set decides the number of classes."),
        ("checkpoint", Path("runs/x"), "write vitreous.resume('runs/x')."),
        ("repeat", "runs/x", "write vitreous.repeat('runs/x')."),
        ("split", 0.2, "write overrides={'val_fraction': 0.2}."),
        ("split", "test", "write judge='test'."),
        ("epoch", 3, "write epochs=3."),
        ("num_workers", 4, "batches are prepared in the training process, so there is no number of workers to set."),
        ("sed", 3, "did you mean 'seed'?"),
        ("labels", [0, 1], "see help(vitreous.api.train)."),
    ],
)  # fmt: skip
def test_python_arguments_get_the_right_answer(argument: str, value: Any, hint: str) -> None:
    with pytest.raises(VitreousError) as failure:
        api.train("shapes", **{argument: value})
    assert str(failure.value) == f"train() has no argument {argument!r}; {hint}"


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: api.train(dataset="cifar10"), "write data='cifar10' (the first argument)."),  # type: ignore[call-arg]
        (lambda: api.train("shapes", overrides={"seed": 3}), "give the argument seed=3."),
        (lambda: api.train("shapes", overrides={"skip_bad": False}), "leave it out."),
        (lambda: api.train("shapes", overrides={"resume": "x"}), "write vitreous.resume('x')."),
        (lambda: api.show("shapes", overrides={"seed": 3}), "see vitreous train --help."),
        (lambda: api.show("shapes", overrides={"image_size": 8}), "give the argument image_size=8."),
        (lambda: api.show("shapes", gpus=1), "see help(vitreous.api.show)."),  # type: ignore[call-arg]
        (lambda: api.show("shapes", epoch=3), "write epochs=3."),  # type: ignore[call-arg]
        (lambda: api.resume("runs/x", dataset=3), "write data=3."),  # type: ignore[call-arg]
        (lambda: api.repeat("runs/x", output="y"), "write out='y'."),  # type: ignore[call-arg]
    ],
)
def test_python_callers_get_an_answer_in_python(call: Callable[[], Any], hint: str) -> None:
    with pytest.raises(VitreousError) as failure:
        call()
    assert str(failure.value).partition("; ")[2] == hint


@pytest.mark.parametrize("command", ["train", "data show"])
def test_answers_name_only_options_of_the_command(
    command: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags, keys = {*COMMANDS[command].flags, "--help"}, recipes.keys()
    known_keys = {key for names in keys.values() for key in names}
    for word in {*OPTIONS, *habits.NAMES, *habits.ABSENT} - known_keys - set(keys):
        for value in ("3", "false", "val"):
            answers = [refused(f"{command} c {word}={value}", capsys).partition("; ")[2]]
            if f"--{word.replace('_', '-')}" not in flags:
                answers.append(refused(f"{command} c --{word}={value}", capsys).partition("; ")[2])
            for answer in answers:
                assert set(re.findall(r"--[\w-]+", answer)) <= flags, (word, answer)


def test_every_habit_leads_to_something_that_exists() -> None:
    keys = recipes.keys()
    places = {f"{section}.{key}" for section, names in keys.items() for key in names}
    places |= {key for names in keys.values() for key in names} | set(OPTIONS)
    places |= {name.lstrip("-") for command in COMMANDS.values() for name, _ in command.arguments}
    for name, value in habits.NAMES.values():
        assert name in places
        assert not value or name == "split" or value in OPTIONS[name].choices
    for answer in habits.COMMANDS.values():
        command = re.match(r"write vitreous (\w+(?: [a-z]+)?)", answer)
        assert not command or command[1] in COMMANDS


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("epcohs", ["epochs", "steps"], "epochs"),
        ("export", ["report"], None),  # five letters in common, two of six wrong
        ("seed", ["pos_embed"], None),
        ("gpu", ["cpu"], None),  # too short for an error
        ("model.dept", ["model.depth", "data.val_fraction"], "model.depth"),
        ("optimizer.depth", ["optimizer.beta1"], None),  # only the section is right
        ("fetch", ["data fetch", "data info"], "data fetch"),
        ("rate", ["learning_rate", "muon_learning_rate"], None),  # a part of both
        ("SEED", ["seed"], "seed"),
        ("anything", [], None),
    ],
)
def test_the_nearest_name_is_close_or_none(name: str, known: list[str], expected: str | None) -> None:
    assert nearest(name, known) == expected


def test_notebook_is_listed_and_printed_as_the_recipe_that_it_stands_for(capsys: Capture) -> None:
    assert run("recipes") == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "notebook")
    assert "notebook-cifar100 on cifar100" in row and "notebook-cifar10 on other data" in row
    assert run("recipes notebook") == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "# notebook stands for notebook-cifar100 on cifar100 and notebook-cifar10 on other data."
    )
    tables = tomllib.loads(text)
    assert tables == recipes.read("notebook-cifar10")
    assert api.notebook_for("cifar100") == "notebook-cifar100"
    assert api.notebook_for("shapes") == "notebook-cifar10"


def test_evaluate_prints_a_table_in_words_or_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    scalars = {name: 0.1 * (i + 1) for i, name in enumerate(FIGURES)}
    figures = Figures(scalars, [], [[3, 1], [2, 994]])
    calls: list[Any] = []

    def recording_evaluate(*args: Any, **options: Any) -> Figures:
        calls.append((args, options))
        return figures

    monkeypatch.setattr(api, "evaluate", recording_evaluate)
    assert run("evaluate runs/x") == 0
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert heading == "runs/x on its test split: 1,000 images of 2 classes, majority-class baseline 1.1000"
    assert [line.split("  ")[1] for line in rows][:2] == ["Loss", "Accuracy"]
    assert re.search(r"^  Accuracy +0\.2000  \w", rows[1]) and max(map(len, rows)) <= 80
    assert not any("micro" in row for row in rows)  # they equal the accuracy
    assert run("evaluate runs/x --split val --json") == 0
    assert json.loads(capsys.readouterr().out) == figures.named("val")
    assert run("evaluate runs/x --data shapes") == 0
    assert capsys.readouterr().out.startswith("runs/x on shapes: 1,000 images")
    assert calls[0] == ((Path("runs/x"), "test"), {}) and calls[1][0][1] == "val"


def test_data_show_says_what_it_wrote(calls: list[Any], capsys: Capture) -> None:
    assert run("data show shapes") == 0
    assert capsys.readouterr().out.startswith("written: ")


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
        (InterruptedRun(), 130, ""),  # the run has said so
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
    err = capsys.readouterr().err
    assert err.startswith(words) and bool(err) == bool(words)


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


def test_the_table_of_options_is_what_train_takes_and_what_its_help_says() -> None:
    """One table: names and defaults of `train` and `Request`, its docstring, and the command line's help."""
    parameters = inspect.signature(api.train).parameters
    assert set(parameters) - set(OPTIONS) == {"data", "overrides"}
    request = {field.name: field.default for field in dataclasses.fields(Request)}
    documented = " ".join(str(api.train.__doc__).split())
    printed = " ".join(cli.help_page("train", COMMANDS["train"]).split())
    for name, option in OPTIONS.items():
        assert parameters[name].default == option.default
        assert request.get(name, option.default) == option.default
        assert f" {name}: {option.help}" in documented
        if option.kind is not tuple:
            assert f"--{name.replace('_', '-')} {option.metavar}".strip() in printed
            assert option.help in printed
            assert f"(default: {option.default})" in printed or not option.default
            assert not option.choices or cli.listed(option.choices) in printed
    assert OPTIONS["logger"].choices == LOGGERS


def test_an_option_of_one_patch_is_described(capsys: Capture) -> None:
    assert run("model vit-b16 --image-size 16") == 0
    assert "images of 16 x 16" in capsys.readouterr().out


def test_a_range_may_begin_below_zero() -> None:
    words = ["data", "check", "ct", "--value-range", "-1000,3000", "--all"]
    assert cli.join_negative_values(words) == ["data", "check", "ct", "--value-range=-1000,3000", "--all"]
    assert cli.join_negative_values(["--steps", "-3"]) == ["--steps", "-3"]


def test_runs_lists_the_folder_runs_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert run("runs") == 0
    assert "runs holds no runs" in capsys.readouterr().err
