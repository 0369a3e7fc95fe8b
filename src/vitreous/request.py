"""What a person asks for beside the recipe: one table of options, for `train`, the command line and their help.

Importable without torch, as the command line's help needs it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitreous.errors import VitreousError, unknown

# The splits that a run is evaluated on at its end. "val" leaves test unread, for choosing a recipe; "test" trains on
# the validation images too, once the recipe is chosen.
JUDGES = {"both": ("val", "test"), "val": ("val",), "test": ("test",)}
BACKENDS = ("torch", "native")
PRECISIONS = ("32", "bf16")
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Option:
    """An argument of `vitreous.train` and, unless `kind` is a tuple, an option of `vitreous train`."""

    kind: type
    help: str
    metavar: str = ""
    default: Any = None


OPTIONS: dict[str, Option] = {
    "recipe": Option(
        str, "a name that `vitreous recipes` lists, or a TOML file, a run's too", "NAME|FILE.toml", "default"
    ),
    "minutes": Option(float, "budget: wall clock, from the data in the cache to the test figures", "M"),
    "epochs": Option(int, "budget: passes over the training images", "N"),
    "steps": Option(int, "budget: steps of the optimizer", "N"),
    "flops": Option(float, "budget: counted training FLOPs, as in 6e13", "F"),
    "out": Option(Path, "the run folder itself; by default the next runs/DATA-RECIPE-NNN", "DIR"),
    "seed": Option(int, "seed of weights, order, augmentation and noise", "N", 42),
    "device": Option(str, "where to train", "|".join(("auto", *DEVICES)), "auto"),
    "precision": Option(
        str, "type of the products; auto is bf16 where the processor has it", "|".join(("auto", *PRECISIONS)), "auto"
    ),
    "backend": Option(
        str,
        "torch, or native: kernels compiled for this CPU; auto is native where it can be",
        "|".join(("auto", *BACKENDS)),
        "auto",
    ),
    "logger": Option(str, "beside metrics.csv, which is always written", "csv|tensorboard|wandb", "csv"),
    "data_dir": Option(Path, "where data are kept; by default $VITREOUS_DATA or ~/.cache/vitreous", "DIR"),
    "image_size": Option(int, "side in pixels that images are resized to", "S"),
    "skip_bad": Option(bool, "leave out bad files instead of stopping", default=False),
    "classes": Option(tuple, "names of the labels, for arrays"),
    "judge": Option(
        str,
        "final figures: both; val leaves test unread; test trains on validation too",
        "|".join(JUDGES),
        "both",
    ),
    "verbose": Option(bool, "print every decision, as log.txt has them", default=False),
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What was asked for beside recipe and budget; a run keeps it, so that `resume` needs nothing else."""

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

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("image_size", 1)):
            if getattr(self, name) is not None or name == "seed":
                object.__setattr__(self, name, _whole(name, getattr(self, name), least))
        if not isinstance(self.data_dir, str | Path | None):
            raise VitreousError(f"data_dir is {self.data_dir!r}; give the path of a folder.")
        if type(self.skip_bad) is not bool:
            raise VitreousError(f"skip_bad is {self.skip_bad!r}; it must be True or False.")
        for name, value, known in (
            ("device", self.device, ("auto", *DEVICES)),
            ("precision", self.precision, ("auto", *PRECISIONS)),
            ("backend", self.backend, ("auto", *BACKENDS)),
            ("judge", self.judge, tuple(JUDGES)),
        ):
            if value not in known:
                raise unknown(name, value, known)
        if isinstance(self.classes, list):  # TOML and JSON know no tuples; all else is for the data to judge
            object.__setattr__(self, "classes", tuple(self.classes))

    @property
    def judges(self) -> tuple[str, ...]:
        """The splits that the final figures are computed on."""
        return JUDGES[self.judge]


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number, numpy's too, as Python's own, which can be written down and read again."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not least <= number < 2**32:
        raise VitreousError(
            f"The {name} is {value!r}; it must be a whole number from {least} to {2**32 - 1}."
        )
    return number
