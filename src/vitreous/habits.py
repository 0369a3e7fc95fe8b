"""Answers to unknown options, keys, arguments and commands: what people type by habit, and what it is called here.

Whatever exists under its own name in another place needs no entry: an option that is a key of the recipe, or a key
that is an option, is found by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vitreous.errors import VitreousError, nearest, suggestion
from vitreous.request import OPTIONS

# Names from other tools, without dashes -> an option or a key of the recipe, and its value where the name implies one.
NAMES: dict[str, tuple[str, str]] = {
    other: (name, value)
    for others, name, value in (
        ("lr", "learning_rate", ""),
        ("bs batch", "batch_size", ""),
        ("wd", "weight_decay", ""),
        ("epoch num_epochs max_epochs", "epochs", ""),
        ("max_steps iterations iters", "steps", ""),
        ("max_time time", "minutes", ""),
        ("img_size imgsz input_size resolution", "image_size", ""),
        ("val_split validation_split", "val_fraction", ""),
        ("random_seed manual_seed", "seed", ""),
        ("model arch architecture", "variant", ""),
        ("layers num_layers", "depth", ""),
        ("dim hidden_dim hidden_size", "embed_dim", ""),
        ("optim optimizer", "optimizer.name", ""),
        ("scheduler lr_scheduler schedule", "schedule.name", ""),
        ("output output_dir out_dir save_dir name run_name", "out", ""),
        ("config cfg", "recipe", ""),
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
    for other in others.split()
}

# Names of what vitreous does not have -> why, and what to do instead.
ABSENT: dict[str, str] = {
    other: sentence
    for others, sentence in (
        (
            "workers num_workers",
            "batches are prepared in the training process, so there is no number of workers to set",
        ),
        ("pretrained weights", "every network is trained from scratch, so there are no pretrained weights"),
        ("gpus num_gpus devices", "it trains on one device, which --device chooses"),
        ("data dataset", "write the data set without an option, as in vitreous train cifar10"),
    )
    for other in others.split()
}

# Commands by habit -> what to do instead.
COMMANDS: dict[str, str] = {
    "fit": "write vitreous train",
    "eval": "write vitreous evaluate RUN",
    "test": "write vitreous evaluate RUN",
    "validate": "write vitreous evaluate RUN --split val",
    "download": "write vitreous data fetch",
    "resume": "write vitreous train --resume RUN",
    "repeat": "write vitreous train --repeat RUN",
    "predict": "in Python, write vitreous.load(RUN).predict(images)",
    "export": "in Python, vitreous.load(RUN).model is a torch module that torch.onnx.export takes",
}

Keys = Mapping[str, Collection[str]]  # the keys of each section of a recipe


def unknown_option(
    command: str, option: str, options: Collection[str], keys: Keys, value: str = ""
) -> VitreousError:
    """The error for an option that a command does not have.

    Args:
        command: its name, such as "train".
        option: as it was typed, without its value.
        options: of the command, such as "--epochs".
        keys: of a recipe, where the command takes them; else empty.
        value: what was typed after it, if it can be its value.
    """
    word = _plain(option)
    name, implied = NAMES.get(word, (word, ""))
    flag = f"--{name.replace('_', '-')}"
    if flag in options:
        hint = f"write {_option(name, implied or value)}."
    elif key := _key(name, keys):
        hint = f"write {key}={implied or value or 'VALUE'} (a key of the recipe)."
    elif word in ABSENT and keys:
        hint = f"{ABSENT[word]}."
    elif near := nearest(option, options):
        hint = f"did you mean {near}?"
    elif word not in OPTIONS and (close := nearest(word, _names(keys))):
        hint = f"did you mean {close}={value or 'VALUE'}, a key of the recipe?"
    else:
        hint = f"see vitreous {command} --help."
    return VitreousError(f"{command} has no option {option}; {hint}")


def unknown_key(key: str, keys: Keys, value: Any = "") -> VitreousError:
    """The error for a key that no recipe has; `value` is what it was to be set to."""
    word = _plain(key)
    name, implied = NAMES.get(word, (word, ""))
    section, dot, last = key.partition(".")
    if ours := _key(name, keys):
        hint = f"write {ours}={implied or _text(value) or 'VALUE'}."
    elif name == "resume":
        hint = f"write {_option(name, _text(value))}."
    elif name in OPTIONS:
        in_python = f"in Python {name}={_literal(implied or value)}"
        in_shell = _option(name, implied or _text(value))
        hint = f"give {in_python}." if OPTIONS[name].kind is tuple else f"write {in_shell} ({in_python})."
    elif word in ABSENT:
        hint = f"{ABSENT[word]}."
    elif dot and section in keys and (owner := _key(last, keys)):
        hint = f"write {owner}."
    else:
        full = {f"{section}.{name}" for section, names in keys.items() for name in names}
        hint = suggestion(key, full if dot else _names(keys), see="vitreous train --help")
    return VitreousError(f"There is no recipe key {key!r}; {hint}")


def unknown_argument(
    function: str, argument: str, arguments: Collection[str], keys: Keys, value: Any
) -> VitreousError:
    """The error for an argument that a Python function does not have; see `unknown_key`."""
    word = _plain(argument)
    name, implied = NAMES.get(word, (word, ""))
    trains = "overrides" in arguments
    if name in arguments:
        hint = f"write {name}={_literal(implied or value)}."
    elif trains and (key := _key(name, keys)):
        hint = f"write overrides={{{key!r}: {_literal(implied or value)}}}."
    elif trains and word in ABSENT:
        hint = f"{ABSENT[word]}."
    else:
        hint = suggestion(argument, arguments, see=f"help(vitreous.{function})")
    return VitreousError(f"{function}() has no argument {argument!r}; {hint}")


def unknown_command(name: str, commands: Collection[str]) -> VitreousError:
    """The error for a command that there is not."""
    habit = COMMANDS.get(name.rpartition(" ")[2])
    if habit:
        return VitreousError(f"There is no command {name!r}; {habit}.")
    return VitreousError(f"There is no command {name!r}; {suggestion(name, commands, see='vitreous --help')}")


def _plain(name: str) -> str:
    return name.strip("-").replace("-", "_").lower()


def _names(keys: Keys) -> set[str]:
    return {name for names in keys.values() for name in names}


def _key(name: str, keys: Keys) -> str:
    """The key called `name`, with its section where it needs one; "" if there is none."""
    full = [f"{section}.{key}" for section, names in keys.items() for key in names]
    homes = [key for key in full if name in (key, key.partition(".")[2])]
    return "" if not homes else name if len(homes) == 1 else homes[0]


def _option(name: str, value: str) -> str:
    """The option called `name` with a value, as it is typed."""
    flag = f"--{name.replace('_', '-')}"
    known = OPTIONS.get(name)
    if known and known.kind is bool:
        return flag
    return f"{flag} {value or (known.metavar if known else 'RUN')}"


def _text(value: Any) -> str:
    """A value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _literal(value: Any) -> str:
    """A value as Python shows it, unless it is long."""
    return repr(value) if isinstance(value, bool | int | float | str) else "..."
