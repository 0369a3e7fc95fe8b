"""The data of a pickle, read without unpickling: nothing that the file names is looked up or called."""

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
    """What the pickle wants called: kept as a record for the reader to judge, never done."""

    function: Any
    arguments: Any
    state: Any = None


@dataclass(frozen=True)
class Global:
    """A name that the pickle wants imported."""

    name: str


def read_pickle(data: bytes) -> Any:
    """The containers, numbers and texts of a pickle; imports and calls become `Global` and `Call` records.

    Understands what dictionaries, lists and numpy arrays are written with. Texts of Python 2 come out as
    `str` in latin-1.

    Raises:
        ValueError: it holds anything else, or is malformed.
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
                        raise ValueError("a state for something that has none")
                    target.state = state
                case "STOP":
                    (result,) = stack
                    if result is _MARK:
                        raise ValueError("it breaks off")
                    return result
                case other:
                    raise ValueError(f"the instruction {other}")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"malformed: {error}") from error
    raise ValueError("it breaks off")


def _is_call(value: Any, *functions: str) -> bool:
    return isinstance(value, Call) and isinstance(value.function, Global) and value.function.name in functions


def bytes_of(value: Any) -> bytes:
    """Bytes as any Python has pickled them: as such, as a text of Python 2, or as text encoded in latin-1."""
    if _is_call(value, "_codecs.encode") and value.arguments[1:] == ("latin1",):
        value = value.arguments[0]
    if isinstance(value, str):
        value = value.encode("latin-1")
    if not isinstance(value, bytes):
        raise ValueError("no bytes where bytes should be")
    return value


def uint8_array(value: Any) -> np.ndarray:
    """The numpy array of uint8 that `read_pickle` met as a record, made from its bytes.

    Raises:
        ValueError: it is anything else than a plain uint8 array.
    """
    if not _is_call(value, "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"):
        raise ValueError("no numpy array where one should be")
    match value.state:
        case (1, tuple(shape), dtype, False | 0, content):
            pass
        case _:
            raise ValueError("an unknown form of numpy array")
    if not _is_call(dtype, "numpy.dtype") or dtype.arguments[0] not in ("u1", "uint8"):
        raise ValueError("a numpy array of another type than uint8")
    return np.frombuffer(bytes_of(content), np.uint8).reshape(shape)
