"""The one error type whose text a user sees."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

FEW = 6  # names that are listed even where one of them is near


class VitreousError(Exception):
    """A failure that the user can mend; its text is one sentence naming the thing and the mend."""


def unknown(kind: str, name: object, known: Iterable[str]) -> VitreousError:
    """The error for a `name` that is not among the `known` ones, with the nearest that is."""
    known = sorted(known)
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    choices = ", ".join(known)
    if not near:
        hint = f"choose from {choices}."
    elif len(known) <= FEW:
        hint = f"did you mean {near[0]!r}? There are {choices}."
    else:
        hint = f"did you mean {near[0]!r}?"
    return VitreousError(f"There is no {kind} {name!r}; {hint}")
