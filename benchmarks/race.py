"""Lets competitors take turns on an idle machine, and compares them round by round."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROUND_SECONDS = 2.0  # about what one turn takes


class Arm:
    """One competitor: a process that sleeps until it is told to run steps."""

    def __init__(self, arm: Mapping[str, Any], python: str) -> None:
        command = [python, str(HERE / "arms.py"), json.dumps(arm)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.info = json.loads(self._line())
        one = self.seconds(1)
        self.steps = max(1, round(ROUND_SECONDS / one))

    def seconds(self, steps: int) -> float:
        """Seconds for that many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args[2:])} ended early")  # type: ignore[arg-type, index]
        return line

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def race(
    arms: Mapping[str, Mapping[str, Any]],
    rounds: int,
    python: str = sys.executable,
    say: Callable[[str], None] = print,
) -> dict[str, list[float]]:
    """Milliseconds a step of each arm in each round, the arms interleaved."""
    running: dict[str, Arm] = {}
    times: dict[str, list[float]] = {}
    try:
        for name, arm in arms.items():
            try:
                running[name] = Arm(arm, python)
            except RuntimeError as error:
                say(f"{name}: left out, for it does not run here ({error})")
        for turn in range(rounds):
            for name, arm_running in running.items():
                time.sleep(0.2)  # the last one's threads go to sleep
                times.setdefault(name, []).append(
                    1000 * arm_running.seconds(arm_running.steps) / arm_running.steps
                )
            say(
                f"round {turn + 1} of {rounds}: " + ", ".join(f"{n} {t[-1]:.0f} ms" for n, t in times.items())
            )
    finally:
        for arm_running in running.values():
            arm_running.end()
    return times


def ratio(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """How many times as fast: median over the rounds, smallest and largest."""
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
