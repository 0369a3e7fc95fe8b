"""One competitor of a speed benchmark, in a process of its own: a network, how it is run, and its step.

    python benchmarks/arms.py '{"by": "timm", "net": "vit-xs4", "mode": "shipped", "task": "train"}'

It says "ready" when it has warmed up. Then, for each line with a number of steps, it runs them and prints the seconds
they took. Between lines it sleeps, so that competitors take turns on an idle machine (`race.py`).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# name: side, patch, embed_dim, depth, num_heads, mlp_dim, classes, batch
NETS: dict[str, tuple[int, ...]] = {
    "vit-xs4": (32, 4, 256, 6, 4, 512, 10, 256),
    "vit-ti16": (224, 16, 192, 12, 3, 768, 1000, 32),
    "notebook-cifar10": (32, 4, 256, 6, 8, 512, 10, 256),
}


class PlainEncoder(nn.Module):
    """A layer of the notebook's network, written as it describes it: sequence first, attention as it comes."""

    def __init__(self, dim: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.mlp(self.norm2(x))


class Plain(nn.Module):
    """The notebook's network: patches, Linear, ReLU, class token first, learned position, encoders, head."""

    def __init__(self, net: str, dropout: float = 0.2) -> None:
        super().__init__()
        side, self.patch, dim, depth, heads, mlp, classes, _ = NETS[net]
        self.embed = nn.Linear(3 * self.patch**2, dim)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 1 + (side // self.patch) ** 2, dim))
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.Sequential(*(PlainEncoder(dim, heads, mlp, dropout) for _ in range(depth)))
        self.head = nn.Sequential(nn.Linear(dim, 512), nn.ReLU(), nn.Linear(512, classes))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        P = self.patch
        x = x.reshape(B, C, H // P, P, W // P, P).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
        x = torch.cat([self.cls.repeat(B, 1, 1), torch.relu(self.embed(x))], dim=1)
        x = self.dropout(x + self.position).transpose(0, 1)
        return self.head(self.encoder(x)[0])


def peer(by: str, net: str, fused: bool) -> nn.Module:
    """The same network as another library builds it; `fused` chooses its attention where it has two."""
    side, patch, dim, depth, heads, mlp, classes, _ = NETS[net]
    if by == "timm":
        import timm.layers
        from timm.models.vision_transformer import VisionTransformer

        timm.layers.set_fused_attn(fused)
        return VisionTransformer(
            img_size=side,
            patch_size=patch,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp / dim,
            num_classes=classes,
        )
    if by == "transformers":
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            image_size=side,
            patch_size=patch,
            hidden_size=dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=mlp,
            num_labels=classes,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config._attn_implementation = "sdpa" if fused else "eager"
        return ViTForImageClassification(config)
    if by == "vit-pytorch":
        from vit_pytorch import ViT

        return ViT(
            image_size=side,
            patch_size=patch,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp,
            dim_head=dim // heads,
            num_classes=classes,
        )
    if by == "torchvision":
        from torchvision.models.vision_transformer import VisionTransformer as Theirs

        return Theirs(side, patch, depth, heads, dim, mlp, num_classes=classes)
    raise ValueError(f"there is no peer {by!r}")


def ours(arm: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer, bool]:
    """Our network as `vitreous train` runs it."""
    from vitreous import machine as machines
    from vitreous.model.vit import create_model
    from vitreous.native.accelerate import unsupported
    from vitreous.plan import set_up
    from vitreous.recipe import OptimizerSection
    from vitreous.training.classifier import make_optimizer

    machines.keep_memory().__enter__()  # for as long as this process lives
    machine = machines.choose_precision(machines.detect_machine("cpu"), arm.get("precision", "auto"))
    bf16 = machine.precision == "bf16"
    model = create_model(arm["net"])
    machine = machines.choose_backend(machine, "auto", unsupported(model, (torch.float32, torch.bfloat16)))
    attention = machines.choose_attention(machine.device, machine.precision, model.num_tokens)
    set_up(model, machine.decided("", attention=attention))
    return model, make_optimizer(model, OptimizerSection(), bf16=bf16), bf16


def build(arm: dict[str, Any]) -> Callable[[], float]:
    """The arm's step, a function that returns the loss. Modes of others: "shipped" is eager float32 with torch's
    AdamW as it comes; "best" adds our memory settings, torch's fused AdamW, and what the arm's keys ask for."""
    side, *_, classes, batch = NETS[arm["net"]]
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(0, classes, (batch,))
    train = arm["task"] == "train"
    if arm["by"] == "ours":
        model, optimizer, bf16 = ours(arm)
    else:
        best, bf16 = arm["mode"] == "best", bool(arm.get("bf16"))
        if best:
            from vitreous.machine import keep_memory

            keep_memory().__enter__()
        model = (
            Plain(arm["net"]) if arm["by"] == "plain" else peer(arm["by"], arm["net"], arm.get("fused", True))
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.03, fused=best or None)
        if arm.get("compile"):
            model = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    model.train(train)

    def run() -> float:
        with contextlib.ExitStack() as stack:
            if not train:
                stack.enter_context(torch.inference_mode())
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = model(images)
            logits = getattr(output, "logits", output)
            loss = F.cross_entropy(logits.float(), labels)
            if train:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return loss.item()

    return run


def main() -> None:
    arm = json.loads(sys.argv[1])
    run = build(arm)
    for _ in range(3):
        loss = run()
    print(json.dumps({"ready": True, "loss": loss, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            run()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
