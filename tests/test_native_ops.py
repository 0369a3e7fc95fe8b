"""The native kernels as torch operators: their declarations, their checks of arguments, and how they are compiled."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.errors import VitreousError
from vitreous.native import build, ops

pytestmark = pytest.mark.skipif(isinstance(build.load_kernels(torch.float32), str), reason="no C++ compiler")

B, N, D, H, M = 3, 18, 40, 2, 56  # widths that are not multiples of a register's
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
both = pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
strides = pytest.mark.parametrize("stride", [1, 2])


def layer(*, bias: bool = True, norms: bool = True) -> list[Tensor | None]:
    K = D // H
    shapes: list[Any] = [(3 * D, D), (D, D), 3 * D if bias else None, D, D, D, *[K if norms else None] * 4]
    shapes += [(M, D), (D, M), M, D, D, D]
    return [None if s is None else (torch.randn(s) / 4).requires_grad_() for s in shapes]


def stem_weights() -> list[Tensor]:
    half = torch.randn(12, 3, 2, 2)
    shapes: list[Any] = [
        (D, 36, 1, 1),
        D,
        (20, 24, 3, 3),
        20,
        20,
        (36, 20, 3, 3),
        36,
        36,
        (36, 36, 3, 3),
        36,
        36,
    ]
    return [torch.cat([half, -half]), *((torch.randn(s) / 4).requires_grad_() for s in shapes)]


def matrices() -> list[Tensor]:
    return [torch.randn(24, 8), torch.randn(17, 40), torch.randn(8, 3, 3, 3)]


def some_keys(layers: int = 2, batch: int = B) -> Tensor:
    return torch.randint(-(2**31), 2**31, (layers, 2, batch), dtype=torch.int32)


def filled(weights: list[Tensor | None]) -> list[Tensor]:
    return [torch.empty(0) if w is None else w for w in weights]


# ---- declarations


@both
def test_opcheck_of_the_encoder(bf16: bool) -> None:
    torch.manual_seed(0)
    for weights in (layer() + layer(), layer(bias=False, norms=False) * 2):
        x = torch.randn(B, N, D, requires_grad=True)
        arguments = (x, filled(weights), some_keys(), 0.3, 5, H, 1e-6, bf16)
        torch.library.opcheck(torch.ops.vitreous.encode.default, (*arguments, True))
        plain = [w.detach() for w in filled(weights)]
        kept = torch.ops.vitreous.encode(x.detach(), plain, *arguments[2:], True)[1]
        backward = (torch.randn(B, 5, D), kept, plain, arguments[2], 0.3, N, H, bf16)
        torch.library.opcheck(torch.ops.vitreous.encode_backward.default, backward)


@both
def test_opcheck_of_the_pooling(bf16: bool) -> None:
    torch.manual_seed(0)
    x, norm, query = torch.randn(B, N, D), torch.randn(2, D), torch.randn(1, D)
    arguments = [t.clone().requires_grad_() for t in (x, norm[0], norm[1], query)]
    torch.library.opcheck(torch.ops.vitreous.pool.default, (*arguments, 1e-6, bf16))
    kept = torch.ops.vitreous.pool(x, norm[0], norm[1], query, 1e-6, bf16)[1]
    backward = (torch.randn(B, D), x, kept, norm[0].clone(), norm[1].clone(), query, bf16)
    torch.library.opcheck(torch.ops.vitreous.pool_backward.default, backward)


@both
@strides
def test_opcheck_of_the_stem(stride: int, bf16: bool) -> None:
    torch.manual_seed(0)
    side = 12 * stride + 1
    x, weights = torch.randn(B, 3, side, side), stem_weights()
    position = torch.randn(1, 9, D, requires_grad=True)
    for optional_position in (position, None):
        arguments = (x, optional_position, weights, stride, 1e-6, bf16)
        torch.library.opcheck(torch.ops.vitreous.stem.default, arguments)
    plain = [w.detach() for w in weights]
    kept = torch.ops.vitreous.stem(x, None, plain, stride, 1e-6, bf16)[1]
    for placed in (True, False):
        backward = (torch.randn(B, 9, D), kept, plain, side, stride, bf16, placed)
        torch.library.opcheck(torch.ops.vitreous.stem_backward.default, backward)


@both
def test_opcheck_of_muon(bf16: bool) -> None:
    arguments = (matrices(), matrices(), matrices(), 0.02, 0.95, 0.1, bf16, 5, list(COEFFICIENTS))
    torch.library.opcheck(torch.ops.vitreous.muon_step.default, arguments)


@strides
def test_gradients_agree_with_finite_differences(stride: int) -> None:
    """For each argument along its gradient: shows that each gradient belongs to its argument."""
    torch.manual_seed(0)
    x, weights, keys = torch.randn(B, N, D, requires_grad=True), layer() + layer(), some_keys()
    side = 12 * stride + 2  # with a stride of 2, a pixel of each row is left over
    stem_in, position = torch.randn(B, 3, side, side), torch.randn(1, 9, D, requires_grad=True)
    norm = torch.randn(3, D, requires_grad=True)

    def encoded(x: Tensor, *weights: Tensor) -> Tensor:
        return ops.encode(x, weights, keys, 0.3, 5, H, 1e-6, False)

    def stemmed(position: Tensor, *weights: Tensor) -> Tensor:
        return ops.stem(stem_in, position, [whitening, *weights], stride, 1e-6, False)

    def pooled(x: Tensor, norm: Tensor) -> Tensor:
        return ops.pool(x, norm[0], norm[1], norm[2:], 1e-6, False)

    whitening, *stages = stem_weights()
    cases: list[tuple[Callable[..., Tensor], list[Any]]] = [
        (encoded, [x, *weights]),
        (stemmed, [position, *stages]),
        (pooled, [x, norm]),
    ]
    for run, arguments in cases:
        upstream = torch.randn_like(run(*arguments))
        grads = torch.autograd.grad((run(*arguments) * upstream).sum(), arguments)
        for i, (argument, grad) in enumerate(zip(arguments, grads, strict=True)):
            step = 2e-3 * grad / grad.norm()  # the steepest direction has the least noise
            ends = [
                [a.detach() + sign * step if j == i else a.detach() for j, a in enumerate(arguments)]
                for sign in (1, -1)
            ]
            with torch.no_grad():
                rise, fall = ((run(*end) * upstream).double().sum() for end in ends)
            assert float(rise - fall) == pytest.approx(float(2 * (grad * step).sum()), rel=0.03, abs=2e-3)
            assert grad.shape == argument.shape


def test_nothing_is_kept_without_a_backward_pass() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(B, N, D), [w.detach() for w in filled(layer() * 3)]
    (out, kept), (out_only, empty) = (
        torch.ops.vitreous.encode(x, weights, None, 0.0, 5, H, 1e-6, False, keep) for keep in (True, False)
    )
    assert torch.equal(out, out_only)
    assert kept.numel() > 0 and empty.numel() == 0


def test_memory_order_of_weights_and_images_does_not_matter() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(B, N, D), layer()
    columns = [None if w is None else w.detach().t().contiguous().t() if w.ndim == 2 else w for w in weights]
    by_rows, by_columns = (ops.encode(x, w, None, 0.0, N, H, 1e-6, False) for w in (weights, columns))
    assert columns[0] is not None and not columns[0].is_contiguous()
    assert torch.equal(by_rows, by_columns)
    images, stem = torch.randn(2, 3, 14, 14), stem_weights()
    crop, last = images[:, :, 1:, 1:], images[:, :, 1:, 1:].contiguous(memory_format=torch.channels_last)
    expected, *others = (ops.stem(x, None, stem, 1, 1e-6, False) for x in (crop.contiguous(), crop, last))
    assert all(torch.equal(expected, tokens) for tokens in others)


# ---- checks of arguments


def calls() -> dict[str, tuple[list[Tensor | None], list[int], list[float]]]:
    """A valid call of each kernel: tensors, sizes, numbers."""
    K, layers = D // H, [w.detach() for w in filled(layer() + layer())]
    kept_sizes = [ops.kept_bytes(4, (B, N, H, K, M), tokens, True) for tokens in (N, 5)]
    kept = torch.zeros(sum(kept_sizes), dtype=torch.uint8)
    x, short, flat = torch.randn(B, N, D), torch.randn(B, 5, D), torch.zeros(sum(w.numel() for w in layers))
    encoder = [2, 2, 5, B, N, H, K, M, 2**31]
    stem = [w.detach() for w in stem_weights()]
    stem_kept = torch.zeros(ops.stem_kept_bytes(4, B, 13, 1, [20, 36, 36])[0], dtype=torch.uint8)
    stem_sizes, images = [B, 13, 1, D, 3, 20, 36, 36], torch.randn(B, 3, 13, 13)
    stem_flat = torch.zeros(sum(w.numel() for w in stem[1:]))
    norm = torch.randn(3, D).unbind()
    matrix = torch.randn(8, 9)
    return {
        "encoder": ([x, short, some_keys(), *layers, kept], encoder, [1e-6, 1.5]),
        "encoder_backward": ([short, x, some_keys(), *layers, kept, flat], encoder, [1.5]),
        "pool": ([x, torch.zeros(B, D), torch.zeros(B, N, 3), *norm], [B, N, D], [1e-6]),
        "pool_backward": (
            [torch.randn(B, D), torch.zeros(B, N, D), x, torch.zeros(B, N, 3), *norm, torch.zeros(3, D)],
            [B, N, D],
            [],
        ),
        "stem": (
            [images, torch.zeros(B, 9, D), stem_kept, torch.zeros(9, D), *stem],
            [*stem_sizes, *images.stride()],
            [1e-6],
        ),
        "stem_backward": (
            [torch.randn(B, 9, D), stem_kept, stem[1], *stem[3:], stem_flat, torch.zeros(9, D)],
            stem_sizes,
            [],
        ),
        "muon": ([matrix, matrix.clone(), matrix.clone()], [1, 5, 8, 9], [0.1, 0.9, 0.1, *COEFFICIENTS]),
    }


OPTIONAL = {
    "stem": {3},
    "stem_backward": {13},
}  # positions of the optional tensors; those of the encoder are below


@pytest.mark.parametrize("name", calls())
def test_arguments_that_contradict_each_other_are_refused(name: str) -> None:
    torch.manual_seed(0)
    tensors, sizes, numbers = calls()[name]

    def refused(tensors: list[Tensor | None], sizes: list[int], numbers: list[float] = numbers) -> None:
        before = [None if t is None else t.clone() for t in tensors]
        with pytest.raises(ValueError, match=f"Kernel {name} "):
            build.call(name, torch.float32, tensors, sizes, numbers)
        for t, old in zip(tensors, before, strict=True):
            assert t is None or (old is not None and torch.equal(t, old))

    def instead(items: list[Any], i: int, item: Any) -> list[Any]:
        return [*items[:i], item, *items[i + 1 :]]

    for i, tensor in enumerate(tensors):
        assert tensor is not None
        refused(
            instead(tensors, i, tensor.flatten()[:-1].clone()), sizes
        )  # one element too few, then too many
        refused(instead(tensors, i, torch.cat([tensor.flatten(), tensor.flatten()[:1]])), sizes)
        for dtype in {torch.float64, torch.bfloat16, torch.int32, torch.uint8} - {tensor.dtype}:
            refused(instead(tensors, i, tensor.to(dtype)), sizes)
        optional = OPTIONAL.get(name, set())
        if name.startswith("encoder"):
            optional = {3 + first + 2 for first in (0, 16)}  # the bias of qkv in each layer
        if i not in optional:
            refused(instead(tensors, i, None), sizes)
    # These sizes have many valid values: dropout's threshold, the number of steps, strides.
    free = {"encoder": {8}, "encoder_backward": {8}, "muon": {1}, "stem": {8, 9, 10, 11}}.get(name, set())
    for i in range(len(sizes)):
        for value in (sizes[i] + 1, sizes[i] - 1, 2 * sizes[i], -sizes[i], 0, 2**31, 2**40, 2**62, -(2**63)):
            if value != sizes[i] and (i not in free or value < 0 or value > 2**33):
                refused(tensors, instead(sizes, i, value))
    refused(tensors, sizes[:-1])
    refused(tensors, [*sizes, 1])
    refused(tensors[:-1], sizes)
    refused([*tensors, tensors[0]], sizes)
    refused(tensors, sizes, [*numbers, 1.0])
    build.call(name, torch.float32, tensors, sizes, numbers)  # the valid call still works


def test_widths_below_a_register_are_refused() -> None:
    for tokens, width, heads, hidden in ((15, 32, 2, 16), (16, 30, 2, 16), (16, 34, 2, 16), (16, 32, 2, 15)):
        shapes: list[Any] = [(3 * width, width), (width, width), 3 * width, width, width, width, 0, 0, 0, 0]
        shapes += [(hidden, width), (width, hidden), hidden, width, width, width]
        with pytest.raises(ValueError, match="does not support these sizes"):
            weights = [torch.zeros(s) for s in shapes]
            ops.encode(torch.zeros(2, tokens, width), weights, None, 0.0, tokens, heads, 1e-6, True)


def test_operators_say_what_is_wrong() -> None:
    x, weights = torch.randn(B, N, D), layer()
    with pytest.raises(ValueError, match="tensor 1 with the wrong dtype"):
        ops.encode(x.double(), weights, None, 0.0, N, H, 1e-6, False)
    with pytest.raises(ValueError, match="tensor 3"):
        ops.encode(x, weights, some_keys(2), 0.1, N, H, 1e-6, False)
    with pytest.raises(ValueError, match="weights for each layer"):
        ops.encode(x, weights[:-1], None, 0.0, N, H, 1e-6, False)
    with pytest.raises(ValueError, match="dropout rate"):
        ops.encode(x, weights, some_keys(1), 1.0, N, H, 1e-6, False)
    with pytest.raises(ValueError, match="missing"):  # q's norm has no bias
        ops.encode(x, [*weights[:7], None, *weights[8:]], None, 0.0, N, H, 1e-6, False)
    with pytest.raises(ValueError, match="missing"):  # only one layer has norms of q and k
        ops.encode(x, [*weights, *layer(norms=False)], None, 0.0, N, H, 1e-6, False)
    images, stem = torch.randn(2, 3, 13, 13), stem_weights()
    with pytest.raises(ValueError, match="no gradients for images"):
        ops.stem(images.clone().requires_grad_(), None, stem, 1, 1e-6, False)
    with pytest.raises(ValueError, match="values in tensor 5"):
        ops.stem(images, None, [stem[0].abs(), *stem[1:]], 1, 1e-6, False)
    with pytest.raises(ValueError, match="at least one head"):
        ops.encode(x, weights, None, 0.0, N, 0, 1e-6, False)
    for out_tokens in (-1, 0, N + 1):
        with pytest.raises(ValueError, match=f"1 to {N} out_tokens"):
            ops.encode(x, weights, None, 0.0, out_tokens, H, 1e-6, False)
    with pytest.raises(ValueError, match="fc1"):
        ops.encode(x, [*weights[:10], torch.tensor(1.0), *weights[11:]], None, 0.0, N, H, 1e-6, False)
    for shape in ((2, 12, 32, 8), (2, 3, 13, 12), (2, 1, 13, 13)):
        with pytest.raises(ValueError, match="images"):
            ops.stem(torch.randn(shape), None, stem, 1, 1e-6, False)
    for side in (0, 1, 4):
        with pytest.raises(ValueError, match="larger images"):
            ops.stem(torch.randn(2, 3, side, side), None, stem, 1, 1e-6, False)
    for stride in (0, -1):
        with pytest.raises(ValueError, match="stride of at least 1"):
            ops.stem(images, None, stem, stride, 1e-6, False)
    with pytest.raises(ValueError, match="stride of 13"):
        ops.stem(images, None, stem, 13, 1e-6, False)
    for i in (0, 1, 3):
        with pytest.raises(ValueError, match="four-dimensional"):
            ops.stem(images, None, [*stem[:i], torch.tensor(1.0), *stem[i + 1 :]], 1, 1e-6, False)
    weight = torch.randn(16, 8).t()
    with pytest.raises(ValueError, match="at least one matrix"):
        ops.muon_step([], [], [], 0.1, 0.9, 0.0, False, 5, COEFFICIENTS)
    with pytest.raises(ValueError, match="as many gradients"):
        ops.muon_step([weight], [], [weight], 0.1, 0.9, 0.0, False, 5, COEFFICIENTS)
    with pytest.raises(ValueError, match="contiguous"):
        ops.muon_step([weight], [weight], [weight], 0.1, 0.9, 0.0, False, 5, COEFFICIENTS)


OUT_OF_MEMORY = """
import resource, torch
from vitreous.errors import VitreousError
from vitreous.native import ops
torch.set_num_threads(2)
weights = [torch.randn(4096, 1024) for _ in range(4)]
small = [torch.randn(16, 16)]
ops.muon_step(small, small, small, 0.1, 0.9, 0.0, False, 1, (1.0, 0.0, 0.0))  # starts the threads
averages = [w.clone() for w in weights]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 30_000_000,) * 2)
try:
    ops.muon_step(weights, weights, averages, 0.1, 0.9, 0.0, False, 1, (1.0, 0.0, 0.0))
except VitreousError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_failed_allocation_inside_a_parallel_region_is_an_error() -> None:
    result = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "ran out of memory" in result.stdout


def test_the_driver_for_the_sanitizers_passes(tmp_path: Path) -> None:
    """Even without sanitizers, it tests wrong sizes, failed allocations, and the limit on private copies of sums."""
    source = Path(__file__).with_name("native") / "driver.cpp"
    flags = ["-O0", "-march=native", "-fopenmp", "-std=c++17", "-fno-strict-aliasing", f"-I{build.FOLDER}"]
    driver = tmp_path / "driver"
    subprocess.run([str(build.cpp_compiler()), *flags, str(source), "-o", str(driver)], check=True)
    result = subprocess.run([str(driver)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


# ---- dropout per sample


def kept_elements(keys: Tensor, count: int, rate: float) -> np.ndarray:
    """Dropout's mask [B, count] in numpy: Chris Wellons' lowbias32 of each element's position in its sample."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + keys.numpy().view(np.uint32)[:, None]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return (x ^ (x >> np.uint32(16))) >= int(rate * 2**32)


@both
@pytest.mark.parametrize("out_tokens", [N, 2])
def test_dropout_is_a_hash_of_the_samples_key_and_the_elements_position(bf16: bool, out_tokens: int) -> None:
    """With constant hidden units that are copied to the output, an output is not zero if both dropouts keep it."""
    width, keys, rate = 40, some_keys(1, 5), 0.3
    shapes: list[Any] = [
        (120, 40),
        (40, 40),
        None,
        40,
        40,
        40,
        *[None] * 4,
        (56, 40),
        (40, 56),
        56,
        40,
        40,
        40,
    ]
    weights = [None if s is None else torch.zeros(s) for s in shapes]
    weights[12], weights[11] = torch.full((56,), 3.0), torch.eye(40, 56)
    out = ops.encode(torch.zeros(5, N, width), weights, keys, rate, out_tokens, 2, 1e-6, bf16).numpy()
    inside = kept_elements(keys[0, 0], out_tokens * 56, rate).reshape(5, out_tokens, 56)[:, :, :width]
    after = kept_elements(keys[0, 1], out_tokens * width, rate).reshape(5, out_tokens, width)
    assert np.array_equal(out != 0, inside & after)
    value = float(F.gelu(torch.tensor(3.0))) / 0.7**2
    np.testing.assert_allclose(out[out != 0], value, rtol=1e-2 if bf16 else 1e-5)


@both
def test_a_samples_result_does_not_depend_on_its_batch(bf16: bool) -> None:
    torch.manual_seed(0)
    x, weights, keys = torch.randn(7, N, D), layer() + layer(), some_keys(2, 7)
    batch = ops.encode(x, weights, keys, 0.3, N, H, 1e-6, bf16)
    some = torch.tensor([4, 1, 6])
    small_batch = ops.encode(x[some], weights, keys[:, :, some], 0.3, N, H, 1e-6, bf16)
    assert torch.equal(batch[some], small_batch)
    assert not torch.equal(batch, ops.encode(x, weights, None, 0.3, N, H, 1e-6, bf16))


# ---- threads


@pytest.fixture(params=[8, 10, 30], ids=lambda n: f"{n} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_gradients_of_many_threads_are_exact_and_repeat() -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(64, N, D, requires_grad=True), torch.randn(3, D, requires_grad=True)
    upstream = torch.randn(64, D)

    def grads() -> tuple[Tensor, ...]:
        out = ops.pool(x, norm[0], norm[1], norm[2:], 1e-6, False)
        return torch.autograd.grad((out * upstream).sum(), (x, norm))

    exact_x, exact_norm = (t.detach().double().requires_grad_() for t in (x, norm))
    h = F.layer_norm(exact_x, (D,), exact_norm[0], exact_norm[1], 1e-6)
    out = ((h @ exact_norm[2:].mT).softmax(1) * h).sum(1)
    exact = torch.autograd.grad((out * upstream).sum(), (exact_x, exact_norm))
    first, second = grads(), grads()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for result, truth in zip(first, exact, strict=True):
        assert (result - truth).norm() < 1e-5 * truth.norm()


# ---- compilation and storage


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for kernels, which are compiled without optimization to save time."""
    monkeypatch.setenv("VITREOUS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(build, "FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in build.FLAGS))
    build.load_kernels.cache_clear()
    yield tmp_path / "data" / "kernels"
    build.load_kernels.cache_clear()


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_the_folder_follows_vitreous_data_and_is_private(own_folder: Path) -> None:
    assert build.kernels_dir() == own_folder
    assert isinstance(build.load_kernels(torch.float32), ctypes.CDLL)
    assert own_folder.stat().st_mode & 0o777 == 0o700
    (library,) = libraries(own_folder)
    inode = library.stat().st_ino
    build.load_kernels.cache_clear()
    build.load_kernels(torch.float32)
    assert libraries(own_folder) == [library] and library.stat().st_ino == inode  # not compiled again


@pytest.mark.parametrize("damage", ["truncated", "altered", "link"])
def test_a_damaged_library_is_compiled_again(own_folder: Path, damage: str, tmp_path: Path) -> None:
    command = [str(build.cpp_compiler()), *build.FLAGS]
    own_folder.mkdir(parents=True)
    library = build._compile(own_folder, build._key(command[0], command), command)  # never loaded
    content = library.read_bytes()
    if damage == "truncated":
        library.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        library.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        library.rename(tmp_path / "elsewhere.so")
        library.symlink_to(tmp_path / "elsewhere.so")
    assert isinstance(build.load_kernels(torch.float32), ctypes.CDLL)
    (new,) = libraries(own_folder)
    assert new.stem.endswith(build._digest(new)) and not new.is_symlink()


def test_two_processes_may_compile_at_once(own_folder: Path) -> None:
    script = (
        "import torch; from vitreous.native import build\n"
        "build.FLAGS = tuple('-O0' if f == '-O3' else f for f in build.FLAGS)\n"
        "input()\n"
        "print(build.load_kernels(torch.float32))"
    )
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) for _ in range(2)
    ]
    for process in processes:  # both have started once both wait for a line
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in processes]
    assert all(output.startswith("<CDLL") for output in outputs)
    assert all(path.stem.endswith(build._digest(path)) for path in libraries(own_folder))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows cannot run the script")
@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("", "exit status 3"),
        ("Killed", "Killed"),
        (
            "In file included from x\nx:1:10: fatal error: omp.h: No such file\n1 error",
            "x:1:10: fatal error: omp.h",
        ),
        ("ld: cannot find -lomp\nclang: error: linker command failed (use -v)", "ld: cannot find -lomp"),
    ],
)
def test_the_message_quotes_the_compilers_error(
    own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, reason: str
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{stderr}\nEND\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    message = str(build.load_kernels(torch.float32))
    assert message.startswith(f"{compiler} could not compile the kernels ({reason}")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_libraries_that_others_could_write_are_compiled_again(own_folder: Path) -> None:
    """Earlier versions created such a folder under a umask of 002."""
    own_folder.mkdir(parents=True)
    planted = own_folder / "planted"
    subprocess.run(
        [str(build.cpp_compiler()), "-shared", "-x", "c++", "-", "-o", str(planted)], input=b"", check=True
    )
    command = [str(build.cpp_compiler()), *build.FLAGS]
    key = build._key(command[0], command)
    planted = planted.rename(own_folder / f"{key}-{build._digest(planted)}.so")  # this name would be loaded
    assert build._find(own_folder, key) == planted
    (own_folder / "7a45abd7d30a08e707c6.so").write_bytes(b"from an earlier version")
    (own_folder / "notes.so").write_bytes(b"not a kernel")
    own_folder.chmod(0o775)
    kernels = build.load_kernels(torch.float32)
    assert isinstance(kernels, ctypes.CDLL) and hasattr(kernels, "encoder")
    assert own_folder.stat().st_mode & 0o777 == 0o700
    library, other = libraries(own_folder)
    assert library != planted and other.name == "notes.so"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_a_folder_of_another_user_is_not_trusted(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_folder.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: own_folder.stat().st_uid + 1)
    assert "belongs to another user" in str(build.load_kernels(torch.float32))
    weight, bias, query = torch.zeros(3, 16).unbind()
    with pytest.raises(VitreousError, match="belongs to another user"):
        ops.pool(torch.zeros(1, 16, 16), weight, bias, query, 1e-6, False)


def test_libraries_that_were_not_used_for_long_are_removed(own_folder: Path) -> None:
    own_folder.mkdir(parents=True)
    old, new = (own_folder / f"{digit * 32}-{digit * 32}.so" for digit in "01")
    other = own_folder / "thesis.txt"
    for path, days in ((old, build.UNUSED_DAYS + 1), (new, build.UNUSED_DAYS - 1), (other, 1000)):
        path.write_bytes(b"")
        age = path.stat().st_mtime - days * 24 * 3600
        os.utime(path, (age, age))
    build.load_kernels(torch.float32)
    assert not old.exists() and new.exists() and other.exists()
