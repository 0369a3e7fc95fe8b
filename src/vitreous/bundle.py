"""A bundle: a trained network on disk with its classes, preprocessing, calibration and figures.

A bundle is a folder with `model.safetensors` and `config.json`. It contains no pickle, and none is read.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vitreous.coverage import Coverage, check_threshold, coverage_of, parse_coverage
from vitreous.data.decode import read_image
from vitreous.data.normalize import normalize, to_float
from vitreous.errors import VitreousError
from vitreous.files import atomic_write, path_of
from vitreous.machine import full_float32
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.native.accelerate import accelerate, unsupported
from vitreous.preprocess import EVAL_BATCH, Preprocess
from vitreous.wording import count

FORMAT = 4
# Limits on any number in an architecture and on its layers, so that a stranger's file cannot exhaust memory or time.
LARGEST, MOST_LAYERS = 2**20, 1024
Network = TypeVar("Network", bound=nn.Module)
# What formats before 4 do not record.
UNRECORDED: Mapping[str, Any] = {"images": {}, "confused": [], "coverage": None}
UNKNOWN = "unknown"  # the label of an image whose class is too uncertain
KINDS: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "bool": bool, "str": str}


class Confusion(NamedTuple):
    """A frequent mistake: so many `images` of the class `true`, which has `total`, were taken for `predicted`."""

    true: str
    predicted: str
    images: int
    total: int


class Prediction(NamedTuple):
    """What a model says about an image.

    `label` is the name of the most likely class, or "unknown" if its `probability` is below the threshold that was
    asked for. `top` holds the most likely classes as (name, probability), the most likely first.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Bundle:
    """A trained model with everything needed to use it on any image.

    Attributes:
        model: a plain network in eval mode, float32.
        classes: names, in the order of the logits.
        mean, std: of each channel, for pixel values from 0 to 1.
        preprocess: turns an image into the network's input, before mean and std.
        temperature: divides the logits before the softmax; 1 leaves them unchanged.
        majority: the largest class of the training images and its share from 0 to 1, a baseline.
        data: name and fingerprint of the training data.
        figures: the run's own, `val_loss` … `test_ece`; empty before they are known.
        images: how many images each split of the run has: "train", "val", "test"; empty if that is not known.
        confused: the most frequent mistakes on test (on validation if test is unread), most frequent first.
        coverage: what a confidence threshold accepts on validation; None if the run trained on validation too, or
            the bundle is of an earlier format.
    """

    model: VisionTransformer
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    preprocess: Preprocess
    temperature: float = 1.0
    majority: tuple[str, float] | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float | None] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    confused: tuple[Confusion, ...] = ()
    coverage: Coverage | None = None

    def logits(self, images: Any) -> Tensor:
        """The logits of one image or many, computed in float32.

        Args:
            images: a path, the bytes of a file, a PIL image, an array or tensor, or a list of these, of any size.
                Arrays of one image are [H, W] (grey), [H, W, 3] or [H, W, 4] (the last channel is opacity), of many
                [N, H, W] or [N, H, W, 3]. Their values are uint8 from 0 to 255, or floats from 0 to 1; more kinds are
                listed at `Preprocess.batch`.

        Returns:
            float32 [N, C] on the CPU; one image gives N = 1.

        Raises:
            VitreousError: an image cannot be read, or an array could mean several things.
        """
        return self._outputs(predictor(self.model), images, len(self.classes))

    def embed(self, images: Any) -> np.ndarray:
        """The pooled features of each image, which the head turns into logits: float32 [N, D]; images as for `logits`.

        D is the `embed_dim` of the model's architecture.
        """
        model = predictor(self.model)
        model.head = nn.Identity()
        return self._outputs(model, images, self.model.architecture.embed_dim).numpy()

    @torch.no_grad()
    def _outputs(self, model: VisionTransformer, images: Any, width: int) -> Tensor:
        """What `model`, a copy of the own one, computes for images: float32 [N, width] on the CPU."""
        device = next(self.model.parameters()).device
        parts = [torch.empty(0, width)]
        with torch.autocast(device.type, enabled=False), full_float32(device.type):
            for batch in self.preprocess.batches(images, EVAL_BATCH, read_image):
                # Copied, since torch warns of arrays that may not be written to.
                pixels = torch.from_numpy(np.array(batch)).to(device)  # uint8 [B, S, S, 3]
                parts.append(model(normalize(to_float(pixels), self.mean, self.std)).cpu())
        return torch.cat(parts)

    def predict(self, images: Any) -> np.ndarray:
        """The most likely class of each image, int64 [N], as a position in `classes`; images as for `logits`."""
        return self.logits(images).argmax(dim=1).numpy()

    def predict_proba(self, images: Any) -> np.ndarray:
        """The probability of each class, float32 [N, C], calibrated by the temperature; images as for `logits`."""
        return self.calibrated(self.logits(images)).numpy()

    def classify(self, images: Any, top: int = 5, reject: float | None = None) -> list[Prediction]:
        """The class of each image by name, with the most likely classes and their calibrated probabilities.

        Args:
            images: as for `logits`; one image gives a list of one.
            top: how many classes to name for each image, at least 1.
            reject: the class is "unknown" if its probability is below this threshold, above 0 and below 1 with at most
                three decimals. `check_reject` tells what a threshold accepts.

        Raises:
            VitreousError: an image cannot be read, or this model cannot take `reject`.
        """
        if reject is not None:
            self.check_reject(reject)
        return self.named(self.predict_proba(images), top, reject)

    def named(self, probabilities: np.ndarray, top: int = 5, reject: float | None = None) -> list[Prediction]:
        """The predictions that probabilities float32 [N, C] make; the other arguments are those of `classify`."""
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise VitreousError(f"top is {top!r}; give the number of classes to name, at least 1.")
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        predictions = []
        for row, places in zip(probabilities, order, strict=True):
            ranked = tuple((self.classes[place], float(row[place])) for place in places)
            name, probability = ranked[0]
            unknown = reject is not None and not probability >= reject
            predictions.append(Prediction(UNKNOWN if unknown else name, probability, ranked))
        return predictions

    def check_reject(self, threshold: float) -> tuple[int, int]:
        """How many validation images a threshold of `classify` accepts, and how many of those are right.

        `coverage.images` is the number of validation images.

        Raises:
            VitreousError: it is no threshold, or what it accepts is not known for this model.
        """
        check_threshold(threshold)
        if UNKNOWN in self.classes:
            raise VitreousError(
                f"The model has a class {UNKNOWN!r}, so no image can be called that; leave out the threshold."
            )
        if self.coverage is not None:
            return self.coverage.at(threshold)
        if not self.images:
            raise VitreousError(
                "The model is of an earlier format, which does not record what a threshold accepts; give the folder of "
                "its run, which has a predictions.npz, or train anew."
            )
        if "val" not in self.images:
            raise VitreousError(
                "The model was trained on its validation images too, so nothing tells what a threshold accepts; train "
                "with --judge both or --judge val, or leave out the threshold."
            )
        raise VitreousError(
            "The training of this model diverged, so its confidence means nothing; train anew."
        )

    def calibrated(self, logits: Tensor) -> Tensor:
        """The probabilities float32 [N, C] of logits [N, C]."""
        return (logits / self.temperature).softmax(dim=1)


def predictor(model: VisionTransformer) -> VisionTransformer:
    """A copy of the network in eval mode, accelerated if possible. `model` itself does not change.

    The copy shares weights and hooks with `model`. Each call gets its own copy, so several threads can predict while
    others train, export or change the model. Hooks are called with the copies of their modules.
    """
    twin = shallow_copy(model).eval()
    return twin if unsupported(model) else accelerate(twin)


def shallow_copy(module: Network) -> Network:
    """A module of the same structure with the same tensors. A deep copy would take too long for a single image."""
    twin = copy.copy(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {
        name: None if child is None else shallow_copy(child) for name, child in module._modules.items()
    }
    return twin


def with_coverage(bundle: Bundle, logits: np.ndarray, labels: np.ndarray) -> Bundle:
    """The bundle with the coverage of its validation logits float32 [N, C] and true classes int64 [N].

    It stays without one if a logit is not finite, as after a divergence.
    """
    probabilities = bundle.calibrated(torch.from_numpy(logits))
    if not len(labels) or not probabilities.isfinite().all():
        return bundle
    return dataclasses.replace(bundle, coverage=coverage_of(probabilities.numpy(), labels))


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Writes a bundle into the folder `path`, each file whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.model.state_dict().items()}
    atomic_write(path / "model.safetensors", safetensors.torch.save(weights))
    write_config(bundle, path)


def write_config(bundle: Bundle, path: Path) -> None:
    """Writes the config.json of a bundle, next to the weights that are already in the folder `path`."""
    statistics = {"mean": bundle.mean, "std": bundle.std}
    config = {
        "format": FORMAT,
        "architecture": dataclasses.asdict(bundle.model.architecture),
        "image_size": bundle.model.image_size,
        "classes": bundle.classes,
        "preprocess": dataclasses.asdict(bundle.preprocess) | statistics,
        "temperature": bundle.temperature,
        "majority": dict(zip(("class", "share"), bundle.majority, strict=True)) if bundle.majority else None,
        "data": dict(bundle.data),
        # The figures of a diverged model can be NaN, which JSON does not have.
        "figures": {
            name: value if value is None or math.isfinite(value) else None
            for name, value in bundle.figures.items()
        },
        "images": dict(bundle.images),
        "confused": [confusion._asdict() for confusion in bundle.confused],
        "coverage": dataclasses.asdict(bundle.coverage) if bundle.coverage else None,
    }
    atomic_write(path / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def load_bundle(path: Path | str, device: str = "cpu") -> Bundle:
    """Reads a bundle of this or an earlier format. It need not be trusted: nothing in it is executed.

    Args:
        device: where to put the model.

    Raises:
        VitreousError: the bundle is missing, damaged, or of a newer format.
    """
    path = path_of(path)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("config.json is not a JSON object")
        version = _typed(config, "format", int)
        if version > FORMAT:
            raise VitreousError(f"The bundle {path} has a newer format; update vitreous to read it.")
        known = {field.name for field in dataclasses.fields(Architecture)}
        if unknown_fields := sorted(_typed(config, "architecture", dict).keys() - known):
            raise VitreousError(
                f"The bundle {path} has a network with {unknown_fields[0]!r}, which this version does not know; "
                "update vitreous to read it."
            )
        parts = _parse(config if version == FORMAT else _upgraded(config))
        weights = path / "model.safetensors"
        # Shapes come from the header alone, so nothing is built or read before network and weights are known to fit.
        with safetensors.safe_open(weights, framework="pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        architecture, image_size = parts.pop("network")
        model = _fitting_model(architecture, image_size, len(parts["classes"]), shapes)
        model.load_state_dict(safetensors.torch.load_file(weights))
        return Bundle(model.to(device).eval(), **parts)
    except FileNotFoundError as error:
        missing = Path(error.filename or path / "model.safetensors").name
        raise VitreousError(
            f"There is no trained model in {path} ({missing} is missing); finish the training, or restore "
            "that folder."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise VitreousError(
            f"The bundle {path} is damaged ({reason}); download it or train it again."
        ) from None


def _upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of an earlier format as one of today. Missing entries get the fixed values of then.

    Format 1 has neither preprocessing nor figures. Up to format 2, embedded colour profiles were ignored. Up to format
    3, images, confusions and coverage were not recorded.
    """
    if config["format"] == 3:
        return {**config, **UNRECORDED}
    if config["format"] == 2:
        preprocess = {**_typed(config, "preprocess", dict), "profiles": "ignored"}
        return {**config, **UNRECORDED, "preprocess": preprocess}
    preprocess = {
        "size": config["image_size"],
        "mean": config["mean"],
        "std": config["std"],
        "profiles": "ignored",
    }
    known = {name: config[name] for name in ("architecture", "image_size", "classes")}
    return {
        **known,
        "preprocess": preprocess,
        "temperature": 1.0,
        "majority": None,
        "data": {},
        "figures": {},
        **UNRECORDED,
    }


def _parse(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Bundle`, with (architecture, image size) as "network"; raises ValueError or KeyError."""
    classes = tuple(_typed(config, "classes", list))
    if not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes is not a list of names")
    "".join(
        classes
    ).encode()  # half a character, which JSON can hold, is a UnicodeEncodeError, so a ValueError
    settings = dict(_typed(config, "preprocess", dict))
    statistics = {name: tuple(settings.pop(name)) for name in ("mean", "std")}
    for name, values in statistics.items():
        if len(values) != 3 or not all(_is_number(v) and (name == "mean" or v > 0) for v in values):
            raise ValueError("mean and std must be three numbers each, and std above 0")
    temperature = config["temperature"]
    if not _is_number(temperature) or temperature <= 0:
        raise ValueError(f"temperature is {temperature!r}")
    majority = config["majority"]
    if majority is not None:
        majority = (majority["class"], majority["share"])
        if majority[0] not in classes or not _is_number(majority[1]) or not 0 < majority[1] <= 1:
            raise ValueError(f"majority is {majority}")
    data, figures = _typed(config, "data", dict), _typed(config, "figures", dict)
    if not all(isinstance(value, str) for value in data.values()):
        raise ValueError("data has values that are not text")
    if not all(value is None or _is_number(value) for value in figures.values()):
        raise ValueError("a figure is not a number")
    images = _typed(config, "images", dict)
    if not all(type(value) is int and value > 0 for value in images.values()):
        raise ValueError("images is not a number for each split")
    confused = tuple(Confusion(**entry) for entry in _typed(config, "confused", list))
    for entry in confused:
        if entry.true not in classes or entry.predicted not in classes:
            raise ValueError(f"confused names a class that is none: {str(entry)[:60]}")
        if not (type(entry.images) is type(entry.total) is int and 0 < entry.images <= entry.total):
            raise ValueError("confused has a number of images that is none")
    image_size = _typed(config, "image_size", int)
    try:
        coverage = parse_coverage(config["coverage"])
        preprocess = Preprocess(**settings)
        architecture = Architecture(**_checked(_typed(config, "architecture", dict)))
    except VitreousError as error:
        raise ValueError(str(error).rstrip(".")) from None
    if preprocess.size != image_size or image_size > LARGEST:
        raise ValueError(f"image_size is {image_size}, but that of preprocessing is {preprocess.size}")
    return {
        **statistics,
        "classes": classes,
        "preprocess": preprocess,
        "temperature": float(temperature),
        "majority": majority,
        "data": data,
        "figures": figures,
        "images": images,
        "confused": confused,
        "coverage": coverage,
        "network": (architecture, image_size),
    }


def _typed(config: Mapping[str, Any], name: str, kind: type) -> Any:
    value = config[name]
    if type(value) is not kind:  # isinstance would take True for an int
        raise ValueError(f"{name} is {str(value)[:40]!r}")
    return value


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold, since an int in JSON may be larger."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max  # false for NaN
    )


def _checked(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of an architecture, checked to have the declared types and sane sizes."""
    for entry in dataclasses.fields(Architecture):
        if entry.name not in table:
            continue
        value, declared = table[entry.name], str(entry.type)
        kind, items = ("int", value) if declared.startswith("tuple") else (declared, [value])
        if declared.startswith("tuple") and not isinstance(value, list | tuple):
            raise ValueError(f"{entry.name} is {value!r}")
        for item in items:
            if not isinstance(item, KINDS[kind]) or (isinstance(item, bool) and kind != "bool"):
                raise ValueError(f"{entry.name} is {str(item)[:40]!r}, not {kind}")
            if isinstance(item, int | float) and not abs(item) <= LARGEST:
                raise ValueError(f"{entry.name} is {str(item)[:40]}, which is too large")
    return table


def _fitting_model(
    architecture: Architecture, image_size: int, num_classes: int, shapes: Mapping[str, list[int]]
) -> VisionTransformer:
    """A new network, built only if its weights have exactly these names and shapes."""
    layers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    if architecture.depth != len(layers) or architecture.depth > MOST_LAYERS:
        raise ValueError(
            f"depth is {architecture.depth}, but the weights are of {count(len(layers), 'layer')}"
        )
    try:
        with torch.device("meta"):  # shapes without memory
            twin = VisionTransformer(architecture, image_size, num_classes)
    except VitreousError as error:
        raise ValueError(str(error).rstrip(".")) from None
    expected = {name: list(tensor.shape) for name, tensor in twin.state_dict().items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in shapes:
            raise ValueError(f"{name} is missing")
        if name not in expected:
            raise ValueError(f"{name} is not a weight of this network")
        if expected[name] != shapes[name]:
            raise ValueError(f"{name} has shape {shapes[name]}, not {expected[name]}")
    with torch.random.fork_rng(devices=[]):  # the caller's generator does not advance
        return VisionTransformer(architecture, image_size, num_classes)
