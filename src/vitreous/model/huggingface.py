"""Renames the weights of the paper's network to those of Hugging Face's `ViTForImageClassification`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vitreous.errors import VitreousError

# Patterns of vitreous's names, and the names in a checkpoint of transformers. Both are followed by ".weight" or
# ".bias". "{}" stands for query, key and value, which are one matrix here and three there.
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
    """Renames the `state_dict()` of a model with linear stem, class token, final norm and linear head.

    Saved as `model.safetensors` beside a `ViTConfig`, the result can be read by
    `ViTForImageClassification.from_pretrained`.

    Raises:
        VitreousError: that network has no such weight.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, template in RENAMES.items():
            if match := re.fullmatch(rf"{pattern}(?P<kind>\.weight|\.bias|)", name):
                target, kind = match.expand(template), match["kind"]
                break
        else:
            raise VitreousError(
                f"Hugging Face's ViT has no weight for {name!r}; only models with a linear stem, class token, final "
                "norm and linear head convert."
            )
        if "{}" in target:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[target.format(part) + kind] = third.clone()
        else:
            renamed[target + kind] = tensor
    return renamed
