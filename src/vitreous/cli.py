"""The command line: a literal table from command to function.

The functions only translate words into calls, and import what they call when they are called, so that
`--help` answers at once. An option that is not given is not passed on: its default stands where the
function it reaches is defined, and nowhere else.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vitreous.data.named import DOWNLOADED_NAMES, KINDS_OF_DATA
from vitreous.errors import VitreousError, unknown
from vitreous.request import OPTIONS


def train(
    words: Iterable[str] = (),
    resume: Path | None = None,
    repeat: Path | None = None,
    recipe: str = "default",
    **options: Any,
) -> None:
    from vitreous import api

    data, overrides = split_words(words)
    if resume is not None or repeat is not None:
        kept = {"out"} if resume is None else set()
        if data or overrides or set(options) - kept or recipe != "default" or (resume and repeat):
            alone = "--resume needs nothing else" if resume else "--repeat needs nothing else but --out"
            raise VitreousError(f"{alone}: the run folder knows its data, recipe and budget.")
        if resume is not None:
            api.resume(resume)
        elif repeat is not None:
            api.repeat(repeat, **options)
        return
    if data is None:
        raise VitreousError(f"Say what to train on: {KINDS_OF_DATA}.")
    api.train(data, recipe, overrides=overrides, **options)


def evaluate(run: Path, split: str = "test", as_json: bool = False, **options: Any) -> None:
    from vitreous import api

    figures = api.evaluate(run, split, **options).named(split)
    print_record(
        figures, as_json, lambda: "\n".join(f"{name:18} {value:.6f}" for name, value in figures.items())
    )


def report(run: Path) -> None:
    from vitreous.report import write_report

    print(write_report(run))


def data_fetch(name: str, **options: Any) -> None:
    from vitreous.data.sources import fetch

    store = fetch(name, **options)
    print(f"{store.name} is at {store.path}")


def data_check(path: Path, as_json: bool = False) -> int:
    from vitreous.data.check import check

    found = check(path)
    print_record(found.to_json(), as_json, found.text)
    return 0 if found.ok else 1


def data_info(data: str, as_json: bool = False, **options: Any) -> None:
    from vitreous.data.info import info, info_text
    from vitreous.data.sources import open_data

    found = info(open_data(data, say=lambda line: print(line, file=sys.stderr), **options))
    print_record(found, as_json, lambda: info_text(found))


def data_show(words: Iterable[str] = (), **options: Any) -> None:
    from vitreous import api

    data, overrides = split_words(words)
    if data is None:
        raise VitreousError(f"Say what to show: {KINDS_OF_DATA}.")
    print(api.show(data, overrides=overrides, **options))


def data_clear(data: str | None = None, **options: Any) -> None:
    from vitreous.data.cache import clear

    clear(data, **options)


def model(name: str | None = None, as_json: bool = False, **options: Any) -> None:
    if name is None:
        from vitreous.model.variants import VARIANTS

        print("\n".join(VARIANTS))
        return
    from vitreous.model.summary import describe, render

    found = describe(name, **options)
    print_record(found, as_json, lambda: render(found))


def recipes(name: str | None = None) -> None:
    from vitreous import recipe

    if name is not None:
        print(recipe.text(name), end="")
        return
    for each in recipe.names():
        print(f"{each:18} {recipe.headline(each)}")


def recipe_keys() -> str:
    """The last part of the help of commands that take overrides."""
    from vitreous import recipe

    lines = ["", "keys of a recipe (the section may be left out where the name is unique):"]
    for section, keys in recipe.keys().items():
        names = [f"{section}.{key}" for key in keys]
        if any(keys.values()):
            lines += [f"  {name:30} {help}" for name, help in zip(names, keys.values(), strict=True)]
        else:
            lines += textwrap.wrap(", ".join(names), 100, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def split_words(words: Iterable[str]) -> tuple[str | None, list[str]]:
    """DATA, in whatever place it stands, and the overrides: all the other words."""
    words = list(words)
    data = next((word for word in words if "=" not in word or Path(word).exists()), None)
    if data is not None:
        words.remove(data)
    return data, words


def print_record(record: Any, as_json: bool, text: Callable[[], str]) -> None:
    print(json.dumps(record, indent=1, ensure_ascii=False) if as_json else text())


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a whole number, not {text!r}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a number, not {text!r}") from None


Argument = tuple[str, dict[str, Any]]  # a name, and what argparse's add_argument takes besides


def argument(name: str, help: str, **settings: Any) -> Argument:
    return name, {"help": help, **settings}


def option(name: str) -> Argument:
    """An option of the table that `vitreous.train` shares, as argparse takes it."""
    known = OPTIONS[name]
    help = known.help if known.default in (None, False) else f"{known.help} (default: {known.default})"
    flag = f"--{name.replace('_', '-')}"
    if known.kind is bool:
        return argument(flag, help, action="store_true")
    kind = {int: whole, float: number}.get(known.kind, known.kind)
    return argument(flag, help, type=kind, metavar=known.metavar)


DATA = argument("data", KINDS_OF_DATA, metavar="DATA")
# One list, since DATA may stand before or after the overrides.
WORDS = argument(
    "words", f"{KINDS_OF_DATA}; and keys of the recipe, listed below", nargs="*", metavar="DATA [key=value …]"
)
RUN = argument("run", "a run folder", type=Path, metavar="RUN")
JSON = argument("--json", "print JSON", dest="as_json", action="store_true")
BUDGETS = tuple(map(option, ("minutes", "epochs", "steps", "flops")))
DATA_DIR, IMAGE_SIZE, SKIP_BAD = map(option, ("data_dir", "image_size", "skip_bad"))


@dataclass(frozen=True)
class Command:
    """One command: the function it calls, what it is for, its arguments and examples of it.

    An argument's value is passed on by its name; `takes_recipe` adds the keys of a recipe to the help.
    """

    call: Callable[..., int | None]
    summary: str
    arguments: tuple[Argument, ...]
    examples: tuple[str, ...]
    takes_recipe: bool = False


COMMANDS: dict[str, Command] = {
    "train": Command(
        train,
        "train a Vision Transformer and evaluate it",
        (
            WORDS,
            *(option(name) for name, known in OPTIONS.items() if known.kind is not tuple),
            argument("--resume", "continue an interrupted run; needs nothing else", type=Path, metavar="RUN"),
            argument("--repeat", "train as a finished run did, to the same bits", type=Path, metavar="RUN"),
        ),
        (
            "vitreous train shapes --minutes 1            no download, a first look",
            "vitreous train cifar10 --minutes 5",
            "vitreous train cifar100 --recipe notebook --epochs 10",
            "vitreous train path/to/pictures --image-size 64 --minutes 20",
            "vitreous train cifar10 --steps 500 depth=6 optimizer.learning_rate=1e-3",
            "vitreous train --resume runs/cifar10-default-001",
            "vitreous train --repeat runs/cifar10-default-001",
        ),
        takes_recipe=True,
    ),
    "evaluate": Command(
        evaluate,
        "figures of a finished run on its val or test split, or on other data",
        (
            RUN,
            argument("--split", "default: test", metavar="val|test"),
            argument("--data", f"other data: {KINDS_OF_DATA}", metavar="DATA"),
            argument("--read-test", "read the test split of a run that left it unread", action="store_true"),
            argument("--device", "default: the run's own", metavar="auto|cpu|cuda|mps"),
            DATA_DIR,
            JSON,
        ),
        (
            "vitreous evaluate runs/cifar10-default-001",
            "vitreous evaluate runs/cifar10-default-001 --split val --json",
            "vitreous evaluate runs/cifar10-default-001 --data path/to/pictures",
        ),
    ),
    "report": Command(
        report,
        "write a run's report.html again",
        (RUN,),
        ("vitreous report runs/cifar10-default-001",),
    ),
    "data fetch": Command(
        data_fetch,
        "fetch a named data set into the cache",
        (
            argument("name", "which one", metavar="|".join(DOWNLOADED_NAMES)),
            argument(
                "--from",
                "an archive, its unpacked folder, or a folder or zip of class folders",
                dest="from_path",
                type=Path,
                metavar="PATH",
            ),
            DATA_DIR,
        ),
        ("vitreous data fetch cifar10", "vitreous data fetch cifar100 --from cifar-100-binary.tar.gz"),
    ),
    "data check": Command(
        data_check,
        "list everything in a folder or zip of pictures that training would suffer from",
        (argument("path", "a folder or zip of class folders", type=Path, metavar="PATH"), JSON),
        ("vitreous data check path/to/pictures", "vitreous data check pictures.zip --json"),
    ),
    "data info": Command(
        data_info,
        "pictures, classes, statistics and place of a data set",
        (DATA, DATA_DIR, IMAGE_SIZE, SKIP_BAD, JSON),
        ("vitreous data info cifar10", "vitreous data info path/to/pictures --json"),
    ),
    "data show": Command(
        data_show,
        "a picture of a data set, and of the same pictures augmented",
        (
            WORDS,
            option("recipe"),
            *BUDGETS,
            argument("--out", "default: DATA.png", type=Path, metavar="FILE.png"),
            DATA_DIR,
            IMAGE_SIZE,
            SKIP_BAD,
        ),
        (
            "vitreous data show cifar10 --epochs 30",
            "vitreous data show path/to/pictures --steps 500 --out mosaic.png crop=8",
        ),
        takes_recipe=True,
    ),
    "data clear": Command(
        data_clear,
        "remove packed data or compiled kernels from the cache",
        (
            argument("data", "a name or path, or kernels", nargs="?", metavar="[DATA]"),
            argument(
                "--all",
                "every packed data set, and, without --data-dir, the kernels",
                dest="everything",
                action="store_true",
            ),
            DATA_DIR,
        ),
        ("vitreous data clear cifar10", "vitreous data clear kernels", "vitreous data clear --all"),
    ),
    "model": Command(
        model,
        "list the named networks, or the layers, parameters and FLOPs of one",
        (
            argument("name", "tell of this one", nargs="?", metavar="[NAME]"),
            argument("--num-classes", "default: as it is usually quoted", type=whole, metavar="N"),
            argument("--image-size", "default: as it is usually quoted", type=whole, metavar="S"),
            JSON,
        ),
        (
            "vitreous model",
            "vitreous model vit-b16",
            "vitreous model notebook-cifar10 --num-classes 100 --json",
        ),
    ),
    "recipes": Command(
        recipes,
        "list the recipes, or print one",
        (argument("name", "print this one whole", nargs="?", metavar="[NAME]"),),
        ("vitreous recipes", "vitreous recipes notebook-cifar10"),
    ),
}


class Parser(argparse.ArgumentParser):
    """argparse, its errors as one sentence."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+?):? (?=takes|expected|not)", r"\1 ", message)
        raise VitreousError(f"{message[0].upper()}{message[1:]}; see {self.prog} --help.")


def main(words: list[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 (a check found something), 2 (refused), 130 (Ctrl-C)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a class may have a name that the terminal has not
    try:
        status = dispatch(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
        return status
    except VitreousError as error:
        print(f"vitreous: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nvitreous: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does; Python flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"vitreous: The disk is full ({error}); free some space and try again.", file=sys.stderr)
        return 2


def dispatch(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        from vitreous import __version__

        print(f"vitreous {__version__}")
        return 0
    wants_help = words[:1] == ["help"] or not {"-h", "--help"}.isdisjoint(words)
    words = [
        word for i, word in enumerate(words) if word not in ("-h", "--help") and (i, word) != (0, "help")
    ]
    groups = {name.partition(" ")[0] for name in COMMANDS if " " in name}
    length = 2 if words[:1] and words[0] in groups else 1
    name, rest = " ".join(words[:length]), words[length:]
    if not name or name in groups:
        print(overview(name))
        return 0
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = COMMANDS[name]
    parser = make_parser(name, command)
    if wants_help:
        print(parser.format_help() + (recipe_keys() if command.takes_recipe else ""), end="")
        return 0
    options, extra = parser.parse_known_intermixed_args(rest)
    for word in extra:
        if word.startswith("-"):
            known = [name for name, _ in command.arguments if name.startswith("-")]
            raise unknown("option", word.partition("=")[0], [*known, "--help"])
        raise VitreousError(f"{word!r} is one word too many; see {parser.prog} --help.")
    return command.call(**vars(options)) or 0


def make_parser(name: str, command: Command) -> Parser:
    positional = [settings["metavar"] for argument, settings in command.arguments if argument[0] != "-"]
    parser = Parser(
        prog=f"vitreous {name}",
        usage=" ".join(("vitreous", name, *positional, "[--option …]")),
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog="\n  ".join(("examples:", *command.examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given is not passed on
        allow_abbrev=False,
    )
    for argument_name, settings in command.arguments:
        parser.add_argument(argument_name, **settings)
    return parser


def overview(group: str = "") -> str:
    """The list of commands, or of those in a group such as `data`."""
    rows = [f"  {name:12} {command.summary}" for name, command in COMMANDS.items() if name.startswith(group)]
    prefix = f"vitreous {group}".rstrip()
    lines = [
        "vitreous trains Vision Transformers from scratch on small image data, on the computer you have.",
        "",
        f"usage: {prefix} COMMAND …        {prefix} COMMAND --help for its options and examples",
        "",
        *rows,
        "",
        "examples:",
    ]
    starred = COMMANDS if group else ("train", "data check")
    lines += [f"  {COMMANDS[name].examples[0]}" for name in starred if name.startswith(group)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
