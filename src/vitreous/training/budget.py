"""When a run ends: its timeline from a budget, kept to while it runs."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from vitreous.recipe import Budget
from vitreous.training.cost import RunCost
from vitreous.training.schedule import Timeline

MEASURED_STEPS = 30  # steps whose times make the forecast
FEW_STEPS = 5  # below which they make none
TOLERANCE = 0.005  # of the budget, by which a forecast may miss before the rest is fitted again
REPORT_SECONDS = 2.0  # from the last figure to the end: bundle, pictures, report
VALIDATION_SHARE = 0.05  # of a training's time


@dataclass(frozen=True)
class Sizes:
    """Pictures in a step and in each split, and steps in an epoch."""

    batch: int
    steps_per_epoch: int
    val: int
    test: int


def planned_steps(budget: Budget, cost: RunCost, sizes: Sizes) -> int:
    """How many steps a budget amounts to; a forecast for minutes, exact for all others."""
    flops, seconds = cost.mean()
    steps = {
        "steps": lambda: budget.amount,
        "epochs": lambda: budget.amount * sizes.steps_per_epoch,
        "flops": lambda: round(budget.amount / max(flops, 1)),
        "minutes": lambda: (60 * budget.amount - final_seconds(cost, sizes)) / seconds,
    }[budget.unit]()
    return max(1, math.floor(steps))


def final_seconds(cost: RunCost, sizes: Sizes) -> float:
    """Forecast of the time from the last step to the printed test figures."""
    return (sizes.val + sizes.test) * cost.full.evaluation_seconds / sizes.batch + REPORT_SECONDS


class BudgetKeeper(pl.Callback):
    """Times the run, fits a budget of minutes as it goes, and stops at the end.

    Args:
        timeline: the run's length, fitted in place and kept in checkpoints.
        budget: the amount that the run may cost; all but minutes are exact.
        cost: of its steps.
        began: when the budget's clock started, on `time.monotonic`.
        recorded: later fits of a run that is repeated, applied at their steps; none is made here then.
        note: is told of each fit, for the log.
    """

    def __init__(
        self,
        timeline: Timeline,
        budget: Budget,
        cost: RunCost,
        sizes: Sizes,
        *,
        began: float,
        recorded: Sequence[tuple[int, int]] | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.timeline, self.budget, self.cost, self.sizes = timeline, budget, cost, sizes
        self.began, self.recorded, self.note = began, list(recorded or ()), note
        fits = budget.unit == "minutes" and recorded is None
        self.deadline = began + 60 * budget.amount if fits else None
        self.measured_picture_seconds: float | None = None
        self.recent: deque[tuple[float, float]] = deque(maxlen=MEASURED_STEPS)  # seconds: measured, forecast
        self.flops = 0
        self.earlier_seconds = self.earlier_total = 0.0  # of processes before this one
        self.started = self.ended = self.mark = self.last_fit = 0.0
        self.validate_every = self._validate_every(0)

    def _validate_every(self, step: int) -> int:
        """Epochs between two validations, so many that the share of validation is kept."""
        epoch_seconds = self.sizes.steps_per_epoch * self.seconds_ahead(step)
        return max(1, round(self.validation_seconds / (VALIDATION_SHARE * epoch_seconds)))

    @property
    def picture_seconds(self) -> float:
        """Time to evaluate one picture: of the last validation, or the cost's, scaled as steps have turned out."""
        if self.measured_picture_seconds is not None:
            return self.measured_picture_seconds
        return self.cost.full.evaluation_seconds / self.sizes.batch * self.pace

    @property
    def validation_seconds(self) -> float:
        return self.picture_seconds * self.sizes.val

    @property
    def final_seconds(self) -> float:
        """From the last step to the printed test figures."""
        return self.picture_seconds * (self.sizes.val + self.sizes.test) + REPORT_SECONDS

    @property
    def train_seconds(self) -> float:
        """From the first training step to the last so far, validation included, all processes together."""
        return self.earlier_seconds + self.ended - self.started

    @property
    def total_seconds(self) -> float:
        """From the data being at hand until now, all processes together."""
        return self.earlier_total + time.monotonic() - self.began

    @property
    def step_seconds(self) -> float:
        """Mean time of the recent steps; 0 before the second."""
        return sum(measured for measured, _ in self.recent) / len(self.recent) if self.recent else 0.0

    @property
    def pace(self) -> float:
        """How many times as long as forecast the recent steps took: their median.

        Where the forecast was measured it holds until there are a few steps; a guess gives way to the first.
        """
        if len(self.recent) < (FEW_STEPS if self.deadline is not None else 1):
            return 1.0
        return statistics.median(measured / max(forecast, 1e-9) for measured, forecast in self.recent)

    def seconds_ahead(self, step: int) -> float:
        """Mean time of a step from `step` to the end, as things go."""
        return self.cost.mean(self.timeline.fraction(step))[1] * self.pace

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = self.ended = self.mark = self.last_fit = time.monotonic()
        if trainer.global_step >= self.timeline.total:  # resumed when nothing but evaluation was left
            self._stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.mark = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        now = time.monotonic()
        if self.sizes.val:
            self.measured_picture_seconds = (now - self.mark) / self.sizes.val
            trainer.check_val_every_n_epoch = self.validate_every = self._validate_every(trainer.global_step)
        self.mark = self.ended = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        cost = self.cost.at(self.timeline.fraction(trainer.global_step - 1))
        self.flops += cost.flops
        if self.ended > self.started:  # the first step of a process compiles and warms up
            self.recent.append((now - self.mark, cost.seconds))
        self.mark = self.ended = now
        if self.deadline is not None:
            self._fit(trainer.global_step, now)
        while self.recorded and self.recorded[0][0] <= trainer.global_step:
            self.timeline.fit(*self.recorded.pop(0))
        if trainer.global_step >= self.timeline.total:
            self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        trainer.should_stop = True
        trainer.limit_val_batches = 0  # Lightning would validate once more; the bundle's own figures follow

    def _fit(self, step: int, now: float) -> None:
        """Fits the steps that are left to the time that is left, where the forecast misses."""
        assert self.deadline is not None
        left = self.deadline - now - self.final_seconds
        if now < self.deadline and len(self.recent) < FEW_STEPS:
            return  # one slow step at the start says nothing
        if left > 0 and now - self.last_fit < self.budget.amount:
            return  # a sixtieth of the budget between two looks
        every = self.validate_every * self.sizes.steps_per_epoch
        validations = self.timeline.total // every - step // every
        per_step = self.seconds_ahead(step)
        forecast = (self.timeline.total - step) * per_step + validations * self.validation_seconds
        missed = forecast - left
        self.last_fit = now
        if abs(missed) <= TOLERANCE * 60 * self.budget.amount:
            return
        per_step += self.validation_seconds / every
        total = max(step, self.timeline.total - round(missed / per_step)) if per_step else step
        self.note(
            f"step {step}: {1000 * self.step_seconds:.0f} ms a step, the forecast missed by {missed:+.1f} s, "
            f"so {self.timeline.total} steps become {total}"
        )
        self.timeline.fit(step, total)

    def state_dict(self) -> dict[str, Any]:
        fits = [list(fit) for fit in self.timeline.fits]
        seconds = {"train_seconds": self.train_seconds, "total_seconds": self.total_seconds}
        return {"fits": fits, "flops": self.flops, **seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues a run: its length stays as it was last fitted, which makes the rest repeatable."""
        self.timeline.fits[:] = [tuple(fit) for fit in state["fits"]]
        self.recorded = [fit for fit in self.recorded if fit[0] > self.timeline.fits[-1][0]]
        self.earlier_seconds, self.earlier_total = state["train_seconds"], state["total_seconds"]
        self.flops = state["flops"]
        self.deadline = None
