"""From recipe and data to what will be trained: `make_plan`, walked once, top to bottom."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch

import vitreous
from vitreous import machine as machines
from vitreous.data.augment import Augment
from vitreous.data.module import ImageData
from vitreous.data.named import DATASETS
from vitreous.data.normalize import normalize, to_float
from vitreous.data.sources import open_data
from vitreous.dial import apply_augmentation, apply_size
from vitreous.errors import VitreousError, unknown
from vitreous.machine import Machine
from vitreous.model.variants import VARIANTS, Architecture
from vitreous.model.vit import ATTENTION, VisionTransformer
from vitreous.native.accelerate import accelerate, unsupported
from vitreous.recipe import Recipe, convert
from vitreous.request import BACKENDS, DEVICES, PRECISIONS, Request
from vitreous.run import Run, Say
from vitreous.training.budget import Sizes, final_seconds, planned_steps
from vitreous.training.cost import RunCost, count_cost, measure_seconds
from vitreous.training.schedule import Timeline, phases

WHITENING_IMAGES = 5000
ARRAYS = "arrays"  # in place of data that only the caller has


@dataclass(frozen=True)
class Plan:
    """All that a training needs, decided.

    Attributes:
        request: what was asked for.
        recipe: complete, with all that follows from data and budget.
        data: opened, split, with their augmentation.
        model: the network to train, on the CPU, its weights a function of the seed; accelerated where the
            machine's backend is native.
        machine: the choices made for it.
        cost: of its steps; the seconds are measured where the budget is in minutes.
        sizes: images in a step and in each split.
        timeline: the run's length in steps.
        later_fits: how that length changed on the way in a run that is repeated; None for a run of its own.
        began: when the budget's clock started, with the data in the cache, on `time.monotonic`.
    """

    request: Request
    recipe: Recipe
    data: ImageData
    model: VisionTransformer
    machine: Machine
    cost: RunCost
    sizes: Sizes
    timeline: Timeline
    later_fits: list[tuple[int, int]] | None
    began: float


def make_plan(
    recipe: Recipe,
    request: Request,
    say: Say,
    recorded: Mapping[str, Any] | None = None,
    *,
    strict: bool = False,
) -> Plan:
    """Decides everything about a training, and says what follows from data and budget.

    Args:
        recorded: of another run's `[resolved]` table, what is used again: choices in `machine`, fits in `timeline`.
        strict: raise where this machine cannot honour a recorded choice, rather than choose anew.

    Raises:
        VitreousError: machine, data, recipe and budget do not go together.
    """
    recorded = recorded or {}
    then, fits = recorded.get("machine", {}), recorded.get("timeline", {}).get("fits")

    def choose(name: str, decide: Callable[..., Machine], asked: Any) -> Machine:
        """The choice `name` as recorded, where it is and can be honoured, else as asked for."""
        if name not in then:
            return decide(asked)
        try:
            return decide(then[name], by="as recorded")
        except VitreousError as error:
            if strict:
                raise
            return decide("auto").decided(f"{name}: the recorded {then[name]!r} was not possible. {error}")

    # The machine comes first: what it cannot do is refused before anything takes time.
    bare = choose(
        "device", lambda device, **_: machines.detect_machine(device, then.get("threads")), request.device
    )
    bare = choose("precision", functools.partial(machines.choose_precision, bare), request.precision)
    bf16 = bare.precision == "bf16"

    # The data, and what they ask of the recipe.
    data = open_module(recipe, request, say)
    began = time.monotonic()
    recipe = fit_to_data(recipe, data, say)
    data.batch_size = recipe.training.batch_size
    size, classes, train = data.store.image_size, data.store.num_classes, data.splits.train
    val, test = (len(getattr(data.splits, name)) if name in request.judges else 0 for name in ("val", "test"))
    sizes = Sizes(min(data.batch_size, len(train)), len(data.train_dataloader()), val, test)

    # The network: what suits it here, what its steps cost, and how large the budget lets it be.
    def machine_for(network: VisionTransformer) -> Machine:
        dtypes = (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)
        obstacle = unsupported(network, dtypes) if bare.device == "cpu" else None
        found = choose(
            "backend",
            lambda wanted, **by: machines.choose_backend(bare, wanted, obstacle, **by),
            request.backend,
        )
        tokens = network.num_tokens
        attention = then.get("attention") or machines.choose_attention(bare.device, bare.precision, tokens)
        reason = f"attention: {attention} where torch computes it, for {tokens} tokens on a {bare.device}"
        if "attention" in then:
            reason += ", as recorded"
        return found.decided(reason, attention=attention)

    measured = recipe.budget.unit == "minutes" and not fits

    @functools.cache
    def cost_of(architecture: Architecture) -> RunCost:
        candidate = dataclasses.replace(recipe, model=architecture)
        cost = count_cost(candidate, size, classes, sizes.batch)
        if not measured:
            return cost
        twin = fresh_network(architecture, size, classes, request.seed)
        set_up(twin, machine_for(twin))
        return measure_seconds(cost, twin, candidate, sizes.batch, bare.device, bf16=bf16)

    def train_flops(architecture: Architecture) -> float:
        """What the budget amounts to with a network; in minutes, at the speed of the recipe's own."""
        budget = recipe.budget
        if budget.unit == "flops":
            return budget.amount
        if budget.unit == "minutes":
            flops, seconds = cost_of(recipe.model).mean()
            return 60 * budget.amount * flops / seconds
        return planned_steps(budget, cost_of(architecture), sizes) * cost_of(architecture).mean()[0]

    sized, line = apply_size(recipe, train_flops)
    if line:
        say(line)
    cost = cost_of(sized.model)
    model = build_model(sized, data, request.seed)
    machine = machine_for(model)

    # The run's length, and the augmentation that suits it.
    timeline = Timeline([tuple(fits[0]) if fits else (0, planned_steps(sized.budget, cost, sizes))])
    least = cost.full.seconds + final_seconds(cost, sizes)
    if measured and least > 60 * sized.budget.amount:
        say(
            f"{sized.budget} are too few here: one step, the final figures and the report take about {least:.0f} s, "
            "so this run will overrun."
        )
    complete, line = apply_augmentation(sized, timeline.total / sizes.steps_per_epoch, size)
    if line:
        say(line)
    data.augment = make_augment(complete, data, request.seed)
    flops = timeline.total * cost.mean()[0]
    machine = choose(
        "compile", lambda wanted, **by: machines.choose_compile(machine, wanted, flops, **by), "auto"
    )
    return Plan(
        request=request,
        recipe=complete,
        data=data,
        model=set_up(model, machine),
        machine=machine,
        cost=cost,
        sizes=sizes,
        timeline=timeline,
        later_fits=[(step, total) for step, total in fits[1:]] if fits else None,
        began=began,
    )


def open_module(recipe: Recipe, request: Request, say: Say) -> ImageData:
    """The data, opened and split as the recipe says; not augmented yet."""
    source = request.data
    if request.classes is not None:
        source = open_data(source, classes=request.classes)
    data = ImageData(
        source,
        batch_size=recipe.training.batch_size,
        drop_last=recipe.training.drop_last,
        val_fraction=recipe.data.val_fraction,
        split_seed=recipe.data.split_seed,
        seed=request.seed,
        data_dir=request.data_dir,
        train_on_val="val" not in request.judges,
        image_size=request.image_size,
        skip_bad=request.skip_bad,
        say=say,
    )
    data.setup()
    for note in data.splits.notes:
        say(note)
    return data


def fit_to_data(recipe: Recipe, data: ImageData, say: Say) -> Recipe:
    """Adapts patch size and batch size to the data set; each change is said.

    Raises:
        VitreousError: the schedule's smaller images are too small for the network.
    """
    size = data.store.image_size
    table = VARIANTS[recipe.variant].architecture
    if recipe.model.stem == "conv" and "model.patch_size" not in recipe.pinned:
        patch = max(2, table.patch_size * 2 ** round(math.log2(size / VARIANTS[recipe.variant].image_size)))
        if patch != recipe.model.patch_size:
            say(f"patch_size: {patch}, for about as many tokens from images of {size} pixels")
            recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, patch_size=patch))
    most = max(8, 2 ** int(math.log2(max(len(data.splits.train) / 8, 1))))
    if recipe.training.batch_size > most and "training.batch_size" not in recipe.pinned:
        say(f"batch_size: {most}, so that {len(data.splits.train):,} images make at least 8 steps an epoch")
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, batch_size=most))
    for phase in phases(recipe.schedule, size):
        if phase.side < size and phase.side <= recipe.model.patch_size:
            raise VitreousError(
                f"schedule.small_sides makes images of {phase.side} pixels, too small for patch_size "
                f"{recipe.model.patch_size}; give larger shares of {size} pixels."
            )
    return recipe


def build_model(recipe: Recipe, data: ImageData, seed: int) -> VisionTransformer:
    """The network to train, sized and whitened by the data."""
    store, train = data.store, data.splits.train
    model = fresh_network(recipe.model, store.image_size, store.num_classes, seed)
    some = train.images[:: max(1, len(train) // WHITENING_IMAGES)]
    model.init_from_data(
        normalize(to_float(torch.as_tensor(np.ascontiguousarray(some))), store.mean, store.std)
    )
    return model


def fresh_network(
    architecture: Architecture, image_size: int, num_classes: int, seed: int
) -> VisionTransformer:
    """A network whose weights are a function of the seed; the caller's generator is left as it was."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VisionTransformer(architecture, image_size, num_classes)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise VitreousError(
            "The network does not fit into memory; choose a smaller embed_dim or depth."
        ) from None


def set_up(model: VisionTransformer, machine: Machine) -> VisionTransformer:
    """The model with the machine's attention and backend."""
    model.set_attention(machine.attention)
    return accelerate(model) if machine.backend == "native" else model


def make_augment(recipe: Recipe, data: ImageData, seed: int) -> Augment:
    """The recipe's augmentation, tried on one image, so that what does not suit the data is refused at once."""
    options = dataclasses.asdict(recipe.augment)
    options["resized_crop"] = options["resized_crop"] or None
    augment = Augment(**options, fill=data.store.mean, seed=seed)
    augment(torch.as_tensor(np.array(data.splits.train.images[:1])), torch.zeros(1, dtype=torch.int64), 0)
    return augment


# ---- what a run has recorded


def record_request(request: Request) -> dict[str, Any]:
    """The request for `recipe.toml`: paths absolute, so that it holds wherever it is read again."""
    data = request.data
    if not isinstance(data, str | Path):
        data = ARRAYS
    elif data not in DATASETS:
        data = str(Path(data).resolve())
    data_dir = str(Path(request.data_dir).resolve()) if request.data_dir else None
    return {**vars(request), "data": data, "data_dir": data_dir}


def stored_request(run: Run, data: Any = None) -> Request:
    """The request that a run was begun with.

    Args:
        data: the arrays again, for a run on arrays.

    Raises:
        VitreousError: it is not recorded, or recorded otherwise; arrays are missing, or given without need.
    """
    if "request" not in run.resolved:
        raise missing_table(run, "resolved.request")
    try:
        request = Request(**run.resolved["request"])
    except TypeError:
        raise other_version(run) from None
    if request.data != ARRAYS:
        if data is not None:
            raise VitreousError(
                f"{run.path} was trained on {request.data}, which it finds itself; leave data out."
            )
        return request
    if data is None:
        raise VitreousError("This run was trained on arrays; give them again, as data=(images, labels).")
    return dataclasses.replace(request, data=data)


def check_record(run: Run) -> dict[str, Any]:
    """The run's `[resolved]`, whole: all that its choices are used again by.

    Raises:
        VitreousError: a table of it is missing, or it is of another version.
    """
    resolved = run.resolved
    check_values(resolved, run.path / "recipe.toml")
    for table in ("machine", "versions", "request"):
        if table not in resolved:
            raise missing_table(run, f"resolved.{table}")
    known = {field.name for field in dataclasses.fields(Machine)}
    if set(resolved["machine"]) != known or not {"fingerprint", "exact"} <= set(resolved):
        raise other_version(run)
    if not {"vitreous", "torch"} <= set(resolved["versions"]):
        raise other_version(run)
    return resolved


def check_values(resolved: Any, file: Path | str) -> None:
    """Raises `VitreousError` where `[resolved]` in `file` holds what no run writes there; what is missing may be."""
    try:
        tables = {"resolved": check_table(resolved, "resolved")}
        for name in ("machine", "versions", "request", "timeline"):
            tables[name] = check_table(resolved.get(name, {}), f"resolved.{name}")
        kinds = {
            "resolved": {"fingerprint": str, "exact": bool, "repeats": str},
            "machine": get_type_hints(Machine),
            "versions": {"vitreous": str, "torch": str},
        }
        for name, known in kinds.items():
            for key in known.keys() & tables[name].keys():
                convert(known[key], tables[name][key], key if name == "resolved" else f"{name}.{key}")
        machine = tables["machine"]
        if machine.get("threads", 1) < 1:
            raise VitreousError(f"machine.threads is {machine['threads']}, and must be at least 1.")
        words = {
            "device": DEVICES,
            "precision": PRECISIONS,
            "backend": BACKENDS,
            "attention": ATTENTION,
        }
        for key in words.keys() & machine.keys():
            if machine[key] not in words[key]:
                raise unknown(f"machine.{key}", machine[key], words[key])
        if "fits" in tables["timeline"]:
            check_fits(tables["timeline"]["fits"])
    except VitreousError as error:
        raise VitreousError(
            f"{file} does not hold what a run wrote: {error} Restore it, or train anew."
        ) from None


def check_table(found: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise VitreousError(f"{name} must be a table, not {found!r}.")
    return found


def check_fits(fits: Any) -> None:
    """Raises `VitreousError` unless it is a list of (step, total steps) that a timeline may have had."""
    try:
        pairs = [convert(tuple[int, ...], fit, "timeline.fits") for fit in fits]
        rising = all(before < step for (before, _), (step, _) in itertools.pairwise(pairs))
        if pairs[0][0] == 0 and rising and all(total >= max(step, 1) for step, total in pairs):
            return
    except (TypeError, ValueError, IndexError, VitreousError):
        pass
    raise VitreousError(f"timeline.fits must be pairs of rising steps and totals, not {fits!r}.")


def missing_table(run: Run, table: str) -> VitreousError:
    return VitreousError(f"{run.path / 'recipe.toml'} has no [{table}]; restore it, or train anew.")


def other_version(run: Run) -> VitreousError:
    """The error for a run whose record has other fields than this version writes."""
    then = run.resolved.get("versions", {}).get("vitreous", "unknown")
    return VitreousError(
        f"{run.path / 'recipe.toml'} was written by another version of vitreous ({then}; this is "
        f"{vitreous.__version__}); continue with that one, or train anew."
    )


def count_parameters(model: VisionTransformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
