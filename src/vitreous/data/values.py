"""Settings that hold for a whole data set and follow from its files: range of values, ground under transparency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vitreous import profiles
from vitreous.depth import (
    FLOATS,
    SIXTEEN,
    Origin,
    OutOfRange,
    another_unit,
    beside,
    finite_range,
    inside,
    is_deep,
    number,
    origin_of,
    own_range,
    values_of,
)
from vitreous.errors import VitreousError
from vitreous.preprocess import Preprocess
from vitreous.wording import count

BITS = (8, 10, 12, 14, 16)  # widths of integers that cameras and scanners have
TAILS = (0.5, 99.5)  # percent: the darkest and brightest values of an image without a few outliers
MIDDLE = (25, 75)  # percent of the images whose values must use the range
# The share of the range below which images are nearly one grey. 12 bits beside one value of 16 bits have as much.
FLAT = 1 / 16
NEARLY_BLACK = 64  # highest of 255 levels of 16-bit colour that may be colour of 14 bits or fewer
HIDDEN = 24  # levels from 0 to 255: a ground as close as this to what is drawn on it hides it
FEW = 5  # percent of the transparent images that a ground may hide
SAMPLED = 2**16  # pixels of an image that are looked at, for percentiles and for what is drawn
GROUNDS = {"white": 255, "grey": 128, "black": 0}
MEND = "give the values of black and white with --value-range LOW,HIGH (in Python value_range=(LOW, HIGH))"


@dataclass(frozen=True, slots=True)
class Values:
    """The values of an image of more than 8 bits.

    Attributes:
        kind: "integer" or "float" for grey images, "colour" for 16-bit colour, of which the high byte is read.
        low, high: the lowest and highest finite value.
        dark, bright: the same without outliers.
        white: the value that the file states as white, or None.
        gaps: some values are NaN or infinite.
    """

    kind: str
    low: float
    high: float
    dark: float
    bright: float
    white: int | None = None
    gaps: bool = False

    @property
    def own_range(self) -> tuple[float, float]:
        """Black and white unless a range is given."""
        return own_range("f" if self.kind == "float" else "u", self.white)

    @property
    def inside_own_range(self) -> bool:
        """Whether no value is below black or above white of that range, apart from errors of rounding."""
        return inside("f" if self.kind == "float" else "u", self.low, self.high, self.own_range)


@dataclass(frozen=True, slots=True)
class Facts:
    """What one image contributes to the choices for its data set.

    Attributes:
        width, height: in pixels, upright.
        images: number of images in its file.
        values: None for an image of 8 bits.
        transparent: some of its pixels are.
        contrast: how far what is drawn on transparent ground is from a white, grey and black one, each from 0 to 255;
            None if the image is opaque or shows nothing.
        profile: it has a colour profile.
        unused_band: its file has a band that is neither colour nor opacity.
    """

    width: int
    height: int
    images: int = 1
    values: Values | None = None
    transparent: bool = False
    contrast: tuple[float, ...] | None = None
    profile: bool = False
    unused_band: bool = False

    def depends(self, first: Preprocess, final: Preprocess) -> bool:
        """Whether the image, converted with the settings `first`, must be converted again with `final`."""
        if first.ground != final.ground and (
            self.transparent or (final.fit == "pad" and self.width != self.height)
        ):
            return True
        if self.values is None or self.values.kind == "colour":
            return False
        own = self.values.own_range
        before = first.value_range or (own if self.values.inside_own_range else None)
        return before != (final.value_range or own)


def facts_of(image: Image.Image, origin: Origin | None = None) -> Facts:
    """Describes a loaded, upright image.

    Args:
        origin: what its file says about its values.

    Raises:
        OutOfRange: none of its values is finite.
    """
    origin = origin or origin_of(image)
    values = None
    transparent, contrast = False, None
    if is_deep(image):
        values = _values(values_of(image, origin), origin)
    else:
        if image.has_transparency_data:
            transparent, contrast = _drawing(profiles.with_opacity(image))
        if origin.deep_colour:
            bands = image.getextrema()[: 1 if image.mode == "LA" else 3]
            lows, highs = zip(*bands, strict=True)
            values = Values("colour", min(lows), max(highs), min(lows), max(highs))
    return Facts(
        *image.size,
        images=origin.images,
        values=values,
        transparent=transparent,
        contrast=contrast,
        profile=not is_deep(image) and "icc_profile" in image.info,
        unused_band=origin.unused_band,
    )


def facts_of_array(array: np.ndarray, *, deep: bool) -> Facts:
    """Describes an image [H, W] or [H, W, C] of an array.

    Args:
        deep: its values need a range. Floats from 0 to 1 do not.

    Raises:
        OutOfRange: none of its values is finite.
    """
    height, width = array.shape[:2]
    if deep:
        return Facts(width, height, values=_values(array, Origin()))
    if array.dtype == np.uint8 and array.shape[2:] == (4,):
        return facts_of(Image.fromarray(array), Origin())
    return Facts(width, height)


def settle(
    settings: Preprocess, facts: Sequence[Facts], value_range: tuple[float, float] | None
) -> tuple[Preprocess, tuple[str, ...]]:
    """Chooses the settings for a whole data set.

    Args:
        settings: those with which the images were converted first.
        facts: of every image.
        value_range: as a person gave it, or None.

    Returns:
        The settings, and sentences about what was chosen.

    Raises:
        VitreousError: the range of values cannot be decided.
    """
    sentences: list[str] = []
    several = sum(fact.images > 1 for fact in facts)
    if several:
        holds = count(several, "file holds", "files hold")
        sentences.append(f"{holds} several images; the first of each is used.")
    unused = sum(fact.unused_band for fact in facts)
    if unused:
        have = count(unused, "file has", "files have")
        sentences.append(f"{have} a band that is neither colour nor opacity; it is not used.")
    profiled = sum(fact.profile for fact in facts)
    if profiled and settings.profiles == "applied" and not profiles.available():
        settings = replace(settings, profiles="ignored")
        have = count(profiled, "image has a colour profile", "images have colour profiles")
        sentences.append(
            f"{have}, which this build of Pillow cannot apply; colours are a little off "
            "(Pillow from PyPI applies them)."
        )
    settings, sentence = _with_range(settings, facts, value_range)
    sentences += sentence
    settings, sentence = _with_ground(settings, facts)
    sentences += sentence
    return settings, tuple(sentences)


def refuse_other_values(settings: Preprocess, facts: Sequence[Facts]) -> None:
    """Refuses images that the settings of a trained network cannot read, or would make black or white.

    Raises:
        VitreousError: images of more than 8 bits have values that `settings` do not mean.
    """
    colour = [fact.values for fact in facts if fact.values and fact.values.kind == "colour"]
    _refuse_dark_colour(colour, settings.value_range)
    deep = [fact.values for fact in facts if fact.values and fact.values.kind != "colour"]
    for kind, noun in (("integer", "integers"), ("float", "floats")):
        values = [part for part in deep if part.kind == kind]
        if not values:
            continue
        low, high = min(part.low for part in values), max(part.high for part in values)
        if settings.value_range is None:
            outside = [part for part in values if not part.inside_own_range]
            reads = f"{noun} from {' to '.join(map(number, own_range('f' if kind == 'float' else 'u')))}"
        else:
            black, white = settings.value_range
            # Highlights of a few floats may exceed white by far.
            top = (
                float(np.median([part.bright for part in values])) if kind == "float" and white < 2 else high
            )
            differ = another_unit(kind[0], low, top, settings.value_range)
            outside = values if differ or beside(low, high, settings.value_range) else []
            reads = f"values from {number(black)} to {number(white)}"
        if outside:
            have = count(len(outside), "image has", "images have")
            raise VitreousError(
                f"{have} more than 8 bits, with {noun} from {number(low)} to {number(high)}, but the network was "
                f"trained to read {reads}; give images on that scale, or of 8 bits."
            )


# ---- range of values


def _with_range(
    settings: Preprocess, facts: Sequence[Facts], value_range: tuple[float, float] | None
) -> tuple[Preprocess, list[str]]:
    """The settings with the values of black and white, and sentences about them."""
    colour = [fact.values for fact in facts if fact.values and fact.values.kind == "colour"]
    _refuse_dark_colour(colour, value_range)
    deep = [fact.values for fact in facts if fact.values and fact.values.kind != "colour"]
    given = value_range is not None
    if not deep:
        settings = replace(settings, value_range=value_range)
        return settings, (
            ["No grey image has more than 8 bits, so --value-range changes nothing."] if given else []
        )
    have = count(len(deep), "image has", "images have") + " more than 8 bits"
    low, high = min(values.low for values in deep), max(values.high for values in deep)
    span = f"{number(low)} to {number(high)}"
    if value_range is not None:
        black, white = value_range
        if min(high, white) - max(low, black) < (white - black) / 255:
            raise VitreousError(
                f"{have}, with values from {span}, which are all one grey with the value range {number(black)} to "
                f"{number(white)}; give another, such as --value-range {number(low)},{number(max(high, low + 1))}."
            )
    elif low == high:
        raise VitreousError(
            f"{have}, and every pixel of them has the value {number(low)}; leave these images out."
        )
    else:
        value_range = _found_range(deep, have, span)
    sentences = []
    if value_range is None:
        whites = sorted({values.white for values in deep if values.white})
        sentences.append(
            f"{have}; their files state values of white from {whites[0]} to {whites[-1]}, "
            "and each is read by its own (--value-range sets one for all)."
        )
    else:
        black, white = value_range
        bits = int(white + 1).bit_length() - 1
        of_bits = (
            f" ({bits} bits)" if not given and deep[0].kind == "integer" and white == 2**bits - 1 else ""
        )
        sentences.append(
            f"{have}; their values {number(black)} to {number(white)}{of_bits} become black to white"
            + (" (--value-range changes this)." if not given else ".")
        )
    rest = len(facts) - len(deep) - len(colour)
    if rest:
        keeps = count(rest, "other image has 8 bits and keeps its", "other images have 8 bits and keep their")
        sentences.append(f"The {keeps} values from 0 to 255.")
    gaps = sum(values.gaps for values in deep)
    if gaps:
        holds = count(gaps, "image holds", "images hold")
        sentences.append(f"{holds} values that are not finite; they become black.")
    return replace(settings, value_range=value_range), sentences


def _refuse_dark_colour(colour: Sequence[Values], value_range: tuple[float, float] | None) -> None:
    """Refuses colour of 16 bits whose values fill only the low bits, since Pillow keeps the high byte."""
    brightest = max((values.high for values in colour), default=SIXTEEN)
    if brightest <= NEARLY_BLACK and value_range != (0, SIXTEEN):
        have = count(len(colour), "image has", "images have")
        raise VitreousError(
            f"{have} 16 bits per channel of colour, but no value is above {brightest / 255:.1%} of white. Only the "
            "high byte can be read, so they would be nearly black; convert them to 8 bits per channel "
            f"(if they are that dark, give --value-range 0,{SIXTEEN}, in Python value_range=(0, {SIXTEEN}))."
        )


def _found_range(deep: Sequence[Values], have: str, span: str) -> tuple[float, float] | None:
    """Black and white of all images of more than 8 bits; None if each of their files states its own."""
    low, high = min(values.low for values in deep), max(values.high for values in deep)
    floats = sum(values.kind == "float" for values in deep)
    if 0 < floats < len(deep):
        raise VitreousError(
            f"{have}: {len(deep) - floats:,} are integers and {floats:,} are floats, so one black and white for all "
            f"cannot be decided; convert them to one type, or {MEND}."
        )
    if floats:
        found = FLOATS if FLOATS[0] <= low and high <= FLOATS[1] else (low, high)
    else:
        stated = {values.white for values in deep}
        if None not in stated and len(stated) > 1:
            return None
        if low < 0 or high > SIXTEEN:
            raise VitreousError(
                f"{have}, with integers from {span}, so black and white cannot be decided; {MEND}."
            )
        if None in stated:
            highest = max(values.high for values in deep if values.white is None)
            found = (0.0, float(next(2**bits - 1 for bits in BITS if highest < 2**bits)))
            others = sorted(white for white in stated if white not in (None, found[1]))
            if others:
                raise VitreousError(
                    f"{have}; some files state {others[0]} as white, and the values of the others reach "
                    f"{number(highest)}, so one white for all cannot be decided; {MEND}."
                )
        else:
            found = (0.0, float(max(white for white in stated if white)))
    typical_low = float(np.percentile([values.dark for values in deep], MIDDLE[0]))
    typical_high = float(np.percentile([values.bright for values in deep], MIDDLE[1]))
    if typical_high - typical_low <= FLAT * (found[1] - found[0]):
        raise VitreousError(
            f"{have}, with values from {span}. With {number(found[0])} as black and {number(found[1])} as white most "
            f"of them would be nearly one grey, since their values lie between {number(typical_low)} and "
            f"{number(typical_high)}; {MEND}."
        )
    return found


def _values(values: np.ndarray, origin: Origin) -> Values:
    """The facts about the values [H, W] of an image."""
    low, high = finite_range(values)
    if np.isnan(low):
        raise OutOfRange("no finite value", "leave it out")
    sample = values.ravel()[:: max(1, values.size // SAMPLED)]
    floats = values.dtype.kind == "f"
    gaps = floats and not np.isfinite(values).all()
    if gaps:
        sample = sample[np.isfinite(sample)]
    dark, bright = np.percentile(sample, TAILS) if sample.size else (low, high)
    return Values(
        "float" if floats else "integer", low, high, float(dark), float(bright), origin.white, bool(gaps)
    )


# ---- ground under transparency


def _with_ground(settings: Preprocess, facts: Sequence[Facts]) -> tuple[Preprocess, list[str]]:
    """The settings with the ground that shows what is drawn, and sentences about it."""
    transparent = sum(fact.transparent for fact in facts)
    if not transparent:
        return settings, []
    contrasts = [fact.contrast for fact in facts if fact.contrast is not None]
    scores = dict(zip(GROUNDS, np.percentile(contrasts, FEW, axis=0), strict=True)) if contrasts else {}
    ground, reason = settings.ground, ""
    if scores and scores[ground] < HIDDEN:
        best = max(scores, key=lambda name: (scores[name], name == ground))
        if best != ground:
            ground, reason = best, f", since {ground} would hide what is drawn on some"
    have = count(transparent, "image has", "images have")
    sentences = [f"{have} transparent pixels; the ground under them is {ground}{reason}."]
    empty = sum(fact.transparent and fact.contrast is None for fact in facts)
    if empty:
        show = count(empty, "image is wholly transparent and shows", "images are wholly transparent and show")
        sentences.append(f"{show} nothing but the ground.")
    return replace(settings, ground=ground), sentences


def _drawing(image: Image.Image) -> tuple[bool, tuple[float, ...] | None]:
    """Whether an RGBA image has transparent pixels, and the contrast of what is drawn to each ground.

    The contrast is the root of the mean squared distance of colours, weighted by opacity. It grows with the distance
    to the ground, and with the differences inside of what is drawn.
    """
    if image.getchannel("A").getextrema()[0] == 255:
        return False, None
    step = max(1, round((image.width * image.height / SAMPLED) ** 0.5))
    pixels = np.asarray(image)[::step, ::step].reshape(-1, 4).astype(np.float32)
    total = pixels[:, 3].sum()
    if not total:
        return True, None
    weights, colours = pixels[:, 3] / total, pixels[:, :3]
    # The mean of (c - g)² is that of c² - 2cg + g², so the pixels are summed once for all grounds g.
    mean, mean_square = float((weights @ colours).mean()), float((weights @ np.square(colours)).mean())
    return True, tuple(
        max(0.0, mean_square - 2 * level * mean + level**2) ** 0.5 for level in GROUNDS.values()
    )
