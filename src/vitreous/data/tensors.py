"""Images in arrays and tensors: which shapes and values are taken, and what to write instead of the others.

Letters: N images, H height, W width, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitreous.depth import FLOATS, inside
from vitreous.errors import VitreousError

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with opacity
OVERSHOOT = 0.25  # beyond 0 to 1: filters for resizing leave that much at sharp edges
FAINT = 1 / 16  # floats that reach no further have probably been divided twice


@dataclass(frozen=True)
class Wording:
    """How messages speak of images, and of the Python expression that holds them.

    Attributes:
        subject: as in "The test images".
        kind: what holds them: "numpy", "torch", "list" or "dataset".
        expression: what a person may call them.
    """

    subject: str
    kind: str = "numpy"
    expression: str = "images"

    def cast(self, dtype: str) -> str:
        """Python code that converts the images to a type of numpy."""
        if self.kind == "torch":
            return f"{self.expression}.to(torch.{dtype})"
        if self.kind == "numpy":
            return f'{self.expression}.astype("{dtype}")'
        return f'np.array({self.expression}).astype("{dtype}")'

    @property
    def array(self) -> str:
        """Python code for the images in an expression with operators and methods."""
        return self.expression if self.kind in ("numpy", "torch") else f"np.array({self.expression})"


def kind_of(values: Any) -> str:
    """What holds images or labels: "torch", "numpy" or "list"; torch need not be imported for it."""
    if hasattr(values, "detach"):
        return "torch"
    return "numpy" if isinstance(values, np.ndarray) else "list"


def as_array(values: Any, subject: str) -> np.ndarray:
    """An array, tensor, or nested list of numbers as a numpy array.

    Raises:
        VitreousError: it is ragged, or has a type that numpy lacks.
    """
    try:
        if hasattr(values, "detach"):  # a torch tensor, without importing torch
            values = values.detach().cpu()
            return np.asarray(values.numpy())
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # unequal shapes, or a type that numpy lacks
        advice = (
            "give `images.float()`"
            if kind_of(values) == "torch"
            else "give a numpy array or a list of arrays"
        )
        raise VitreousError(f"{subject} cannot be read as an array ({error}); {advice}.") from None


def channels_last(array: np.ndarray, wording: Wording) -> np.ndarray:
    """Images [N, H, W], [N, H, W, C] or [N, C, H, W] as [N, H, W] or [N, H, W, C]; the values are not copied.

    With few pixels both orders may be possible. Then the one in which the images are square is taken.

    Raises:
        VitreousError: the shape is another one, or ambiguous.
    """
    shape, expression = list(array.shape), wording.array
    if array.ndim == 2:
        raise VitreousError(
            f"{wording.subject} are rows of {shape[1]:,} numbers; {_unflattened(shape[1], expression)}"
        )
    if array.ndim not in (3, 4):
        raise VitreousError(
            f"{wording.subject} have the shape {shape}; give them as [N, H, W, 3], or as [N, H, W] if they are grey."
        )
    if 0 in shape:
        raise VitreousError(
            f"{wording.subject} have the shape {shape}, so they have no pixels; give other images."
        )
    if array.ndim == 3:
        return array
    last, first = shape[3] in CHANNELS, shape[1] in CHANNELS
    if last and first:
        last, first = shape[1] == shape[2], shape[2] == shape[3]
        if last == first:
            raise VitreousError(
                f"{wording.subject} have the shape {shape}, whose channels could be the second or the last number; "
                f"give PIL images, as in `[Image.fromarray(image) for image in {expression}]` for channels last."
            )
    if last:
        return array
    if first:
        return np.moveaxis(array, 1, -1)
    last, first = shape[1] == shape[2], shape[2] == shape[3]  # which order makes them square
    forms = [f"`{expression}[..., :{1 if shape[3] == 2 else 3}]`"] if last or not first else []
    forms += [f"`{expression}[:, :{1 if shape[1] == 2 else 3}]`"] if first or not last else []
    raise VitreousError(
        f"{wording.subject} have the shape {shape}; give 1 channel (grey), 3 (RGB) or 4 (with opacity), "
        f"as in {' or '.join(forms)}."
    )


def _unflattened(length: int, expression: str) -> str:
    """Advice for images whose pixels are in one row."""
    side, colour_side = math.isqrt(length), math.isqrt(length // 3)
    if side * side == length:
        return f"give them their shape, as in `{expression}.reshape(-1, {side}, {side})`."
    if 3 * colour_side**2 == length:
        shape = f"{colour_side}, {colour_side}"
        return (
            f"give them their shape: `{expression}.reshape(-1, 3, {shape})` if a row has all red values first, as in "
            f"CIFAR's files, or `{expression}.reshape(-1, {shape}, 3)`."
        )
    return f"give them their shape, as in `{expression}.reshape(-1, height, width)`."


def check_values(low: float, high: float, dtype: np.dtype, wording: Wording) -> tuple[str, ...]:
    """Checks the range of values of all images together.

    Args:
        low, high: the smallest and the largest value; NaN if a value is none.

    Returns:
        Sentences about values that may be meant differently.

    Raises:
        VitreousError: it is not certain which value is white.
    """
    if dtype.kind == "b":
        return ()
    if dtype in (np.uint8, np.uint16):
        if high == 1:
            return (
                f"{wording.subject} have only the values 0 and 1, where white is {np.iinfo(dtype).max:,}; if 1 is "
                f"white, {_give(wording, wording.cast('bool'))}.",
            )
        return ()
    if dtype.kind not in "iuf":
        raise VitreousError(
            f"{wording.subject} have the type {dtype}; give uint8 from 0 to 255, uint16, bool, or floats from 0 to 1."
        )
    if dtype.kind == "f":
        return _check_floats(low, high, dtype, wording)
    if low >= 0 and high <= 2**16 - 1:
        target = "bool" if high <= 1 else "uint8" if high <= 255 else "uint16"
        raise VitreousError(
            f"{wording.subject} have the type {dtype}, which does not say what is white; "
            f"{_give(wording, wording.cast(target))}."
        )
    raise VitreousError(
        f"{wording.subject} have the type {dtype} with values from {low:,.0f} to {high:,.0f}; "
        f"{_range(low, high)}."
    )


def _check_floats(low: float, high: float, dtype: np.dtype, wording: Wording) -> tuple[str, ...]:
    if not (math.isfinite(low) and math.isfinite(high)):
        replaced = "nan=0, posinf=1, neginf=0)"
        code = f"np.nan_to_num({wording.array}, {replaced}"
        if wording.kind == "torch":
            code = f"{wording.array}.nan_to_num({replaced}"
        raise VitreousError(
            f"{wording.subject} have values that are not finite numbers; {_give(wording, code)}."
        )
    if inside("f", low, high, FLOATS):
        if 0 < high <= FAINT:
            raise VitreousError(
                f"{wording.subject} have no value above {high:.4g}, so they seem to have been divided twice; "
                f"{_range(0, high)}."
            )
        return ()
    found = f"{wording.subject} have {dtype} values from {low:.4g} to {high:.4g}"
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        raise VitreousError(f"{found}, a little beyond 0 to 1; give value_range=(0, 1), which clips them.")
    if low >= 0 and 127 < high <= 255:
        code = wording.cast("uint8")
        raise VitreousError(f"{found}, and white is 1 in floats; {_give(wording, code)}.")
    if low >= 0:
        raise VitreousError(f"{found}, and white is 1 in floats; {_range(0, high)}.")
    if wording.kind == "dataset":
        raise VitreousError(
            f"{found}, so a transform normalises them; remove Normalize from the transform, because vitreous "
            "normalises images itself."
        )
    raise VitreousError(
        f"{found}, so they seem to be normalised, which vitreous does itself; give them as they were before, or "
        f"{_range(low, high).removeprefix('give ')}."
    )


def _range(low: float, high: float) -> str:
    """Advice to say which values are black and white."""
    low, high = _outwards(low, math.floor), _outwards(high, math.ceil)
    return f"give value_range=({low:.12g}, {high if high > low else low + 1:.12g}), the values of black and white"


def _outwards(number: float, rounding: Any) -> float:
    """A number with three significant digits, rounded up or down."""
    if number == 0:
        return 0.0
    digits = 2 - math.floor(math.log10(abs(number)))
    return float(rounding(round(number * 10**digits, 6)) / 10**digits)


def _give(wording: Wording, code: str) -> str:
    """The advice to give what `code` makes of the images."""
    if wording.kind == "dataset":
        return "let the dataset give uint8 from 0 to 255, or floats from 0 to 1"
    return f"give `{code}`"
