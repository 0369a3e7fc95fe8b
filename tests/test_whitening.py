"""The whitening of data that hardly vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitreous
from vitreous.errors import VitreousError
from vitreous.model.stem import WHITENING_EPS, Whitening

GENERATOR = torch.Generator().manual_seed(0)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


def test_ordinary_images_come_out_with_unit_variance_in_every_direction() -> None:
    whitening = Whitening()
    images = noise(200, 3, 8, 8)
    whitening.fit(images)
    out = whitening(images)[:, :12].permute(1, 0, 2, 3).flatten(1)  # [12, pixels]
    torch.testing.assert_close(out @ out.mT / out.shape[1], torch.eye(12), atol=3e-3, rtol=0)
    assert torch.equal(whitening.weight[12:], -whitening.weight[:12])


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(50, 3, 8, 8),  # black
        torch.full((50, 3, 8, 8), 1.5),  # one colour
        noise(50, 3, 1, 1).expand(-1, -1, 8, 8),  # a colour for each image
        noise(50, 1, 8, 8).expand(-1, 3, -1, -1),  # grey
        noise(50, 3, 8, 8) * torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1),  # one channel is empty
        noise(1, 3, 2, 2),  # a single patch
        noise(2, 3, 3, 3),
        1e9 * noise(50, 1, 8, 8).expand(-1, 3, -1, -1),  # variances below zero by rounding, and far below
        1e-30 * noise(50, 3, 8, 8),
    ],
)
def test_images_that_hardly_vary_still_give_a_finite_whitening(images: torch.Tensor) -> None:
    whitening = Whitening()
    whitening.fit(images)
    assert whitening.weight.isfinite().all()
    assert whitening.weight.abs().max() <= (2 / WHITENING_EPS) ** 0.5
    assert whitening(images).isfinite().all()


@pytest.mark.parametrize(("kind", "rank"), [("grey", 4), ("a colour for each image", 3), ("two colours", 4)])
def test_every_channel_carries_something(kind: str, rank: int) -> None:
    """12 different channels of unit variance, of which only `rank` are independent."""
    whitening = Whitening()
    whitening.fit(DEGENERATE[kind])
    out = whitening(DEGENERATE[kind])[:, :12].permute(1, 0, 2, 3).flatten(1).double()  # [12, pixels]
    covariance = out @ out.mT / out.shape[1]
    torch.testing.assert_close(covariance.diag(), torch.ones(12).double(), atol=0.01, rtol=0)
    assert int(torch.linalg.matrix_rank(covariance, rtol=1e-4)) == rank
    likeness = covariance - torch.eye(12).double()
    assert likeness.abs().max() < 0.99  # else a channel were another one or its negative


DEGENERATE = {
    "noise": noise(50, 3, 8, 8),
    "grey": noise(50, 1, 8, 8).expand(-1, 3, -1, -1),
    "a colour for each image": noise(50, 3, 1, 1).expand(-1, -1, 8, 8),
    "two colours": (noise(50, 1, 8, 8) > 0).float() * torch.tensor([1.0, 0.0, -0.3]).view(3, 1, 1),
    "black": torch.zeros(50, 3, 8, 8),
    "large": 1e6 * noise(50, 3, 8, 8),
    "rows": noise(50, 3, 8, 1).expand(-1, -1, -1, 8),
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_a_decomposition_that_fails_is_replaced(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whitening matrix Σ^(-1/2) is the same from any decomposition; its directions need not be."""

    def failed(matrix: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    usual, replaced = Whitening(), Whitening()
    usual.fit(DEGENERATE[kind])
    monkeypatch.setattr(torch.linalg, "eigh", failed)
    replaced.fit(DEGENERATE[kind])
    one, other = (whitening.weight[:12].flatten(1).double() for whitening in (usual, replaced))
    torch.testing.assert_close(one.mT @ one, other.mT @ other, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(one.norm(dim=1), other.norm(dim=1), rtol=1e-4, atol=1e-4)  # in the same order


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_that_are_no_numbers_are_told_in_a_sentence(value: float) -> None:
    whitening = Whitening()
    before = whitening.weight.clone()
    images = noise(5, 3, 8, 8)
    images[:, 1] = value
    with pytest.raises(VitreousError, match="not finite"):
        whitening.fit(images)
    with pytest.raises(VitreousError, match="not finite"):
        whitening.fit(images[:0])
    assert torch.equal(whitening.weight, before)


@pytest.mark.parametrize("colour", [(0, 0, 0), (10, 200, 30)])
def test_a_run_on_images_of_one_colour_ends_in_figures_or_a_sentence(
    colour: tuple[int, int, int], tiny: dict[str, Any], tmp_path: Path
) -> None:
    images = np.full((300, 16, 16, 3), colour, np.uint8)
    labels = np.arange(300) % 3
    parts = {"train": (images, labels), "val": (images[:30], labels[:30]), "test": (images[:30], labels[:30])}
    with pytest.raises(VitreousError, match="too few different images"):
        vitreous.train((images, labels), steps=3, out=tmp_path / "run", **tiny)
    try:
        run = vitreous.train(parts, steps=3, out=tmp_path / "run", **tiny)
    except VitreousError as error:
        assert "not finite" in str(error)
        assert not (tmp_path / "run").exists()
    else:
        assert np.isfinite(run.summary["test_loss"])
