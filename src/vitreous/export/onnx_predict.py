"""Classifies image files with model.onnx; needs numpy, Pillow and onnxruntime.

    python predict.py image.jpg …

prints a line for each image: file, class, probability. The folder reading/ holds the part of vitreous that reads
images, under the Apache License 2.0, so that they are read here as in training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "reading"))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import PIL  # noqa: E402

from vitreous.data.decode import read_image  # noqa: E402
from vitreous.errors import VitreousError as BadImage  # noqa: E402
from vitreous.preprocess import Preprocess  # noqa: E402
from vitreous.wording import printable  # noqa: E402


class Model:
    """The model in `path`: its `classes`, and `size`, the side of its input in pixels."""

    def __init__(self, path: str | Path = HERE / "model.onnx") -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        facts = self.session.get_modelmeta().custom_metadata_map
        self.classes: list[str] = json.loads(facts["classes"])
        self.preprocess = Preprocess(**json.loads(facts["preprocess"]))
        self.size = self.preprocess.size
        versions = {"onnxruntime": onnxruntime, "Pillow": PIL, "numpy": np}
        self.runtime = ", ".join(f"{name} {module.__version__}" for name, module in versions.items())

    def pixels(self, path: str | Path) -> np.ndarray:
        """An image file as the network takes it, uint8 [S, S, 3]; raises BadImage, whose text says what is wrong."""
        return self.preprocess.batch([str(path)], read_image)[0]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """The probability of each class, float32 [N, C], for uint8 [N, S, S, 3]."""
        return self.session.run(None, {"images": pixels})[0]


def main(paths: list[str]) -> int:
    if not paths:
        print(__doc__)
        return 2
    model, failed = Model(), False
    for path in paths:
        try:
            probabilities = model.probabilities(model.pixels(path)[None])[0]
        except BadImage as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        name = printable(
            model.classes[probabilities.argmax()]
        )  # a model from a stranger cannot steer a terminal
        print(f"{printable(path)}\t{name}\t{probabilities.max():.4f}")
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
