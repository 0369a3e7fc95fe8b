"""Kernels for CPUs: compiled on the user's machine when first needed (`kernels.cpp`), checked, loaded and called.

A compiled library is kept in `kernels_dir()` as `KEY-DIGEST.so`: KEY is a hash of what it was made of (sources,
command, compiler, processor), DIGEST one of its own bytes. A library that was cut short or altered no longer has the
digest in its name, and is compiled again before anything loads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitreous.errors import VitreousError
from vitreous.files import is_kernel, kernels_dir

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "kernels.cpp"  # includes the others
FLAGS = (
    "-O3",
    "-march=native",
    "-funroll-loops",
    "-fno-math-errno",
    "-fno-signed-zeros",
    "-freciprocal-math",
    "-fno-strict-aliasing",
    "-fno-trapping-math",
    "-fno-semantic-interposition",
    "-fopenmp",
    "-std=c++17",
    "-shared",
    "-fPIC",
)
MIN_WIDTH = 16  # as in vectors.h: no row may be shorter, and padded widths are multiples of it
UNUSED_DAYS = 30  # after which a library that was not loaded is removed, when another is compiled
DTYPES = {torch.float32: 0, torch.uint8: 1, torch.int32: 2}  # as in arguments.h; kernels take no others
ERRORS = {  # as in arguments.h, with the position of the tensor or size
    1: "was given more or fewer arguments than it reads",
    2: "cannot work with these sizes (size {})",
    3: "needs tensor {}, which is missing",
    4: "was given tensor {} of another type than it reads",
    5: "was given tensor {} with another number of elements than its sizes say",
    6: "was given values in tensor {} that it does not know",
}
OUT_OF_MEMORY = 7


def cpp_compiler() -> str | None:
    """The C++ compiler of this machine, or None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    return None


@functools.cache
def load_kernels(dtype: torch.dtype) -> ctypes.CDLL | str:
    """The kernels for activations of `dtype`, or the reason why there are none here.

    Compiles them if that was not done yet, in some four seconds. Several processes may do so at once.
    """
    compiler = cpp_compiler()
    if compiler is None:
        return "there is no C++ compiler (g++ or clang++ makes training faster)"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"they do not know {dtype}"
    command = [compiler, *FLAGS, *(["-DBFLOAT16"] if dtype == torch.bfloat16 else [])]
    try:
        folder = kernels_dir()
        reason = _make_private(folder)
        if reason is not None:
            return reason
        key = _key(compiler, command)
        return ctypes.CDLL(str(_find(folder, key) or _compile(folder, key, command)))
    except subprocess.CalledProcessError as error:  # no OpenMP, say: torch will do
        lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        causes = (
            line for line in lines if "error" in line or "cannot find" in line
        )  # the linker's is the second
        reason = next(causes, lines[-1] if lines else f"exit status {error.returncode}")
        return f"{compiler} could not compile them ({reason})"
    except (OSError, RuntimeError) as error:  # a full disk, no home
        return f"they could not be kept in the cache ({getattr(error, 'strerror', None) or error})"


def _make_private(folder: Path) -> str | None:
    """Makes the folder, readable by its owner only; or says why what is there cannot be trusted.

    Earlier versions let the umask decide, which on many systems lets the user's group write. The libraries in such a
    folder may be anybody's: they are removed, and compiled again when needed.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not hasattr(os, "geteuid"):  # Windows
        return None
    status = folder.stat()
    if status.st_uid != os.geteuid():
        return f"{folder} belongs to another user; set VITREOUS_DATA to a folder of your own"
    folder.chmod(0o700)  # first: from here on nobody else adds a library
    if status.st_mode & 0o022:
        for path in list(folder.iterdir()):
            if path.is_file() and is_kernel(path):
                path.unlink(missing_ok=True)  # another process may do the same
    return None


def _key(compiler: str, command: Sequence[str]) -> str:
    """A hash of what a library is made of: the sources, the command, the compiler's version, the processor's units."""
    describe = [compiler, "-march=native", "-E", "-dM", "-x", "c++", "-"]
    macros = subprocess.run(describe, check=True, capture_output=True, input=b"").stdout
    digest = hashlib.sha256(b"\0".join([" ".join(command).encode(), macros]))
    for path in sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")]):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _find(folder: Path, key: str) -> Path | None:
    """The library made of `key`, if it is whole and its owner's; removes it if it is not."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            ours = not hasattr(os, "geteuid") or path.lstat().st_uid == os.geteuid()
            if ours and not path.is_symlink() and path.stem == f"{key}-{_digest(path)}":
                os.utime(path)
                return path
            path.unlink()
    return None


def _compile(folder: Path, key: str, command: Sequence[str]) -> Path:
    for path in folder.iterdir():  # libraries of other versions, folders of compilations that were killed
        with contextlib.suppress(OSError):
            if is_kernel(path) and path.stat().st_mtime < time.time() - UNUSED_DAYS * 24 * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "kernels.so"
        subprocess.run([*command, str(SOURCE), "-o", str(made)], check=True, capture_output=True)
        return made.replace(folder / f"{key}-{_digest(made)}.so")  # whole or not at all


def call(
    name: str,
    dtype: torch.dtype,
    tensors: Sequence[Tensor | None],
    sizes: Sequence[int],
    numbers: Sequence[float] = (),
) -> None:
    """Runs the kernel `name` for activations of `dtype`; `kernels.cpp` says what each is given.

    Tensors are contiguous and on the CPU; None, or a tensor without elements, is one that is left out. The kernel
    checks their types and numbers of elements against `sizes` before it touches memory.

    Raises:
        VitreousError: there are no kernels here, or there is not enough memory.
        ValueError: the arguments contradict each other; nothing was read or written.
    """
    kernels = load_kernels(dtype)
    if isinstance(kernels, str):
        raise VitreousError(
            f"The native kernels are needed here, but {kernels}; install g++ or clang++, or choose the torch backend."
        )
    described = []
    for position, tensor in enumerate(tensors, 1):
        if tensor is None:
            described += [0, 0, 0]
            continue
        if not tensor.is_cpu or not tensor.is_contiguous():
            raise ValueError(f"Kernel {name} needs tensor {position} on the CPU and contiguous.")
        described += [tensor.data_ptr(), tensor.numel(), DTYPES.get(tensor.dtype, -1)]
    kernel = getattr(kernels, name)
    kernel.restype = ctypes.c_int64
    code = kernel(
        (ctypes.c_int64 * len(described))(*described),
        ctypes.c_int64(len(tensors)),
        (ctypes.c_int64 * len(sizes))(*sizes),
        ctypes.c_int64(len(sizes)),
        (ctypes.c_double * len(numbers))(*numbers),
        ctypes.c_int64(len(numbers)),
    )
    if code == 0:
        return
    kind, position = code % 8, code // 8
    if kind == OUT_OF_MEMORY:
        raise VitreousError("There is not enough memory for this batch; choose a smaller batch_size.")
    raise ValueError(f"Kernel {name} {ERRORS[kind].format(position or 'unknown')}.")
