"""The options of a run beside its recipe, in one table for `train`, the command line and their help.

Importable without torch, as the command line's help needs it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitreous.errors import VitreousError, unknown

# The splits that a run is evaluated on at its end. "val" leaves the test split unread while a recipe is chosen. "test"
# also trains on the validation images, once the recipe is chosen.
JUDGES = {"both": ("val", "test"), "val": ("val",), "test": ("test",)}
BACKENDS = ("torch", "native")
PRECISIONS = ("32", "bf16")
DEVICES = ("cpu", "cuda", "mps")
# How an image becomes square: its central square; the whole with bars beside it; the whole in other proportions.
FITS = ("crop", "pad", "stretch")
LOGGERS = ("csv", "tensorboard", "wandb")
# How a training treats classes of unequal size; see `vitreous.balance`.
BALANCES = ("auto", "none", "loss", "sampler")


@dataclass(frozen=True)
class Option:
    """An argument of `vitreous.train` and, unless `kind` is a tuple, an option of `vitreous train`."""

    kind: type
    help: str
    metavar: str = ""
    default: Any = None
    choices: tuple[str, ...] = ()


OPTIONS: dict[str, Option] = {
    "recipe": Option(
        str, "recipe to start from: a name (see vitreous recipes) or a TOML file, such as a run's recipe.toml",
        "RECIPE", "default",
    ),
    "minutes": Option(float, "wall-clock minutes, from packed data to the printed test accuracy", "M"),
    "epochs": Option(int, "how often each training image is used", "N"),
    "steps": Option(int, "optimizer steps", "N"),
    "flops": Option(float, "training FLOPs, as in 6e13", "F"),
    "out": Option(Path, "run folder; by default runs/DATA-RECIPE-CHANGES-seedN-NNN", "DIR"),
    "seed": Option(int, "seed for weights, image order, augmentation and dropout", "N", 42),
    "balance": Option(
        str,
        "treatment of unequal classes; loss weighs them alike, sampler draws them equally often, auto decides by their "
        "sizes",
        "HOW", choices=BALANCES,
    ),
    "device": Option(str, "where to train", "NAME", "auto", ("auto", *DEVICES)),
    "precision": Option(
        str, "number format of matrix products; auto is bf16 on hardware that has it",
        "NAME", "auto", ("auto", *PRECISIONS),
    ),
    "backend": Option(
        str, "what computes the network; native is kernels compiled for this CPU, auto is native where possible",
        "NAME", "auto", ("auto", *BACKENDS),
    ),
    "logger": Option(
        str, "csv is metrics.csv alone; tensorboard and wandb record the run there in addition",
        "NAME", "csv", LOGGERS,
    ),
    "data_dir": Option(Path, "cache of packed data; by default $VITREOUS_DATA or ~/.cache/vitreous", "DIR"),
    "image_size": Option(int, "side in pixels to resize images to", "S"),
    "fit": Option(
        str, "how images that are not square become square", "HOW", "stretch", FITS,
    ),
    "value_range": Option(
        str, "values of black and white in images of more than 8 bits, as in 0,4095; by default from the files",
        "LOW,HIGH",
    ),
    "splits": Option(
        str, "auto recognises split folders by their names, none takes every folder for a class, "
        "train=DIR,test=DIR names them",
        "HOW", "auto",
    ),
    "group_by": Option(
        str, "regular expression over image names; images with the same match stay in one split", "REGEX",
    ),
    "skip_bad": Option(bool, "skip images that cannot be read instead of stopping", default=False),
    "classes": Option(tuple, "class names, for arrays, in the order of the labels"),
    "judge": Option(
        str, "splits to evaluate at the end; val leaves test unread, test also trains on the validation images",
        "SPLIT", "both", tuple(JUDGES),
    ),
    "verbose": Option(bool, "print everything that log.txt records", default=False),
}  # fmt: skip
READING = ("image_size", "fit", "value_range", "splits", "group_by", "skip_bad")  # how the data are read


@dataclass(frozen=True)
class Request:
    """The options of a run beside its recipe and budget. A run records them, so `resume` needs only its folder."""

    data: Any
    seed: int = OPTIONS["seed"].default
    device: str = OPTIONS["device"].default
    precision: str = OPTIONS["precision"].default
    backend: str = OPTIONS["backend"].default
    logger: str = OPTIONS["logger"].default
    data_dir: Path | str | None = None
    image_size: int | None = None
    skip_bad: bool = OPTIONS["skip_bad"].default
    classes: Sequence[str] | None = None
    judge: str = OPTIONS["judge"].default
    fit: str = OPTIONS["fit"].default
    value_range: tuple[float, float] | str | None = None
    splits: str | Mapping[str, str] = OPTIONS["splits"].default
    group_by: str | None = None

    def __post_init__(self) -> None:
        for name, low in (("seed", 0), ("image_size", 1)):
            if getattr(self, name) is not None or name == "seed":
                object.__setattr__(self, name, _whole_number(name, getattr(self, name), low))
        if not isinstance(self.data_dir, str | Path | None):
            raise VitreousError(f"data_dir is {self.data_dir!r}; give the path of a folder.")
        if type(self.skip_bad) is not bool:
            raise VitreousError(f"skip_bad is {self.skip_bad!r}; it must be True or False.")
        for name, value in vars(self).items():
            choices = OPTIONS[name].choices if name in OPTIONS else ()
            if choices and value not in choices:
                raise unknown(name, value, choices)
        if isinstance(self.classes, list):  # TOML and JSON have no tuples; the data module checks the rest
            object.__setattr__(self, "classes", tuple(self.classes))

    @property
    def reading(self) -> dict[str, Any]:
        """How the data are read, as keyword arguments of `open_data`."""
        return {name: getattr(self, name) for name in READING}

    @property
    def judges(self) -> tuple[str, ...]:
        """The splits that the final figures are computed on."""
        return JUDGES[self.judge]


def _whole_number(name: str, value: Any, low: int) -> int:
    """A whole number as Python's int, also from numpy's, which TOML and JSON could not hold."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not low <= number < 2**32:
        raise VitreousError(f"{name} is {value!r}; it must be a whole number from {low} to {2**32 - 1}.")
    return number
