"""Compares the network with two independent implementations: logits and gradients in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vitreous.errors import VitreousError
from vitreous.model.huggingface import to_huggingface
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer

TOLERANCE = 1e-9


def randomised(model: VisionTransformer) -> VisionTransformer:
    """Draws every weight at random, because an initial zero or one could hide a term."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output = model(images)
    logits = getattr(output, "logits", output)
    F.cross_entropy(logits, labels).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("path", ["explicit", "fused"])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_equals_hugging_face(tmp_path: Path, path: str, qkv_bias: bool) -> None:
    transformers = pytest.importorskip("transformers")
    architecture = Architecture(
        patch_size=4, embed_dim=24, depth=3, num_heads=4, mlp_dim=40, qkv_bias=qkv_bias, norm_eps=1e-3
    )
    ours = randomised(VisionTransformer(architecture, image_size=12, num_classes=7).double())
    ours.set_attention(path)
    config = transformers.ViTConfig(
        image_size=12,
        patch_size=4,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        num_labels=7,
        qkv_bias=qkv_bias,
        layer_norm_eps=1e-3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )

    def theirs(state: dict[str, Tensor], folder: Path) -> nn.Module:
        """Loads a state through a checkpoint file, as a user would, and checks that all names match."""
        config.save_pretrained(folder)
        save_file(to_huggingface(state), folder / "model.safetensors", metadata={"format": "pt"})
        # "sdpa", because the softmax of "eager" always runs in float32.
        model, report = transformers.ViTForImageClassification.from_pretrained(
            folder, dtype=torch.float64, output_loading_info=True, attn_implementation="sdpa"
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        return model

    images, labels = torch.randn(5, 3, 12, 12, dtype=torch.float64), torch.tensor([0, 3, 6, 1, 1])
    logits, grads = gradients(ours, images, labels)
    expected_logits, expected_grads = gradients(
        theirs(ours.state_dict(), tmp_path / "weights"), images, labels
    )
    assert (logits - expected_logits).abs().max() < TOLERANCE
    # The gradients, renamed like weights, must agree name by name.
    renamed = theirs(grads, tmp_path / "gradients").state_dict()
    assert renamed.keys() == expected_grads.keys()
    for name, expected in expected_grads.items():
        assert (renamed[name] - expected).abs().max() < TOLERANCE, name


def test_only_plain_models_convert_to_hugging_face() -> None:
    with pytest.raises(VitreousError, match=r"head\.0\.weight"):
        to_huggingface({"head.0.weight": torch.zeros(1)})


class NotebookNetwork(nn.Module):
    """The notebook's network, built from torch's modules: ReLU after the embedding, no final norm, hidden head."""

    def __init__(
        self, patch: int, side: int, dim: int, depth: int, heads: int, mlp: int, hidden: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(3 * patch * patch, dim)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 1 + (side // patch) ** 2, dim))
        layers = [
            nn.TransformerEncoderLayer(dim, heads, mlp, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 100))

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        tokens = torch.cat([self.cls.repeat(len(x), 1, 1), torch.relu(self.embed(patches))], dim=1)
        return self.head(self.encoder(tokens + self.position)[:, 0])


@pytest.mark.parametrize("path", ["explicit", "fused"])
def test_equals_the_notebooks_network(path: str) -> None:
    architecture = Architecture(
        patch_size=4,
        embed_dim=24,
        depth=3,
        num_heads=4,
        mlp_dim=40,
        embed_activation="relu",
        final_norm=False,
        head_hidden=20,
        norm_eps=1e-5,
        init="notebook",
    )
    ours = randomised(VisionTransformer(architecture, image_size=12, num_classes=100).double())
    ours.set_attention(path)
    reference = NotebookNetwork(patch=4, side=12, dim=24, depth=3, heads=4, mlp=40, hidden=20).double()

    pairs = {"cls": "cls_token", "position": "pos_embed"}
    for kind in ("weight", "bias"):
        pairs |= {f"embed.{kind}": f"patch_embed.proj.{kind}"}
        pairs |= {f"head.{i}.{kind}": f"head.{i}.{kind}" for i in (0, 2)}
        for i in range(3):
            layer, block = f"encoder.{i}", f"blocks.{i}"
            pairs |= {
                f"{layer}.self_attn.in_proj_{kind}": f"{block}.attn.qkv.{kind}",
                f"{layer}.self_attn.out_proj.{kind}": f"{block}.attn.proj.{kind}",
                f"{layer}.linear1.{kind}": f"{block}.mlp.fc1.{kind}",
                f"{layer}.linear2.{kind}": f"{block}.mlp.fc2.{kind}",
                f"{layer}.norm1.{kind}": f"{block}.norm1.{kind}",
                f"{layer}.norm2.{kind}": f"{block}.norm2.{kind}",
            }
    state = ours.state_dict()
    assert sorted(pairs.values()) == sorted(state)
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    reference.load_state_dict({theirs: state[name].reshape(shapes[theirs]) for theirs, name in pairs.items()})

    images, labels = torch.randn(5, 3, 12, 12, dtype=torch.float64), torch.tensor([0, 3, 60, 1, 99])
    logits, grads = gradients(ours, images, labels)
    expected_logits, expected_grads = gradients(reference, images, labels)
    assert (logits - expected_logits).abs().max() < TOLERANCE
    for theirs, expected in expected_grads.items():
        assert (grads[pairs[theirs]].reshape(expected.shape) - expected).abs().max() < TOLERANCE, theirs
    assert len(expected_grads) == len(grads) == len(pairs)


def test_the_reference_has_the_notebooks_parameter_counts() -> None:
    """The reference in this file is the notebook's network at full size too."""
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in NotebookNetwork(4, 32, 256, depth, 8, 512, 512).parameters())
            for depth in (24, 6)
        ]
    assert counts == [12_862_820, 3_374_948]
