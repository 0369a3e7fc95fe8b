"""Size, classes, statistics and location of a data set."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from vitreous.data.store import ImageStore
from vitreous.files import human_size
from vitreous.preprocess import Preprocess
from vitreous.request import OPTIONS
from vitreous.wording import printable


def info(store: ImageStore) -> dict[str, Any]:
    """Describes a data set, JSON-able.

    Keys: name, classes (names), image_size, splits ({split: {images, per_class}}), mean and std (of each channel,
    0 to 1), fingerprint, path (None in memory), source, bytes (on disk, or in memory), preprocess (the settings by
    which the images were converted) and notes (sentences about what was guessed or passed over).
    """
    splits = {}
    for split, part in store.splits.items():
        counts = np.bincount(part.labels, minlength=store.num_classes)
        splits[split] = {
            "images": len(part),
            "per_class": dict(zip(store.classes, counts.tolist(), strict=True)),
        }
    if store.path is None:
        size = sum(part.images.nbytes + part.labels.nbytes for part in store.splits.values())
    else:
        size = sum(file.stat().st_size for file in store.path.iterdir())
    return {
        "name": store.name,
        "classes": list(store.classes),
        "image_size": store.image_size,
        "splits": splits,
        "mean": list(store.mean),
        "std": list(store.std),
        "fingerprint": store.fingerprint,
        "path": None if store.path is None else str(store.path),
        "source": store.source,
        "bytes": size,
        "preprocess": asdict(store.preprocess),
        "notes": list(store.notes),
    }


def info_text(record: dict[str, Any]) -> str:
    """The result of `info` as text for a person."""
    classes, splits = record["classes"], record["splits"]
    lines = [
        f"{record['name']}: {len(classes)} classes, "
        f"images of {record['image_size']} by {record['image_size']} pixels"
    ]
    for split, part in splits.items():
        counts = [count for count in part["per_class"].values() if count]
        low, high = min(counts), max(counts)
        per_class = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
        lines.append(f"{split:<11} {part['images']:,} images in {len(counts)} classes, {per_class}")
    for key in ("mean", "std"):
        lines.append(f"{key:<11} " + " ".join(f"{value:.5f}" for value in record[key]))
    lines.append(f"fingerprint {record['fingerprint']}")
    lines.append(f"source      {record['source']}")
    lines.append(f"location    {record['path'] or 'in memory'} ({human_size(record['bytes'])})")
    usual = asdict(Preprocess(record["image_size"], OPTIONS["fit"].default))
    special = {name: value for name, value in record["preprocess"].items() if value != usual[name]}
    if special:
        lines.append("preprocess  " + ", ".join(f"{name} {_plain(value)}" for name, value in special.items()))
    lines += [f"note        {printable(note)}" for note in record["notes"]]
    width = max(len(name) for name in ["class", *classes])
    lines += ["", f"{'class':<{width}}" + "".join(f"{split:>9}" for split in splits)]
    for name in classes:
        lines.append(
            f"{name:<{width}}" + "".join(f"{part['per_class'][name]:>9,}" for part in splits.values())
        )
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """The value of a setting: "pad", "0 to 4095"."""
    if isinstance(value, list | tuple):
        return " to ".join(f"{number:g}" for number in value)
    return str(value)
