"""What the machine is asked, and that its answers are followed."""

from __future__ import annotations

import pytest
import torch

from vitreous import machine as machines
from vitreous.errors import VitreousError


def rates(monkeypatch: pytest.MonkeyPatch, float32: float, bf16: float) -> None:
    monkeypatch.setattr(machines, "product_rates", lambda device: (float32, bf16))


def test_bf16_is_taken_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, 118.0, 345.0)
    found = machines.look("cpu")
    assert found.precision == "bf16"
    assert "float32 118, bf16 345 GFLOP/s" in " ".join(found.reasons)


def test_bf16_is_left_where_it_crawls(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, 178.0, 0.3)
    assert machines.look("cpu").precision == "32"
    with pytest.raises(VitreousError, match="no bf16 unit"):
        machines.look("cpu", "bf16")


def test_a_crawling_product_is_never_tried_large(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def best_time(run: object, device: str, repeats: int) -> float:
        size, dtype = run.__closure__[0].cell_contents.shape[0], run.__closure__[0].cell_contents.dtype  # type: ignore[attr-defined]
        sizes.append((size, dtype))
        return 2 * size**3 / (178e9 if dtype == torch.float32 else 0.3e9)

    monkeypatch.setattr(machines, "best_time", best_time)
    float32, bf16 = machines.product_rates("cpu")
    assert (float32, bf16) == (pytest.approx(178), pytest.approx(0.3))
    assert max(size for size, dtype in sizes if dtype == torch.bfloat16) <= 256


def test_real_rates_are_of_this_world() -> None:
    float32, bf16 = machines.product_rates("cpu")
    assert 0.1 < float32 < 1e5
    assert 0.001 < bf16 < 1e5


@pytest.mark.parametrize(("device", "nearest"), [("gpu", "cpu"), ("cudaa", "cuda")])
def test_unknown_device_is_refused_with_the_nearest(device: str, nearest: str) -> None:
    with pytest.raises(VitreousError, match=nearest):
        machines.look(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_device_is_a_sentence() -> None:
    with pytest.raises(VitreousError, match="no cuda device"):
        machines.look("cuda")


def test_attention_goes_to_the_faster_path(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, 100.0, 0.3)
    here = machines.look("cpu")
    monkeypatch.setattr(machines, "best_time", lambda run, device, repeats: run())
    assert (
        machines.choose_attention(here, {"explicit": 1.0, "fused": 4.0}.__getitem__).attention == "explicit"
    )
    chosen = machines.choose_attention(here, {"explicit": 3.0, "fused": 1.0}.__getitem__)
    assert chosen.attention == "fused"
    assert "3.00 times as long" in chosen.reasons[-1]


def test_compiling_needs_a_compiler_and_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, 100.0, 0.3)
    here = machines.look("cpu")
    monkeypatch.setattr(machines, "cpp_compiler", lambda: "g++")
    assert machines.choose_compile(here, 3600).compile
    assert not machines.choose_compile(here, 5).compile
    monkeypatch.setattr(machines, "cpp_compiler", lambda: None)
    without = machines.choose_compile(here, 3600)
    assert not without.compile
    assert "no C++ compiler" in without.reasons[-1]
