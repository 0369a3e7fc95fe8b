"""Dataclass fields that carry their help and their allowed values, for checks and for help pages alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitreous.errors import VitreousError, suggestion


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its help and its allowed values.

    Args:
        default: as of `dataclasses.field`; a field without one is required.
        low, high: smallest and largest value.
        above, below: bounds that the value must not reach.
        choices: all values, for a word.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, **bounds})


def check_setting(key: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Raises `VitreousError` unless the field's `metadata` allow `value`; NaN is never allowed within bounds."""
    choices = metadata.get("choices", ())
    if choices and value not in choices:
        raise VitreousError(f"{key} is {value!r}; {suggestion(value, choices)}")
    holds = {
        "low": lambda bound: value >= bound,
        "high": lambda bound: value <= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
    }
    bounds = {name: bound for name in holds if (bound := metadata.get(name)) is not None}
    if not all(holds[name](bound) for name, bound in bounds.items()):
        raise VitreousError(f"{key} is {value}; it must be {allowed_range(bounds)}.")


def allowed_range(metadata: Mapping[str, Any]) -> str:
    """The bounds of a field in words: "from 0 to 1", "at least 1"; "" if there are none."""
    low, high, above, below = (metadata.get(name) for name in ("low", "high", "above", "below"))
    if low is not None and high is not None:
        return f"from {low:.10g} to {high:.10g}"
    words = {"at least": low, "at most": high, "above": above, "below": below}
    return " and ".join(f"{word} {bound:.10g}" for word, bound in words.items() if bound is not None)


def listed(choices: tuple[str, ...]) -> str:
    """Choices in words: "cpu, cuda or mps"."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), *choices[-1:])))
