"""Compiles the native kernels (`kernels.cpp`) for this CPU when they are first needed, loads and calls them.

A compiled library is stored in `kernels_dir()` as `KEY-DIGEST.so`. KEY is a hash of the sources, command, compiler and
processor; DIGEST is a hash of the library itself. A library that was truncated or altered no longer matches its
digest. It is not loaded but compiled again.
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
SOURCE = FOLDER / "kernels.cpp"  # includes all other sources
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
MIN_WIDTH = 16  # as in vectors.h: rows are at least this long, and padded widths are multiples of it
UNUSED_DAYS = 30  # each compilation removes libraries that were not loaded for longer
DTYPES = {torch.float32: 0, torch.uint8: 1, torch.int32: 2}  # as in arguments.h: what tensors may hold
ERRORS = {  # as in arguments.h, with the position of the tensor or size
    1: "got more or fewer arguments than it reads",
    2: "does not support these sizes (size {})",
    3: "needs tensor {}, which is missing",
    4: "got tensor {} with the wrong dtype",
    5: "got tensor {} with a number of elements that contradicts the sizes",
    6: "does not support the values in tensor {}",
}
OUT_OF_MEMORY = 7


def cpp_compiler() -> str | None:
    """The C++ compiler to use: $CXX, or the first of g++, clang++ and c++ on the path; None without one."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    return None


@functools.cache
def load_kernels(dtype: torch.dtype) -> ctypes.CDLL | str:
    """The library of kernels for activations of `dtype`, or the reason why there is none, as text for messages.

    Compiles the library if necessary, which takes about four seconds. Several processes may do so at once.
    """
    compiler = cpp_compiler()
    if compiler is None:
        return "no C++ compiler was found; install g++ or clang++ for faster training"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"the kernels support float32 and bfloat16, not {dtype}"
    command = [compiler, *FLAGS, *(["-DBFLOAT16"] if dtype == torch.bfloat16 else [])]
    try:
        folder = kernels_dir()
        distrust = _make_private(folder)
        if distrust is not None:
            return distrust
        key = _key(compiler, command)
        return ctypes.CDLL(str(_find(folder, key) or _compile(folder, key, command)))
    except subprocess.CalledProcessError as error:  # for example, OpenMP is not installed
        lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        causes = (line for line in lines if "error" in line or "cannot find" in line)  # compiler's, linker's
        cause = next(causes, lines[-1] if lines else f"exit status {error.returncode}")
        return f"{compiler} could not compile the kernels ({cause}); check that it works and supports OpenMP"
    except (OSError, RuntimeError) as error:  # for example, the disk is full or there is no home folder
        cause = getattr(error, "strerror", None) or error
        return f"the kernels could not be stored ({cause}); set VITREOUS_DATA to a writable folder with free space"


def _make_private(folder: Path) -> str | None:
    """Creates the folder with access for its owner only. Returns the reason if the folder cannot be trusted.

    Earlier versions used the umask, which on many systems lets the user's group write. Anybody may have put a library
    into such a folder, so all libraries in it are removed and compiled again when needed.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not hasattr(os, "geteuid"):  # Windows
        return None
    status = folder.stat()
    if status.st_uid != os.geteuid():
        return f"{folder} belongs to another user; set VITREOUS_DATA to a folder of your own"
    folder.chmod(0o700)  # before the removal: from now on nobody else can add a library
    if status.st_mode & 0o022:
        for path in list(folder.iterdir()):
            if path.is_file() and is_kernel(path):
                path.unlink(missing_ok=True)  # another process may remove it too
    return None


def _key(compiler: str, command: Sequence[str]) -> str:
    """A hash of all that a library depends on: sources, command, compiler version and instruction set."""
    list_macros = [compiler, "-march=native", "-E", "-dM", "-x", "c++", "-"]
    macros = subprocess.run(list_macros, check=True, capture_output=True, input=b"").stdout
    digest = hashlib.sha256(b"\0".join([" ".join(command).encode(), macros]))
    for path in sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")]):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _find(folder: Path, key: str) -> Path | None:
    """The library of `key`, or None. Removes one that was altered or that belongs to another user."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            is_own = not hasattr(os, "geteuid") or path.lstat().st_uid == os.geteuid()
            if is_own and not path.is_symlink() and path.stem == f"{key}-{_digest(path)}":
                os.utime(path)
                return path
            path.unlink()
    return None


def _compile(folder: Path, key: str, command: Sequence[str]) -> Path:
    """Compiles the library of `key` into the folder, and removes files there that were not used for long."""
    for path in folder.iterdir():  # libraries of old versions, folders of compilations that were killed
        with contextlib.suppress(OSError):
            if is_kernel(path) and path.stat().st_mtime < time.time() - UNUSED_DAYS * 24 * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        library = Path(scratch) / "kernels.so"
        subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True, capture_output=True)
        return library.replace(folder / f"{key}-{_digest(library)}.so")  # atomic: others never see a part


def call(
    name: str,
    dtype: torch.dtype,
    tensors: Sequence[Tensor | None],
    sizes: Sequence[int],
    numbers: Sequence[float] = (),
) -> None:
    """Runs the kernel `name` for activations of `dtype`. The comment above each `KERNEL` lists its arguments.

    The kernel checks types and numbers of elements against `sizes` before it reads or writes any tensor.

    Args:
        tensors: contiguous and on the CPU; None, or a tensor without elements, for one that is left out.

    Raises:
        VitreousError: there are no kernels on this machine, or there is not enough memory.
        ValueError: the arguments contradict each other. Nothing was read or written.
    """
    kernels = load_kernels(dtype)
    if isinstance(kernels, str):
        raise VitreousError(
            f"The native kernels are not available ({kernels}); use the torch backend (--backend torch)."
        )
    descriptors = []
    for position, tensor in enumerate(tensors, 1):
        if tensor is None:
            descriptors += [0, 0, 0]
            continue
        if not tensor.is_cpu or not tensor.is_contiguous():
            raise ValueError(f"Kernel {name} needs tensor {position} to be contiguous and on the CPU.")
        descriptors += [tensor.data_ptr(), tensor.numel(), DTYPES.get(tensor.dtype, -1)]
    kernel = getattr(kernels, name)
    kernel.restype = ctypes.c_int64
    code = kernel(
        (ctypes.c_int64 * len(descriptors))(*descriptors),
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
        raise VitreousError("The native kernels ran out of memory; choose a smaller batch_size.")
    raise ValueError(f"Kernel {name} {ERRORS[kind].format(position or 'unknown')}.")
