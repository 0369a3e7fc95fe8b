"""Classes of unequal size: what a training does about them.

`loss` trains the logits that a softmax with the classes' frequencies added explains (logit adjustment, Menon et al.,
arXiv 2007.07314). Without that addition the network then answers as if all classes were equally frequent. `sampler`
draws classes equally often (`vitreous.data.loader.balanced_order`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vitreous.errors import VitreousError

# Times as many images in the largest class as in the smallest. Above that, macro figures come first, and "auto" is
# "loss". Measured at ratios from 3 to 100, it gains more in the mean of the classes' recalls than it costs in accuracy
# (docs/images.md, records `unequal-…`).
UNEQUAL = 3.0


def is_unequal(counts: Iterable[int]) -> bool:
    """Whether the largest class has more than `UNEQUAL` times the images of the smallest one that has any."""
    present = [count for count in counts if count]
    return bool(present) and max(present) > UNEQUAL * min(present)


def choose_balance(balance: str, counts: Sequence[int], classes: Sequence[str]) -> tuple[str, str]:
    """Replaces "auto" by a treatment, with the reason.

    Args:
        balance: one of `request.BALANCES`.
        counts: training images of each class.
        classes: their names.

    Returns:
        "none", "loss" or "sampler", and the reason; "" where it was not "auto".

    Raises:
        VitreousError: a class has no training image, so nothing can make up for its size.
    """
    missing = [name for name, count in zip(classes, counts, strict=True) if not count]
    if balance != "auto":
        if balance != "none" and missing:
            raise VitreousError(
                f"balance={balance} needs training images of every class, and {missing[0]} has none. Add some, or give "
                "--balance none."
            )
        return balance, ""
    if missing:
        return "none", f"since {missing[0]} has no training image"
    most, least = max(counts), min(counts)
    sizes = (
        f"{classes[list(counts).index(most)]} has {most / least:.1f} times the training images of "
        f"{classes[list(counts).index(least)]} ({most:,} and {least:,})"
    )
    if is_unequal(counts):
        return "loss", f"since {sizes}. The option --balance none would favour the larger classes."
    return "none", f"since {sizes}, which is not more than {UNEQUAL:g}"
