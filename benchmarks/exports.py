"""Exports a run and measures its proof and, for ONNX, the speed and size of the model and of its 8-bit form.

    vitreous train cifar10 --minutes 5 --out runs/cifar10-default-seed42-001
    python benchmarks/exports.py runs/cifar10-default-seed42-001 --to onnx --record
    vitreous train cifar10 variant=vit-xs4 embed_dim=96 num_heads=3 mlp_dim=192 depth=4 --steps 150 \\
        --out runs/cifar10-plain
    python benchmarks/exports.py runs/cifar10-plain --to timm --record

The two ONNX models take turns, and the fastest of several rounds counts, since other programs only slow a round down.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import add, state, this_command

import vitreous
from vitreous.export import TARGETS, export
from vitreous.machine import instruction_sets, processor

MODELS = ("model.onnx", "model-int8.onnx")
BATCHES = (1, 64)
ROUNDS, SECONDS = 8, 0.5


def main() -> None:
    args = make_parser().parse_args()
    source_state = state()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "export"
        start = time.perf_counter()
        written = export(args.run, args.to, place, int8=args.to == "onnx")
        figures: dict[str, Any] = {
            "seconds": round(time.perf_counter() - start, 1),
            "notes": list(written.notes),
        }
        proof = json.loads((place / "proof.json").read_text())
        figures |= {name: proof[name] for name in ("runtime", "files", "network_difference", "kinds")}
        if args.to == "onnx":
            figures["models"] = measure(place)
    print(json.dumps(figures, indent=1))
    if args.record:
        add(
            f"export-{args.to}-{args.run.name}",
            study="export",
            arm=args.to,
            command=this_command("exports.py"),
            path="float32",
            machine={"name": processor(), "threads": os.cpu_count(), "instruction_sets": instruction_sets()},
            versions={
                "vitreous": vitreous.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            figures=figures,
            source_state=source_state,
        )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", choices=TARGETS, required=True)
    parser.add_argument("--record", action="store_true", help="add a record")
    return parser


def measure(folder: Path) -> dict[str, Any]:
    """Bytes of each model, and its images per second by batch size, on two threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    sessions = {
        name: onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
        for name in MODELS
    }
    side = sessions[MODELS[0]].get_inputs()[0].shape[1]
    figures: dict[str, Any] = {name: {"bytes": (folder / name).stat().st_size} for name in MODELS}
    for batch in BATCHES:
        images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        best = dict.fromkeys(MODELS, 0.0)
        for _ in range(ROUNDS):
            for name, session in sessions.items():
                done, start = 0, time.perf_counter()
                while time.perf_counter() - start < SECONDS:
                    session.run(None, {"images": images})
                    done += batch
                best[name] = max(best[name], done / (time.perf_counter() - start))
        for name in MODELS:
            figures[name][f"images per second, batches of {batch}"] = round(best[name], 1)
    return figures


if __name__ == "__main__":
    main()
