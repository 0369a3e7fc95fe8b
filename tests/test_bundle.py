"""Bundles: the same logits after a round trip, and an error message for each kind of damage."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vitreous
from vitreous.bundle import EVAL_BATCH, FORMAT, Bundle, load_bundle, save_bundle
from vitreous.errors import VitreousError
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.preprocess import Preprocess

ARCHITECTURES = {
    "linear": Architecture(4, 16, 2, 2, 32, dropout=0.3),
    "conv": Architecture(4, 16, 1, 2, 32, stem="conv", stem_dims=(4, 8), pool="attention", qk_norm=True),
    "sine": Architecture(4, 16, 1, 2, 32, pos_embed="sine", pool="mean", head_hidden=8, drop_path=0.5),
}


def make(name: str = "linear") -> Bundle:
    torch.manual_seed(0)
    model = VisionTransformer(ARCHITECTURES[name], image_size=8, num_classes=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # zero-initialised ones would hide a mistake
    model.init_from_data(torch.randn(64, 3, 8, 8))
    return Bundle(
        model,
        ("cat", "Žluť 猫", 'a "b"'),
        (0.4, 0.5, 0.6),
        (0.2, 0.25, 0.3),
        Preprocess(8),
        temperature=1.25,
        majority=("Žluť 猫", 0.4),
        data={"name": "pets", "fingerprint": "00ff"},
        figures={"val_acc": 0.75, "test_loss": None},
    )


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_logits_after_a_round_trip(name: str, images: np.ndarray, tmp_path: Path) -> None:
    before = make(name)
    save_bundle(before, tmp_path / "new" / "bundle")
    after = load_bundle(tmp_path / "new" / "bundle")
    assert torch.equal(before.logits(images), after.logits(images))
    for field in dataclasses.fields(Bundle):
        if field.name != "model":
            assert getattr(after, field.name) == getattr(before, field.name)
    assert after.model.architecture == before.model.architecture
    assert type(after.model) is VisionTransformer
    assert not after.model.training
    assert {file.name for file in (tmp_path / "new" / "bundle").iterdir()} == {
        "model.safetensors",
        "config.json",
    }


class Accelerated(VisionTransformer):
    """In place of the network on native kernels: counts its forward passes, and is not thread-safe."""

    passes = 0
    parameters_seen: list[torch.nn.Parameter]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).passes += 1
        assert not self.training
        return super().forward(x)


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> type[Accelerated]:
    parameters = Accelerated.parameters_seen = []

    def accelerate(model: VisionTransformer) -> VisionTransformer:
        model.__class__ = Accelerated
        parameters.extend(model.parameters())
        return model

    monkeypatch.setattr("vitreous.bundle.accelerate", accelerate)
    monkeypatch.setattr("vitreous.bundle.unsupported", lambda model: None)
    monkeypatch.setattr(Accelerated, "passes", 0)
    return Accelerated


def test_prediction_is_accelerated_and_the_model_stays_plain(
    images: np.ndarray, accelerated: type[Accelerated]
) -> None:
    bundle = make("conv")
    expected = bundle.model.eval()(torch.from_numpy(network_input(bundle, images)))
    seen = []

    def logits_and_type(_: int) -> torch.Tensor:
        logits = bundle.logits(images)
        seen.append(type(bundle.model))
        return logits

    # While others look at the model and change its mode, as an export does.
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(logits_and_type, range(24)))
    assert accelerated.passes == 24
    assert set(seen) == {VisionTransformer}
    for logits in results:
        assert torch.equal(logits, results[0])
    torch.testing.assert_close(results[0], expected)
    shared = {id(parameter) for parameter in bundle.model.parameters()}
    assert {id(parameter) for parameter in accelerated.parameters_seen} == shared
    with torch.no_grad():
        bundle.model.get_parameter("head.bias").add_(1)
    torch.testing.assert_close(bundle.logits(images), expected + 1)


def test_hooks_on_the_model_are_called_in_prediction(
    images: np.ndarray, accelerated: type[Accelerated]
) -> None:
    bundle = make()
    called: list[torch.nn.Module] = []

    class Collector:
        def note(self, module: torch.nn.Module, *_: Any) -> None:
            called.append(module)

    mlp = bundle.model.blocks[1].mlp
    mlp.register_forward_hook(Collector().note)
    bundle.logits(images)
    (twin,) = called
    assert isinstance(twin, type(mlp)) and twin.fc1.weight is mlp.fc1.weight and not twin.training


@pytest.mark.parametrize("kind", ["stem", "block", "pool", "head", "model"])
def test_hooks_of_every_kind_are_called_with_every_backend(kind: str, images: np.ndarray) -> None:
    """With the real kernels where there is a compiler, torch elsewhere."""
    bundle = make("conv")
    expected = bundle.logits(images)
    model: Any = bundle.model
    place = {
        "stem": model.patch_embed.mix.conv,
        "block": model.blocks[0].attn,
        "pool": model.norm,
        "head": model.head,
        "model": model,
    }[kind]
    seen: list[str] = []

    def zero_output(_module: Any, _inputs: Any, output: Any) -> Any:
        seen.append("after")
        return 0 * output

    place.register_forward_pre_hook(lambda *_: seen.append("before"))
    place.register_forward_hook(zero_output)
    place.register_full_backward_pre_hook(lambda *_: None)
    logits = bundle.logits(images)
    assert seen == ["before", "after"]
    assert not torch.allclose(logits, expected)  # what a hook returns counts


def test_threads_predict_without_dropout_while_the_model_is_in_training_mode(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitreous.bundle.unsupported", lambda model: "the test needs torch")
    bundle = make("linear")
    expected = bundle.logits(images)
    bundle.model.train()
    logits: list[torch.Tensor] = []
    first = threading.Thread(target=lambda: logits.append(bundle.logits(images)))
    first_inside, second_inside = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:  # the second enters while the first is inside, and goes on when that has left
        if threading.current_thread() is first:
            first_inside.set()
            second_inside.wait(10)
        else:
            second_inside.set()
            first.join(10)

    bundle.model.pos_drop.register_forward_pre_hook(wait)
    first.start()
    first_inside.wait(10)
    second = bundle.logits(images)
    assert torch.equal(logits[0], expected) and torch.equal(second, expected)
    assert all(module.training for module in bundle.model.modules())


def network_input(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """Float32 [N, 3, S, S], normalised channel by channel in numpy."""
    channels = [(images[..., c] / 255 - bundle.mean[c]) / bundle.std[c] for c in range(3)]
    return np.stack(channels, axis=1).astype(np.float32)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_float32_under_autocast_too(name: str, images: np.ndarray) -> None:
    bundle = make(name)
    expected = bundle.logits(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bundle.logits(images), expected)


def test_logits_are_those_of_the_network_on_normalised_images(images: np.ndarray) -> None:
    bundle = make()
    with torch.no_grad():
        expected = bundle.model.eval()(torch.from_numpy(network_input(bundle, images)))
    torch.testing.assert_close(bundle.logits(images), expected, rtol=1e-5, atol=1e-5)


def test_logits_neither_train_nor_change_the_model(images: np.ndarray) -> None:
    bundle = make()
    bundle.model.train()
    first, second = bundle.logits(images), bundle.logits(images)
    assert torch.equal(first, second)  # no dropout
    assert bundle.model.training and not first.requires_grad and first.dtype == torch.float32


def test_logits_of_many_images_and_of_none() -> None:
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
        assert torch.equal(bundle.logits(same), expected)


def test_images_of_any_kind_are_taken(tmp_path: Path) -> None:
    bundle = make()
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    ready = np.asarray(Image.fromarray(picture[:, 5:25]).resize((8, 8), Image.Resampling.BICUBIC))
    expected = bundle.logits(ready)
    assert expected.shape == (1, 3)
    path = tmp_path / "a.png"
    for image in (path, str(path), path.read_bytes(), Image.open(path), picture, torch.from_numpy(picture)):
        assert torch.equal(bundle.logits(image), expected)
    many = bundle.logits([path, picture, ready])
    torch.testing.assert_close(many, expected.expand(3, -1), rtol=1e-5, atol=1e-5)
    assert bundle.predict(path).tolist() == [int(expected.argmax())]
    probabilities = np.exp(expected.numpy() / 1.25)
    np.testing.assert_allclose(bundle.predict_proba(path), probabilities / probabilities.sum(), rtol=1e-5)
    with pytest.raises(VitreousError, match="not normalised"):
        bundle.logits(np.full((8, 8, 3), 2.0))


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


FORMAT_1 = """{
 "format": 1,
 "architecture": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "stem": "linear",
  "stem_dims": [], "pool": "cls", "pos_embed": "learned", "embed_activation": "none", "final_norm": true,
  "head_hidden": 0, "qkv_bias": true, "qk_norm": false, "zero_init": false, "dropout": 0.3, "drop_path": 0.0,
  "norm_eps": 1e-06, "init": "paper"},
 "image_size": 8,
 "attention": "native",
 "classes": ["cat", "Žluť 猫", "a \\"b\\""],
 "mean": [0.4, 0.5, 0.6],
 "std": [0.2, 0.25, 0.3],
 "precision": "bf16"
}
"""  # as it was written before there was a format 2


def test_a_bundle_of_format_1_still_loads(images: np.ndarray, tmp_path: Path) -> None:
    before = make()
    save_bundle(before, tmp_path)
    (tmp_path / "config.json").write_text(FORMAT_1, encoding="utf-8")
    after = load_bundle(tmp_path)
    assert torch.equal(before.logits(images), after.logits(images))
    assert (after.classes, after.mean, after.std) == (before.classes, before.mean, before.std)
    assert (
        after.preprocess == Preprocess(8, profiles="ignored")
        and after.temperature == 1
        and after.majority is None
    )
    (tmp_path / "config.json").write_text(FORMAT_1.replace('"mean"', '"meen"'), encoding="utf-8")
    assert "no 'mean'" in refused(tmp_path)


def test_a_bundle_of_format_2_ignores_profiles_as_when_it_was_trained(
    images: np.ndarray, tmp_path: Path
) -> None:
    before = make()
    save_bundle(before, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["format"] = 2
    del config["preprocess"]["profiles"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    after = load_bundle(tmp_path)
    assert after.preprocess == dataclasses.replace(before.preprocess, profiles="ignored")
    assert torch.equal(before.logits(images), after.logits(images))


@pytest.mark.parametrize(
    "settings",
    [
        Preprocess(8, fit="pad", value_range=(0, 4095), ground="grey", profiles="ignored"),
        Preprocess(8, fit="stretch", value_range=(-0.1, 1.023208498954773), ground="black"),
    ],
)
def test_preprocessing_comes_back_as_it_was(settings: Preprocess, tmp_path: Path) -> None:
    save_bundle(dataclasses.replace(make(), preprocess=settings), tmp_path)
    assert load_bundle(tmp_path).preprocess == settings


@pytest.mark.parametrize("load", [load_bundle, vitreous.load])
def test_a_path_may_be_a_string(load: Any, images: np.ndarray, tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    assert torch.equal(load(str(tmp_path)).logits(images), load(tmp_path).logits(images))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"{}", b"null"])
def test_a_config_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    assert "damaged" in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("classes", ["cat", "Žluť 猫"], "head"),
        ("classes", [1, 2, 3], "class"),
        ("classes", 3, "damaged"),
        ("architecture.pool", "mena", "'mean'"),
        ("architecture.depth", 3, "depth is 3.*2 layers"),
        ("architecture.depth", 1, "depth is 1.*2 layers"),
        ("architecture.depth", "two", "depth is 'two', not int"),
        ("architecture.depth", True, "depth is 'True', not int"),
        ("architecture.depth", 2.0, "depth is '2.0', not int"),
        ("architecture.depth", 10**6, "depth is 1000000"),
        ("architecture.mlp_dim", 10**12, "mlp_dim is 1000000000000, which is too large"),
        ("architecture.mlp_dim", 10**6, "blocks.0.mlp"),
        ("architecture.stem", "conv", "stem_dims"),
        ("architecture.stem_dims", 4, "stem_dims is 4"),
        ("architecture.stem_dims", ["a"], "stem_dims is 'a', not int"),
        ("architecture.pool", 3, "pool is '3', not str"),
        ("architecture.dropout", float("nan"), "dropout is nan"),
        ("architecture", [], "architecture is"),
        ("architecture.embed_dim", 15, "15"),
        ("architecture.dpeth", 2, "dpeth"),
        ("image_size", 12, "image_size is 12, but that of preprocessing is 8"),
        ("architecture.patch_size", 2, "patch_embed"),
        ("image_size", None, "image_size is 'None'"),
        ("image_size", 10**9, "image_size is 1000000000"),
        ("preprocess.mean", [0.5], "mean"),
        ("preprocess.std", [0.2, 0.0, 0.2], "std"),
        ("preprocess.std", ["a", "b", "c"], "std"),
        ("preprocess.std", [0.2, float("inf"), 0.2], "std"),
        ("preprocess.size", 9, "that of preprocessing is 9"),
        ("preprocess.size", "8", "image size is '8'"),
        ("preprocess.fit", "shrink", "preprocessing fit 'shrink'"),
        ("preprocess.ground", "red", "preprocessing ground 'red'"),
        ("preprocess.profiles", True, "preprocessing profiles 'True'"),
        ("preprocess.value_range", [0], "value range is .0."),
        ("preprocess.value_range", [5, 5], "value range"),
        ("preprocess.value_range", [0, float("inf")], "value range"),
        ("preprocess.value_range", [0, 10**400], "value range|damaged"),
        ("preprocess.value_range", "0,1", "value range"),
        ("preprocess.value_range", [False, True], "value range"),
        ("preprocess.fit", ["crop"], "preprocessing fit"),
        ("preprocess.sharpen", 1, "sharpen"),
        ("preprocess", 3, "preprocess is '3'"),
        ("temperature", 0, "temperature is 0"),
        ("temperature", "warm", "temperature is 'warm'"),
        ("temperature", 10**400, "temperature is 1000"),
        ("preprocess.mean", [0.5, 10**400, 0.5], "mean"),
        ("figures", {"val_acc": -(10**400)}, "figure"),
        ("temperature", float("nan"), "temperature is nan"),
        ("majority", {"class": "dog", "share": 0.5}, "majority"),
        ("majority", {"class": "cat", "share": 50}, "majority"),
        ("majority", 3, "damaged"),
        ("data", {"name": 3}, "data"),
        ("figures", {"val_acc": "high"}, "figure"),
        ("figures", [], "figures is"),
        ("classes", [], "classes"),
        ("format", FORMAT + 1, "newer"),
        ("architecture.layer_scale", 0.1, "layer_scale.*does not know; update vitreous"),
        ("format", "one", "format is 'one'"),
        ("format", True, "format is 'True'"),
    ],
)
def test_an_edited_config_is_refused_before_anything_is_built(
    key: str, value: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bundle(make(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    allocated = []
    register = torch.nn.Module.register_parameter

    def note(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        allocated.append(parameter is not None and not parameter.is_meta)
        register(module, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", note)
    assert re.search(words, refused(tmp_path))
    assert not any(allocated) and len(allocated) < 1000  # neither memory nor time


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "damaged" in refused(tmp_path)


def test_a_config_without_a_key_is_refused(tmp_path: Path) -> None:
    save_bundle(make(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for key in config:
        rest = {k: v for k, v in config.items() if k != key}
        (tmp_path / "config.json").write_text(json.dumps(rest), encoding="utf-8")
        assert f"no '{key}'" in refused(tmp_path)
    for key in ("size", "mean", "std"):
        rest = {k: v for k, v in config["preprocess"].items() if k != key}
        (tmp_path / "config.json").write_text(json.dumps({**config, "preprocess": rest}), encoding="utf-8")
        assert f"'{key}'" in refused(tmp_path)


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
