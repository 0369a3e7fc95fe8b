"""Exports of a trained model, each proven against the model before it is handed over.

    files ──► write(material, folder) ──► the export ──► answer(folder, pictures) ──► prove: the same as the bundle?

A target writes its files, then answers for image files in its own runtime, in its own reading of the files. The proof
compares these answers with those of the float32 bundle. An export that fails leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitreous.bundle import Bundle
from vitreous.run import Run


class Picture(NamedTuple):
    """An image file: its `name`, the `kind` of its contents such as "test split" or "CMYK", and its bytes."""

    name: str
    kind: str
    content: bytes


class Answers(NamedTuple):
    """What an export says about picture files.

    `probabilities` float32 [N, C]; `pixels` uint8 [N, S, S, 3] are what its own reading made of each file, before
    normalisation. A file that it cannot read has NaN probabilities.
    """

    probabilities: np.ndarray
    pixels: np.ndarray


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
        summary: what it is, for a person who chooses.
    """

    write: Callable[[Material, Path], None]
    answer: Callable[[Path, Sequence[Picture]], Answers]
    missing: Callable[[], str]
    network_bound: float
    summary: str
