"""The fastest safe settings for this machine: chosen by facts, each with a reason, and recorded in the run.

Device, precision, backend, attention and compilation change the bits of a training. None of them depends on a timing,
so the same command gives the same bits on a busy machine too. The one exception guards against very slow bf16: on a
processor without a bf16 unit, torch may multiply bf16 in a reference loop, hundreds of times slower, without a warning.
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
from vitreous.wording import scientific

TRIES = 5  # before bf16 is taken to be slow
CRAWL = 20  # bf16 products this many times slower than float32 have no unit of their own
# Largest number of tokens for which torch's explicit products beat its fused attention on a CPU, forward and backward.
# Measured with 16 to 400 tokens and heads of 16 to 64. In float32 the fused kernel takes 0.65 to 1.04 times as long up
# to 65 tokens, about as long from 50 on, and is mostly faster from 100 on. In bf16 it takes 1.6 to 11 times as long up
# to 257 tokens, and 1.3 times at 400.
EXPLICIT_TOKENS = {"32": 100, "bf16": 400}
# Smallest number of training FLOPs for which compiling pays back. It saves 1 to 4 % of a step on two cores and costs up
# to half a minute. An accelerator does a hundred times as much work in that time.
COMPILE_FLOPS = {"cpu": 1e14, "cuda": 1e16}


@dataclass(frozen=True)
class Machine:
    """A machine and the settings chosen for it, all plain values that a run can record.

    Attributes:
        device: "cpu", "cuda" or "mps".
        name: the product name of the processor or accelerator.
        threads: number of CPU threads that torch uses.
        float32_gflops, bf16_gflops: speed of a square matrix product in GFLOP/s, a multiply-add counted as two; 0 if
            not measured.
        precision: of training: "32", or "bf16" for autocast with float32 weights.
        backend: "torch", or "native" for kernels compiled on this machine.
        attention: torch's way to compute attention: "explicit" products, or its "fused" kernel.
        compile: whether torch compiles the encoder's blocks.
        compiler: version of the C++ compiler if the native backend or compilation uses it, else "".
        capability: the vector extensions that torch's CPU kernels use, as torch names them.
        matmul_precision: torch's setting for float32 products, "highest" unless the caller has changed it.
        reasons: one line for each choice.
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
        """The machine with one more choice and its reason."""
        return replace(self, **choice, reasons=(*self.reasons, reason))

    def record(self) -> dict[str, Any]:
        """The machine as a flat table for `recipe.toml`."""
        return {**asdict(self), "reasons": list(self.reasons)}


def detect_machine(device: str = "auto", threads: int | None = None) -> Machine:
    """Finds the device, its name and its speed, and sets torch's number of threads.

    The functions `choose_…` then make one choice each.

    Args:
        threads: number of CPU threads, at most the number of processors that this process may use; by default torch's
            own setting.

    Raises:
        VitreousError: the device is unknown, or this machine does not have it.
    """
    device = resolve_device(device)
    # The whitening is fitted on the CPU for every device.
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
    """The device by name, or the best available one for "auto"; raises as `detect_machine` does."""
    if device not in ("auto", *DEVICES):
        raise unknown("device", device, ("auto", *DEVICES))
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise VitreousError(f"torch finds no {device} device on this machine; use --device cpu.")
    return device


def choose_precision(machine: Machine, precision: str, by: str = "as given") -> Machine:
    """Chooses the precision: for "auto", bf16 if the machine has a unit for it.

    Args:
        by: why it is not "auto", for the reason: "as given" or "as recorded". The choices below take it too.

    Raises:
        VitreousError: bf16 was requested, and this machine computes it far slower than float32.
    """
    if precision not in ("auto", *PRECISIONS):
        raise unknown("precision", precision, ("auto", *PRECISIONS))
    crawls = machine.bf16_gflops < machine.float32_gflops / CRAWL
    speeds = (
        f"bf16 runs at {machine.bf16_gflops:.3g} GFLOP/s on this {machine.device}, and float32 at "
        f"{machine.float32_gflops:.0f}"
    )
    if precision == "bf16" and crawls:
        raise VitreousError(
            f"{speeds}, so it has no bf16 unit; train with --precision auto or 32, or on a machine that has one."
        )
    if precision != "auto":
        return machine.decided(f"precision: {precision}, {by}", precision=precision)
    unit = bf16_unit(machine.device)
    if unit and not crawls:
        return machine.decided(f"precision: bf16, because this {machine.device} has {unit}", precision="bf16")
    why = f"{speeds} in spite of its {unit}" if unit else f"this {machine.device} has no known bf16 unit"
    return machine.decided(f"precision: 32, because {why}", precision="32")


def bf16_unit(device: str) -> str | None:
    """The name of the unit that multiplies bf16 fast on this device, or None; detected, not timed."""
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
    command = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "1"


def product_speeds(device: str) -> tuple[float, float]:
    """Speeds of 1024 x 1024 products in float32 and bf16, in GFLOP/s.

    A small bf16 product is compared with float32 first. If it is far slower, again and again, its speed is returned and
    the large product is not tried, since it could take minutes. One try would not do: other work on the machine can
    hold up all timings of a product that takes microseconds.
    """

    def speed(dtype: torch.dtype, size: int, repeats: int) -> float:
        # Ones, since random numbers would come from the caller's generator.
        a = torch.ones(size, size, device=device, dtype=dtype)
        return 2 * size**3 / best_time(lambda: a @ a, device, repeats) / 1e9

    float32 = speed(torch.float32, 1024, 5)
    for _ in range(TRIES):
        small_bf16 = speed(torch.bfloat16, 256, 3)
        if small_bf16 >= speed(torch.float32, 256, 3) / CRAWL:
            return float32, speed(torch.bfloat16, 1024, 5)
    return float32, small_bf16


def best_time(run: Callable[[], Any], device: str, repeats: int) -> float:
    """The shortest of `repeats` timings of `run()`, in seconds, after one call that is not timed."""
    run()
    times = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def choose_backend(machine: Machine, backend: str, unsupported: str | None, by: str = "as given") -> Machine:
    """Chooses the backend: for "auto", the native kernels if they can run the network.

    Args:
        backend: "auto", "torch" or "native".
        unsupported: why the native kernels cannot run the network, or None.

    Raises:
        VitreousError: native was requested and cannot be used.
    """
    if machine.device != "cpu":
        unsupported = f"they are for CPUs, and the device is {machine.device}"
    if backend == "native" and unsupported:
        raise VitreousError(
            f"The native kernels cannot be used ({unsupported}); train with --backend torch or auto."
        )
    if backend == "torch":
        return machine.decided(f"backend: torch, {by}", backend="torch")
    if unsupported:
        return machine.decided(
            f"backend: torch, because the native kernels cannot be used ({unsupported})", backend="torch"
        )
    why = by if backend == "native" else "kernels compiled for this CPU"
    return machine.decided(f"backend: native, {why}", backend="native", compiler=compiler_version())


def choose_attention(device: str, precision: str, tokens: int) -> str:
    """The faster way for torch to compute attention, "explicit" or "fused"; by rule, without timing."""
    return "explicit" if device == "cpu" and tokens <= EXPLICIT_TOKENS[precision] else "fused"


def choose_compile(
    machine: Machine, compile: bool | str, train_flops: float, by: str = "as given"
) -> Machine:
    """Chooses whether torch compiles the network.

    Args:
        compile: the choice that another run recorded, or "auto": compile if it pays back in a training of
            `train_flops`.

    Raises:
        VitreousError: the network must be compiled and cannot be.
    """
    obstacle = ""
    if machine.backend == "native":
        obstacle = "the native kernels are faster"
    elif machine.device == "mps":
        obstacle = "torch hardly supports it on mps"
    elif not cpp_compiler():
        obstacle = "it needs a C++ compiler; install g++ or clang++ to train faster"
    if compile is True and obstacle:
        raise VitreousError(f"The network cannot be compiled here ({obstacle}).")
    if compile == "auto":
        least = COMPILE_FLOPS.get(machine.device, 0.0)
        if not obstacle and train_flops < least:
            obstacle = f"it pays back from {scientific(least)} FLOPs on"
        compile = not obstacle
    if not compile:
        return machine.decided(f"compile: off, {f'because {obstacle}' if obstacle else by}", compile=False)
    return machine.decided("compile: on, once for all layers", compile=True, compiler=compiler_version())


def compiler_version() -> str:
    """The first line of the C++ compiler's `--version`, or "" without a compiler."""
    compiler = cpp_compiler()
    if compiler is None:
        return ""
    output = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    return output.partition("\n")[0].strip()


# Numbers of mallopt's parameters in malloc.h, with the values to return to. In an untouched process both thresholds
# start at 128 KiB and rise, with the sizes that are freed, up to these values. Setting any parameter stops that rise.
MALLOC_USUAL = {
    "trim_threshold": (-1, 64 << 20),
    "top_pad": (-2, 0),
    "mmap_threshold": (-3, 32 << 20),
    "mmap_max": (-4, 65536),
}


@contextmanager
def keep_memory() -> Iterator[None]:
    """Makes glibc keep freed memory for the next step instead of returning it to the system.

    By default large blocks are returned when they are freed. On a virtual machine the page faults for new ones cost a
    fifth of the time of a small network. At the end, `MALLOC_USUAL` is set and free memory is returned. Does nothing
    without glibc.
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
    """Restores torch's number of threads and its CPU generator at the end, since a training changes both."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


# What torch asks for before it calls cuBLAS deterministic: a workspace of its own for each stream, here 8 x 4096 KiB.
CUBLAS_WORKSPACES = (":4096:8", ":16:8")


@contextmanager
def deterministic() -> Iterator[None]:
    """Makes CUDA compute the same bits from the same command, and float32 products in float32.

    By default some of torch's CUDA kernels add in the order in which threads arrive. At the end all settings are the
    caller's again. They belong to the process, so other threads see them too. Does nothing without a GPU.
    """
    if not torch.cuda.is_available():
        yield
        return
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory = torch.utils.deterministic
    fill, workspace = memory.fill_uninitialized_memory, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if workspace not in CUBLAS_WORKSPACES:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACES[0]
    try:
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # it would write every new tensor twice
        with full_float32("cuda"):
            yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        else:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


@contextmanager
def full_float32(device: str) -> Iterator[None]:
    """Convolutions of float32 on CUDA keep all bits, and cuDNN chooses the same kernels for them each time.

    By default they run in TF32, with 10 bits of the mantissa. At the end all settings are the caller's again.
    """
    if device != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def wait(device: str) -> None:
    """Waits until `device` has done all its work, so that a clock shows when it is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def processor() -> str:
    """The processor's name, as the system reports it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_flags() -> list[str]:
    """The processor's extensions, as Linux names them; empty elsewhere."""
    return (_cpuinfo("flags") or _cpuinfo("Features")).split()


def instruction_sets() -> str:
    """The vector extensions of the processor that matter for speed, e.g. "avx2 avx512f avx512_bf16"."""
    flags = processor_flags()
    return " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16") if flag in flags)


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo, or "" if absent."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), "")
    except OSError:
        return ""
