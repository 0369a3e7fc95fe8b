"""Our own kernels for CPUs against the network as `vit.py` and `stem.py` have it, and what happens without them."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import pickle
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from vitreous.errors import VitreousError
from vitreous.model.dropout import Dropout, free_noise, key_noise, keyed_noise
from vitreous.model.stem import ConvStem
from vitreous.model.variants import Architecture, variant
from vitreous.model.vit import VisionTransformer, create_model
from vitreous.native import build, ops
from vitreous.native.accelerate import accelerate, is_accelerated, plain, unsupported

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
pytestmark = pytest.mark.skipif(isinstance(build.load_kernels(torch.float32), str), reason="no C++ compiler")


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
    model: VisionTransformer, backend: str, pictures: Tensor, *, bf16: bool = False
) -> dict[str, Tensor]:
    plain(model).set_attention("explicit")
    if backend == "native":
        accelerate(model)
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
    assert unsupported(model) is None
    found = gradients(model, "native", pictures)
    truth = gradients(model.double(), "torch", pictures.double())
    assert found.keys() == truth.keys()
    assert max(error(found, truth).values()) < 2e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_no_less_exact_than_torch_under_autocast(name: str) -> None:
    model, pictures = network(name)
    ours, torchs = (gradients(model, backend, pictures, bf16=True) for backend in ("native", "torch"))
    truth = gradients(model.double(), "torch", pictures.double())
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
            out = ops.pool(tokens, norm.weight, norm.bias, weight, norm.eps, False)
        else:
            h = norm(tokens)
            out = ((h @ weight.mT).softmax(1) * h).sum(1)
        results += [out, *torch.autograd.grad((out * upstream).sum(), (tokens, weight, *norm.parameters()))]
    for ours, exact in zip(found, truth, strict=True):
        assert (ours - exact).norm() < 5e-5 * exact.norm()


RATE, SEED, STEP = 0.3, 7, 11
SAMPLES = torch.tensor([5, 40_000, 0, 17, 2**31, 3])


def dropping(name: str) -> tuple[VisionTransformer, Tensor]:
    model, pictures = network(name)
    for module in model.modules():
        if isinstance(module, Dropout):
            module.rate = RATE
    return model, pictures


@pytest.mark.parametrize("name", ["compact", "odd widths", "linear stem, class token"])
@pytest.mark.usefixtures("threads")
def test_dropout_is_that_of_torch(name: str) -> None:
    model, pictures = dropping(name)
    with keyed_noise(model, SEED, STEP, SAMPLES):
        found = gradients(model, "native", pictures)
        truth = gradients(model.double(), "torch", pictures.double())
    assert max(error(found, truth).values()) < 2e-5
    without = gradients(model.eval(), "torch", pictures.double())["logits"]
    assert not torch.allclose(without, truth["logits"], atol=1e-3)


def test_noise_follows_the_sample_and_not_its_batch() -> None:
    model, pictures = dropping("compact")
    logits = {}
    for backend in (accelerate, plain):
        backend(model).train()
        with keyed_noise(model, SEED, STEP, SAMPLES):
            together = model(pictures)
        order = torch.tensor([4, 1, 3])
        with keyed_noise(model, SEED, STEP, SAMPLES[order]):
            torch.testing.assert_close(model(pictures[order]), together[order], atol=1e-5, rtol=1e-5)
        with keyed_noise(model, SEED, STEP + 1, SAMPLES):
            assert not torch.allclose(model(pictures), together, atol=1e-3)
        logits[backend.__name__] = together
    torch.testing.assert_close(logits["accelerate"], logits["plain"], atol=1e-5, rtol=1e-5)


def test_pictures_in_any_memory_order_give_the_same() -> None:
    model, pictures = network("compact")
    expected = gradients(model, "native", pictures)
    last = gradients(model, "native", pictures.to(memory_format=torch.channels_last))
    assert all(torch.equal(expected[name], last[name]) for name in expected)
    model.to(memory_format=torch.channels_last)
    turned = gradients(model, "native", pictures)
    assert all(torch.equal(expected[name], turned[name]) for name in expected)


@pytest.mark.usefixtures("threads")
def test_repeated_to_the_bit() -> None:
    model, pictures = network("compact")
    first, second = (gradients(model, "native", pictures, bf16=True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# What is not on the list goes torch's way


def agree(model: VisionTransformer, pictures: Tensor) -> None:
    """Accelerated or not, a model gives the same logits and gradients."""
    accelerated = is_accelerated(model)
    found = gradients(model, "native" if accelerated else "torch", pictures)
    truth = gradients(copy.deepcopy(plain(model)).double(), "torch", pictures.double())
    assert found.keys() == truth.keys()
    assert max(error(found, truth).values()) < 5e-5


class LowRank(nn.Linear):
    """A linear layer that adds something, as LoRA does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(dim=-1, keepdim=True)


def low_rank(model: VisionTransformer) -> None:
    model.blocks[1].mlp.fc1 = LowRank(96, 192)


def no_bias_in_head_norm(model: VisionTransformer) -> None:
    model.blocks[2].attn.q_norm = nn.LayerNorm(32, bias=False)


def another_eps(model: VisionTransformer) -> None:
    model.blocks[3].norm2.eps = 0.5


def another_eps_in_one_block(model: VisionTransformer) -> None:
    for block in model.blocks:
        block.attn.k_norm.eps = 0.5


def no_bias(model: VisionTransformer) -> None:
    model.blocks[0].mlp.fc2.bias = None


def other_width(model: VisionTransformer) -> None:
    model.blocks[1].mlp.fc1, model.blocks[1].mlp.fc2 = nn.Linear(96, 40), nn.Linear(40, 96)


def other_heads(model: VisionTransformer) -> None:
    model.blocks[1].attn.num_heads, model.blocks[1].attn.q_norm = 2, nn.Identity()
    model.blocks[1].attn.k_norm = nn.Identity()


def one_module_more(model: VisionTransformer) -> None:
    model.blocks[1].ls1 = nn.Identity()


CHANGES: list[Callable[[VisionTransformer], None]] = [
    low_rank, no_bias_in_head_norm, another_eps, another_eps_in_one_block, no_bias, other_width, other_heads,
    one_module_more,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_encoder_is_refused(change: Callable[[VisionTransformer], None]) -> None:
    model, pictures = network("compact")
    change(model)
    assert unsupported(model) is not None
    with pytest.raises(VitreousError, match="cannot take this network: its blocks"):
        accelerate(model)
    agree(model, pictures)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_the_decision_is_not_ignored(change: Callable[[VisionTransformer], None]) -> None:
    model, pictures = network("compact")
    change(accelerate(model))
    found = model.eval()(pictures)
    expected = copy.deepcopy(plain(model)).double()(pictures.double())
    assert (found - expected).abs().max() < 1e-4


# For each option of the network another value: what is added there must be known to the kernels or keep them off.
OPTIONS: dict[str, dict[str, Any]] = {
    "patch_size": {"patch_size": 2},
    "embed_dim": {"embed_dim": 192},
    "depth": {"depth": 2},
    "num_heads": {"num_heads": 2},
    "mlp_dim": {"mlp_dim": 80},
    "stem": {"stem": "linear", "stem_dims": ()},
    "stem_dims": {"stem_dims": (20, 60)},
    "pool": {"pool": "mean"},
    "pos_embed": {"pos_embed": "sine"},
    "embed_activation": {"embed_activation": "relu"},
    "final_norm": {"final_norm": False},
    "head_hidden": {"head_hidden": 50},
    "qkv_bias": {"qkv_bias": False},
    "qk_norm": {"qk_norm": False},
    "zero_init": {"zero_init": False},
    "dropout": {"dropout": 0.3},
    "drop_path": {"drop_path": 0.3},
    "norm_eps": {"norm_eps": 0.1},
    "init": {"init": "notebook"},
}


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(Architecture)])
def test_every_option_is_computed_or_refused(option: str) -> None:
    architecture = dataclasses.replace(COMPACT, **OPTIONS[option])
    assert getattr(architecture, option) != getattr(COMPACT, option)
    torch.manual_seed(0)
    model, pictures = VisionTransformer(architecture, 32, 10), torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if unsupported(model):
        return  # to be seen in a run: it says that it is torch's, and why
    with keyed_noise(model, SEED, STEP, SAMPLES):
        found = gradients(model, "native", pictures)
        truth = gradients(model.double(), "torch", pictures.double())
    assert max(error(found, truth).values()) < 5e-5


class Doubling(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Averaging(nn.LayerNorm):
    """Looks across tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=1, keepdim=True))


def another_attribute(model: VisionTransformer, name: str, value: Any) -> None:
    setattr(model, name, value)


def other_whitening(model: VisionTransformer) -> None:
    assert isinstance(model.patch_embed, ConvStem)
    model.patch_embed.whiten.weight[15:].mul_(1.5)


LATER: dict[str, Callable[[VisionTransformer], None]] = {
    "fewer blocks": lambda m: another_attribute(m, "blocks", m.blocks[:1]),
    "another stem": lambda m: another_attribute(m, "patch_embed", ConvStem(COMPACT)),
    "another norm": lambda m: another_attribute(m, "norm", nn.LayerNorm(96, bias=False)),
    "no norm": lambda m: another_attribute(m, "norm", nn.Identity()),
    "a norm across tokens": lambda m: another_attribute(m, "norm", Averaging(96)),
    "another pooling": lambda m: another_attribute(m, "attn_pool", nn.Linear(96, 1, bias=False)),
    "no pooling": lambda m: another_attribute(m, "attn_pool", None),
    "an activation": lambda m: another_attribute(m, "embed_activation", Doubling()),
    "whitening": other_whitening,
    "heads of its own": lambda m: another_attribute(
        m.blocks[1].attn, "_heads", lambda x, own=m.blocks[1].attn._heads: [2 * part for part in own(x)]
    ),
    "a pool of its own": lambda m: another_attribute(m, "pool", lambda x: x.amax(dim=1)),
    "an embedding of its own": lambda m: another_attribute(m, "place", lambda x, own=m.place: 2 * own(x)),
}


@pytest.mark.parametrize("change", LATER)
@pytest.mark.parametrize("pool", ["attention", "cls"])
def test_what_is_replaced_later_is_not_ignored(change: str, pool: str) -> None:
    torch.manual_seed(0)
    model, pictures = (
        VisionTransformer(dataclasses.replace(COMPACT, pool=pool), 32, 10).eval(),
        torch.randn(4, 3, 32, 32),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        before = accelerate(model)(pictures)
        LATER[change](model)
        found = model(pictures)
        expected = plain(model)(pictures)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    if "pool" not in change or pool == "attention" or "own" in change:
        assert not torch.allclose(found, before, atol=1e-3)


@pytest.mark.parametrize("name", ["forward", "_heads"])
def test_a_method_replaced_for_the_whole_class_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pictures = network("compact")
    before = accelerate(model).eval()(pictures)
    kind = type(model.blocks[0].attn)
    own = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, x: own(self, 2 * x))
    found = model(pictures)
    assert not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(found, plain(model)(pictures), atol=1e-5, rtol=1e-4)


def test_a_hook_on_the_final_norm_sees_every_token() -> None:
    model, pictures = network("class token")
    seen: list[torch.Size] = []
    accelerate(model).eval().norm.register_forward_hook(lambda *_: seen.append(_[2].shape))
    model(pictures)
    assert seen == [(6, model.position(5).shape[1], 96)]


class Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_operators() -> None:
    model, pictures = network("compact")
    accelerate(model).eval()
    with Seen() as seen:
        model(pictures)
    assert {"gelu", "layer_norm", "linear", "conv2d"} <= seen.called


def test_a_checkpointed_block_draws_the_same_noise_again() -> None:
    found = []
    for checkpointed in (False, True):
        model, pictures = dropping("compact")
        plain(model).train()
        key_noise(model, SEED, STEP, SAMPLES)
        x = model.embed(pictures)
        for block in model.blocks:
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        model.head(model.pool(model.norm(x))).square().sum().backward()
        free_noise(model)
        found.append([p.grad for p in model.parameters()])
    for once, again in zip(*found, strict=True):
        torch.testing.assert_close(once, again)


def pooling_by_mean(model: VisionTransformer) -> None:
    assert isinstance(model.patch_embed, ConvStem)
    model.patch_embed.stages[0].pool = nn.AvgPool2d(2)


def wider_steps(model: VisionTransformer) -> None:
    assert isinstance(model.patch_embed, ConvStem)
    model.patch_embed.mix.conv.padding_mode = "reflect"
    model.patch_embed.mix.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


def final_norm_without_bias(model: VisionTransformer) -> None:
    model.norm.bias = None


def whitening_of_its_own(model: VisionTransformer) -> None:
    assert isinstance(model.patch_embed, ConvStem)
    model.patch_embed.whiten.weight[12:].mul_(1.5)


@pytest.mark.parametrize(
    "change", [pooling_by_mean, wider_steps, final_norm_without_bias, whitening_of_its_own]
)
def test_a_changed_stem_or_pooling_goes_torchs_way_alone(change: Callable[[VisionTransformer], None]) -> None:
    model, pictures = network("compact")
    change(model)
    agree(accelerate(model), pictures)


def test_every_module_calls_its_hooks() -> None:
    model, pictures = network("compact")
    accelerate(model).eval()
    expected = model(pictures)
    called: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in model.named_modules()
        if not isinstance(module, nn.ModuleList)
    ]
    torch.testing.assert_close(model(pictures), expected, atol=1e-5, rtol=1e-5)
    assert len(called) == len(handles)
    for handle in handles:
        handle.remove()
    assert torch.equal(model(pictures), expected)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: called.clear())
    model(pictures)
    handle.remove()
    assert not called


def test_modes_of_single_modules_count() -> None:
    model, pictures = dropping("compact")
    accelerate(model).eval()
    expected = model(pictures)
    model.blocks[1].mlp.drop2.train()
    assert not torch.allclose(model(pictures), expected, atol=1e-3)
    model.train()
    for module in model.modules():
        if isinstance(module, Dropout):
            module.eval()
    torch.testing.assert_close(model(pictures), expected, atol=1e-5, rtol=1e-5)


def test_weights_that_are_not_contiguous() -> None:
    model, pictures = network("compact")
    for block in model.blocks:
        block.attn.qkv.weight.data = block.attn.qkv.weight.data.T.contiguous().T
    agree(accelerate(model), pictures)


def test_gradients_of_pictures() -> None:
    model, pictures = network("compact")
    accelerate(model).eval()
    pictures.requires_grad_()  # as for a saliency map
    model(pictures).sum().backward()
    found, pictures.grad = pictures.grad, None
    plain(model)(pictures).sum().backward()
    assert found is not None and pictures.grad is not None
    torch.testing.assert_close(found, pictures.grad, atol=1e-4, rtol=1e-4)


def test_other_types_and_sizes() -> None:
    model, pictures = network("compact")
    accelerate(model).eval()
    assert model(pictures[:0]).shape == (0, 10)
    expected = plain(copy.deepcopy(model)).double()(pictures.double())
    assert torch.equal(model.double()(pictures.double()), expected)
    model.float().blocks.double()
    with pytest.raises(RuntimeError):  # torch's own words, as for any network
        model(pictures)
    with pytest.raises(RuntimeError):
        model.float()(pictures.to(torch.uint8))
    with pytest.raises(VitreousError, match="takes pictures"):
        model(pictures[:, :, 1:])


def test_transforms_of_torch_func() -> None:
    model, pictures = network("compact")
    expected = model.eval()(pictures)
    accelerate(model)
    each = torch.func.vmap(lambda picture: model(picture[None])[0])(pictures)
    torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-5)
    doubled = {name: 2 * p.detach() for name, p in model.named_parameters()}
    found = torch.func.functional_call(model, doubled, (pictures,))
    torch.testing.assert_close(
        found, torch.func.functional_call(plain(model), doubled, (pictures,)), atol=1e-4, rtol=1e-4
    )


def test_tracing_is_refused_in_a_sentence() -> None:
    model, pictures = network("compact")
    accelerate(model).eval()
    for trace in (torch.jit.trace, lambda m, x: torch.export.export(m, (x,))):
        with pytest.raises(VitreousError, match=r"cannot be traced or exported; call .*plain\(model\) first"):
            trace(model, pictures)
    assert torch.jit.trace(plain(model), pictures)(pictures).shape == (6, 10)


def test_weights_and_keys_stay_and_copies_are_whole() -> None:
    model, pictures = network("compact")
    before = dict(model.named_parameters())
    expected = model.eval()(pictures)
    accelerate(accelerate(model))
    assert is_accelerated(model) and all(p is before[name] for name, p in model.named_parameters())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_accelerated(other) and torch.equal(other(pictures), model(pictures))
        other.blocks[0].mlp.fc1.weight.data.zero_()
        assert not torch.equal(other(pictures), model(pictures))
    assert type(plain(plain(model))) is VisionTransformer
    assert torch.equal(model(pictures), expected)


def test_rates_that_are_whole_numbers_are_numbers() -> None:
    model, pictures = network("compact")
    expected = gradients(model, "native", pictures)
    for block in model.blocks:
        block.mlp.drop1.rate = block.mlp.drop2.rate = 0
    found = gradients(model, "native", pictures)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a flag of that processor's")
@pytest.mark.parametrize("name", ["compact", "odd channels", "odd widths"])
def test_without_avx512_the_results_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-mno-avx512f"))
    build.load_kernels.cache_clear()
    try:
        model, pictures = network(name)
        assert isinstance(build.load_kernels(torch.float32), ctypes.CDLL)
        found = gradients(model, "native", pictures)
        ours, torchs = (gradients(model, backend, pictures, bf16=True) for backend in ("native", "torch"))
        truth = gradients(model.double(), "torch", pictures.double())
        assert max(error(found, truth).values()) < 2e-5
        assert sum(error(ours, truth).values()) < 1.2 * sum(error(torchs, truth).values())
    finally:
        build.load_kernels.cache_clear()


def test_too_few_tokens_for_a_register_go_torchs_way() -> None:
    assert "at least 16 tokens" in str(unsupported(VisionTransformer(COMPACT, 16, 10)))  # it has nine
    model, _ = network("compact")
    agree(accelerate(model), torch.randn(4, 3, 16, 16))


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"drop_path": 0.1}, "stochastic depth"), ({"embed_dim": 24, "num_heads": 3}, "heads of at least 16")],
)
def test_a_network_that_they_do_not_know_is_refused(change: dict[str, Any], reason: str) -> None:
    model = create_model("compact", **change)
    assert reason in str(unsupported(model))
    with pytest.raises(VitreousError, match=reason):
        accelerate(model)


def test_a_subclass_is_refused() -> None:
    class Mine(VisionTransformer):
        pass

    assert "Mine may compute something else" in str(unsupported(Mine(COMPACT, 32, 10)))


def test_without_a_compiler_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, _ = network("compact")
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    try:
        for compiler in ("", str(broken)):
            build.load_kernels.cache_clear()
            monkeypatch.setattr(build, "cpp_compiler", lambda compiler=compiler: compiler or None)
            assert unsupported(model)
            with pytest.raises(VitreousError, match=r"cannot take this network"):
                accelerate(model)
    finally:
        monkeypatch.undo()
        build.load_kernels.cache_clear()


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_gives_the_same(name: str) -> None:
    model, pictures = network(name)
    model.eval()
    with torch.inference_mode():
        expected = model(pictures)
        torch.testing.assert_close(accelerate(model)(pictures), expected, atol=1e-5, rtol=1e-5)
