"""What this machine does best: measured or detected, said in one line each, recorded in the run.

Nothing is looked up in a table of processors. Some have no bf16 unit, and torch then multiplies
bf16 in a reference loop, hundreds of times slower, without a word; some fused kernels lose to
plain products on a CPU. A few milliseconds of timing tell.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vitreous.errors import VitreousError, unknown
from vitreous.native.build import cpp_compiler

PRECISIONS = ("32", "bf16")
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Machine:
    """A machine and the choices made on it; all plain values, so that a run can record it.

    Attributes:
        device: "cpu", "cuda" or "mps".
        name: the processor's or the accelerator's own name.
        precision: "32", or "bf16" for autocast with float32 weights.
        attention: "explicit" products, torch's "fused" kernel, or "native": our own kernels for stem and encoder.
        compile: whether the encoder's block is compiled.
        threads: CPU threads that torch uses.
        float32_gflops, bf16_gflops: rate of a square matrix product, 1e9 operations a second, a
            multiply-add as two; 0 where it was not measured.
        reasons: one sentence for each choice.
    """

    device: str
    name: str
    precision: str
    attention: str
    compile: bool
    threads: int
    float32_gflops: float
    bf16_gflops: float
    reasons: tuple[str, ...] = ()

    def decided(self, reason: str, **choice: Any) -> Machine:
        """The machine with one more choice and the sentence that gives its reason."""
        return replace(self, **choice, reasons=(*self.reasons, reason))

    def record(self) -> dict[str, Any]:
        """The machine as a flat table for `recipe.toml`."""
        return {**asdict(self), "reasons": list(self.reasons)}


def look(device: str = "auto", precision: str = "auto") -> Machine:
    """Looks at the machine: chooses the device, and the precision by timing a product.

    Attention and compilation depend on the network too; `choose_attention` and
    `choose_compile` decide them once it is known.

    Raises:
        VitreousError: an unknown device or precision, or one that this machine does not have.
    """
    if device != "auto" and device not in DEVICES:
        raise unknown("device", device, ("auto", *DEVICES))
    if precision != "auto" and precision not in PRECISIONS:
        raise unknown("precision", precision, ("auto", *PRECISIONS))
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[device]:
        raise VitreousError(f"torch sees no {device} device here; use --device cpu.")
    reasons = []
    if device == "cpu":
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(min(torch.get_num_threads(), threads))
        if keep_memory():
            reasons.append("memory: freed blocks are kept, not returned to the system at every step")
    float32, bf16 = (0.0, 0.0) if device == "mps" else product_rates(device)
    if precision == "auto":
        precision = "bf16" if bf16 > 1.2 * float32 else "32"
        chosen = "chosen by timing" if float32 else "the safe choice on mps"
        measured = f" (matrix products: float32 {float32:.0f}, bf16 {bf16:.3g} GFLOP/s)" if float32 else ""
        reasons.append(f"precision: {precision}, {chosen}{measured}")
    else:
        reasons.append(f"precision: {precision}, as asked")
        if precision == "bf16" and 0 < bf16 < float32 / 4:
            raise VitreousError(
                f"bf16 runs at {bf16:.3g} GFLOP/s here and float32 at {float32:.0f}: "
                "this processor has no bf16 unit; train with --precision auto or 32, or go to a machine that has one."
            )
    return Machine(
        device=device,
        name=torch.cuda.get_device_name() if device == "cuda" else processor(),
        precision=precision,
        attention="fused",
        compile=False,
        threads=torch.get_num_threads(),
        float32_gflops=round(float32, 1),
        bf16_gflops=round(bf16, 1),
        reasons=tuple(reasons),
    )


def product_rates(device: str) -> tuple[float, float]:
    """Rates of 1024-square products in float32 and bf16, in 1e9 operations a second.

    A small bf16 product goes first, against float32 of the same size, since other work on the
    machine slows both: where it crawls, the large one is never tried.
    """

    def rate(dtype: torch.dtype, size: int, repeats: int) -> float:
        a = torch.randn(size, size, device=device).to(dtype)
        return 2 * size**3 / best_time(lambda: a @ a, device, repeats) / 1e9

    float32 = rate(torch.float32, 1024, 5)
    small = rate(torch.bfloat16, 256, 3)
    if small < rate(torch.float32, 256, 3) / 4:
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


def choose_attention(
    machine: Machine, step: Callable[[str], Any], paths: Sequence[str] = ("explicit", "fused")
) -> Machine:
    """The machine with the fastest attention path.

    Args:
        step: runs forward and backward of the real network on a few pictures, given the path.
        paths: those to choose from on a CPU.
    """
    if machine.device != "cpu":
        reason = f"attention: fused, as the kernels of {machine.device} are made for it"
        return machine.decided(reason, attention="fused")
    seconds = {path: best_time(lambda path=path: step(path), "cpu", 3) for path in paths}  # type: ignore[misc]
    # Native unless another gains 5 %: a busy moment is no reason, and the rest of a run may be quiet.
    path, *others = sorted(seconds, key=lambda name: seconds[name] * (0.95 if name == "native" else 1))
    longer = ", ".join(
        f"{other} takes {seconds[other] / seconds[path]:.2f} times as long" for other in others
    )
    return machine.decided(f"attention: {path}, chosen by timing ({longer})", attention=path)


def choose_compile(machine: Machine, train_seconds: float) -> Machine:
    """The machine with the choice whether compiling pays back in a training of about `train_seconds`."""
    if machine.device == "mps":
        return machine.decided("compile: off, torch supports it too little on mps", compile=False)
    if machine.attention == "native":
        return machine.decided("compile: off, our own kernels do more than it would", compile=False)
    if machine.device == "cpu" and not cpp_compiler():
        reason = "compile: off, there is no C++ compiler; installing g++ or clang++ makes training faster"
        return machine.decided(reason, compile=False)
    if train_seconds < COMPILE_PAYS_SECONDS:
        reason = f"compile: off, it would not pay back in about {train_seconds:.0f} s of training"
        return machine.decided(reason, compile=False)
    return machine.decided("compile: on, one block for all layers", compile=True)


COMPILE_PAYS_SECONDS = (
    900.0  # on two cores it gains 1 to 4 % of a step, and costs up to half a minute when cold
)


def keep_memory() -> bool:
    """Tells glibc to keep freed memory, which training would fault in again on every step.

    Large blocks otherwise go back to the system when freed; on a virtual machine the page faults
    of getting them again cost a fifth of the time of a small network. Returns whether it took
    effect (glibc only).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX of malloc.h
    done = [
        libc.mallopt(mmap_max, 0),
        libc.mallopt(trim_threshold, -1),
        libc.mallopt(top_pad, 256 * 1024 * 1024),
    ]
    return all(done)


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def instruction_sets() -> str:
    """Which of the vector extensions that matter here the processor names, e.g. "avx2 avx512f avx512_bf16"."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            flags = next((line.split(":", 1)[1].split() for line in file if line.startswith("flags")), [])
    except OSError:
        flags = []
    return " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)
