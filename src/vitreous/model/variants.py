"""The options of the Vision Transformer and its named sizes, as tables that need no torch.

To add a variant, add an entry to `VARIANTS`; `tests/test_model.py` checks every entry.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from vitreous.errors import VitreousError, unknown
from vitreous.settings import check_setting, setting


@dataclass(frozen=True)
class Architecture:
    """Everything about the network that is not derived from the data.

    The defaults are those of the paper (arXiv 2010.11929). Each field says what it means and what it may be.

    Raises:
        VitreousError: a value is out of range, or two values do not fit together.
    """

    patch_size: int = setting(help="side of a patch in pixels; a power of 2 for stem=conv", low=1)
    embed_dim: int = setting(help="width of a token; a multiple of num_heads", low=1)
    depth: int = setting(help="number of encoder layers", low=1)
    num_heads: int = setting(help="attention heads in a layer", low=1)
    mlp_dim: int = setting(help="hidden width of the MLP in a layer", low=1)
    stem: str = setting(
        "linear",
        "patch embedding; linear is the paper's, conv a whitening and 3x3 convolutions",
        choices=("linear", "conv"),
    )
    stem_dims: tuple[int, ...] = setting((), "widths of the last stages of stem=conv, e.g. [26, 96]")
    stem_stride: int = setting(
        1, "stride of the whitening of stem=conv; chosen with patch_size", low=1, high=2
    )
    pool: str = setting(
        "cls",
        "what the head reads; cls is a class token, attention a learned weighted mean of the tokens",
        choices=("cls", "mean", "attention"),
    )
    pos_embed: str = setting(
        "learned",
        "position embedding; sine needs an embed_dim that is a multiple of 4",
        choices=("learned", "sine"),
    )
    embed_activation: str = setting(
        "none", "activation between patch and position embedding", choices=("none", "relu")
    )
    final_norm: bool = setting(True, "layer norm after the last layer")
    head_hidden: int = setting(0, "width of a hidden layer in the head, 0 for none", low=0)
    qkv_bias: bool = setting(True, "bias in the query, key and value projections")
    qk_norm: bool = setting(False, "normalise queries and keys")
    zero_init: bool = setting(False, "start each residual branch at zero")
    dropout: float = setting(
        0.0, "dropout probability after the position embedding and in the MLP", low=0, below=1
    )
    drop_path: float = setting(
        0.0, "stochastic depth: probability in the last layer, rising from 0 in the first", low=0, below=1
    )
    norm_eps: float = setting(1e-6, "epsilon of the layer norms", above=0)
    init: str = setting(
        "paper",
        "initial weights; paper is a truncated normal of 0.02, notebook is torch's own",
        choices=("paper", "notebook"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "stem_dims", tuple(self.stem_dims))  # JSON and TOML only have lists
        for field in dataclasses.fields(self):
            check_setting(field.name, getattr(self, field.name), field.metadata)
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
            if self.stem_stride >= self.patch_size:
                raise VitreousError(
                    f"stem_stride {self.stem_stride} leaves no stage of stem 'conv' with patch_size {self.patch_size}; "
                    f"set stem_stride to 1, or patch_size to {2 * self.stem_stride} or more."
                )
            if not self.stem_dims or min(self.stem_dims) < 1:
                raise VitreousError(
                    "stem 'conv' needs stem_dims, the widths of its last stages; set them, for example to 48, 128."
                )
        elif self.stem_dims:
            raise VitreousError(
                "stem_dims applies only to stem 'conv'; write 'stem_dims=[]' to empty it, or set stem to 'conv'."
            )
        elif self.stem_stride > 1:
            raise VitreousError("stem_stride applies only to stem 'conv'; set it to 1, or stem to 'conv'.")

    @property
    def stem_stages(self) -> int:
        """How many times the convolutional stem halves the whitened image; 0 for a linear stem."""
        return (self.patch_size // self.stem_stride).bit_length() - 1 if self.stem == "conv" else 0


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
            stem_dims=(26, 96),
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
