"""The command line: a literal table from command to function.

The functions only translate words into calls. They import what they call when they are called, so that `--help` answers
at once. An option that is not given is not passed on, so its default is defined only in the function it reaches.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vitreous.data.named import DOWNLOADED_NAMES, KINDS_OF_DATA
from vitreous.errors import InterruptedRun, VitreousError
from vitreous.habits import FALSE, UnknownKeyError, unknown_command, unknown_key, unknown_option
from vitreous.request import OPTIONS, READING
from vitreous.settings import allowed_range, listed

if TYPE_CHECKING:
    from vitreous.metrics import Figures

WIDTH = 80  # of help pages
UNLIMITED = 10_000


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
        allowed = {"verbose", "data"} if resume is not None else {"verbose", "data", "out"}
        if data or overrides or set(options) - allowed or recipe != "default" or (resume and repeat):
            option, permitted = ("--resume", "--data and --verbose")
            if not resume:
                option, permitted = ("--repeat", "--data, --out and --verbose")
            raise VitreousError(
                f"{option} takes data, recipe and budget from the run folder; give nothing else but {permitted}."
            )
        if resume is not None:
            api.resume(resume, **options)
        elif repeat is not None:
            api.repeat(repeat, **options)
        return
    if "data" in options:
        raise VitreousError(
            "--data says where the data of an earlier run are now, beside --resume or --repeat; "
            f"write the data set without an option, as in vitreous train {shlex.quote(options['data'])}."
        )
    if data is None:
        raise VitreousError(f"Say what to train on: {KINDS_OF_DATA}.")
    api.train(data, recipe, overrides=overrides, **options)


def evaluate(run: Path, split: str = "test", as_json: bool = False, **options: Any) -> None:
    from vitreous import api

    figures = api.evaluate(run, split, **options)
    source = f"on {options['data']}" if "data" in options else f"on its {split} split"
    print_record(figures.named(split), as_json, lambda: figures_table(f"{run} {source}", figures))


def figures_table(title: str, figures: Figures) -> str:
    """A heading with the size of the split and its baseline, then one line for each figure."""
    from vitreous.metrics import FIGURES

    images = sum(map(sum, figures.confusion))
    lines = [
        f"{title}: {images:,} images of {len(figures.confusion)} classes, "
        f"majority-class baseline {figures.scalars['majority']:.4f}",
        "",
    ]
    # With one label per image, all micro-averages equal the accuracy.
    shown = [name for name in figures.ordered().scalars if name != "majority" and not name.startswith("ovr_")]
    width = max(len(FIGURES[name].title) for name in shown)
    for name in shown:
        title, meaning = FIGURES[name]
        lines.append(f"  {title:{width}}  {figures.scalars[name]:8.4f}  {meaning}")
    return "\n".join(lines)


def predict(
    model: Path, paths: list[str], as_json: bool = False, as_csv: bool = False, **options: Any
) -> int:
    from vitreous import predict as predicting

    if as_json and as_csv:
        raise VitreousError("Give one of --json and --csv.")
    return predicting.predict(
        model, paths, form="json" if as_json else "csv" if as_csv else "text", **options
    )


def explain(run: Path, images: Iterable[str] = (), **options: Any) -> int:
    from vitreous import explain as explanations

    return explanations.explain(run, list(images), **options)


def report(run: Path, **options: Any) -> None:
    from vitreous import api

    print(f"report: {api.report(run, **options)}")


def compare(
    runs: list[Path], out: Path | None = None, split: str | None = None, as_json: bool = False
) -> int:
    from vitreous import compare as comparing

    found = comparing.compare(runs, split)
    for run, why in found.left_out:
        print(f"left out: {run}: {why}", file=sys.stderr)
    if out is not None or not as_json:  # first, since whoever reads standard output may stop reading
        print(f"written: {comparing.write_page(found, out)}", file=sys.stderr)
    print_record(comparing.to_json(found), as_json, lambda: comparing.text(found, terminal_width()))
    return 3 if found.left_out else 0


def runs(folder: str = "runs", as_json: bool = False) -> None:
    from vitreous import compare as comparing

    records = comparing.list_runs(Path(folder))
    if not records and not as_json:
        print(f"{folder} holds no runs.", file=sys.stderr)
        return
    print_record(records, as_json, lambda: comparing.runs_text(records, terminal_width()))


def terminal_width() -> int:
    """Columns to print tables in; all that are needed where the output goes to a file or a program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED


def export(run: Path, to: str = "", **options: Any) -> int:
    from vitreous import export as exports

    if not to:
        raise VitreousError(f"Say what to export to: --to {listed(exports.TARGETS)}.")
    written = exports.export(run, to, **options)
    print(f"written: {written.folder}")
    for note in written.notes:
        print(note)
    return 0 if written.proven else 3


def data_fetch(name: str, **options: Any) -> None:
    from vitreous.data.sources import fetch

    store = fetch(name, **options)
    print(f"{store.name} is at {store.path}")


def data_check(path: Path, everything: bool = False, as_json: bool = False, **options: Any) -> int:
    from vitreous.data.check import check
    from vitreous.data.reading import read_options

    result = check(path, read_options(**options))
    print_record(result.to_json(), as_json, lambda: result.text(everything))
    return 0 if result.ok else 1


def data_info(data: str, as_json: bool = False, **options: Any) -> None:
    from vitreous.data.info import info, info_text
    from vitreous.data.sources import open_data

    facts = info(open_data(data, say=lambda line: print(line, file=sys.stderr), **options))
    print_record(facts, as_json, lambda: info_text(facts))


def data_show(words: Iterable[str] = (), **options: Any) -> None:
    from vitreous import api

    data, overrides = split_words(words)
    if data is None:
        raise VitreousError(f"Say what to show: {KINDS_OF_DATA}.")
    print(f"written: {api.show(data, overrides=overrides, **options)}")


def data_clear(data: str | None = None, **options: Any) -> None:
    from vitreous.data.cache import clear

    clear(data, **options)


def model(name: str | None = None, as_json: bool = False, **options: Any) -> None:
    if name is None:
        from vitreous.model.variants import VARIANTS

        print("\n".join(VARIANTS))
        return
    from vitreous.model.summary import describe, render

    description = describe(name, **options)
    print_record(description, as_json, lambda: render(description))


def recipes(name: str | None = None) -> None:
    from vitreous import recipe

    for_cifar100, for_others = recipe.notebook("cifar100"), recipe.notebook("")
    if name is None:
        headlines = {name: recipe.headline(name) for name in recipe.names()}
        headlines["notebook"] = f"Stands for {for_cifar100} on cifar100 and {for_others} on other data."
        for name in sorted(headlines):
            print(f"{name:18} {headlines[name]}")
    elif name == "notebook":
        print(
            f"# notebook stands for {for_cifar100} on cifar100 and {for_others} on other data.\n"
            f"# This is {for_others}; vitreous recipes {for_cifar100} prints the other one.\n"
        )
        print(recipe.text(for_others), end="")
    else:
        print(recipe.text(name), end="")


def split_words(words: Iterable[str]) -> tuple[str | None, list[str]]:
    """The data set, wherever it is among the words, and the overrides, which are all other words."""
    words = list(words)
    data = next((word for word in words if "=" not in word or Path(word).exists()), None)
    if data is not None:
        words.remove(data)
    return data, words


def print_record(record: Any, as_json: bool, text: Callable[[], str]) -> None:
    print(json.dumps(record, indent=1, ensure_ascii=False) if as_json else text())


def whole_number(text: str) -> int:
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
    """An entry of `OPTIONS`, the table that `vitreous.train` shares, as argparse takes it."""
    known = OPTIONS[name]
    flag = f"--{name.replace('_', '-')}"
    if known.kind is bool:
        return argument(flag, known.help, action="store_true")
    help = f"{listed(known.choices)}: {known.help}" if known.choices else known.help
    if known.default is not None:
        help += f" (default: {known.default})"
    kind = {int: whole_number, float: number}.get(known.kind, known.kind)
    return argument(flag, help, type=kind, metavar=known.metavar)


DATA = argument("data", KINDS_OF_DATA, metavar="DATA")
# One list, since DATA may be before or after the overrides.
WORDS = argument("words", KINDS_OF_DATA, nargs="*", metavar="DATA [key=value …]")
RUN = argument("run", "a run folder", type=Path, metavar="RUN")
JSON = argument("--json", "print JSON", dest="as_json", action="store_true")
BUDGETS = tuple(map(option, ("minutes", "epochs", "steps", "flops")))
DATA_DIR = option("data_dir")
READING_OPTIONS = tuple(map(option, READING))

Groups = dict[str, tuple[Argument, ...]]  # the arguments of a command, under the headings of its help


@dataclass(frozen=True)
class Command:
    """One command: the function it calls, its purpose, its arguments and examples.

    An argument's value is passed on by its name. `takes_recipe` adds the keys of a recipe to the help.
    """

    call: Callable[..., int | None]
    summary: str
    groups: Groups
    examples: tuple[str, ...]
    takes_recipe: bool = False

    @property
    def arguments(self) -> tuple[Argument, ...]:
        return tuple(argument for group in self.groups.values() for argument in group)

    @property
    def flags(self) -> dict[str, str]:
        """The options, with what stands for their value in the help, or "" if they take none.

        Where DATA is a word, nobody is told to write `--data`, which only says where the data of a run are now.
        """
        return {
            name: settings.get("metavar", "")
            for name, settings in self.arguments
            if name[0] == "-" and not (name == "--data" and self.takes_recipe)
        }


COMMANDS: dict[str, Command] = {
    "train": Command(
        train,
        "train a Vision Transformer from scratch and evaluate it",
        {
            "data and recipe": (WORDS, option("recipe")),
            "how the data are read": (*READING_OPTIONS, DATA_DIR),
            "unequal classes": (option("balance"),),
            "budget (at most one; by default that of the recipe)": BUDGETS,
            "how it runs": tuple(map(option, ("seed", "device", "precision", "backend"))),
            "what it evaluates, writes and prints": (
                option("judge"),
                option("out"),
                option("logger"),
                argument("--verbose", OPTIONS["verbose"].help, short="-v", action="store_true"),
            ),
            "instead of DATA, an earlier run": (
                argument("--resume", "continue an interrupted run, bit for bit", type=Path, metavar="RUN"),
                argument(
                    "--repeat",
                    "repeat a finished run, bit for bit",
                    type=Path,
                    metavar="RUN",
                ),
                argument("--data", "where the data of that run are now, if they have moved", metavar="PATH"),
            ),
        },
        (
            "vitreous train shapes --minutes 1            # a first look, no download",
            "vitreous train cifar10 --minutes 5",
            "vitreous train cifar100 --recipe notebook --epochs 10",
            "vitreous train path/to/images --image-size 64 --minutes 20",
            "vitreous train cifar10 --steps 500 depth=6 learning_rate=1e-3",
            "vitreous train --resume runs/cifar10-default-seed42-001",
            "vitreous train --repeat runs/cifar10-default-seed42-001",
        ),
        takes_recipe=True,
    ),
    "evaluate": Command(
        evaluate,
        "evaluate a finished run on a split of its data, or on other data",
        {
            "arguments": (RUN,),
            "options": (
                argument("--split", "val or test (default: test)", metavar="SPLIT"),
                argument(
                    "--data",
                    f"other data, or the run's own where they are now: {KINDS_OF_DATA}",
                    metavar="DATA",
                ),
                argument(
                    "--read-test", "allow the test split of a run that left it unread", action="store_true"
                ),
                argument(
                    "--device",
                    f"{listed(OPTIONS['device'].choices)} (default: the run's own)",
                    metavar="NAME",
                ),
                DATA_DIR,
                JSON,
            ),
        },
        (
            "vitreous evaluate runs/cifar10-default-seed42-001",
            "vitreous evaluate runs/cifar10-default-seed42-001 --split val --json",
            "vitreous evaluate runs/cifar10-default-seed42-001 --data path/to/images",
        ),
    ),
    "predict": Command(
        predict,
        "classify image files with a trained model",
        {
            "arguments": (
                argument("model", "a run folder, or the bundle of one", type=Path, metavar="RUN"),
                argument(
                    "paths",
                    "image files, folders, zips and patterns; - reads names from standard input, one a line",
                    nargs="+",
                    metavar="PATH …",
                ),
            ),
            "how it predicts": (
                argument(
                    "--top", "classes to name for each image (default: 5)", type=whole_number, metavar="N"
                ),
                argument(
                    "--reject",
                    'call an image "unknown" if its calibrated confidence is below this, as in 0.9',
                    type=number,
                    metavar="P",
                ),
                argument(
                    "--tta",
                    "average the probabilities of each image and its mirror image",
                    action="store_true",
                ),
                argument(
                    "--device",
                    f"{listed(OPTIONS['device'].choices)} (default: auto)",
                    metavar="NAME",
                ),
            ),
            "output": (
                JSON,
                argument("--csv", "print CSV for a spreadsheet", dest="as_csv", action="store_true"),
                argument(
                    "--all-probabilities", "with --csv or --json, those of all classes", action="store_true"
                ),
                argument(
                    "--sort-into",
                    "copy each image into a folder for its class, below this new folder",
                    type=Path,
                    metavar="DIR",
                ),
                argument(
                    "--embeddings",
                    "write the features before the head, float32 [N, D], and their paths to FILE.names.json",
                    type=Path,
                    metavar="FILE.npy",
                ),
            ),
        },
        (
            "vitreous predict runs/cifar10-default-seed42-001 photo.jpg",
            "vitreous predict runs/cifar10-default-seed42-001 path/to/images --csv",
            "vitreous predict runs/cifar10-default-seed42-001 photos.zip --reject 0.9",
        ),
    ),
    "explain": Command(
        explain,
        "draw which regions of an image matter to a trained network",
        {
            "arguments": (
                argument("run", "a run folder, or a bundle", type=Path, metavar="RUN"),
                argument("images", "image files", nargs="*", metavar="IMAGE …"),
            ),
            "what is drawn": (
                argument(
                    "--method",
                    "auto, occlusion, attention, rollout or gradient (default: auto, the most faithful one)",
                    metavar="NAME",
                ),
                argument(
                    "--class",
                    "the class to explain (default: the predicted one)",
                    dest="class_name",
                    metavar="CLASS",
                ),
                argument(
                    "--layer", "with --method attention: one layer, from 1", type=whole_number, metavar="N"
                ),
                argument("--head", "with --layer: one head, from 1", type=whole_number, metavar="N"),
                argument(
                    "--network",
                    "also draw what the network has learned: first filters, positions, reach of attention",
                    action="store_true",
                ),
            ),
            "output": (
                argument(
                    "--out",
                    "folder to write to, or a PNG file for one image (default: explained)",
                    type=Path,
                    metavar="PATH",
                ),
            ),
        },
        (
            "vitreous explain runs/cifar10-default-seed42-001 photo.jpg",
            "vitreous explain runs/my-run photo.jpg --class cat --out cat.png",
            "vitreous explain runs/my-run photo.jpg --method attention --layer 4",
            "vitreous explain runs/my-run --network",
        ),
    ),
    "report": Command(
        report,
        "regenerate the report.html of a run",
        {
            "arguments": (RUN,),
            "options": (
                argument(
                    "--data",
                    "where the data of the run are now, if they have moved; recorded for later commands",
                    metavar="PATH",
                ),
            ),
        },
        ("vitreous report runs/cifar10-default-seed42-001",),
    ),
    "compare": Command(
        compare,
        "compare finished runs: which is better, and can the images tell?",
        {
            "arguments": (
                argument(
                    "runs", "run folders, or folders that hold runs", type=Path, nargs="+", metavar="RUN …"
                ),
            ),
            "options": (
                argument(
                    "--split",
                    "val or test (default: val where all runs have it)",
                    metavar="SPLIT",
                ),
                argument(
                    "--out",
                    "page to write (default: compare.html, and none with --json)",
                    type=Path,
                    metavar="FILE.html",
                ),
                JSON,
            ),
        },
        (
            "vitreous compare runs/cifar10-*",
            "vitreous compare runs/a runs/b --out a-b.html",
            "vitreous compare runs --split test --json",
        ),
    ),
    "runs": Command(
        runs,
        "list the runs of a folder with their accuracies",
        {
            "arguments": (
                argument(
                    "folder",
                    "a folder that holds runs (default: runs)",
                    # No type: argparse would apply it to its mark for a missing argument.
                    nargs="?",
                    metavar="[DIR]",
                ),
            ),
            "options": (JSON,),
        },
        ("vitreous runs", "vitreous runs path/to/runs --json"),
    ),
    "export": Command(
        export,
        "write a model for a browser, ONNX, timm or transformers",
        {
            "arguments": (
                argument("run", "a run folder, or a bundle", type=Path, metavar="RUN"),
                argument(
                    "--to",
                    "html (one page that predicts in a browser, offline), onnx, timm or transformers",
                    metavar="TARGET",
                ),
            ),
            "options": (
                argument(
                    "--out",
                    "folder to write (default: exports/RUN-TARGET)",
                    type=Path,
                    metavar="DIR",
                ),
                argument(
                    "--samples",
                    "for html: validation images in the page for people to try, 0 for private data (default: 12)",
                    type=whole_number,
                    metavar="N",
                ),
                argument("--data", "where the data of the run are now, if they have moved", metavar="PATH"),
                argument(
                    "--int8", "for onnx: also a smaller model with weights of 8 bits", action="store_true"
                ),
            ),
        },
        (
            "vitreous export runs/cifar10-default-seed42-001 --to html",
            "vitreous export runs/cifar10-default-seed42-001 --to onnx --out cifar10",
        ),
    ),
    "data fetch": Command(
        data_fetch,
        "download a named data set and pack it into the cache",
        {
            "arguments": (argument("name", " or ".join(DOWNLOADED_NAMES), metavar="NAME"),),
            "options": (
                argument(
                    "--from",
                    "pack this instead of downloading: the official archive, its unpacked folder, or a folder or zip "
                    "of class folders",
                    dest="from_path",
                    type=Path,
                    metavar="PATH",
                ),
                DATA_DIR,
            ),
        },
        ("vitreous data fetch cifar10", "vitreous data fetch cifar100 --from cifar-100-binary.tar.gz"),
    ),
    "data check": Command(
        data_check,
        "find problems in a folder or zip, and what train would do with it",
        {
            "arguments": (argument("path", "a folder or zip of class folders", type=Path, metavar="PATH"),),
            "how it is read, as by train": READING_OPTIONS,
            "output": (
                argument(
                    "--all",
                    "list all files and classes, not only the first ones",
                    dest="everything",
                    action="store_true",
                ),
                argument(
                    "--json",
                    "print JSON, with all files (schema: docs/check.schema.json)",
                    dest="as_json",
                    action="store_true",
                ),
            ),
        },
        (
            "vitreous data check path/to/images",
            "vitreous data check images.zip --all",
            "vitreous data check images.zip --json",
        ),
    ),
    "data info": Command(
        data_info,
        "show the images, classes, statistics and location of a data set",
        {"arguments": (DATA,), "how it is read": (*READING_OPTIONS, DATA_DIR), "options": (JSON,)},
        ("vitreous data info cifar10", "vitreous data info path/to/images --json"),
    ),
    "data show": Command(
        data_show,
        "draw images of a data set as they are and augmented, as a PNG",
        {
            "data and recipe": (WORDS, option("recipe")),
            "how the data are read": (*READING_OPTIONS, DATA_DIR),
            "budget, which may choose the augmentation (at most one)": BUDGETS,
            "output": (
                argument("--out", "file to write (default: DATA.png)", type=Path, metavar="FILE.png"),
            ),
        },
        (
            "vitreous data show cifar10 --epochs 30",
            "vitreous data show path/to/images --steps 500 --out mosaic.png crop=8",
        ),
        takes_recipe=True,
    ),
    "data clear": Command(
        data_clear,
        "remove packed data sets or compiled kernels from the cache",
        {
            "arguments": (
                argument(
                    "data",
                    "a data set by name or path, or kernels for the compiled kernels",
                    nargs="?",
                    metavar="[DATA]",
                ),
            ),
            "options": (
                argument(
                    "--all",
                    "every packed data set, and the kernels unless --data-dir is given",
                    dest="everything",
                    action="store_true",
                ),
                DATA_DIR,
            ),
        },
        ("vitreous data clear cifar10", "vitreous data clear kernels", "vitreous data clear --all"),
    ),
    "model": Command(
        model,
        "list the networks, or show layers, parameters and FLOPs of one",
        {
            "arguments": (
                argument("name", "a network (default: list them all)", nargs="?", metavar="[NAME]"),
            ),
            "options": (
                argument(
                    "--num-classes",
                    "number of classes (default: as in published figures)",
                    type=whole_number,
                    metavar="N",
                ),
                argument(
                    "--image-size",
                    "side of an image in pixels (default: as in published figures)",
                    type=whole_number,
                    metavar="S",
                ),
                JSON,
            ),
        },
        (
            "vitreous model",
            "vitreous model vit-b16",
            "vitreous model notebook-cifar10 --num-classes 100 --json",
        ),
    ),
    "recipes": Command(
        recipes,
        "list the recipes, or print one",
        {"arguments": (argument("name", "a recipe (default: list them all)", nargs="?", metavar="[NAME]"),)},
        ("vitreous recipes", "vitreous recipes notebook-cifar10"),
    ),
}


class Parser(argparse.ArgumentParser):
    """argparse with its errors in the words of the project."""

    def error(self, message: str) -> NoReturn:
        if refused := re.match(r"argument (?:.*/)?(\S+): ignored explicit argument '(.*)'", message):
            option, value = refused.groups()
            unneeded = "the option" if value.lower() in FALSE else f"={value}"
            raise VitreousError(f"{option} takes no value; leave out {unneeded}.")
        message = re.sub(r"^the following arguments are required: (.*)", r"\1 is missing", message)
        message = re.sub(r"^argument (\S+?):? (?=takes|expected|not)", r"\1 ", message)
        message = message.replace("expected one argument", "needs a value")
        raise VitreousError(f"{message}; see {self.prog} --help.")


def main(words: list[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    0 fine, 1 a check found something, 2 refused, 3 partly done (files failed, an export is unproven), 130 Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # class names may not fit the terminal
    try:
        status = dispatch(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
        return status
    except VitreousError as error:
        print(f"vitreous: {error}", file=sys.stderr)
        return 2
    except InterruptedRun:  # the run has said so
        return 130
    except KeyboardInterrupt:
        print("\nvitreous: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone, as with `| head`; Python flushes once more
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
    words = join_negative_values(words)
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
        raise unknown_command(name, COMMANDS)
    command = COMMANDS[name]
    if wants_help:
        print(help_page(name, command))
        return 0
    parser = make_parser(name, command)
    options, extra = parser.parse_known_intermixed_args(rest)
    for word in extra:
        if word.startswith("-"):
            raise refused_option(name, command, word, rest)
        raise VitreousError(f"{word!r} is an unexpected argument; see {parser.prog} --help.")
    try:
        return command.call(**vars(options)) or 0
    except UnknownKeyError as error:
        from vitreous import recipe

        raise unknown_key(error.key, recipe.keys(), error.value, name, command.flags) from None


def join_negative_values(words: list[str]) -> list[str]:
    """Joins an option with a list of numbers that begins with a minus, which argparse would take for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("--") and re.fullmatch(r"-\.?\d[^,=]*,.*", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def make_parser(name: str, command: Command) -> Parser:
    parser = Parser(
        prog=f"vitreous {name}",
        add_help=False,  # `dispatch` prints it
        argument_default=argparse.SUPPRESS,  # options that are not given are not passed on
        allow_abbrev=False,
    )
    for argument_name, settings in command.arguments:
        settings = dict(settings)
        names = (settings.pop("short", None), argument_name)
        parser.add_argument(*filter(None, names), **settings)
    return parser


def refused_option(name: str, command: Command, word: str, words: list[str]) -> VitreousError:
    """The error for an option that the command does not have, with what to write instead."""
    from vitreous import recipe

    keys = recipe.keys()
    section_facts = [facts for section in keys.values() for facts in section.values()]
    typed, equals, value = word.partition("=")
    if not equals:
        following = words[words.index(word) + 1 :][:1] if word in words else []
        # A number or the name of a choice is its value; any other word is the data set.
        choices = {choice for facts in section_facts for choice in facts.get("choices", ())}
        choices |= {choice for option in OPTIONS.values() for choice in option.choices}
        pattern = r"[-+.\d][\d.eE+-]*|(?i:true|false|yes|no|on|off)"
        value = next((word for word in following if word in choices or re.fullmatch(pattern, word)), "")
    return unknown_option(name, typed, command.flags, keys if command.takes_recipe else {}, value)


def help_page(name: str, command: Command) -> str:
    """Usage, arguments in groups, examples and, where the command takes one, the keys of a recipe."""
    positional = [settings["metavar"] for argument, settings in command.arguments if argument[0] != "-"]
    usage = " ".join(("vitreous", name, *positional, "[--option …]"))
    lines = [f"usage: {usage}", "", f"{command.summary[0].upper()}{command.summary[1:]}."]
    for title, arguments in command.groups.items():
        lines += ["", f"{title}:"]
        for argument_name, settings in arguments:
            lines += help_row(left_column(argument_name, settings), settings["help"], indent=20)
            if argument_name == "words":
                lines += help_row("key=value", "a change to the recipe, as in depth=6; keys below", indent=20)
    lines += ["", "examples:", *(f"  {example}" for example in command.examples)]
    if command.takes_recipe:
        lines += recipe_keys()
    return "\n".join(lines)


def left_column(name: str, settings: dict[str, Any]) -> str:
    """An argument as it is typed: "--epochs N"."""
    metavar = settings.get("metavar", "").partition(" ")[0]
    if not name.startswith("-"):
        return metavar
    return " ".join(filter(None, (f"{settings['short']}," if "short" in settings else "", name, metavar)))


def help_row(left: str, help: str, indent: int) -> list[str]:
    """Two columns of a help page; a long left one has a line of its own."""
    lines = textwrap.wrap(help, WIDTH - indent, break_on_hyphens=False, break_long_words=False)
    lines = [" " * indent + line for line in lines]
    if len(left) + 4 > indent:
        return [f"  {left}", *lines]
    return [f"  {left:{indent - 2}}{lines[0].lstrip()}", *lines[1:]]


def recipe_keys() -> list[str]:
    """The last part of the help of commands that take overrides."""
    from vitreous import dial, recipe

    default = recipe.load("default").tables()
    by_budget = {*(f"model.{key}" for key in dial.SIZES[0][1]), *dial.STRENGTHS}
    lines = [
        "",
        "keys of the recipe, with their values in the recipe default (… is chosen from",
        "the budget; two sections have a key name, so write optimizer.name or",
        "schedule.name):",
    ]
    for section, keys in recipe.keys().items():
        if section == "budget":
            continue
        lines += ["", f"  {section}"]
        for key, facts in keys.items():
            value = default[section][key]
            shown = (
                "…"
                if f"{section}.{key}" in by_budget
                else value
                if isinstance(value, str)
                else recipe.toml_value(value)
            )
            help = f"{listed(facts['choices'])}: {facts['help']}" if facts.get("choices") else facts["help"]
            bounds = allowed_range(facts).removeprefix("from ")
            lines += help_row(f"  {key}={shown}", f"{help} ({bounds})" if bounds else help, indent=29)
    units = "\n".join(textwrap.wrap(f"{', '.join(recipe.UNITS)}: the same as the options above", WIDTH - 4))
    return [*lines, "", "  budget", textwrap.indent(units, "    ")]


def overview(group: str = "") -> str:
    """The list of commands, or of those in a group such as `data`."""
    prefix = f"vitreous {group}".rstrip()
    names = [name for name in COMMANDS if name.startswith(group)]
    starred = names if group else ["train", "data check"]
    return "\n".join(
        [
            "vitreous trains Vision Transformers from scratch on small image data, on the",
            "computer you have.",
            "",
            f"usage: {prefix} COMMAND …",
            f"       {prefix} COMMAND --help     its options and examples",
            *([] if group else ["       vitreous --version"]),
            "",
            *(f"  {name:12} {COMMANDS[name].summary}" for name in names),
            "",
            "examples:",
            *(f"  {COMMANDS[name].examples[0]}" for name in starred),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
