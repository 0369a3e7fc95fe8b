"""What this machine does best: chosen by facts, said in one sentence for each choice, recorded in the run.

Device, precision, backend, attention and compilation change the bits of a training, so none of them depends on a
stopwatch: the same command gives the same bits on a busy machine too. The one exception guards against a crawl. Where
a processor lacks a bf16 unit, torch may multiply bf16 in a reference loop, hundreds of times slower, without a word.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vitreous.errors import VitreousError, unknown
from vitreous.native.build import cpp_compiler
from vitreous.request import DEVICES, PRECISIONS

CRAWL = 20  # times slower than float32: a product in bf16 that no unit computes
# Up to how many tokens torch's explicit products beat its fused attention on a CPU, forward and backward. Measured
# with 16 to 400 tokens and heads of 16 to 64. In float32 fused takes 0.65 to 1.04 times as long up to 65 tokens, near 1
# from 50 on, and mostly wins from 100 on. In bf16 it takes 1.6 to 11 times as long up to 257 tokens, 1.3 times at 400.
EXPLICIT_TOKENS = {"32": 100, "bf16": 400}
# From how many training FLOPs on compiling pays back. It gains 1 to 4 % of a step on two cores and costs up to half a
# minute; an accelerator does a hundred times as much in that time.
COMPILE_FLOPS = {"cpu": 1e14, "cuda": 1e16}


@dataclass(frozen=True)
class Machine:
    """A machine and the choices made on it; all plain values, so that a run can record it.

    Attributes:
        device: "cpu", "cuda" or "mps".
        name: the processor's or the accelerator's own name.
        threads: CPU threads that torch uses.
        float32_gflops, bf16_gflops: speed of a square matrix product, 1e9 operations a second, a
            multiply-add as two; 0 where it was not measured.
        precision: of training, "32", or "bf16" for autocast with float32 weights.
        backend: "torch", or "native" for kernels compiled on this machine.
        attention: how torch computes attention: "explicit" products, or its "fused" kernel.
        compile: whether torch compiles the encoder's blocks.
        compiler: version of the C++ compiler, where the native backend or compilation uses it, else "".
        capability: the vector extensions that torch's CPU kernels use, as it names them.
        matmul_precision: what torch makes of float32 products, "highest" unless the caller set it otherwise.
        reasons: one sentence for each choice.
    """

    device: str
    name: str
    threads: int
    float32_gflops: float
    bf16_gflops: float
    precision: str = "32"
    backend: str = "torch"
    attention: str = "explicit"
    compile: bool = False
    compiler: str = ""
    capability: str = ""
    matmul_precision: str = "highest"
    reasons: tuple[str, ...] = ()

    def decided(self, reason: str, **choice: Any) -> Machine:
        """The machine with one more choice and the sentence that gives its reason."""
        return replace(self, **choice, reasons=(*self.reasons, reason))

    def record(self) -> dict[str, Any]:
        """The machine as a flat table for `recipe.toml`."""
        return {**asdict(self), "reasons": list(self.reasons)}


def detect_machine(device: str = "auto", threads: int | None = None) -> Machine:
    """Finds the device, its name and its speed; sets torch's threads.

    Each of the functions `choose_…` then makes one choice for it.

    Args:
        threads: of torch on a CPU; by default as many as it has set itself. Never more than the processors that
            this process may use.

    Raises:
        VitreousError: an unknown device, or one that this machine does not have.
    """
    device = resolve_device(device)
    if device == "cpu":
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(min(threads or torch.get_num_threads(), processors))
    float32, bf16 = (0.0, 0.0) if device == "mps" else product_speeds(device)
    return Machine(
        device=device,
        name=torch.cuda.get_device_name() if device == "cuda" else processor(),
        threads=torch.get_num_threads(),
        float32_gflops=round(float32, 1),
        bf16_gflops=round(bf16, 3),
        capability=torch.backends.cpu.get_cpu_capability(),
        matmul_precision=torch.get_float32_matmul_precision(),
    )


def resolve_device(device: str) -> str:
    """The device that is meant, the best that there is for "auto"; raises `VitreousError` as `detect_machine`."""
    if device not in ("auto", *DEVICES):
        raise unknown("device", device, ("auto", *DEVICES))
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise VitreousError(f"torch sees no {device} device here; use --device cpu.")
    return device


def choose_precision(machine: Machine, precision: str, by: str = "as given") -> Machine:
    """The machine with its precision: bf16 wherever it has a unit for it, unless another was asked for.

    Args:
        by: whose word `precision` is, for the reason; so in the choices below.

    Raises:
        VitreousError: bf16 was asked for, and crawls.
    """
    if precision not in ("auto", *PRECISIONS):
        raise unknown("precision", precision, ("auto", *PRECISIONS))
    crawls = machine.bf16_gflops < machine.float32_gflops / CRAWL
    speeds = (
        f"bf16 runs at {machine.bf16_gflops:.3g} GFLOP/s here and float32 at {machine.float32_gflops:.0f}"
    )
    if precision == "bf16" and crawls:
        raise VitreousError(
            f"{speeds}: this processor has no bf16 unit; "
            "train with --precision auto or 32, or go to a machine that has one."
        )
    if precision != "auto":
        return machine.decided(f"precision: {precision}, {by}", precision=precision)
    unit = bf16_unit(machine.device)
    if unit and not crawls:
        return machine.decided(f"precision: bf16, as the {machine.device} has {unit}", precision="bf16")
    why = f"{speeds}, in spite of its {unit}" if unit else f"no bf16 unit is known on this {machine.device}"
    return machine.decided(f"precision: 32, {why}", precision="32")


def bf16_unit(device: str) -> str | None:
    """What multiplies bf16 fast on this device, by its name, or None; detected and not timed."""
    if device == "cuda":
        return "tensor cores" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device == "mps":
        return None
    if torch.cpu._is_amx_tile_supported():
        return "AMX tiles"
    if torch.cpu._is_avx512_bf16_supported():
        return "AVX-512 with bf16"
    return "Arm's bf16 extension" if "bf16" in processor_flags() or _apple_bf16() else None


def _apple_bf16() -> bool:
    if platform.system() != "Darwin":
        return False
    asked = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == "1"


def product_speeds(device: str) -> tuple[float, float]:
    """Speeds of 1024-square products in float32 and bf16, in 1e9 operations a second.

    A small bf16 product goes first, against float32 of the same size, as other work on the machine slows both. Where
    it crawls, the large one is never tried.
    """

    def rate(dtype: torch.dtype, size: int, repeats: int) -> float:
        a = torch.ones(
            size, size, device=device, dtype=dtype
        )  # random ones would draw from the caller's generator
        return 2 * size**3 / best_time(lambda: a @ a, device, repeats) / 1e9

    float32 = rate(torch.float32, 1024, 5)
    small = rate(torch.bfloat16, 256, 3)
    if small < rate(torch.float32, 256, 3) / CRAWL:
        return float32, small
    return float32, rate(torch.bfloat16, 1024, 5)


def best_time(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Shortest of `repeats` timings of `run()` in seconds, after one call that is not counted."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def choose_backend(machine: Machine, backend: str, unsupported: str | None, by: str = "as given") -> Machine:
    """The machine with its backend: native kernels wherever they can be used, unless torch was asked for.

    Args:
        backend: "auto", "torch" or "native".
        unsupported: why the native kernels cannot take the network, or None.

    Raises:
        VitreousError: native was asked for and cannot be used.
    """
    if machine.device != "cpu":
        unsupported = f"they are for CPUs, and this run is on {machine.device}"
    if backend == "native" and unsupported:
        raise VitreousError(
            f"The native kernels cannot be used ({unsupported}); train with --backend torch or auto."
        )
    if backend == "torch":
        return machine.decided(f"backend: torch, {by}", backend="torch")
    if unsupported:
        return machine.decided(
            f"backend: torch, as native kernels cannot be used ({unsupported})", backend="torch"
        )
    why = by if backend == "native" else "kernels compiled for this CPU"
    return machine.decided(f"backend: native, {why}", backend="native", compiler=compiler_version())


def choose_attention(device: str, precision: str, tokens: int) -> str:
    """How torch computes attention best: "explicit" products, or its "fused" kernel; a rule, without timing."""
    return "explicit" if device == "cpu" and tokens <= EXPLICIT_TOKENS[precision] else "fused"


def choose_compile(
    machine: Machine, compile: bool | str, train_flops: float, by: str = "as given"
) -> Machine:
    """The machine with the choice whether torch compiles the network.

    Args:
        compile: what another run recorded, or "auto": where it pays back in a training of `train_flops`.

    Raises:
        VitreousError: it is to be compiled and cannot be.
    """
    obstacle = ""
    if machine.backend == "native":
        obstacle = "the native kernels gain more than it would"
    elif machine.device == "mps":
        obstacle = "torch supports it too little on mps"
    elif not cpp_compiler():
        obstacle = "it needs a C++ compiler; install g++ or clang++ to train faster"
    if compile is True and obstacle:
        raise VitreousError(f"The network cannot be compiled here ({obstacle}).")
    if compile == "auto":
        least = COMPILE_FLOPS.get(machine.device, 0.0)
        if not obstacle and train_flops < least:
            obstacle = f"it pays back from {least:.0e} training FLOPs on"
        compile = not obstacle
    if not compile:
        return machine.decided(f"compile: off, {obstacle or by}", compile=False)
    return machine.decided("compile: on, one block for all layers", compile=True, compiler=compiler_version())


def compiler_version() -> str:
    """The first line of what the C++ compiler says of its version, "" without one."""
    compiler = cpp_compiler()
    if compiler is None:
        return ""
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].strip()


# Of malloc.h, with the values that a process comes to by itself: the two thresholds start at 128 KiB and rise with
# what is freed, as far as these, but not any more once one of the four was set.
MALLOC_USUAL = {
    "trim_threshold": (-1, 64 << 20),
    "top_pad": (-2, 0),
    "mmap_threshold": (-3, 32 << 20),
    "mmap_max": (-4, 65536),
}


@contextmanager
def keep_memory() -> Iterator[None]:
    """Lets glibc keep freed memory inside, which training would otherwise fault in again at every step.

    Large blocks go back to the system when they are freed; on a virtual machine the page faults of getting them again
    cost a fifth of the time of a small network. At the end the values return that glibc comes to by itself, and what is
    free goes back to the system. Does nothing elsewhere.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for name, value in (("mmap_max", 0), ("trim_threshold", -1), ("top_pad", 256 * 1024 * 1024)):
        libc.mallopt(MALLOC_USUAL[name][0], value)
    try:
        yield
    finally:
        for number, value in MALLOC_USUAL.values():
            libc.mallopt(number, value)
        libc.malloc_trim(ctypes.c_size_t(0))


@contextmanager
def keep_torch() -> Iterator[None]:
    """Gives torch back its number of threads and its CPU's generator at the end; a training changes both."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def processor() -> str:
    """The processor's name, as the system gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_flags() -> list[str]:
    """The processor's extensions, as Linux names them; empty elsewhere."""
    return (_cpuinfo("flags") or _cpuinfo("Features")).split()


def instruction_sets() -> str:
    """Which of the vector extensions that matter here the processor names, e.g. "avx2 avx512f avx512_bf16"."""
    flags = processor_flags()
    return " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16") if flag in flags)


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo, "" where there is none."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), "")
    except OSError:
        return ""
