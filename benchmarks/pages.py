"""Fills the tables of a page from records."""

from __future__ import annotations

from pathlib import Path


def fill(file: Path, table: str, lines: list[str]) -> None:
    """Replaces what is between a table's two markers in `file`.

    Raises:
        ValueError: the page has no such markers.
    """
    start = f"<!-- table {table}: made by benchmarks/leaderboard.py -->\n"
    end = f"<!-- end {table} -->"
    text = file.read_text(encoding="utf-8")
    if start not in text or end not in text:
        raise ValueError(f"{file.name} has no markers for the table {table}")
    before, rest = text.split(start, 1)
    file.write_text(before + start + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
