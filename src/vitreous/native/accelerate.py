"""A network that runs on the kernels of this package, its weights and their names as they were.

`accelerate` turns a `VisionTransformer` into a `NativeVisionTransformer`, in place, and `plain` turns it back. The
kernels take three parts of it: convolutional stem, encoder, and final norm with attention pooling. What they compute
is fixed, so each part is held against an allow-list first: exact module types, equal sizes, eps and rates, biases where
they are expected. That structure is decided once; each forward looks whether it still stands, and at hooks, modes,
types and devices. A part that fails goes torch's way, so that nothing a person put into a network is ignored.

Letters in the shape comments: B batch, N tokens, D embed_dim, H heads, M mlp_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from vitreous.errors import VitreousError
from vitreous.model.dropout import Dropout, keys_of
from vitreous.model.stem import ConvStage, ConvStem, Whitening
from vitreous.model.vit import Attention, Block, Mlp, VisionTransformer
from vitreous.native import ops
from vitreous.native.build import MIN_WIDTH, load_kernels


class NativeVisionTransformer(VisionTransformer):
    """A `VisionTransformer` whose forward pass calls the kernels wherever they compute the same."""

    structure: Structure

    def forward(self, x: Tensor) -> Tensor:
        """As `VisionTransformer.forward`; raises `VitreousError` where it is traced or exported."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            raise VitreousError(
                "An accelerated model cannot be traced or exported; call vitreous.native.accelerate.plain(model) first."
            )
        foreign = any_global_hook() or functorch_is_active() or forward_ad._current_level >= 0
        bf16 = activation_is_bf16()
        if foreign or bf16 is None or not takes_tensor(x) or x.ndim != 4 or not x.shape[0]:
            return super().forward(x)
        stem, encoder, pool = (part and part.weights() for part in self.structure)
        if stem and not x.requires_grad and not stem[0].requires_grad:  # the whitening, which has no gradient
            x = self._embed_natively(x, stem, bf16)
        else:
            x = self.embed(x)
        rate = common_rate(self.blocks) if encoder else None
        if encoder and rate is not None and takes_tensor(x) and x.shape[1] >= MIN_WIDTH:
            drawn = [keys_of(dropout, x) for dropout in dropouts(self.blocks)] if rate else []
            keys = torch.stack(drawn).view(-1, 2, x.shape[0]) if drawn else None
            wanted = 1 if self.cls_token is not None else x.shape[1]
            attn, norm = self.blocks[0].attn, self.blocks[0].norm1
            x = ops.encode(x, encoder, keys, rate, wanted, attn.num_heads, norm.eps, bf16)
        else:
            for block in self.blocks:
                x = block(x)
        if pool and takes_tensor(x):
            weight, bias, query = pool
            return self.head(ops.pool(x, weight, bias, query, cast(nn.LayerNorm, self.norm).eps, bf16))
        return self.head(self.pool(self.norm(x)))

    def _embed_natively(self, x: Tensor, weights: list[Any], bf16: bool) -> Tensor:
        self.check_pictures(x)
        eps = cast(ConvStem, self.patch_embed).mix.norm.eps
        position = self.position((x.shape[2] - 1) // self.architecture.patch_size)
        direct = self.cls_token is None and isinstance(self.embed_activation, nn.Identity)
        if direct and takes_tensor(position):  # then the kernel adds it
            return self.pos_drop(ops.stem(x, position, weights, eps, bf16))
        return self.place(ops.stem(x, None, weights, eps, bf16))


def accelerate(model: VisionTransformer) -> VisionTransformer:
    """The same object with the kernels swapped in.

    Raises:
        VitreousError: they cannot take it; the sentence says why.
    """
    if is_accelerated(model):
        return model
    if reason := unsupported(model):
        raise VitreousError(f"The native kernels cannot take this network: {reason}.")
    model.__class__ = NativeVisionTransformer
    cast(NativeVisionTransformer, model).structure = find_structure(model)
    return model


def plain(model: VisionTransformer) -> VisionTransformer:
    """The same object as torch's modules and nothing else."""
    if is_accelerated(model):
        del cast(NativeVisionTransformer, model).structure
        model.__class__ = VisionTransformer
    return model


def is_accelerated(model: nn.Module) -> bool:
    return isinstance(model, NativeVisionTransformer)


def unsupported(model: VisionTransformer, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> str | None:
    """Why the kernels cannot take a network, to stand behind a colon; None where they can.

    Args:
        dtypes: the activations' types that are wanted: float32, and bfloat16 for training under autocast.
    """
    if type(model) not in (VisionTransformer, NativeVisionTransformer):
        return f"{type(model).__name__} may compute something else than VisionTransformer"
    if any(not p.is_cpu for p in model.parameters()):
        return "it is not on a CPU"
    if more := members(model) - MEMBERS[VisionTransformer]:
        return f"they do not know its {', '.join(sorted(more))}"
    if reason := encoder_reason(model):
        return reason
    for dtype in dtypes:
        found = load_kernels(dtype)
        if isinstance(found, str):
            return found
    return None


# ---- structure: the allow-list

# Every part of each module that the kernels reckon with. One more would be computed by torch and not by them, so an
# option that is added to the network keeps them off until they know it.
MEMBERS: dict[type, set[str]] = {
    VisionTransformer: {
        "patch_embed", "embed_activation", "cls_token", "pos_embed", "pos_drop", "blocks", "norm", "attn_pool", "head",
    },
    Block: {"norm1", "attn", "norm2", "mlp", "drop_path"},
    Attention: {"qkv", "q_norm", "k_norm", "proj"},
    Mlp: {"fc1", "fc2", "drop1", "drop2"},
    ConvStem: {"whiten", "stages", "mix", "proj"},
    ConvStage: {"conv", "pool", "norm"},
}  # fmt: skip
CONSTANTS: dict[type, tuple[str, ...]] = {
    nn.LayerNorm: ("eps",),
    Attention: ("num_heads",),
    nn.Conv2d: ("stride", "padding", "dilation", "padding_mode"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Part:
    """Modules whose work the kernels do, as they were found, and where their weights are, in the kernels' order."""

    modules: tuple[tuple[nn.Module, type, list[tuple[str, nn.Module | None]]], ...]  # module, type, children
    places: tuple[tuple[nn.Module, str], ...]
    shapes: tuple[torch.Size | None, ...]
    constants: tuple[
        tuple[nn.Module, str, Any], ...
    ]  # what else the kernels reckon with: module, name, value

    def weights(self) -> list[Any] | None:
        """The weights as they are now; None where something was changed, hooked, compiled or moved."""
        for module, kind, children in self.modules:
            own = module.__dict__
            if (
                type(module) is not kind
                or list(own["_modules"].items()) != children
                or any(own[name] for name in HOOKS)
                or "forward" in own
                or module._compiled_call_impl is not None
            ):
                return None
        if any(module.__dict__[name] != value for module, name, value in self.constants):
            return None
        found = [getattr(module, name) for module, name in self.places]
        same = all(
            shape is None if w is None else w.shape == shape and takes_tensor(w)
            for w, shape in zip(found, self.shapes, strict=True)
        )
        return found if same else None


class Structure(NamedTuple):
    """The parts of a network that are on the allow-list."""

    stem: Part | None
    encoder: Part
    pool: Part | None


def find_structure(model: VisionTransformer) -> Structure:
    """The parts of a network whose encoder is known, which is where most of the work is."""
    stem = model.patch_embed
    in_blocks = [place for block in model.blocks for place in block_places(block)]
    return Structure(
        stem=part([stem, model.embed_activation], stem_places(stem)) if stem_fits(stem) else None,
        encoder=part([cast(nn.ModuleList, model.blocks)], in_blocks),
        pool=part([model.norm, model.attn_pool], pool_places(model)) if pool_fits(model) else None,
    )


def part(roots: Sequence[nn.Module | None], places: Sequence[tuple[nn.Module, str]]) -> Part:
    modules = [module for root in roots if root is not None for module in root.modules()]
    constants = [(module, name) for module in modules for name in CONSTANTS.get(type(module), ())]
    return Part(
        tuple((module, type(module), list(module._modules.items())) for module in modules),
        tuple(places),
        tuple(None if (w := getattr(module, name)) is None else w.shape for module, name in places),
        tuple((module, name, getattr(module, name)) for module, name in constants),
    )


def encoder_reason(model: VisionTransformer) -> str | None:
    """Why the encoder is not on the allow-list; None where it is."""
    if type(model.blocks) is not nn.ModuleList or not len(model.blocks):
        return "its blocks are no plain list"
    first = model.blocks[0]
    if any(type(block) is Block and type(block.drop_path) is not nn.Identity for block in model.blocks):
        return "they do not know stochastic depth (drop_path)"
    if not all(map(block_is_known, model.blocks)):
        return "its blocks were changed"
    D, H, M = first.attn.qkv.in_features, first.attn.num_heads, first.mlp.fc1.out_features
    if any(sizes(block) != sizes(first) for block in model.blocks) or len(sizes(first)[0]) > 1:
        return "its blocks are unlike each other"
    if D % H or min(D // H, M) < MIN_WIDTH or D // H % 2:
        return f"they need heads of at least {MIN_WIDTH} channels, an even number, and as large an MLP"
    if model.num_tokens < MIN_WIDTH:
        return f"they need at least {MIN_WIDTH} tokens, and it has {model.num_tokens}"
    return None


def members(module: nn.Module) -> set[str]:
    """Names of its children, parameters and buffers."""
    return {*module._modules, *module._parameters, *module._buffers}


def has_its_members(module: nn.Module, kind: type) -> bool:
    return type(module) is kind and members(module) == MEMBERS[kind]


def block_is_known(block: Any) -> bool:
    if not has_its_members(block, Block):
        return False
    attn, mlp = block.attn, block.mlp
    if not has_its_members(attn, Attention) or not has_its_members(mlp, Mlp):
        return False
    D, M = attn.qkv.in_features, mlp.fc1.out_features
    heads = (attn.q_norm, attn.k_norm)
    normed = all(norm_fits(norm, D // attn.num_heads) for norm in heads)
    return (
        all(norm_fits(norm, D) for norm in (block.norm1, block.norm2))
        and (normed or all(type(norm) is nn.Identity for norm in heads))
        and linear_fits(attn.qkv, D, 3 * D, bias=None)
        and linear_fits(attn.proj, D, D)
        and linear_fits(mlp.fc1, D, M)
        and linear_fits(mlp.fc2, M, D)
        and type(mlp.drop1) is type(mlp.drop2) is Dropout
    )


def linear_fits(linear: nn.Module, inputs: int, outputs: int, bias: bool | None = True) -> bool:
    """Whether it is a plain linear layer of that size; `bias` None where both will do."""
    return (
        type(linear) is nn.Linear
        and tuple(linear.weight.shape) == (outputs, inputs)
        and (bias is None or (linear.bias is not None) == bias)
    )


def norm_fits(norm: nn.Module, width: int) -> bool:
    plain = type(norm) is nn.LayerNorm and tuple(norm.normalized_shape) == (width,)
    return plain and norm.weight is not None and norm.bias is not None


def sizes(block: Block) -> tuple[Any, ...]:
    """What all blocks must have in common: eps of every norm (a set of one), heads, shapes of every weight."""
    norms = [block.norm1, block.norm2, block.attn.q_norm, block.attn.k_norm]
    eps = {norm.eps for norm in norms if isinstance(norm, nn.LayerNorm)}
    shapes = [None if (w := getattr(m, name)) is None else w.shape for m, name in block_places(block)]
    return eps, block.attn.num_heads, *shapes


def block_places(block: Block) -> list[tuple[nn.Module, str]]:
    """Where the weights of a block are, in the order of the kernels' `Layer`; norms of q and k may be missing."""
    attn, mlp, norm1, norm2 = block.attn, block.mlp, block.norm1, block.norm2
    missing = nn.Module()
    missing.weight = missing.bias = None  # type: ignore[assignment]
    q, k = (n if isinstance(n, nn.LayerNorm) else missing for n in (attn.q_norm, attn.k_norm))
    both = ((attn.qkv, attn.proj), (norm1,), (q,), (k,), (mlp.fc1, mlp.fc2), (norm2,))
    return [(module, name) for group in both for name in ("weight", "bias") for module in group]


def dropouts(blocks: Sequence[Block]) -> list[Dropout]:
    """Two in each block, in the order in which they are met."""
    return [dropout for block in blocks for dropout in (block.mlp.drop1, block.mlp.drop2)]


def common_rate(blocks: Sequence[Block]) -> float | None:
    """Dropout's rate, as it applies in their modes; None where they differ."""
    rates = {float(dropout.rate) if dropout.training else 0.0 for dropout in dropouts(blocks)}
    return rates.pop() if len(rates) == 1 else None


def stem_fits(stem: nn.Module) -> TypeGuard[ConvStem]:
    if type(stem) is not ConvStem or not has_its_members(stem, ConvStem):
        return False
    stages = [*stem.stages, stem.mix]
    if not all(has_its_members(stage, ConvStage) for stage in stages):
        return False
    widths = [24, *(stage.conv.out_channels for stage in stages)]
    pools = [stage.pool for stage in stages]
    halves = all(
        type(p) is nn.MaxPool2d
        and (p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode) == (2, 2, 0, 1, False)
        for p in pools[:-1]
    )
    return (
        type(stem.stages) is nn.Sequential
        and type(stem.whiten) is Whitening
        and not stem.whiten.weight.requires_grad
        and torch.equal(stem.whiten.weight[12:], -stem.whiten.weight[:12])
        and halves
        and type(pools[-1]) is nn.Identity
        and all(
            conv_fits(stage.conv, inputs, outputs, 3, 1, bias=False) and norm_fits(stage.norm, outputs)
            for stage, inputs, outputs in zip(stages, widths, widths[1:], strict=False)
        )
        and len({stage.norm.eps for stage in stages}) == 1
        and conv_fits(stem.proj, widths[-1], stem.proj.out_channels, 1, 0, bias=True)
        and min(*widths, stem.proj.out_channels) >= MIN_WIDTH
    )


def conv_fits(conv: nn.Module, inputs: int, outputs: int, side: int, padding: int, bias: bool) -> bool:
    return (
        type(conv) is nn.Conv2d
        and tuple(conv.weight.shape) == (outputs, inputs, side, side)
        and (conv.stride, conv.padding, conv.dilation, conv.groups) == ((1, 1), (padding,) * 2, (1, 1), 1)
        and conv.padding_mode == "zeros"
        and (conv.bias is not None) == bias
    )


def stem_places(stem: ConvStem) -> list[tuple[nn.Module, str]]:
    """The whitening, the projection and its bias, then three for each stage."""
    places: list[tuple[nn.Module, str]] = [
        (stem.whiten, "weight"),
        (stem.proj, "weight"),
        (stem.proj, "bias"),
    ]
    for stage in (*stem.stages, stem.mix):
        places += [(stage.conv, "weight"), (stage.norm, "weight"), (stage.norm, "bias")]
    return places


def pool_fits(model: VisionTransformer) -> bool:
    D, query = model.architecture.embed_dim, model.attn_pool
    return query is not None and norm_fits(model.norm, D) and linear_fits(query, D, 1, bias=False)


def pool_places(model: VisionTransformer) -> list[tuple[nn.Module, str]]:
    query = cast(nn.Linear, model.attn_pool)
    return [(model.norm, "weight"), (model.norm, "bias"), (query, "weight")]


# ---- what each forward looks at


def takes_tensor(x: Tensor) -> bool:
    """Whether the kernels can read it: a plain float32 tensor on a CPU."""
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and type(x) in (Tensor, nn.Parameter)
        and x.layout == torch.strided
    )


def activation_is_bf16() -> bool | None:
    """Whether autocast makes activations bfloat16 here, or leaves them float32; None for another type."""
    if not torch.is_autocast_enabled("cpu"):
        return False
    return True if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None


def any_global_hook() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def functorch_is_active() -> bool:
    """Whether vmap, grad or another transform of torch.func is on."""
    return torch._C._functorch.peek_interpreter_stack() is not None
