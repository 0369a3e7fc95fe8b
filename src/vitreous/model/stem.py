"""The convolutional stem for small data, which takes the place of the paper's linear patch embedding.

Letters in the shape comments: B batch, S image side, C channels, G tokens along a side, N = G² tokens, D embed_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.errors import VitreousError
from vitreous.model.variants import Architecture

JACOBI_SWEEPS = 30  # over all pairs; convergence is quadratic, so 12 x 12 take fewer than 10
WHITENING_EPS = 5e-4  # added to variances of images with unit variance: near-flat directions are not blown up
FLAT = 1e-9  # of the largest variance: a direction with less has rounding errors alone, as 8 of 12 for grey images


class ConvStem(nn.Module):
    """A frozen whitening, then 3x3 convolutions that each halve the image: [B, 3, S, S] to tokens [B, N, D].

    The whitening does not pad. It turns 32 pixels into 31 and two stages turn those into 15 and 7, so the encoder
    gets 49 tokens instead of 64: a quarter less work for the same accuracy per step (`docs/log.md`). With a
    `stem_stride` of 2 it turns 64 pixels into 31, so that they cost what 32 pixels do.

    The stem has log2(patch_size / stem_stride) stages, and `stem_dims` are the widths of the last ones. If it is too
    short, each earlier stage gets half the width of the next, at least 16. If it is too long, its first widths are not
    used.
    """

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        stages = a.stem_stages
        dims = list(a.stem_dims[-stages:])
        while len(dims) < stages:
            dims.insert(0, max(16, dims[0] // 2))
        self.whiten = Whitening(a.stem_stride)
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
    """3x3 convolution, pooling, layer norm over the channels, GELU: [B, in_dim, S, S] to [B, out_dim, S', S'].

    S' is S / 2, rounded down, with max pooling, and S without.
    """

    def __init__(self, in_dim: int, out_dim: int, a: Architecture, pool: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False)
        self.pool = pool
        self.norm = nn.LayerNorm(out_dim, a.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x)).permute(0, 2, 3, 1)  # [B, S, S, C]
        return F.gelu(self.norm(x)).permute(0, 3, 1, 2)  # [B, C, S, S]


class Whitening(nn.Module):
    """A frozen 2x2 convolution, [B, 3, S, S] to [B, 24, G, G], where G is (S - 1) / stride, rounded down.

    Its channels are the 12 principal directions of 2x2 patches, scaled to unit variance, and their negatives. Where
    images vary in fewer directions, rotations of those take the place of the others.
    """

    weight: Tensor

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("weight", torch.empty(24, 3, 2, 2))
        nn.init.orthogonal_(self.weight[:12])
        self.weight[12:] = self.weight[:12]
        self.weight[12:].mul_(-1)  # in place: on the meta device, a negation would load torch's compiler

    def forward(self, x: Tensor) -> Tensor:
        first = self.stride - 1  # from there, the patches are as many as pooling would leave of all patches
        return F.conv2d(x[..., first:, first:], self.weight, stride=self.stride)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Fits the directions to the 2x2 patches of normalised images, float [B, 3, S, S].

        Directions without variance would give channels of zeros: 16 of 24 for grey images. In their place come
        rotations of the other directions, which the GELU behind makes into something new. If fewer than two others
        are left, as for images that are all alike, they get a finite weight.

        Raises:
            VitreousError: there are no patches, or a pixel is not finite, as after normalisation by a standard
                deviation of zero.
        """
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # [B, 3, S - 1, S - 1, 2, 2]
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        covariance = patches.mT @ patches / len(patches)  # NaN if there are no patches
        if not covariance.isfinite().all():
            raise VitreousError(
                "The whitening cannot be fitted, since the normalised images have no pixels or pixels that are not "
                "finite; normalise by a standard deviation above zero."
            )
        variances, directions = _principal(covariance)
        # With large pixel values, rounding can make a variance negative. Ordinary variances are far above the limit.
        scale = (variances + WHITENING_EPS).clamp(min=WHITENING_EPS / 2).sqrt()
        rows = (directions / scale).mT  # [12, 12]
        flat = variances < FLAT * variances[-1]
        if 0 < flat.sum() < len(rows) - 1:
            rows[flat] = _rotations(rows[~flat], int(flat.sum()))
        whitening = rows.reshape(12, 3, 2, 2)
        self.weight.copy_(torch.cat([whitening, -whitening]))


def _rotations(rows: Tensor, count: int) -> Tensor:
    """`count` combinations of rows, float64 [R, 12] to [count, 12]: of the R rows of each random rotation in turn."""
    generator = torch.Generator().manual_seed(0)
    size = len(rows)
    turns = [torch.randn(size, size, generator=generator, dtype=rows.dtype) for _ in range(-(-count // size))]
    return torch.cat([torch.linalg.qr(turn).Q.to(rows) @ rows for turn in turns])[:count]


def _principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [12] and eigenvectors [12, 12] (in columns) of a finite symmetric matrix."""
    try:
        return torch.linalg.eigh(covariance)
    except torch.linalg.LinAlgError:  # LAPACK can fail to converge where many eigenvalues coincide
        return _jacobi(covariance)


def _jacobi(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` by rotations of Jacobi: slow, but it converges for every finite symmetric matrix."""
    size = len(matrix)
    scale = float(matrix.abs().max()) or 1.0
    a, vectors = (matrix + matrix.mT) / (2 * scale), torch.eye(size).to(matrix)
    for _ in range(JACOBI_SWEEPS):
        off_diagonal = a - a.diag().diag()
        if off_diagonal.abs().max() <= torch.finfo(a.dtype).eps:
            break
        for p in range(size):
            for q in range(p + 1, size):
                # The angle that makes a[p, q] zero, at most 45 degrees.
                angle = 0.5 * torch.atan2(2 * a[p, q], a[p, p] - a[q, q])
                if abs(angle) > torch.pi / 4:
                    angle -= torch.sign(angle) * torch.pi / 2
                cos, sin = torch.cos(angle), torch.sin(angle)
                rotation = torch.eye(size).to(a)
                rotation[p, p], rotation[q, q], rotation[p, q], rotation[q, p] = cos, cos, -sin, sin
                a = rotation.mT @ a @ rotation
                vectors = vectors @ rotation
    values, order = a.diag().sort()
    return values * scale, vectors[:, order]
