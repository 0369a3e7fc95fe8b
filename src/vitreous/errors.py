"""The one error type whose text a user sees, and suggestions for a mistyped name."""

from __future__ import annotations

import re
from collections.abc import Iterable

FEW = 6  # names that are listed even where one of them is close
CLOSE = 0.75  # smallest similarity at which a name is suggested


class VitreousError(Exception):
    """A failure that the user can fix. Its text says in one or two short sentences what happened and what to do."""


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C during a run that has already said so, with the command that continues it."""


def unknown(kind: str, name: object, known: Iterable[str], see: str = "") -> VitreousError:
    """The error for a `name` that is not among the `known` ones.

    Args:
        kind: what the name should be, such as "recipe".
        known: all names that there are.
        see: where they are listed, such as "vitreous train --help"; by default the error lists them itself.
    """
    return VitreousError(f"There is no {kind} {name!r}; {suggestion(name, known, see)}")


def suggestion(name: object, known: Iterable[str], see: str = "") -> str:
    """The end of the sentence that refuses `name`: the close one of the `known` names, or where they all are."""
    known = sorted(known)
    choices = ", ".join(known)
    near = nearest(str(name), known)
    if near is None:
        return f"see {see}." if see and len(known) > FEW else f"choose from {choices}."
    return f"did you mean {near!r}?" + (f" The choices are {choices}." if len(known) <= FEW else "")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of the `known` names that `name` was probably meant to be, or None.

    It has few typing errors for its length in each part, or is the only name with `name` as a part: "smoothing"
    stands for "label_smoothing".
    """
    known = list(known)
    close = max(known, key=lambda candidate: similarity(name, candidate), default=None)
    if close is not None and similarity(name, close) >= CLOSE:
        return close
    word = name.lower().strip("-").replace("-", "_")
    holders = [
        candidate
        for candidate in known
        if word in re.split(r"[\W_]+", candidate.lower()) or word in candidate.split(" ")
    ]
    return holders[0] if len(word) >= 4 and len(holders) == 1 else None


def similarity(a: str, b: str) -> float:
    """1 for equal names, less for every typing error; of names such as "model.depth", that of the worse part."""
    parts_a, parts_b = (re.split(r"[. ]", text.lower().strip("-").replace("-", "_")) for text in (a, b))
    if len(parts_a) != len(parts_b):
        return 0.0
    return min(
        1 - typing_errors(x, y) / max(len(x), len(y), 1) for x, y in zip(parts_a, parts_b, strict=True)
    )


def typing_errors(a: str, b: str) -> int:
    """How many characters were left out, added, replaced or swapped with a neighbour between `a` and `b`."""
    rows = [list(range(len(b) + 1))]
    for i in range(1, len(a) + 1):
        row = [i]
        for j in range(1, len(b) + 1):
            cost = min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]
