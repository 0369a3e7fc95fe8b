"""A model described layer by layer, for people and programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitreous.model.stem import ConvStem
from vitreous.model.variants import Architecture, variant
from vitreous.model.vit import VisionTransformer


def describe(name: str, num_classes: int | None = None, image_size: int | None = None) -> dict[str, Any]:
    """What the variant `name` is made of, as plain JSON values; nothing is allocated, so any size is instant.

    Each of `layers` has its `output` shape for one picture (without the batch dimension) and its number of
    trained `parameters`; the encoder's equal blocks stand once, with `times`. `parameters` and `flops` (one
    picture forward, a multiply-add as two) are the whole model's. Raises `VitreousError` for an unknown
    name.
    """
    chosen = variant(name)
    return describe_architecture(
        name,
        chosen.architecture,
        chosen.image_size if image_size is None else image_size,
        chosen.num_classes if num_classes is None else num_classes,
    )


def describe_architecture(
    name: str, architecture: Architecture, image_size: int, num_classes: int
) -> dict[str, Any]:
    """As `describe`, of any architecture."""
    with torch.device("meta"):
        model = VisionTransformer(architecture, image_size, num_classes).eval()
    return {
        "name": name,
        "image_size": image_size,
        "num_classes": num_classes,
        "layers": _layers(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": count_flops(model),
    }


def count_flops(model: VisionTransformer, image_size: int | None = None) -> int:
    """FLOPs of one forward pass of one picture, a multiply-add counted as two.

    Counted on a twin without memory, by the explicit attention path, so that it is instant, leaves `model`
    alone and misses no product.
    """
    with torch.device("meta"):
        twin = VisionTransformer(model.architecture, image_size or model.image_size, model.num_classes).eval()
        twin.set_attention("explicit")
        picture = torch.zeros(1, 3, twin.image_size, twin.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(picture)
    return counter.get_total_flops()


def render(description: dict[str, Any]) -> str:
    """The text of `describe`'s result: a table of layers, then `parameters` and `flops`."""
    rows = [("layer", "times", "output", "parameters each")]
    for layer in description["layers"]:
        output = " x ".join(str(length) for length in layer["output"])
        rows.append((layer["layer"], str(layer["times"]), output, f"{layer['parameters']:,}"))
    width = [max(len(row[column]) for row in rows) for column in range(4)]
    size = description["image_size"]
    return "\n".join(
        [
            f"{description['name']}: {description['num_classes']} classes, pictures of {size} x {size}",
            "",
            *(f"{a:<{width[0]}}  {b:>{width[1]}}  {c:<{width[2]}}  {d:>{width[3]}}" for a, b, c, d in rows),
            "",
            f"parameters  {description['parameters']:,}",
            f"flops       {description['flops']:,}  (one picture forward, a multiply-add counted as two)",
        ]
    )


def _layers(model: VisionTransformer) -> list[dict[str, Any]]:
    """The parts that hold weights, in the order in which one picture runs through them."""
    layers: list[dict[str, Any]] = []

    def add(name: str, times: int, output: Tensor, weights: Iterable[Tensor]) -> None:
        parameters = sum(weight.numel() for weight in weights)
        layers.append(
            {"layer": name, "times": times, "output": list(output.shape[1:]), "parameters": parameters}
        )

    def watch(prefix: str, parent: nn.Module, times: int = 1) -> None:
        for name, child in parent.named_children():
            if child is model.blocks:
                watch("blocks.*.", model.blocks[0], times=len(model.blocks))
            elif isinstance(child, ConvStem | nn.Sequential):
                watch(f"{prefix}{name}.", child)
            elif child.state_dict():
                # The loop's variables as defaults, so that each hook keeps its own.
                child.register_forward_hook(
                    lambda module, _, output, name=prefix + name, times=times: add(
                        name, times, output, module.parameters()
                    )
                )

    def add_tokens(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        for name in ("cls_token", "pos_embed"):
            if getattr(model, name) is not None:
                add(name, 1, output, [token for key, token in model.named_parameters() if key == name])

    watch("", model)
    model.pos_drop.register_forward_hook(add_tokens)
    with torch.no_grad():
        model(torch.zeros(1, 3, model.image_size, model.image_size, device=model.pos_embed.device))
    return layers
