"""The network's parts against closed forms and literal lists, and the same checks for every variant."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.interpolate
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.errors import VitreousError
from vitreous.model.dropout import Dropout, DropPath, _keep_mask, keep_mask, keyed_noise
from vitreous.model.stem import ConvStage, ConvStem
from vitreous.model.summary import count_flops, describe, render
from vitreous.model.variants import VARIANTS, Architecture
from vitreous.model.vit import (
    ATTENTION,
    VisionTransformer,
    create_model,
    patchify,
    sine_position,
)

TINY: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
CONV: dict[str, Any] = {"stem": "conv", "stem_dims": (8, 12)}


def tiny(image_size: int = 8, num_classes: int = 5, **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(Architecture(**TINY | options), image_size, num_classes)


def perturbed(model: VisionTransformer) -> VisionTransformer:
    """Adds noise to every weight, because layers that start at zero pass no signals and gradients."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Sizes


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("notebook-cifar100", None, 12_862_820),
        ("notebook-cifar10", 100, 3_374_948),
        ("notebook-cifar10", None, 3_328_778),
        ("vit-ti16", None, 5_717_416),
        ("vit-s16", None, 22_050_664),
        ("vit-b16", None, 86_567_656),
        ("vit-l16", None, 304_326_632),
    ],
)
def test_published_parameter_counts(name: str, num_classes: int | None, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(create_model(name, num_classes=num_classes)) == expected


def test_flops_of_vit_b16_by_hand() -> None:
    N, D, mlp, classes = 14 * 14 + 1, 768, 3072, 1000
    embedding = (N - 1) * (3 * 16 * 16) * D
    projections = N * D * (3 * D + D + 2 * mlp)
    attention = 2 * N * N * D
    expected = 2 * (embedding + 12 * (projections + attention) + D * classes)
    assert count_flops(create_model("vit-b16", depth=1)) == expected - 2 * 11 * (projections + attention)
    assert describe("vit-b16")["flops"] == expected


def test_counting_flops_does_not_change_the_model() -> None:
    model = tiny()
    model.set_attention("fused")
    assert count_flops(model, image_size=16) > count_flops(model) == count_flops(model, image_size=8)
    assert model.attention == "fused" and model.training and model.image_size == 8


def test_half_of_the_compact_network_is_encoder() -> None:
    model, one_block = create_model("compact"), create_model("compact", depth=1)
    assert 4 * parameters(model.blocks[0]) > parameters(model) / 2
    assert (count_flops(model) - count_flops(one_block)) / 3 * 4 > count_flops(model) / 2


def test_the_table_of_variants_needs_no_torch() -> None:
    code = "import sys; import vitreous.model.variants; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Every variant


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_in_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    architecture = dataclasses.replace(VARIANTS[name].architecture, depth=2)
    model = perturbed(
        VisionTransformer(architecture, image_size=2 * architecture.patch_size + 1, num_classes=3)
    )
    side = model.image_size
    model.init_from_data(torch.randn(4, 3, side, side))
    logits = model(torch.randn(2, 3, side, side).to(memory_format=torch.channels_last))
    assert logits.shape == (2, 3)
    F.cross_entropy(logits, torch.tensor([0, 2])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_described(name: str) -> None:
    description = json.loads(json.dumps(describe(name)))
    assert (
        sum(layer["times"] * layer["parameters"] for layer in description["layers"])
        == description["parameters"]
    )
    text = render(description)
    assert f"{description['parameters']:,}" in text and f"{description['flops']:,}" in text


def test_description_follows_classes_and_size() -> None:
    small = describe("compact", num_classes=7, image_size=16)
    assert small["layers"][-1]["output"] == [7]
    outputs = {layer["layer"]: layer["output"] for layer in small["layers"]}
    assert outputs["patch_embed.stages.1"] == [96, 3, 3] and outputs["blocks.*.mlp"] == [9, 96]


def test_create_model() -> None:
    model = create_model("vit-xs4", image_size=16, num_classes=3, depth=1, pool="mean")
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    assert model.architecture == dataclasses.replace(VARIANTS["vit-xs4"].architecture, depth=1, pool="mean")
    with pytest.raises(VitreousError, match="compact"):
        create_model("compct")
    with pytest.raises(VitreousError, match="embed_dim"):
        create_model("compact", embed_dims=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "clss"}, "'cls'"),
        ({"num_heads": 3}, "num_heads 3"),
        ({"depth": 0}, "depth"),
        ({"dropout": 1.0}, "dropout"),
        ({"drop_path": -0.1}, "drop_path"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"embed_dim": 6, "pos_embed": "sine"}, "multiple of 4"),
        ({"stem": "conv"}, "stem_dims"),
        ({"stem_dims": (8,)}, "stem_dims"),
        ({"stem": "conv", "stem_dims": (8,), "patch_size": 6}, "power of 2"),
        ({"stem": "conv", "stem_dims": (8,), "patch_size": 2, "stem_stride": 2}, "no stage"),
        ({"stem": "conv", "stem_dims": (8,), "patch_size": 16, "stem_stride": 3}, "stem_stride is 3"),
        ({"stem_stride": 2}, "stem_stride applies only"),
        ({"head_hidden": -1}, "head_hidden"),
    ],
)
def test_bad_architectures_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VitreousError, match=message):
        Architecture(**TINY | options)


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 8), (3, 8, 8), (2, 3, 4, 4)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(VitreousError, match=r"\[B, 3, 8, 8\]"):
        tiny()(torch.randn(shape))


def test_an_architecture_survives_json() -> None:
    architecture = Architecture(**TINY | CONV)
    assert Architecture(**json.loads(json.dumps(dataclasses.asdict(architecture)))) == architecture


# State dict: the names of timm


def test_state_dict_names_and_shapes() -> None:
    block = {
        "norm1.weight": [16],
        "norm1.bias": [16],
        "attn.qkv.weight": [48, 16],
        "attn.qkv.bias": [48],
        "attn.proj.weight": [16, 16],
        "attn.proj.bias": [16],
        "norm2.weight": [16],
        "norm2.bias": [16],
        "mlp.fc1.weight": [24, 16],
        "mlp.fc1.bias": [24],
        "mlp.fc2.weight": [16, 24],
        "mlp.fc2.bias": [16],
    }
    expected = {
        "cls_token": [1, 1, 16],
        "pos_embed": [1, 5, 16],
        "patch_embed.proj.weight": [16, 3, 4, 4],
        "patch_embed.proj.bias": [16],
        **{f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()},
        "norm.weight": [16],
        "norm.bias": [16],
        "head.weight": [5, 16],
        "head.bias": [5],
    }
    assert {name: list(tensor.shape) for name, tensor in tiny(drop_path=0.1).state_dict().items()} == expected


def test_names_of_optional_parts() -> None:
    plain = set(tiny().state_dict())
    assert set(tiny(pos_embed="sine").state_dict()) == plain
    assert set(tiny(pool="mean").state_dict()) == plain - {"cls_token"}
    assert set(tiny(pool="attention").state_dict()) == plain - {"cls_token"} | {"attn_pool.weight"}
    norms = {f"blocks.{i}.attn.{n}_norm.{kind}" for i in (0, 1) for n in "qk" for kind in ("weight", "bias")}
    assert set(tiny(qk_norm=True).state_dict()) == plain | norms
    assert set(tiny(qkv_bias=False).state_dict()) == plain - {
        "blocks.0.attn.qkv.bias",
        "blocks.1.attn.qkv.bias",
    }
    assert set(tiny(final_norm=False).state_dict()) == plain - {"norm.weight", "norm.bias"}


# Patches and positions


def test_patch_order() -> None:
    B, C, S, P = 2, 3, 6, 2
    images = torch.arange(B * C * S * S).reshape(B, C, S, S)
    patches = patchify(images, P)
    assert patches.shape == (B, 9, C * P * P)
    for n in range(9):
        for c in range(C):
            for row in range(P):
                for column in range(P):
                    expected = images[:, c, (n // 3) * P + row, (n % 3) * P + column]
                    assert torch.equal(patches[:, n, (c * P + row) * P + column], expected)


def test_patch_embedding_is_the_strided_convolution() -> None:
    embed = tiny().double().patch_embed
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(embed(images), embed.proj(images).flatten(2).mT)


def test_padding_is_zeros_at_the_bottom_and_on_the_right() -> None:
    odd, even = tiny(image_size=10), tiny(image_size=12)
    assert odd.pos_embed.shape == (1, 10, 16)
    odd.load_state_dict(even.state_dict())
    image = torch.randn(2, 3, 10, 10)
    padded = torch.zeros(2, 3, 12, 12)
    padded[:, :, :10, :10] = image
    torch.testing.assert_close(odd(image), even(padded))


@pytest.mark.parametrize(
    "options", [{}, {"pool": "mean"}, {**CONV, "patch_size": 2}], ids=["cls", "mean", "conv"]
)
def test_positions_of_another_size_are_interpolated(options: dict[str, Any]) -> None:
    model = tiny(image_size=16, **options)
    own = model.pos_embed.detach()
    first, grid = model.num_tokens - model.grid**2, model.grid
    assert torch.equal(model.position(grid), own)
    smaller = model.position(grid - 1).detach()
    assert torch.equal(smaller[:, :first], own[:, :first])
    table = own[0, first:].view(grid, grid, -1).numpy()
    at = np.clip((np.arange(grid - 1) + 0.5) * grid / (grid - 1) - 0.5, 0, grid - 1)
    between = scipy.interpolate.RegularGridInterpolator((np.arange(grid), np.arange(grid)), table)
    expected = between(np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1)).reshape((grid - 1) ** 2, -1)
    np.testing.assert_allclose(smaller[0, first:].numpy(), expected, atol=1e-6)
    assert model(torch.randn(2, 3, 12, 12)).shape == model(torch.randn(2, 3, 16, 16)).shape


def test_sine_position() -> None:
    grid, D = 3, 8
    position = sine_position(grid, D, with_cls=True)
    assert position.shape == (1, 10, D) and position[0, 0].abs().max() == 0
    for row in range(grid):
        for column in range(grid):
            waves = [
                wave(where / 10000 ** (i / 2))
                for where in (row, column)
                for wave in (math.sin, math.cos)
                for i in (0, 1)
            ]
            torch.testing.assert_close(position[0, 1 + row * grid + column], torch.tensor(waves))
    assert torch.equal(sine_position(grid, D, with_cls=False), position[:, 1:])
    assert "pos_embed" not in dict(tiny(pos_embed="sine").named_parameters())


# Attention and pooling


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["plain", "qk_norm"])
def test_attention_paths_agree(options: dict[str, Any]) -> None:
    model = perturbed(tiny(**options)).double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    results = []
    for path in ("explicit", "fused"):
        model.set_attention(path)
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for explicit, fused in zip(*results, strict=True):
        torch.testing.assert_close(explicit, fused)
    with pytest.raises(VitreousError, match="explicit"):
        model.set_attention("explict")


@pytest.mark.parametrize("path", ["explicit", "fused"])
def test_attention_maps(path: str) -> None:
    """Rows sum to 1, and each layer's map times its values gives the output of that layer's attention."""
    model = perturbed(tiny(qk_norm=True)).double().eval()
    model.set_attention(path)
    seen: list[tuple[Tensor, Tensor]] = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    maps = model.attention_maps(images)
    assert maps.shape == (2, 3, 2, 5, 5) and (maps >= 0).all()
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3, 2, 5, dtype=torch.float64))
    assert len(seen) == 2
    for block, layer_maps, (tokens, output) in zip(model.blocks, maps, seen, strict=True):
        values = block.attn.qkv(tokens)[:, :, 32:]  # the last third of [B, N, 3 * 16]
        heads = [layer_maps[:, h] @ values[:, :, 8 * h : 8 * h + 8] for h in range(2)]
        torch.testing.assert_close(block.attn.proj(torch.cat(heads, dim=2)), output)


def test_pooling() -> None:
    tokens = torch.randn(3, 4, 16)
    torch.testing.assert_close(tiny(pool="mean").pool(tokens), tokens.sum(dim=1) / 4)
    assert torch.equal(tiny(pool="cls").pool(tokens), tokens[:, 0])
    model = perturbed(tiny(pool="attention"))
    assert model.attn_pool is not None
    scores = torch.einsum("bnd,d->bn", tokens, model.attn_pool.weight[0]).exp()
    expected = torch.einsum("bn,bnd->bd", scores / scores.sum(dim=1, keepdim=True), tokens)
    torch.testing.assert_close(model.pool(tokens), expected)


# Noise and initial weights


@pytest.mark.parametrize("attention", ATTENTION)
def test_dropout_acts_on_tokens_hidden_units_and_mlp_output(attention: str) -> None:
    """After the positions and twice in the MLP, never inside the attention."""
    rate, tokens = 0.25, torch.randn(400, 5, 16)
    model = perturbed(tiny(dropout=rate)).train()
    model.set_attention(attention)
    attn, mlp = model.blocks[0].attn, model.blocks[0].mlp

    embedded = model.embed(torch.randn(400, 3, 8, 8))
    assert (embedded == 0).float().mean().item() == pytest.approx(rate, abs=0.02)
    assert torch.equal(attn(tokens), attn.eval()(tokens))

    # With these weights, each output of the MLP is the number of its token's hidden units that dropout kept.
    weights = {
        "fc1.weight": torch.zeros(24, 16),
        "fc1.bias": torch.full((24,), 3.0),
        "fc2.weight": torch.full((16, 24), (1 - rate) ** 2 / float(F.gelu(torch.tensor(3.0)))),
        "fc2.bias": torch.zeros(16),
    }
    mlp.load_state_dict(weights)
    units = mlp(tokens).detach().flatten(0, 1)  # [400 * 5, 16]
    kept = units.amax(dim=1, keepdim=True)
    assert (units == 0).float().mean().item() == pytest.approx(rate, abs=0.02)  # dropout of the output
    assert torch.equal(units[units != 0], kept.expand_as(units)[units != 0])
    torch.testing.assert_close(kept, kept.round(), atol=1e-3, rtol=0)
    assert kept.mean().item() == pytest.approx(24 * (1 - rate), abs=0.3)  # dropout of the 24 hidden units
    assert kept.std().item() == pytest.approx((24 * rate * (1 - rate)) ** 0.5, rel=0.1)


def test_drop_path() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(20_000, 2, 3)
    y = drop(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (y == y[:, :1, :1]).all(), "an image's branch is kept or dropped as a whole"
    assert abs(y.mean() - 1) < 4 * math.sqrt(0.25 / 0.75 / 20_000)
    assert drop.eval()(x) is x
    assert drop.train()(x.bfloat16()).dtype == torch.bfloat16


def test_the_two_branches_of_a_layer_are_dropped_independently() -> None:
    model = tiny(depth=2, drop_path=0.5).train()
    with keyed_noise(model, 1, 2, torch.arange(4000)):
        masks = [
            drop(torch.ones(4000, 1, 1)).flatten() > 0
            for block in model.blocks
            for drop in (block.drop_path1, block.drop_path2)
        ]
    correlated = np.corrcoef(torch.stack(masks[2:]).numpy())  # the last layer, whose rate is 0.5
    assert abs(correlated[0, 1]) < 5 / 4000**0.5


def test_drop_path_rises_over_the_depth() -> None:
    model = tiny(depth=5, drop_path=0.2)
    rates = [block.drop_path1.get_buffer("rate").item() for block in model.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    model.double()  # the dtype of `rate` does not affect the output's
    assert model(torch.randn(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_paper_initialisation() -> None:
    model = VisionTransformer(Architecture(4, 128, 1, 2, 256), 32, 100)
    for key, parameter in model.named_parameters():
        if "norm" in key or key.startswith("patch_embed"):
            continue
        if key.endswith("bias"):
            assert parameter.abs().max() == 0, key
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), key


def test_notebook_initialisation() -> None:
    torch.manual_seed(0)
    model = create_model("notebook-cifar10", depth=1)
    attn = model.blocks[0].attn
    bound = math.sqrt(6 / (256 + 3 * 256))  # Xavier-uniform over the packed projection
    assert 0.99 * bound < attn.qkv.weight.abs().max() <= bound
    assert attn.qkv.bias.abs().max() == attn.proj.bias.abs().max() == 0
    assert model.pos_embed.std().item() == pytest.approx(1, rel=0.05)
    assert model.cls_token is not None and model.cls_token.std().item() == pytest.approx(1, rel=0.2)
    for linear in (attn.proj, model.blocks[0].mlp.fc1, model.blocks[0].mlp.fc2, model.patch_embed.proj):
        bound = 1 / math.sqrt(linear.weight[0].numel())  # torch's default
        assert 0.98 * bound < linear.weight.abs().max() <= bound


def test_zero_init_makes_each_block_the_identity() -> None:
    tokens = torch.randn(2, 4, 16)
    for block in tiny(zero_init=True).blocks:
        assert torch.equal(block(tokens), tokens)
    assert not torch.equal(tiny(zero_init=False).blocks[0](tokens), tokens)


# Dropout


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_dropout_zeroes_its_rate_and_keeps_the_mean(rate: float) -> None:
    dropout = Dropout(rate)
    torch.manual_seed(1)
    x = torch.ones(300, 1001, requires_grad=True)
    y = dropout(x)
    count = y.numel()
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - rate) < 5 * (rate * (1 - rate) / count) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - rate)))
    rows, columns = (
        (y == 0).float().mean(1),
        (y == 0).float().mean(0),
    )  # no row or column is dropped more often
    assert rows.std() < 1.2 * (rate * (1 - rate) / 1001) ** 0.5
    assert columns.std() < 1.2 * (rate * (1 - rate) / 300) ** 0.5
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())
    other = dropout(x.detach())
    assert abs(((y == 0) & (other == 0)).float().mean().item() - rate**2) < 0.005
    torch.manual_seed(1)
    assert torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)


def test_opcheck_of_dropout() -> None:
    torch.library.opcheck(_keep_mask, (torch.tensor([7, -1, 2**30], dtype=torch.int32), 5, 2**31))


def test_dropout_follows_its_documented_hash() -> None:
    keys = torch.tensor([0, 7, -1, -(2**31)], dtype=torch.int32)
    kept = keep_mask(keys, 50_000, 0.3).numpy()
    with np.errstate(over="ignore"):
        x = np.arange(50_000, dtype=np.uint32) * np.uint32(0x9E3779B1) + keys.numpy().view(np.uint32)[:, None]
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    assert np.array_equal(kept, x ^ (x >> np.uint32(16)) >= int(0.3 * 2**32))
    correlated = np.corrcoef(kept) - np.eye(4)  # masks of different keys are uncorrelated
    assert abs(correlated).max() < 5 / 50_000**0.5


@pytest.mark.parametrize("attention", ATTENTION)
def test_noise_is_a_function_of_the_sample(attention: str) -> None:
    model = tiny(dropout=0.2, drop_path=0.3).train()
    model.set_attention(attention)
    images, samples = torch.randn(6, 3, 8, 8), torch.tensor([9, 2, 70_000, 4, 0, 5])
    state = torch.get_rng_state()

    def logits(some: list[int], seed: int = 1, step: int = 2) -> Tensor:
        with keyed_noise(model, seed, step, samples[some]):
            return model(images[some])

    together = logits([0, 1, 2, 3, 4, 5])
    torch.testing.assert_close(logits([4, 1, 2]), together[[4, 1, 2]])
    for other in (logits([0, 1, 2, 3, 4, 5], seed=2), logits([0, 1, 2, 3, 4, 5], step=3), model(images)):
        assert not torch.allclose(other, together, atol=1e-4)
    torch.set_rng_state(state)
    model(images)  # keyed noise must not advance the caller's generator
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    logits([0, 1])
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(drawn, state)
    assert all(m.keys is None for m in model.modules() if isinstance(m, Dropout | DropPath))


# The convolutional stem


def test_whitening_decorrelates_patches() -> None:
    torch.manual_seed(0)
    rough = torch.randn(64, 3, 17, 17)
    smooth = F.avg_pool2d(rough, 2, 1) @ torch.diag(torch.linspace(1, 3, 16))  # neighbours are correlated
    model = tiny(image_size=16, **CONV)
    assert isinstance(model.patch_embed, ConvStem)
    model.init_from_data(smooth)
    out = F.conv2d(smooth, model.patch_embed.whiten.weight).transpose(0, 1).flatten(1)  # [24, patches]
    covariance = out[:12] @ out[:12].T / out.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.02, rtol=0)
    assert torch.equal(out[12:], -out[:12])
    assert "patch_embed.whiten.weight" in model.state_dict()
    assert "patch_embed.whiten.weight" not in dict(model.named_parameters())


@pytest.mark.parametrize(
    ("patch_size", "stride", "widths"),
    [
        (2, 1, [24, 12]),
        (4, 1, [24, 48, 12]),
        (8, 1, [24, 24, 48, 12]),
        (16, 1, [24, 16, 24, 48, 12]),
        (4, 2, [24, 12]),
        (16, 2, [24, 24, 48, 12]),
    ],
)
def test_conv_stem_has_a_stage_for_each_halving(patch_size: int, stride: int, widths: list[int]) -> None:
    side = 2 * patch_size + 1
    model = tiny(image_size=side, patch_size=patch_size, stem="conv", stem_dims=(48, 12), stem_stride=stride)
    assert isinstance(model.patch_embed, ConvStem)
    shapes = [stage.get_parameter("conv.weight").shape for stage in model.patch_embed.stages]
    assert [shapes[0][1], *(shape[0] for shape in shapes)] == widths
    assert model.embed(torch.randn(2, 3, side, side)).shape == (2, 5, 16)


def test_conv_stem_drops_the_remainder_that_fills_no_token() -> None:
    model = tiny(image_size=32, pool="mean", **CONV)
    assert model.num_tokens == 49
    image = torch.randn(1, 3, 32, 32)
    other = image.clone()
    other[:, :, 31:] += 1  # reaches the last tokens and, through the last 3x3 convolution, their neighbours
    changed = (model.embed(image) != model.embed(other)).any(dim=2).view(7, 7)
    assert not changed[:5].any()
    with pytest.raises(VitreousError, match="too small for stem 'conv'"):
        tiny(image_size=4, **CONV)


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_stem_step_by_step(stride: int) -> None:
    side = 8 * stride + 1
    changes = {**CONV, "patch_size": 4 * stride, "stem_stride": stride}
    stem = perturbed(tiny(image_size=side, **changes).double()).patch_embed
    assert isinstance(stem, ConvStem)

    def stage(x: Tensor, layer: ConvStage, halve: bool) -> Tensor:
        x = F.conv2d(x, layer.conv.weight, padding=1)
        x = F.max_pool2d(x, 2) if halve else x
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        x = (x - mean) / (variance + 1e-6).sqrt()
        return F.gelu(x * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None])

    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    x = F.gelu(F.conv2d(images, stem.whiten.weight))  # of all patches, of which every `stride`-th is used
    x = x[:, :, stride - 1 :: stride, stride - 1 :: stride]
    for layer in stem.stages:
        assert isinstance(layer, ConvStage)
        x = stage(x, layer, halve=True)
    x = x + stage(x, stem.mix, halve=False)
    assert stem.proj.bias is not None
    tokens = torch.einsum("bcij,dc->bijd", x, stem.proj.weight[:, :, 0, 0]) + stem.proj.bias
    torch.testing.assert_close(stem(images), tokens.reshape(2, 4, 16))


# Precision and compilation


def test_bfloat16_autocast() -> None:
    model = perturbed(create_model("compact", depth=1))
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images).float(), expected, atol=0.05, rtol=0.05)


def test_one_compiled_block_serves_all_layers() -> None:
    torch._dynamo.reset()
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    model = tiny(depth=4, dropout=0.1, drop_path=0.1, qk_norm=True).train()
    for block in model.blocks:
        block.compile(backend=count)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert graphs == 1


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    torch._dynamo.reset()
    model = perturbed(tiny(drop_path=0.1, qk_norm=True)).eval()
    images = torch.randn(2, 3, 8, 8)
    results = []
    for compiled in (False, True):
        for block in model.blocks if compiled else []:
            block.compile()
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for eager, compiled_result in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled_result)
