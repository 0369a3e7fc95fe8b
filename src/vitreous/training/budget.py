"""The end of a run: its number of steps from a budget, fitted to the clock while it runs."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from vitreous.machine import wait
from vitreous.recipe import Budget
from vitreous.training.cost import RunCost
from vitreous.training.schedule import Timeline

MEASURED_STEPS = 30  # number of recent steps behind the forecast
FEW_STEPS = 5  # fewer measured steps make no forecast
TOLERANCE = 0.005  # share of the budget that a forecast may miss before the remaining steps are fitted again
REPORT_SECONDS = 2.0  # for the bundle and the report
VALIDATION_SHARE = 0.05  # of the training time


@dataclass(frozen=True)
class Sizes:
    """Number of images in a step and in each evaluated split, and of steps in an epoch."""

    batch: int
    steps_per_epoch: int
    val: int
    test: int


def planned_steps(budget: Budget, cost: RunCost, sizes: Sizes) -> int:
    """The number of steps in a budget: a forecast for minutes, exact for all other units."""
    flops, seconds = cost.mean()
    steps = {
        "steps": lambda: budget.amount,
        "epochs": lambda: budget.amount * sizes.steps_per_epoch,
        "flops": lambda: round(budget.amount / max(flops, 1)),
        "minutes": lambda: (60 * budget.amount - final_seconds(cost, sizes)) / seconds,
    }[budget.unit]()
    return max(1, math.floor(steps))


def final_seconds(cost: RunCost, sizes: Sizes) -> float:
    """Forecast of the seconds from the last step to the printed test figures."""
    return (sizes.val + sizes.test) * cost.full.evaluation_seconds / sizes.batch + REPORT_SECONDS


class BudgetKeeper(pl.Callback):
    """Times the run, fits its length to a budget of minutes, and stops it at the end.

    Args:
        timeline: the run's length, fitted in place and saved in checkpoints.
        budget: the amount that the run may cost. All units but minutes are exact.
        cost: of the run's steps.
        sizes: number of images in a step and in each split.
        strengths: the values of the keys that follow the epochs, by the run's number of steps.
        began: when the budget's clock started, on `time.monotonic`.
        recorded: the later fits of a run that is repeated, applied at their steps. No new fits are then made.
        note: is called with a line for each fit.

    Attributes:
        follow: is called with the strengths of each later fit.
    """

    def __init__(
        self,
        timeline: Timeline,
        budget: Budget,
        cost: RunCost,
        sizes: Sizes,
        *,
        strengths: MutableMapping[int, dict[str, float]] | None = None,
        began: float,
        recorded: Sequence[tuple[int, int]] | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.timeline, self.budget, self.cost, self.sizes = timeline, budget, cost, sizes
        self.began, self.recorded, self.note = began, list(recorded or ()), note
        self.strengths = defaultdict(dict) if strengths is None else strengths
        self.follow: Callable[[Mapping[str, float]], None] = lambda strengths: None
        fits = budget.unit == "minutes" and recorded is None
        self.deadline = began + 60 * budget.amount if fits else None
        self.measured_image_seconds: float | None = None
        self.recent: deque[tuple[float, float]] = deque(maxlen=MEASURED_STEPS)  # (measured, forecast) seconds
        self.flops = 0
        self.earlier_seconds = self.earlier_total = 0.0  # of earlier processes of this run
        self.started = self.ended = self.mark = self.last_fit = 0.0
        self.validate_every = self._validate_every(0)

    def _validate_every(self, step: int) -> int:
        """Epochs from one validation to the next, for which validation takes `VALIDATION_SHARE` of the time."""
        epoch_seconds = self.sizes.steps_per_epoch * self.seconds_ahead(step)
        return max(1, round(self.validation_seconds / (VALIDATION_SHARE * epoch_seconds)))

    @property
    def image_seconds(self) -> float:
        """Seconds to evaluate one image: measured at the last validation, or the forecast at the current pace."""
        if self.measured_image_seconds is not None:
            return self.measured_image_seconds
        return self.cost.full.evaluation_seconds / self.sizes.batch * self.pace

    @property
    def validation_seconds(self) -> float:
        return self.image_seconds * self.sizes.val

    @property
    def final_seconds(self) -> float:
        """Seconds from the last step to the printed test figures."""
        return self.image_seconds * (self.sizes.val + self.sizes.test) + REPORT_SECONDS

    @property
    def train_seconds(self) -> float:
        """Seconds from the first training step to the latest, validation included, over all processes of the run."""
        return self.earlier_seconds + self.ended - self.started

    @property
    def total_seconds(self) -> float:
        """Seconds from the opened data until now, over all processes of the run."""
        return self.earlier_total + time.monotonic() - self.began

    @property
    def step_seconds(self) -> float:
        """Mean seconds of the recent steps; 0 before the second step."""
        return sum(measured for measured, _ in self.recent) / len(self.recent) if self.recent else 0.0

    @property
    def pace(self) -> float:
        """Median ratio of measured to forecast seconds of the recent steps.

        A measured forecast stands until a few steps are known. A guessed one is replaced after the first.
        """
        if len(self.recent) < (FEW_STEPS if self.deadline is not None else 1):
            return 1.0
        return statistics.median(measured / max(forecast, 1e-9) for measured, forecast in self.recent)

    def seconds_ahead(self, step: int) -> float:
        """Mean seconds of a step from `step` to the end, at the current pace."""
        return self.cost.mean(self.timeline.fraction(step))[1] * self.pace

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = self.ended = self.mark = self.last_fit = time.monotonic()
        if trainer.global_step >= self.timeline.total:  # resumed with nothing but the evaluation left
            self._stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        wait(module.device.type)  # for the training steps that a GPU still has to compute
        self.mark = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        now = time.monotonic()
        if self.sizes.val:
            self.measured_image_seconds = (now - self.mark) / self.sizes.val
            trainer.check_val_every_n_epoch = self.validate_every = self._validate_every(trainer.global_step)
        self.mark = self.ended = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self.timeline.total:
            # A GPU is a few steps behind, and the clock has to show when the last one is done.
            wait(module.device.type)
        now = time.monotonic()
        cost = self.cost.at(self.timeline.fraction(trainer.global_step - 1))
        self.flops += cost.flops
        if self.ended > self.started:  # the first step of a process compiles and warms up
            self.recent.append((now - self.mark, cost.seconds))
        self.mark = self.ended = now
        if self.deadline is not None:
            self._fit(trainer.global_step, now)
        while self.recorded and self.recorded[0][0] <= trainer.global_step:
            self._fit_to(*self.recorded.pop(0))
        if trainer.global_step >= self.timeline.total:
            self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        trainer.should_stop = True
        trainer.limit_val_batches = (
            0  # Lightning would validate once more, and the bundle is evaluated anyway
        )

    def _fit(self, step: int, now: float) -> None:
        """Fits the remaining steps to the remaining time if the forecast misses it."""
        assert self.deadline is not None
        left = self.deadline - now - self.final_seconds
        if now < self.deadline and len(self.recent) < FEW_STEPS:
            return  # a slow step at the start is no forecast
        if left > 0 and now - self.last_fit < self.budget.amount:
            return  # at most one fit in a sixtieth of the budget
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
            f"step {step:,}: at {1000 * self.step_seconds:.0f} ms a step the run would end {abs(missed):.1f} s "
            f"{'late' if missed > 0 else 'early'}, so {self.timeline.total:,} steps become {total:,}"
        )
        self._fit_to(step, total)

    def _fit_to(self, step: int, total: int) -> None:
        self.timeline.fit(step, total)
        self.follow(self.strengths[total])

    def state_dict(self) -> dict[str, Any]:
        fits = [list(fit) for fit in self.timeline.fits]
        strengths = {total: self.strengths[total] for _, total in fits}
        seconds = {"train_seconds": self.train_seconds, "total_seconds": self.total_seconds}
        return {"fits": fits, "strengths": strengths, "flops": self.flops, **seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues a run with its length as last fitted. No more fits are made, so the rest is repeatable."""
        self.timeline.fits[:] = [tuple(fit) for fit in state["fits"]]
        self.recorded = [fit for fit in self.recorded if fit[0] > self.timeline.fits[-1][0]]
        self.strengths.update(state.get("strengths", {}))  # earlier checkpoints have none
        self.follow(self.strengths[self.timeline.total])
        self.earlier_seconds, self.earlier_total = state["train_seconds"], state["total_seconds"]
        self.flops = state["flops"]
        self.deadline = None
