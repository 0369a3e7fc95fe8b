"""The convolutional stem for small data: what the linear patch embedding is to the paper's network.

Letters in the shape comments: B batch, S side, C channels, G tokens along a side, N = G², D embed_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.errors import VitreousError
from vitreous.model.variants import Architecture

WHITENING_EPS = 5e-4  # on pictures of unit variance: keeps near-flat directions from being blown up


class ConvStem(nn.Module):
    """Local mixing before the encoder: a frozen whitening, then 3x3 convolutions that each halve the picture.

    Nothing is padded that need not be: of 32 pixels the whitening leaves 31, two stages 15 and 7, so there are 49
    tokens and not 64. That is a quarter less work for the same accuracy a step (`docs/log.md`).

    log2(patch_size) stages; `stem_dims` are the widths of the last ones. Where patch_size asks for more, each
    earlier stage has half the width of the next (at least 16); where for fewer, the first widths fall away.
    """

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        stages = a.patch_size.bit_length() - 1
        dims = list(a.stem_dims[-stages:])
        while len(dims) < stages:
            dims.insert(0, max(16, dims[0] // 2))
        self.whiten = Whitening()
        widths = [self.whiten.weight.shape[0], *dims]
        self.stages = nn.Sequential(
            *(ConvStage(widths[i], widths[i + 1], a, nn.MaxPool2d(2)) for i in range(stages))
        )
        self.mix = ConvStage(dims[-1], dims[-1], a, nn.Identity())
        self.proj = nn.Conv2d(dims[-1], a.embed_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.gelu(self.whiten(x)))  # [B, C, G, G]
        x = x + self.mix(x)
        return self.proj(x).flatten(2).transpose(1, 2)  # [B, D, G, G] -> [B, N, D]


class ConvStage(nn.Module):
    """3x3 convolution, pooling, layer norm over the channels, GELU."""

    def __init__(self, in_dim: int, out_dim: int, a: Architecture, pool: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False)
        self.pool = pool
        self.norm = nn.LayerNorm(out_dim, a.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x)).permute(0, 2, 3, 1)  # [B, S, S, C]
        return F.gelu(self.norm(x)).permute(0, 3, 1, 2)  # [B, C, S, S]


class Whitening(nn.Module):
    """A frozen 2x2 convolution to 24 channels: the patches' 12 principal directions, and their negatives."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(24, 3, 2, 2))
        nn.init.orthogonal_(self.weight[:12])
        self.weight[12:] = -self.weight[:12]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Whitens patches of `images`, float [B, 3, S, S] normalised; directions without variance stay finite.

        Raises:
            VitreousError: a pixel is not finite, as after division by a standard deviation of zero.
        """
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # [B, 3, S - 1, S - 1, 2, 2]
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        covariance = patches.mT @ patches / len(patches)  # of no patches, NaN
        if not covariance.isfinite().all():
            raise VitreousError(
                "The network cannot be fitted to these training images, since a channel has the same value in every "
                "pixel; give images that differ."
            )
        variances, directions = torch.linalg.eigh(covariance)
        # Rounding takes variances below zero where values are large; ordinary ones are far above the limit.
        scale = (variances + WHITENING_EPS).clamp(min=WHITENING_EPS / 2).sqrt()
        whitening = (directions / scale).mT.reshape(12, 3, 2, 2)
        self.weight.copy_(torch.cat([whitening, -whitening]))
