"""Our own kernels for CPUs (`kernels.cpp`): compiled on the user's machine when first needed, and called."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.errors import VitreousError

SOURCE = Path(__file__).with_name("kernels.cpp")
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
ROOM = 16  # as in kernels.cpp: no row may be shorter


def cpp_compiler() -> str | None:
    """The C++ compiler of this machine, or None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    return None


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for activations of `dtype`, or None where there are none."""
    found = made(dtype)
    return None if isinstance(found, str) else found


@functools.cache
def made(dtype: torch.dtype) -> ctypes.CDLL | str:
    """The kernels for activations of `dtype`, or why there are none.

    They lie in `~/.cache/vitreous` under a name that says what they were made of, by which compiler and for which
    processor; so they are made once, in some three seconds.
    """
    compiler = cpp_compiler()
    if compiler is None:
        return "there is no C++ compiler; installing g++ or clang++ makes training faster"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"they do not know {dtype}"
    command = [compiler, *FLAGS, *(["-DBFLOAT16"] if dtype == torch.bfloat16 else [])]
    try:
        about = [
            compiler,
            "-march=native",
            "-E",
            "-dM",
            "-x",
            "c++",
            os.devnull,
        ]  # its version, the processor's units
        made_of = subprocess.run(about, check=True, capture_output=True).stdout
        key = hashlib.sha256(
            b"\0".join([SOURCE.read_bytes(), " ".join(command).encode(), made_of])
        ).hexdigest()
        target = Path(f"~/.cache/vitreous/kernels/{key[:20]}.so").expanduser()
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                fresh = Path(folder) / "kernels.so"
                subprocess.run([*command, str(SOURCE), "-o", str(fresh)], check=True, capture_output=True)
                fresh.replace(target)  # whole or not at all
        return ctypes.CDLL(str(target))
    except subprocess.CalledProcessError as error:  # no OpenMP, say: torch will do
        told = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        return f"{compiler} could not make them ({next((line for line in told if 'error' in line), error)})"
    except (OSError, RuntimeError) as error:  # no home, a full disk
        return f"they could not be kept in ~/.cache/vitreous ({getattr(error, 'strerror', None) or error})"


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Runs a kernel: tensors, which are contiguous, go by their address, numbers as int64 and float, None as null,
    what ctypes made as it is.

    Raises:
        VitreousError: there are no kernels here, though the run was begun with them.
    """
    kernels = library(dtype)
    if kernels is None:
        raise VitreousError(
            "This run was begun with kernels that a C++ compiler made; install g++ or clang++ to continue it."
        )
    getattr(kernels, name)(*map(_plain, arguments))


def _plain(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    return ctypes.c_float(argument) if isinstance(argument, float) else argument
