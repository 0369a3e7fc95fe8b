"""The choices for a machine follow from facts about it."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitreous import machine as machines
from vitreous.errors import VitreousError
from vitreous.machine import Machine, choose_attention, choose_backend, choose_compile, choose_precision

CPU = Machine("cpu", "a processor", threads=2, float32_gflops=118.0, bf16_gflops=345.0)
CRAWLING = replace(CPU, float32_gflops=178.0, bf16_gflops=0.3)


def has_units(monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool) -> None:
    """A processor on which torch detects these units for bf16."""
    if "bf16" in machines.processor_flags() or platform.system() == "Darwin":
        pytest.skip("an Arm processor with bf16 of its own")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)


@pytest.mark.parametrize(("amx", "avx512"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("speed", [345.0, 119.0, 10.0])  # on an idle machine and on a busy one
def test_auto_is_bf16_on_a_processor_with_a_unit_for_it(
    amx: bool, avx512: bool, speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_units(monkeypatch, amx, avx512)
    machine = choose_precision(replace(CPU, bf16_gflops=speed), "auto")
    assert machine.precision == "bf16"
    assert ("AMX" if amx else "AVX-512") in machine.reasons[0]


def test_auto_is_float32_without_a_unit_however_fast_bf16_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    has_units(monkeypatch, amx=False, avx512=False)
    assert choose_precision(CPU, "auto").precision == "32"
    assert choose_precision(CPU, "bf16").precision == "bf16"  # but a person may ask for it


def test_bf16_far_slower_than_float32_is_avoided_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has_units(monkeypatch, amx=True, avx512=True)
    machine = choose_precision(CRAWLING, "auto")
    assert machine.precision == "32" and "0.3 GFLOP/s" in machine.reasons[0]
    assert choose_precision(replace(CRAWLING, bf16_gflops=178 / 19), "auto").precision == "bf16"
    with pytest.raises(VitreousError, match="no bf16 unit"):
        choose_precision(CRAWLING, "bf16")


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux", reason="reads x86's flags"
)
def test_the_detected_unit_is_one_that_linux_lists() -> None:
    names = {"AMX tiles": "amx_bf16", "AVX-512 with bf16": "avx512_bf16"}
    unit = machines.bf16_unit("cpu")
    flags = machines.processor_flags()
    assert names[unit] in flags if unit else not set(names.values()) & set(flags)


@pytest.mark.parametrize("bf16_speed", [0.3e9, 345e9])
def test_speeds_of_products_and_no_large_one_where_bf16_is_slow(
    bf16_speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a made-up clock, which each product advances."""
    now, sizes = [0.0], []

    def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        now[0] += 2 * len(a) ** 3 / (178e9 if a.dtype == torch.float32 else bf16_speed)
        if a.dtype == torch.bfloat16:
            sizes.append(len(a))
        return a

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    assert machines.product_speeds("cpu") == (pytest.approx(178), pytest.approx(bf16_speed / 1e9))
    assert max(sizes) == (256 if bf16_speed < 1e9 else 1024)


def test_real_speeds_are_plausible_and_leave_the_generator_alone() -> None:
    state = torch.get_rng_state()
    float32, bf16 = machines.product_speeds("cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.1 < float32 < 1e5
    assert 0.001 < bf16 < 1e5


@pytest.mark.parametrize(("device", "nearest"), [("gpu", "cpu"), ("cudaa", "cuda")])
def test_unknown_device_is_refused_with_the_nearest(device: str, nearest: str) -> None:
    with pytest.raises(VitreousError, match=nearest):
        machines.detect_machine(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_device_is_a_sentence() -> None:
    with pytest.raises(VitreousError, match="no cuda device"):
        machines.detect_machine("cuda")


def test_threads_are_as_recorded_and_no_more_than_processors() -> None:
    before = torch.get_num_threads()
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        assert machines.detect_machine("cpu", threads=processors).threads == processors
        assert machines.detect_machine("cpu", threads=1).threads == 1
        assert machines.detect_machine("cpu", threads=1000).threads == processors
    finally:
        torch.set_num_threads(before)


def has_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str | None) -> None:
    """A machine whose only compiler is a script that prints `version`, or that has none."""
    if os.name != "posix":
        pytest.skip("scripts are not programs here")
    if version is not None:
        (folder / "g++").write_text(f"#!/bin/sh\necho '{version}'\necho 'Copyright'\n")
        (folder / "g++").chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(folder))


def test_auto_is_the_native_backend_where_it_can_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    has_compiler(monkeypatch, tmp_path, "g++ 12.2")
    machine = choose_backend(CPU, "auto", None)
    assert (machine.backend, machine.compiler) == ("native", "g++ 12.2")
    assert choose_backend(CPU, "torch", None).backend == "torch"
    assert choose_backend(CPU, "auto", "there is no C++ compiler").backend == "torch"
    with pytest.raises(VitreousError, match=r"there is no C\+\+ compiler.*--backend torch"):
        choose_backend(CPU, "native", "there is no C++ compiler")
    with pytest.raises(VitreousError, match="for CPUs"):
        choose_backend(replace(CPU, device="cuda"), "native", None)


def test_attention_follows_from_device_precision_and_tokens() -> None:
    assert [choose_attention("cpu", "32", tokens) for tokens in (49, 100, 197)] == [
        "explicit",
        "explicit",
        "fused",
    ]
    assert [choose_attention("cpu", "bf16", tokens) for tokens in (49, 257, 577)] == [
        "explicit",
        "explicit",
        "fused",
    ]
    assert {choose_attention(device, "bf16", 49) for device in ("cuda", "mps")} == {"fused"}


def test_compiling_needs_a_compiler_and_a_long_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has_compiler(monkeypatch, tmp_path, "g++ 12.2")
    compiled = choose_compile(CPU, "auto", 1e15)
    assert compiled.compile and compiled.compiler == "g++ 12.2"
    assert not choose_compile(CPU, "auto", 1e13).compile
    assert not choose_compile(replace(CPU, backend="native"), "auto", 1e15).compile
    assert (
        choose_compile(CPU, True, 1e13).compile and not choose_compile(CPU, False, 1e15).compile
    )  # as recorded
    (tmp_path / "g++").unlink()
    without = choose_compile(CPU, "auto", 1e15)
    assert not without.compile and "C++ compiler" in without.reasons[-1]
    with pytest.raises(VitreousError, match="cannot be compiled"):
        choose_compile(CPU, True, 1e15)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own counters")
def test_memory_goes_back_to_the_system_afterwards() -> None:
    """By malloc's own counters: a freed block of 1 GiB, larger than any hole, is kept inside, but not afterwards."""

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(f"field_{i}", ctypes.c_size_t) for i in range(10)]

        @property
        def mapped(self) -> int:  # hblkhd of malloc.h
            return int(self.field_4)

        @property
        def free(self) -> int:  # fordblks
            return int(self.field_8)

    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo2
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def mapped_and_kept(size: int) -> tuple[int, int]:
        before = libc.mallinfo2()
        block = libc.malloc(size << 20)
        mapped = libc.mallinfo2().mapped - before.mapped
        libc.free(block)
        return mapped >> 20, (libc.mallinfo2().free - before.free) >> 20

    libc.mallopt(-3, 128 * 1024)  # a new process's threshold
    with machines.keep_memory():
        mapped, kept = mapped_and_kept(1024)
        assert mapped == 0 and kept >= 1023
    assert mapped_and_kept(1024)[0] == 1024
    assert mapped_and_kept(16)[0] == 0  # the size of a large tensor, which glibc keeps
