"""Runs a `VisionTransformer` on the native kernels, with the same weights under the same names.

`accelerate` turns the model into a `NativeVisionTransformer`, in place, and `plain` turns it back. The kernels run
three parts: the convolutional stem, the encoder, and the final norm with attention pooling. Each kernel computes one
fixed structure, so `accelerate` checks each part against an allow-list of module types, sizes, eps, dropout rates and
biases. Each forward pass then checks that the part is unchanged, and checks hooks, modes, dtypes and devices. A part
that fails a check runs in torch, so no change that a user made to the network is ignored.

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
from vitreous.model.dropout import Dropout, noise_keys
from vitreous.model.stem import ConvStage, ConvStem, Whitening
from vitreous.model.vit import Attention, Block, Mlp, VisionTransformer
from vitreous.native import ops
from vitreous.native.build import MIN_WIDTH, load_kernels


class NativeVisionTransformer(VisionTransformer):
    """A `VisionTransformer` that calls the native kernels wherever they give the same result as its modules."""

    structure: Structure

    def forward(self, x: Tensor) -> Tensor:
        """Like `VisionTransformer.forward`. Raises `VitreousError` if the model is being traced or exported."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            raise VitreousError(
                "An accelerated model cannot be traced or exported; call vitreous.native.accelerate.plain(model) first."
            )
        bf16 = autocast_is_bf16()
        changed = (
            is_observed() or not methods_are_original() or METHODS[VisionTransformer] & self.__dict__.keys()
        )
        if changed or bf16 is None or not is_supported_tensor(x) or x.ndim != 4 or not x.shape[0]:
            return super().forward(x)
        stem, encoder, pool, final_norm = (part and part.weights(self) for part in self.structure)
        if stem and not x.requires_grad and is_frozen_whitening(stem[0]):
            x = self._embed_natively(x, stem, bf16)
        else:
            x = self.embed(x)
        rate = common_rate(self.blocks) if encoder else None
        if encoder and rate is not None and is_supported_tensor(x) and x.shape[1] >= MIN_WIDTH:
            keys = None
            if rate:
                keys = torch.stack([noise_keys(dropout, x) for dropout in dropouts(self.blocks)])
                keys = keys.view(-1, 2, x.shape[0])  # [layers, 2, B]
            # Only the class token is used, but a hook or change at the final norm must see all tokens.
            out_tokens = 1 if self.cls_token is not None and final_norm is not None else x.shape[1]
            attn, norm = self.blocks[0].attn, self.blocks[0].norm1
            x = ops.encode(x, encoder, keys, rate, out_tokens, attn.num_heads, norm.eps, bf16)
        else:
            for block in self.blocks:
                x = block(x)
        if pool and is_supported_tensor(x):
            weight, bias, query = pool
            return self.head(ops.pool(x, weight, bias, query, cast(nn.LayerNorm, self.norm).eps, bf16))
        return self.head(self.pool(self.norm(x)))

    def _embed_natively(self, x: Tensor, weights: list[Any], bf16: bool) -> Tensor:
        self.check_images(x)
        stem = cast(ConvStem, self.patch_embed)
        stride, eps = stem.whiten.stride, stem.mix.norm.eps
        position = self.position((x.shape[2] - 1) // self.architecture.patch_size)
        position_is_next = self.cls_token is None and type(self.embed_activation) is nn.Identity
        if position_is_next and is_supported_tensor(position):  # the kernel adds it
            return self.pos_drop(ops.stem(x, position, weights, stride, eps, bf16))
        return self.to_tokens(ops.stem(x, None, weights, stride, eps, bf16))


def accelerate(model: VisionTransformer) -> VisionTransformer:
    """Makes the model run on the native kernels, in place, and returns it. Weights and state dict stay the same.

    Raises:
        VitreousError: the kernels cannot run this network or are not available here; the message says why.
    """
    if is_accelerated(model):
        return model
    if reason := unsupported(model):
        raise VitreousError(f"The native kernels cannot run this network: {reason}.")
    model.__class__ = NativeVisionTransformer
    cast(NativeVisionTransformer, model).structure = record_structure(model)
    return model


def plain(model: VisionTransformer) -> VisionTransformer:
    """Makes the model run in torch again, in place, and returns it. Undoes `accelerate`."""
    if is_accelerated(model):
        del cast(NativeVisionTransformer, model).structure
        model.__class__ = VisionTransformer
    return model


def is_accelerated(model: nn.Module) -> bool:
    """Whether `accelerate` was applied to the model."""
    return isinstance(model, NativeVisionTransformer)


def unsupported(model: VisionTransformer, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> str | None:
    """The reason why the native kernels cannot run a network, as text for messages; None if they can.

    Args:
        dtypes: types of activations that the kernels must support: float32, and bfloat16 for training under autocast.
    """
    if type(model) not in (VisionTransformer, NativeVisionTransformer):
        return f"unsupported architecture: {type(model).__name__} is not VisionTransformer itself"
    if any(not p.is_cpu for p in model.parameters()):
        return "the network is not on the CPU; move it with model.cpu()"
    if unknown_names := member_names(model) - MEMBERS[VisionTransformer]:
        return f"unsupported architecture: the kernels do not compute {', '.join(sorted(unknown_names))}"
    if reason := encoder_reason(model):
        return reason
    for dtype in dtypes:
        kernels = load_kernels(dtype)
        if isinstance(kernels, str):
            return kernels
    return None


# ---- structure: the allow-list

# The children, parameters and buffers of each module that the kernels know. An option that adds another one to the
# network thereby turns the kernels off until they support it.
MEMBERS: dict[type, set[str]] = {
    VisionTransformer: {
        "patch_embed", "embed_activation", "cls_token", "pos_embed", "pos_drop", "blocks", "norm", "attn_pool", "head",
    },
    Block: {"norm1", "attn", "norm2", "mlp", "drop_path1", "drop_path2"},
    Attention: {"qkv", "q_norm", "k_norm", "proj"},
    Mlp: {"fc1", "fc2", "drop1", "drop2"},
    ConvStem: {"whiten", "stages", "mix", "proj"},
    ConvStage: {"conv", "pool", "norm"},
}  # fmt: skip
CONSTANTS: dict[type, tuple[str, ...]] = {
    nn.LayerNorm: ("eps",),
    Whitening: ("stride",),
    Attention: ("num_heads",),
    nn.Conv2d: ("stride", "padding", "dilation", "padding_mode"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
}
# Methods that a user may replace, on an instance or for a whole class; the kernels would not call the replacement.
FORWARD = frozenset({"forward"})
METHODS: dict[type, frozenset[str]] = {
    kind: frozenset(name for name, value in vars(kind).items() if callable(value) and name != "__init__")
    for kind in (VisionTransformer, Block, Attention, Mlp, ConvStem, ConvStage, Whitening, Dropout)
}
ORIGINAL_METHODS = [(kind, name, getattr(kind, name)) for kind, names in METHODS.items() for name in names]
ORIGINAL_METHODS += [
    (kind, "forward", kind.forward)
    for kind in (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.MaxPool2d, nn.Identity)
]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Part:
    """Modules that a kernel replaces, as they were when the model was accelerated."""

    roots: tuple[tuple[str, nn.Module | None], ...]  # name in the model, module
    modules: tuple[tuple[nn.Module, type, list[tuple[str, nn.Module | None]]], ...]  # module, type, children
    locations: tuple[tuple[nn.Module, str], ...]  # module and name of each weight, in the kernel's order
    shapes: tuple[torch.Size | None, ...]  # of those weights
    constants: tuple[
        tuple[nn.Module, str, Any], ...
    ]  # other values that the kernel assumes: module, name, value

    def weights(self, model: nn.Module) -> list[Any] | None:
        """The current weights; None if a module was changed, hooked, compiled or moved since."""
        if any(getattr(model, name, None) is not root for name, root in self.roots):
            return None
        for module, kind, children in self.modules:
            attributes = module.__dict__
            if (
                type(module) is not kind
                or list(attributes["_modules"].items()) != children
                or any(attributes[name] for name in HOOKS)
                or METHODS.get(kind, FORWARD) & attributes.keys()
                or module._compiled_call_impl is not None
            ):
                return None
        if any(module.__dict__[name] != value for module, name, value in self.constants):
            return None
        weights = [getattr(module, name) for module, name in self.locations]
        fit = all(
            shape is None if w is None else w.shape == shape and is_supported_tensor(w)
            for w, shape in zip(weights, self.shapes, strict=True)
        )
        return weights if fit else None


class Structure(NamedTuple):
    """The parts of a network that are on the allow-list; None for a part that is not."""

    stem: Part | None
    encoder: Part
    pool: Part | None
    final_norm: Part | None  # set if the norm, or nothing, acts on each token by itself


def record_structure(model: VisionTransformer) -> Structure:
    """The parts of a network that the kernels can run. Its encoder must be supported (`encoder_reason`)."""
    stem = model.patch_embed
    encoder = [location for block in model.blocks for location in block_locations(block)]
    return Structure(
        stem=record_part(model, ["patch_embed", "embed_activation"], stem_locations(stem))
        if stem_fits(stem)
        else None,
        encoder=record_part(model, ["blocks"], encoder),
        pool=record_part(model, ["norm", "attn_pool"], pool_locations(model)) if pool_fits(model) else None,
        final_norm=record_part(model, ["norm"], []) if final_norm_fits(model) else None,
    )


def record_part(
    model: VisionTransformer, names: Sequence[str], locations: Sequence[tuple[nn.Module, str]]
) -> Part:
    """The modules `names` of the model and all below them, with the weights at `locations`."""
    roots = [(name, cast("nn.Module | None", getattr(model, name))) for name in names]
    modules = [module for _, root in roots if root is not None for module in root.modules()]
    constants = [(module, name) for module in modules for name in CONSTANTS.get(type(module), ())]
    return Part(
        tuple(roots),
        tuple((module, type(module), list(module._modules.items())) for module in modules),
        tuple(locations),
        tuple(None if (w := getattr(module, name)) is None else w.shape for module, name in locations),
        tuple((module, name, getattr(module, name)) for module, name in constants),
    )


def encoder_reason(model: VisionTransformer) -> str | None:
    """The reason why the kernels cannot run the encoder, as text for messages; None if they can."""
    if type(model.blocks) is not nn.ModuleList or not len(model.blocks):
        return "unsupported architecture: the blocks are not a plain nn.ModuleList"
    first = model.blocks[0]
    if any(type(block) is Block and type(block.drop_path1) is not nn.Identity for block in model.blocks):
        return "unsupported architecture: the kernels have no stochastic depth; set drop_path to 0"
    if not all(map(block_fits, model.blocks)):
        return "unsupported architecture: the blocks were modified"
    D, H, M = first.attn.qkv.in_features, first.attn.num_heads, first.mlp.fc1.out_features
    eps = block_signature(first)[0]
    if any(block_signature(block) != block_signature(first) for block in model.blocks) or len(eps) > 1:
        return "unsupported architecture: the blocks differ in size, heads or norm_eps"
    if D % H or min(D // H, M) < MIN_WIDTH or D // H % 2:
        return (
            f"unsupported architecture: embed_dim / num_heads must be even and at least {MIN_WIDTH}, and mlp_dim at "
            f"least {MIN_WIDTH}"
        )
    if model.num_tokens < MIN_WIDTH:
        return (
            f"unsupported architecture: the kernels need at least {MIN_WIDTH} tokens, not {model.num_tokens}; choose a "
            "smaller patch_size or larger images"
        )
    return None


def member_names(module: nn.Module) -> set[str]:
    """Names of the module's children, parameters and buffers."""
    return {*module._modules, *module._parameters, *module._buffers}


def has_known_members(module: nn.Module, kind: type) -> bool:
    return type(module) is kind and member_names(module) == MEMBERS[kind]


def block_fits(block: Any) -> bool:
    if not has_known_members(block, Block):
        return False
    attn, mlp = block.attn, block.mlp
    if not has_known_members(attn, Attention) or not has_known_members(mlp, Mlp):
        return False
    D, M = attn.qkv.in_features, mlp.fc1.out_features
    head_norms = (attn.q_norm, attn.k_norm)
    normed = all(norm_fits(norm, D // attn.num_heads) for norm in head_norms)
    return (
        all(norm_fits(norm, D) for norm in (block.norm1, block.norm2))
        and (normed or all(type(norm) is nn.Identity for norm in head_norms))
        and linear_fits(attn.qkv, D, 3 * D, bias=None)
        and linear_fits(attn.proj, D, D)
        and linear_fits(mlp.fc1, D, M)
        and linear_fits(mlp.fc2, M, D)
        and type(mlp.drop1) is type(mlp.drop2) is Dropout
        and type(block.drop_path1) is type(block.drop_path2) is nn.Identity
    )


def linear_fits(linear: nn.Module, inputs: int, outputs: int, bias: bool | None = True) -> bool:
    """Whether it is a plain linear layer of that size; `bias` is None if it may have one or not."""
    return (
        type(linear) is nn.Linear
        and tuple(linear.weight.shape) == (outputs, inputs)
        and (bias is None or (linear.bias is not None) == bias)
    )


def norm_fits(norm: nn.Module, width: int) -> bool:
    is_layer_norm = type(norm) is nn.LayerNorm and tuple(norm.normalized_shape) == (width,)
    return is_layer_norm and norm.weight is not None and norm.bias is not None


def block_signature(block: Block) -> tuple[Any, ...]:
    """What all blocks must have in common: the set of their norms' eps, the number of heads, shapes of weights."""
    norms = [block.norm1, block.norm2, block.attn.q_norm, block.attn.k_norm]
    eps = {norm.eps for norm in norms if isinstance(norm, nn.LayerNorm)}
    shapes = [None if (w := getattr(m, name)) is None else w.shape for m, name in block_locations(block)]
    return eps, block.attn.num_heads, *shapes


def block_locations(block: Block) -> list[tuple[nn.Module, str]]:
    """Module and name of each weight of a block, in the order of `Field` in encoder.cpp.

    The norms of q and k may be missing; their weights are then None.
    """
    attn, mlp, norm1, norm2 = block.attn, block.mlp, block.norm1, block.norm2
    missing = nn.Module()
    missing.weight = missing.bias = None  # type: ignore[assignment]
    q, k = (n if isinstance(n, nn.LayerNorm) else missing for n in (attn.q_norm, attn.k_norm))
    groups = ((attn.qkv, attn.proj), (norm1,), (q,), (k,), (mlp.fc1, mlp.fc2), (norm2,))
    return [(module, name) for group in groups for name in ("weight", "bias") for module in group]


def dropouts(blocks: Sequence[Block]) -> list[Dropout]:
    """The two dropout modules of each block, in the order of the forward pass."""
    return [dropout for block in blocks for dropout in (block.mlp.drop1, block.mlp.drop2)]


def common_rate(blocks: Sequence[Block]) -> float | None:
    """The dropout rate of all blocks, 0 in eval mode; None if they differ."""
    rates = {float(dropout.rate) if dropout.training else 0.0 for dropout in dropouts(blocks)}
    return rates.pop() if len(rates) == 1 else None


def stem_fits(stem: nn.Module) -> TypeGuard[ConvStem]:
    if type(stem) is not ConvStem or not has_known_members(stem, ConvStem):
        return False
    stages = [*stem.stages, stem.mix]
    if not all(has_known_members(stage, ConvStage) for stage in stages):
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
        and is_frozen_whitening(stem.whiten.weight)
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


def stem_locations(stem: ConvStem) -> list[tuple[nn.Module, str]]:
    """Module and name of each weight, in the order of `ops.stem`."""
    stages = [*stem.stages, stem.mix]
    return [
        (stem.whiten, "weight"), (stem.proj, "weight"), (stem.proj, "bias"),
        *((m, name) for s in stages for m, name in ((s.conv, "weight"), (s.norm, "weight"), (s.norm, "bias"))),
    ]  # fmt: skip


def pool_fits(model: VisionTransformer) -> bool:
    D, query = model.architecture.embed_dim, model.attn_pool
    return query is not None and norm_fits(model.norm, D) and linear_fits(query, D, 1, bias=False)


def is_frozen_whitening(weight: Tensor) -> bool:
    """Whether the weight [24, 3, 2, 2] is frozen and its second half is the negative of the first.

    The kernel reads the first half only and computes no gradient.
    """
    return not weight.requires_grad and torch.equal(weight[12:], -weight[:12])


def final_norm_fits(model: VisionTransformer) -> bool:
    """Whether the final norm acts on each token by itself, so that tokens which are not pooled can be left out."""
    norm = model.norm
    is_layer_norm = type(norm) is nn.LayerNorm and tuple(norm.normalized_shape) == (
        model.architecture.embed_dim,
    )
    return is_layer_norm or type(norm) is nn.Identity


def pool_locations(model: VisionTransformer) -> list[tuple[nn.Module, str]]:
    """Module and name of each weight, in the order of `ops.pool`."""
    query = cast(nn.Linear, model.attn_pool)
    return [(model.norm, "weight"), (model.norm, "bias"), (query, "weight")]


# ---- checks of each forward pass


def is_supported_tensor(x: Tensor) -> bool:
    """Whether the kernels can read it: a plain, dense float32 tensor on the CPU."""
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and type(x) in (Tensor, nn.Parameter)
        and x.layout == torch.strided
    )


def autocast_is_bf16() -> bool | None:
    """Whether autocast makes activations bfloat16; None if there are no kernels for the type that it gives."""
    enabled = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if enabled else torch.float32
    return None if isinstance(load_kernels(dtype), str) else dtype == torch.bfloat16


def methods_are_original() -> bool:
    """Whether no method of the classes that the kernels replace was replaced by a user."""
    return all(getattr(kind, name) is method for kind, name, method in ORIGINAL_METHODS)


def is_observed() -> bool:
    """Whether something must see each module or operator: a global hook, a mode, torch.func, forward-mode AD."""
    return (
        any_global_hook()
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def any_global_hook() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
