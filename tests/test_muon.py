"""Muon and its AdamW against torch's own optimizers and the singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from vitreous.native.build import load_kernels
from vitreous.training.muon import Muon, orthogonalize


def five_steps(
    ours: list[torch.nn.Parameter],
    a: torch.optim.Optimizer,
    theirs: list[torch.nn.Parameter],
    b: torch.optim.Optimizer,
) -> None:
    """Both optimizers, with the same gradients."""
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    orthogonal = orthogonalize(matrices)
    # In the basis of the singular vectors only the diagonal is left, and it is near one.
    diagonal = u.mT @ orthogonal @ vh.mT
    values = diagonal.diagonal(dim1=1, dim2=2)
    assert (diagonal - torch.diag_embed(values)).abs().max() < 1e-9
    large = values[s > 0.05 * s.max()]
    assert large.min() > 0.6 and large.max() < 1.3


def test_one_batched_product_is_each_matrix_alone() -> None:
    matrices = torch.randn(4, 8, 12, dtype=torch.float64)
    together = orthogonalize(matrices)
    for index in range(4):
        torch.testing.assert_close(together[index], orthogonalize(matrices[index : index + 1])[0])


def test_the_rest_is_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.randn(3, 4))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon([], ours, learning_rate=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    b = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    five_steps(ours, a, theirs, b)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_matrices_follow_torchs_muon(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    a = Muon([ours], [], muon_learning_rate=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.bfloat16)
    b = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1)
    five_steps([ours], a, [theirs], b)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=2e-3)  # bf16 products in another order


def test_a_convolution_counts_as_a_matrix() -> None:
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().reshape(6, 36).clone())
    optimizer = Muon([kernel, matrix], [])
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.reshape(6, 36).clone()
    optimizer.step()
    torch.testing.assert_close(kernel.detach().reshape(6, 36), matrix.detach())


def test_state_survives_saving() -> None:
    def new() -> tuple[list[torch.nn.Parameter], Muon]:
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))]
        return parameters, Muon(parameters[:1], parameters[1:])

    def steps(parameters: list[torch.nn.Parameter], optimizer: Muon, seeds: range) -> None:
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    whole, optimizer = new()
    steps(whole, optimizer, range(6))
    first, optimizer = new()
    steps(first, optimizer, range(3))
    second, other = new()
    for p, q in zip(second, first, strict=True):
        p.data.copy_(q.data)
    other.load_state_dict(optimizer.state_dict())
    steps(second, other, range(3, 6))
    for p, q in zip(whole, second, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_native_kernel_takes_the_same_steps(dtype: torch.dtype) -> None:
    if isinstance(load_kernels(dtype), str):
        pytest.skip("no C++ compiler")
    shapes = [(12, 8), (8, 12), (33, 70), (70, 33), (48, 48), (24, 5, 3, 3), (4, 4)]
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    settings = {"muon_learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.1, "dtype": dtype}
    a, b = Muon(ours, [], native=True, **settings), Muon(theirs, [], **settings)
    five_steps(ours, a, theirs, b)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 1e-2}
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **close)
        torch.testing.assert_close(a.state[p]["momentum"], b.state[q]["momentum"])


def test_torch_takes_the_steps_that_the_native_kernel_does_not_support() -> None:
    if isinstance(load_kernels(torch.float32), str):
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    kernel = torch.randn(24, 8, 3, 3)
    small, double, last = torch.randn(3, 3), kernel.double(), kernel.to(memory_format=torch.channels_last)
    for matrix in (small, double, last):
        ours, theirs = (torch.nn.Parameter(matrix.clone()) for _ in range(2))
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
        Muon([ours], [], native=True).step()
        Muon([theirs], []).step()
        assert torch.equal(ours, theirs)
