"""Describes a model layer by layer, as text for people and as JSON values for programs."""

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
    """The layers, parameters and FLOPs of the variant `name`, as JSON values. No weights are allocated.

    Args:
        num_classes, image_size: the variant's own by default; `image_size` in pixels.

    Returns:
        `layers`: for each, the `output` shape for one image without the batch dimension, the number of trained
        `parameters`, and `times`, how often it occurs; the encoder's equal blocks are listed once. `parameters` and
        `flops` are the whole model's. FLOPs are those of one forward pass of one image; a multiply-add counts as two.

    Raises:
        VitreousError: the name is unknown, or a size cannot work.
    """
    default = variant(name)
    return describe_architecture(
        name,
        default.architecture,
        default.image_size if image_size is None else image_size,
        default.num_classes if num_classes is None else num_classes,
    )


def describe_architecture(
    name: str, architecture: Architecture, image_size: int, num_classes: int
) -> dict[str, Any]:
    """Like `describe`, for any architecture; `name` is only its title."""
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
    """FLOPs of one forward pass of one image, by default of the model's `image_size`; a multiply-add counts as two.

    Runs a copy on the `meta` device, which computes nothing, with explicit attention, whose products are all counted.
    """
    with torch.device("meta"):
        twin = VisionTransformer(model.architecture, image_size or model.image_size, model.num_classes).eval()
        twin.set_attention("explicit")
        image = torch.zeros(1, 3, twin.image_size, twin.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(image)
    return counter.get_total_flops()


def render(description: dict[str, Any]) -> str:
    """The result of `describe` as text: a table of layers, then `parameters` and `flops`."""
    rows = [("layer", "times", "output", "parameters each")]
    for layer in description["layers"]:
        output = " x ".join(str(length) for length in layer["output"])
        rows.append((layer["layer"], str(layer["times"]), output, f"{layer['parameters']:,}"))
    width = [max(len(row[column]) for row in rows) for column in range(4)]
    size = description["image_size"]
    return "\n".join(
        [
            f"{description['name']}: {description['num_classes']} classes, images of {size} x {size}",
            "",
            *(f"{a:<{width[0]}}  {b:>{width[1]}}  {c:<{width[2]}}  {d:>{width[3]}}" for a, b, c, d in rows),
            "",
            f"parameters  {description['parameters']:,}",
            f"flops       {description['flops']:,}  (one image forward, a multiply-add counted as two)",
        ]
    )


def _layers(model: VisionTransformer) -> list[dict[str, Any]]:
    """The modules that hold weights, in the order in which an image passes through them."""
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
                # The defaults bind the loop's current values to this hook.
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
