"""Exports of a trained model, each proven against the model before it is handed over.

    files ──► write(material, folder) ──► the export ──► answer(folder, pictures) ──► prove: the same as the bundle?

A target writes its files, then answers for image files in its own runtime, in its own reading of the files. The proof
compares these answers with those of the float32 bundle. An export that fails leaves nothing behind.
"""

from __future__ import annotations

import math
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vitreous.bundle import Bundle
from vitreous.data.decode import read_image
from vitreous.data.originals import files_of
from vitreous.data.store import ImageStore, Split
from vitreous.depth import origin_of
from vitreous.errors import VitreousError, unknown
from vitreous.evaluation import has_read_test, open_split
from vitreous.files import path_of, write_failure
from vitreous.preprocess import Preprocess
from vitreous.run import Run, load
from vitreous.wording import count

# The module of each target, which holds it as `TARGET`. They are loaded when they are needed.
TARGETS = ("html", "onnx", "timm", "transformers")
MOST_FILES = 10_000  # of a split, evenly over it, that a proof runs on
SAMPLE_SIDE, SAMPLE_BYTES = (
    256,
    40_000,
)  # samples larger than both are written anew, so that a page stays small


class Picture(NamedTuple):
    """An image file: its `name`, the `kind` of its contents such as "test split" or "CMYK", and its bytes."""

    name: str
    kind: str
    content: bytes


class Answers(NamedTuple):
    """What an export says about image files.

    `probabilities` float32 [N, C]; `pixels` uint8 [N, S, S, 3] are what its own reading made of each file, before
    normalisation. A file that it cannot read has NaN probabilities. `runtime` names what answered, with versions.
    """

    probabilities: np.ndarray
    pixels: np.ndarray
    runtime: str = ""


@dataclass(frozen=True)
class Material:
    """What an export may contain.

    Attributes:
        bundle: the trained model.
        run: the run it is from; None for a bundle alone.
        samples: images of the data for people to try, as many as were asked for.
        labels: the class of each sample, as a position in the bundle's classes.
    """

    bundle: Bundle
    run: Run | None
    samples: tuple[Picture, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Target:
    """A format that models are exported to.

    Attributes:
        write: writes the export into an empty folder; raises `VitreousError` if the model cannot be exported.
        answer: runs a written export on image files in its own runtime.
        missing: the command that installs the runtime where it is not installed, else "".
        network_bound: the largest difference of a probability from the bundle's for equal pixels.
        reading_bound: how far the pixels that it reads may differ from the bundle's, for a model and a kind of file:
            the largest mean difference of one image, in levels of 0 to 255. 0 means equal, and infinity that the kind
            is not bounded, only reported.
        summary: what it is, for a person who chooses.
        usage: a program in Python that loads the export in the folder `.` and classifies `image.jpg`, for the card.
        library: the name of the library that loads it, as model cards have it.
    """

    write: Callable[[Material, Path], None]
    answer: Callable[[Path, Sequence[Picture]], Answers]
    missing: Callable[[], str]
    network_bound: float
    reading_bound: Callable[[Bundle, str], float]
    summary: str
    usage: str = ""
    library: str = "vitreous"


class Exported(NamedTuple):
    """A written export: its folder, whether it was proven, and sentences about it."""

    folder: Path
    proven: bool
    notes: tuple[str, ...]


def export(
    path: Path | str,
    to: str,
    out: Path | str | None = None,
    *,
    samples: int = 12,
    int8: bool = False,
    data: Any = None,
) -> Exported:
    """Exports a trained model, and proves that the export answers as the model does.

    Args:
        path: a run folder or a bundle.
        to: one of `TARGETS`.
        out: the folder to write, which may exist if it is empty; by default exports/NAME-TARGET.
        samples: for html, the most images of the run's validation split that go into the page. A bundle has none.
        int8: for onnx, also writes a model with weights of 8 bits, which may lose at most a point of accuracy on
            validation. The run needs validation images for it.

    Returns:
        The folder with the export, `proof.json` and a model card. It is not proven if the runtime is not installed.

    Raises:
        VitreousError: the model cannot be exported so, the export answers differently, or the folder is not empty.
            Nothing is written then.
    """
    from vitreous.export import card, proof

    if to not in TARGETS:
        raise unknown("export", to, TARGETS)
    if int8 and to != "onnx":
        raise VitreousError(f"--int8 writes an ONNX model, so it does not go with --to {to}; leave it out.")
    if samples < 0:
        raise VitreousError(f"--samples is {samples}; give a number of images, 0 for none.")
    path = path_of(path)
    loaded = load(path)
    run = loaded if isinstance(loaded, Run) else None
    bundle = loaded.bundle if isinstance(loaded, Run) else loaded
    if not np.isfinite(bundle.predict_proba(Image.new("RGB", (1, 1), "grey"))).all():
        raise VitreousError(f"The model in {path} gives no finite probabilities; train it again.")
    target: Target = import_module(f"vitreous.export.{to}").TARGET
    folder = path_of(out) if out is not None else Path("exports") / f"{_name(path)}-{to}"
    notes: list[str] = []
    material = Material(bundle, run)
    if to == "html" and run is not None and samples:
        material = Material(bundle, run, *_samples(run, bundle, samples, notes, data))
    with _new_folder(folder) as temporary:
        target.write(material, temporary)
        if int8:
            from vitreous.export.onnx import write_int8

            validation = _open(run, "val", notes, data) if run else None
            if validation is None:
                raise VitreousError(
                    "--int8 is measured on validation, and there are no validation images; give a run that held some "
                    "back, or export without --int8."
                )
            notes.append(write_int8(temporary, validation[1]))
        if missing := target.missing():
            result = proof.unproven(target, to, missing)
        else:
            result = proof.prove(target, to, bundle, temporary, *_run_files(run, notes, data))
        proof.write(result, temporary / "proof.json")
        card.write(material, target, to, result, notes, temporary / "README.md")
    if to == "html":
        notes.append(f"The page contains {count(len(material.samples), 'image')} of the data.")
    return Exported(folder, result.proven, (*result.sentences(), *notes))


def _name(path: Path) -> str:
    """What a run or bundle is called. The bundle of a run is called like the run."""
    path = path.resolve()
    return path.parent.name if path.name == "bundle" and path.parent.name else path.name


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which becomes `folder` at the end, and is removed after any error."""
    if folder.exists() and folder.resolve() == Path.cwd():
        raise VitreousError("The export needs a folder of its own; give --out a name, such as --out export.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise VitreousError(f"{folder} is not empty; give another --out.")
    missing = [place for place in folder.absolute().parents if not place.exists()]
    temporary = folder.absolute().with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rmdir()  # empty; some systems do not rename onto a folder
        temporary.rename(folder)
    except OSError as error:
        raise write_failure(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for place in missing:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def _open(run: Run, split: str, notes: list[str], data: Any = None) -> tuple[ImageStore, Split] | None:
    """A split of a run's data; None, with a note, if the data cannot be opened."""
    try:
        return open_split(run, split, data=data)
    except VitreousError as error:
        # The reason may name places on this machine, which are no part of a model card.
        print(f"The {_title(split)} images cannot be used: {error}", file=sys.stderr)
        notes.append(f"The {_title(split)} images of the run could not be used.")
        return None


def _title(split: str) -> str:
    return "validation" if split == "val" else split


def _run_files(run: Run | None, notes: list[str], data: Any = None) -> tuple[Iterator[Picture], int]:
    """The run's test images as files, or those of validation if test is unread, and how many they are.

    Labels are not used, so this is no evaluation on test.
    """
    from vitreous.export import awkward

    if run is None:
        notes.append(
            "A bundle has no images, so the proof ran on generated files alone; give the run for more."
        )
        return iter(()), 0
    split = "test" if has_read_test(run) else "val"
    opened = _open(run, split, notes, data)
    if opened is None:
        return iter(()), 0
    store, part = opened
    if len(part) > MOST_FILES:
        notes.append(f"The proof ran on {MOST_FILES:,} of the {len(part):,} {_title(split)} images.")
        part = part.subset(np.linspace(0, len(part) - 1, MOST_FILES).round().astype(int))
    pictures = (
        Picture(name, f"{_title(split)} split{awkward.nature(content)}", content)
        for name, content in files_of(store, part)
    )
    return pictures, len(part)


def _samples(
    run: Run, bundle: Bundle, most: int, notes: list[str], data: Any = None
) -> tuple[tuple[Picture, ...], tuple[int, ...]]:
    """Validation images, at most so many: first one of each class, then a second of each, and so on."""
    opened = _open(run, "val", notes, data)
    if opened is None:
        return (), ()
    store, part = opened
    labels = np.asarray(part.labels)
    # The place of each image within its class decides first, then its class.
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    turn = np.empty(len(labels), int)
    turn[order] = np.arange(len(labels)) - starts
    chosen = np.lexsort((labels, turn))[:most]
    pictures = tuple(
        Picture(name, "validation split", _small(content, bundle.preprocess))
        for name, content in files_of(store, part.subset(chosen))
    )
    return pictures, tuple(int(label) for label in labels[chosen])


def _small(content: bytes, settings: Preprocess) -> bytes:
    """An image file as it is or, if it is large, as an upright JPEG of at most `SAMPLE_SIDE` pixels."""
    image = read_image(content)
    if len(content) <= SAMPLE_BYTES and max(image.size) <= 4 * SAMPLE_SIDE:
        return content
    rgb, colours = settings.rgb(image, origin_of(image))
    scale = min(1.0, SAMPLE_SIDE / max(rgb.size))
    rgb = rgb.resize((math.ceil(rgb.width * scale), math.ceil(rgb.height * scale)), Image.Resampling.BICUBIC)
    file = BytesIO()
    (colours(rgb) if colours else rgb).save(file, "JPEG", quality=90)
    return file.getvalue()
