"""Classifies image files: `vitreous predict`.

Files are decoded by a few threads while the network runs on earlier ones. Answers are printed batch by batch, so that
memory does not grow with the pixels of all files.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

import numpy as np
import torch

from vitreous.bundle import UNKNOWN, Bundle, Prediction
from vitreous.data.decode import BadImage, read_image
from vitreous.data.finding import Found, ImageFile, find_images
from vitreous.data.folder import read_all
from vitreous.data.layout.names import text_of
from vitreous.errors import VitreousError, unknown
from vitreous.files import atomic_write, path_of, write_failure
from vitreous.machine import resolve_device
from vitreous.preprocess import EVAL_BATCH, Preprocess
from vitreous.progress import rate, track
from vitreous.run import Run, open_bundle
from vitreous.statistics import accuracy_text
from vitreous.wording import cell_text, count, printable

FIRST_BATCH = (
    16  # images; each batch is twice as large as the one before, so that the first answers come at once
)
FORMS = ("text", "json", "csv")
PATH_WIDTH = 60  # columns of a path in the table, at most
PAIRS = 5  # confusions that are shown
LONGEST_NAME = 200  # bytes of a folder or file that is written; file systems allow 255

# Names of devices on Windows, whatever suffix follows.
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


class Answer(NamedTuple):
    """What is known about a file.

    Attributes:
        file: the image file; None if it failed before it was read.
        path: as in `ImageFile`.
        folder_class: the class that a folder around it names, as a position; None if none does.
        prediction: None if it could not be read.
        probabilities: float32 [C], of which the prediction is made.
        error: why it could not be read, or "".
    """

    file: ImageFile | None
    path: str
    folder_class: int | None = None
    prediction: Prediction | None = None
    probabilities: np.ndarray | None = None
    error: str = ""


def predict(
    model: Path | str,
    paths: Iterable[str],
    *,
    top: int = 5,
    form: str = "text",
    all_probabilities: bool = False,
    tta: bool = False,
    reject: float | None = None,
    embeddings: Path | str | None = None,
    sort_into: Path | str | None = None,
    device: str = "auto",
) -> int:
    """Classifies image files and prints the answers to standard output, everything else to standard error.

    Args:
        model: a run folder or a bundle.
        paths: see `find_images`; "-" stands for names on standard input, one a line.
        top: how many classes to name for each image.
        form: text (a table), json (a list of objects) or csv.
        all_probabilities: name all classes in JSON, and add a column for each to CSV.
        tta: average the probabilities of each image and its mirror image (test-time augmentation).
        reject: see `Bundle.classify`.
        embeddings: a file.npy to write, float32 [N, D], the pooled features of the images that could be read. Their
            paths are written beside it, as a JSON list in file.names.json.
        sort_into: a new or empty folder, into which each image is copied, below a folder for each class.
        device: where to compute; auto is the best one that is available.

    Returns:
        0, or 3 if some files could not be read.

    Raises:
        VitreousError: no file could be read, or an argument cannot be used.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if all_probabilities and form == "text":
        raise VitreousError("A table has no room for all probabilities; add --csv or --json.")
    if tta and reject is not None:
        raise VitreousError(
            "What a threshold accepts was counted without test-time augmentation; leave out --tta or --reject."
        )
    place = resolve_device(device)
    bundle = open_bundle(model, place)
    bundle.named(np.empty((0, len(bundle.classes)), np.float32), top)  # refuses a bad top before any work
    threshold = None if reject is None else threshold_text(bundle, reject)
    with ExitStack() as stack:
        found = stack.enter_context(find_images(_from_standard_input(paths)))
        features = (
            stack.enter_context(_Embeddings(Path(path_of(embeddings)))) if embeddings is not None else None
        )
        copies = _Copies(Path(path_of(sort_into)), bundle.classes, found) if sort_into is not None else None
        for note in (*found.notes, *_training_note(model, found)):
            print(printable(note), file=sys.stderr)
        summary = Summary(bundle.classes, accepts=reject is not None)
        write = _writer(form, found, bundle.classes, all_probabilities)
        top = len(bundle.classes) if all_probabilities and form == "json" else top
        answers = _answers(bundle, found, top, tta, reject, features)
        if not (form == "text" and sys.stdout.isatty()):  # there, the table itself shows how far it is
            answers = track(answers, len(found.images) + len(found.failed), "Predicting")
        for answer in write(answers):
            summary.add(answer)
            if copies and answer.prediction and answer.file:
                copies.add(answer.file, answer.prediction.label)
        sys.stdout.flush()
        for path, reason in summary.failures:
            print(f"{printable(path)}: {printable(reason)}", file=sys.stderr)
        if not summary.images:
            if not summary.failures:
                raise VitreousError("No image was named; give image files, folders or zips.")
            raise VitreousError(
                f"No image could be read ({count(len(summary.failures), 'file')} failed, for the reasons above); check "
                "the paths, or give other images."
            )
        if features:
            features.finish()
    talk = sys.stdout if form == "text" else sys.stderr
    for line in summary.lines(threshold):
        print(line, file=talk)
    if copies:
        print(f"{count(copies.copied, 'image')} copied into {copies.root}", file=sys.stderr)
    if features:
        print(f"embeddings: {features.path} (paths: {features.names_path})", file=sys.stderr)
    return 3 if summary.failures else 0


def threshold_text(bundle: Bundle, threshold: float) -> str:
    """What a threshold accepted on validation, as a sentence; raises like `Bundle.check_reject`."""
    accepted, correct = bundle.check_reject(threshold)
    assert bundle.coverage is not None
    images = bundle.coverage.images
    right = (
        f"of those, {accuracy_text(correct, accepted)} were right"
        if accepted
        else "so none tells how many are right"
    )
    return (
        f"On {count(images, 'validation image')}, a confidence of at least {threshold:g} accepted "
        f"{accuracy_text(accepted, images)}; {right}."
    )


def _training_note(model: Path | str, found: Found) -> list[str]:
    """A warning if the images are those of the run itself: on what it was trained on, it is right more often."""
    run = Run(model)
    if not run.has("recipe.toml"):
        return []
    data = run.tables.get("resolved", {}).get("request", {}).get("data", "")
    places = [place.resolve() for place in found.places]
    if any(place.is_relative_to(data) or Path(data).is_relative_to(place) for place in places if data):
        return [
            f"{data} holds the data of this run, most of which it was trained on; vitreous evaluate {run.path} tells "
            "its accuracy on the test split alone."
        ]
    return []


def _from_standard_input(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if word != "-":
            yield word
            continue
        for line in sys.stdin.buffer.read().split(b"\n"):
            if line:
                yield os.fsdecode(line)


# ---- answers


def _answers(
    bundle: Bundle, found: Found, top: int, tta: bool, reject: float | None, features: _Embeddings | None
) -> Iterator[Answer]:
    for path, reason in found.failed:
        yield Answer(None, path, error=reason)
    class_of = _folder_classes(bundle.classes)
    size = bundle.preprocess.size
    read = read_all(
        found.images, lambda file: file.read(), partial(_pixels, bundle.preprocess), size * size * 3
    )
    for batch in _growing_batches(read):
        good = [result for _, result in batch if isinstance(result, np.ndarray)]
        probabilities = np.empty((0, len(bundle.classes)), np.float32)
        if good:
            probabilities = _probabilities(bundle, np.stack(good), tta, features)
        rows = iter(zip(probabilities, bundle.named(probabilities, top, reject), strict=True))
        for file, result in batch:
            label = class_of(file.folders)
            if isinstance(result, np.ndarray):
                row, prediction = next(rows)
                if features:
                    features.names.append(file.path)
                yield Answer(file, file.path, label, prediction, row)
            else:
                error = result.text if isinstance(result, BadImage) else result
                yield Answer(file, file.path, label, error=error)


Read = tuple[ImageFile, np.ndarray | str | BadImage]


def _growing_batches(read: Iterable[Read]) -> Iterator[list[Read]]:
    size, batch = FIRST_BATCH, list[Read]()
    for item in read:
        batch.append(item)
        if len(batch) == size:
            yield batch
            size, batch = min(2 * size, EVAL_BATCH), []
    if batch:
        yield batch


def _pixels(settings: Preprocess, data: bytes) -> np.ndarray | str:
    """The network's input uint8 [S, S, 3], as import and `Bundle.logits` make it, or why there is none."""
    try:
        return settings.batch(data, read_image)[0]
    except BadImage:
        raise
    except VitreousError as error:  # values on another scale than those of the training data
        return str(error).rstrip(".")


@torch.no_grad()
def _probabilities(bundle: Bundle, pixels: np.ndarray, tta: bool, features: _Embeddings | None) -> np.ndarray:
    """Calibrated probabilities float32 [B, C] of pixels uint8 [B, S, S, 3], whose features go to `features`."""
    if features:
        pooled = bundle.embed(pixels)
        features.write(pooled)
        device = next(bundle.model.parameters()).device
        probabilities = bundle.calibrated(
            bundle.model.head(torch.from_numpy(pooled).to(device)).cpu()
        ).numpy()
    else:
        probabilities = bundle.predict_proba(pixels)
    if tta:
        probabilities = (probabilities + bundle.predict_proba(pixels[:, :, ::-1])) / 2
    return probabilities


def _folder_classes(classes: Sequence[str]) -> Callable[[str], int | None]:
    """A function from `ImageFile.folders` to the class that the innermost folder of such a name means."""
    exact = {name: place for place, name in enumerate(classes)}
    folded = {name.strip().casefold(): place for place, name in enumerate(classes)}
    loose = folded if len(folded) == len(classes) else {}
    known: dict[str, int | None] = {}

    def class_of(folders: str) -> int | None:
        if folders not in known:
            names = [text_of(part) for part in reversed(folders.split("/"))]
            places = (exact.get(name, loose.get(name.strip().casefold())) for name in names)
            known[folders] = next((place for place in places if place is not None), None)
        return known[folders]

    return class_of


class Summary:
    """Counts answers, and compares them with the classes that folders name."""

    def __init__(self, classes: Sequence[str], accepts: bool = False) -> None:
        self.classes, self.accepts = classes, accepts
        self.start = time.monotonic()
        self.images = self.accepted = self.labelled_accepted = self.accepted_correct = 0
        self.failures: list[tuple[str, str]] = []
        self.confusion = np.zeros((len(classes), len(classes)), np.int64)  # [true, predicted]

    def add(self, answer: Answer) -> None:
        if answer.prediction is None:
            self.failures.append((answer.path, answer.error))
            return
        self.images += 1
        accepted = not (self.accepts and answer.prediction.label == UNKNOWN)
        self.accepted += accepted
        if answer.folder_class is not None:
            predicted = self.classes.index(answer.prediction.top[0][0])
            self.confusion[answer.folder_class, predicted] += 1
            self.labelled_accepted += accepted
            self.accepted_correct += accepted and predicted == answer.folder_class

    def lines(self, threshold: str | None) -> list[str]:
        """The summary as lines of text; `threshold` is what `threshold_text` says."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        failed = f", {count(len(self.failures), 'file')} could not be read" if self.failures else ""
        lines = [
            "",
            f"{count(self.images, 'image')} in {seconds:.1f} s ({rate(self.images / seconds)}/s){failed}",
        ]
        if threshold:
            unknown_images = self.images - self.accepted
            lines.append(f"unknown: {unknown_images:,} of {count(self.images, 'image')}. {threshold}")
        labelled = int(self.confusion.sum())
        if not labelled:
            return lines
        correct = int(np.trace(self.confusion))
        rest = self.images - labelled
        others = f"; {count(rest, 'other')} in no folder that names a class" if rest else ""
        lines.append(
            f"accuracy by the names of folders: {accuracy_text(correct, labelled)}, {correct:,} of "
            f"{count(labelled, 'image')}{others}"
        )
        if threshold and self.labelled_accepted:
            lines.append(
                f"accuracy without the unknown: {accuracy_text(self.accepted_correct, self.labelled_accepted)}, "
                f"{self.accepted_correct:,} of {count(self.labelled_accepted, 'image')}"
            )
        return [*lines, *self._confusions()]

    def _confusions(self) -> list[str]:
        totals, wrong = self.confusion.sum(axis=1), self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
        pairs = [(i, j) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
        lines = [
            f"  {printable(self.classes[i])} taken for {printable(self.classes[j])}: "
            f"{wrong[i, j]:,} of {totals[i]:,}"
            for i, j in pairs
        ]
        return ["most frequent mistakes:", *lines] if lines else []


# ---- output

Writer = Callable[
    [Iterable[Answer]], Iterator[Answer]
]  # writes answers to standard output and passes them on


def _writer(form: str, found: Found, classes: Sequence[str], all_probabilities: bool) -> Writer:
    if form == "json":
        return partial(_write_json, classes=classes)
    if form == "csv":
        names = [*(path for path, _ in found.failed), *(file.path for file in found.images), *classes]
        mark = not all(map(str.isascii, names))
        return partial(_write_csv, classes=classes, all_probabilities=all_probabilities, mark=mark)
    longest = max((len(printable(file.path)) for file in found.images), default=0)
    return partial(
        _write_table, path_width=min(longest, PATH_WIDTH), class_width=max(len(UNKNOWN), *map(len, classes))
    )


def _write_table(answers: Iterable[Answer], path_width: int, class_width: int) -> Iterator[Answer]:
    for answer in answers:
        if answer.prediction:
            label, probability, top = answer.prediction
            others = top if label != top[0][0] else top[1:]
            rest = ", ".join(f"{printable(name)} {_percent(p)}" for name, p in others)
            columns = f"{printable(answer.path):{path_width}}", f"{printable(label):{class_width}}"
            print("  ".join((*columns, f"{_percent(probability):>7}", rest)).rstrip())
        yield answer


def _percent(probability: float) -> str:
    """A probability in percent; never "100.0 %", since no network is certain."""
    return ">99.9 %" if probability >= 0.9995 else f"{100 * probability:.1f} %"


def _write_json(answers: Iterable[Answer], classes: Sequence[str]) -> Iterator[Answer]:
    """One object a line, so that the answers can be followed; `docs/using.md` describes them."""
    is_unicode = _is_unicode(sys.stdout)
    separator = "["
    for answer in answers:
        record: dict[str, object] = {"path": answer.path}
        if answer.folder_class is not None:
            record["folder_class"] = classes[answer.folder_class]
        if answer.prediction:
            label, probability, top = answer.prediction
            ranked = [{"class": name, "probability": _number(p)} for name, p in top]
            record |= {"class": label, "probability": _number(probability), "top": ranked}
        else:
            record["error"] = answer.error
        print(f"{separator}\n{json.dumps(record, ensure_ascii=not is_unicode)}", end="")
        separator = ","
        yield answer
    print("\n]" if separator == "," else "[]")


def _write_csv(
    answers: Iterable[Answer], classes: Sequence[str], all_probabilities: bool, mark: bool
) -> Iterator[Answer]:
    """A heading and a row for each file. `mark` begins with a byte-order mark, without which Excel garbles names."""
    if mark and _is_unicode(sys.stdout):
        print("\ufeff", end="")
    rows = csv.writer(sys.stdout, lineterminator="\n")
    columns = [f"probability of {name}" for name in classes] if all_probabilities else []
    rows.writerow(["path", "folder_class", "class", "probability", "error", *columns])
    for answer in answers:
        folder_class = "" if answer.folder_class is None else classes[answer.folder_class]
        row: list[object] = [cell_text(answer.path), cell_text(folder_class)]
        if answer.prediction is not None and answer.probabilities is not None:
            row += [cell_text(answer.prediction.label), _number(answer.prediction.probability), ""]
            row += map(_number, answer.probabilities) if all_probabilities else []
        else:
            row += ["", "", cell_text(answer.error), *("" for _ in columns)]
        rows.writerow(row)
        yield answer


def _number(probability: float) -> float:
    """A float32 with as many digits as it has."""
    return float(str(np.float32(probability)))


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


class _Embeddings:
    """Writes features to FILE.npy and their paths to FILE.names.json once all are known."""

    def __init__(self, path: Path) -> None:
        if path.suffix != ".npy":
            raise VitreousError(
                f"The embeddings are written as numpy reads them, so {path} must end in .npy."
            )
        self.path, self.names_path = path, path.with_suffix(".names.json")
        for file in (self.path, self.names_path):
            if file.exists():
                raise VitreousError(f"{file} exists already; remove it or give another name.")
        self.names: list[str] = []
        self.width = 0

    def __enter__(self) -> _Embeddings:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.scratch = tempfile.TemporaryFile(dir=self.path.parent)
        except OSError as error:
            raise write_failure(self.path, error) from error
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # of a full disk; the failure was raised before
            self.scratch.close()

    def write(self, features: np.ndarray) -> None:
        """Adds float32 [B, D]."""
        self.width = features.shape[1]
        try:
            self.scratch.write(np.ascontiguousarray(features, "<f4").data)
            self.scratch.flush()
        except OSError as error:
            raise write_failure(self.path, error) from error

    def finish(self) -> None:
        def write(file: BinaryIO) -> None:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(self.names), self.width)}
            np.lib.format.write_array_header_1_0(file, header)
            self.scratch.seek(0)
            shutil.copyfileobj(self.scratch, file)

        atomic_write(self.path, write)
        atomic_write(self.names_path, json.dumps(self.names, indent=0) + "\n")


class _Copies:
    """Copies images into a folder for each class. Nothing is overwritten, and no name leads out of the folder."""

    def __init__(self, root: Path, classes: Sequence[str], found: Found) -> None:
        self.root, self.copied = root, 0
        for folder in found.places:
            if root.resolve().is_relative_to(folder.resolve()):
                raise VitreousError(
                    f"{root} is inside {folder}, whose images are read; give a folder elsewhere."
                )
        try:
            if root.exists() and (not root.is_dir() or any(root.iterdir())):
                raise VitreousError(f"{root} is not an empty folder; give a new one.")
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failure(root, error) from error
        taken: set[str] = set()
        self.folders = {label: _free_name(safe_name(label), taken) for label in (UNKNOWN, *classes)}
        self.taken: dict[str, set[str]] = {label: set() for label in self.folders}

    def add(self, file: ImageFile, label: str) -> None:
        """Copies a file; raises `VitreousError` if it can no longer be read, or cannot be written."""
        name = _free_name(
            safe_name(re.split(r"[\\/]" if os.name == "nt" else "/", file.path)[-1]), self.taken[label]
        )
        target = self.root / self.folders[label] / name
        try:
            content = file.read()
        except BadImage as bad:
            raise VitreousError(f"{file.path} changed while it was read ({bad.text}); try again.") from None
        try:
            target.parent.mkdir(exist_ok=True)
            with target.open("xb") as out:
                try:
                    out.write(content)
                    out.flush()
                except BaseException:
                    target.unlink()
                    raise
        except OSError as error:
            raise write_failure(target, error) from error
        self.copied += 1


def safe_name(text: str) -> str:
    """`text` as the name of one file or folder on any system, neither hidden nor leading elsewhere."""
    name = re.sub(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\u2028\u2029]', "_", text).rstrip(". ")
    if not name or name.startswith("."):
        name = f"_{name.lstrip('.')}"
    if RESERVED.match(name):
        name = f"_{name}"
    return _cut(name, LONGEST_NAME)


def _cut(name: str, most: int) -> str:
    """`name` in at most `most` bytes, with its suffix."""
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > 8:
        stem, dot, suffix = name, "", ""
    end = f"{dot}{suffix}"
    room = most - len(os.fsencode(end))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + end


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, or with a number behind it if that is `taken`; it is then taken too.

    Names that differ in letter case, or in how an accent is written, are one name on some systems.
    """
    stem, _, suffix = name.rpartition(".")
    stem, end = (stem, f".{suffix}") if stem else (name, "")
    free, number = name, 1
    while (key := unicodedata.normalize("NFC", free).casefold()) in taken:
        number += 1
        free = f"{stem}-{number}{end}"
    taken.add(key)
    return free
