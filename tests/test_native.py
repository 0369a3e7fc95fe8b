"""Our own kernels for CPUs against the network as `vit.py` and `stem.py` have it, and what happens without them."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.errors import VitreousError
from vitreous.model.variants import Architecture, variant
from vitreous.model.vit import VisionTransformer, create_model
from vitreous.native import build as kernels
from vitreous.native import ops as native
from vitreous.native.build import MIN_WIDTH
from vitreous.native.ops import supports

COMPACT = variant("compact").architecture
NETWORKS: dict[str, tuple[Architecture, int, int]] = {  # with image_size and the side of what is trained on
    "compact": (COMPACT, 32, 32),
    "smaller pictures": (COMPACT, 32, 24),
    "other pooling sizes": (dataclasses.replace(COMPACT, stem_dims=(16, 32)), 37, 37),
    # Widths that sixteen lanes do not divide: heads of 20, layers of 40 and 56, stages of 20 and 36.
    "odd widths": (
        dataclasses.replace(COMPACT, embed_dim=40, num_heads=2, mlp_dim=56, stem_dims=(20, 36), depth=2),
        32,
        32,
    ),
    "odd channels": (dataclasses.replace(COMPACT, stem_dims=(17, 35, 21), depth=1), 64, 53),
    "class token": (dataclasses.replace(COMPACT, pool="cls", depth=1), 32, 24),
    "mean of tokens, after a ReLU": (
        dataclasses.replace(COMPACT, pool="mean", embed_activation="relu", depth=1),
        32,
        32,
    ),
    "linear stem, class token": (Architecture(4, 64, 3, 2, 128), 32, 32),
    "no bias of q, k, v; heads normalised": (
        Architecture(4, 48, 2, 3, 96, qkv_bias=False, qk_norm=True),
        20,
        20,
    ),
}
pytestmark = pytest.mark.skipif(kernels.library(torch.float32) is None, reason="no C++ compiler")


@pytest.fixture(params=[1, 3], ids=["a thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def network(name: str) -> tuple[VisionTransformer, Tensor]:
    """A network no part of which is zero, and pictures for it."""
    architecture, image_size, side = NETWORKS[name]
    torch.manual_seed(0)
    model = VisionTransformer(architecture, image_size, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, torch.randn(6, 3, side, side)


def gradients(
    model: VisionTransformer, path: str, pictures: Tensor, *, bf16: bool = False
) -> dict[str, Tensor]:
    model.set_attention(path)
    model.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(pictures)
    loss = F.cross_entropy(logits.to(pictures.dtype), torch.arange(len(pictures)))
    loss.backward()
    return {"logits": logits.detach()} | {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Of each, relative to its own size, and to a thousandth of the largest where it is next to nothing."""
    floor = 1e-3 * max(float(value.norm()) for value in truth.values())
    return {n: float((found[n].double() - truth[n]).norm() / max(truth[n].norm(), floor)) for n in truth}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("threads")
def test_float32_gives_the_gradients_of_double_precision(name: str) -> None:
    model, pictures = network(name)
    assert supports(model.architecture, torch.float32)
    found = gradients(model, "native", pictures)
    truth = gradients(model.double(), "explicit", pictures.double())
    assert found.keys() == truth.keys()
    assert max(error(found, truth).values()) < 2e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_no_less_exact_than_torch_under_autocast(name: str) -> None:
    model, pictures = network(name)
    ours, torchs = (gradients(model, path, pictures, bf16=True) for path in ("native", "explicit"))
    truth = gradients(model.double(), "explicit", pictures.double())
    ours_error, torchs_error = error(ours, truth), error(torchs, truth)
    assert sum(ours_error.values()) < 1.2 * sum(torchs_error.values())
    assert max(ours_error.values()) < 2 * max(torchs_error.values())


@pytest.mark.parametrize("size", [0.5, 60.0], ids=["", "scores that no exponential takes"])
def test_pooling_has_the_gradients_of_double_precision(size: float) -> None:
    torch.manual_seed(0)
    x, norm, query = torch.randn(5, 25, 40), nn.LayerNorm(40), size * torch.randn(1, 40)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    upstream = torch.randn(5, 40)
    found, truth = [], []
    for results, dtype in ((found, torch.float32), (truth, torch.float64)):
        tokens, weight = (t.to(dtype).requires_grad_() for t in (x, query))
        norm = norm.to(dtype)
        if dtype == torch.float32:
            out = native.pool_tokens(tokens, norm, weight)
        else:
            h = norm(tokens)
            out = ((h @ weight.mT).softmax(1) * h).sum(1)
        results += [out, *torch.autograd.grad((out * upstream).sum(), (tokens, weight, *norm.parameters()))]
    for ours, exact in zip(found, truth, strict=True):
        assert (ours - exact).norm() < 5e-5 * exact.norm()


def left_out(keys: Tensor, count: int, rate: float) -> np.ndarray:
    """Which of each sample's `count` elements dropout leaves out, [B, count]: Wellons' lowbias32, as numpy has it."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + keys.numpy().view(np.uint32)[:, None]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return (x ^ (x >> np.uint32(16))) < int(rate * 2**32)


class Masked(nn.Module):
    """Dropout by those masks: of the first call, and of the second. In the last layer only `wanted` tokens have one."""

    def __init__(self, keys: Tensor, rate: float, wanted: int | None) -> None:
        super().__init__()
        self.keys, self.rate, self.wanted, self.calls = keys, rate, wanted, 0

    def forward(self, x: Tensor) -> Tensor:
        keys = self.keys[self.calls % 2]
        self.calls += 1
        first = x[:, : self.wanted]
        mask = torch.from_numpy(left_out(keys, first[0].numel(), self.rate)).view(first.shape)
        return torch.cat([torch.where(mask, 0, first / (1 - self.rate)), x[:, first.shape[1] :]], dim=1)


@pytest.mark.parametrize("name", ["compact", "odd widths", "linear stem, class token"])
def test_dropout_leaves_out_the_same_forward_and_backward(name: str) -> None:
    model, pictures = network(name)
    for block in model.blocks:
        block.mlp.dropout.rate = 0.3
    torch.manual_seed(7)
    keys = torch.randint(-(2**31), 2**31, (len(model.blocks), 2, len(pictures)), dtype=torch.int32)
    torch.manual_seed(7)
    found = gradients(model, "native", pictures)
    wanted = 1 if model.cls_token is not None else None
    for block, own in zip(model.blocks, keys, strict=True):
        block.mlp.dropout = Masked(own, 0.3, wanted if block is model.blocks[-1] else None)
    truth = gradients(model.double(), "explicit", pictures.double())
    assert max(error(found, truth).values()) < 2e-5


def dropped(key: int, rows: int, width: int, rate: float) -> np.ndarray:
    """Where dropout leaves out what a layer without weights, but with a last bias, adds to tokens that are zero."""
    D, K = width, MIN_WIDTH  # an MLP of width K
    shapes = [(3 * D, D), (D, D), 3 * D, D, D, D, *[None] * 4, (K, D), (D, K), K, D, D, D]
    weights = [None if shape is None else torch.zeros(shape) for shape in shapes]
    weights[13] = torch.ones(D)
    keys = torch.tensor([[[0], [key]]], dtype=torch.int32)
    out = native.encode(torch.zeros(1, rows, D), weights, keys, rate, rows, D // K, 1e-6, False)[0]
    assert set(out.unique().tolist()) == {0.0, out.max().item()}
    return (out == 0).numpy()


def test_dropout_leaves_out_its_share_evenly() -> None:
    masks = np.stack([dropped(key, 256, 512, 0.2) for key in range(8)])
    assert abs(masks.mean() - 0.2) < 4 * (0.16 / masks.size) ** 0.5
    for axis in (1, 2):  # each row, and each column: as often as chance has it
        count = masks.shape[axis]
        z = (masks.mean(axis=axis) - 0.2) / (0.16 / count) ** 0.5
        assert 0.9 < z.std() < 1.1 and abs(z).max() < 5.5
    pairs = np.corrcoef(masks.reshape(8, -1)) - np.eye(8)  # of one key and the next
    assert abs(pairs).max() < 5 / (256 * 512) ** 0.5


def test_pictures_in_any_memory_order_give_the_same() -> None:
    model, pictures = network("compact")
    plain = gradients(model, "native", pictures)
    last = gradients(model, "native", pictures.to(memory_format=torch.channels_last))
    assert all(torch.equal(plain[name], last[name]) for name in plain)
    model.to(memory_format=torch.channels_last)
    turned = gradients(model, "native", pictures)
    assert all(torch.equal(plain[name], turned[name]) for name in plain)


@pytest.mark.usefixtures("threads")
def test_repeated_to_the_bit() -> None:
    model, pictures = network("compact")
    first, second = (gradients(model, "native", pictures, bf16=True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_they_do_not_take_goes_the_explicit_way() -> None:
    model, pictures = network("compact")
    model.eval().set_attention("native")
    pictures.requires_grad_()  # as for a saliency map
    model(pictures).sum().backward()
    found, pictures.grad = pictures.grad, None
    empty = model(pictures[:0])
    doubled = model.double()(pictures.detach().double())
    model.set_attention("explicit")
    model(pictures.double()).sum().backward()
    assert found is not None and pictures.grad is not None
    torch.testing.assert_close(found, pictures.grad, atol=1e-4, rtol=1e-4)
    assert empty.shape == (0, 10)
    assert torch.equal(doubled, model(pictures.double()))
    changed, pictures = copy.deepcopy(model).float(), pictures.detach()
    mlp, norm = changed.blocks[1].mlp, changed.norm
    mlp.fc1, mlp.fc2 = nn.Linear(96, 40), nn.Linear(40, 96)
    changed.blocks[0].mlp.fc2.bias, norm.bias = None, None
    expected = changed(pictures)
    changed.set_attention("native")
    torch.testing.assert_close(changed(pictures), expected, atol=1e-4, rtol=1e-4)
    model.float().blocks.double()
    model.set_attention("native")
    with pytest.raises(RuntimeError):  # torch's own words, as for any network
        model(pictures.detach())
    with pytest.raises(RuntimeError):
        model.float().set_attention("native")
        model(pictures.to(torch.uint8))


def test_rates_that_are_whole_numbers_are_numbers() -> None:
    model, pictures = network("compact")
    expected = gradients(model, "native", pictures)
    for block in model.blocks:
        block.mlp.dropout.rate = 0
    found = gradients(model, "native", pictures)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a flag of that processor's")
@pytest.mark.parametrize("name", ["compact", "odd channels", "odd widths"])
def test_without_avx512_the_results_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-mno-avx512f"))
    kernels.load_kernels.cache_clear()
    try:
        model, pictures = network(name)
        assert isinstance(kernels.load_kernels(torch.float32), ctypes.CDLL)
        found = gradients(model, "native", pictures)
        ours, torchs = (gradients(model, path, pictures, bf16=True) for path in ("native", "explicit"))
        truth = gradients(model.double(), "explicit", pictures.double())
        assert max(error(found, truth).values()) < 2e-5
        assert sum(error(ours, truth).values()) < 1.2 * sum(error(torchs, truth).values())
    finally:
        kernels.load_kernels.cache_clear()


def test_too_few_tokens_for_a_register_go_the_explicit_way() -> None:
    model = VisionTransformer(COMPACT, 16, 10)  # nine tokens
    pictures = torch.randn(4, 3, 16, 16)
    found = gradients(model, "native", pictures)
    truth = gradients(model.double(), "explicit", pictures.double())
    assert max(error(found, truth).values()) < 2e-5


@pytest.mark.parametrize("change", [{"drop_path": 0.1}, {"embed_dim": 24, "num_heads": 3}])
def test_a_network_that_they_do_not_know_is_refused(change: dict[str, Any]) -> None:
    assert not supports(dataclasses.replace(COMPACT, **change), torch.float32)
    with pytest.raises(VitreousError, match="do not know this network"):
        create_model("compact", **change).set_attention("native")


def test_without_a_compiler_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, pictures = network("compact")
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    try:
        for compiler in ("", str(broken)):
            kernels.load_kernels.cache_clear()
            monkeypatch.setattr(kernels, "cpp_compiler", lambda compiler=compiler: compiler or None)
            assert not supports(model.architecture, torch.float32)
            with pytest.raises(VitreousError, match=r"install g\+\+ or clang"):
                gradients(model, "native", pictures)
    finally:
        monkeypatch.undo()
        kernels.load_kernels.cache_clear()


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_gives_the_same(name: str) -> None:
    model, pictures = network(name)
    model.eval()
    with torch.inference_mode():
        expected = model(pictures)
        model.set_attention("native")
        torch.testing.assert_close(model(pictures), expected, atol=1e-5, rtol=1e-5)
