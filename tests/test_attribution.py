"""Heat maps against independent computations, for every kind of network."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from vitreous import attribution
from vitreous.attribution import METHODS, heat_map, network_input, traced
from vitreous.bundle import Bundle
from vitreous.errors import VitreousError
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.preprocess import Preprocess

PAPER = Architecture(4, 24, 2, 2, 32)
CONV = dataclasses.replace(
    PAPER, stem="conv", stem_dims=(16, 16), pool="attention", qk_norm=True, zero_init=True
)
NETWORKS = {
    "paper": (PAPER, 16),
    "default": (CONV, 32),
    "default, rest of pixels": (CONV, 22),
    "mean pooling": (dataclasses.replace(PAPER, pool="mean", pos_embed="sine"), 16),
    "attention pooling, padded": (dataclasses.replace(PAPER, pool="attention"), 18),
    "notebook": (
        dataclasses.replace(
            PAPER, embed_activation="relu", final_norm=False, head_hidden=16, dropout=0.2, init="notebook"
        ),
        16,
    ),
    "conv, class token": (dataclasses.replace(CONV, pool="cls", drop_path=0.2), 16),
}
# In units of 1/255, so that an image of this colour is exactly zero after normalisation.
MEAN, STD = (51 / 255, 102 / 255, 153 / 255), (0.25, 0.25, 0.25)


def bundle_of(architecture: Architecture, size: int, classes: int = 3) -> Bundle:
    """A network with random weights that are large enough for regions to matter."""
    torch.manual_seed(0)
    model = VisionTransformer(architecture, size, classes).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "norm" not in name:
            nn.init.normal_(parameter, std=0.3)
    names = tuple(f"class {i}" for i in range(classes))
    return Bundle(model, names, MEAN, STD, Preprocess(size), temperature=1.5)


@pytest.fixture(params=NETWORKS)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return bundle_of(*NETWORKS[request.param])


def pixels_for(bundle: Bundle, number: int = 3) -> np.ndarray:
    size = bundle.model.image_size
    return np.random.default_rng(1).integers(0, 256, (number, size, size, 3)).astype(np.uint8)


def test_every_method_gives_maps_on_its_scale(bundle: Bundle) -> None:
    pixels, grid = pixels_for(bundle), bundle.model.grid
    for method in METHODS:
        maps = heat_map(bundle, pixels, method=method)
        assert maps.shape == (3, grid, grid) and maps.dtype == np.float32 and np.isfinite(maps).all()
        assert maps.std() > 0
        if method in ("attention", "rollout"):
            assert maps.min() >= 0
            np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-5)
        elif method == "gradient":
            assert maps.min() >= 0
            np.testing.assert_allclose(maps.max(axis=(1, 2)), 1, rtol=1e-6)
        else:
            assert np.abs(maps).max() <= 1
    assert np.array_equal(heat_map(bundle, pixels), heat_map(bundle, pixels, method=attribution.AUTO))
    assert heat_map(bundle, pixels[:0]).shape == (0, grid, grid)


def test_the_classes_are_those_that_are_given_or_predicted(bundle: Bundle) -> None:
    pixels = pixels_for(bundle)
    predicted = bundle.predict(pixels)
    for method in ("occlusion", "gradient"):
        assert np.array_equal(
            heat_map(bundle, pixels, method=method), heat_map(bundle, pixels, predicted, method)
        )
        assert not np.allclose(
            heat_map(bundle, pixels, (predicted + 1) % 3, method), heat_map(bundle, pixels, predicted, method)
        )


def test_the_model_stays_as_it_was(bundle: Bundle) -> None:
    model, pixels = bundle.model, pixels_for(bundle)
    calls: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    model.set_attention("explicit")
    model.blocks[0].train()
    model.head.requires_grad_(False)

    def state() -> tuple[object, ...]:
        return (
            [(name, type(module), module.training, len(module._forward_hooks), sorted(module.__dict__)) for
             name, module in model.named_modules()],
            [(name, p.requires_grad, p.grad, id(p)) for name, p in model.named_parameters()],
            [block.attn.path for block in model.blocks],
        )  # fmt: skip

    before, logits = state(), bundle.logits(pixels)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for method in METHODS:
        heat_map(bundle, pixels, method=method)
    assert state() == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(bundle.logits(pixels), logits)
    assert calls


def test_attention_path_frozen_weights_and_inference_mode_change_nothing(bundle: Bundle) -> None:
    pixels = pixels_for(bundle)
    expected = {method: heat_map(bundle, pixels, method=method) for method in METHODS}
    bundle.model.set_attention("explicit")
    bundle.model.requires_grad_(False)
    with torch.inference_mode():
        for method, maps in expected.items():
            np.testing.assert_allclose(heat_map(bundle, pixels, method=method), maps, atol=2e-6)


def test_a_trace_is_the_networks_own_pass(bundle: Bundle) -> None:
    pixels = pixels_for(bundle)
    x = network_input(bundle, pixels)
    trace = traced(bundle.model, x)
    torch.testing.assert_close(trace.logits.detach(), bundle.logits(pixels), atol=1e-4, rtol=1e-4)
    attention = torch.stack(trace.attention)
    torch.testing.assert_close(attention.detach(), bundle.model.attention_maps(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))
    torch.testing.assert_close(trace.pooling.sum(dim=-1), torch.ones(len(x)))


def test_occlusion_is_a_loop_over_covered_images(bundle: Bundle) -> None:
    pixels, grid, size = pixels_for(bundle, 2), bundle.model.grid, bundle.model.image_size
    classes = np.array([2, 0])
    edges = [int(i * size / grid + 0.5) for i in range(grid + 1)]
    expected = np.zeros((2, grid, grid))
    for image, row, column in itertools.product(range(2), range(grid), range(grid)):
        covered = pixels[image].copy()
        rows = slice(edges[max(row - 1, 0)], edges[min(row + 2, grid)])
        columns = slice(edges[max(column - 1, 0)], edges[min(column + 2, grid)])
        covered[rows, columns] = 51, 102, 153
        whole = bundle.predict_proba(pixels[image])[0, classes[image]]
        expected[image, row, column] = whole - bundle.predict_proba(covered)[0, classes[image]]
    drops, expected = expected, np.zeros_like(expected)
    for row, column in itertools.product(range(grid), repeat=2):
        around = [
            drops[:, other_row, other_column]
            for other_row, other_column in itertools.product(range(grid), repeat=2)
            if abs(other_row - row) <= 1 and abs(other_column - column) <= 1
        ]
        expected[:, row, column] = np.mean(around, axis=0)
    np.testing.assert_allclose(heat_map(bundle, pixels, classes, "occlusion"), expected, atol=1e-5)


def test_rollout_is_a_product_of_matrices() -> None:
    for architecture, size in (
        NETWORKS["paper"],
        NETWORKS["mean pooling"],
        (NETWORKS["attention pooling, padded"][0], 16),
    ):
        bundle = bundle_of(architecture, size)
        pixels = pixels_for(bundle)
        x = network_input(bundle, pixels)
        attention = bundle.model.attention_maps(x).numpy().astype(np.float64)  # [L, B, H, N, N]
        tokens, grid = attention.shape[-1], bundle.model.grid
        expected = []
        for image in range(len(pixels)):
            product = np.eye(tokens)
            for layer in attention[:, image]:
                mixed = 0.5 * layer.mean(axis=0) + 0.5 * np.eye(tokens)
                product = mixed @ product
            if architecture.pool == "cls":
                row = product[0, 1:]
            elif architecture.pool == "mean":
                row = product.mean(axis=0)
            else:
                row = traced(bundle.model, x).pooling[image].detach().numpy() @ product
            expected.append((row / row.sum()).reshape(grid, grid))
        np.testing.assert_allclose(heat_map(bundle, pixels, method="rollout"), expected, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_gradient_relevance_matches_finite_differences(pool: str) -> None:
    """The logit as a function of attention and pooling weights, written out for one layer, in double precision."""
    bundle = bundle_of(dataclasses.replace(PAPER, depth=1, pool=pool), 8)
    pixels = pixels_for(bundle, 1)
    maps = heat_map(bundle, pixels, np.array([1]), "gradient")
    model = bundle.model.double()
    with torch.no_grad():
        tokens = model.embed(network_input(bundle, pixels).double())
        block = model.blocks[0]
        normed = block.norm1(tokens)
        _, _, v = block.attn._heads(normed)
        attention = block.attn.weights(normed)

        def encoded(weights: torch.Tensor) -> torch.Tensor:
            x = tokens + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
            return model.norm(x + block.mlp(block.norm2(x)))

        last = encoded(attention)
        if pool == "attention":
            pooling = model.attn_pool(last)[..., 0].softmax(dim=1)  # type: ignore[misc]
        else:
            pooling = torch.full((1, last.shape[1]), 1 / last.shape[1], dtype=torch.float64)
            if pool == "cls":
                pooling = torch.eye(last.shape[1], dtype=torch.float64)[:1]

        def logit(weights: torch.Tensor, pooled: torch.Tensor | None) -> float:
            x = encoded(weights)
            if pooled is None and pool == "attention":  # the pooling weights follow from the tokens
                pooled = model.attn_pool(x)[..., 0].softmax(dim=1)  # type: ignore[misc]
            return float(model.head((pooling if pooled is None else pooled) @ x[0])[0, 1])

        def slopes(value: torch.Tensor, of: object) -> torch.Tensor:
            result = torch.zeros_like(value)
            for index in np.ndindex(*value.shape):
                step = torch.zeros_like(value)
                step[index] = 1e-5
                result[index] = (of(value + step) - of(value - step)) / 2e-5  # type: ignore[operator]
            return result

        relevance = (attention * slopes(attention, lambda a: logit(a, None))).clamp(min=0).mean(dim=1)[0]
        whole = torch.eye(len(relevance)).double() + relevance
        if pool == "cls":
            row = whole[0, 1:]
        else:
            row = (pooling * slopes(pooling, lambda w: logit(attention, w))).clamp(min=0)[0] @ whole
    expected = (row / row.max()).view(2, 2).numpy()
    np.testing.assert_allclose(maps[0], expected, atol=2e-4)


def test_maps_of_tokens_are_laid_where_the_tokens_are() -> None:
    """A ramp over the tokens' centres stays a ramp over the pixels, up to the outermost centres."""
    strided = dataclasses.replace(CONV, patch_size=8, stem_stride=2)
    cases = ((CONV, 32, 2.5), (CONV, 22, 2.5), (strided, 40, 5.0), (PAPER, 18, 2.0), (PAPER, 16, 2.0))
    for architecture, size, first in cases:
        model = VisionTransformer(architecture, size, 2)
        grid = model.grid
        centres = first + architecture.patch_size * np.arange(grid)
        ramp = torch.tensor(np.add.outer(3 * centres, centres)).flatten()
        cell = ((np.arange(grid) + 0.5) * size / grid).clip(centres[0], centres[-1])
        np.testing.assert_allclose(attribution._cells(model, ramp), np.add.outer(3 * cell, cell), rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_conv_stems_tokens_are_centred_where_they_are_said_to_be(stride: int) -> None:
    """Measured by the gradients of twelve random stems, away from the image's border."""
    side = 32 * stride
    bundle = bundle_of(
        dataclasses.replace(CONV, patch_size=CONV.patch_size * stride, stem_stride=stride), side
    )
    x = torch.randn(64, 3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    centres = []
    for seed in range(12):
        torch.manual_seed(seed)
        for weight in bundle.model.patch_embed.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.3)
        tokens = bundle.model.patch_embed(x)
        (slope,) = torch.autograd.grad((tokens[:, 24] ** 2).sum(), x)  # the middle one of 7 x 7
        seen = (slope**2).sum(dim=(0, 1))
        for line in (seen.sum(dim=0), seen.sum(dim=1)):
            centres.append(float(((torch.arange(side) + 0.5) * line).sum() / line.sum()))
    assert np.mean(centres) == pytest.approx(float(attribution.token_centres(bundle.model)[3]), abs=0.25)


def test_attention_distance_of_even_attention_is_the_mean_distance() -> None:
    bundle = bundle_of(PAPER, 16)
    for block in bundle.model.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
    points = np.array(list(itertools.product(range(4), range(4)))) * 4.0
    expected = np.linalg.norm(points[:, None] - points[None], axis=2).mean()
    x = network_input(bundle, pixels_for(bundle))
    np.testing.assert_allclose(attribution.attention_distance(bundle, x), expected, rtol=1e-5)


def test_attention_of_heads_is_that_of_the_class_token() -> None:
    bundle = bundle_of(PAPER, 16)
    x = network_input(bundle, pixels_for(bundle))
    rows = bundle.model.attention_maps(x)[:, :, :, 0, 1:].permute(1, 0, 2, 3)
    expected = (rows / rows.sum(dim=-1, keepdim=True)).unflatten(3, (4, 4))
    torch.testing.assert_close(attribution.attention_of_heads(bundle, x), expected)
    last = rows[:, -1].mean(dim=1)
    expected = (last / last.sum(dim=1, keepdim=True)).unflatten(1, (4, 4))
    np.testing.assert_allclose(heat_map(bundle, pixels_for(bundle), method="attention"), expected, atol=1e-6)


def test_parts_give_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(*NETWORKS["default"])
    pixels = pixels_for(bundle, 7)
    expected = {method: heat_map(bundle, pixels, method=method) for method in METHODS}
    monkeypatch.setattr(attribution, "TRACED_FLOATS", 30_000)  # a few images
    monkeypatch.setattr(attribution, "OCCLUDED_BATCH", 60)
    for method, maps in expected.items():
        np.testing.assert_allclose(heat_map(bundle, pixels, method=method), maps, atol=1e-5)


@pytest.mark.parametrize(
    ("pixels", "classes", "method", "message"),
    [
        (np.zeros((1, 16, 16, 3), np.uint8), None, "occlusions", "did you mean 'occlusion'"),
        (np.zeros((1, 16, 16, 3), np.float32), None, "auto", "uint8"),
        (np.zeros((16, 16, 3), np.uint8), None, "auto", "bundle.preprocess.batch"),
        (np.zeros((1, 20, 20, 3), np.uint8), None, "auto", "16, 16, 3"),
        (np.zeros((2, 16, 16, 3), np.uint8), [1], "auto", "one class for each of the 2 images"),
        (np.zeros((2, 16, 16, 3), np.uint8), [0, 3], "auto", "from 0 to 2"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    pixels: np.ndarray, classes: object, method: str, message: str
) -> None:
    with pytest.raises(VitreousError, match=message):
        heat_map(bundle_of(PAPER, 16), pixels, classes, method)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", [PAPER, CONV], ids=["paper", "default"])
def test_a_planted_shortcut_is_found(architecture: Architecture) -> None:
    """A coloured mark in one corner, another for each image, gives the class away; the map's maximum finds it.

    Images of the last class have no mark. Otherwise the network could take one colour for "neither of the others", and
    nothing in its images would speak for it.
    """
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    colours = np.array([[255, 40, 40], [40, 255, 40], [40, 40, 255]])

    def draw(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images = generator.integers(60, 196, (number, 32, 32, 3)).astype(np.uint8)
        labels, corners = generator.integers(0, 4, number), generator.integers(0, 2, (number, 2))
        for image, label, (down, right) in zip(images, labels, corners, strict=True):
            if label < 3:
                image[24 * down : 24 * down + 8, 24 * right : 24 * right + 8] = colours[label]
        return images, labels, corners

    bundle = Bundle(
        VisionTransformer(architecture, 32, 4),
        ("red", "green", "blue", "no mark"),
        (0.5,) * 3,
        (0.25,) * 3,
        Preprocess(32),
    )
    bundle.model.init_from_data(network_input(bundle, draw(64)[0]))
    optimizer = torch.optim.AdamW(bundle.model.parameters(), lr=5e-3)
    bundle.model.train()
    for _ in range(80):
        images, labels, _ = draw(64)
        loss = nn.functional.cross_entropy(
            bundle.model(network_input(bundle, images)), torch.from_numpy(labels)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bundle.model.eval()
    images, labels, corners = draw(80)
    assert (bundle.predict(images) == labels).mean() > 0.95
    images, corners = images[labels < 3], corners[labels < 3]
    maps, grid = heat_map(bundle, images), bundle.model.grid
    best = np.stack(np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), (grid, grid)), axis=1)
    in_mark = np.abs((best + 0.5) * 32 / grid - (24 * corners + 4)) <= 4  # the middle of the cell, in pixels
    assert in_mark.all(axis=1).mean() >= 0.95
