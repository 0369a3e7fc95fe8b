"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), to be read top-down.

Each field of `Architecture` beyond the paper is an option for small data. The state dict has the names and shapes
of timm's `VisionTransformer`.

Letters in the shape comments: B batch, S image side, P patch side, G tokens along a side, N tokens, D embed_dim,
H heads, K = D / H width of a head, C channels.
"""

from __future__ import annotations

import dataclasses
import math
from operator import index  # a size as a plain int; torch.jit warns if Python compares a traced size
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.errors import VitreousError, unknown
from vitreous.model.dropout import Dropout, DropPath
from vitreous.model.stem import ConvStem
from vitreous.model.variants import Architecture, variant

ATTENTION = ("explicit", "fused")


def create_model(
    name: str, *, image_size: int | None = None, num_classes: int | None = None, **overrides: Any
) -> VisionTransformer:
    """An untrained model of the variant `name`.

    `image_size` (pixels) and `num_classes` default to the variant's, and `overrides` replace fields of its
    `Architecture`. Raises `VitreousError` for an unknown name and for values that do not fit together.
    """
    default = variant(name)
    fields = [field.name for field in dataclasses.fields(Architecture)]
    for key in overrides:
        if key not in fields:
            raise unknown("model option", key, fields)
    return VisionTransformer(
        dataclasses.replace(default.architecture, **overrides),
        default.image_size if image_size is None else image_size,
        default.num_classes if num_classes is None else num_classes,
    )


class VisionTransformer(nn.Module):
    """Patches -> tokens -> pre-norm encoder -> pooled token -> class logits.

    `image_size` is the side of the square images in pixels. If `patch_size` does not divide it, the linear stem pads
    images with zeros at the bottom and on the right. Raises `VitreousError` for sizes that cannot work.
    """

    def __init__(self, architecture: Architecture, image_size: int, num_classes: int) -> None:
        super().__init__()
        if image_size < 1 or num_classes < 1:
            raise VitreousError(f"num_classes {num_classes} and image_size {image_size} must be above 0.")
        a = architecture
        self.architecture, self.image_size, self.num_classes = a, image_size, num_classes
        # The conv stem's unpadded 2x2 whitening removes one pixel; its stride and pooling then drop any remainder.
        grid = (image_size - 1) // a.patch_size if a.stem == "conv" else math.ceil(image_size / a.patch_size)
        if grid < 1:
            raise VitreousError(
                f"Images of {image_size} pixels are too small for stem 'conv' with patch_size {a.patch_size}; "
                "choose a smaller patch_size, stem 'linear', or larger images (--image-size)."
            )
        self.grid, self.num_tokens = grid, grid * grid + (a.pool == "cls")
        self.patch_embed: PatchEmbed | ConvStem = ConvStem(a) if a.stem == "conv" else PatchEmbed(a)
        self.embed_activation = nn.ReLU() if a.embed_activation == "relu" else nn.Identity()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, a.embed_dim)) if a.pool == "cls" else None
        if a.pos_embed == "learned":
            self.pos_embed: Tensor = nn.Parameter(torch.zeros(1, self.num_tokens, a.embed_dim))
        else:
            self.register_buffer("pos_embed", sine_position(grid, a.embed_dim, with_cls=a.pool == "cls"))
        self.pos_drop = Dropout(a.dropout)
        rates = [a.drop_path * i / max(a.depth - 1, 1) for i in range(a.depth)]
        self.blocks = cast("list[Block]", nn.ModuleList(Block(a, rate) for rate in rates))
        self.norm = nn.LayerNorm(a.embed_dim, a.norm_eps) if a.final_norm else nn.Identity()
        # No bias: the softmax over tokens would cancel it.
        self.attn_pool = nn.Linear(a.embed_dim, 1, bias=False) if a.pool == "attention" else None
        self.head: nn.Module = nn.Linear(a.head_hidden or a.embed_dim, num_classes)
        if a.head_hidden:
            self.head = nn.Sequential(nn.Linear(a.embed_dim, a.head_hidden), nn.ReLU(), self.head)
        self.set_attention("fused")
        self._init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalised images `x`, float [B, 3, S, S].

        S is usually `image_size`; for another size the positions are interpolated.
        """
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(self.norm(x)))

    def embed(self, x: Tensor) -> Tensor:
        """Images [B, 3, S, S] to the encoder's input, tokens [B, N, D]."""
        self.check_images(x)
        return self.to_tokens(self.patch_embed(x))

    def to_tokens(self, x: Tensor) -> Tensor:
        """Embedded patches [B, G², D] to tokens [B, N, D]: prepends the class token and adds positions."""
        x = self.embed_activation(x)
        grid = math.isqrt(x.shape[1])
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # [B, 1 + G², D]
        return self.pos_drop(x + self.position(grid))

    def check_images(self, x: Tensor) -> None:
        """Raises `VitreousError` unless x is [B, 3, S, S], with S = `image_size` or larger than a patch."""
        C, height, width = map(index, x.shape[1:]) if x.ndim == 4 else (0, 0, 0)
        S, P = self.image_size, self.architecture.patch_size
        if C != 3 or height != width or (width <= P and width != S):
            raise VitreousError(f"The model takes images [B, 3, {S}, {S}], not {[*x.shape]}; convert them.")

    def position(self, grid: int) -> Tensor:
        """Positions [1, N, D] for `grid` tokens along a side, interpolated from the model's own (section 3.2)."""
        if grid == self.grid:
            return self.pos_embed
        extra = self.num_tokens - self.grid**2  # 1 for a class token, whose position stays as it is
        plane = self.pos_embed[:, extra:].transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [1, D, G, G]
        plane = resize(plane, grid)
        return torch.cat([self.pos_embed[:, :extra], plane.flatten(2).transpose(1, 2)], dim=1)

    def pool(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] to one vector per image, [B, D]."""
        if self.cls_token is not None:
            return x[:, 0]
        if self.attn_pool is None:
            return x.mean(dim=1)
        weights = self.attn_pool(x).softmax(dim=1)  # [B, N, 1]: sequence pooling, arXiv 2104.05704
        return (weights.transpose(1, 2) @ x).squeeze(1)  # [B, 1, N] @ [B, N, D] -> [B, D]

    def set_attention(self, path: str) -> None:
        """Computes attention by "explicit" products or by torch's "fused" kernel; results agree up to rounding."""
        if path not in ATTENTION:
            raise unknown("attention path", path, ATTENTION)
        self.attention = path
        for block in self.blocks:
            block.attn.path = path

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> Tensor:
        """Attention of every layer and head for images [B, 3, S, S]: [depth, B, H, N, N].

        Row i says how much token i attends to each token, and sums to 1. The model's attention path does not matter.
        """
        x, maps = self.embed(x), []
        for block in self.blocks:
            maps.append(block.attn.weights(block.norm1(x)))
            x = block(x)
        return torch.stack(maps)

    def init_from_data(self, images: Tensor) -> None:
        """Fits the conv stem's whitening to normalised training images [B, 3, S, S]; a linear stem needs no fit.

        A few thousand images of all classes are enough. Raises `VitreousError` if a pixel is not finite.
        """
        if isinstance(self.patch_embed, ConvStem):
            self.patch_embed.whiten.fit(images)

    def _init_weights(self) -> None:
        notebook = self.architecture.init == "notebook"
        for token in (self.cls_token, self.pos_embed):
            if isinstance(token, nn.Parameter):
                nn.init.normal_(token) if notebook else nn.init.trunc_normal_(token, std=0.02)
        if not notebook:  # convolutions keep torch's default initialization
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        for block in self.blocks:
            if notebook:  # as in nn.MultiheadAttention; other layers keep torch's default
                nn.init.xavier_uniform_(block.attn.qkv.weight)
                for linear in (block.attn.qkv, block.attn.proj):
                    if linear.bias is not None:
                        nn.init.zeros_(linear.bias)
            if self.architecture.zero_init:
                for linear in (block.attn.proj, block.mlp.fc2):
                    nn.init.zeros_(linear.weight)
                    nn.init.zeros_(linear.bias)


class PatchEmbed(nn.Module):
    """The paper's linear stem: cuts images [B, 3, S, S] into patches and projects each to a token, [B, N, D]."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, a.embed_dim, a.patch_size, a.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        P, S = self.proj.kernel_size[0], index(x.shape[-1])
        x = F.pad(x, (0, -S % P, 0, -S % P)) if S % P else x
        # A matrix product with the convolution's weight; on a CPU it is faster than the convolution.
        return F.linear(patchify(x, P), self.proj.weight.flatten(1), self.proj.bias)


def resize(plane: Tensor, side: int) -> Tensor:
    """Resizes a plane [B, C, G, G] to [B, C, side, side], bilinear."""
    if not plane.is_cuda:
        return F.interpolate(plane, size=(side, side), mode="bilinear")
    # There the gradient of `interpolate` has no fixed order of additions, or takes a hundred small kernels. The
    # interpolation is linear in rows and in columns, so two products do the same.
    size = plane.shape[-1]
    eye = torch.eye(size, dtype=plane.dtype, device=plane.device)
    with torch.no_grad():
        rows = F.interpolate(eye[None], size=side, mode="linear")[0]  # [G, side]
    with torch.autocast("cuda", enabled=False):
        return rows.mT @ plane @ rows


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Images [B, C, S, S] to patches [B, N, C·P²], row by row; each patch is ordered by channel, row, column."""
    B, C, S, _ = x.shape
    G, P = S // patch_size, patch_size
    x = x.reshape(B, C, G, P, G, P).permute(0, 2, 4, 1, 3, 5)  # [B, G, G, C, P, P]
    return x.reshape(B, G * G, C * P * P)


def sine_position(grid: int, embed_dim: int, with_cls: bool) -> Tensor:
    """Fixed 2-D positions [1, N, D]: sines and cosines of the row, then of the column; 0 for a class token."""
    frequency = 10000 ** -(torch.arange(embed_dim // 4) / (embed_dim // 4))
    angle = torch.arange(grid)[:, None] * frequency  # [G, D/4]
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # [G, D/2]
    rows = wave[:, None].expand(-1, grid, -1)  # [G, G, D/2]
    columns = wave[None].expand(grid, -1, -1)
    position = torch.cat([rows, columns], dim=2).reshape(1, grid * grid, embed_dim)
    return F.pad(position, (0, 0, 1, 0)) if with_cls else position


class Block(nn.Module):
    """One pre-norm encoder layer on tokens [B, N, D]: attention and MLP, each with a residual connection."""

    def __init__(self, a: Architecture, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(a.embed_dim, a.norm_eps)
        self.attn = Attention(a)
        self.norm2 = nn.LayerNorm(a.embed_dim, a.norm_eps)
        self.mlp = Mlp(a)
        self.drop_path1 = DropPath(drop_path) if a.drop_path else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if a.drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q kᵀ / √K) v; `qk_norm` normalises q and k (arXiv 2302.05442)."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.num_heads, self.path = a.num_heads, "fused"
        self.qkv = nn.Linear(a.embed_dim, 3 * a.embed_dim, bias=a.qkv_bias)
        head_dim = a.embed_dim // a.num_heads
        self.q_norm = nn.LayerNorm(head_dim, a.norm_eps) if a.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, a.norm_eps) if a.qk_norm else nn.Identity()
        self.proj = nn.Linear(a.embed_dim, a.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        x = F.scaled_dot_product_attention(q, k, v) if self.path == "fused" else attention_weights(q, k) @ v
        return self.proj(x.transpose(1, 2).flatten(2))  # [B, H, N, K] -> [B, N, D]

    def weights(self, x: Tensor) -> Tensor:
        """How much each token (row) attends to each token (column), [B, H, N, N]."""
        q, k, _ = self._heads(x)
        return attention_weights(q, k)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, H, K]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, K]
        return self.q_norm(q), self.k_norm(k), v


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)).softmax(dim=-1)  # [B, H, N, N]


class Mlp(nn.Module):
    """The MLP of an encoder layer, applied to each token of [B, N, D]: linear, GELU, linear."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.fc1 = nn.Linear(a.embed_dim, a.mlp_dim)
        self.fc2 = nn.Linear(a.mlp_dim, a.embed_dim)
        self.drop1, self.drop2 = Dropout(a.dropout), Dropout(a.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(x)))))
