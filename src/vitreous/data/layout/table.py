"""Reads the one table that gives images their labels: labels.csv or labels.tsv."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vitreous.data.layout.names import stem_of, text_of
from vitreous.data.layout.split_names import split_of
from vitreous.data.store import SPLIT_NAMES
from vitreous.errors import VitreousError
from vitreous.files import human_size
from vitreous.wording import count, series, shortened

TABLES = ("labels.csv", "labels.tsv")  # in any letter case
MAX_BYTES = 64 * 2**20
EXAMPLE = "file,label or file,label,split"

# Names of the columns in the order in which they are chosen, in lower case and with "_" for all that is no letter.
_COLUMNS = {
    "file": (
        "file filename file_name files path filepath file_path image_path imagepath img_path image_file image_filename "
        "image image_name imagename img img_name picture photo image_id imageid img_id id_code name id"
    ),
    "split": "split set subset partition",
    "group": "group",
    "label": "label labels label_name class class_name classname class_label category category_name target y",
}


class UnusableTable(VitreousError):  # noqa: N818 (the name says what it is)
    """A table of this name that does not give labels. Class folders beside it can be used instead."""


@dataclass(frozen=True)
class Row:
    """What a line of the table says about an image. `split` and `group` are "" if there is no such column."""

    file: str
    label: str
    split: str
    group: str
    line: int


@dataclass(frozen=True)
class Table:
    """The content of a table of labels.

    Attributes:
        name: its file name.
        rows: one or more.
        columns: the names of the columns that hold "file" and "label", and "split" and "group" if there are any.
        unused: the names of the other columns.
        renamed: cells of the column of splits that stand for a split of another name, such as "holdout" for test.
    """

    name: str
    rows: tuple[Row, ...]
    columns: Mapping[str, str]
    unused: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def sentence(self) -> str:
        """Where the labels come from."""
        parts = [("labels", "label"), ("splits", "split"), ("groups", "group")]
        known = [
            f"{plural} from its column {self.columns[key]}" for plural, key in parts if key in self.columns
        ]
        sentence = f"{self.name} gives the {series(known)}; the names of folders give no labels."
        if self.renamed:
            sentence += f" {shortened([f'{cell!r} is {split}' for cell, split in self.renamed])}."
        if not self.unused:
            return sentence
        columns = "column" if len(self.unused) == 1 else "columns"
        hint = (
            ""
            if "group" in self.columns
            else "; name one of them group to keep its images on one side of each cut"
        )
        return f"{sentence} Not used: its {columns} {shortened(self.unused)}{hint}."


def read_table(name: str, data: bytes) -> Table:
    """Reads a table with a header, separated by commas, semicolons or tabs, in UTF-8 or UTF-16.

    Args:
        name: its path, for messages.

    Raises:
        UnusableTable: it is not a table of files and labels.
        VitreousError: a line is wrong.
    """
    if len(data) > MAX_BYTES:
        raise VitreousError(
            f"{name} has {human_size(len(data))}; a table of labels may have {human_size(MAX_BYTES)}."
        )
    lines = _cells(name, data)
    header, _ = next(lines, ([], 0))
    columns = _find_columns(name, header)
    rows = []
    for cells, line in lines:
        if any(cells[len(header) :]):
            raise VitreousError(
                f"Line {line} of {name} has more cells than the header; put names with a separator into quotes."
            )
        values = {key: cells[at] if at < len(cells) else "" for key, at in columns.items()}
        rows.append(Row(_clean_path(name, line, values["file"]), values["label"], values.get("split", ""),
                        values.get("group", ""), line))  # fmt: skip
    if not rows:
        raise UnusableTable(f"{name} has no lines below its header; add a line for each image.")
    for key in ("split", "group"):
        if not any(getattr(row, key) for row in rows):
            columns.pop(key, None)
    used = {key: header[at] for key, at in columns.items()}
    unused = tuple(title for title in header if title and title not in used.values())
    checked = tuple(_checked(name, row, columns) for row in rows)
    renamed = {
        row.split: known.split
        for row, known in zip(rows, checked, strict=True)
        if row.split.lower() not in (known.split, "validation", "")
    }
    return Table(name, checked, used, unused, tuple(sorted(renamed.items())))


def _cells(name: str, data: bytes) -> Iterator[tuple[list[str], int]]:
    """The stripped cells of each line that is not empty, with its number."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeError:
        raise UnusableTable(f"{name} is not in UTF-8; save it as CSV in UTF-8.") from None
    first, _, rest = text.partition("\n")
    if first.lower().startswith("sep="):  # Excel's hint
        text, skipped = rest, 1
        first = rest.partition("\n")[0]
    else:
        skipped = 0
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield stripped, reader.line_num + skipped
    except csv.Error as error:
        raise UnusableTable(
            f"{name} is no table of text ({error}); write one with the header {EXAMPLE}."
        ) from None


def _find_columns(name: str, header: Sequence[str]) -> dict[str, int]:
    """The positions of the columns. The only column of an unknown name holds the labels if no other does."""
    plain = [re.sub(r"[\W_]+", "_", cell.casefold()).strip("_") for cell in header]
    columns: dict[str, int] = {}
    for key, aliases in _COLUMNS.items():
        position = next((plain.index(alias) for alias in aliases.split() if alias in plain), None)
        if position is not None and position not in columns.values():
            columns[key] = position
    others = [
        at
        for at, cell in enumerate(plain)
        if at not in columns.values() and cell and not re.fullmatch(r"unnamed_\d+|index", cell)
    ]
    if "label" not in columns and len(others) == 1:
        columns["label"] = others[0]
    missing = [key for key in ("file", "label") if key not in columns]
    if missing:
        raise UnusableTable(
            f"The first line of {name} names no column {series(missing, 'or')} "
            f"(it is {','.join(header)[:60] or 'empty'}); begin it with a header such as {EXAMPLE}."
        )
    return columns


def _clean_path(name: str, line: int, file: str) -> str:
    if not file:
        raise VitreousError(f"Line {line} of {name} names no file; complete it or remove the line.")
    path = file.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in parts:
        raise VitreousError(
            f"Line {line} of {name} names {file}, which leads out of the folder; give paths relative to {name}."
        )
    return "/".join(parts)


def _checked(name: str, row: Row, columns: Collection[str]) -> Row:
    for key in ("label", "split", "group"):
        if key in columns and not getattr(row, key):
            raise VitreousError(f"Line {row.line} of {name} has no {key}; complete it or remove the line.")
    split = split_of(row.split)
    if "split" in columns and not split:
        raise VitreousError(
            f"Line {row.line} of {name} has the split {row.split!r}; write {series(SPLIT_NAMES, 'or')}."
        )
    return Row(row.file, text_of(row.label), split, text_of(row.group), row.line)


def match_rows(table: Table, images: Collection[str]) -> tuple[dict[str, Row], list[tuple[str, str]]]:
    """Finds the image of each row: by its path, or else as the only image of that name, with or without its suffix.

    An image in a folder that contradicts the row's, such as test/0.png for train/0.png, is not the image of the row.

    Args:
        images: paths relative to the folder of the table.

    Returns:
        The row of each image, and (name in the table, path) of those whose path is another.

    Raises:
        UnusableTable: no file of the table is there.
        VitreousError: some are not there, could be several images, or are named twice with different labels.
    """
    by_path = {text_of(image): image for image in images}
    by_name: dict[str, list[str]] = {}
    for image in images:
        base = text_of(image.rpartition("/")[2]).casefold()
        for key in {base, stem_of(base)}:
            by_name.setdefault(key, []).append(image)
    rows: dict[str, Row] = {}
    elsewhere: list[tuple[str, str]] = []
    missing: list[str] = []
    for row in table.rows:
        file = text_of(row.file)
        image = by_path.get(file, "")
        if not image:
            folder, _, base = file.rpartition("/")
            candidates = [
                image
                for image in by_name.get(base.casefold(), [])
                if _folders_agree(folder, text_of(image.rpartition("/")[0]))
            ]
            if len(candidates) > 1:
                raise VitreousError(
                    f"Line {row.line} of {table.name} names {file}, which may be {text_of(candidates[0])} or "
                    f"{text_of(candidates[1])}; write the path of the file."
                )
            if not candidates:
                missing.append(file)
                continue
            image = candidates[0]
            elsewhere.append((file, text_of(image)))
        other = rows.setdefault(image, row)
        if (other.label, other.split, other.group) != (row.label, row.split, row.group):
            what = next(
                key for key in ("label", "split", "group") if getattr(other, key) != getattr(row, key)
            )
            raise VitreousError(
                f"Lines {other.line} and {row.line} of {table.name} give {file} the {what}s {getattr(other, what)} and "
                f"{getattr(row, what)}; keep one of them."
            )
    if missing:
        error = UnusableTable if not rows else VitreousError
        raise error(
            f"{table.name} names {count(len(missing), 'file')} not found among the images, such as {missing[0]}; "
            "correct the names or remove the lines."
        )
    return rows, elsewhere


def _folders_agree(first: str, second: str) -> bool:
    """Whether one of two folders ends in the other, as in images and data/images. The empty path agrees with all."""
    one, other = (folder.casefold().split("/") if folder else [] for folder in (first, second))
    length = min(len(one), len(other))
    return one[len(one) - length :] == other[len(other) - length :]
