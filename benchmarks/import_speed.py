"""Times the import of many small image files against reading and decoding them with Pillow alone.

    python benchmarks/import_speed.py                    # 100,000 files, a few minutes
    python benchmarks/import_speed.py --files 10000 --repeats 3

The files are 32×32 pixels, half PNG and half JPEG, in ten class folders. Each repeat runs, one after the other and
each in a process of its own:

- `import`: `open_data` into an empty cache, from the listing of the folder to the packed arrays;
- `pillow_1`: one thread that reads each file, decodes it with Pillow and converts it to RGB in numpy, keeping nothing;
- `pillow_n`: the same work by as many threads as the import uses.

The honest base is the faster of the two Pillow runs, since whoever reads images with Pillow alone may choose. The
result is printed as JSON: medians over the repeats of the seconds (of the clock and of the CPU), their ratio, where
the import spends its time, and its peak memory, which counts the pages that are mapped from its scratch file.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

KINDS = ("import", "pillow_1", "pillow_n")
CLASSES = 10
SIZE = 32


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where to make the files (default: a temporary one)"
    )
    parser.add_argument("--run", choices=KINDS, help=argparse.SUPPRESS)  # in a process of its own
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.run:
        print(json.dumps(measure(args.run, args.folder)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        make_files(Path(folder), args.files)
        results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for repeat in range(args.repeats + 1):  # the first, which warms the caches, does not count
            for kind in KINDS:
                command = [sys.executable, __file__, "--run", kind, "--folder", folder]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                if repeat:
                    results[kind].append(json.loads(output))
    print(json.dumps(summarize(args.files, results), indent=1))


def make_files(root: Path, number: int) -> None:
    """Writes smooth random images, so that both formats have the sizes of real small images."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class{label}").mkdir(parents=True)
    for i in range(number):
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        suffix = ("png", "jpg")[i // CLASSES % 2]
        image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(
            root / f"class{i % CLASSES}" / f"{i}.{suffix}"
        )


def measure(kind: str, root: Path) -> dict[str, Any]:
    if kind == "import":
        return measure_import(root)
    from vitreous.data.folder import GROUP, WORKERS

    workers = 1 if kind == "pillow_1" else WORKERS
    start, cpu_start = time.perf_counter(), time.process_time()
    files = sorted(root.glob("*/*"))
    if workers == 1:
        total = sum(map(decode, files))
    else:
        with ThreadPoolExecutor(workers) as pool:
            groups = [files[first : first + GROUP] for first in range(0, len(files), GROUP)]
            total = sum(pool.map(lambda group: sum(map(decode, group)), groups))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    assert total == len(files) * SIZE * SIZE * 3
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "threads": workers,
        "peak_bytes": peak_bytes(),
    }


def decode(file: Path) -> int:
    return np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB")).size


def measure_import(root: Path) -> dict[str, Any]:
    from vitreous.data import importing
    from vitreous.data.copies import copies_of
    from vitreous.data.sources import open_data

    parts: dict[str, float] = {}

    def timed(name: str) -> None:
        """Adds up the seconds of the calls of a function of the import, or until its `with` block is entered."""
        function: Callable[..., Any] = getattr(importing, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            if not hasattr(result, "__enter__"):
                parts[name] = parts.get(name, 0.0) + time.perf_counter() - start
                return result

            @contextmanager
            def entered() -> Any:
                with result as value:
                    parts[name] = parts.get(name, 0.0) + time.perf_counter() - start
                    yield value

            return entered()

        setattr(importing, name, call)

    for name in ("list_folder", "_state", "open_tree", "choose_size", "surveyed", "pack"):
        timed(name)
    before = peak_bytes()
    with tempfile.TemporaryDirectory() as cache:
        start, cpu_start = time.perf_counter(), time.process_time()
        store = open_data(root, Path(cache), say=lambda line: None)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        peak = peak_bytes()
        start = time.perf_counter()
        copies_of(store)
        parts["copies, found when a run first needs them"] = time.perf_counter() - start
        assert store.image_size == SIZE
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "parts": parts,
        "peak_bytes": peak,
        "peak_bytes_before": before,
    }


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def summarize(files: int, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the repeats, and the ratio of the import to each base within a repeat."""
    seconds = {kind: [run["seconds"] for run in runs] for kind, runs in results.items()}
    base = min(KINDS[1:], key=lambda kind: statistics.median(seconds[kind]))
    ratios = {
        kind: statistics.median(
            ours / theirs for ours, theirs in zip(seconds["import"], seconds[kind], strict=True)
        )
        for kind in KINDS[1:]
    }
    imports = results["import"]
    return {
        "files": files,
        "cpus": os.cpu_count(),
        "threads": results["pillow_n"][0]["threads"],
        "seconds": {kind: round(statistics.median(times), 3) for kind, times in seconds.items()},
        "cpu_seconds": {
            kind: round(statistics.median(run["cpu_seconds"] for run in runs), 3)
            for kind, runs in results.items()
        },
        "files_per_second": {
            kind: round(files / statistics.median(times)) for kind, times in seconds.items()
        },
        "base": base,
        "import_over_base": round(ratios[base], 3),
        "import_over": {kind: round(ratio, 3) for kind, ratio in ratios.items()},
        "import_parts": {
            name: round(statistics.median(run["parts"][name] for run in imports), 3)
            for name in imports[0]["parts"]
        },
        "peak_memory_mb": {
            "import": round(statistics.median(run["peak_bytes"] for run in imports) / 1e6),
            "import_before": round(statistics.median(run["peak_bytes_before"] for run in imports) / 1e6),
            base: round(statistics.median(run["peak_bytes"] for run in results[base]) / 1e6),
        },
    }


if __name__ == "__main__":
    main()
