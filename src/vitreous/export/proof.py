"""Proves that an export answers as the model does, from image files and in the export's own runtime.

Two comparisons are made. The network: the export's probabilities with the bundle's for the pixels that the export
itself has read. The reading: those pixels with the ones that the bundle reads from the same file.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitreous import __version__
from vitreous.bundle import Bundle
from vitreous.data.decode import read_image
from vitreous.errors import VitreousError
from vitreous.export import Picture, Target
from vitreous.export.awkward import pictures as awkward_files
from vitreous.files import atomic_write
from vitreous.progress import track
from vitreous.wording import count, printable, series

AT_ONCE, BYTES_AT_ONCE = 1000, 2**27  # files, and bytes of files or of pixels, that are in memory


class Finding(NamedTuple):
    """What was found on one file.

    `network` is the largest difference of a probability for equal pixels. `mean` and `largest` are differences of the
    pixels in levels of 0 to 255, and `change` is the largest change of a probability that they make. All four are 0 for
    a file that neither side can read, and all but `network` are infinite if only one side can. `other_class` and
    `other_reading` say whether the most likely class differs by the network and by the reading.
    """

    name: str
    kind: str
    network: float
    mean: float
    largest: float
    change: float
    other_class: bool
    other_reading: bool
    read: bool


@dataclass(frozen=True)
class Proof:
    """The result of a proof: `kinds` is what is written for each kind of file, see `_summary`."""

    target: str
    proven: bool
    split_files: int
    awkward_files: int
    runtime: str
    missing: str
    network_bound: float
    network: float
    kinds: dict[str, dict[str, Any]]

    def sentences(self) -> Iterator[str]:
        """What a person should know of it."""
        if not self.proven:
            yield f"It is unproven, because its runtime is not installed here; install it with: {self.missing}"
            return
        sources = [f"{count(self.awkward_files, 'awkward file')}"]
        if self.split_files:
            sources.insert(0, f"{count(self.split_files, 'image')} of the run")
        yield (
            f"It is proven on {series(sources)} with {self.runtime}: for equal pixels no probability differs by more "
            f"than {self.network:.1g} (allowed: {self.network_bound:g})."
        )
        equal = sum(kind["equal"] for kind in self.kinds.values())
        files = sum(kind["files"] for kind in self.kinds.values())
        if equal == files:
            yield "It reads every file as the model does, pixel for pixel."
        else:
            yield f"It reads {equal:,} of {files:,} files as the model does, pixel for pixel."
            if refused := [name for name, kind in self.kinds.items() if kind["refused"]]:
                yield f"It refuses some files of these kinds, which the model reads: {', '.join(refused)}."
            if other := self.read_otherwise():
                yield f"It reads some files of these kinds otherwise: {', '.join(other)}; proof.json says how far."

    def read_otherwise(self) -> list[str]:
        """The kinds that are not bounded, of which some files are read otherwise."""
        return [
            name
            for name, kind in self.kinds.items()
            if kind["reading_bound"] is None and kind["equal"] + kind["refused"] < kind["files"]
        ]


def unproven(target: Target, name: str, missing: str) -> Proof:
    """The result where the runtime is not installed; `missing` is the command that installs it."""
    return Proof(name, False, 0, 0, "", missing, target.network_bound, math.nan, {})


def prove(
    target: Target, name: str, bundle: Bundle, folder: Path, files: Iterator[Picture], total: int
) -> Proof:
    """Compares an export with its bundle on `total` image files of its data, and on awkward ones.

    Args:
        name: of the target.
        folder: where the export was written.

    Raises:
        VitreousError: a bound is exceeded; the message names the file that exceeds it most.
    """
    awkward = list(awkward_files(bundle.preprocess.size))
    findings: list[Finding] = []
    runtime = ""
    work = track(chain(awkward, files), len(awkward) + total, f"proving the {name} export")
    for group in _groups(work, bundle.preprocess.size):
        answers = target.answer(folder, group)
        runtime = answers.runtime
        findings += _compare(bundle, group, answers.probabilities, answers.pixels)
    if worst := _worst(target, bundle, findings):
        raise VitreousError(
            f"The {name} export was not kept, because it does not answer as the model does: {worst}; update the "
            "runtime and vitreous, or report this."
        )
    kinds = {
        kind: _summary([finding for finding in findings if finding.kind == kind], target, bundle)
        for kind in dict.fromkeys(finding.kind for finding in findings)
    }
    network = max(finding.network for finding in findings)
    return Proof(name, True, total, len(awkward), runtime, "", target.network_bound, network, kinds)


def _groups(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    """The pictures in lists that do not take too much memory."""
    most = min(AT_ONCE, max(1, BYTES_AT_ONCE // (3 * size * size)))
    group: list[Picture] = []
    held = 0
    for picture in pictures:
        group.append(picture)
        held += len(picture.content)
        if len(group) >= most or held >= BYTES_AT_ONCE:
            yield group
            group, held = [], 0
    if group:
        yield group


def _compare(
    bundle: Bundle, pictures: Sequence[Picture], probabilities: np.ndarray, pixels: np.ndarray
) -> Iterator[Finding]:
    """What the export made of each file, against the bundle."""
    size = bundle.preprocess.size
    if probabilities.shape != (len(pictures), len(bundle.classes)) or pixels.shape != (
        len(pictures), size, size, 3,
    ):  # fmt: skip
        raise VitreousError(
            f"The export answered with {list(probabilities.shape)} probabilities and {list(pixels.shape)} pixels for "
            f"{count(len(pictures), 'file')}; report this."
        )
    own = np.zeros((len(pictures), size, size, 3), np.uint8)
    known = np.zeros(len(pictures), bool)
    for i, picture in enumerate(pictures):
        try:
            own[i] = bundle.preprocess.batch([picture.content], read_image)[0]
            known[i] = True
        except VitreousError:  # such as a damaged file, which the export has to refuse too
            pass
    read = np.isfinite(probabilities).all(axis=1)
    expected = bundle.predict_proba(pixels)  # for the pixels of the export
    ours = bundle.predict_proba(own)
    # Widened, since differences of uint8 wrap around.
    apart = np.abs(pixels.astype(np.int16) - own).reshape(len(pictures), -1)
    for i, picture in enumerate(pictures):
        if not (read[i] and known[i]):
            far = 0.0 if read[i] == known[i] else math.inf
            network = float(np.abs(probabilities[i] - expected[i]).max()) if read[i] else 0.0
            yield Finding(picture.name, picture.kind, network, far, far, far, False, bool(far), bool(read[i]))
            continue
        yield Finding(
            picture.name,
            picture.kind,
            float(np.abs(probabilities[i] - expected[i]).max()),
            float(apart[i].mean()),
            float(apart[i].max()),
            float(np.abs(expected[i] - ours[i]).max()),
            bool(probabilities[i].argmax() != expected[i].argmax()),
            bool(expected[i].argmax() != ours[i].argmax()),
            True,
        )


def _worst(target: Target, bundle: Bundle, findings: Sequence[Finding]) -> str:
    """The file that exceeds a bound most, in words; "" if none does."""
    # NaN is beyond every bound.
    wrong = max(findings, key=lambda finding: math.inf if math.isnan(finding.network) else finding.network)
    # Two classes can change places only if they are closer than twice the bound, so this bounds the class too.
    if not wrong.network <= target.network_bound:
        return (
            f"for the pixels of {printable(wrong.name)}, a probability differs by {wrong.network:.2g} "
            f"(allowed: {target.network_bound:g})"
        )
    bounds = {finding.kind: target.reading_bound(bundle, finding.kind) for finding in findings}
    over = [finding for finding in findings if finding.mean > bounds[finding.kind]]
    if not over:
        return ""
    wrong = max(over, key=lambda finding: finding.mean)
    allowed = bounds[wrong.kind]
    others = f", as {count(len(over) - 1, 'other file')}" if len(over) > 1 else ""
    if math.isinf(wrong.mean):
        refuses = "refuses" if not wrong.read else "reads"
        return f"it {refuses} {printable(wrong.name)}, and the model does not{others}"
    return (
        f"it reads {printable(wrong.name)} with pixels that differ by {wrong.mean:.2g} of 255 levels on average "
        f"(allowed: {allowed:g}){others}"
    )


def _summary(findings: Sequence[Finding], target: Target, bundle: Bundle) -> dict[str, Any]:
    """The record of one kind of file. `one_side_only` counts files that only the model or only the export can read,
    and `refused` those of them that the export cannot.
    """
    bound = target.reading_bound(bundle, findings[0].kind)
    both = [finding for finding in findings if math.isfinite(finding.mean)]
    return {
        "files": len(findings),
        "equal": sum(finding.mean == 0 for finding in findings),
        "one_side_only": len(findings) - len(both),
        "refused": sum(math.isinf(finding.mean) and not finding.read for finding in findings),
        "reading_bound": None if math.isinf(bound) else bound,
        "largest_mean_difference": max((finding.mean for finding in both), default=None),
        "largest_difference": max((finding.largest for finding in both), default=None),
        "largest_change_of_probability": max((finding.change for finding in both), default=None),
        "other_class_by_reading": sum(finding.other_reading for finding in both),
        "network_difference": max(finding.network for finding in findings),
        "other_class_by_network": sum(finding.other_class for finding in findings),
    }


def write(proof: Proof, path: Path) -> None:
    """Writes proof.json: versions, machine, counts, bounds and what was measured. It holds no accuracy."""
    content = {
        "target": proof.target,
        "verdict": "proven" if proof.proven else "unproven",
        **({} if proof.proven else {"prove_after": proof.missing}),
        "vitreous": __version__,
        "runtime": proof.runtime,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "files": {"of the run": proof.split_files, "awkward": proof.awkward_files},
        "network_bound": proof.network_bound,
        "network_difference": proof.network if proof.proven else None,
        "kinds": proof.kinds,
    }
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
