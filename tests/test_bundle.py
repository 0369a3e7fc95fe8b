"""Bundles: the same logits after a round trip, and a sentence for each way in which one can be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vitreous.bundle import EVAL_BATCH, Bundle, load_bundle, save_bundle
from vitreous.errors import VitreousError
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer, create_model
from vitreous.native.build import library

ARCHITECTURES = {
    "linear": Architecture(4, 16, 2, 2, 32, dropout=0.3),
    "conv": Architecture(4, 16, 1, 2, 32, stem="conv", stem_dims=(4, 8), pool="attention", qk_norm=True),
    "sine": Architecture(4, 16, 1, 2, 32, pos_embed="sine", pool="mean", head_hidden=8, drop_path=0.5),
}


def make(name: str = "linear", precision: str = "32") -> Bundle:
    torch.manual_seed(0)
    model = VisionTransformer(ARCHITECTURES[name], image_size=8, num_classes=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # zero-initialised ones would hide a mistake
    model.init_from_data(torch.randn(64, 3, 8, 8))
    model.set_attention("explicit")
    return Bundle(model, ("cat", "Žluť 猫", 'a "b"'), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), precision)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_logits_after_a_round_trip(name: str, images: np.ndarray, tmp_path: Path) -> None:
    before = make(name)
    save_bundle(before, tmp_path / "new" / "bundle")
    after = load_bundle(tmp_path / "new" / "bundle")
    assert torch.equal(before.logits(images), after.logits(images))
    assert (after.classes, after.mean, after.std, after.precision) == (
        before.classes, before.mean, before.std, before.precision,
    )  # fmt: skip
    assert after.model.architecture == before.model.architecture
    assert after.model.attention_path == "explicit"
    assert not after.model.training
    assert {file.name for file in (tmp_path / "new" / "bundle").iterdir()} == {
        "model.safetensors",
        "config.json",
    }


@pytest.mark.skipif(library(torch.float32) is None, reason="no C++ compiler")
def test_our_own_kernels_are_used_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    model = create_model("compact", image_size=32, num_classes=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # layers that begin at zero would say nothing
    model.set_attention("native")
    save_bundle(Bundle(model, ("a", "b", "c"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "32"), tmp_path)
    with_kernels = load_bundle(tmp_path)
    monkeypatch.setattr("vitreous.bundle.supports", lambda architecture, dtype: False)
    without = load_bundle(tmp_path)
    assert (with_kernels.model.attention_path, without.model.attention_path) == ("native", "explicit")
    torch.testing.assert_close(with_kernels.logits(images), without.logits(images), atol=1e-5, rtol=1e-5)


def test_logits_are_those_of_the_network_on_normalised_pictures(images: np.ndarray) -> None:
    bundle = make()
    x = np.stack([(images[..., c] / 255 - bundle.mean[c]) / bundle.std[c] for c in range(3)], axis=1)
    with torch.no_grad():
        expected = bundle.model.eval()(torch.tensor(x, dtype=torch.float32))
    torch.testing.assert_close(bundle.logits(images), expected, rtol=1e-5, atol=1e-5)


def test_logits_neither_train_nor_change_the_model(images: np.ndarray) -> None:
    bundle = make()
    bundle.model.train()
    first, second = bundle.logits(images), bundle.logits(images)
    assert torch.equal(first, second)  # no dropout
    assert bundle.model.training and not first.requires_grad and first.dtype == torch.float32


def test_logits_of_many_pictures_and_of_none() -> None:
    bundle = make()
    many = np.random.default_rng(1).integers(0, 256, (EVAL_BATCH + 3, 8, 8, 3), dtype=np.uint8)
    logits = bundle.logits(many)
    assert logits.shape == (EVAL_BATCH + 3, 3)
    torch.testing.assert_close(logits[-3:], bundle.logits(many[-3:]), rtol=1e-5, atol=1e-5)
    assert bundle.logits(many[:0]).shape == (0, 3)


@pytest.mark.filterwarnings("error")
def test_logits_of_read_only_arrays_tensors_and_lists_agree(images: np.ndarray) -> None:
    bundle = make()
    expected = bundle.logits(images)
    frozen = images.copy()
    frozen.setflags(write=False)
    for same in (frozen, torch.from_numpy(images), list(images), images[::-1][::-1]):
        assert torch.equal(bundle.logits(same), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 3), np.int64),
        torch.zeros(2, 8, 8, 3),
        torch.zeros(2, 8, 8, 3, dtype=torch.int8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 9, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((), np.uint8),
        [],
    ],
    ids=lambda wrong: f"{getattr(wrong, 'dtype', 'list')}{list(getattr(wrong, 'shape', []))}",
)
def test_other_pictures_are_refused_in_a_sentence(wrong: Any) -> None:
    with pytest.raises(VitreousError, match=r"takes uint8 pictures \[N, 8, 8, 3\].*convert or resize"):
        make().logits(wrong)


def test_loading_leaves_the_callers_randomness_alone(tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_bundle(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def refused(path: Path) -> str:
    with pytest.raises(VitreousError) as failure:
        load_bundle(path)
    sentence = str(failure.value)
    assert "\n" not in sentence and str(path) in sentence
    return sentence


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(file: str, tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    (tmp_path / file).unlink()
    assert file in refused(tmp_path)
    assert "no trained model" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_refused(kept: int, tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "damaged" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"{}", b"null"])
def test_a_config_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    assert "damaged" in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("classes", ["a", "b"], "head"),
        ("classes", [1, 2, 3], "class"),
        ("classes", 3, "damaged"),
        ("architecture.pool", "mena", "'mean'"),
        ("architecture.depth", 3, "blocks.2"),
        ("architecture.depth", 1, "blocks.1"),
        ("architecture.depth", "two", "damaged"),
        ("architecture.embed_dim", 15, "15"),
        ("architecture.dpeth", 2, "dpeth"),
        ("image_size", 12, "pos_embed"),
        ("image_size", None, "damaged"),
        ("attention", "flash", "flash"),
        ("precision", "16", "'16'"),
        ("mean", [0.5], "mean"),
        ("std", [0.2, 0.0, 0.2], "std"),
        ("std", ["a", "b", "c"], "damaged"),
        ("format", 2, "newer"),
        ("format", "one", "damaged"),
    ],
)
def test_an_edited_config_is_refused(key: str, value: Any, words: str, tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert words in refused(tmp_path)


def test_a_config_without_a_key_is_refused(tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for key in config:
        rest = {k: v for k, v in config.items() if k != key}
        (tmp_path / "config.json").write_text(json.dumps(rest), encoding="utf-8")
        assert f"no '{key}'" in refused(tmp_path)


def test_weights_of_another_name_or_shape_are_refused(tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != "head.bias"}, file)
    assert "head.bias" in refused(tmp_path)
    save_file({**weights, "extra": torch.zeros(1)}, file)
    assert "extra" in refused(tmp_path)
    save_file({**weights, "head.bias": torch.zeros(4)}, file)
    assert "head.bias" in refused(tmp_path)


def test_a_pickle_in_place_of_the_weights_is_not_read(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    save_bundle(make(), tmp_path)
    torch.save({"x": Attack()}, tmp_path / "model.safetensors")
    assert "damaged" in refused(tmp_path)
    assert not marker.exists()
