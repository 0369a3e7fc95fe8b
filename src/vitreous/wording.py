"""Numbers in text: "1 step", "2,026 steps", "12:30"."""

from __future__ import annotations


def count(number: int, noun: str, plural: str = "") -> str:
    """`number` with its noun: "1 step", "2,026 steps". `plural` is for nouns that take more than an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """`seconds` as on a clock: "0:07", "12:30", "3:05:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
