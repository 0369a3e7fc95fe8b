"""Learning rates and image sizes as pure functions of the fraction of the run that is done.

A run's length may be fitted again while it runs, if the machine is slower or faster than forecast. `Timeline` keeps
those fits and maps a step to a fraction of the run without a jump. The schedules use only that fraction, so the
learning rate does not jump either. The fits are all that a resumed run needs to know every learning rate.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from vitreous.errors import VitreousError
from vitreous.recipe import ScheduleSection


@dataclass
class Timeline:
    """The fitted length of a run: `fits` holds (first step of the fit, total steps), in order."""

    fits: list[tuple[int, int]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of steps of the whole run by the last fit."""
        return self.fits[-1][1]

    def fit(self, step: int, total: int) -> None:
        """Fits the run to `total` steps, from `step` on.

        Raises:
            ValueError: `total` is less than `step`.
        """
        if total < max(step, 1):
            raise ValueError(f"a run at step {step} cannot have {total} steps")
        if self.fits and self.fits[-1][0] == step:
            self.fits.pop()
        self.fits.append((step, total))

    def fraction(self, step: int) -> float:
        """Fraction of the run before `step`, 0 to 1; continuous across fits."""
        fraction = 0.0
        for index in range(bisect_right([start for start, _ in self.fits], step)):
            start, total = self.fits[index]
            end = min(step, self.fits[index + 1][0]) if index + 1 < len(self.fits) else step
            if total > start:
                fraction += (1 - fraction) * (end - start) / (total - start)
        return min(fraction, 1.0)


@dataclass(frozen=True)
class Phase:
    """A part of a run, which ends at the share `until` of the steps; its images are `side` x `side` pixels."""

    until: float
    side: int


def phases(section: ScheduleSection, image_size: int) -> tuple[Phase, ...]:
    """The phases of a run on images of `image_size` pixels, in order. The last has full size and ends at 1.

    Raises:
        VitreousError: a share of `image_size` is less than a pixel.
    """
    small = zip(section.small_until, section.small_sides, strict=True)
    all_phases = (*(Phase(until, round(side * image_size)) for until, side in small), Phase(1.0, image_size))
    if any(phase.side < 1 for phase in all_phases):
        raise VitreousError(
            f"schedule.small_sides has {min(section.small_sides):g}, which leaves no pixel of {image_size}; "
            f"give shares of at least {1 / image_size:.2g}."
        )
    return all_phases


def phase_at(phases: Sequence[Phase], fraction: float) -> int:
    """The index of the phase at the share `fraction` of the steps."""
    return min(bisect_right([phase.until for phase in phases], fraction), len(phases) - 1)


def linear(position: float, total: int, warmup: float) -> float:
    """Factor of the peak learning rate: a linear rise over the share `warmup` of the run, then a linear fall to 0.

    Args:
        position: step from 0 to `total`; fractional after a fit.
        total: number of steps.
        warmup: 0 to 1.
    """
    rise = warmup * total
    if position + 1 <= rise:
        return (position + 1) / rise
    return max(0.0, (total - position) / max(total - rise, 1.0)) if total > rise else 1.0


def onecycle(position: float, total: int, warmup: float) -> tuple[float, float]:
    """Factor of the peak learning rate, and beta1, like torch's OneCycleLR with its defaults.

    The factor follows a cosine from 1/25 to 1 and down to 1/25e4, and beta1 one from 0.95 to 0.85 and back (Smith &
    Topin, arXiv 1708.07120). The arguments are those of `linear`.
    """

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    peak = warmup * total - 1
    if position <= peak:
        share = position / peak if peak > 0 else 1.0
        return cosine(1 / 25, 1.0, share), cosine(0.95, 0.85, share)
    share = min(1.0, (position - peak) / max(total - 1 - peak, 1e-9))
    return cosine(1.0, 1 / 25e4, share), cosine(0.85, 0.95, share)
