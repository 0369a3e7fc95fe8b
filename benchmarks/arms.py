"""One competitor of a speed benchmark in a process of its own: a network, the mode it runs in, and its step.

    python benchmarks/arms.py '{"by": "timm", "net": "vit-xs4", "task": "train", "modes": [{}]}'

It prints one line of JSON when it is warm. Then it reads lines with a number of steps, runs that many and prints the
seconds they took. Between lines it sleeps, so that competitors can take turns on an idle machine (`race.py`).

Given several modes, it first races them against each other and continues with the fastest.

Ours runs in the precision that `vitreous train` chooses, in inference too, so its inference rows compare the kernels
in bf16 where the machine is faster in it. `vitreous predict` always computes in float32, and so does an arm with
`predict`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# name: image side, patch, embed_dim, depth, num_heads, mlp_dim, classes, batch
NETS: dict[str, tuple[int, ...]] = {
    "vit-xs4": (32, 4, 256, 6, 4, 512, 10, 128),
    "vit-ti16": (224, 16, 192, 12, 3, 768, 1000, 16),
    "notebook-cifar10": (32, 4, 256, 6, 8, 512, 10, 256),
}
WARM_UP_STEPS = 2
CHOICE_ROUNDS, CHOICE_SECONDS = 3, 0.5  # of the race between the modes of one competitor


@dataclass(frozen=True)
class Mode:
    """How a network of another library is run; the defaults are the library as shipped.

    Attributes:
        tuned: the memory settings of `vitreous train`, and torch's fused AdamW.
        fused_attention: torch's fused attention rather than explicit products, where the library has both.
        precision: "float32"; "autocast" to bfloat16; or "bf16", with weights and inputs in bfloat16 as well.
        compiled: by torch.compile.
    """

    tuned: bool = False
    fused_attention: bool = True
    precision: str = "float32"
    compiled: bool = False

    def __str__(self) -> str:
        precision = {"float32": "float32", "autocast": "autocast to bf16", "bf16": "bf16 weights"}
        attention = "fused" if self.fused_attention else "explicit"
        return (
            f"{precision[self.precision]}, {attention} attention, {'compiled' if self.compiled else 'eager'}"
        )


class PlainEncoder(nn.Module):
    """An encoder layer as the notebook describes it: sequence first, torch's own attention module."""

    def __init__(self, dim: int, heads: int, mlp: int, dropout: float, fused_attention: bool) -> None:
        super().__init__()
        self.returns_weights = not fused_attention  # torch's default, which keeps it from its fused attention
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=self.returns_weights)[0]
        return x + self.mlp(self.norm2(x))


class PlainNetwork(nn.Module):
    """The notebook's network: patches, Linear, ReLU, class token first, learned position, encoder, head."""

    def __init__(self, net: str, fused_attention: bool = False, dropout: float = 0.2) -> None:
        super().__init__()
        side, self.patch, dim, depth, heads, mlp, classes, _ = NETS[net]
        self.embed = nn.Linear(3 * self.patch**2, dim)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 1 + (side // self.patch) ** 2, dim))
        self.dropout = nn.Dropout(dropout)
        layers = (PlainEncoder(dim, heads, mlp, dropout, fused_attention) for _ in range(depth))
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(dim, 512), nn.ReLU(), nn.Linear(512, classes))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        P = self.patch
        x = x.reshape(B, C, H // P, P, W // P, P).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
        x = torch.cat([self.cls.repeat(B, 1, 1), torch.relu(self.embed(x))], dim=1)
        x = self.dropout(x + self.position).transpose(0, 1)
        return self.head(self.encoder(x)[0])


def peer_network(by: str, net: str, fused_attention: bool) -> nn.Module:
    """The network `net` as the library `by` builds it, or the notebook's for "plain".

    Raises:
        ValueError: the library is unknown.
    """
    side, patch, dim, depth, heads, mlp, classes, _ = NETS[net]
    if by == "plain":
        return PlainNetwork(net, fused_attention)
    if by == "timm":
        import timm.layers
        from timm.models.vision_transformer import VisionTransformer

        timm.layers.set_fused_attn(fused_attention)
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

        settings: dict[str, Any] = {
            "image_size": side,
            "patch_size": patch,
            "hidden_size": dim,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": mlp,
            "num_labels": classes,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        config = ViTConfig(**settings)
        config._attn_implementation = "sdpa" if fused_attention else "eager"
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
        from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

        return TorchvisionTransformer(side, patch, depth, heads, dim, mlp, num_classes=classes)
    raise ValueError(f"unknown library {by!r}")


def our_network(arm: Mapping[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer, bool]:
    """Our network as `vitreous train` runs it, its optimizer, and whether it runs in bfloat16.

    With class-token pooling the kernels skip the last layer's work on tokens that the head does not read. With
    `all_tokens` they do that work too, as other libraries do: a hook on the final norm reads every token. With
    `predict` the network is the float32 copy that `vitreous predict` runs.
    """
    from vitreous import machine as machines
    from vitreous.bundle import predictor
    from vitreous.model.vit import create_model
    from vitreous.native.accelerate import unsupported
    from vitreous.plan import set_up
    from vitreous.recipe import OptimizerSection
    from vitreous.training.classifier import make_optimizer

    machine = machines.choose_precision(machines.detect_machine("cpu"), arm.get("precision", "auto"))
    bf16 = machine.precision == "bf16" and not arm.get("predict")
    model = create_model(arm["net"])
    if arm.get("predict"):
        return predictor(model), make_optimizer(model, OptimizerSection(), bf16=bf16), bf16
    machine = machines.choose_backend(machine, "auto", unsupported(model, (torch.float32, torch.bfloat16)))
    attention = machines.choose_attention(machine.device, machine.precision, model.num_tokens)
    set_up(model, machine.decided("", attention=attention))
    if arm.get("all_tokens"):
        read_all_tokens(model)
    return model, make_optimizer(model, OptimizerSection(), bf16=bf16), bf16


def read_all_tokens(model: nn.Module) -> None:
    """Makes the last layer compute every token, with unchanged logits."""
    tokens = model.num_tokens

    def check(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if output.shape[1] != tokens:
            raise RuntimeError(f"the final norm saw {output.shape[1]} of {tokens} tokens")

    model.get_submodule("norm").register_forward_hook(check)


def build(arm: Mapping[str, Any], mode: Mode | None = None) -> Callable[[], float]:
    """The step of a competitor, as a function that returns the loss.

    The memory settings belong to the whole process, so `main` makes them.

    Args:
        arm: `by` ("ours", "plain" or a library), `net`, `task` ("train" or "infer"); for ours also `precision`,
            `all_tokens`, and `predict` for inference as `vitreous predict` does it. Without `predict`, inference of
            ours runs in the precision of the training, which is bf16 autocast where the machine is faster in it.
        mode: how the network of another library is run; as shipped if None.
    """
    side, *_, classes, batch = NETS[arm["net"]]
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(0, classes, (batch,))
    train = arm["task"] == "train"
    if arm["by"] == "ours":
        model, optimizer, autocast = our_network(arm)
    else:
        mode = mode or Mode()
        autocast = mode.precision == "autocast"
        model = peer_network(arm["by"], arm["net"], mode.fused_attention)
        if mode.precision == "bf16":
            model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, weight_decay=0.03, fused=mode.tuned or None
        )
        if mode.compiled:
            model = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    model.train(train)

    def step() -> float:
        with contextlib.ExitStack() as stack:
            if not train:
                stack.enter_context(torch.inference_mode())
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = model(images)
            logits = getattr(output, "logits", output)
            loss = F.cross_entropy(logits.float(), labels)
            if train:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return loss.item()

    return step


def choose_mode(
    arm: Mapping[str, Any], modes: Sequence[Mode]
) -> tuple[Mode, Callable[[], float], dict[str, float]]:
    """Builds every mode, races them in this process in random order, and returns the fastest with its step.

    The last value is the median milliseconds per step of each mode. A mode that does not run here, such as a compiled
    one without a compiler, is left out.
    """
    steps: dict[Mode, Callable[[], float]] = {}
    repeats: dict[Mode, int] = {}
    for mode in modes:
        try:
            step = build(arm, mode)
            warm_up(step)
        except Exception as error:
            print(f"{arm['by']}, {mode}: left out ({type(error).__name__}: {error})", file=sys.stderr)
            continue
        steps[mode], repeats[mode] = step, max(1, round(CHOICE_SECONDS / seconds_of(step, 1)))
    times: dict[Mode, list[float]] = {mode: [] for mode in steps}
    generator = random.Random(0)
    for _ in range(CHOICE_ROUNDS):
        for mode in generator.sample(list(steps), len(steps)):
            times[mode].append(1000 * seconds_of(steps[mode], repeats[mode]) / repeats[mode])
    medians = {mode: statistics.median(values) for mode, values in times.items()}
    best = min(medians, key=lambda mode: medians[mode])
    return best, steps[best], {str(mode): round(ms, 2) for mode, ms in medians.items()}


def warm_up(step: Callable[[], float]) -> float:
    """Runs the first steps, which compile, allocate and page in; returns the last loss."""
    return [step() for _ in range(WARM_UP_STEPS)][-1]


def seconds_of(step: Callable[[], float], steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - start


def main() -> None:
    arm = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not mix with the answers
    modes = [Mode(**mode) for mode in arm.get("modes", [{}])]
    if (arm["by"] == "ours" and not arm.get("predict")) or any(mode.tuned for mode in modes):
        from vitreous.machine import keep_memory  # not at the top: a library as shipped runs without us

        keep_memory().__enter__()  # for as long as this process lives
    ready: dict[str, Any] = {"torch": torch.__version__}
    if len(modes) > 1:
        mode, step, ms = choose_mode(arm, modes)
        ready |= {"mode": asdict(mode), "mode_text": str(mode), "ms_by_mode": ms}
        gc.collect()  # the networks of the other modes
    else:
        step = build(arm, modes[0])
    ready["loss"] = warm_up(step)
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        print(seconds_of(step, int(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
