"""Short trainings with a given backend and precision, and a hash of their final weights.

    python benchmarks/golden.py before.json                          # with the old code
    python benchmarks/golden.py after.json --against before.json     # with the new code
    python benchmarks/golden.py after.json --against golden --record # against the record `golden`, which is renewed

On one machine with one version of torch, a change that should not affect results gives the same hashes and figures.
The number beside each hash is the error of the model's logits against float64. With `--against`, differences are
printed and the exit status is 1. Test splits stay unread.
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
from record import add, load, state
from safetensors.torch import load_file

import vitreous
from vitreous.data.module import ImageData
from vitreous.machine import instruction_sets, processor

LINEAR = {"stem": "linear", "stem_dims": []}
CASES: dict[str, dict[str, Any]] = {  # the default recipe on CIFAR-10, unless a case says otherwise
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
TIMES = {"train_seconds", "total_seconds", "images_per_second"}  # in a summary: no two runs agree on them


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="written: hashes and figures by case")
    parser.add_argument(
        "--against", metavar="FILE|golden", help="an earlier such file, or the record `golden`"
    )
    parser.add_argument("--record", action="store_true", help="renew the record `golden`; needs --against")
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="CASE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    return parser


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if args.one:
        args.file.write_text(json.dumps(train(args.cases[0])))
        return
    if args.record and not args.against:
        parser.error("--record needs --against, since the record holds both versions")
    source_state = state()
    results = {}
    for name in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "result.json"
            command = [sys.executable, __file__, str(file), "--one", "--cases", name]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            results[name] = json.loads(file.read_text())
        print(f"{name:36} {results[name]['weights'][:16]} {results[name]['error']:.1e}", flush=True)
    args.file.write_text(json.dumps(results, indent=1) + "\n")
    if not args.against:
        return
    before, before_commit = earlier(args.against)
    if args.record:
        add(
            "golden",
            study="golden",
            arm="all",
            command=f"python benchmarks/golden.py after.json --against {args.against} --record",
            data="cifar10",
            path="as each case's name says",
            machine={"name": processor(), "instruction_sets": instruction_sets(), "threads": os.cpu_count()},
            versions={"torch": torch.__version__},
            figures={"before": before, "after": results},
            source_state=source_state,
            replace=True,  # `--record` renews it, whatever it was compared with
            before_commit=before_commit,
        )
    if not equal(before, results):
        raise SystemExit(1)


def earlier(source: str) -> tuple[dict[str, Any], str | None]:
    """The results to compare with, and their commit where it is known."""
    if source != "golden":
        return json.loads(Path(source).read_text()), None
    (record,) = load("golden")
    return record["figures"]["after"], record["commit"]


def equal(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether the cases that both have agree; prints every difference."""
    agree = True
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        changes = [
            f"{key} {old['summary'][key]} is now {new['summary'][key]}"
            for key in old["summary"].keys() & new["summary"].keys()
            if old["summary"][key] != new["summary"][key]
        ]
        if old["weights"] != new["weights"]:
            changes.insert(0, "other weights")
        if changes:
            agree = False
            print(f"{name}: {', '.join(changes)}")
    return agree


def train(name: str) -> dict[str, Any]:
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        data = image_folder(Path(folder) / "pictures") if case.get("data") == "folder" else "cifar10"
        out, recipe = Path(folder) / "run", case.get("recipe", "default")
        options: dict[str, Any] = {
            name: case[name] for name in ("backend", "precision", "overrides") if name in case
        }
        options |= {"steps": case.get("steps", STEPS), "device": "cpu", "out": out, "judge": "val"}
        if case.get("interrupted"):
            threading.Thread(target=interrupt, args=(out / "metrics.csv",), daemon=True).start()
            try:
                vitreous.train(data, recipe, **options)
                raise SystemExit("The run ended before it could be interrupted.")
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
    """Root mean square error of the run's logits on validation against float64, relative to the logits' own."""
    logits = run.predictions["val"].logits[:500]
    request, bundle = run.resolved["request"], run.bundle
    data = ImageData(request["data"], image_size=request.get("image_size"), say=lambda line: None)
    data.setup()
    images = torch.as_tensor(np.array(data.splits.val.images[:500])).permute(0, 3, 1, 2).double() / 255
    mean, std = (
        torch.tensor(channels, dtype=torch.float64).view(3, 1, 1) for channels in (bundle.mean, bundle.std)
    )
    with torch.inference_mode():
        exact = copy.deepcopy(bundle.model).double()((images - mean) / std).numpy()
    return float(np.square(logits - exact).mean() ** 0.5 / np.square(exact).mean() ** 0.5)


def interrupt(metrics: Path) -> None:
    """Sends Ctrl-C once a few steps are logged."""
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def image_folder(folder: Path) -> Path:
    """Makes a folder of four classes with images of various sizes, drawn at random."""
    generator = np.random.default_rng(5)
    for label in range(4):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(250):
            height, width = generator.integers(50, 110, 2)
            low = generator.integers(0, 150, (8, 8, 3)) + 25 * label
            image = Image.fromarray(low.astype(np.uint8)).resize((int(width), int(height)))
            image.save(folder / f"class{label}" / f"{number:03d}.png")
    return folder


def digest(file: Path) -> str:
    """SHA-256 of all weights in the order of their names."""
    weights, sha = load_file(file), hashlib.sha256()
    for key in sorted(weights):
        sha.update(key.encode())
        sha.update(weights[key].numpy().tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    main()
