"""A trained network as it lies on disk, complete: weights, sizes, classes, statistics.

A bundle is a folder of `model.safetensors` and `config.json`; no pickle is in it or read from it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitreous.errors import VitreousError
from vitreous.files import atomic_write
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.native.accelerate import accelerate, unsupported

FORMAT = 1
EVAL_BATCH = 500  # fixed, since the batch's size can change the last bits of a product


@dataclass(frozen=True)
class Bundle:
    """A trained model with all that is needed to use it on raw pictures.

    Attributes:
        model: in eval mode.
        classes: names, in the order of the logits.
        mean, std: statistics of each channel, in units of 0 to 1.
        precision: "32" or "bf16", as its figures were computed.
    """

    model: VisionTransformer
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: str

    @torch.no_grad()
    def logits(self, images: Tensor | np.ndarray) -> Tensor:
        """Logits float32 [N, C] on the CPU, of uint8 pictures [N, H, W, 3] as large as the model was trained on.

        Raises:
            VitreousError: the pictures have another type or size.
        """
        images = images if isinstance(images, Tensor) else np.asarray(images)
        size = self.model.image_size
        if tuple(images.shape[1:]) != (size, size, 3) or images.dtype not in (torch.uint8, np.uint8):
            raise VitreousError(
                f"The model takes uint8 pictures [N, {size}, {size}, 3], "
                f"not {images.dtype} {list(images.shape)}; convert or resize them first."
            )
        device = next(self.model.parameters()).device
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (self.mean, self.std))
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")
        was_training = self.model.training
        self.model.eval()
        parts = [torch.empty(0, len(self.classes))]
        for start in range(0, len(images), EVAL_BATCH):
            batch = images[start : start + EVAL_BATCH]
            pixels = batch if isinstance(batch, Tensor) else torch.from_numpy(np.array(batch))  # [B, H, W, 3]
            pixels = pixels.to(device).permute(0, 3, 1, 2)  # [B, 3, H, W]
            with autocast:
                parts.append(self.model((pixels.float() / 255 - mean) / std).float().cpu())
        self.model.train(was_training)
        return torch.cat(parts)


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Writes a bundle into the folder `path`; each file whole or not at all."""
    config = {
        "format": FORMAT,
        "architecture": dataclasses.asdict(bundle.model.architecture),
        "image_size": bundle.model.image_size,
        "attention": bundle.model.attention,
        "classes": bundle.classes,
        "mean": bundle.mean,
        "std": bundle.std,
        "precision": bundle.precision,
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.model.state_dict().items()}
    atomic_write(path / "model.safetensors", safetensors.torch.save(weights))
    atomic_write(path / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def load_bundle(path: Path, device: str = "cpu") -> Bundle:
    """Reads a bundle, which may come from a stranger.

    Raises:
        VitreousError: it is missing, damaged, or of a newer format.
    """
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise VitreousError(f"The bundle {path} is of a newer format; update vitreous to read it.")
        weights = safetensors.torch.load_file(path / "model.safetensors")
        return _assemble(config, weights, device)
    except FileNotFoundError as error:
        missing = Path(error.filename or path / "model.safetensors").name
        raise VitreousError(
            f"There is no trained model in {path} ({missing} is missing); finish its training first."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise VitreousError(f"The bundle {path} is damaged ({reason}); get or make it again.") from None


def _assemble(config: dict[str, Any], weights: dict[str, Tensor], device: str) -> Bundle:
    """The bundle of a parsed `config.json` and its weights; raises one of several errors where they do not fit."""
    classes, mean, std = (tuple(config[name]) for name in ("classes", "mean", "std"))
    if not all(isinstance(name, str) for name in classes):
        raise ValueError("a class's name is no text")
    if len(mean) != 3 or len(std) != 3 or not all(0 < value < math.inf for value in std):
        raise ValueError("mean and std must be three numbers each, and std above 0")
    if config["precision"] not in ("32", "bf16"):
        raise ValueError(f"precision is {config['precision']!r}")
    with torch.random.fork_rng(devices=[]):  # fresh weights, replaced at once, cost the caller no randomness
        try:
            architecture = Architecture(**config["architecture"])
            model = VisionTransformer(architecture, config["image_size"], len(classes))
            model.set_attention(config["attention"])
            if device == "cpu" and not unsupported(model):
                accelerate(model)
        except VitreousError as error:
            raise ValueError(str(error).rstrip(".")) from None
    model.load_state_dict(weights)
    return Bundle(model.to(device).eval(), classes, mean, std, config["precision"])
