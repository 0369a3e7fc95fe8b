"""Answers to unknown options, keys, arguments and commands: what people type by habit, and what it is called here.

Whatever exists under its own name in another place needs no entry: an option that is a key of the recipe, or a key
that is an option, is found by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vitreous.errors import VitreousError, nearest, suggestion
from vitreous.request import OPTIONS

# Names from other tools, without dashes -> an option or a key of the recipe, and its value where the name implies one.
NAMES: dict[str, tuple[str, str]] = {
    habit: (name, value)
    for habits, name, value in (
        ("lr", "learning_rate", ""),
        ("bs batch", "batch_size", ""),
        ("wd", "weight_decay", ""),
        ("epoch num_epochs max_epochs", "epochs", ""),
        ("max_steps iterations iters", "steps", ""),
        ("max_time time", "minutes", ""),
        ("img_size imgsz input_size resolution", "image_size", ""),
        ("group groups group_column", "group_by", ""),
        ("resize_mode crop_mode", "fit", ""),
        ("bit_depth window", "value_range", ""),
        ("ignore_errors skip_errors", "skip_bad", ""),
        ("class_weight class_weights class_weighting logit_adjustment", "balance", "loss"),
        ("weighted_sampler oversample oversampling class_balanced", "balance", "sampler"),
        ("val_split validation_split", "val_fraction", ""),
        ("random_seed manual_seed", "seed", ""),
        ("model arch architecture", "variant", ""),
        ("layers num_layers", "depth", ""),
        ("dim hidden_dim hidden_size", "embed_dim", ""),
        ("optim optimizer", "optimizer.name", ""),
        ("scheduler lr_scheduler schedule", "schedule.name", ""),
        ("output output_dir out_dir save_dir name run_name", "out", ""),
        ("config cfg", "recipe", ""),
        ("dataset", "data", ""),
        ("checkpoint ckpt", "resume", ""),
        ("gpu cuda", "device", "cuda"),
        ("cpu", "device", "cpu"),
        ("mps", "device", "mps"),
        ("amp fp16 bf16 half mixed_precision", "precision", "bf16"),
        ("fp32 float32", "precision", "32"),
        ("wandb", "logger", "wandb"),
        ("tensorboard", "logger", "tensorboard"),
        ("test", "split", "test"),
        ("val validation", "split", "val"),
    )
    for habit in habits.split()
}

# The choice that a false value of an implied one stands for, as in amp=false; without one, nothing needs to be written.
OPPOSITES = {"cuda": "cpu", "bf16": "32"}
FALSE = ("false", "0", "no", "off")

# Names of what vitreous does not have -> why, and what to do instead. {device} is the option or argument of that name,
# {command} the command at hand.
ABSENT: dict[str, str] = {
    habit: reason
    for habits, reason in (
        (
            "workers num_workers",
            "batches are prepared in the training process, so there is no number of workers to set",
        ),
        ("pretrained weights", "every network is trained from scratch, so there are no pretrained weights"),
        ("classes num_classes", "the data set decides the number of classes"),
        ("gpus num_gpus devices", "a run uses one device, which {device} chooses"),
        ("data dataset", "write the data set without an option, as in vitreous {command} cifar10"),
    )
    for habit in habits.split()
}

# Commands by habit -> what to do instead.
COMMANDS: dict[str, str] = {
    "fit": "write vitreous train",
    "eval": "write vitreous evaluate RUN",
    "test": "write vitreous evaluate RUN",
    "validate": "write vitreous evaluate RUN --split val",
    "download": "write vitreous data fetch",
    "data download": "write vitreous data fetch",
    "data validate": "write vitreous data check PATH",
    "data test": "write vitreous data check PATH",
    "resume": "write vitreous train --resume RUN",
    "repeat": "write vitreous train --repeat RUN",
    "classify": "write vitreous predict RUN PATH",
}

Keys = Mapping[str, Collection[str]]  # the keys of each section of a recipe
Flags = Mapping[str, str]  # the options of a command, such as "--epochs", with what stands for their value


class UnknownKeyError(VitreousError):
    """A key that no recipe has. Whoever knows the command or function at hand replaces its answer by a better one."""

    def __init__(self, key: str, value: Any, hint: str) -> None:
        super().__init__(f"There is no recipe key {key!r}; {hint}")
        self.key, self.value = key, value


def unknown_option(command: str, option: str, flags: Flags, keys: Keys, value: str = "") -> VitreousError:
    """The error for an option that a command does not have.

    Args:
        command: its name, such as "train".
        option: as it was typed, without its value.
        flags: the options of the command.
        keys: of a recipe, where the command takes them; else empty.
        value: what was typed after it, if it can be its value.
    """
    word = _plain(option)
    name, translated = _translate(word, value, "--split" in flags)
    key, key_value = _find_key(word, value, "--split" in flags, keys)
    if _flag(name) in flags:
        hint = _write_option(name, translated, flags)
    elif key:
        hint = f"write {key}={_text(key_value) or 'VALUE'} (a key of the recipe)."
    elif keys and (reason := _reason(word, command, "--device" if "--device" in flags else "")):
        hint = reason
    elif near := nearest(option, flags):
        hint = f"did you mean {near}?"
    elif name not in OPTIONS and (close := nearest(word, _names(keys))):
        hint = f"did you mean {close}={value or 'VALUE'}, a key of the recipe?"
    else:
        hint = f"see vitreous {command} --help."
    return VitreousError(f"{command} has no option {option}; {hint}")


def unknown_key(key: str, keys: Keys, value: Any, command: str, flags: Flags) -> UnknownKeyError:
    """The error for a key that no recipe has, on the command line.

    Args:
        key: as it was typed, perhaps with a section.
        keys: of a recipe.
        value: what the key was to be set to.
        command: its name, such as "train".
        flags: the options of the command.
    """
    word = _plain(key)
    name, translated = _translate(word, value, "--split" in flags)
    right_key, key_value = _find_key(key, value, "--split" in flags, keys)
    if right_key:
        hint = f"write {right_key}={_text(key_value) or 'VALUE'}."
    elif reason := _reason(word, command, "--device" if "--device" in flags else ""):
        hint = reason
    elif _flag(name) in flags:
        hint = _write_option(name, translated, flags)
    else:
        hint = _similar_key(key, name, keys, command)
    return UnknownKeyError(key, value, hint)


def unknown_key_in_python(key: str, keys: Keys, value: Any, arguments: Collection[str]) -> UnknownKeyError:
    """The error for a key that no recipe has, among the overrides of a function with these `arguments`."""
    word = _plain(key)
    name, translated = _translate(word, value, "split" in arguments)
    right_key, key_value = _find_key(key, value, "split" in arguments, keys)
    if right_key:
        hint = f"write {right_key}={_text(key_value) or 'VALUE'}."
    elif reason := _reason(word, "", "device=" if "device" in arguments else ""):
        hint = reason
    elif name in ("resume", "repeat"):
        hint = f"write vitreous.{name}({_literal(translated)})."
    elif name in arguments:
        hint = "leave it out." if translated is None else f"give the argument {name}={_literal(translated)}."
    else:
        hint = _similar_key(key, name, keys, "train")
    return UnknownKeyError(key, value, hint)


def unknown_argument(
    function: str, argument: str, arguments: Collection[str], keys: Keys, value: Any
) -> VitreousError:
    """The error for an argument that a Python function does not have."""
    word = _plain(argument)
    name, translated = _translate(word, value, "split" in arguments)
    takes_overrides = "overrides" in arguments
    if name in arguments and translated is None:
        hint = "leave it out."
    elif name in arguments:
        place = " (the first argument)" if name == next(iter(arguments)) else ""
        hint = f"write {name}={_literal(translated)}{place}."
    elif takes_overrides and (key := _key(name, keys)):
        hint = f"write overrides={{{key!r}: {_literal(translated)}}}."
    elif takes_overrides and name in ("resume", "repeat"):
        hint = f"write vitreous.{name}({_literal(translated)})."
    elif takes_overrides and (reason := _reason(word, "", "device=" if "device" in arguments else "")):
        hint = reason
    else:
        hint = suggestion(argument, arguments, see=f"help(vitreous.api.{function})")
    return VitreousError(f"{function}() has no argument {argument!r}; {hint}")


def unknown_command(name: str, commands: Collection[str]) -> VitreousError:
    """The error for a command that does not exist."""
    if name in COMMANDS:
        return VitreousError(f"There is no command {name!r}; {COMMANDS[name]}.")
    return VitreousError(f"There is no command {name!r}; {suggestion(name, commands, see='vitreous --help')}")


def _plain(name: str) -> str:
    return name.strip("-").replace("-", "_").lower()


def _translate(word: str, value: Any, has_split: bool) -> tuple[str, Any]:
    """The name and the value here of what was typed; the value is None if it is best left out."""
    name, implied = NAMES.get(word, (word, ""))
    is_false = str(value).lower() in FALSE
    if name == "split" and not has_split:
        name = "judge" if implied or not _is_number(value) else "val_fraction"
    if implied:
        return name, OPPOSITES.get(implied) if is_false else implied
    if name in OPTIONS and OPTIONS[name].kind is bool:
        return name, None if is_false else True
    return name, value


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def _reason(word: str, command: str, device: str) -> str:
    """Why vitreous has nothing called `word`, or "" if that is not known or names what this place does not have."""
    reason = ABSENT.get(word, "")
    if ("{device}" in reason and not device) or ("{command}" in reason and not command):
        return ""
    return reason and f"{reason.format(device=device, command=command)}."


def _names(keys: Keys) -> set[str]:
    return {name for names in keys.values() for name in names}


def _key(name: str, keys: Keys) -> str:
    """The key called `name`, with its section where it needs one; "" if there is none."""
    full = [f"{section}.{key}" for section, names in keys.items() for key in names]
    homes = [key for key in full if name in (key, key.partition(".")[2])]
    return "" if not homes else name if len(homes) == 1 else homes[0]


def _find_key(typed: str, value: Any, has_split: bool, keys: Keys) -> tuple[str, Any]:
    """The key that was meant, with its value: by its name or a habit, perhaps below a section; "" if there is none."""
    section, dot, last = typed.partition(".")
    word = last if dot and section in keys else typed
    name, translated = _translate(_plain(word), value, has_split)
    return _key(name, keys), translated


def _similar_key(key: str, name: str, keys: Keys, command: str) -> str:
    see = f"vitreous {command} --help"
    if name in OPTIONS:  # an option that the command does not have, not a mistyped key
        return f"see {see}."
    full = {f"{section}.{name}" for section, names in keys.items() for name in names}
    return suggestion(key, full if "." in key else _names(keys), see=see)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _write_option(name: str, value: Any, flags: Flags) -> str:
    """The answer that names an option of the command, with its value if it takes one."""
    flag = _flag(name)
    if value is None:
        return "leave it out."
    return f"write {flag} {_text(value) or flags[flag]}." if flags[flag] else f"write {flag}."


def _text(value: Any) -> str:
    """A value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _literal(value: Any) -> str:
    """A value as Python shows it, unless it is long."""
    if isinstance(value, Path):
        return repr(str(value))
    return repr(value) if isinstance(value, bool | int | float | str) else "..."
