"""Stand-in for the module that puts a network on the native kernels: it never accelerates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitreous.errors import VitreousError
from vitreous.model.vit import VisionTransformer


def unsupported(model: VisionTransformer, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> str | None:
    return "acceleration is not built yet"


def is_accelerated(model: VisionTransformer) -> bool:
    return False


def accelerate(model: VisionTransformer) -> VisionTransformer:
    raise VitreousError(f"Native kernels: off ({unsupported(model)}).")


def plain(model: VisionTransformer) -> VisionTransformer:
    return model
