"""ONNX: one file with the whole way from pixels to probabilities, and a program that runs it without vitreous.

The program reads images with the same modules as vitreous, which are copied beside it. They need numpy and Pillow only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vitreous
from vitreous.bundle import Bundle
from vitreous.data.normalize import normalize, to_float
from vitreous.data.store import Split
from vitreous.errors import VitreousError
from vitreous.export import Answers, Material, Picture, Target
from vitreous.preprocess import EVAL_BATCH

NETWORK_BOUND = 2e-4
INT8_POINTS = 1  # of accuracy on validation that the 8-bit model may lose
# The modules that read images, and what they import.
READING = (
    *("__init__", "errors", "wording", "request", "depth", "profiles", "preprocess"),
    *("data/__init__", "data/tiff", "data/values", "data/decode"),
)
# Runs in a process of its own, with the program that is handed over, and without vitreous itself.
RUNNER = """
import sys
folder, files, out = sys.argv[1:]
sys.path.insert(0, folder)
import numpy as np
import predict
model = predict.Model()
paths = open(files, encoding="utf-8").read().split("\\n")
pixels, known = np.zeros((len(paths), model.size, model.size, 3), np.uint8), np.zeros(len(paths), bool)
for i, path in enumerate(paths):
    try:
        pixels[i] = model.pixels(path)
        known[i] = True
    except predict.BadImage:
        pass
parts = [model.probabilities(pixels[start : start + 64]) for start in range(0, len(paths), 64)]
np.savez(out, pixels=pixels, probabilities=np.where(known[:, None], np.concatenate(parts), np.nan))
print(model.runtime)
"""
USAGE = """
import predict  # needs numpy, Pillow and onnxruntime

model = predict.Model()
probabilities = model.probabilities(model.pixels("image.jpg")[None])[0]
print(model.classes[probabilities.argmax()], probabilities.max())
"""


class FromPixels(nn.Module):
    """The whole network: uint8 [N, S, S, 3] to calibrated probabilities [N, C]."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.bundle_mean, self.bundle_std, self.temperature = bundle.mean, bundle.std, bundle.temperature
        self.model = bundle.model

    def forward(self, images: Tensor) -> Tensor:
        x = normalize(to_float(images), self.bundle_mean, self.bundle_std)
        return (self.model(x) / self.temperature).softmax(dim=1)


def write(material: Material, folder: Path) -> None:
    """Writes model.onnx, predict.py and the modules that it reads images with."""
    if absent := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise VitreousError(
            f"Writing ONNX needs {' and '.join(absent)}; install them with: pip install 'vitreous[onnx]'"
        )
    write_model(material.bundle, folder / "model.onnx")
    here, package = Path(__file__).parent, Path(vitreous.__file__).parent
    shutil.copyfile(here / "onnx_predict.py", folder / "predict.py")
    for name in READING:
        place = folder / "reading" / "vitreous" / f"{name}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / f"{name}.py", place)


def write_model(bundle: Bundle, path: Path) -> None:
    """Writes the ONNX file, with the classes and the preprocessing in its metadata."""
    import onnx

    size = bundle.preprocess.size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    with _quiet():
        program = torch.onnx.export(
            FromPixels(bundle).eval(),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None  # only without dynamo
    proto = program.model_proto
    # The exporter notes which lines of which files it came from, and these are paths of this machine.
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.functions):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    facts = {
        "classes": json.dumps(bundle.classes, ensure_ascii=False),
        "preprocess": json.dumps(dataclasses.asdict(bundle.preprocess)),
        "data": json.dumps(dict(bundle.data), ensure_ascii=False),
    }
    onnx.helper.set_model_props(proto, facts)
    proto.producer_name, proto.producer_version = "vitreous", vitreous.__version__
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps the exporter's warnings about itself away from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


FIND_RUNTIME = "import importlib.util as util, sys; sys.exit(util.find_spec('onnxruntime') is None)"


def write_int8(folder: Path, validation: Split) -> str:
    """Writes model-int8.onnx, whose matrix products take weights of 8 bits, and measures what it loses.

    Only matrix products change: on CIFAR-10, quantized convolutions change ten times as many answers (docs/log.md).

    Returns:
        A sentence with both accuracies on validation.

    Raises:
        VitreousError: it loses more than `INT8_POINTS`, or onnxruntime is not installed.
    """
    if missing():
        raise VitreousError(f"--int8 needs onnxruntime; install it with: {missing()}")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            folder / "model.onnx",
            folder / "model-int8.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    names = ("model.onnx", "model-int8.onnx")
    whole, small = (_correct(folder / name, validation) for name in names)
    if whole - small > INT8_POINTS / 100 * len(validation):
        raise VitreousError(
            f"With 8-bit weights the model loses {100 * (whole - small) / len(validation):.1f} points of accuracy on "
            f"validation, more than {INT8_POINTS}; export without --int8."
        )
    return (
        f"model-int8.onnx classifies {small:,} of {len(validation):,} validation images correctly, "
        f"model.onnx {whole:,}. "
        "The proof on files is of model.onnx alone."
    )


def _correct(path: Path, part: Split) -> int:
    """How many images of a split a model classifies correctly."""
    from onnxruntime import InferenceSession

    session, correct = InferenceSession(path, providers=["CPUExecutionProvider"]), 0
    for start in range(0, len(part), EVAL_BATCH):
        batch = slice(start, start + EVAL_BATCH)
        probabilities = session.run(None, {"images": np.asarray(part.images[batch])})[0]
        correct += int((probabilities.argmax(axis=1) == part.labels[batch]).sum())
    return correct


def answer(folder: Path, pictures: Sequence[Picture]) -> Answers:
    """Runs predict.py of the export on the files, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        files = write_files(pictures, Path(place))
        out = Path(place) / "answers.npz"
        command = [sys.executable, "-IB", "-c", RUNNER, str(folder), str(files), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise VitreousError(
                f"The export's own program failed: {done.stderr.strip()[-500:]}; report this."
            )
        with np.load(out) as arrays:
            return Answers(arrays["probabilities"], arrays["pixels"], done.stdout.strip())


def write_files(pictures: Sequence[Picture], folder: Path) -> Path:
    """Writes the pictures as files, under numbers since their names come from strangers, and a list of their paths."""
    paths = [folder / f"{number:06d}" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(picture.content)
    listing = folder / "files.txt"
    listing.write_text("\n".join(map(str, paths)), encoding="utf-8")
    return listing


def missing() -> str:
    # As the proof will look for it: in a process that ignores PYTHONPATH and the packages of the user's own folder.
    looked = subprocess.run([sys.executable, "-I", "-c", FIND_RUNTIME])
    return "pip install 'vitreous[onnx]'" if looked.returncode else ""


TARGET = Target(
    write=write,
    answer=answer,
    missing=missing,
    network_bound=NETWORK_BOUND,
    reading_bound=lambda bundle, kind: 0.0,
    summary="`model.onnx`, from pixels to probabilities, with `predict.py` to run it on image files",
    usage=USAGE,
    library="onnx",
)
