"""Native kernels for a plain network, and back."""

from __future__ import annotations

import torch

from vitreous.errors import VitreousError
from vitreous.model.vit import VisionTransformer
from vitreous.native.build import made
from vitreous.native.ops import fits


def unsupported(model: VisionTransformer, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> str | None:
    """Why the kernels cannot take this network here, or None."""
    if not fits(model.architecture):
        return "they do not support this architecture"
    return next((found for dtype in dtypes if isinstance(found := made(dtype), str)), None)


def accelerate(model: VisionTransformer) -> VisionTransformer:
    """The same network with native kernels swapped in. Raises `VitreousError` where they cannot take it."""
    if why := unsupported(model):
        raise VitreousError(f"The native kernels cannot be used ({why}).")
    model.set_attention("native")
    return model


def plain(model: VisionTransformer) -> VisionTransformer:
    """The same network without them."""
    model.set_attention("explicit")
    return model


def is_accelerated(model: VisionTransformer) -> bool:
    return model.attention_path == "native"
