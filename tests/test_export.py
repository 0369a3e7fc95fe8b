"""Exports answer as the model does, by the libraries that load them, and every sabotage is caught."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import vitreous
from conftest import TINY
from sample_data import encoded, write_files
from vitreous import cli
from vitreous import export as exports
from vitreous.bundle import Bundle, load_bundle, save_bundle
from vitreous.errors import VitreousError
from vitreous.export import Answers, Material, Picture, Target, awkward, export, proof
from vitreous.export import onnx as onnx_target
from vitreous.export import timm as timm_target
from vitreous.export import transformers as transformers_target
from vitreous.export.proof import prove
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.preprocess import Preprocess
from vitreous.run import load, read_test_reads

SIZE = 16
CONV = Architecture(4, 48, 1, 3, 64, stem="conv", stem_dims=(16, 32), pool="attention", qk_norm=True)
PLAIN = Architecture(4, 48, 2, 3, 64, norm_eps=1e-6)
NAMES = ("ant", "bee", '<b>"cat"</b>', "ünï", "e: *")


def bundle_of(architecture: Architecture, **settings: Any) -> Bundle:
    torch.manual_seed(0)
    model = VisionTransformer(architecture, SIZE, len(NAMES)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)  # layers that start at zero would hide differences
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    return Bundle(model, NAMES, mean, std, Preprocess(SIZE, **settings), temperature=1.7)


def saved(folder: Path, bundle: Bundle) -> Path:
    save_bundle(bundle, folder)
    return folder


@pytest.fixture(scope="module")
def everything() -> list[Picture]:
    return list(awkward.pictures(SIZE))


@pytest.fixture(scope="module")
def few(everything: list[Picture]) -> list[Picture]:
    """The awkward files without the largest, which take half of the time."""
    return [picture for picture in everything if picture.kind != "12 megapixels"]


@pytest.fixture
def fast(few: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "awkward_files", lambda size: iter(few))


@pytest.fixture(scope="module")
def conv_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A bundle with its written ONNX export, to be copied."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    bundle, folder = bundle_of(CONV, fit="crop"), tmp_path_factory.mktemp("onnx")
    onnx_target.write(Material(bundle, None), folder)
    return bundle, folder


@pytest.fixture(scope="module")
def plain_transformers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    pytest.importorskip("transformers")
    bundle, folder = bundle_of(PLAIN, fit="stretch"), tmp_path_factory.mktemp("transformers")
    transformers_target.write(Material(bundle, None), folder)
    return bundle, folder


# ---- awkward files


def test_there_are_enough_awkward_files_and_always_the_same(everything: list[Picture]) -> None:
    assert len(everything) >= 200
    assert everything[:50] == list(islice(awkward.pictures(SIZE), 50))
    assert set(awkward.PLAIN) < {picture.kind for picture in everything}
    images = [Image.open(BytesIO(each.content)) for each in everything if each.kind != "damaged"]
    assert max(image.width * image.height for image in images) >= 12e6
    assert {image.format for image in images} >= {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"}
    assert {image.mode for image in images} >= {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"}
    assert {image.getexif().get(0x0112) for image in images} >= set(range(1, 9))
    assert len({image.info["icc_profile"] for image in images if image.info.get("icc_profile")}) == 6


def test_the_model_reads_every_awkward_file_but_the_damaged_ones(few: list[Picture]) -> None:
    bundle = bundle_of(CONV)
    for picture in few:
        if picture.kind == "damaged":
            with pytest.raises(VitreousError):
                bundle.logits(picture.content)
        else:
            bundle.preprocess.batch(picture.content, exports.read_image)


def test_profiles_move_colours_and_plain_files_have_none(few: list[Picture]) -> None:
    applied, ignored = Preprocess(SIZE), Preprocess(SIZE, profiles="ignored")
    for picture in few:
        if picture.kind == "damaged":
            continue
        pair = [each.batch(picture.content, exports.read_image) for each in (applied, ignored)]
        if picture.kind == "colour profile":
            assert not np.array_equal(*pair), picture.name
        else:
            assert np.array_equal(*pair), picture.name


# ---- sabotage: a proof that cannot fail proves nothing


def edit_json(file: str, key: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        assert content[key] != value
        (folder / file).write_text(json.dumps({**content, key: value}))

    return edit


def edit_text(*edits: tuple[str, str, str]) -> Callable[[Path], None]:
    """Replaces in (file, old, new)."""

    def edit(folder: Path) -> None:
        for file, old, new in edits:
            text = (folder / file).read_text()
            assert text.count(old) == 1
            (folder / file).write_text(text.replace(old, new))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def swap_red_and_blue(weights: dict[str, torch.Tensor]) -> None:
    name = "vit.embeddings.patch_embeddings.projection.weight"
    weights[name] = weights[name].flip(1).contiguous()


def forget_the_temperature(weights: dict[str, torch.Tensor]) -> None:
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name] * 1.7


TRANSFORMERS_SABOTAGES = {
    "wrong mean": (
        edit_json("preprocessor_config.json", "image_mean", [0.5, 0.5, 0.6]),
        "probability differs",
    ),
    "red and blue": (edit_weights(swap_red_and_blue), "probability differs"),
    "wrong temperature": (edit_weights(forget_the_temperature), "probability differs"),
    "nearest": (edit_json("preprocessor_config.json", "resample", 0), "levels on average"),
}
PREPROCESS, DECODE = "reading/vitreous/preprocess.py", "reading/vitreous/data/decode.py"
ONNX_SABOTAGES = {
    "red and blue": (
        edit_text(("predict.py", '{"images": pixels}', '{"images": pixels[..., ::-1].copy()}')),
        "probability differs",
    ),
    # Both readers turn images, so both have to forget it.
    "no turn": (
        edit_text(
            (DECODE, "        _turn_upright(image)\n", ""),
            (PREPROCESS, "            image = upright(image)\n", ""),
        ),
        "EXIF orientation",
    ),
    "crop off by one": (
        edit_text((PREPROCESS, "left, top = (width - side) // 2,", "left, top = (width - side + 1) // 2,")),
        "levels on average",
    ),
    "nearest": (edit_text((PREPROCESS, "Resampling.BICUBIC", "Resampling.NEAREST")), "levels on average"),
    "profiles forgotten": (
        edit_text((PREPROCESS, 'if self.profiles == "applied"', 'if self.profiles == "forgotten"')),
        "colour profile",
    ),
    "half an image": (
        edit_text(
            (
                DECODE,
                "\nimport ctypes\n",
                "\nfrom PIL import ImageFile\nImageFile.LOAD_TRUNCATED_IMAGES = 1\nimport ctypes\n",
            )
        ),
        "reads .*damaged, .*and the model does not",
    ),
}


def proves(target: Target, name: str, bundle: Bundle, folder: Path) -> proof.Proof:
    return prove(target, name, bundle, folder, iter(()), 0)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("sabotage", TRANSFORMERS_SABOTAGES)
def test_a_sabotaged_transformers_export_is_caught(
    sabotage: str, plain_transformers: tuple[Bundle, Path], tmp_path: Path
) -> None:
    bundle, written = plain_transformers
    folder = shutil.copytree(written, tmp_path / "copy")
    edit, sentence = TRANSFORMERS_SABOTAGES[sabotage]
    edit(folder)
    with pytest.raises(VitreousError, match=sentence):
        proves(transformers_target.TARGET, "transformers", bundle, folder)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("sabotage", ONNX_SABOTAGES)
def test_a_sabotaged_onnx_export_is_caught(
    sabotage: str, conv_onnx: tuple[Bundle, Path], tmp_path: Path
) -> None:
    bundle, written = conv_onnx
    folder = shutil.copytree(written, tmp_path / "copy")
    edit, sentence = ONNX_SABOTAGES[sabotage]
    edit(folder)
    with pytest.raises(VitreousError, match=sentence):
        proves(onnx_target.TARGET, "onnx", bundle, folder)
