"""The native kernels against the modules in `vit.py` and `stem.py`, and the fallback to torch without them."""

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
NETWORKS: dict[
    str, tuple[Architecture, int, int]
] = {  # architecture, image_size, side of the images in the test
    "compact": (COMPACT, 32, 32),
    "smaller images": (COMPACT, 32, 24),
    "whitening of stride 2": (dataclasses.replace(COMPACT, patch_size=8, stem_stride=2), 64, 48),
    "other pooling sizes": (dataclasses.replace(COMPACT, stem_dims=(16, 32)), 37, 37),
    # Widths that are not multiples of 16 lanes: heads of 20, layers of 40 and 56, stages of 20 and 36.
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
    "no qkv bias, qk_norm": (
        Architecture(4, 48, 2, 3, 96, qkv_bias=False, qk_norm=True),
        20,
        20,
    ),
}
pytestmark = pytest.mark.skipif(isinstance(build.load_kernels(torch.float32), str), reason="no C++ compiler")


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def network(name: str) -> tuple[VisionTransformer, Tensor]:
    """A network without zero weights, and six images for it."""
    architecture, image_size, side = NETWORKS[name]
    torch.manual_seed(0)
    model = VisionTransformer(architecture, image_size, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, torch.randn(6, 3, side, side)


def gradients(
    model: VisionTransformer, backend: str, images: Tensor, *, bf16: bool = False
) -> dict[str, Tensor]:
    """Logits and gradients of all parameters, in train mode."""
    plain(model).set_attention("explicit")
    if backend == "native":
        accelerate(model)
    model.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(images)
    loss = F.cross_entropy(logits.to(images.dtype), torch.arange(len(images)))
    loss.backward()
    return {"logits": logits.detach()} | {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def errors(results: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Relative error of each tensor; for tiny tensors, relative to a thousandth of the largest."""
    floor = 1e-3 * max(float(value.norm()) for value in truth.values())
    return {n: float((results[n].double() - truth[n]).norm() / max(truth[n].norm(), floor)) for n in truth}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("threads")
def test_float32_gives_the_gradients_of_double_precision(name: str) -> None:
    model, images = network(name)
    assert unsupported(model) is None
    actual = gradients(model, "native", images)
    truth = gradients(model.double(), "torch", images.double())
    assert actual.keys() == truth.keys()
    assert max(errors(actual, truth).values()) < 2e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_as_accurate_as_torch_under_autocast(name: str) -> None:
    model, images = network(name)
    native, autocast = (gradients(model, backend, images, bf16=True) for backend in ("native", "torch"))
    truth = gradients(model.double(), "torch", images.double())
    native_errors, autocast_errors = errors(native, truth), errors(autocast, truth)
    assert sum(native_errors.values()) < 1.2 * sum(autocast_errors.values())
    assert max(native_errors.values()) < 2 * max(autocast_errors.values())


@pytest.mark.parametrize("size", [0.5, 60.0], ids=["normal scores", "scores whose exponential overflows"])
def test_pooling_has_the_gradients_of_double_precision(size: float) -> None:
    torch.manual_seed(0)
    x, norm, query = torch.randn(5, 25, 40), nn.LayerNorm(40), size * torch.randn(1, 40)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    upstream = torch.randn(5, 40)
    native: list[Tensor] = []
    truth: list[Tensor] = []
    for results, dtype in ((native, torch.float32), (truth, torch.float64)):
        tokens, weight = (t.to(dtype).requires_grad_() for t in (x, query))
        norm = norm.to(dtype)
        if dtype == torch.float32:
            out = ops.pool(tokens, norm.weight, norm.bias, weight, norm.eps, False)
        else:
            h = norm(tokens)
            out = ((h @ weight.mT).softmax(1) * h).sum(1)
        results += [out, *torch.autograd.grad((out * upstream).sum(), (tokens, weight, *norm.parameters()))]
    for result, exact in zip(native, truth, strict=True):
        assert (result - exact).norm() < 5e-5 * exact.norm()


RATE, SEED, STEP = 0.3, 7, 11
SAMPLES = torch.tensor([5, 40_000, 0, 17, 2**31, 3])


def network_with_dropout(name: str) -> tuple[VisionTransformer, Tensor]:
    model, images = network(name)
    for module in model.modules():
        if isinstance(module, Dropout):
            module.rate = RATE
    return model, images


@pytest.mark.parametrize("name", ["compact", "odd widths", "linear stem, class token"])
@pytest.mark.usefixtures("threads")
def test_dropout_drops_the_same_elements_as_torch(name: str) -> None:
    model, images = network_with_dropout(name)
    with keyed_noise(model, SEED, STEP, SAMPLES):
        actual = gradients(model, "native", images)
        truth = gradients(model.double(), "torch", images.double())
    assert max(errors(actual, truth).values()) < 2e-5
    without = model.eval()(images.double())
    assert not torch.allclose(without, truth["logits"], atol=1e-3)


def test_noise_follows_the_sample_and_not_its_batch() -> None:
    model, images = network_with_dropout("compact")
    logits = {}
    for backend in (accelerate, plain):
        backend(model).train()
        with keyed_noise(model, SEED, STEP, SAMPLES):
            together = model(images)
        order = torch.tensor([4, 1, 3])
        with keyed_noise(model, SEED, STEP, SAMPLES[order]):
            torch.testing.assert_close(model(images[order]), together[order], atol=1e-5, rtol=1e-5)
        with keyed_noise(model, SEED, STEP + 1, SAMPLES):
            assert not torch.allclose(model(images), together, atol=1e-3)
        logits[backend.__name__] = together
    torch.testing.assert_close(logits["accelerate"], logits["plain"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("of", ["images", "weights"])
def test_memory_order_does_not_matter(of: str) -> None:
    model, images = network("compact")
    expected = gradients(model, "native", images)
    truth = gradients(copy.deepcopy(plain(model)).double(), "torch", images.double())
    if of == "images":
        images = images.to(memory_format=torch.channels_last)
        assert not images.is_contiguous()
    else:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's types
        assert not model.get_parameter("patch_embed.mix.conv.weight").is_contiguous()
    results = gradients(model, "native", images)
    assert max(errors(results, truth).values()) < 2e-5
    assert all(torch.equal(expected[name], results[name]) for name in expected)


@pytest.mark.usefixtures("threads")
def test_a_repeated_pass_gives_the_same_bits() -> None:
    model, images = network("compact")
    first, second = (gradients(model, "native", images, bf16=True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# Networks that are not on the allow-list run in torch


def check_gradients(model: VisionTransformer, images: Tensor) -> None:
    """Compares the model's logits and gradients with those of a plain copy in double precision."""
    accelerated = is_accelerated(model)
    actual = gradients(model, "native" if accelerated else "torch", images)
    truth = gradients(copy.deepcopy(plain(model)).double(), "torch", images.double())
    assert actual.keys() == truth.keys()
    assert max(errors(actual, truth).values()) < 5e-5


class LowRank(nn.Linear):
    """A linear layer with an extra term, as in LoRA."""

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
    model.blocks[0].mlp.fc2.register_parameter("bias", None)


def other_width(model: VisionTransformer) -> None:
    model.blocks[1].mlp.fc1, model.blocks[1].mlp.fc2 = nn.Linear(96, 40), nn.Linear(40, 96)


def other_heads(model: VisionTransformer) -> None:
    model.blocks[1].attn.num_heads, model.blocks[1].attn.q_norm = 2, nn.Identity()
    model.blocks[1].attn.k_norm = nn.Identity()


def extra_module(model: VisionTransformer) -> None:
    model.blocks[1].ls1 = nn.Identity()


CHANGES: list[Callable[[VisionTransformer], None]] = [
    low_rank, no_bias_in_head_norm, another_eps, another_eps_in_one_block, no_bias, other_width, other_heads,
    extra_module,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_encoder_is_refused(change: Callable[[VisionTransformer], None]) -> None:
    model, images = network("compact")
    change(model)
    assert unsupported(model) is not None
    with pytest.raises(VitreousError, match="cannot run this network: unsupported architecture: the blocks"):
        accelerate(model)
    check_gradients(model, images)


@pytest.mark.parametrize("change", CHANGES)
def test_an_encoder_that_is_changed_later_runs_in_torch(change: Callable[[VisionTransformer], None]) -> None:
    model, images = network("compact")
    change(accelerate(model))
    actual = model.eval()(images)
    expected = copy.deepcopy(plain(model)).double()(images.double())
    assert (actual - expected).abs().max() < 1e-4


# Another value for each option of the network. A new option must be supported by the kernels or turn them off.
OPTIONS: dict[str, dict[str, Any]] = {
    "patch_size": {"patch_size": 2},
    "embed_dim": {"embed_dim": 192},
    "depth": {"depth": 2},
    "num_heads": {"num_heads": 2},
    "mlp_dim": {"mlp_dim": 80},
    "stem": {"stem": "linear", "stem_dims": ()},
    "stem_dims": {"stem_dims": (20, 60)},
    "stem_stride": {"stem_stride": 2},
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
UNSUPPORTED = {"drop_path"}


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(Architecture)])
def test_every_option_is_computed_or_refused(option: str) -> None:
    architecture = dataclasses.replace(COMPACT, **OPTIONS[option])
    assert getattr(architecture, option) != getattr(COMPACT, option)
    torch.manual_seed(0)
    model, images = VisionTransformer(architecture, 32, 10), torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if unsupported(model):
        assert option in UNSUPPORTED
        return
    with keyed_noise(model, SEED, STEP, SAMPLES):
        actual = gradients(model, "native", images)
        truth = gradients(model.double(), "torch", images.double())
    assert max(errors(actual, truth).values()) < 5e-5


class Doubling(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Averaging(nn.LayerNorm):
    """A norm that depends on all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=1, keepdim=True))


def replace(module: nn.Module, name: str, value: Any) -> None:
    setattr(module, name, value)


def asymmetric_whitening(model: VisionTransformer) -> None:
    assert isinstance(model.patch_embed, ConvStem)
    model.patch_embed.whiten.weight[15:].mul_(1.5)


REPLACEMENTS: dict[str, Callable[[VisionTransformer], None]] = {
    "fewer blocks": lambda m: replace(m, "blocks", m.blocks[:1]),
    "another stem": lambda m: replace(m, "patch_embed", ConvStem(COMPACT)),
    "another norm": lambda m: replace(m, "norm", nn.LayerNorm(96, bias=False)),
    "no norm": lambda m: replace(m, "norm", nn.Identity()),
    "a norm across tokens": lambda m: replace(m, "norm", Averaging(96)),
    "another pooling": lambda m: replace(m, "attn_pool", nn.Linear(96, 1, bias=False)),
    "no pooling": lambda m: replace(m, "attn_pool", None),
    "an activation": lambda m: replace(m, "embed_activation", Doubling()),
    "whitening": asymmetric_whitening,
    "own _heads": lambda m: replace(
        m.blocks[1].attn, "_heads", lambda x, own=m.blocks[1].attn._heads: [2 * part for part in own(x)]
    ),
    "own pool": lambda m: replace(m, "pool", lambda x: x.amax(dim=1)),
    "own to_tokens": lambda m: replace(m, "to_tokens", lambda x, own=m.to_tokens: 2 * own(x)),
}


@pytest.mark.parametrize("change", REPLACEMENTS)
@pytest.mark.parametrize("pool", ["attention", "cls"])
def test_a_part_that_is_replaced_later_is_used(change: str, pool: str) -> None:
    torch.manual_seed(0)
    model, images = (
        VisionTransformer(dataclasses.replace(COMPACT, pool=pool), 32, 10).eval(),
        torch.randn(4, 3, 32, 32),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        before = accelerate(model)(images)
        REPLACEMENTS[change](model)
        actual = model(images)
        expected = plain(model)(images)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    if "pool" not in change or pool == "attention" or "own" in change:
        assert not torch.allclose(actual, before, atol=1e-3)


@pytest.mark.parametrize("name", ["forward", "_heads"])
def test_a_method_replaced_for_the_whole_class_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network("compact")
    before = accelerate(model).eval()(images)
    kind = type(model.blocks[0].attn)
    own = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, x: own(self, 2 * x))
    actual = model(images)
    assert not torch.allclose(actual, before, atol=1e-3)
    torch.testing.assert_close(actual, plain(model)(images), atol=1e-5, rtol=1e-4)


def test_a_hook_on_the_final_norm_sees_every_token() -> None:
    model, images = network("class token")
    seen: list[torch.Size] = []
    accelerate(model).eval().norm.register_forward_hook(lambda *_: seen.append(_[2].shape))
    model(images)
    assert seen == [(6, model.position(5).shape[1], 96)]


class CalledFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def test_a_torch_function_mode_sees_the_operators() -> None:
    model, images = network("compact")
    accelerate(model).eval()
    with CalledFunctions() as called:
        model(images)
    assert {"gelu", "layer_norm", "linear", "conv2d"} <= called.names


def test_a_checkpointed_block_draws_the_same_noise_again() -> None:
    gradients_of_runs = []
    for checkpointed in (False, True):
        model, images = network_with_dropout("compact")
        plain(model).train()
        key_noise(model, SEED, STEP, SAMPLES)
        x = model.embed(images)
        for block in model.blocks:
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        model.head(model.pool(model.norm(x))).square().sum().backward()
        free_noise(model)
        gradients_of_runs.append([p.grad for p in model.parameters()])
    for eager, checkpointed in zip(*gradients_of_runs, strict=True):
        torch.testing.assert_close(eager, checkpointed)


def average_pooling(model: VisionTransformer) -> None:
    assert isinstance(model.patch_embed, ConvStem)
    model.patch_embed.stages[0].pool = nn.AvgPool2d(2)


def reflected_padding(model: VisionTransformer) -> None:
    assert isinstance(model.patch_embed, ConvStem)
    model.patch_embed.mix.conv.padding_mode = "reflect"
    model.patch_embed.mix.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


def final_norm_without_bias(model: VisionTransformer) -> None:
    model.norm.register_parameter("bias", None)


@pytest.mark.parametrize(
    "change", [average_pooling, reflected_padding, final_norm_without_bias, asymmetric_whitening]
)
def test_a_changed_stem_or_pooling_runs_in_torch(change: Callable[[VisionTransformer], None]) -> None:
    model, images = network("compact")
    change(model)
    check_gradients(accelerate(model), images)


def test_a_stride_that_changes_later_is_followed() -> None:
    model, images = network("compact")
    accelerate(model).eval()
    assert isinstance(model.patch_embed, ConvStem)
    for stride in (2, 3):
        model.patch_embed.whiten.stride = stride
        torch.testing.assert_close(model(images), plain(copy.deepcopy(model))(images), atol=1e-5, rtol=1e-5)


def test_every_module_calls_its_hooks() -> None:
    model, images = network("compact")
    accelerate(model).eval()
    expected = model(images)
    called: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in model.named_modules()
        if not isinstance(module, nn.ModuleList)
    ]
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    assert len(called) == len(handles)
    for handle in handles:
        handle.remove()
    assert torch.equal(model(images), expected)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: called.clear())
    model(images)
    handle.remove()
    assert not called


def test_train_and_eval_mode_apply_to_single_modules() -> None:
    model, images = network_with_dropout("compact")
    accelerate(model).eval()
    expected = model(images)
    model.blocks[1].mlp.drop2.train()
    assert not torch.allclose(model(images), expected, atol=1e-3)
    model.train()
    for module in model.modules():
        if isinstance(module, Dropout):
            module.eval()
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)


def test_weights_that_are_not_contiguous() -> None:
    model, images = network("compact")
    for block in model.blocks:
        block.attn.qkv.weight.data = block.attn.qkv.weight.data.T.contiguous().T
    check_gradients(accelerate(model), images)


def test_images_get_gradients() -> None:
    model, images = network("compact")
    accelerate(model).eval()
    images.requires_grad_()  # for example, for a saliency map
    model(images).sum().backward()
    actual, images.grad = images.grad, None
    plain(model)(images).sum().backward()
    assert actual is not None and images.grad is not None
    torch.testing.assert_close(actual, images.grad, atol=1e-4, rtol=1e-4)


def test_other_dtypes_and_sizes() -> None:
    model, images = network("compact")
    accelerate(model).eval()
    assert model(images[:0]).shape == (0, 10)
    expected = plain(copy.deepcopy(model)).double()(images.double())
    assert torch.equal(model.double()(images.double()), expected)
    for block in model.float().blocks:
        block.double()
    with pytest.raises(RuntimeError):  # torch's own message, as for any network
        model(images)
    with pytest.raises(RuntimeError):
        model.float()(images.to(torch.uint8))
    with pytest.raises(VitreousError, match="takes images"):
        model(images[:, :, 1:])


def test_transforms_of_torch_func() -> None:
    model, images = network("compact")
    expected = model.eval()(images)
    accelerate(model)
    mapped = torch.func.vmap(lambda image: model(image[None])[0])(images)
    torch.testing.assert_close(mapped, expected, atol=1e-5, rtol=1e-5)
    doubled = {name: 2 * p.detach() for name, p in model.named_parameters()}
    actual = torch.func.functional_call(model, doubled, (images,))
    torch.testing.assert_close(
        actual, torch.func.functional_call(plain(model), doubled, (images,)), atol=1e-4, rtol=1e-4
    )


def test_tracing_an_accelerated_model_is_refused() -> None:
    model, images = network("compact")
    accelerate(model).eval()
    for trace in (torch.jit.trace, lambda m, x: torch.export.export(m, (x,))):
        with pytest.raises(VitreousError, match=r"cannot be traced or exported; call .*plain\(model\) first"):
            trace(model, images)
    assert torch.jit.trace(plain(model), images)(images).shape == (6, 10)


def test_weights_stay_the_same_and_copies_are_independent() -> None:
    model, images = network("compact")
    before = dict(model.named_parameters())
    expected = model.eval()(images)
    accelerate(accelerate(model))
    assert is_accelerated(model) and all(p is before[name] for name, p in model.named_parameters())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_accelerated(other) and torch.equal(other(images), model(images))
        other.blocks[0].mlp.fc1.weight.data.zero_()
        assert not torch.equal(other(images), model(images))
    assert type(plain(plain(model))) is VisionTransformer
    assert torch.equal(model(images), expected)


def test_a_dropout_rate_may_be_an_int() -> None:
    model, images = network("compact")
    expected = gradients(model, "native", images)
    for block in model.blocks:
        block.mlp.drop1.rate = block.mlp.drop2.rate = 0
    actual = gradients(model, "native", images)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flag exists on x86 only")
@pytest.mark.parametrize("name", ["compact", "odd channels", "odd widths"])
def test_kernels_without_avx512_are_as_accurate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-mno-avx512f"))
    build.load_kernels.cache_clear()
    try:
        model, images = network(name)
        assert isinstance(build.load_kernels(torch.float32), ctypes.CDLL)
        actual = gradients(model, "native", images)
        native, autocast = (gradients(model, backend, images, bf16=True) for backend in ("native", "torch"))
        truth = gradients(model.double(), "torch", images.double())
        assert max(errors(actual, truth).values()) < 2e-5
        assert sum(errors(native, truth).values()) < 1.2 * sum(errors(autocast, truth).values())
    finally:
        build.load_kernels.cache_clear()


def test_fewer_than_16_tokens_run_in_torch() -> None:
    assert "at least 16 tokens" in str(unsupported(VisionTransformer(COMPACT, 16, 10)))  # it has nine
    model, _ = network("compact")
    check_gradients(accelerate(model), torch.randn(4, 3, 16, 16))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"drop_path": 0.1}, "stochastic depth"),
        ({"embed_dim": 24, "num_heads": 3}, "num_heads must be even and at least 16"),
    ],
)
def test_an_unsupported_network_is_refused(change: dict[str, Any], reason: str) -> None:
    model = create_model("compact", **change)
    assert reason in str(unsupported(model))
    with pytest.raises(VitreousError, match=reason):
        accelerate(model)


def test_a_subclass_is_refused() -> None:
    class Mine(VisionTransformer):
        pass

    assert "Mine is not VisionTransformer" in str(unsupported(Mine(COMPACT, 32, 10)))


def test_without_a_working_compiler_there_are_no_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, _ = network("compact")
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    try:
        for compiler, reason in (
            (None, "no C[+][+] compiler was found; install"),
            (str(broken), "could not compile"),
        ):
            build.load_kernels.cache_clear()
            monkeypatch.setattr(build, "cpp_compiler", lambda compiler=compiler: compiler)
            with pytest.raises(VitreousError, match=f"cannot run this network: .*{reason}"):
                accelerate(model)
    finally:
        monkeypatch.undo()
        build.load_kernels.cache_clear()


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_gives_the_same_logits(name: str) -> None:
    model, images = network(name)
    model.eval()
    with torch.inference_mode():
        expected = model(images)
        torch.testing.assert_close(accelerate(model)(images), expected, atol=1e-5, rtol=1e-5)
