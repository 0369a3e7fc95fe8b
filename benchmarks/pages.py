"""Fills the tables of Markdown pages from the records."""

from __future__ import annotations

from pathlib import Path


def fill(file: Path, table: str, lines: list[str], script: str = "leaderboard.py") -> None:
    """Replaces what is between the two markers of a table in a page.

        <!-- table NAME: made by benchmarks/leaderboard.py -->
        <!-- end NAME -->

    Args:
        table: NAME in the markers.
        lines: of the table.
        script: the benchmark that makes it, in the first marker.

    Raises:
        ValueError: the page does not have both markers once, in this order.
    """
    text = file.read_text(encoding="utf-8")
    start, end = markers(table, script)
    if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        raise ValueError(f"{file} needs one line {start!r} and, below it, one line {end!r}; add them.")
    before, after = text[: text.index(start) + len(start)], text[text.index(end) :]
    file.write_text("\n".join([before, "", *lines, "", after]), encoding="utf-8")


def markers(table: str, script: str = "leaderboard.py") -> tuple[str, str]:
    return f"<!-- table {table}: made by benchmarks/{script} -->", f"<!-- end {table} -->"
