"""A trained network is a plain module: exports and transforms by PyTorch's tools give the same logits."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitreous.bundle import Bundle, load_bundle, save_bundle
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.preprocess import Preprocess

NETWORKS = {
    "compact": Architecture(
        4, 48, 2, 3, 64, stem="conv", stem_dims=(16, 32), pool="attention", qk_norm=True, drop_path=0.1
    ),
    "plain": Architecture(4, 48, 2, 3, 64, dropout=0.1),
    "padded": Architecture(5, 48, 1, 3, 64, pool="mean", pos_embed="sine", head_hidden=24, final_norm=False),
}
SIZE = 16
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


PATHS = [("compact", "explicit"), ("compact", "fused"), ("plain", "explicit"), ("plain", "fused")]


@pytest.fixture(params=[*PATHS, ("padded", "explicit")], ids="-".join)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> VisionTransformer:
    """A network that was loaded from a bundle."""
    name, attention = request.param
    torch.manual_seed(0)
    saved = VisionTransformer(NETWORKS[name], SIZE, 5)
    for parameter in saved.parameters():
        nn.init.normal_(parameter, std=0.2)  # layers that start at zero would hide differences
    bundle = Bundle(saved, tuple("abcde"), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), Preprocess(SIZE))
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    loaded.logits(np.zeros((2, SIZE, SIZE, 3), np.uint8))  # predicting must leave the model plain
    assert type(loaded.model) is VisionTransformer and not loaded.model.training
    loaded.model.set_attention(attention)
    return loaded.model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logits(model: VisionTransformer, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


@pytest.fixture
def batches() -> list[Tensor]:
    """Batches of other sizes than the one that was exported."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, 3, SIZE, SIZE, generator=generator) for n in (1, 2, 7)]


@torch.no_grad()
def test_torch_export(model: VisionTransformer, images: Tensor, batches: list[Tensor]) -> None:
    batch_size = torch.export.Dim("batch", min=1, max=1000)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch_size},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (images, *batches):
        torch.testing.assert_close(loaded(batch), model(batch), **TOLERANCE)


@torch.no_grad()
def test_jit_trace(model: VisionTransformer, images: Tensor, batches: list[Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, images)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for batch in (images, *batches):
        torch.testing.assert_close(loaded(batch), model(batch), **TOLERANCE)


def run_onnx(path: Path, images: Tensor) -> np.ndarray:
    """Runs the model in onnxruntime or, if that is not installed, in ONNX's reference implementation."""
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        from onnx.reference import ReferenceEvaluator as InferenceSession
    session = InferenceSession(str(path))
    return session.run(None, {"images": images.numpy()})[0]


@torch.no_grad()
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_onnx(
    model: VisionTransformer, images: Tensor, batches: list[Tensor], dynamo: bool, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    if dynamo:
        pytest.importorskip("onnxscript")
        names["dynamic_shapes"] = ({0: torch.export.Dim("batch", min=1, max=1000)},)
    else:
        names["dynamic_axes"] = {"images": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.onnx.export(model, (images,), tmp_path / "model.onnx", dynamo=dynamo, verbose=False, **names)
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    for batch in (images, *batches):
        np.testing.assert_allclose(
            run_onnx(tmp_path / "model.onnx", batch), model(batch).numpy(), **TOLERANCE
        )


def test_every_module_calls_its_hooks(model: VisionTransformer, images: Tensor, logits: Tensor) -> None:
    called: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    torch.testing.assert_close(model(images), logits)
    # The blocks are a list, and the linear stem uses its convolution's weight in a matrix product.
    assert {name for name, _ in model.named_modules()} - set(called) <= {"blocks", "patch_embed.proj"}


@torch.no_grad()
def test_vmap(model: VisionTransformer, images: Tensor, logits: Tensor) -> None:
    one_by_one = torch.func.vmap(lambda image: model(image[None])[0])(images)
    torch.testing.assert_close(one_by_one, logits, **TOLERANCE)


def test_saliency(model: VisionTransformer, images: Tensor) -> None:
    """The gradient of the image agrees with finite differences in float64."""
    image = images[:1].clone().requires_grad_()
    model(image)[0, 2].backward()
    assert image.grad is not None
    exact = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = torch.randn(1, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            up, down = (exact(images[:1].double() + sign * 1e-5 * direction)[0, 2] for sign in (1, -1))
        expected = float((up - down) / 2e-5)
        assert float((image.grad.double() * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_per_image_gradients(model: VisionTransformer, images: Tensor) -> None:
    """Gradients of the weights by `grad` under `vmap`, as methods for explanation and influence use them."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, image[None])[0, 1]

    per_image = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, images)
    head_bias = "head.bias" if "head.bias" in weights else "head.2.bias"
    tolerances: dict[str, dict[str, Any]] = {
        head_bias: {},
        "blocks.0.mlp.fc1.weight": {"rtol": 1e-3, "atol": 1e-5},
    }
    for i, image in enumerate(images):
        model.zero_grad()
        model(image[None])[0, 1].backward()
        for name, tolerance in tolerances.items():
            torch.testing.assert_close(per_image[name][i], model.get_parameter(name).grad, **tolerance)


def test_a_deepcopy_shares_nothing(model: VisionTransformer, images: Tensor, logits: Tensor) -> None:
    twin = copy.deepcopy(model)
    pointers = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not pointers & {tensor.data_ptr() for tensor in (*twin.parameters(), *twin.buffers())}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(images), logits)


@torch.no_grad()
def test_pickling(model: VisionTransformer, images: Tensor, logits: Tensor) -> None:
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied(images), logits) and type(copied) is VisionTransformer
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(images), logits)
