"""What the machine is asked, and that its choices follow from facts."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import replace

import pytest
import torch

from vitreous import machine as machines
from vitreous.errors import VitreousError
from vitreous.machine import Machine, choose_attention, choose_backend, choose_compile, choose_precision

CPU = Machine("cpu", "a processor", threads=2, float32_gflops=118.0, bf16_gflops=345.0)
CRAWLING = replace(CPU, float32_gflops=178.0, bf16_gflops=0.3)


def unit(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    monkeypatch.setattr(machines, "bf16_unit", lambda device: name)


def test_bf16_is_taken_where_there_is_a_unit_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    unit(monkeypatch, "AMX tiles")
    for speed in (345.0, 119.0, 10.0):  # whatever else the processor does at the moment
        found = choose_precision(replace(CPU, bf16_gflops=speed), "auto")
        assert (found.precision, found.reasons) == ("bf16", ("precision: bf16, as the cpu has AMX tiles",))
    unit(monkeypatch, None)
    assert choose_precision(CPU, "auto").precision == "32"
    assert choose_precision(CPU, "bf16").precision == "bf16"


def test_bf16_is_left_where_it_crawls(monkeypatch: pytest.MonkeyPatch) -> None:
    unit(monkeypatch, "AMX tiles")
    found = choose_precision(CRAWLING, "auto")
    assert found.precision == "32" and "0.3 GFLOP/s" in found.reasons[0]
    assert choose_precision(replace(CRAWLING, bf16_gflops=178 / 19), "auto").precision == "bf16"
    with pytest.raises(VitreousError, match="no bf16 unit"):
        choose_precision(CRAWLING, "bf16")


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux", reason="reads x86's flags"
)
def test_the_unit_found_is_one_that_linux_lists() -> None:
    names = {"AMX tiles": "amx_bf16", "AVX-512 with bf16": "avx512_bf16"}
    found = machines.bf16_unit("cpu")
    flags = machines.processor_flags()
    assert names[found] in flags if found else not set(names.values()) & set(flags)


def test_a_crawling_product_is_never_tried_large(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def best_time(run: object, device: str, repeats: int) -> float:
        size, dtype = run.__closure__[0].cell_contents.shape[0], run.__closure__[0].cell_contents.dtype  # type: ignore[attr-defined]
        sizes.append((size, dtype))
        return 2 * size**3 / (178e9 if dtype == torch.float32 else 0.3e9)

    monkeypatch.setattr(machines, "best_time", best_time)
    float32, bf16 = machines.product_speeds("cpu")
    assert (float32, bf16) == (pytest.approx(178), pytest.approx(0.3))
    assert max(size for size, dtype in sizes if dtype == torch.bfloat16) <= 256


def test_real_speeds_are_of_this_world_and_draw_no_number() -> None:
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


def test_the_native_backend_is_taken_wherever_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "compiler_version", lambda: "g++ 12")
    found = choose_backend(CPU, "auto", None)
    assert (found.backend, found.compiler) == ("native", "g++ 12")
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


def test_compiling_needs_a_compiler_and_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "cpp_compiler", lambda: "g++")
    monkeypatch.setattr(machines, "compiler_version", lambda: "g++ 12")
    assert choose_compile(CPU, "auto", 1e15).compile
    assert not choose_compile(CPU, "auto", 1e13).compile
    assert not choose_compile(replace(CPU, backend="native"), "auto", 1e15).compile
    assert (
        choose_compile(CPU, True, 1e13).compile and not choose_compile(CPU, False, 1e15).compile
    )  # as recorded
    monkeypatch.setattr(machines, "cpp_compiler", lambda: None)
    without = choose_compile(CPU, "auto", 1e15)
    assert not without.compile and "C++ compiler" in without.reasons[-1]
    with pytest.raises(VitreousError, match="cannot be compiled"):
        choose_compile(CPU, True, 1e15)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own counters")
def test_memory_goes_back_to_the_system_afterwards() -> None:
    """A freed block of 1 GiB, larger than any hole, is kept inside, as malloc's own count says; not so afterwards."""

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

    libc.mallopt(-3, 128 * 1024)  # the threshold that a process begins with
    with machines.keep_memory():
        mapped, kept = mapped_and_kept(1024)
        assert mapped == 0 and kept >= 1023
    assert mapped_and_kept(1024)[0] == 1024
    assert mapped_and_kept(16)[0] == 0  # a large tensor's, as glibc comes to keep it
