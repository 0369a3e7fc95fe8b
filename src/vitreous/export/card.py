"""The model card beside an export: README.md in the form that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitreous.balance import is_unequal
from vitreous.bundle import Bundle
from vitreous.data.named import DOWNLOADED_NAMES
from vitreous.export import Material, Target
from vitreous.export.proof import Proof
from vitreous.files import atomic_write
from vitreous.run import Run
from vitreous.statistics import accuracy_text
from vitreous.wording import count, percent, printable, shortened

SHOWN_CLASSES = 100
TITLES = {"train": "training", "val": "validation", "test": "test"}
FITTED = {
    "crop": "its central square is taken",
    "pad": "bars are added beside it",
    "stretch": "its proportions change",
}


def write(
    material: Material, target: Target, to: str, proof: Proof, notes: Sequence[str], path: Path
) -> None:
    """Writes the card. Names of classes come from strangers and are escaped."""
    sections = (_front(material.bundle, target, to), *_sections(material, target, proof, notes))
    atomic_write(path, "\n\n".join(sections) + "\n")


def _front(bundle: Bundle, target: Target, to: str) -> str:
    """The YAML block. It names no licence, since only the owner of the model and its data can choose one."""
    tags = ["image-classification", "vision-transformer", "vitreous", *(["onnx"] if to == "onnx" else [])]
    entries: dict[str, Any] = {
        "library_name": target.library,
        "pipeline_tag": "image-classification",
        "tags": tags,
    }
    accuracy = bundle.figures.get("test_acc")
    name = bundle.data.get("name")
    if accuracy is not None and name in DOWNLOADED_NAMES:
        # Figures are of the official test split, so readers can compare them.
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": name, "split": "test"},
            "metrics": [{"type": "accuracy", "value": round(accuracy, 4)}],
        }
        entries |= {
            "datasets": [name],
            "metrics": ["accuracy"],
            "model-index": [{"name": f"vitreous {name}", "results": [result]}],
        }
    # JSON is YAML, so no name can break out of its value.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    return "\n".join(("---", *lines, "---"))


def _sections(material: Material, target: Target, proof: Proof, notes: Sequence[str]) -> Iterator[str]:
    bundle = material.bundle
    data = bundle.data.get("name")
    yield f"# Image classifier{f' trained on {_plain(data)}' if data else ''}"
    yield (
        f"A Vision Transformer that vitreous trained from scratch. It takes images of {bundle.preprocess.size} × "
        f"{bundle.preprocess.size} pixels and tells {count(len(bundle.classes), 'class', 'classes')} apart. "
        f"This folder holds it as {target.summary}."
    )
    if target.usage:
        yield f"## Use\n\n```python\n{target.usage.strip()}\n```"
    yield "## Proof\n\n" + " ".join((*proof.sentences(), *notes))
    yield "## Figures\n\n" + "\n".join(f"- {line}" for line in _figures(bundle, material.run))
    yield "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(bundle, material.run))
    yield "## Data\n\n" + "\n".join(f"- {line}" for line in _data(bundle))
    yield (
        "## Licence\n\nNone is stated here. The owner of the model and its data chooses one and adds it as `license:` "
        "in the first block of this file."
    )


def _figures(bundle: Bundle, run: Run | None) -> Iterator[str]:
    known = False
    evaluation = run.evaluation if run and run.has("evaluation.json") else {}
    for split, title in (("test", "Test"), ("val", "Validation")):
        accuracy, images = bundle.figures.get(f"{split}_acc"), bundle.images.get(split)
        if accuracy is None:
            continue
        known = True
        lines = [f"{title} accuracy: {percent(accuracy)}."]
        if images is not None:
            shown = accuracy_text(round(accuracy * images), images)
            lines = [f"{title} accuracy: {shown} on {count(images, 'image')}."]
        recall = bundle.figures.get(f"{split}_cat_recall")
        if recall is not None:
            lines.append(
                f"{title}, mean of the classes' recalls, which counts each class alike: {percent(recall)}."
            )
        if is_unequal([entry["support"] for entry in evaluation.get(split, {}).get("per_class", [])]):
            lines.reverse()
        yield from lines
        calibration = bundle.figures.get(f"{split}_ece_calibrated")
        if calibration is not None:
            yield (
                f"{title} calibration error: {calibration:.3f} (mean difference of confidence and accuracy)."
            )
    if not known:
        yield "No accuracy is recorded in the model."
    if bundle.majority:
        yield (
            f"Always answering {_plain(bundle.majority[0])}, the largest class, would be right for "
            f"{percent(bundle.majority[1])} of the training images."
        )
    if not math.isclose(bundle.temperature, 1):
        yield f"Probabilities are calibrated on validation with the temperature {bundle.temperature:.3f}."


def _limits(bundle: Bundle, run: Run | None) -> Iterator[str]:
    for confusion in bundle.confused:
        yield (
            f"{confusion.images:,} of {count(confusion.total, 'image')} of {_plain(confusion.true)} were taken for "
            f"{_plain(confusion.predicted)}."
        )
    copied = {(leak["split"], leak["name"]) for leak in run.copies.get("leaks", ())} if run else set()
    for split in sorted({split for split, _ in copied}):
        number = sum(each == split for each, _ in copied)
        yield (
            f"{count(number, f'{TITLES[split]} image')} of the data are copies or near-copies of others that the "
            "model was trained or chosen on, so the figures may flatter it."
        )
    yield (
        "It answers with one of its classes for every image. An image that shows none of them gets one too, often with "
        "a high probability."
    )
    yield (
        "Images from other cameras, places or times than the training images can be classified worse than the figures "
        "say."
    )
    size = bundle.preprocess.size
    yield (
        f"Details smaller than a pixel of {size} × {size} are lost. In an image that is not square, "
        f"{FITTED[bundle.preprocess.fit]}."
    )


def _data(bundle: Bundle) -> Iterator[str]:
    if name := bundle.data.get("name"):
        yield f"Name: {_plain(name)}"
    if fingerprint := bundle.data.get("fingerprint"):
        yield f"Fingerprint (SHA-256 of classes, labels and pixels): `{_plain(fingerprint)}`"
    if bundle.images:
        sizes = [f"{images:,} {TITLES.get(split, _plain(split))}" for split, images in bundle.images.items()]
        yield f"Images: {', '.join(sizes)}"
    yield f"Classes: {shortened([_plain(name) for name in bundle.classes], SHOWN_CLASSES)}"


def _plain(text: str) -> str:
    """A name from a stranger as plain text in Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-!|&~$@" else c for c in printable(text))
