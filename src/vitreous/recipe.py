"""The description of a run: typed, frozen, and read from TOML.

Importable without torch, so that `vitreous recipes` and every `--help` answer at once.
A recipe holds nothing that follows from the data. Number of classes, image size, statistics and steps are derived when
the run starts.
"""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from vitreous.errors import VitreousError, unknown
from vitreous.habits import unknown_key_in_python
from vitreous.model.variants import VARIANTS, Architecture
from vitreous.request import BALANCES, OPTIONS
from vitreous.settings import check_setting, setting
from vitreous.wording import count

UNITS = ("minutes", "epochs", "steps", "flops")


@dataclass(frozen=True)
class DataSection:
    val_fraction: float = setting(
        0.1, "fraction of each class to hold out for each missing split", low=0.001, high=0.5
    )
    split_seed: int = setting(42, "seed of that choice, independent of --seed", low=0, high=2**32 - 1)


@dataclass(frozen=True)
class AugmentSection:
    crop: int = setting(
        0, "random crop after reflection padding of this many pixels on each side", low=0, high=64
    )
    flip: str = setting(
        "none",
        "horizontal flip; alternating flips an image in every other epoch",
        choices=("none", "random", "alternating"),
    )
    cutout: int = setting(0, "side in pixels of a random square that is blanked", low=0, high=512)
    trivial: bool = setting(False, "TrivialAugment: one random operation of random strength per image")
    resized_crop: tuple[float, ...] = setting(
        (), "random resized crop: smallest and largest fraction of the area, e.g. [0.08, 1.0]"
    )
    mixup: float = setting(0.0, "probability that an image is blended with another", low=0, high=1)
    cutmix: float = setting(
        0.0,
        "probability that a box of another image is pasted in; with mixup at most 1",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        low_high = self.resized_crop
        if low_high and not (len(low_high) == 2 and 0 < low_high[0] <= low_high[1] <= 1):
            raise VitreousError(
                f"augment.resized_crop is {list(low_high)}; give the smallest and largest fraction of the area, "
                "as in [0.08, 1.0]."
            )


@dataclass(frozen=True)
class OptimizerSection:
    name: str = setting(
        "adamw",
        "muon trains matrices with Muon and all else with AdamW",
        choices=("adamw", "muon"),
    )
    learning_rate: float = setting(
        1e-3,
        "peak learning rate of AdamW; changing it alone scales muon_learning_rate too",
        low=0,
        high=10,
    )
    beta1: float = setting(0.9, "decay of AdamW's first moment", low=0, high=0.9999)
    beta2: float = setting(0.999, "decay of AdamW's second moment", low=0, high=0.999999)
    weight_decay: float = setting(
        0.0, "decoupled weight decay of all parameters, times their learning rate", low=0, high=10
    )
    muon_learning_rate: float = setting(0.02, "peak learning rate of Muon", low=0, high=10)
    muon_momentum: float = setting(0.95, "Nesterov momentum of Muon", low=0, high=0.9999)


@dataclass(frozen=True)
class ScheduleSection:
    name: str = setting(
        "linear",
        "learning rate; linear is a warmup and a straight line to zero, onecycle is torch's OneCycleLR",
        choices=("linear", "onecycle"),
    )
    warmup: float = setting(0.1, "fraction of the steps in which the learning rate rises", low=0, high=1)
    small_sides: tuple[float, ...] = setting(
        (), "train on smaller images first: their sides as fractions of the full side"
    )
    small_until: tuple[float, ...] = setting(
        (), "for each small side, the fraction of the steps at which it ends"
    )

    def __post_init__(self) -> None:
        sides, until = list(self.small_sides), list(self.small_until)
        if len(sides) != len(until):
            raise VitreousError(
                f"schedule.small_sides has {count(len(sides), 'value')} and schedule.small_until {len(until)}; "
                "give one end for each side."
            )
        if not all(0 < side <= 1 for side in sides):
            raise VitreousError(f"schedule.small_sides is {sides}; each must be above 0 and at most 1.")
        if not all(a < b for a, b in pairwise([0.0, *until, 1.0])):
            raise VitreousError(
                f"schedule.small_until is {until}; the values must rise and be between 0 and 1."
            )


@dataclass(frozen=True)
class TrainingSection:
    batch_size: int = setting(256, "images in a step", low=1, high=65536)
    drop_last: bool = setting(True, "leave out the last batch of an epoch if it is smaller")
    label_smoothing: float = setting(
        0.0, "fraction of the target that is spread over all classes", low=0, high=0.99
    )
    balance: str = setting("none", OPTIONS["balance"].help, choices=BALANCES)


@dataclass(frozen=True)
class Budget:
    """The length of a run: an amount with its unit, one of `UNITS`."""

    amount: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise unknown("unit of budget", self.unit, UNITS)
        if not 0 < self.amount < float("inf"):
            raise VitreousError(
                f"The budget is {self.amount:g} {self.unit}; give a finite number above zero."
            )
        if self.unit in ("epochs", "steps") and self.amount != int(self.amount):
            raise VitreousError(f"The budget is {self.amount:g} {self.unit}; give a whole number.")

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit[:-1] if self.amount == 1 and self.unit != 'flops' else self.unit}"


@dataclass(frozen=True)
class Recipe:
    """Everything that a person chooses about a run.

    `model` is a named variant with the recipe's changes. If `dial` is set, the budget chooses the size of the network
    and the augmentation (`vitreous.dial`), except for the `pinned` keys, which a person set.
    """

    name: str
    variant: str
    model: Architecture
    budget: Budget
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection = TrainingSection()
    dial: bool = False
    pinned: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def tables(self) -> dict[str, Any]:
        """The complete recipe as nested tables, as in its TOML file."""
        tables: dict[str, Any] = {"name": self.name} | ({"dial": True} if self.dial else {})
        tables["model"] = {"variant": self.variant, **dataclasses.asdict(self.model)}
        for section in SECTIONS:
            tables[section] = dataclasses.asdict(getattr(self, section))
        counted = self.budget.unit in ("epochs", "steps")
        tables["budget"] = {self.budget.unit: int(self.budget.amount) if counted else self.budget.amount}
        return tables


SECTIONS: dict[str, type] = {
    "data": DataSection,
    "augment": AugmentSection,
    "optimizer": OptimizerSection,
    "schedule": ScheduleSection,
    "training": TrainingSection,
}


def keys() -> dict[str, dict[str, Mapping[str, Any]]]:
    """Help and allowed values (see `settings.setting`) of every key, by section."""
    sections: dict[str, dict[str, Mapping[str, Any]]] = {
        name: {field.name: field.metadata for field in dataclasses.fields(kind)}
        for name, kind in {"model": Architecture, **SECTIONS}.items()
    }
    variant = {"help": "network to start from", "choices": tuple(VARIANTS)}
    sections["model"] = {"variant": variant, **sections["model"]}
    sections["budget"] = {unit: {"help": OPTIONS[unit].help} for unit in UNITS}
    return sections


def model_defaults() -> dict[str, Any]:
    """The default of each option of the network that has one."""
    fields = dataclasses.fields(Architecture)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


NOTEBOOKS = ("notebook-cifar10", "notebook-cifar100")


def notebook(data: str) -> str:
    """The recipe that `--recipe notebook` stands for when training on the data set called `data`."""
    return NOTEBOOKS[1] if data == "cifar100" else NOTEBOOKS[0]


def names() -> list[str]:
    """The names of the recipes that come with the package, sorted."""
    files = resources.files("vitreous.recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def text(name: str) -> str:
    """The TOML text of a named recipe, or of the file at that path.

    Raises:
        VitreousError: there is no such recipe, or the file cannot be read.
    """
    if name in names():
        return (resources.files("vitreous.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    if name == "notebook":
        raise VitreousError(f"notebook stands for two recipes; choose {' or '.join(NOTEBOOKS)}.")
    if not name.endswith(".toml"):
        raise unknown("recipe", name, [*names(), "notebook"])
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise VitreousError(f"There is no recipe file {name}; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise VitreousError(
            f"The recipe file {name} cannot be read ({reason}); fix it or give another."
        ) from None


def headline(name: str) -> str:
    """The first sentence of the comment at the top of a named recipe."""
    comment = [line.lstrip("# ") for line in text(name).splitlines() if line.startswith("#")]
    return " ".join(comment).partition(". ")[0].rstrip(".") + "."


def load(name: str, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Recipe:
    """Reads a recipe by name or from a `.toml` file, and applies `overrides`.

    Args:
        name: one of `names()`, or the path of a TOML file, such as a run's `recipe.toml`.
        overrides: `{"depth": 6}` or `["model.depth=6"]`. The section may be left out if the key is unique. A budget
            replaces the recipe's budget, and a variant replaces its whole [model].

    Raises:
        VitreousError: the recipe, a section or a key is unknown, or a value has the wrong type or is out of range.
    """
    return parse(read(name), overrides, default_name=Path(name).stem, own=name not in names())


def read(name: str) -> dict[str, Any]:
    """The tables of a recipe as in its TOML file; see `text` for errors."""
    try:
        return tomllib.loads(text(name))
    except tomllib.TOMLDecodeError as error:
        raise VitreousError(f"The recipe {name} is not valid TOML ({error}); fix that line.") from None


def parse(
    tables: Mapping[str, Any],
    overrides: Mapping[str, Any] | Iterable[str] = (),
    default_name: str = "custom",
    own: bool = False,
) -> Recipe:
    """Builds a `Recipe` from nested tables; see `load` for `overrides` and errors.

    The values of `own` tables, which a person or a run wrote, are kept: data and budget no longer change them.
    """
    sections = keys()
    for key, value in tables.items():
        if key in sections and not isinstance(value, Mapping):
            raise VitreousError(f"{key!r} is a section of the recipe; write its keys below a line [{key}].")
        if key not in (*sections, "name", "dial", "resolved"):  # resolved: written by a run
            raise unknown("section or key in a recipe", key, [*sections, "name", "dial"])
    tables_of = {section: dict(tables.get(section, {})) for section in sections}
    for section, values in tables_of.items():
        for key in values:
            if key not in sections[section]:
                raise unknown(f"key in [{section}]", key, sections[section])
    changes = _overrides(overrides)
    pinned = [f"{s}.{key}" for s, values in tables_of.items() for key in values if own and key != "variant"]
    for section, key, _ in changes:
        if section == "budget" or (section, key) == ("model", "variant"):
            tables_of[section].clear()  # the recipe's values belong to its own unit or network
    before = _build(OptimizerSection, tables_of["optimizer"], "optimizer")
    for section, key, value in changes:
        tables_of[section][key] = value
    scale_muon(tables_of["optimizer"], before, {key for section, key, _ in changes if section == "optimizer"})

    variant = tables_of["model"].pop("variant", None)
    if variant is None:
        raise VitreousError(f"A recipe's [model] needs a variant; choose from {', '.join(sorted(VARIANTS))}.")
    if convert(str, variant, "model.variant") not in VARIANTS:
        raise unknown("model variant", variant, VARIANTS)
    base = dataclasses.asdict(VARIANTS[variant].architecture)
    if len(tables_of["budget"]) != 1:
        raise VitreousError(f"A recipe's [budget] needs exactly one of {', '.join(UNITS)}.")
    ((unit, amount),) = tables_of["budget"].items()
    return Recipe(
        name=convert(str, tables.get("name", default_name), "name"),
        variant=variant,
        model=_build(Architecture, {**base, **tables_of["model"]}, "model"),
        budget=Budget(convert(float, amount, f"budget.{unit}"), unit),
        dial=convert(bool, tables.get("dial", False), "dial"),
        pinned=(*pinned, *(f"{section}.{key}" for section, key, _ in changes)),
        **{name: _build(kind, tables_of[name], name) for name, kind in SECTIONS.items()},
    )


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values, as in {"augment.crop": 3}.

    Raises:
        VitreousError: a key is unknown, or a value has the wrong type or is out of range.
    """
    known = {"model": Architecture, **SECTIONS}
    names = [
        f"{section}.{field.name}" for section, kind in known.items() for field in dataclasses.fields(kind)
    ]
    tables: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in names:
            raise unknown("key of the recipe", name, names)
        section, _, key = name.partition(".")
        tables.setdefault(section, {**vars(getattr(recipe, section))})[key] = value
    return dataclasses.replace(
        recipe, **{section: _build(known[section], table, section) for section, table in tables.items()}
    )


def scale_muon(optimizer: dict[str, Any], before: OptimizerSection, changed: set[str]) -> None:
    """Scales Muon's learning rate with AdamW's if an override changes only AdamW's.

    One setting then changes the pace of the whole training.

    Args:
        optimizer: the section with its overrides; changed in place.
        before: the section without them.
        changed: the keys that were overridden.

    Raises:
        VitreousError: a learning rate is out of range.
    """
    alone = "learning_rate" in changed and not changed & {"name", "muon_learning_rate"}
    if alone and before.name == "muon" and before.learning_rate > 0:
        rate = convert(float, optimizer["learning_rate"], "optimizer.learning_rate")
        scaled = before.muon_learning_rate * (rate / before.learning_rate)
        optimizer["muon_learning_rate"] = scaled
        limits = {field.name: field.metadata for field in dataclasses.fields(OptimizerSection)}
        check_setting("optimizer.learning_rate", rate, limits["learning_rate"])
        if scaled > (highest := limits["muon_learning_rate"]["high"]):
            raise VitreousError(
                f"optimizer.learning_rate {rate:g} scales optimizer.muon_learning_rate to {scaled:g}, which must be "
                f"at most {highest:g}; give a smaller learning_rate, or set muon_learning_rate too."
            )


def dump(tables: Mapping[str, Any]) -> str:
    """The TOML text of nested tables of plain values, the inverse of `tomllib.loads`."""
    return "\n".join(_dump(tables, ())).strip() + "\n"


def _dump(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"\n[{'.'.join(map(_key, path))}]"] if path and (plain or not table) else []
    lines += [f"{_key(key)} = {toml_value(value)}" for key, value in plain.items() if value is not None]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _dump(value, (*path, key))
    return lines


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else toml_value(key)


def toml_value(value: Any) -> str:
    """A plain value as TOML text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return repr(float(value))  # the shortest text that reads back as the same number
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    characters = str(value).encode("utf-8", "backslashreplace").decode()  # a path need not be valid text
    return f'"{"".join(map(_escape, characters))}"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    control = character < " " or character == "\x7f"
    return f"\\u{ord(character):04X}" if control else character


def _overrides(overrides: Mapping[str, Any] | Iterable[str]) -> list[tuple[str, str, Any]]:
    """Every override as (section, key, value); a key that only one section has needs no section."""
    if not isinstance(overrides, str | Mapping) and isinstance(overrides, Iterable):
        overrides = list(overrides)  # it may be a generator
    if not isinstance(overrides, list | Mapping) or not all(isinstance(name, str) for name in overrides):
        raise VitreousError(f"The overrides are {overrides!r}; write {{'depth': 6}} or ['depth=6'].")
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split, overrides)
    sections = keys()
    known = [(section, key) for section, names in sections.items() for key in names]
    changes = []
    for name, value in pairs:
        homes = [(section, key) for section, key in known if name in (key, f"{section}.{key}")]
        if not homes:
            if name in sections:
                first, facts = next(iter(sections[name].items()))
                fits = value in facts.get("choices", ())
                hint = f"{name}.{first}={value}" if fits else f"one of its keys, as in {name}.{first}"
                raise VitreousError(f"{name!r} is a section of the recipe; write {hint}.")
            raise unknown_key_in_python(name, sections, value, OPTIONS)
        if len(homes) > 1:
            options = " or ".join(f"{section}.{key}" for section, key in homes)
            raise VitreousError(f"The key {name!r} is in several sections; write {options}.")
        changes.append((*homes[0], value))
    return changes


def _split(override: str) -> tuple[str, Any]:
    """The key and the value of "key=value"; a value that is neither TOML nor a number is a word."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise VitreousError(f"{override!r} is not an override; write key=value, as in depth=6.")
    for read in (lambda text: tomllib.loads(f"value = {text}")["value"], float):  # TOML does not read .5
        try:
            return key.strip(), read(value)
        except ValueError:
            continue
    return key.strip(), value


def _build(kind: type, values: Mapping[str, Any], section: str) -> Any:
    types = get_type_hints(kind)
    values = {key: convert(types[key], value, f"{section}.{key}") for key, value in values.items()}
    for field in dataclasses.fields(kind):
        if field.name in values:
            check_setting(f"{section}.{field.name}", values[field.name], field.metadata)
    return kind(**values)


def convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as the type `kind` of the field `key`; refuses conversions that lose something or guess."""
    types = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
    if get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            return tuple(convert(get_args(kind)[0], item, key) for item in value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # inf and nan are refused
            return float(value)
    elif type(value) is kind:
        return value
    raise VitreousError(f"{key} must be {types.get(kind, 'a list, as in [1, 2]')}, not {value!r}.")
