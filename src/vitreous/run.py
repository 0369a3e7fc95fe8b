"""A run on disk: a folder that explains itself, written and read here.

recipe.toml      the complete recipe; its [resolved] table holds data, machine, versions and every decision
summary.json     the final metrics, flat
metrics.csv      one row for each logged step or validation
evaluation.json  metrics, per-class metrics and confusion matrix of val and test; training images of each class
predictions.npz  names, labels and logits of the val and test splits, so that nothing has to read test again
test_reads.json  when the test split was read, and by which command
mistakes.npz     the most confident mistakes on the test images (on validation where test stays unread)
label_errors.npz the images of the most probable label errors of validation and test
label-errors.csv all probable label errors by name, written with the report
split.json       the images that were cut from training for validation and test
copies.json      images of given splits that have copies in training, and copies with different labels; if there are any
log.txt          every line that was printed, and the details that were not
report.html      all of this for a reader
bundle/          the trained model
checkpoints/     the states that --resume continues from
"""

from __future__ import annotations

import base64
import csv
import json
import math
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vitreous import recipe as recipes
from vitreous.errors import VitreousError
from vitreous.files import (
    OWN_LIMITS,
    atomic_write,
    open_zip,
    path_of,
    read_zip_member,
    write_failure,
    zip_members,
)
from vitreous.wording import count, percent

if TYPE_CHECKING:
    from vitreous.bundle import Bundle, Prediction
    from vitreous.model.vit import VisionTransformer

LONGEST_NAME = 80  # characters of a run folder's name
LONGEST_ENCODED_NAME = 240  # bytes of it in UTF-8; file systems allow 255


class Say(Protocol):
    """Tells the user a line and logs it; a detail is only logged, unless the user has asked for details."""

    def __call__(self, line: str, detail: bool = False) -> None: ...


@dataclass(frozen=True)
class Predictions:
    """The model's output on a whole split.

    Attributes:
        names: str [N], the names of the images in their source.
        labels: int64 [N], the true classes.
        logits: float32 [N, C].
    """

    names: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Mistakes:
    """Wrongly classified images of a split, most confident first.

    `images` uint8 [K, H, W, 3]; `labels` and `predicted` int64 [K], positions in the run's classes; `confidence`
    float32 [K], from 0 to 1; `names` [K], those of the images in their source.
    """

    images: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    names: np.ndarray


@dataclass(frozen=True, init=False, repr=False)
class Run:
    """A run folder. Each file is read when it is first needed.

    Every property raises `VitreousError` if its file is missing or damaged.
    """

    path: Path

    def __init__(self, path: Path | str) -> None:
        object.__setattr__(self, "path", path_of(path))

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self._status()}>"

    def has(self, name: str) -> bool:
        """Whether the run has written its file `name` yet."""
        return (self.path / name).exists()

    def _status(self) -> str:
        """Status and accuracies in a few words, read anew each time, since a run may be going on."""
        try:
            summary = self._json("summary.json")
        except VitreousError:
            if self.has("summary.json"):
                return "summary.json cannot be read"
            return "not finished" if self.has("recipe.toml") else "not a run folder"
        return ", ".join([str(summary.get("status", "no status")), *accuracies(summary)])

    @cached_property
    def tables(self) -> dict[str, Any]:
        """The tables of `recipe.toml`, with "resolved" among them once training has begun."""
        try:
            return tomllib.loads((self.path / "recipe.toml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            if not self.path.exists():
                raise VitreousError(f"There is no run folder {self.path}; check the path.") from None
            raise VitreousError(
                f"{self.path} is not a run folder, because it has no recipe.toml; give a folder that `vitreous train` "
                "has written."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise unreadable(self.path / "recipe.toml", error) from None

    @cached_property
    def recipe(self) -> recipes.Recipe:
        return recipes.parse(self.tables, own=True)

    @property
    def resolved(self) -> dict[str, Any]:
        """Everything that was decided when the run started: data, machine, versions."""
        if "resolved" not in self.tables:
            raise VitreousError(
                f"{self.path / 'recipe.toml'} has no [resolved] table, so it is not the record of a run; give a folder "
                "that `vitreous train` has written."
            )
        return self.tables["resolved"]

    @cached_property
    def split(self) -> dict[str, Any]:
        """Which images were cut from training for validation and test: names and positions, with seed and fraction."""
        if not self.has("split.json"):
            raise VitreousError(
                f"{self.path} has no split.json, which says which images were cut for validation and test; restore it, "
                "or train anew."
            )
        return self._json("split.json")

    @cached_property
    def copies(self) -> dict[str, Any]:
        """The copies that matter for the figures, as `vitreous.data.copies.describe` says; {} if there are none."""
        if not self.has("copies.json"):
            return {}
        content = self._json("copies.json")
        try:
            return _parse_copies(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise unreadable(self.path / "copies.json", error) from None

    @property
    def test_reads(self) -> list[dict[str, Any]]:
        """Every read of the test split, as `when` (ISO 8601, UTC) and `by` (the command); empty while it is unread."""
        return read_test_reads(self.path)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The final metrics by name: `val_loss` … `test_ovr_f1`, `parameters`, `train_flops`, …"""
        return self._json("summary.json")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.csv`. Cells are numbers, and empty cells are None."""
        return read_metrics(self.path / "metrics.csv")

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Classes, `training_images` of each (not in older runs), and of "val" and "test" metrics and confusions.

        A metric that was not a number (a diverged run's loss) is left out.
        """
        content = self._json("evaluation.json")
        try:
            return _parse_evaluation(content)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise unreadable(self.path / "evaluation.json", error) from None

    @cached_property
    def mistakes(self) -> Mistakes:
        """The most confident mistakes on test, or on validation where the run left test unread."""
        file = self.path / "mistakes.npz"
        num_classes = len(self.evaluation["classes"])  # outside the try, whose errors blame mistakes.npz
        try:
            return _parse_mistakes(read_arrays(file), num_classes)
        except FileNotFoundError:
            raise unfinished(self.path, file.name) from None
        except DAMAGE as error:
            raise unreadable(file, error) from None

    @cached_property
    def suspect_images(self) -> dict[tuple[str, int], np.ndarray]:
        """Images uint8 [H, W, 3] of the most probable label errors, by split and position in it."""
        file = self.path / "label_errors.npz"
        try:
            return _parse_suspect_images(read_arrays(file))
        except FileNotFoundError:
            raise unfinished(self.path, file.name) from None
        except DAMAGE as error:
            raise unreadable(file, error) from None

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """The predictions on each split that the run was evaluated on, "val" and "test"."""
        try:
            return _parse_predictions(read_arrays(self.path / "predictions.npz"))
        except FileNotFoundError:
            raise unfinished(self.path, "predictions.npz") from None
        except DAMAGE as error:
            raise unreadable(self.path / "predictions.npz", error) from None

    @cached_property
    def bundle(self) -> Bundle:
        """The trained model with its classes, preprocessing and calibration."""
        return _bundle_of(self)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bundle.classes

    @property
    def model(self) -> VisionTransformer:
        """The trained network: a plain `nn.Module` on the CPU, in eval mode."""
        return self.bundle.model

    def predict(self, images: Any) -> np.ndarray:
        """The most likely class of each image, int64 [N], as a position in `classes`.

        Args:
            images: a path, a PIL image, an array, or a list of these, of any size. A single image gives N = 1. Arrays
                are uint8 from 0 to 255 or floats from 0 to 1: one image as [H, W] (grey) or [H, W, 3], many as
                [N, H, W] or [N, H, W, 3].

        Raises:
            VitreousError: an image cannot be read, or an array could mean several things.
        """
        return self.bundle.predict(images)

    def predict_proba(self, images: Any) -> np.ndarray:
        """The probability of each class, float32 [N, C], calibrated on validation; images as for `predict`."""
        return self.bundle.predict_proba(images)

    def embed(self, images: Any) -> np.ndarray:
        """The pooled features of each image before the head, float32 [N, D]; images as for `predict`."""
        return self.bundle.embed(images)

    def classify(self, images: Any, top: int = 5, reject: float | None = None) -> list[Prediction]:
        """The class of each image by name, with the `top` most likely ones; images as for `predict`.

        Args:
            reject: the label is "unknown" if its probability is below this, as in 0.9.
        """
        return self.bundle.classify(images, top, reject)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is not a JSON object")
            return content
        except FileNotFoundError:
            raise unfinished(self.path, name) from None
        except (OSError, ValueError, RecursionError) as error:
            raise unreadable(self.path / name, error) from None


def load(path: Path | str, device: str = "cpu") -> Run | Bundle:
    """Opens a run folder as a `Run`, or a bundle folder as a `Bundle`.

    Both have `predict`, `predict_proba`, `classify`, `embed`, `classes` and `model`.

    Args:
        device: where to put the model of a bundle.

    Raises:
        VitreousError: `path` is neither, or the bundle is damaged.
    """
    path = path_of(path)
    if (path / "recipe.toml").exists():
        return Run(path)
    if (path / "config.json").exists():
        from vitreous.bundle import load_bundle

        return load_bundle(path, device)
    raise VitreousError(
        f"{path} is neither a run folder (it has no recipe.toml) nor a bundle (it has no config.json); "
        "give a folder that `vitreous train` has written, or the bundle/ in it."
    )


def open_bundle(path: Path | str, device: str = "cpu") -> Bundle:
    """Opens the trained model of a run folder, or a bundle folder.

    What earlier formats lack, the sizes of validation and test and the coverage, is counted from the run's predictions.

    Args:
        device: where to put the model.

    Raises:
        VitreousError: `path` is neither, or the bundle is missing or damaged.
    """
    model = load(path, device)
    return _bundle_of(model, device) if isinstance(model, Run) else model


def _bundle_of(run: Run, device: str = "cpu") -> Bundle:
    from vitreous.bundle import load_bundle, with_coverage

    bundle = load_bundle(run.path / "bundle", device)
    if bundle.coverage is None and not bundle.images and run.has("predictions.npz"):
        sizes = {split: len(output.labels) for split, output in run.predictions.items()}
        bundle = replace(bundle, images=sizes)
        if "val" in run.predictions:
            val = run.predictions["val"]
            bundle = with_coverage(bundle, val.logits, val.labels)
    return bundle


def accuracies(summary: Mapping[str, Any]) -> list[str]:
    """The accuracies of a summary in words: ["test accuracy 87.5 %", "validation accuracy 88.1 %"]."""
    splits = {"test_acc": "test", "val_acc": "validation"}
    return [
        f"{split} accuracy {percent(summary[key])}"
        for key, split in splits.items()
        if isinstance(summary.get(key), int | float)
    ]


def with_earlier_defaults(request: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded request of a run; what a run from before a choice existed did is added."""
    return {"fit": "crop", **request}


def check_same_data(source: str, fingerprint: str, recorded: str, *, given: bool) -> None:
    """Raises `VitreousError` if the data that were opened are not those of a run.

    Args:
        source: where they come from.
        fingerprint: their own.
        recorded: that of the run's data.
        given: whether a person has said where the data of the run are.
    """
    if fingerprint == recorded:
        return
    differ = f"its fingerprint is {fingerprint[:12]}, the run's {recorded[:12]}"
    if given:
        raise VitreousError(
            f"{source} does not hold the images of this run ({differ}); give the data that it was trained on."
        )
    raise VitreousError(
        f"{source} no longer holds the images of this run ({differ}); restore them, or train anew."
    )


def missing_data(data: Any) -> VitreousError:
    """The error for a run whose data are no longer where they were."""
    return VitreousError(
        f"The data of this run are no longer at {data}; say where they are now with --data PATH (in Python data=)."
    )


def missing_arrays(path: Path) -> VitreousError:
    """The error for a run on data that only its caller has."""
    return VitreousError(
        f"{path} was trained on arrays; give them again, as data=(images, labels), or whatever was given to train."
    )


def unfinished(path: Path, name: str) -> VitreousError:
    """The error for a file that a run has not written yet."""
    return VitreousError(
        f"{path} has no {name} yet; finish the run with: vitreous train --resume {shlex.quote(str(path))}"
    )


def unreadable(path: Path, error: BaseException) -> VitreousError:
    """The error for a file of a run that is damaged or may not be read."""
    if isinstance(error, VitreousError) and error.__cause__ is not None:
        error = error.__cause__  # its message without the name of the file and other advice
    reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    remedy = "restore it or delete it" if path.name in DISPENSABLE else "restore it, or train anew"
    return VitreousError(f"{path} cannot be read ({reason or type(error).__name__}); {remedy}.")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.csv`. Cells are numbers, and empty cells are None.

    Raises:
        VitreousError: the file is missing, cannot be read, or is not such a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()  # a crash may have cut the last line short
        rows = list(csv.DictReader(lines, strict=True))
        if rows and "step" not in rows[0]:
            raise ValueError("it has no column 'step'")
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has more or fewer cells than the heading")
        if any(not row["step"] for row in rows):
            raise ValueError("a row has no step")
        return [
            {
                column: (int(cell) if column == "step" else float(cell)) if cell else None
                for column, cell in row.items()
            }
            for row in rows
        ]
    except FileNotFoundError:
        raise unfinished(path.parent, path.name) from None
    except (OSError, ValueError, csv.Error) as error:
        raise unreadable(path, error) from None


# The errors that a damaged file of arrays can raise.
DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, MemoryError, VitreousError)
DISPENSABLE = (
    "mistakes.npz",
    "label_errors.npz",
    "metrics.csv",
    "copies.json",
)  # the report can be written without them


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by name, read without pickles and within limits; raises one of `DAMAGE`."""
    if not path.exists():
        raise FileNotFoundError(path)
    with open_zip(path) as archive:
        return {
            member.filename.removesuffix(".npy"): np.load(
                BytesIO(read_zip_member(archive, member, OWN_LIMITS)), allow_pickle=False
            )
            for member in zip_members(archive, OWN_LIMITS)
        }


def write_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Writes `predictions.npz`: `val_names`, `val_labels`, `val_logits`, and the same for test."""
    file = BytesIO()
    arrays = {f"{split}_{name}": array for split, p in predictions.items() for name, array in vars(p).items()}
    np.savez_compressed(file, allow_pickle=False, **arrays)
    atomic_write(path, file.getvalue())


def _parse_predictions(arrays: Mapping[str, np.ndarray]) -> dict[str, Predictions]:
    predictions = {}
    for split in ("val", "test"):
        if f"{split}_logits" not in arrays:
            continue
        names, labels, logits = (arrays[f"{split}_{name}"] for name in ("names", "labels", "logits"))
        if (
            logits.ndim != 2
            or logits.dtype != np.float32
            or labels.dtype != np.int64
            or names.dtype.kind != "U"
        ):
            raise ValueError(f"the arrays of {split} have other types than a run writes")
        if not names.shape == labels.shape == logits.shape[:1]:
            raise ValueError(f"the arrays of {split} differ in length")
        if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
            raise ValueError(f"a label of {split} is not a class")
        predictions[split] = Predictions(names, labels, logits)
    if not predictions:
        raise ValueError("it holds neither val nor test")
    return predictions


def _parse_evaluation(evaluation: dict[str, Any]) -> dict[str, Any]:
    classes = evaluation["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not a list of names")
    num_classes = len(classes)
    training = evaluation.get("training_images", [0] * num_classes)
    if len(training) != num_classes or not all(map(_is_count, training)):
        raise ValueError("its training images are not a number for each class")
    for split in {"val", "test"} & set(evaluation):
        entry = evaluation[split]
        confusion, rows = entry["confusion"], entry["per_class"]
        if len(confusion) != num_classes or any(len(row) != num_classes for row in confusion):
            raise ValueError(f"the confusion matrix of {split} is not {num_classes} by {num_classes}")
        if not all(_is_count(cell) for row in confusion for cell in row):
            raise ValueError(f"a cell of the confusion matrix of {split} is not a number of images")
        if len(rows) != num_classes:
            raise ValueError(f"{split} does not have the metrics of each of {num_classes} classes")
        if not all(_is_count(row["support"]) for row in rows):
            raise ValueError(f"a support of {split} is not a number of images")
        if not all(_is_fraction(row[name]) for row in rows for name in ("precision", "recall", "f1")):
            raise ValueError(f"a per-class metric of {split} is not a number from 0 to 1")
        entry["figures"] = {key: float(v) for key, v in entry["figures"].items() if v is not None}
    return evaluation


def _parse_copies(content: dict[str, Any]) -> dict[str, Any]:
    for pair in (*content["leaks"], *content["conflicts"]):
        texts = [
            pair[key] for key in ("split", "name", "label", "copy_of", "copy_split", "copy_label", "kind")
        ]
        images = pair.get("images", [])
        if not all(isinstance(text, str) for text in [*texts, *images]) or len(images) not in (0, 2):
            raise ValueError("a pair of copies has other entries than a run writes")
        for image in images:
            if not base64.b64decode(image, validate=True).startswith(b"\x89PNG"):
                raise ValueError("an image of it is not a PNG")
    if not all(_is_count(total) for total in content["images"].values()):
        raise ValueError("a number of images is none")
    return content


def _is_count(value: Any) -> bool:
    """Whether a value of JSON is a number of images; beyond 2^53 it would overflow sums in int64."""
    return type(value) is int and 0 <= value <= 1 << 53


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _parse_mistakes(arrays: Mapping[str, np.ndarray], num_classes: int) -> Mistakes:
    mistakes = Mistakes(*(arrays[name] for name in ("images", "label", "predicted", "confidence", "name")))
    _check_images(mistakes.images)
    for name, array, kind in (
        ("label", mistakes.labels, "i"),
        ("predicted", mistakes.predicted, "i"),
        ("confidence", mistakes.confidence, "f"),
        ("name", mistakes.names, "U"),
    ):
        if array.ndim != 1 or array.dtype.kind != kind:
            raise ValueError(f"its array {name} has another type or shape than a run writes")
    if len({len(array) for array in vars(mistakes).values()}) != 1:
        raise ValueError("its arrays differ in length")
    for classes in (mistakes.labels, mistakes.predicted):
        if classes.min(initial=0) < 0 or classes.max(initial=0) >= num_classes:
            raise ValueError(f"a class is outside of 0 to {num_classes - 1}")
    return mistakes


def _parse_suspect_images(arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, int], np.ndarray]:
    images, splits, positions = (arrays[name] for name in ("images", "split", "position"))
    _check_images(images)
    if splits.dtype.kind != "U" or positions.dtype.kind != "i" or not splits.ndim == positions.ndim == 1:
        raise ValueError("its splits and positions have other types than a run writes")
    keys = zip(splits.tolist(), positions.tolist(), strict=True)
    return dict(zip(keys, images, strict=True))


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise ValueError("its images are not uint8 [K, H, W, 3]")


def read_test_reads(path: Path) -> list[dict[str, Any]]:
    """`Run.test_reads` of the run folder `path`."""
    file = path / "test_reads.json"
    try:
        reads = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(reads, list) or not all(isinstance(read, dict) for read in reads):
            raise ValueError("it is not a list of reads")
        return reads
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error) from None


def note_test_read(path: Path, by: str) -> None:
    """Records in the run folder `path` that the command `by` is about to read the test split."""
    read = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "by": by}
    atomic_write(path / "test_reads.json", json.dumps([*read_test_reads(path), read], indent=1) + "\n")


def run_name(data: str, recipe: str, seed: int, overrides: Mapping[str, Any] | Iterable[str] = ()) -> str:
    """The name of a run's folder without its number: DATA-RECIPE[-CHANGES]-seedN.

    CHANGES are the overridden keys with their values, as in "depth6-pool-mean". A key that several sections have keeps
    its section, as in "optimizer.name-adamw". The budget is not among the changes. Changes that would make the name
    longer than `LONGEST_NAME` characters or `LONGEST_ENCODED_NAME` bytes are only counted, as in "depth6-and-3-more".

    Args:
        overrides: valid ones, as `vitreous.train` takes them.
    """
    pairs = (
        overrides.items()
        if isinstance(overrides, Mapping)
        else (override.partition("=")[::2] for override in overrides)
    )
    sections_of: dict[str, list[str]] = {}
    for section, settings in recipes.keys().items():
        for name in settings:
            sections_of.setdefault(name, []).append(section)
    changes = {}
    for key, value in pairs:
        section, _, name = str(key).strip().rpartition(".")
        sections = sections_of.get(name, [])
        section = section or next(iter(sections), "")
        if section != "budget" and name not in recipes.UNITS:
            shown_key = f"{section}.{name}" if len(sections) > 1 else name
            changes[section, name] = _safe(f"{shown_key}{_name_of(value)}").rstrip("-")
    start, end = _safe(f"{data}-{recipe}"), f"-seed{seed}"
    room, bytes_room = (limit - len(f"{end}-000") for limit in (LONGEST_NAME, LONGEST_ENCODED_NAME))
    for shown in range(len(changes), -1, -1):
        hidden = len(changes) - shown
        more = f"and-{hidden}-more" if shown else count(hidden, "change").replace(" ", "-")
        name = "-".join([start, *list(changes.values())[:shown], *([more] if hidden else [])])
        if len(name) <= room and len(name.encode()) <= bytes_room:
            return name + end
    return name[:room].encode()[:bytes_room].decode(errors="ignore").rstrip("-") + end


def _name_of(value: Any) -> str:
    """The value of an override as a part of a name; words are set off from their key."""
    if isinstance(value, list | tuple):
        text = "-".join(map(str, value))
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value).strip(" \"'[]")
    return text if re.match(r"[-+.]?\d", text) else f"-{text or 'none'}"


def _safe(name: str) -> str:
    """`name` with only letters, digits and "._-", so that it is one folder below the current one."""
    return re.sub(r"[^\w.-]+", "-", name)


@contextmanager
def new_folder(out: Path | str | None, name: str) -> Iterator[Path]:
    """Makes the folder of a new run: `out`, or the next `runs/NAME-NNN`.

    If the run ends before its recipe.toml is written, every folder made here is removed again.

    Raises:
        VitreousError: `out` is no path or not empty, or the folder cannot be written.
    """
    place = path_of(out) if out is not None else Path("runs")
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        path = _make_empty(place) if out is not None else _make_numbered(place, name)
    except OSError as error:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise write_failure(place, error) from None
    try:
        yield path
    finally:
        if not (path / "recipe.toml").exists():
            (path / "log.txt").unlink(missing_ok=True)
            with suppress(OSError):  # folders that hold anything else stay
                for folder in missing if path == place else (path, *missing):
                    folder.rmdir()


def _make_empty(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        resume = f", or continue that run with --resume {shlex.quote(str(path))}"
        raise VitreousError(
            f"{path} is not empty; give another --out{resume if (path / 'recipe.toml').exists() else '.'}"
        )
    return path


def _make_numbered(place: Path, prefix: str) -> Path:
    place.mkdir(exist_ok=True)
    numbered = (re.fullmatch(rf"{re.escape(prefix)}-(\d+)", path.name, re.ASCII) for path in place.iterdir())
    number = max((int(match[1]) for match in numbered if match), default=0)
    while True:
        number += 1
        path = place / f"{prefix}-{number:03d}"
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another process has just taken it
            continue


def write_recipe(path: Path, recipe: recipes.Recipe, resolved: Mapping[str, Any]) -> None:
    """Writes the complete `recipe.toml`, from which alone the run can be repeated."""
    atomic_write(path / "recipe.toml", recipes.dump({**recipe.tables(), "resolved": resolved}))


def record_data(path: Path, data: str) -> None:
    """Records in `recipe.toml` that the data of a run are now at the path `data`; nothing else changes in the file."""
    file = path / "recipe.toml"
    text = file.read_text(encoding="utf-8")
    section, key = re.escape("[resolved.request]"), r"[ \t]*data[ \t]*="
    line = re.compile(rf"(^{section}[ \t]*\n(?:(?!\[|{key}).*\n)*){key}.*$", re.MULTILINE)
    changed = line.sub(lambda match: f"{match[1]}data = {recipes.toml_value(data)}", text, count=1)
    expected = tomllib.loads(text)
    expected["resolved"]["request"]["data"] = data
    if tomllib.loads(changed) != expected:  # someone has written the table in another form
        changed = recipes.dump(expected)
    atomic_write(file, changed)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file. NaN and infinities become null, since JSON has no word for them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    atomic_write(path, json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n")


@contextmanager
def log(path: Path, verbose: bool = False) -> Iterator[Say]:
    """Yields a `Say` that appends to the `log.txt` in `path`.

    Args:
        verbose: print details too.
    """
    try:
        # Unbuffered: a full disk is met when a line is written, not later.
        file = (path / "log.txt").open("ab", buffering=0)
    except OSError as error:
        raise write_failure(path / "log.txt", error) from None
    warned = False

    def say(line: str, detail: bool = False) -> None:
        nonlocal warned
        if verbose or not detail:
            # Names of files may hold characters that standard output cannot encode.
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
        try:
            file.write(f"{line}\n".encode(errors="backslashreplace"))
        except OSError as error:
            if not warned:
                print(f"Warning: {write_failure(path / 'log.txt', error)}", file=sys.stderr)
            warned = True

    with file:
        yield say
