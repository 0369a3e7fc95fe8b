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
        bf16 = activation_is_bf16()
        watched = (
            something_watches()
            or not methods_are_original()
            or METHODS[VisionTransformer] & self.__dict__.keys()
        )
        if watched or bf16 is None or not takes_tensor(x) or x.ndim != 4 or not x.shape[0]:
            return super().forward(x)
        stem, encoder, pool, tail = (part and part.weights(self) for part in self.structure)
        if stem and not x.requires_grad and is_whitening(stem[0]):
            x = self._embed_natively(x, stem, bf16)
        else:
            x = self.embed(x)
        rate = common_rate(self.blocks) if encoder else None
        if encoder and rate is not None and takes_tensor(x) and x.shape[1] >= MIN_WIDTH:
            drawn = [keys_of(dropout, x) for dropout in dropouts(self.blocks)] if rate else []
            keys = torch.stack(drawn).view(-1, 2, x.shape[0]) if drawn else None
            # Whoever looks at the final norm sees all tokens.
            wanted = 1 if self.cls_token is not None and tail is not None else x.shape[1]
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
        direct = self.cls_token is None and type(self.embed_activation) is nn.Identity
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
    Block: {"norm1", "attn", "norm2", "mlp", "drop_path1", "drop_path2"},
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
# Methods that a person may replace, on an instance or for a whole class; the kernels would not call them.
FORWARD = frozenset({"forward"})
METHODS: dict[type, frozenset[str]] = {
    kind: frozenset(name for name, value in vars(kind).items() if callable(value) and name != "__init__")
    for kind in (VisionTransformer, Block, Attention, Mlp, ConvStem, ConvStage, Whitening, Dropout)
}
ORIGINAL = [(kind, name, getattr(kind, name)) for kind, names in METHODS.items() for name in names]
ORIGINAL += [
    (kind, "forward", kind.forward)
    for kind in (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.MaxPool2d, nn.Identity)
]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Part:
    """Modules whose work the kernels do, as they were found, and where their weights are, in the kernels' order."""

    roots: tuple[tuple[str, nn.Module | None], ...]  # by their names in the model
    modules: tuple[tuple[nn.Module, type, list[tuple[str, nn.Module | None]]], ...]  # module, type, children
    places: tuple[tuple[nn.Module, str], ...]
    shapes: tuple[torch.Size | None, ...]
    constants: tuple[
        tuple[nn.Module, str, Any], ...
    ]  # what else the kernels reckon with: module, name, value

    def weights(self, model: nn.Module) -> list[Any] | None:
        """The weights as they are now; None where something was changed, hooked, compiled or moved."""
        if any(getattr(model, name, None) is not root for name, root in self.roots):
            return None
        for module, kind, children in self.modules:
            own = module.__dict__
            if (
                type(module) is not kind
                or list(own["_modules"].items()) != children
                or any(own[name] for name in HOOKS)
                or METHODS.get(kind, FORWARD) & own.keys()
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
    tail: Part | None  # the final norm, where it looks at each token by itself


def find_structure(model: VisionTransformer) -> Structure:
    """The parts of a network whose encoder is known, which is where most of the work is."""
    stem = model.patch_embed
    in_blocks = [place for block in model.blocks for place in block_places(block)]
    return Structure(
        stem=part(model, ["patch_embed", "embed_activation"], stem_places(stem)) if stem_fits(stem) else None,
        encoder=part(model, ["blocks"], in_blocks),
        pool=part(model, ["norm", "attn_pool"], pool_places(model)) if pool_fits(model) else None,
        tail=part(model, ["norm"], []) if tail_fits(model) else None,
    )


def part(model: VisionTransformer, names: Sequence[str], places: Sequence[tuple[nn.Module, str]]) -> Part:
    roots = [(name, cast("nn.Module | None", getattr(model, name))) for name in names]
    modules = [module for _, root in roots if root is not None for module in root.modules()]
    constants = [(module, name) for module in modules for name in CONSTANTS.get(type(module), ())]
    return Part(
        tuple(roots),
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
    if any(type(block) is Block and type(block.drop_path1) is not nn.Identity for block in model.blocks):
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
        and type(block.drop_path1) is type(block.drop_path2) is nn.Identity
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
        and is_whitening(stem.whiten.weight)
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


def is_whitening(weight: Tensor) -> bool:
    """Whether its second half is the first's negative, which the kernel takes for granted, and it is frozen."""
    return not weight.requires_grad and torch.equal(weight[12:], -weight[:12])


def tail_fits(model: VisionTransformer) -> bool:
    norm = model.norm
    of_each = type(norm) is nn.LayerNorm and tuple(norm.normalized_shape) == (model.architecture.embed_dim,)
    return of_each or type(norm) is nn.Identity


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
    """Whether autocast makes activations bfloat16 here, or leaves them float32; None where no kernels take them."""
    enabled = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if enabled else torch.float32
    return None if isinstance(load_kernels(dtype), str) else dtype == torch.bfloat16


def methods_are_original() -> bool:
    return all(getattr(kind, name) is method for kind, name, method in ORIGINAL)


def something_watches() -> bool:
    """Whether each module or operator is to be seen: global hooks, modes, transforms of torch.func, forward AD."""
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
