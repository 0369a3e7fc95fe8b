"""A folder that Hugging Face transformers loads: `pipeline("image-classification", model=FOLDER)`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from vitreous.export import Answers, Material, Picture, Target
from vitreous.export.plain import check, folded, read_each, reading_bound, to_pixels
from vitreous.files import atomic_write
from vitreous.model.huggingface import to_huggingface
from vitreous.model.variants import Architecture

NETWORK_BOUND = 2e-4
BICUBIC = 3  # as Pillow numbers its filters
BATCH = 64
USAGE = """
from transformers import AutoImageProcessor, pipeline

# Pillow resizes as in training. torchvision, the default where it is installed, differs by a level here and there.
processor = AutoImageProcessor.from_pretrained(".", backend="pil")
classify = pipeline("image-classification", model=".", image_processor=processor)
print(classify("image.jpg"))
"""


def inexpressible(a: Architecture) -> list[str]:
    """The parts of a network that `ViTForImageClassification` does not have."""
    found = []
    if a.pool != "cls":
        found.append("no class token")
    if a.qk_norm:
        found.append("normalised queries and keys")
    if not a.final_norm:
        found.append("no final norm")
    return found


def write(material: Material, folder: Path) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json."""
    bundle = material.bundle
    check(bundle, "transformers", inexpressible)
    a, size = bundle.model.architecture, bundle.preprocess.size
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": size,
        "patch_size": a.patch_size,
        "num_channels": 3,
        "hidden_size": a.embed_dim,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.num_heads,
        "intermediate_size": a.mlp_dim,
        "hidden_act": "gelu",
        "qkv_bias": a.qkv_bias,
        "layer_norm_eps": a.norm_eps,
        "hidden_dropout_prob": a.dropout,
        "attention_probs_dropout_prob": 0.0,
        "problem_type": "single_label_classification",
        "id2label": {str(i): name for i, name in enumerate(bundle.classes)},
        "label2id": {name: i for i, name in enumerate(bundle.classes)},
    }
    square = {"height": size, "width": size}
    processor: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": square,
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": bundle.mean,
        "image_std": bundle.std,
    }
    if bundle.preprocess.fit == "crop":
        processor |= {"size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": square}
    weights = to_huggingface(folded(bundle))
    atomic_write(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        atomic_write(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def answer(folder: Path, pictures: Sequence[Picture]) -> Answers:
    """Runs the folder as transformers loads it, with its image processor and its reading of files."""
    import transformers

    with redirect_stderr(StringIO()):  # a bar for the weights
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    size = model.config.image_size

    def read(image: Any) -> np.ndarray:
        return processor(transformers.image_utils.load_image(image), return_tensors="np")["pixel_values"][0]

    inputs, known = read_each(pictures, size, read)
    with torch.no_grad():
        parts = [model(batch).logits.softmax(dim=1) for batch in torch.from_numpy(inputs).split(BATCH)]
    probabilities = torch.cat(parts).numpy()
    probabilities[~known] = np.nan
    pixels = to_pixels(inputs, processor.image_mean, processor.image_std)
    return Answers(
        probabilities, pixels, f"transformers {transformers.__version__}, torch {torch.__version__}"
    )


def missing() -> str:
    return "pip install transformers" if importlib.util.find_spec("transformers") is None else ""


TARGET = Target(
    write=write,
    answer=answer,
    missing=missing,
    network_bound=NETWORK_BOUND,
    reading_bound=reading_bound,
    summary="a folder for Hugging Face transformers",
    usage=USAGE,
    library="transformers",
)
