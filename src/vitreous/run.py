"""A run on disk: a folder that explains itself, written and read here.

recipe.toml      the recipe, complete, and [resolved]: data, machine, versions, what was decided
summary.json     the figures, flat
metrics.csv      one row for each logged step or validation
evaluation.json  figures, per-class figures and confusion matrix of val and test
predictions.npz  names, labels and logits of val and test, so that nothing has to read test again
test_reads.json  when the test split was read, and by what
mistakes.npz     the most confident mistakes on test (or validation, where test stays unread), as pictures
split.json       which pictures were cut off for validation and test
log.txt          what was said
report.html      all of it for a person
bundle/          the trained model
checkpoints/     what --resume continues from
"""

from __future__ import annotations

import csv
import json
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from vitreous.bundle import Bundle
    from vitreous.model.vit import VisionTransformer

Say = Callable[..., None]  # say(line, quiet=False)


@dataclass(frozen=True)
class Predictions:
    """What a run's model said of a split.

    `names` [N] are those of the images in their source, `labels` int64 [N] the true classes, `logits` float32 [N, C].
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


@dataclass(frozen=True, init=False)
class Run:
    """A run folder; each file is read when it is first asked for.

    Every property raises `VitreousError` where its file is missing or damaged.
    """

    path: Path

    def __init__(self, path: Path | str) -> None:
        object.__setattr__(self, "path", path_of(path))

    def has(self, name: str) -> bool:
        """Whether the run has written its file `name` yet."""
        return (self.path / name).exists()

    @cached_property
    def tables(self) -> dict[str, Any]:
        """The tables of `recipe.toml`, with "resolved" among them once training has begun."""
        try:
            return tomllib.loads((self.path / "recipe.toml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            if not self.path.exists():
                raise VitreousError(f"There is no run folder {self.path}; check the path.") from None
            raise VitreousError(
                f"{self.path} is not a run folder (it has no recipe.toml); give the folder that training made."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise unreadable(self.path / "recipe.toml", error) from None

    @cached_property
    def recipe(self) -> recipes.Recipe:
        return recipes.parse(self.tables, own=True)

    @property
    def resolved(self) -> dict[str, Any]:
        """What was decided when the run started: data, machine, versions."""
        if "resolved" not in self.tables:
            raise VitreousError(
                f"{self.path / 'recipe.toml'} has no [resolved] table; give the folder that training made."
            )
        return self.tables["resolved"]

    @property
    def test_reads(self) -> list[dict[str, Any]]:
        """Each reading of the test split: `when` (ISO 8601, UTC) and `by` what; empty while it is unread."""
        return read_test_reads(self.path)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Figures by name, flat: `val_loss` … `test_ovr_f1`, `parameters`, `train_flops`, …"""
        return self._json("summary.json")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of `metrics.csv`, numbers as numbers, empty cells as None."""
        return read_metrics(self.path / "metrics.csv")

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Classes, and for "val" and "test" the figures, per-class figures and confusion matrix.

        A figure that was not a number (a diverged run's loss) is left out.
        """
        content = self._json("evaluation.json")
        try:
            return _parse_evaluation(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise unreadable(self.path / "evaluation.json", error) from None

    @cached_property
    def mistakes(self) -> Mistakes:
        """The most confident mistakes on test, or on validation where the run left test unread."""
        file = self.path / "mistakes.npz"
        try:
            return _parse_mistakes(read_arrays(file), len(self.evaluation["classes"]))
        except FileNotFoundError:
            raise unfinished(self.path, file.name) from None
        except DAMAGE as error:
            raise unreadable(file, error) from None

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """Predictions for "val" and "test", those of them that the run was judged by."""
        try:
            return _parse_predictions(read_arrays(self.path / "predictions.npz"))
        except FileNotFoundError:
            raise unfinished(self.path, "predictions.npz") from None
        except DAMAGE as error:
            raise unreadable(self.path / "predictions.npz", error) from None

    @cached_property
    def bundle(self) -> Bundle:
        """The trained model with its classes, preprocessing and calibration."""
        from vitreous.bundle import load_bundle

        return load_bundle(self.path / "bundle")

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bundle.classes

    @property
    def model(self) -> VisionTransformer:
        """The trained network: a plain `nn.Module` on the CPU, in eval mode."""
        return self.bundle.model

    def predict(self, images: Any) -> np.ndarray:
        """Most likely class, int64 [N], a position in `classes`.

        Images: a path, a PIL image, an array, or a list of these, of any size; one gives N = 1.
        """
        return self.bundle.predict(images)

    def predict_proba(self, images: Any) -> np.ndarray:
        """Probability of each class, float32 [N, C], calibrated on validation; images as for `predict`."""
        return self.bundle.predict_proba(images)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no table")
            return content
        except FileNotFoundError:
            raise unfinished(self.path, name) from None
        except (OSError, ValueError, RecursionError) as error:
            raise unreadable(self.path / name, error) from None


def load(path: Path | str) -> Run | Bundle:
    """A run from its folder, or a bundle from its own; both have `predict`, `predict_proba`, `classes` and `model`.

    Raises:
        VitreousError: `path` is neither, or a bundle that is damaged.
    """
    path = path_of(path)
    if (path / "recipe.toml").exists():
        return Run(path)
    if (path / "config.json").exists():
        from vitreous.bundle import load_bundle

        return load_bundle(path)
    raise VitreousError(
        f"{path} is neither a run folder (it has no recipe.toml) nor a bundle (it has no config.json); "
        "give the folder that training made, or the bundle/ in it."
    )


def unfinished(path: Path, name: str) -> VitreousError:
    """The sentence for a file that a run has not written yet."""
    return VitreousError(f"{path} has no {name}; finish the run with: vitreous train --resume {path}")


def unreadable(path: Path, error: Exception) -> VitreousError:
    """The sentence for a file of a run that is damaged or may not be read."""
    return VitreousError(f"{path} cannot be read ({error}); restore it, or train anew.")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.csv`; numbers as numbers, empty cells as None.

    Raises:
        VitreousError: it is missing, cannot be read, or is not such a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()  # a line cut short by a crash is no row
        rows = list(csv.DictReader(lines, strict=True))
        if rows and "step" not in rows[0]:
            raise ValueError("it has no column 'step'")
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has more or fewer cells than the heading")
        if any(not row["step"] for row in rows):
            raise ValueError("a row has no step")
        return [
            {k: (int(cell) if k == "step" else float(cell)) if cell else None for k, cell in row.items()}
            for row in rows
        ]
    except FileNotFoundError:
        raise unfinished(path.parent, path.name) from None
    except (OSError, ValueError, csv.Error) as error:
        raise unreadable(path, error) from None


# What reading a damaged file of arrays raises.
DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, MemoryError, VitreousError)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by their names, read without pickles and within limits; raises one of `DAMAGE`."""
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
    """Writes `predictions.npz`: `val_names`, `val_labels`, `val_logits`, and the same of test."""
    file = BytesIO()
    arrays = {f"{split}_{name}": array for split, p in predictions.items() for name, array in vars(p).items()}
    np.savez_compressed(file, allow_pickle=False, **arrays)
    atomic_write(path, file.getvalue())


def _parse_predictions(arrays: Mapping[str, np.ndarray]) -> dict[str, Predictions]:
    found = {}
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
            raise ValueError(f"a label of {split} is no class")
        found[split] = Predictions(names, labels, logits)
    if not found:
        raise ValueError("it holds neither val nor test")
    return found


def _parse_evaluation(evaluation: dict[str, Any]) -> dict[str, Any]:
    count = len(evaluation["classes"])
    columns = {"precision", "recall", "f1", "support"}
    for split in {"val", "test"} & set(evaluation):
        entry = evaluation[split]
        if np.asarray(entry["confusion"], dtype=np.int64).shape != (count, count):
            raise ValueError(f"the confusion matrix of {split} is not {count} by {count}")
        if len(entry["per_class"]) != count or not all(columns <= set(row) for row in entry["per_class"]):
            raise ValueError(f"{split} does not have the figures of each of {count} classes")
        entry["figures"] = {key: float(v) for key, v in entry["figures"].items() if v is not None}
    return evaluation


def _parse_mistakes(arrays: Mapping[str, np.ndarray], num_classes: int) -> Mistakes:
    mistakes = Mistakes(*(arrays[name] for name in ("images", "label", "predicted", "confidence", "name")))
    images = mistakes.images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError("its images are not uint8 [K, H, W, 3]")
    if len({len(array) for array in vars(mistakes).values()}) != 1:
        raise ValueError("its arrays differ in length")
    for classes in (mistakes.labels, mistakes.predicted):
        if classes.min(initial=0) < 0 or classes.max(initial=0) >= num_classes:
            raise ValueError(f"a class is outside of 0 to {num_classes - 1}")
    return mistakes


def read_test_reads(path: Path) -> list[dict[str, Any]]:
    """See `Run.test_reads`; `path` is the run folder."""
    file = path / "test_reads.json"
    try:
        reads = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(reads, list) or not all(isinstance(read, dict) for read in reads):
            raise ValueError("it holds no list of readings")
        return reads
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error) from None


def note_test_read(path: Path, by: str) -> None:
    """Notes in the run folder `path` that its test split is about to be read, by what."""
    read = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "by": by}
    atomic_write(path / "test_reads.json", json.dumps([*read_test_reads(path), read], indent=1) + "\n")


@contextmanager
def created(out: Path | str | None, data: str, recipe: str) -> Iterator[Path]:
    """The folder of a new run: `out`, or the next `runs/DATA-RECIPE-NNN`.

    Where nothing was begun, since the recipe was not yet written down, every folder made here goes again.

    Raises:
        VitreousError: `out` is not empty, or nothing can be written there.
    """
    place = Path(out) if out is not None else Path("runs")
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        path = (
            _empty(place) if out is not None else _next(place, re.sub(r"[^\w.-]+", "-", f"{data}-{recipe}"))
        )
    except OSError as error:
        raise write_failure(place, error) from None
    try:
        yield path
    finally:
        if not (path / "recipe.toml").exists():
            (path / "log.txt").unlink(missing_ok=True)
            with suppress(OSError):  # what is not empty stays
                for folder in missing if path == place else (path, *missing):
                    folder.rmdir()


def _empty(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise VitreousError(
            f"{path} is not empty; give another --out, or continue that run with --resume {path}"
        )
    return path


def _next(place: Path, prefix: str) -> Path:
    place.mkdir(exist_ok=True)
    suffixes = [path.name.removeprefix(f"{prefix}-") for path in place.iterdir()]
    number = max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=0)
    while True:
        number += 1
        path = place / f"{prefix}-{number:03d}"
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another process took it just now
            continue


def write_recipe(path: Path, recipe: recipes.Recipe, resolved: Mapping[str, Any]) -> None:
    """Writes `recipe.toml`, complete, so that the run can be repeated from it alone."""
    atomic_write(path / "recipe.toml", recipes.dump({**recipe.tables(), "resolved": resolved}))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file; numbers that JSON does not know become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    atomic_write(path, json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n")


@contextmanager
def log(path: Path) -> Iterator[Say]:
    """Yields `say(line, quiet=False)`, which prints a line and keeps it in `log.txt`."""
    try:
        file = (path / "log.txt").open(
            "ab", buffering=0
        )  # unbuffered: a full disk is met in `say`, not later
    except OSError as error:
        raise write_failure(path / "log.txt", error) from None
    with file:

        def say(line: str, quiet: bool = False) -> None:
            if not quiet:
                print(line, flush=True)
            try:
                file.write(f"{line}\n".encode(errors="backslashreplace"))
            except OSError as error:
                print(f"Warning: {write_failure(path / 'log.txt', error)}", file=sys.stderr)

        yield say
