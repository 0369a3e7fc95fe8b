"""A run, described: typed, frozen, read from TOML that is parsed and never executed.

Importable without torch, so that `vitreous recipes` and every `--help` answer at once.
Nothing that follows from the data stands here: number of classes, picture size, statistics and
steps are derived when the run starts.
"""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from vitreous.errors import VitreousError, unknown
from vitreous.model.variants import VARIANTS, Architecture

UNITS = ("minutes", "epochs", "steps", "flops")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that carries its help text and its range (inclusive), which `_check` holds."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class DataSection:
    val_fraction: float = setting(0.1, "share of a split that is cut off for validation", low=0.001, high=0.5)
    split_seed: int = setting(42, "seed of that cut, apart from the run's own seed", low=0, high=2**32 - 1)


@dataclass(frozen=True)
class AugmentSection:
    crop: int = setting(0, "reflected border in pixels, then a random crop back to size", low=0, high=64)
    flip: str = setting(
        "none", "left-right: at random, or each side in turn", choices=("none", "random", "alternating")
    )
    cutout: int = setting(0, "side in pixels of a square that is blanked", low=0, high=512)
    trivial: bool = setting(False, "one random operation of random strength a picture (TrivialAugment)")
    resized_crop: tuple[float, ...] = setting((), "smallest and largest share of the area, e.g. [0.08, 1.0]")
    mixup: float = setting(0.0, "probability that a picture is blended with another", low=0.0, high=1.0)
    cutmix: float = setting(0.0, "probability that a box of another is pasted in", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        low_high = self.resized_crop
        if low_high and not (len(low_high) == 2 and 0 < low_high[0] <= low_high[1] <= 1):
            raise VitreousError("augment.resized_crop wants two shares of the area, as in [0.08, 1.0].")


@dataclass(frozen=True)
class OptimizerSection:
    name: str = setting("adamw", "muon keeps AdamW for everything but matrices", choices=("adamw", "muon"))
    learning_rate: float = setting(
        1e-3, "peak of AdamW's; overriding it alone scales muon_learning_rate alike", low=0.0, high=10.0
    )
    beta1: float = setting(0.9, "AdamW's first moment", low=0.0, high=0.9999)
    beta2: float = setting(0.999, "AdamW's second moment", low=0.0, high=0.999999)
    weight_decay: float = setting(0.0, "decoupled, on every parameter of AdamW", low=0.0, high=10.0)
    muon_learning_rate: float = setting(0.02, "peak of Muon's, for matrices", low=0.0, high=10.0)
    muon_momentum: float = setting(0.95, "Nesterov momentum of Muon", low=0.0, high=0.9999)


@dataclass(frozen=True)
class ScheduleSection:
    name: str = setting(
        "linear", "warm-up and a straight line to zero, or torch's OneCycleLR", choices=("linear", "onecycle")
    )
    warmup: float = setting(0.1, "share of the run in which the learning rate rises", low=0.0, high=1.0)
    small_sides: tuple[float, ...] = setting((), "begin with smaller pictures: their shares of the full side")
    small_until: tuple[float, ...] = setting((), "the share of the steps at which each of them ends")

    def __post_init__(self) -> None:
        if len(self.small_sides) != len(self.small_until):
            raise VitreousError("schedule.small_sides and schedule.small_until must be of equal length.")
        if not all(0 < side <= 1 for side in self.small_sides):
            raise VitreousError("schedule.small_sides wants shares of the side, above 0 and at most 1.")
        if not all(a < b for a, b in pairwise([0.0, *self.small_until, 1.0])):
            raise VitreousError("schedule.small_until wants rising shares of the steps, above 0 and below 1.")


@dataclass(frozen=True)
class TrainingSection:
    batch_size: int = setting(256, "pictures in a step", low=1, high=65536)
    drop_last: bool = setting(True, "leave out an epoch's last, smaller batch")
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", low=0.0, high=0.99)


@dataclass(frozen=True)
class Budget:
    """How much a run may cost: an amount with its unit."""

    amount: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise unknown("unit of budget", self.unit, UNITS)
        if not 0 < self.amount < float("inf"):
            raise VitreousError(
                f"A budget of {self.amount:g} {self.unit} cannot be trained; give more than zero."
            )
        if self.unit in ("epochs", "steps") and self.amount != int(self.amount):
            raise VitreousError(f"A budget of {self.amount:g} {self.unit} must be a whole number.")

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit[:-1] if self.amount == 1 and self.unit != 'flops' else self.unit}"


@dataclass(frozen=True)
class Recipe:
    """Everything about a run that a person chooses.

    `model` is a named variant with what the recipe changes in it; the other sections are literal. Where `dial` is
    set, the budget decides on the network's size and the augmentation (`vitreous.dial`), but for the `pinned`
    keys, which a person gave.
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
    pinned: tuple[str, ...] = field(default=(), compare=False)

    def tables(self) -> dict[str, Any]:
        """The recipe as nested tables, complete, as its TOML file holds them."""
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


def keys() -> dict[str, dict[str, str]]:
    """The keys of each section of a recipe, with a line of help for each that has one."""
    helps = {
        name: {f.name: f.metadata["help"] for f in dataclasses.fields(kind)}
        for name, kind in SECTIONS.items()
    }
    model = ["variant", *(f.name for f in dataclasses.fields(Architecture))]
    return {"model": dict.fromkeys(model, ""), **helps, "budget": dict.fromkeys(UNITS, "")}


def names() -> list[str]:
    """Names of the recipes that come with the package."""
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
        raise VitreousError("notebook stands for two recipes; choose notebook-cifar10 or notebook-cifar100.")
    if not name.endswith(".toml"):
        raise unknown("recipe", name, names())
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise VitreousError(f"There is no recipe file {name}; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise VitreousError(
            f"The recipe file {name} cannot be read ({reason}); mend it or give another."
        ) from None


def headline(name: str) -> str:
    """The first sentence of the comment that heads a named recipe."""
    comment = [line.lstrip("# ") for line in text(name).splitlines() if line.startswith("#")]
    return " ".join(comment).partition(". ")[0].rstrip(".") + "."


def load(name: str, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Recipe:
    """Reads a recipe by name or from a `.toml` file, with `overrides` laid over it.

    Args:
        name: a name of `names()`, or the path of a TOML file (a run's `recipe.toml` too).
        overrides: `{"depth": 6}` or `["model.depth=6"]`; the section may be left out where the
            field's name is unique. Another budget takes the place of the recipe's, and another
            variant that of its whole [model].

    Raises:
        VitreousError: unknown recipe, section or key (with the nearest name), a value of the wrong
            type or out of range.
    """
    return parse(read(name), overrides, default_name=Path(name).stem, own=name not in names())


def read(name: str) -> dict[str, Any]:
    """The tables of a recipe, as its TOML file holds them; see `text` for errors."""
    try:
        return tomllib.loads(text(name))
    except tomllib.TOMLDecodeError as error:
        raise VitreousError(f"The recipe {name} is not valid TOML ({error}); mend it there.") from None


def parse(
    tables: Mapping[str, Any],
    overrides: Mapping[str, Any] | Iterable[str] = (),
    default_name: str = "custom",
    own: bool = False,
) -> Recipe:
    """Builds a `Recipe` from nested tables; see `load` for `overrides` and errors.

    What stands in `own` tables, a person's or a run's, is not derived from the data and the budget any more.
    """
    sections = keys()
    for key, value in tables.items():
        if key in sections and not isinstance(value, Mapping):
            raise VitreousError(f"{key} in a recipe is a section; write its keys under a line [{key}].")
        if key not in (*sections, "name", "dial", "resolved"):  # resolved: a run's record of what was decided
            raise unknown("section or key in a recipe", key, [*sections, "name", "dial"])
    given = {section: dict(tables.get(section, {})) for section in sections}
    for section, values in given.items():
        for key in values:
            if key not in sections[section]:
                raise unknown(f"key in [{section}]", key, sections[section])
    changes = _overrides(overrides)
    pinned = [f"{s}.{key}" for s, values in given.items() for key in values if own and key != "variant"]
    for section, key, _ in changes:
        if section == "budget" or (section, key) == ("model", "variant"):
            given[section].clear()  # another unit, another network: what the recipe says of its own is void
    before = _build(OptimizerSection, given["optimizer"], "optimizer")
    for section, key, value in changes:
        given[section][key] = value
    scale_muon(given["optimizer"], before, {key for section, key, _ in changes if section == "optimizer"})

    variant = given["model"].pop("variant", None)
    if variant is None:
        raise VitreousError(f"A recipe's [model] needs a variant; choose from {', '.join(sorted(VARIANTS))}.")
    if convert(str, variant, "model.variant") not in VARIANTS:
        raise unknown("model variant", variant, VARIANTS)
    base = dataclasses.asdict(VARIANTS[variant].architecture)
    if len(given["budget"]) != 1:
        raise VitreousError(f"A recipe's [budget] needs exactly one of {', '.join(UNITS)}.")
    ((unit, amount),) = given["budget"].items()
    return Recipe(
        name=convert(str, tables.get("name", default_name), "name"),
        variant=variant,
        model=_build(Architecture, {**base, **given["model"]}, "model"),
        budget=Budget(convert(float, amount, f"budget.{unit}"), unit),
        dial=convert(bool, tables.get("dial", False), "dial"),
        pinned=(*pinned, *(f"{section}.{key}" for section, key, _ in changes)),
        **{name: _build(kind, given[name], name) for name, kind in SECTIONS.items()},
    )


def scale_muon(optimizer: dict[str, Any], before: OptimizerSection, changed: set[str]) -> None:
    """Muon's learning rate follows where an override changes AdamW's alone, so that one setting scales the training.

    Args:
        optimizer: the section as it will be built.
        before: the recipe's own.
        changed: its keys that were overridden.
    """
    alone = "learning_rate" in changed and not changed & {"name", "muon_learning_rate"}
    if alone and before.name == "muon" and before.learning_rate > 0:
        rate = convert(float, optimizer["learning_rate"], "optimizer.learning_rate")
        scaled = before.muon_learning_rate * (rate / before.learning_rate)
        optimizer["muon_learning_rate"] = scaled
        limits = {field.name: field.metadata for field in dataclasses.fields(OptimizerSection)}
        _check(rate, limits["learning_rate"], "optimizer.learning_rate")
        if scaled > (most := limits["muon_learning_rate"]["high"]):
            raise VitreousError(
                f"optimizer.learning_rate = {rate:g} scales optimizer.muon_learning_rate to {scaled:g}, which must be "
                f"at most {most:g}; give a smaller learning_rate, or muon_learning_rate too."
            )


def dump(tables: Mapping[str, Any]) -> str:
    """TOML text of nested tables of plain values (the inverse of `tomllib.loads`)."""
    return "\n".join(_dump(tables, ())).strip() + "\n"


def _dump(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"\n[{'.'.join(map(_key, path))}]"] if path and (plain or not table) else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items() if value is not None]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _dump(value, (*path, key))
    return lines


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return repr(float(value))  # the shortest text that reads back as the same number
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    characters = str(value).encode("utf-8", "backslashreplace").decode()  # a path may be no valid text
    return f'"{"".join(map(_escape, characters))}"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    control = character < " " or character == "\x7f"
    return f"\\u{ord(character):04X}" if control else character


def _overrides(overrides: Mapping[str, Any] | Iterable[str]) -> list[tuple[str, str, Any]]:
    """Each override as (section, key, value), its section found where the key's name is unique."""
    if not isinstance(overrides, str | Mapping) and isinstance(overrides, Iterable):
        overrides = list(overrides)  # it may be a generator
    if not isinstance(overrides, list | Mapping) or not all(isinstance(each, str) for each in overrides):
        raise VitreousError(f"The overrides are {overrides!r}; write {{'depth': 6}} or ['depth=6'].")
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split, overrides)
    known = [(section, key) for section, every in keys().items() for key in every]
    found = []
    for name, value in pairs:
        homes = [(section, key) for section, key in known if name in (key, f"{section}.{key}")]
        if not homes:
            if name in keys():
                raise VitreousError(
                    f"{name!r} is a section; write one of its keys, as in {name}.{next(iter(keys()[name]))}."
                )
            raise unknown("recipe key", name, {f"{s}.{k}" if "." in name else k for s, k in known})
        if len(homes) > 1:
            options = " or ".join(f"{section}.{key}" for section, key in homes)
            raise VitreousError(f"{name!r} stands in more than one section; write {options}.")
        found.append((*homes[0], value))
    return found


def _split(override: str) -> tuple[str, Any]:
    """The key and the value of "key=value"; what is neither TOML nor a number is a word."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise VitreousError(f"{override!r} is not an override; write key=value, as in depth=6.")
    for read in (lambda text: tomllib.loads(f"value = {text}")["value"], float):  # TOML has no .5
        try:
            return key.strip(), read(value)
        except ValueError:
            continue
    return key.strip(), value


def _build(kind: type, values: Mapping[str, Any], section: str) -> Any:
    types = get_type_hints(kind)
    built = {key: convert(types[key], value, f"{section}.{key}") for key, value in values.items()}
    for f in dataclasses.fields(kind):
        if f.name in built:
            _check(built[f.name], f.metadata, f"{section}.{f.name}")
    return kind(**built)


def _check(value: Any, metadata: Mapping[str, Any], key: str) -> None:
    low, high, choices = (metadata.get(name) for name in ("low", "high", "choices"))
    if choices and value not in choices:
        raise unknown(f"{key} called", value, choices)
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"from {low:.10g} to {high:.10g}" if high is not None else f"at least {low:.10g}"
        raise VitreousError(f"{key} is {value}, and must be {bounds}.")


def convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as the type of its field; refuses what would silently lose or guess."""
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
    if get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            return tuple(convert(get_args(kind)[0], item, key) for item in value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # neither inf nor nan is a setting
            return float(value)
    elif type(value) is kind:
        return value
    raise VitreousError(f"{key} must be {wanted.get(kind, 'a list, as in [1, 2]')}, not {value!r}.")
