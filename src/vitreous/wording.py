"""Numbers in text: "1 step", "2,026 steps", "12:30", "6.5e13", "87.5 %"."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int, noun: str, plural: str = "") -> str:
    """`number` with its noun: "1 step", "2,026 steps". `plural` is for nouns that take more than an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    """`text` on one line, without characters that would control a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def cell_text(text: str) -> str:
    """A text in a table that no spreadsheet takes for a formula; one that could be gets an apostrophe in front."""
    return f"'{text}" if text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def duration(seconds: float) -> str:
    """`seconds` as on a clock: "0:07", "12:30", "3:05:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def scientific(number: float, digits: int = 2) -> str:
    """A large number to `digits` significant digits: "6.5e13", "1e14"."""
    mantissa, e, exponent = f"{number:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def percent(share: float) -> str:
    """A share from 0 to 1 in percent: "87.5 %"."""
    return f"{100 * share:.1f} %"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more: "ant, bee and 3 more"."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def series(names: Sequence[str], word: str = "and") -> str:
    """Names in a sentence: "ant, bee and cat"."""
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
