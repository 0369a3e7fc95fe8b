"""The weights of a plain VisionTransformer under the names of Hugging Face's `ViTForImageClassification`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vitreous.errors import VitreousError

# Our names (patterns) and theirs, as a checkpoint file has them; ".weight" or ".bias" follows on both sides.
RENAMES = {
    r"cls_token": r"vit.embeddings.cls_token",
    r"pos_embed": r"vit.embeddings.position_embeddings",
    r"patch_embed\.proj": r"vit.embeddings.patch_embeddings.projection",
    r"blocks\.(\d+)\.norm1": r"vit.encoder.layer.\1.layernorm_before",
    r"blocks\.(\d+)\.attn\.qkv": r"vit.encoder.layer.\1.attention.attention.{}",
    r"blocks\.(\d+)\.attn\.proj": r"vit.encoder.layer.\1.attention.output.dense",
    r"blocks\.(\d+)\.norm2": r"vit.encoder.layer.\1.layernorm_after",
    r"blocks\.(\d+)\.mlp\.fc1": r"vit.encoder.layer.\1.intermediate.dense",
    r"blocks\.(\d+)\.mlp\.fc2": r"vit.encoder.layer.\1.output.dense",
    r"norm": r"vit.layernorm",
    r"head": r"classifier",
}


def to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the `state_dict()` of a plain model: linear stem, class token, final norm, linear head.

    Saved as `model.safetensors` beside a `ViTConfig`, `ViTForImageClassification.from_pretrained` reads it.
    Raises `VitreousError` for a weight that network has no place for.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for ours, theirs in RENAMES.items():
            if match := re.fullmatch(rf"{ours}(?P<kind>\.weight|\.bias|)", name):
                places, kind = match.expand(theirs), match["kind"]
                break
        else:
            raise VitreousError(f"Hugging Face's ViT has no place for {name!r}; only plain models convert.")
        if "{}" in places:
            for place, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[places.format(place) + kind] = third.clone()
        else:
            renamed[places + kind] = tensor
    return renamed
