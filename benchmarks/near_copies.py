"""Measures how many copies `find_copies` misses, and what it takes for copies though it is none.

    python benchmarks/near_copies.py --trash trash.zip --cifar100 cifar100.zip --lists cifair --sheets sheets

prints three tables and, at the end, all of their numbers as one line of JSON. Data that are not named are left out,
except for CIFAR-10, which is fetched if necessary, and `shapes`.

1. Near-duplicates that people found between and within the splits of CIFAR-10 (Barz and Denzler 2020, "Do we train on
   test data?", https://github.com/cvjena/cifair, folder meta): the share of them that is found.
2. Copies made by one change each: the share of them that is missed, among all other images.
3. Images of data sets that are taken for copies. Whether they are copies is for eyes to decide: `--sheets` writes them
   side by side, as PNG.

The thresholds were chosen by eye on CIFAR-10, TrashNet, Fashion-MNIST, digits and `shapes`. Part 2 uses CIFAR-100 where
it is given, which was not looked at before. The record is `near-copies`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from record import add, state, this_command

import vitreous
from vitreous.data.copies import METHOD, Copies, Pair, find_copies
from vitreous.data.shapes import shapes
from vitreous.data.sources import fetch, open_data
from vitreous.data.store import ImageStore
from vitreous.machine import instruction_sets, processor

JUDGEMENTS = ("exact", "near-duplicate", "very similar")  # 0, 1 and 2 in the lists
SHEET_PAIRS, SHEET_COLUMNS = 144, 12

Change = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    args = make_parser().parse_args()
    source_state = state()
    results: dict[str, dict[str, float]] = {}
    cifar10 = fetch("cifar10")
    found, seconds = timed(cifar10)
    print(f"CIFAR-10: {seconds:.1f} s for {sum(map(len, cifar10.splits.values())):,} images")
    copied = {pair.second for pair in found.pairs if pair.across("train", "test")}
    results["test images with copies in training"] = {"CIFAR-10": len(copied)}
    print(f"CIFAR-10: {len(copied)} test images have copies in training")
    if args.lists:
        results["listed"] = listed(cifar10, found, args.lists)
        show("1. Listed near-duplicates of CIFAR-10: share found", results["listed"])

    photographs = fetch("cifar100", args.data_dir, args.cifar100) if args.cifar100 else cifar10
    small = np.asarray(photographs.splits["test"].images)
    results["missed, 32 pixels"] = missed(small, args.made, args.seed)
    if args.trash:
        store = open_data(args.trash, args.data_dir, image_size=64)
        large = np.concatenate([part.images for part in store.splits.values()])
        second_half = np.sort(np.random.default_rng(0).permutation(len(large))[len(large) // 2 :])
        results["missed, 64 pixels"] = missed(large[second_half], args.made // 4, args.seed)
    for title in [title for title in results if title.startswith("missed")]:
        show(f"2. Made copies: share {title}", results[title])

    sources: dict[str, np.ndarray | ImageStore] = {"CIFAR-10": cifar10, "shapes": shapes()}
    if args.cifar100:
        sources["CIFAR-100"] = photographs
    if args.trash:
        sources["TrashNet"] = large
    if args.fashion:
        sources["Fashion-MNIST"] = fashion(args.fashion)
    try:
        from sklearn.datasets import load_digits

        sources["digits"] = grey(np.rint(load_digits().images * 255 / 16))
    except ImportError:
        print("scikit-learn is not installed, so its digits are left out.")
    results["images"], results["near-copies"], results["equal"], results["seconds"] = {}, {}, {}, {}
    for name, source in sources.items():
        images = source if isinstance(source, np.ndarray) else together(source)
        started = time.perf_counter()
        pairs = find_copies({"all": images}).pairs
        results["seconds"][name] = time.perf_counter() - started
        near = [pair for pair in pairs if not pair.exact]
        results["images"][name] = len(images)
        results["near-copies"][name], results["equal"][name] = len(near), len(pairs) - len(near)
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            sheet(images, near, args.sheets / f"{name}.png")
    print(
        f"\n3. Taken for copies\n  {'':16s} {'images':>8} {'equal':>7} {'near':>7} {'near, share':>12} {'seconds':>8}"
    )
    for name, number in results["images"].items():
        near_copies = results["near-copies"][name]
        print(
            f"  {name:16s} {number:8,.0f} {results['equal'][name]:7,.0f} {near_copies:7,.0f} "
            f"{100 * near_copies / number:11.2f}% {results['seconds'][name]:8.1f}"
        )
    print("\n" + json.dumps(results))
    if args.record:
        add(
            "near-copies",
            study="near-copies",
            arm=f"method {METHOD}",
            command=this_command("near_copies.py"),
            path="numpy",
            machine={"name": processor(), "threads": os.cpu_count(), "instruction_sets": instruction_sets()},
            versions={
                "vitreous": vitreous.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            figures=results,
            source_state=source_state,
        )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", type=Path, metavar="DIR", help="folder with the lists of ciFAIR")
    parser.add_argument("--cifar100", type=Path, metavar="PATH", help="CIFAR-100, as for data fetch --from")
    parser.add_argument(
        "--trash", type=Path, metavar="PATH", help="TrashNet, a folder or zip of class folders"
    )
    parser.add_argument("--fashion", type=Path, metavar="DIR", help="folder with the files of Fashion-MNIST")
    parser.add_argument("--made", type=int, default=2000, help="copies of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="folder for pictures of what is found")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="cache of packed data")
    parser.add_argument("--record", action="store_true", help="write the record")
    return parser


def show(title: str, shares: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, share in shares.items():
        print(f"  {name:28s} {100 * share:6.1f} %")


def timed(store: ImageStore) -> tuple[Copies, float]:
    started = time.perf_counter()
    copies = find_copies({name: split.images for name, split in store.splits.items()})
    return copies, time.perf_counter() - started


def together(store: ImageStore) -> np.ndarray:
    """The images of all splits."""
    return np.concatenate([split.images for split in store.splits.values()])


# Listed ------------------------------------------------------------------------------------------------


def listed(store: ImageStore, copies: Copies, folder: Path) -> dict[str, float]:
    """The share of the listed pairs whose images are in one group, by judgement."""
    group = {
        name: int(number)
        for split, part in store.splits.items()
        for name, number in zip(part.names, copies.groups[split], strict=True)
    }
    if "test:0" not in group:
        raise SystemExit(
            "The lists give positions in the official archive, but this CIFAR-10 was packed from image files."
        )
    hits: dict[str, list[bool]] = {}
    for file, other in (("duplicates_cifar10.csv", "train"), ("duplicates_cifar10_test.csv", "test")):
        with (folder / file).open(newline="") as lines:
            for row in csv.DictReader(lines):
                same = group[f"test:{row['TestID']}"] == group[f"{other}:{row['TrainID']}"]
                hits.setdefault(JUDGEMENTS[int(row["Judgment"])], []).append(same)
    return {
        f"{judgement} ({len(hits[judgement])})": float(np.mean(hits[judgement]))
        for judgement in JUDGEMENTS
        if judgement in hits
    }


# Made --------------------------------------------------------------------------------------------------


def missed(images: np.ndarray, number: int, seed: int) -> dict[str, float]:
    """The share of changed images, by change, that are not in the group of their original."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:number])
    shares = {}
    for name, change in changes(images.shape[1]).items():
        changed = np.stack([change(images[i]) for i in chosen])
        groups = find_copies({"originals": images, "copies": changed}).groups
        shares[name] = float((groups["originals"][chosen] != groups["copies"]).mean())
    return shares


def changes(size: int) -> dict[str, Change]:
    """One change of an image of `size` pixels by name."""
    found: dict[str, Change] = {f"JPEG, quality {quality}": saved(quality) for quality in (95, 75, 50, 30)}
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    found |= {f"half size and back, {name}": resized(0.5, filter) for name, filter in filters.items()}
    found |= {
        f"{share:g} of the size and back": resized(share, filters["bicubic"]) for share in (0.6, 0.8, 1.5)
    }
    steps = [(0, 1), (1, 0), (-1, 0), (1, -1)] + ([(0, 2), (2, 0), (-2, 2)] if size >= 64 else [])
    found |= {f"moved by {down}, {right} pixels": moved(down, right) for down, right in steps}
    found["mirrored"] = lambda image: image[:, ::-1]
    found |= {f"brightness x {factor:g}": brightened(factor) for factor in (0.85, 1.1, 1.2)}
    mirror, half = found["mirrored"], found["half size and back, bicubic"]
    found["mirrored, JPEG 50"] = lambda image: saved(50)(mirror(image))
    found["moved by 1, 0, JPEG 75"] = lambda image: saved(75)(moved(1, 0)(image))
    found["half size and back, JPEG 75"] = lambda image: saved(75)(half(image))
    return found


def saved(quality: int) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return change


def resized(share: float, resample: Image.Resampling) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        size, other = len(image), round(len(image) * share)
        resized = Image.fromarray(image).resize((other, other), resample)
        return np.asarray(resized.resize((size, size), resample))

    return change


def moved(down: int, right: int) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        rows, columns = (np.arange(len(image)) - step for step in (down, right))
        return image[rows.clip(0, len(image) - 1)][:, columns.clip(0, len(image) - 1)]

    return change


def brightened(factor: float) -> Change:
    return lambda image: np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))


# Pictures ----------------------------------------------------------------------------------------------


def grey(images: np.ndarray) -> np.ndarray:
    """[N, H, W] as uint8 [N, H, W, 3]."""
    return np.repeat(images.astype(np.uint8)[..., None], 3, axis=3)


def fashion(folder: Path) -> np.ndarray:
    """The 70,000 images of Fashion-MNIST from its idx files, which Debian has as dataset-fashion-mnist."""
    parts = []
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        with gzip.open(folder / name) as file:
            parts.append(np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28))
    return grey(np.concatenate(parts))


def sheet(images: np.ndarray, pairs: Sequence[Pair], path: Path) -> None:
    """Writes a picture of up to `SHEET_PAIRS` pairs, evenly from all."""
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(len(pairs), SHEET_PAIRS)).astype(int)]
    if not chosen:
        return
    size = images.shape[1]
    enlarged = max(1, 64 // size)
    rows = -(-len(chosen) // SHEET_COLUMNS)
    page = np.full((rows * (size + 4), SHEET_COLUMNS * (2 * size + 6), 3), 255, np.uint8)
    for number, pair in enumerate(chosen):
        top, left = (number // SHEET_COLUMNS) * (size + 4), (number % SHEET_COLUMNS) * (2 * size + 6)
        for place, (_, position) in enumerate((pair.first, pair.second)):
            page[top : top + size, left + place * size : left + (place + 1) * size] = images[position]
    Image.fromarray(page.repeat(enlarged, axis=0).repeat(enlarged, axis=1)).save(path)


if __name__ == "__main__":
    main()
