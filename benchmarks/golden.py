"""Short trainings whose backend and precision are given, and a hash of the weights they end with.

    python benchmarks/golden.py before.json                          # of the code as it was
    python benchmarks/golden.py after.json --against before.json     # of the code as it is

A change that is not meant to change results gives the same hashes and figures, on one machine with one version of
torch. Beside each hash stands the error of the model's logits against float64. With `--against`, what differs is said,
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import vitreous
from vitreous.data.module import ImageData

LINEAR = {"stem": "linear", "stem_dims": []}
CASES: dict[str, dict[str, Any]] = {  # on CIFAR-10 by the default recipe, unless said otherwise
    "native, bf16": {"backend": "native", "precision": "bf16"},
    "native, float32": {"backend": "native", "precision": "32"},
    "torch, bf16": {"backend": "torch", "precision": "bf16"},
    "torch, float32": {"backend": "torch", "precision": "32"},
    "notebook, native, bf16": {
        "recipe": "notebook-cifar10", "backend": "native", "precision": "bf16", "steps": 6,
    },
    "notebook, torch, float32": {
        "recipe": "notebook-cifar10", "backend": "torch", "precision": "32", "steps": 3,
    },
    "AdamW, native, float32": {
        "backend": "native", "precision": "32", "overrides": {"optimizer.name": "adamw"},
    },
    "linear stem, native, bf16": {"backend": "native", "precision": "bf16", "overrides": LINEAR},
    "linear stem, torch, float32": {"backend": "torch", "precision": "32", "overrides": LINEAR},
    "fused attention, float32": {  # from 256 tokens, by the rule
        "backend": "torch", "precision": "32", "steps": 3, "overrides": {**LINEAR, "patch_size": 2},
    },
    "folder of 64 pixels, native, bf16": {"data": "folder", "backend": "native", "precision": "bf16"},
    "mixing, native, float32": {
        "backend": "native", "precision": "32", "steps": 12,
        "overrides": {"mixup": 0.3, "cutmix": 0.5, "cutout": 8},
    },
    "resumed, native, bf16": {"backend": "native", "precision": "bf16", "interrupted": True},
    "resumed, torch, float32": {
        "backend": "torch", "precision": "32", "steps": 12, "interrupted": True,
    },
}  # fmt: skip
STEPS = 24
TIMES = {"train_seconds", "total_seconds", "images_per_second"}  # of a summary: no two runs have the same


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="written: hashes and figures by case")
    parser.add_argument("--against", type=Path, help="an earlier such file")
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="CASE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.one:
        args.file.write_text(json.dumps(train(args.cases[0])))
        return
    found = {}
    for name in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            command = [sys.executable, __file__, str(result), "--one", "--cases", name]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            found[name] = json.loads(result.read_text())
        print(f"{name:36} {found[name]['weights'][:16]} {found[name]['error']:.1e}", flush=True)
    args.file.write_text(json.dumps(found, indent=1) + "\n")
    if args.against and not same(json.loads(args.against.read_text()), found):
        raise SystemExit(1)


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether all that both have is equal; says what is not."""
    equal = True
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        changed = [
            f"{key} {old['summary'][key]} is now {new['summary'][key]}"
            for key in old["summary"].keys() & new["summary"].keys()
            if old["summary"][key] != new["summary"][key]
        ]
        if old["weights"] != new["weights"]:
            changed.insert(0, "other weights")
        if changed:
            equal = False
            print(f"{name}: {', '.join(changed)}")
    return equal


def train(name: str) -> dict[str, Any]:
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        data = pictures(Path(folder) / "pictures") if case.get("data") == "folder" else "cifar10"
        out, recipe = Path(folder) / "run", case.get("recipe", "default")
        options = {name: case[name] for name in ("backend", "precision", "overrides") if name in case}
        options |= {"steps": case.get("steps", STEPS), "device": "cpu", "out": out}
        if case.get("interrupted"):
            threading.Thread(target=interrupt, args=(out / "metrics.csv",), daemon=True).start()
            try:
                vitreous.train(data, recipe, **options)
                raise SystemExit("The run ended before it was interrupted.")
            except KeyboardInterrupt:
                vitreous.resume(out)
        else:
            vitreous.train(data, recipe, **options)
        summary = json.loads((out / "summary.json").read_text())
        return {
            "weights": digest(out / "bundle" / "model.safetensors"),
            "summary": {key: value for key, value in summary.items() if key not in TIMES},
            "error": logits_error(vitreous.load(out)),
        }


def logits_error(run: vitreous.Run) -> float:
    """Of the run's logits on validation, against float64: root mean square, relative to that of the logits."""
    found = run.predictions["val"].logits[:500]
    request, bundle = run.resolved["request"], run.bundle
    data = ImageData(request["data"], image_size=request.get("image_size"), say=lambda line: None)
    data.setup()
    images = torch.as_tensor(np.array(data.splits.val.images[:500])).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in (bundle.mean, bundle.std))
    with torch.inference_mode():
        exact = copy.deepcopy(bundle.model).double()((images - mean) / std).numpy()
    return float(np.square(found - exact).mean() ** 0.5 / np.square(exact).mean() ** 0.5)


def interrupt(metrics: Path) -> None:
    """Ctrl-C, once a few steps are logged."""
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def pictures(folder: Path) -> Path:
    """A folder of four classes, photographs' sizes and no photographs."""
    generator = np.random.default_rng(5)
    for label in range(4):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(250):
            height, width = generator.integers(50, 110, 2)
            low = generator.integers(0, 150, (8, 8, 3)) + 25 * label
            picture = Image.fromarray(low.astype(np.uint8)).resize((int(width), int(height)))
            picture.save(folder / f"class{label}" / f"{number:03d}.png")
    return folder


def digest(file: Path) -> str:
    """SHA-256 of all weights, by name."""
    weights, found = load_file(file), hashlib.sha256()
    for key in sorted(weights):
        found.update(key.encode())
        found.update(weights[key].numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
