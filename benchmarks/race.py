"""Races competitors on an otherwise idle machine and compares them round by round.

Every competitor is a process of its own that sleeps until its turn (`arms.py`). In each round every competitor runs
for about two seconds, in an order drawn anew for the round, so that neither a drifting clock rate nor the neighbour
before it favours one of them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vitreous.machine import Machine, instruction_sets

HERE = Path(__file__).parent
T = TypeVar("T")
ROUND_SECONDS = 2.0  # of each competitor in each round
MIN_STEPS = 3  # in each round, however slow a competitor is
RESAMPLES = 4000  # of the bootstrap


def add_race_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="turns of each competitor (default: 7)")
    parser.add_argument("--seconds", type=float, default=ROUND_SECONDS, help="of a turn (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the order within the rounds (default: 0)")


@dataclass
class Race:
    """The measurements of a race.

    Attributes:
        ms: milliseconds per step, one value per round, by competitor.
        orders: the competitors in the order in which they ran, one list per round.
        steps: steps that one value is the mean of, by competitor.
        ready: what each process reported before the race, by competitor.
    """

    ms: dict[str, list[float]] = field(default_factory=dict)
    orders: list[list[str]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The measurements as plain JSON values; `orders` holds indices into the keys of `ms`."""
        place = {name: index for index, name in enumerate(self.ms)}
        return {
            "ms": {name: [round(value, 3) for value in values] for name, values in self.ms.items()},
            "steps_per_round": self.steps,
            "orders": [[place[name] for name in order] for order in self.orders],
        }


def print_now(line: str) -> None:
    print(line, flush=True)


class Competitor:
    """A process that sleeps until it is asked to run steps."""

    def __init__(self, arm: Mapping[str, Any], python: str) -> None:
        command = [python, str(HERE / "arms.py"), json.dumps(arm)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready: dict[str, Any] = self._answer(dict)

    def seconds(self, steps: int) -> float:
        """Runs `steps` steps and returns the seconds they took."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer(float)

    def _answer(self, kind: type[T]) -> T:
        """The next line that is JSON of this kind. Other lines come from libraries that print."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            if isinstance(answer, kind):
                return answer
        raise RuntimeError(f"{' '.join(self.process.args[2:])} ended early")  # type: ignore[arg-type, index]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def race(
    arms: Mapping[str, Mapping[str, Any]],
    rounds: int,
    *,
    seed: int = 0,
    round_seconds: float = ROUND_SECONDS,
    required: Collection[str] = (),
    python: str = sys.executable,
    say: Callable[[str], None] = print_now,
) -> Race:
    """Starts a process for each of `arms` and races them.

    Args:
        arms: what each competitor runs, by name; see `arms.build`.
        rounds: how often each competitor takes its turn.
        seed: seed of the order within the rounds.
        round_seconds: about how long a turn takes; never fewer than `MIN_STEPS` steps.
        required: the competitors without which the race is worth nothing.
        python: interpreter of the processes.
        say: called with each line of progress.

    Returns:
        The measurements. A competitor that cannot start here is reported and left out.

    Raises:
        SystemExit: a required competitor cannot start here.
    """
    result = Race()
    competitors: dict[str, Competitor] = {}
    try:
        for name, arm in arms.items():
            began = time.monotonic()
            try:
                competitors[name] = competitor = Competitor(arm, python)
            except RuntimeError as error:
                if name in required:
                    raise SystemExit(
                        f"The race needs {name}, which does not run here; its error is above."
                    ) from error
                say(f"{name}: left out, because it does not run here ({error})")
                continue
            result.ms[name] = []
            result.ready[name] = competitor.ready
            result.steps[name] = max(MIN_STEPS, round(round_seconds / competitor.seconds(1)))
            mode = (
                f", in its best mode: {competitor.ready['mode_text']}" if "mode" in competitor.ready else ""
            )
            say(f"{name}: ready after {time.monotonic() - began:.0f} s{mode}")
        result.orders = random_orders(list(competitors), rounds, seed)
        for number, order in enumerate(result.orders, 1):
            for name in order:
                time.sleep(0.2)  # lets the threads of the one before go to sleep
                steps = result.steps[name]
                result.ms[name].append(1000 * competitors[name].seconds(steps) / steps)
            latest = ", ".join(f"{name} {values[-1]:.0f} ms" for name, values in result.ms.items())
            say(f"round {number} of {rounds}: {latest}")
    finally:
        for competitor in competitors.values():
            competitor.end()
    return result


def random_orders(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """An order of `names` for each round, drawn with `seed`."""
    generator = random.Random(seed)
    return [generator.sample(names, len(names)) for _ in range(rounds)]


def compare(times: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """How many times as long as `reference` something takes, from the times of both in the same rounds.

    Returns:
        `median`, `lowest` and `highest` of the ratios of the rounds, and `interval`, the 95 % interval of the median.
    """
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    return {
        "median": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "interval": median_interval(ratios),
    }


def median_interval(values: Sequence[float], seed: int = 0) -> list[float]:
    """The 95 % interval of the median of `values`, by bootstrap."""
    generator = random.Random(seed)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return [medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES) - 1]]


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """A comparison as "1.25 (1.22 to 1.31)": the median of the ratios and their range."""
    return f"{comparison['median']:.2f} ({comparison['lowest']:.2f} to {comparison['highest']:.2f})"


def surroundings(machine: Machine, packages: Sequence[str] = ("torch",)) -> dict[str, Any]:
    """The fields `machine` and `versions` of a record."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "machine": machine.record() | {"instruction_sets": instruction_sets()},
        "versions": {"python": sys.version.split()[0]} | versions,
    }
