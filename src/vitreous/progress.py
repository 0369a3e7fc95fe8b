"""Progress of long work on standard error: one live line on a terminal, a new line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

from vitreous.wording import duration

T = TypeVar("T")

BAR_SHARE = 6  # the bar takes a sixth of the terminal's width
LIVE_SECONDS = 0.2
PLAIN_SECONDS = 15.0


class ProgressLine:
    """A bar, the share that is done, and a few parts of text.

    The bar's width depends on the terminal alone. Parts are shown whole or not at all: the last ones give way where
    the terminal is narrow.

    Args:
        stream: standard error by default.
        quiet_seconds: nothing is shown before, so that short work prints nothing.
    """

    def __init__(self, stream: TextIO | None = None, quiet_seconds: float = 0.0) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.next = time.monotonic() + quiet_seconds if quiet_seconds else 0.0
        self.width = 0

    def due(self) -> bool:
        """Whether it is time for another `show`; asking costs nothing."""
        return time.monotonic() >= self.next

    def show(self, share: float | None, parts: Sequence[str]) -> None:
        """Shows `share` (0 to 1, None where unknown) as a bar and in percent, then the non-empty `parts`.

        The most important part comes first.
        """
        self.next = time.monotonic() + (LIVE_SECONDS if self.live else PLAIN_SECONDS)
        parts = [part for part in parts if part]
        if self.live:
            line = fit(share, parts, shutil.get_terminal_size().columns - 1)
            self.stream.write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            percent = [] if share is None else [f"{share:4.0%}"]
            self.stream.write("  ".join((*percent, *parts)) + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Ends the live line, so that later text starts on a line of its own."""
        if self.width:
            self.stream.write("\n")
            self.stream.flush()
            self.width = 0


def fit(share: float | None, parts: Sequence[str], columns: int) -> str:
    """The live line, at most `columns` characters wide."""
    shown = []
    if share is not None:
        bar = columns // BAR_SHARE
        filled = round(share * bar)
        shown = [f"{'━' * filled}{'╌' * (bar - filled)} {share:4.0%}"]
    for part in parts:
        if len("  ".join((*shown, part))) > columns:
            break
        shown.append(part)
    return "  ".join(shown)


def track(items: Iterable[T], total: int, title: str, quiet_seconds: float = 2.0) -> Iterator[T]:
    """Passes `items` on and shows how many of `total` are done, how many a second, and the time left.

    Work that takes less than `quiet_seconds` shows nothing.
    """
    line = ProgressLine(quiet_seconds=quiet_seconds)
    start = time.monotonic()
    shown = False
    try:
        for done, item in enumerate(items, 1):
            yield item
            if line.due() or (shown and done == total):
                pace = done / max(time.monotonic() - start, 1e-9)
                left = f"{duration((total - done) / pace)} left" if done < total else ""
                line.show(done / total, (f"{title}: {done:,} of {total:,}", f"{rate(pace)}/s", left))
                shown = True
    finally:
        line.close()


def rate(number: float) -> str:
    """A number per second to at least two digits: "1,240", "12", "3.1", "0.25"."""
    return f"{number:,.0f}" if number >= 9.95 else f"{number:.2g}"
