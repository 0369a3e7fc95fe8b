"""The named sizes of the Vision Transformer, in one literal table that needs no torch.

To add a variant, add an entry to `VARIANTS`. The tests in `tests/test_model.py` cover every entry.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitreous.errors import VitreousError, unknown

CHOICES: dict[str, tuple[str, ...]] = {
    "stem": ("linear", "conv"),
    "pool": ("cls", "mean", "attention"),
    "pos_embed": ("learned", "sine"),
    "embed_activation": ("none", "relu"),
    "init": ("paper", "notebook"),
}


@dataclass(frozen=True)
class Architecture:
    """Everything about the network that is not derived from the data.

    The defaults are the paper's (arXiv 2010.11929). Widths are in channels, `patch_size` is in pixels, and `dropout`
    and `drop_path` are probabilities in [0, 1).

    Raises:
        VitreousError: a value is out of range, or values do not fit together.
    """

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    stem: str = (
        "linear"  # "linear" (the paper's patchify) | "conv" (whitened 2x2, then 3x3 stages with pooling)
    )
    stem_dims: tuple[int, ...] = ()  # widths of the last stages of the conv stem
    pool: str = "cls"  # "cls" | "mean" | "attention"
    pos_embed: str = "learned"  # "learned" | "sine"
    embed_activation: str = "none"  # "none" | "relu"
    final_norm: bool = True
    head_hidden: int = 0  # width of a hidden layer in the head; 0 for the plain linear head
    qkv_bias: bool = True
    qk_norm: bool = False
    zero_init: bool = False  # each residual branch starts as zero
    dropout: float = 0.0  # after the position, and twice in the MLP; never inside the attention
    drop_path: float = 0.0  # stochastic depth: the last layer's rate; the first layer's is 0
    norm_eps: float = 1e-6
    init: str = (
        "paper"  # "paper" (truncated normal, .02) | "notebook" (torch's own, tokens and position N(0, 1))
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "stem_dims", tuple(self.stem_dims))  # JSON and TOML know lists only
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise unknown(field, str(getattr(self, field)), choices)
        for field in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_dim"):
            if getattr(self, field) < 1:
                raise VitreousError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        if self.head_hidden < 0:
            raise VitreousError(
                f"head_hidden is {self.head_hidden}; it must be 0 (no hidden layer) or a width."
            )
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise VitreousError(f"{field} is {getattr(self, field)}; it must be at least 0 and below 1.")
        if self.norm_eps <= 0:
            raise VitreousError(f"norm_eps is {self.norm_eps}; it must be above 0.")
        if self.embed_dim % self.num_heads:
            raise VitreousError(
                f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}; "
                "choose an embed_dim that is a multiple of num_heads."
            )
        if self.pos_embed == "sine" and self.embed_dim % 4:
            raise VitreousError(
                f"pos_embed 'sine' needs an embed_dim that is a multiple of 4, not {self.embed_dim}; change one."
            )
        if self.stem == "conv":
            if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
                raise VitreousError(
                    f"stem 'conv' halves the image in each stage, so patch_size cannot be {self.patch_size}; "
                    "choose a power of 2, at least 2."
                )
            if not self.stem_dims or min(self.stem_dims) < 1:
                raise VitreousError(
                    "stem 'conv' needs stem_dims, the widths of its last stages; set them, for example to 48, 128."
                )
        elif self.stem_dims:
            raise VitreousError("stem_dims applies only to stem 'conv'; leave it out or set stem to 'conv'.")


@dataclass(frozen=True)
class Variant:
    """An architecture with its default image size in pixels and number of classes."""

    architecture: Architecture
    image_size: int
    num_classes: int


def _notebook(depth: int, dropout: float) -> Architecture:
    """The network of the notebook that this project is based on, including its departures from the paper."""
    return Architecture(
        patch_size=4,
        embed_dim=256,
        depth=depth,
        num_heads=8,
        mlp_dim=512,
        embed_activation="relu",
        final_norm=False,
        head_hidden=512,
        dropout=dropout,
        norm_eps=1e-5,
        init="notebook",
    )


VARIANTS: dict[str, Variant] = {
    # The default for trainings of a few minutes. Its convolutional stem is light: the encoder gets half of the FLOPs.
    "compact": Variant(
        Architecture(
            patch_size=4,
            embed_dim=96,
            depth=4,
            num_heads=3,
            mlp_dim=192,
            stem="conv",
            stem_dims=(28, 96),
            pool="attention",
            qk_norm=True,
            zero_init=True,
        ),
        image_size=32,
        num_classes=10,
    ),
    # Plain Vision Transformers for 32x32 images.  patch, dim, depth, heads, mlp
    "vit-xs4": Variant(Architecture(4, 256, 6, 4, 512), image_size=32, num_classes=10),
    "vit-ti4": Variant(Architecture(4, 192, 12, 3, 768), image_size=32, num_classes=10),
    "vit-s4": Variant(Architecture(4, 384, 12, 6, 1536), image_size=32, num_classes=10),
    # The paper's sizes B and L, and the smaller Ti and S of later work (DeiT, arXiv 2012.12877).
    "vit-ti16": Variant(Architecture(16, 192, 12, 3, 768), image_size=224, num_classes=1000),
    "vit-s16": Variant(Architecture(16, 384, 12, 6, 1536), image_size=224, num_classes=1000),
    "vit-b16": Variant(Architecture(16, 768, 12, 12, 3072), image_size=224, num_classes=1000),
    "vit-l16": Variant(Architecture(16, 1024, 24, 16, 4096), image_size=224, num_classes=1000),
    # The notebook's networks. Its CIFAR-10 network had 100 outputs by mistake; this one has 10.
    "notebook-cifar10": Variant(_notebook(depth=6, dropout=0.2), image_size=32, num_classes=10),
    "notebook-cifar100": Variant(_notebook(depth=24, dropout=0.1), image_size=32, num_classes=100),
}


def variant(name: str) -> Variant:
    """The variant `name`. Raises `VitreousError`, which suggests the nearest name, if there is none."""
    if name not in VARIANTS:
        raise unknown("model", name, VARIANTS)
    return VARIANTS[name]
