"""How the files of a data set are read: the options that a person gives, checked once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitreous.errors import VitreousError, unknown
from vitreous.preprocess import Preprocess
from vitreous.request import FITS, OPTIONS

SPLITS = ("auto", "none")  # of the option `splits`, besides a list of folders


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a folder or zip, as `read_options` checked them; most also hold for other sources.

    Attributes:
        image_size: height and width in pixels that images are resized to; None chooses by their size.
        fit: how an image of another shape becomes square, one of `request.FITS`.
        value_range: the values of black and white in images of more than 8 bits; None finds it from the files.
        splits: "auto" recognises split folders by their names; "none" takes every folder for a class;
            "train=DIR,test=DIR" names the folders of the splits. DIR is a path below the folder or zip, such as
            "data/seg_train"; "train=DIR+DIR" joins several, as in "train=fold1+fold2,test=fold3".
        group_by: a regular expression over image names. Images with the same match (its first group, if it has one)
            stay on one side of every cut.
        skip_bad: leave out files that cannot be used instead of stopping with a list of them.
        settings: those of a trained network. They replace `image_size`, `fit` and `value_range`, and nothing is chosen
            from the images.
    """

    image_size: int | None = None
    fit: str = OPTIONS["fit"].default
    value_range: tuple[float, float] | None = None
    splits: str = "auto"
    group_by: str | None = None
    skip_bad: bool = False
    settings: Preprocess | None = None


def read_options(
    image_size: Any = None,
    fit: Any = None,
    value_range: Any = None,
    splits: Any = "auto",
    group_by: Any = None,
    skip_bad: Any = False,
) -> ReadOptions:
    """Checks the options that a person gave.

    Args:
        value_range: (low, high), or the text "low,high".
        group_by: a text, or a compiled pattern.
        splits: a text as in `ReadOptions`, or a mapping such as {"train": "DIR", "test": "DIR"}.

    Raises:
        VitreousError: a value is not allowed.
    """
    if fit is not None and fit not in FITS:
        raise unknown("fit", fit, FITS)
    if isinstance(group_by, re.Pattern):
        group_by = _text_of(group_by)
    if group_by is not None:
        try:
            if not isinstance(group_by, str):
                raise TypeError("it must be text")
            re.compile(group_by)
        except (re.error, TypeError) as error:
            raise VitreousError(
                f"group_by is {group_by!r}, which is not a regular expression ({error}); "
                r"give one such as 'patient(\d+)'."
            ) from None
    if type(skip_bad) is not bool:
        raise VitreousError(f"skip_bad is {skip_bad!r}; it must be True or False.")
    return ReadOptions(
        image_size=None if image_size is None else _size(image_size),
        fit=OPTIONS["fit"].default if fit is None else fit,
        value_range=_range(value_range),
        splits=_splits(splits),
        group_by=group_by,
        skip_bad=skip_bad,
    )


def _text_of(pattern: re.Pattern[Any]) -> Any:
    """A compiled regular expression as text, with its flags in front."""
    flags = "".join(letter for letter in "aimsx" if pattern.flags & re.RegexFlag[letter.upper()])
    return f"(?{flags}){pattern.pattern}" if flags and isinstance(pattern.pattern, str) else pattern.pattern


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise VitreousError(f"The image size is {value!r:.40}; give a whole number of pixels, such as 64.")
    return int(value)


def _range(value: Any) -> tuple[float, float] | None:
    """(low, high) of a pair or of the text "low,high"."""
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    try:
        low, high = map(float, parts)
        if low < high and math.isfinite(low) and math.isfinite(high):
            return low, high
    except (TypeError, ValueError):
        pass
    raise VitreousError(
        f"The value range is {value!r}; give the values of black and white, as in --value-range 0,4095 "
        "(in Python value_range=(0, 4095))."
    )


def _splits(value: Any) -> str:
    """The option `splits` as text: a mapping becomes "train=DIR,test=DIR"."""
    if isinstance(value, Mapping):
        value = ",".join(f"{split}={folder}" for split, folder in value.items())
    if not isinstance(value, str):
        raise VitreousError(f"splits is {value!r}; give auto, none, or folders as in train=DIR,test=DIR.")
    if value not in SPLITS and "=" not in value:
        raise unknown("value of splits", value, (*SPLITS, "train=DIR,test=DIR"))
    return value
