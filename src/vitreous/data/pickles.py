"""Reads the data in a pickle without unpickling it: no name is imported and no function is called."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

_MARK = object()
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING"}


@dataclass(eq=False)
class Call:
    """A function call in the pickle, kept as a record and never made."""

    function: Any
    arguments: Any
    state: Any = None


@dataclass(frozen=True)
class Global:
    """A name that the pickle would import."""

    name: str


def read_pickle(data: bytes) -> Any:
    """Reads the containers, numbers and strings of a pickle; imports and calls become `Global` and `Call` records.

    It knows the instructions that dictionaries, lists and numpy arrays are written with. Python 2 strings become
    `str`, decoded as latin-1.

    Raises:
        ValueError: the pickle contains anything else, or is malformed.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = len(stack) - 1
        while stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise IndexError("no mark")
        items = stack[start + 1 :]
        del stack[start:]
        return items

    try:
        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case name if name in _LITERALS:
                    stack.append(argument)
                case name if name in _VALUES:
                    stack.append(_VALUES[name])
                case "MARK":
                    stack.append(_MARK)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    size = int(opcode.name[-1])
                    stack[-size:] = [tuple(stack[-size:])]
                case "TUPLE":
                    items = since_mark()
                    stack.append(tuple(items))
                case "APPEND":
                    item = stack.pop()
                    stack[-1].append(item)
                case "APPENDS":
                    items = since_mark()
                    stack[-1].extend(items)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    stack[-1][key] = value
                case "SETITEMS":
                    items = since_mark()
                    stack[-1].update(zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(Global(str(argument).replace(" ", ".")))
                case "STACK_GLOBAL":
                    attribute, module = stack.pop(), stack.pop()
                    stack.append(Global(f"{module}.{attribute}"))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(Call(function, arguments))
                case "BUILD":
                    state, target = stack.pop(), stack[-1]
                    if not isinstance(target, Call) or target.state is not None:
                        raise ValueError("an object without state gets one")
                    target.state = state
                case "STOP":
                    (result,) = stack
                    if result is _MARK:
                        raise ValueError("it ends too early")
                    return result
                case other:
                    raise ValueError(f"unsupported instruction {other}")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"malformed: {error}") from error
    raise ValueError("it ends too early")


def _is_call(value: Any, *functions: str) -> bool:
    return isinstance(value, Call) and isinstance(value.function, Global) and value.function.name in functions


def bytes_of(value: Any) -> bytes:
    """The bytes that any version of Python pickled: as bytes, as a Python 2 string, or as text encoded in latin-1."""
    if _is_call(value, "_codecs.encode") and value.arguments[1:] == ("latin1",):
        value = value.arguments[0]
    if isinstance(value, str):
        value = value.encode("latin-1")
    if not isinstance(value, bytes):
        raise ValueError("it has no bytes where bytes are expected")
    return value


def uint8_array(value: Any) -> np.ndarray:
    """Builds the numpy array that `read_pickle` returned as a record.

    Raises:
        ValueError: `value` is not the record of a plain uint8 array.
    """
    if not _is_call(value, "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"):
        raise ValueError("it has no numpy array where one is expected")
    match value.state:
        case (1, tuple(shape), dtype, False | 0, content):
            pass
        case _:
            raise ValueError("it has a numpy array of an unknown form")
    if not _is_call(dtype, "numpy.dtype") or dtype.arguments[0] not in ("u1", "uint8"):
        raise ValueError("its numpy array is not uint8")
    return np.frombuffer(bytes_of(content), np.uint8).reshape(shape)
