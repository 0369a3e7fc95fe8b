"""The benchmarks' own arithmetic, and that what is shown is what the records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def record(folder: Path, name: str, **figures: Any) -> None:
    (folder / "records" / name).mkdir(parents=True)
    content = {
        "figures": {"train_flops": 3e13, "total_seconds": 120, "images_per_second": 900, **figures},
        "machine": {"name": "a processor", "precision": "32", "threads": 2, "instruction_sets": "avx2"},
        "versions": {"torch": "2.13.0"},
    }
    (folder / "records" / name / "record.json").write_text(json.dumps(content))


def test_the_leaderboard_takes_the_median_of_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import leaderboard

    monkeypatch.setattr(leaderboard, "HERE", tmp_path)
    for seed, accuracy in ((1, 0.81), (2, 0.85), (3, 0.82)):
        record(
            tmp_path, f"cifar10-default-3e13-test-seed{seed}", seed=seed, test_acc=accuracy, data="cifar10"
        )
    record(tmp_path, "cifar10-default-3e13-val-seed1", seed=1, val_acc=0.7, data="cifar10")
    found = leaderboard.text(leaderboard.grouped())
    assert "82.0 (81.0 to 85.0)" in found and "| 70.0 | – |" in found
    assert "Test was read by the 3 runs" in found
    row = next(line for line in found.splitlines() if line.startswith("| default-3e13-test "))
    assert [cell.strip() for cell in row.split("|")][3:6] == ["3e+13", "2.0", "900"]


def test_the_leaderboard_shows_the_records() -> None:
    import leaderboard

    assert (BENCHMARKS / "LEADERBOARD.md").read_text(encoding="utf-8") == leaderboard.text(
        leaderboard.grouped()
    )


def test_every_product_of_a_step_is_found_with_its_shape() -> None:
    from products import product_seconds

    weight = torch.randn(24, 16, requires_grad=True)
    kernel = torch.randn(5, 3, 3, 3, requires_grad=True)
    x, picture = torch.randn(8, 16), torch.randn(2, 3, 9, 9)

    def step() -> None:
        (F.linear(x, weight).relu().sum() + F.conv2d(picture, kernel).sum()).backward()

    seconds, found = product_seconds(step, repeats=1)
    assert seconds == pytest.approx(sum(each * times for each, times, _ in found)) and seconds > 0
    names = sorted(what for _, _, what in found)
    assert any(name.startswith("convolution_backward 2x5x7x7 2x3x9x9 5x3x3x3") for name in names)
    assert any(name.startswith("convolution 2x3x9x9 5x3x3x3") for name in names)
    assert "mm 8x16 16x24" in names and any(name in ("mm 24x8 8x16", "mm 16x8 8x24") for name in names)
    assert len(names) == 4
