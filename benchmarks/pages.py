"""Fills the tables of a page from records."""

from __future__ import annotations

from pathlib import Path


def fill(file: Path, table: str, lines: list[str]) -> None:
    """Replaces what is between a table's two markers in `file`.

    Raises:
        ValueError: the page has no such markers.
    """
    start, end = f"<!-- table {table}: made by benchmarks/leaderboard.py -->", f"<!-- end {table} -->"
    text = file.read_text(encoding="utf-8")
    if start not in text or end not in text:
        raise ValueError(f"{file.name} has no markers for the table {table}")
    before, after = text[: text.index(start) + len(start)], text[text.index(end) :]
    file.write_text("\n".join([before, "", *lines, "", after]), encoding="utf-8")
