"""A folder that timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save

from vitreous.export import Answers, Material, Picture, Target
from vitreous.export.plain import check, folded, read_each, reading_bound, to_pixels
from vitreous.files import atomic_write
from vitreous.model.variants import Architecture

NETWORK_BOUND = 2e-4
BASE = "vit_tiny_patch16_224"  # any plain ViT: all of its sizes are replaced
NORM_EPS = 1e-6  # of all layer norms there
BATCH = 64
USAGE = """
import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:.", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")
with torch.no_grad():
    probabilities = model(transform(image)[None]).softmax(dim=1)[0]
print(model.pretrained_cfg["label_names"][probabilities.argmax()], probabilities.max())
"""


def inexpressible(a: Architecture) -> list[str]:
    """The parts of a network that timm's `VisionTransformer` does not have, or not from a file."""
    return [] if a.norm_eps == NORM_EPS else [f"layer norms of epsilon {a.norm_eps:g}"]


def write(material: Material, folder: Path) -> None:
    """Writes config.json and model.safetensors in the layout of the Hugging Face Hub."""
    bundle = material.bundle
    check(bundle, "timm", inexpressible)
    a, size = bundle.model.architecture, bundle.preprocess.size
    token = a.pool == "cls"
    config = {
        "architecture": BASE,
        "num_classes": len(bundle.classes),
        "num_features": a.embed_dim,
        "global_pool": "token" if token else "avg",
        "label_names": bundle.classes,
        "model_args": {
            "img_size": size,
            "patch_size": a.patch_size,
            "embed_dim": a.embed_dim,
            "depth": a.depth,
            "num_heads": a.num_heads,
            "mlp_ratio": (a.mlp_dim + 0.5) / a.embed_dim,  # rounded down there to the width
            "qkv_bias": a.qkv_bias,
            "qk_norm": a.qk_norm,
            "class_token": token,
            "global_pool": "token" if token else "avg",
            "final_norm": a.final_norm,
            "fc_norm": False,  # the norm is before the mean
        },
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash" if bundle.preprocess.fit == "stretch" else "center",
            "mean": bundle.mean,
            "std": bundle.std,
            "num_classes": len(bundle.classes),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    atomic_write(folder / "model.safetensors", save(folded(bundle), metadata={"format": "pt"}))
    atomic_write(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def answer(folder: Path, pictures: Sequence[Picture]) -> Answers:
    """Runs the folder as timm loads it, with timm's transforms, on files opened as the card says."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)

    def read(image: Image.Image) -> np.ndarray:
        return transform(ImageOps.exif_transpose(image).convert("RGB")).numpy()

    inputs, known = read_each(pictures, config["input_size"][-1], read)
    with torch.no_grad():
        parts = [model(batch).softmax(dim=1) for batch in torch.from_numpy(inputs).split(BATCH)]
    probabilities = torch.cat(parts).numpy()
    probabilities[~known] = np.nan
    pixels = to_pixels(inputs, config["mean"], config["std"])
    return Answers(probabilities, pixels, f"timm {timm.__version__}, torch {torch.__version__}")


def missing() -> str:
    return "pip install timm" if importlib.util.find_spec("timm") is None else ""


TARGET = Target(
    write=write,
    answer=answer,
    missing=missing,
    network_bound=NETWORK_BOUND,
    reading_bound=reading_bound,
    summary="a folder for timm",
    usage=USAGE,
    library="timm",
)
