"""From recipe and data to a complete plan of the training: `make_plan`, read top to bottom."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch

import vitreous
from vitreous import machine as machines
from vitreous import run as runs
from vitreous.balance import choose_balance
from vitreous.data.augment import Augment
from vitreous.data.module import ImageData
from vitreous.data.named import DATASETS
from vitreous.data.normalize import normalize, to_float
from vitreous.data.reading import read_options
from vitreous.data.sources import MissingPathError
from vitreous.data.store import ImageStore
from vitreous.dial import (
    apply_size,
    apply_strengths,
    describe_strengths,
    size_keys,
    strength_keys,
    strengths_at,
)
from vitreous.errors import VitreousError, unknown
from vitreous.files import path_of
from vitreous.machine import Machine
from vitreous.model.variants import VARIANTS, Architecture
from vitreous.model.vit import ATTENTION, VisionTransformer
from vitreous.native.accelerate import accelerate, unsupported
from vitreous.recipe import Recipe, convert
from vitreous.request import BACKENDS, DEVICES, PRECISIONS, READING, Request
from vitreous.run import Run, Say, check_same_data, missing_arrays, missing_data
from vitreous.training.budget import Sizes, final_seconds, planned_steps
from vitreous.training.cost import RunCost, count_cost, measure_seconds
from vitreous.training.schedule import Timeline, phases
from vitreous.wording import count

WHITENING_IMAGES = 5000
ARRAYS = "arrays"  # recorded in place of data that only the caller has


class Strengths(dict[int, dict[str, float]]):
    """The values of the keys that follow the epochs, by the run's number of steps: {1200: {"augment.crop": 3}}.

    Those of a new number of steps are chosen by `choose` and kept. A run that is repeated or resumed begins with those
    of its record, so it does not depend on the law of a later version.
    """

    def __init__(
        self, choose: Callable[[int], dict[str, float]], recorded: Mapping[int, dict[str, float]]
    ) -> None:
        super().__init__(recorded)
        self.choose = choose

    def __missing__(self, total: int) -> dict[str, float]:
        self[total] = self.choose(total)
        return self[total]


@dataclass(frozen=True)
class Plan:
    """Everything that a training needs, decided.

    Attributes:
        request: the user's request.
        recipe: complete, with all values that follow from data and budget; its strengths are those of the first fit.
        strengths: the values of its keys that follow the epochs when the run's length is fitted again.
        dialled: all keys that the dial chose.
        fitted: all keys whose values follow from the data, such as "training.balance".
        data: opened and split, with the augmentation.
        model: the network to train, on the CPU. Its weights are a function of the seed. It is accelerated if the
            machine's backend is native.
        machine: the choices made for this machine.
        cost: of the run's steps; the seconds are measured if the budget is in minutes.
        sizes: number of images in a step and in each split.
        timeline: the run's length in steps.
        later_fits: the later fits of a run that is repeated; None for a new run.
        began: when the budget's clock started, with the data in the cache, on `time.monotonic`.
        size_reason, strengths_reason: the dial's reasons, or "" if it chose nothing.
        notices: decisions that may surprise, as sentences.
    """

    request: Request
    recipe: Recipe
    strengths: Strengths
    dialled: tuple[str, ...]
    fitted: tuple[str, ...]
    data: ImageData
    model: VisionTransformer
    machine: Machine
    cost: RunCost
    sizes: Sizes
    timeline: Timeline
    later_fits: list[tuple[int, int]] | None
    began: float
    size_reason: str
    strengths_reason: str
    notices: tuple[str, ...]


def make_plan(
    recipe: Recipe,
    request: Request,
    say: Say,
    recorded: Mapping[str, Any] | None = None,
    *,
    recorded_split: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> Plan:
    """Decides everything about a training.

    Args:
        say: is called with every decision that follows from data and budget.
        recorded: the parts of another run's `[resolved]` table to use again: choices in `machine` and `dial`, fits in
            `timeline`. With a `fingerprint`, the data must be those of that run.
        recorded_split: the `split.json` of that run, to cut the same images.
        strict: raise if this machine cannot honour a recorded choice, instead of choosing anew.

    Raises:
        VitreousError: machine, data, recipe and budget do not fit together.
    """
    recorded = recorded or {}
    choices, fits = recorded.get("machine", {}), recorded.get("timeline", {}).get("fits")
    notices: dict[str, None] = {}  # in order, each once

    def choose(name: str, decide: Callable[..., Machine], requested: Any) -> Machine:
        """The machine with the recorded choice `name` if there is one that can be honoured, else as requested."""
        if name not in choices:
            return decide(requested)
        try:
            return decide(choices[name], by="as recorded")
        except VitreousError as error:
            if strict:
                raise
            notices[
                f"The recorded {name} {choices[name]!r} is not possible here, so it is chosen anew. {error}"
            ] = None
            return decide("auto")

    # The machine comes first, so that impossible requests are refused before anything takes time.
    bare = choose(
        "device", lambda device, **_: machines.detect_machine(device, choices.get("threads")), request.device
    )
    bare = choose("precision", functools.partial(machines.choose_precision, bare), request.precision)
    bf16 = bare.precision == "bf16"

    # The data, and the values of the recipe that follow from them.
    data = open_module(recipe, request, say, recorded, recorded_split)
    notices |= dict.fromkeys(data.splits.warnings)
    began = time.monotonic()
    given, recipe = recipe, fit_to_data(recipe, data, say)
    fitted = [
        f"{section}.{key}"
        for section in ("model", "training")
        for key, value in vars(getattr(recipe, section)).items()
        if value != getattr(getattr(given, section), key)
    ]
    data.batch_size = recipe.training.batch_size
    data.balanced = recipe.training.balance == "sampler"
    size, classes, train = data.store.image_size, data.store.num_classes, data.splits.train
    val, test = (len(getattr(data.splits, name)) if name in request.judges else 0 for name in ("val", "test"))
    sizes = Sizes(min(data.batch_size, len(train)), len(data.train_dataloader()), val, test)

    # The network: the best settings for it here, the cost of its steps, and the size that the budget allows.
    def machine_for(network: VisionTransformer) -> Machine:
        dtypes = (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)
        obstacle = unsupported(network, dtypes) if bare.device == "cpu" else None
        machine = choose(
            "backend",
            lambda backend, **by: machines.choose_backend(bare, backend, obstacle, **by),
            request.backend,
        )
        tokens = network.num_tokens
        attention = choices.get("attention") or machines.choose_attention(bare.device, bare.precision, tokens)
        reason = f"attention: {attention} if torch computes it, for {tokens} tokens on a {bare.device}"
        if "attention" in choices:
            reason += ", as recorded"
        return machine.decided(reason, attention=attention)

    measured = recipe.budget.unit == "minutes" and not fits

    @functools.cache
    def cost_of(architecture: Architecture) -> RunCost:
        candidate = dataclasses.replace(recipe, model=architecture)
        cost = count_cost(candidate, size, classes, sizes.batch)
        if not measured:
            return cost
        twin = new_network(architecture, size, classes, request.seed)
        set_up(twin, machine_for(twin))
        return measure_seconds(cost, twin, candidate, sizes.batch, bare.device, bf16=bf16)

    def train_flops(architecture: Architecture) -> float:
        """The training FLOPs of the budget with a network; for minutes, at the speed of the recipe's own network."""
        budget = recipe.budget
        if budget.unit == "flops":
            return budget.amount
        if budget.unit == "minutes":
            flops, seconds = cost_of(recipe.model).mean()
            return 60 * budget.amount * flops / seconds
        return planned_steps(budget, cost_of(architecture), sizes) * cost_of(architecture).mean()[0]

    sized, size_reason = apply_size(recipe, train_flops)

    # The run's length, and the strengths for it.
    steps = fits[0][1] if fits else planned_steps(recipe.budget, cost_of(sized.model), sizes)
    timeline = Timeline([(0, steps)])

    def choose_strengths(total: int) -> dict[str, float]:
        return strengths_at(sized, total, sizes.steps_per_epoch, size, following)

    dialled = [*(f"model.{key}" for key in size_keys(recipe)), *strength_keys(recipe)]
    following = [key for key in recorded.get("dial", dialled) if not key.startswith("model.")]
    strengths = Strengths(choose_strengths, recorded_strengths(recorded, steps))
    complete = apply_strengths(sized, strengths[steps])

    # The network, and what computes it.
    cost = cost_of(complete.model)
    model = build_model(complete, data, request.seed)
    machine = machine_for(model)
    if machine.backend == "torch" and machine.device == "cpu" and request.backend == "auto":
        notices[next(reason for reason in machine.reasons if reason.startswith("backend:"))] = None

    shortest = cost.full.seconds + final_seconds(cost, sizes)
    if measured and shortest > 60 * sized.budget.amount:
        notices[
            f"The budget of {sized.budget} is too short here: a single step, the final evaluation and the report take "
            f"about {count(round(shortest), 'second')}, so this run will take longer."
        ] = None
    strengths_reason = describe_strengths(timeline.total / sizes.steps_per_epoch, strengths[timeline.total])
    for reason in filter(None, (size_reason, strengths_reason)):
        say(f"dial: {reason}", detail=True)
    data.augment = make_augment(complete, data, request.seed)
    flops = timeline.total * cost.mean()[0]
    machine = choose(
        "compile", lambda compile, **by: machines.choose_compile(machine, compile, flops, **by), "auto"
    )
    return Plan(
        request=request,
        recipe=complete,
        strengths=strengths,
        dialled=tuple(recorded.get("dial", dialled)),
        fitted=tuple(recorded.get("fitted", fitted)),
        data=data,
        model=set_up(model, machine),
        machine=machine,
        cost=cost,
        sizes=sizes,
        timeline=timeline,
        later_fits=[(step, total) for step, total in fits[1:]] if fits else None,
        began=began,
        size_reason=size_reason,
        strengths_reason=strengths_reason,
        notices=tuple(notices),
    )


def open_module(
    recipe: Recipe,
    request: Request,
    say: Say,
    recorded: Mapping[str, Any] | None = None,
    recorded_split: Mapping[str, Any] | None = None,
) -> ImageData:
    """Opens the data and splits them as the recipe says; the augmentation comes later.

    Args:
        recorded, recorded_split: see `make_plan`.

    Raises:
        VitreousError: the data cannot be opened, or are not those of the run.
    """
    data = ImageData(
        request.data,
        batch_size=recipe.training.batch_size,
        drop_last=recipe.training.drop_last,
        val_fraction=recipe.data.val_fraction,
        split_seed=recipe.data.split_seed,
        seed=request.seed,
        data_dir=request.data_dir,
        train_on_val="val" not in request.judges,
        recorded_split=recorded_split,
        say=say,
        classes=request.classes,
        **request.reading,
    )
    earlier = (recorded or {}).get("fingerprint")
    moved = earlier is not None and has_moved(request, recorded or {})
    try:
        data.prepare_data()
    except MissingPathError:
        if earlier is None or moved:
            raise
        raise missing_data(request.data) from None
    if earlier is not None:
        check_same_data(data.store.source, data.store.fingerprint, earlier, given=moved)
        if moved:
            say(f"The images of this run are now read from {data.store.source}; they are the same.")
    data.setup()
    for note in data.splits.notes:
        say(note, detail=True)
    return data


def fit_to_data(recipe: Recipe, data: ImageData, say: Say) -> Recipe:
    """Adapts patch size, the stride of the stem and batch size to the data set, and reports each change.

    Raises:
        VitreousError: the schedule's smaller images are too small for the network.
    """
    size = data.store.image_size
    variant = VARIANTS[recipe.variant]
    if recipe.model.stem == "conv" and "model.patch_size" not in recipe.pinned:
        doublings = math.floor(
            math.log2(size / variant.image_size * 8 / 7)
        )  # at least 7 patches along a side
        patch = max(2 * recipe.model.stem_stride, variant.architecture.patch_size * 2**doublings)
        if patch != recipe.model.patch_size:
            chosen = {"patch_size": patch}
            if patch > variant.architecture.patch_size and "model.stem_stride" not in recipe.pinned:
                chosen["stem_stride"] = 2  # so that the stem costs at 64 pixels what it costs at 32
            values = ", ".join(f"{key}: {value}" for key, value in chosen.items())
            say(f"{values}, for about the usual number of tokens at {size} pixels", detail=True)
            recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **chosen))
    images = len(data.splits.train)
    largest = max(8, 2 ** int(math.log2(max(images / 8, 1))))
    if recipe.training.batch_size > largest and "training.batch_size" not in recipe.pinned:
        say(f"batch_size: {largest}, for at least 8 steps in an epoch of {images:,} images", detail=True)
        recipe = dataclasses.replace(
            recipe, training=dataclasses.replace(recipe.training, batch_size=largest)
        )
    balance, reason = choose_balance(recipe.training.balance, data.class_counts, data.store.classes)
    if reason:
        say(f"balance: {balance}, {reason}", detail=balance == "none")
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, balance=balance))
    for phase in phases(recipe.schedule, size):
        if phase.side < size and phase.side <= recipe.model.patch_size:
            raise VitreousError(
                f"schedule.small_sides makes images of {phase.side} pixels, which are too small for patch_size "
                f"{recipe.model.patch_size}; give larger fractions of {size} pixels."
            )
    return recipe


def build_model(recipe: Recipe, data: ImageData, seed: int) -> VisionTransformer:
    """The network to train. Size, classes and whitening come from the data."""
    store, train = data.store, data.splits.train
    model = new_network(recipe.model, store.image_size, store.num_classes, seed)
    sample = train.images[:: max(1, len(train) // WHITENING_IMAGES)]
    model.init_from_data(
        normalize(to_float(torch.as_tensor(np.ascontiguousarray(sample))), store.mean, store.std)
    )
    return model


def new_network(
    architecture: Architecture, image_size: int, num_classes: int, seed: int
) -> VisionTransformer:
    """A network whose weights are a function of the seed; the caller's generator does not advance."""
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
    """Sets the model's attention and backend to the machine's choices, and returns it."""
    model.set_attention(machine.attention)
    return accelerate(model) if machine.backend == "native" else model


def make_augment(recipe: Recipe, data: ImageData, seed: int) -> Augment:
    """The recipe's augmentation, tried on one image, so that settings that do not suit the data fail at once."""
    options = dataclasses.asdict(recipe.augment)
    options["resized_crop"] = options["resized_crop"] or None
    augment = Augment(**options, fill=data.store.mean, seed=seed)
    augment(torch.as_tensor(np.array(data.splits.train.images[:1])), torch.zeros(1, dtype=torch.int64), 0)
    return augment


# ---- the records of a run


def record_dial(plan: Plan, fits: Sequence[tuple[int, int]]) -> dict[str, list[Any]]:
    """The values of each key that the dial chose: one of the network, and one for each fit of a key that follows."""
    record = {}
    for name in plan.dialled:
        section, _, key = name.partition(".")
        value = getattr(getattr(plan.recipe, section), key)
        totals = [total for _, total in fits[: 1 if section == "model" else None]]
        record[name] = [plan.strengths[total].get(name, value) for total in totals]
    return record


def recorded_strengths(resolved: Mapping[str, Any], steps: int) -> dict[int, dict[str, float]]:
    """The strengths in the `[resolved]` table of a run, by the number of steps; {} without such a record.

    Args:
        steps: the planned steps, which have the recorded strengths if the run ended before its fits were recorded.
    """
    if "dial" not in resolved:
        return {}
    fits = resolved.get("timeline", {}).get("fits", [(0, steps)])
    follow = {key: values for key, values in resolved["dial"].items() if not key.startswith("model.")}
    return {
        total: {key: values[index] for key, values in follow.items()} for index, (_, total) in enumerate(fits)
    }


def record_request(request: Request) -> dict[str, Any]:
    """The request for `recipe.toml`, its paths made absolute, so that it can be used from any folder."""
    data = request.data
    if not isinstance(data, str | Path):
        data = ARRAYS
    elif data not in DATASETS:
        data = str(path_of(data).resolve())
    data_dir = str(path_of(request.data_dir).resolve()) if request.data_dir else None
    reading = vars(read_options(**request.reading))
    reading = {name: reading[name] for name in READING}
    return {**vars(request), **reading, "data": data, "data_dir": data_dir}


def stored_request(run: Run, data: Any = None) -> Request:
    """The request that a run was started with.

    Args:
        data: the same data again, for a run on arrays or on data that have moved.

    Raises:
        VitreousError: the record is missing or has other entries; or the run was trained on arrays, and they are
            missing.
    """
    if "request" not in run.resolved:
        raise missing_table(run, "resolved.request")
    try:
        request = Request(**runs.with_earlier_defaults(run.resolved["request"]))
    except TypeError:
        raise other_version(run) from None
    if data is None:
        if request.data == ARRAYS:
            raise missing_arrays(run.path)
        return request
    if isinstance(data, str | Path | ImageStore):
        return dataclasses.replace(request, data=data, classes=None)  # they have names for their classes
    return dataclasses.replace(request, data=data)


def has_moved(request: Request, recorded: Mapping[str, Any]) -> bool:
    """Whether a request has other data than the `[resolved]` table of its run; arrays always count as the same."""
    return record_request(request)["data"] != recorded.get("request", {}).get("data")


def check_record(run: Run) -> dict[str, Any]:
    """The run's `[resolved]` table, checked to hold everything that resuming or repeating needs.

    Raises:
        VitreousError: a part of it is missing or damaged, or another version of vitreous wrote it.
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
    """Raises `VitreousError` if `[resolved]` in `file` has a value that no run writes. Missing entries are accepted."""
    try:
        tables = {"resolved": check_table(resolved, "resolved")}
        for name in ("machine", "versions", "request", "timeline", "environment"):
            tables[name] = check_table(resolved.get(name, {}), f"resolved.{name}")
        kinds = {
            "resolved": {"fingerprint": str, "exact": bool, "repeats": str, "fitted": tuple[str, ...]},
            "machine": get_type_hints(Machine),
            "versions": {"vitreous": str, "torch": str},
        }
        for name, known in kinds.items():
            for key in known.keys() & tables[name].keys():
                convert(known[key], tables[name][key], key if name == "resolved" else f"{name}.{key}")
        machine = tables["machine"]
        if machine.get("threads", 1) < 1:
            raise VitreousError(f"machine.threads is {machine['threads']}; it must be at least 1.")
        names = {
            "device": DEVICES,
            "precision": PRECISIONS,
            "backend": BACKENDS,
            "attention": ATTENTION,
        }
        for key in names.keys() & machine.keys():
            if machine[key] not in names[key]:
                raise unknown(f"machine.{key}", machine[key], names[key])
        if "fits" in tables["timeline"]:
            check_fits(tables["timeline"]["fits"])
        check_dial(check_table(resolved.get("dial", {}), "dial"), tables["timeline"].get("fits", [None]))
    except VitreousError as error:
        raise VitreousError(f"{file} is not as a run wrote it: {error} Restore it, or train anew.") from None


def check_table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise VitreousError(f"{name} must be a table, not {value!r}.")
    return value


def check_fits(fits: Any) -> None:
    """Raises `VitreousError` unless `fits` are (step, total steps) pairs that a `Timeline` can hold."""
    try:
        pairs = [convert(tuple[int, ...], fit, "timeline.fits") for fit in fits]
        rising = all(before < step for (before, _), (step, _) in itertools.pairwise(pairs))
        if pairs[0][0] == 0 and rising and all(total >= max(step, 1) for step, total in pairs):
            return
    except (TypeError, ValueError, IndexError, VitreousError):
        pass
    raise VitreousError(f"timeline.fits must be pairs of a rising step and a total, not {fits!r}.")


def check_dial(dial: Mapping[str, Any], fits: Sequence[Any]) -> None:
    """Raises `VitreousError` unless `dial` has a value of each key for each of the fits, as `record_dial` writes."""
    for key, values in dial.items():
        expected = 1 if key.startswith("model.") else len(fits)
        if not isinstance(values, list) or len(values) != expected:
            raise VitreousError(f"dial.{key} must be a list of {count(expected, 'value')}, not {values!r}.")


def missing_table(run: Run, table: str) -> VitreousError:
    return VitreousError(f"{run.path / 'recipe.toml'} has no [{table}]; restore it, or train anew.")


def other_version(run: Run) -> VitreousError:
    """The error for a run whose record has other entries than this version writes."""
    file, version = run.path / "recipe.toml", run.resolved.get("versions", {}).get("vitreous")
    if version in (None, vitreous.__version__):
        return VitreousError(
            f"{file} has other entries than vitreous {vitreous.__version__} writes; restore it, or train anew."
        )
    return VitreousError(
        f"{file} was written by vitreous {version}, and this is {vitreous.__version__}, which records other entries; "
        f"use vitreous {version} for this run, or train anew."
    )


def count_parameters(model: VisionTransformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
