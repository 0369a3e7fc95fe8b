"""`train`, `resume`, `repeat`, `evaluate` and `show`: the page that connects all parts."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import platform
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch

import vitreous
from vitreous import machine as machines
from vitreous import recipe as recipes
from vitreous import run as runs
from vitreous.advice import far_from_plan
from vitreous.balance import is_unequal
from vitreous.bundle import save_bundle
from vitreous.data.copies import copies_record
from vitreous.data.module import ImageData
from vitreous.data.objects import is_dataset, name_of
from vitreous.data.show import check_target, default_target
from vitreous.data.show import show as draw
from vitreous.data.store import ImageStore
from vitreous.dial import describe_size, describe_strengths
from vitreous.errors import InterruptedRun, VitreousError, unknown
from vitreous.evaluation import bundle_of, final_figures
from vitreous.evaluation import evaluate as evaluate  # part of this interface
from vitreous.files import path_of
from vitreous.habits import UnknownKeyError, unknown_argument, unknown_key_in_python
from vitreous.model.summary import describe_architecture, render
from vitreous.plan import (
    ARRAYS,
    Plan,
    check_record,
    check_values,
    count_parameters,
    make_augment,
    make_plan,
    record_dial,
    record_request,
    stored_request,
)
from vitreous.recipe import AugmentSection, Budget, Recipe, with_values
from vitreous.report import write_report
from vitreous.request import BALANCES, Request
from vitreous.run import Run, Say, accuracies, check_same_data, run_name
from vitreous.training.budget import BudgetKeeper
from vitreous.training.checkpoint import CheckpointKeeper, WholeFile, newest, numbered, step_of
from vitreous.training.classifier import Classifier
from vitreous.training.cost import encoder_flops_share
from vitreous.training.loggers import MetricsCsv, check_logger, extra_logger, finish
from vitreous.training.progress import Progress, quiet_lightning
from vitreous.wording import count, duration, percent, scientific, shortened

SHOWN_CLASSES = 10  # names in the line about the data
DIVERGED = 10  # times the loss of guessing, ln(classes)
# Environment variables that change the order or precision of sums inside torch's kernels.
ENVIRONMENT = (
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def with_hints(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Refuses an unknown argument or recipe key and says what to write, as the command line does."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for key in kwargs:
            if key not in known:
                raise unknown_argument(function.__name__, key, known, recipes.keys(), kwargs[key])
        try:
            return function(*args, **kwargs)
        except UnknownKeyError as error:
            raise unknown_key_in_python(error.key, recipes.keys(), error.value, known) from None

    return checked


@with_hints
def train(
    data: Any = "cifar10",
    recipe: str | Path | Recipe = "default",
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    flops: float | None = None,
    balance: str | None = None,
    out: Path | str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    seed: int = 42,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    logger: str = "csv",
    data_dir: Path | str | None = None,
    image_size: int | None = None,
    fit: str = "stretch",
    value_range: tuple[float, float] | str | None = None,
    splits: str | Mapping[str, str] = "auto",
    group_by: str | None = None,
    skip_bad: bool = False,
    classes: Sequence[str] | None = None,
    judge: str = "both",
    verbose: bool = False,
) -> Run:
    """Trains a Vision Transformer from scratch, evaluates it, and writes a run folder.

    Args:
        data: "cifar10", "cifar100", "shapes", a folder or zip of images, `(images, labels)`, a Dataset of torch or
            Hugging Face, {"train": …, "test": …} with such parts, or an `ImageStore`; see `open_data`.
        recipe: recipe to start from: a name (see vitreous recipes) or a TOML file, such as a run's recipe.toml;
            or a `Recipe`.
        minutes: wall-clock minutes, from packed data to the printed test accuracy. At most one budget
            is given: minutes, epochs, steps or flops.
        epochs: how often each training image is used.
        steps: optimizer steps.
        flops: training FLOPs, as in 6e13.
        balance: treatment of unequal classes; loss weighs them alike, sampler draws them equally often, auto decides by
            their sizes: "auto", "none", "loss" or "sampler".
        out: run folder; by default runs/DATA-RECIPE-CHANGES-seedN-NNN.
        overrides: changes to the recipe, as `{"model.depth": 6}` or `["depth=6"]`.
        seed: seed for weights, image order, augmentation and dropout.
        device: where to train: "auto", "cpu", "cuda" or "mps".
        precision: number format of matrix products; auto is bf16 on hardware that has it: "auto", "32" or "bf16".
        backend: what computes the network; native is kernels compiled for this CPU, auto is native where possible:
            "auto", "torch" or "native".
        logger: csv is metrics.csv alone; tensorboard and wandb record the run there in addition: "csv",
            "tensorboard" or "wandb".
        data_dir: cache of packed data; by default $VITREOUS_DATA or ~/.cache/vitreous.
        image_size: side in pixels to resize images to.
        fit: how images that are not square become square: "crop", "pad" or "stretch".
        value_range: values of black and white in images of more than 8 bits, as in 0,4095; by default from the files.
        splits: auto recognises split folders by their names, none takes every folder for a class, train=DIR,test=DIR
            names them.
        group_by: regular expression over image names; images with the same match stay in one split.
        skip_bad: skip images that cannot be read instead of stopping.
        classes: class names, for arrays, in the order of the labels.
        judge: splits to evaluate at the end; val leaves test unread, test also trains on the validation images: "both",
            "val" or "test".
        verbose: print everything that log.txt records.

    Returns:
        The run, with `.summary`, `.model`, `.predict(images)` and `.path`.

    Raises:
        VitreousError: the caller can correct something; the message says what.
        KeyboardInterrupt: the training was stopped; the run folder can be resumed.
    """
    request = Request(
        data,
        seed,
        device,
        precision,
        backend,
        logger,
        data_dir,
        image_size,
        skip_bad,
        classes,
        judge,
        fit,
        value_range,
        splits,
        group_by,
    )
    check_data(data, recipe)
    recorded = recorded_choices(recipe, request)
    if not isinstance(overrides, str | Mapping) and isinstance(overrides, Iterable):
        overrides = list(overrides)  # it may be a generator, and is read twice
    if not isinstance(recipe, Recipe):
        recipe = recipes.load(notebook_for(data) if recipe == "notebook" else str(recipe), overrides)
    elif overrides:
        raise VitreousError("Overrides need a recipe given by name; change the values in the Recipe itself.")
    recipe = with_balance(
        with_budget(recipe, minutes=minutes, epochs=epochs, steps=steps, flops=flops), balance
    )
    name = run_name(data_name(data), recipe.name, request.seed, overrides)
    with runs.new_folder(out, name) as path:
        return _train(path, recipe, request, recorded, verbose=verbose)


def with_budget(recipe: Recipe, **budgets: float | None) -> Recipe:
    """The recipe with the one budget that is not None, or with its own.

    Args:
        budgets: amounts by unit.
    """
    amounts = {unit: _number(unit, amount) for unit, amount in budgets.items() if amount is not None}
    if len(amounts) > 1:
        raise VitreousError(f"Give one budget, not {' and '.join(amounts)}.")
    for unit, amount in amounts.items():
        recipe = dataclasses.replace(recipe, budget=Budget(amount, unit))
    return recipe


def with_balance(recipe: Recipe, balance: str | None) -> Recipe:
    """The recipe with this treatment of unequal classes, or with its own if it is None."""
    if balance is None:
        return recipe
    if balance not in BALANCES:
        raise unknown("balance", balance, BALANCES)
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, balance=balance))


def _number(unit: str, amount: Any) -> float:
    try:
        return float(amount)
    except (TypeError, ValueError):
        raise VitreousError(f"A budget of {unit} must be a number, not {amount!r}.") from None


@with_hints
def resume(path: Path | str, data: Any = None, *, verbose: bool = False) -> Run:
    """Continues an interrupted run, bit for bit, with the decisions that were made at its start.

    Args:
        path: the run folder.
        data: the same data again, for a run on arrays, or on a folder that has moved.
        verbose: print everything that log.txt records.

    Raises:
        VitreousError: the run does not exist, its data have changed, or this machine cannot honour its decisions.
    """
    run = Run(path)
    if is_finished(run):
        reached = " and ".join(accuracies(run.summary)) or "no accuracy recorded"
        print(f"{run.path} is finished ({reached}), so no training is left.")
        if not (run.path / "report.html").exists():  # the disk may have been full
            print(f"report: {write_report(run.path)}")
        return run
    recorded = check_record(run)
    return _train(run.path, run.recipe, stored_request(run, data), recorded, resumes=True, verbose=verbose)


@with_hints
def repeat(
    path: Path | str, data: Any = None, *, out: Path | str | None = None, verbose: bool = False
) -> Run:
    """Repeats a finished run, bit for bit, in a run folder of its own.

    It uses the run's request, recipe, machine choices and number of steps, which for a budget of minutes was fitted
    while it ran. A choice that this machine cannot honour is reported. At the end the weights are compared, and the
    result is recorded as `exact` in the `[resolved]` table of the new run.

    Args:
        path: the run folder.
        data: the same data again, for a run on arrays, or on a folder that has moved.
        out: run folder; by default the next number of the run's own name in runs/.
        verbose: print everything that log.txt records.

    Raises:
        VitreousError: the run does not exist or is not finished, or its data have changed.
    """
    run = Run(path)
    recorded, request = check_record(run), stored_request(run, data)
    if not is_finished(run) or "timeline" not in recorded:
        raise VitreousError(
            f"{run.path} is not finished; continue it with --resume {shlex.quote(str(run.path))} and repeat it then."
        )
    numbered = re.fullmatch(r"(.+-seed\d+)-\d{3,}", run.path.name)
    name = numbered[1] if numbered else run_name(data_name(request.data), run.recipe.name, request.seed)
    with runs.new_folder(out, name) as new:
        return _train(new, run.recipe, request, recorded, repeats=run, verbose=verbose)


@with_hints
def report(path: Path | str, data: Path | str | None = None) -> Path:
    """Writes the report of a run anew.

    Args:
        path: the run folder.
        data: where the data of the run are now, if they have moved. They are compared with the run's fingerprint, and
            the new place is recorded in `recipe.toml`, where later commands find it.

    Returns:
        The path of the report.

    Raises:
        VitreousError: the run does not exist, or these are not its data.
    """
    run = Run(path)
    if data is not None:
        if not isinstance(data, str | Path):
            raise VitreousError(
                f"data is {type(data).__name__}; give the path where the data of the run are now, which is recorded."
            )
        recorded, request = check_record(run), stored_request(run, data)
        with machines.keep_torch():
            module = ImageData(data, data_dir=request.data_dir, classes=request.classes, **request.reading)
            module.prepare_data()
        check_same_data(module.store.source, module.store.fingerprint, recorded["fingerprint"], given=True)
        place = place_of_data(request, recorded)
        runs.record_data(run.path, place)
        print(f"The images of {run.path} are those of {place}, where later commands will read them.")
    return write_report(run.path)


def place_of_data(request: Request, recorded: Mapping[str, Any]) -> str:
    """Where the data of a run are, for its record; the earlier place where only the caller has the data."""
    place = record_request(request)["data"]
    return recorded["request"]["data"] if place == ARRAYS else place


def is_finished(run: Run) -> bool:
    return (run.path / "summary.json").exists() and run.summary.get("status") == "finished"


def _train(
    path: Path,
    recipe: Recipe,
    request: Request,
    recorded: Mapping[str, Any] | None = None,
    *,
    resumes: bool = False,
    repeats: Run | None = None,
    verbose: bool = False,
) -> Run:
    """A complete training: plan, record, train, evaluate.

    Args:
        recorded: the `[resolved]` table of the run that is resumed or repeated, or a part of the table of the run whose
            recipe is used.
    """
    check_torch()
    check_logger(request.logger)
    with (
        runs.log(path, verbose) as say,
        quiet_lightning(),
        machines.keep_memory(),
        machines.keep_torch(),
        machines.deterministic(),
        machines.within_memory(),
    ):
        earlier = repeats
        if resumes and ((path / "split.json").exists() or numbered(path / "checkpoints")):
            earlier = Run(path)  # otherwise it was killed before it had begun
        plan = make_plan(
            recipe,
            request,
            say,
            recorded,
            recorded_split=earlier.split if earlier else None,
            strict=resumes,
        )
        resolved = resolve(plan, recorded if resumes or repeats else None, say)
        if resumes:
            place = place_of_data(request, recorded)  # type: ignore[arg-type]
            stored = {**recorded["request"], "data": place}  # type: ignore[index]
            resolved = {**recorded, "exact": resolved["exact"], "request": stored}  # type: ignore[dict-item]
        if repeats:
            # The fits are recorded from the start, so that a killed repeat is resumed as a repeat.
            resolved |= {"repeats": str(repeats.path.resolve()), "timeline": recorded["timeline"]}  # type: ignore[index]
            resolved |= {"dial": recorded.get("dial", {})}  # type: ignore[union-attr]
        runs.write_recipe(path, plan.recipe, resolved)
        runs.write_json(path / "split.json", plan.data.splits.record())
        copies = copies_record(plan.data.store, plan.data.splits.plan.sources)
        if copies and not (path / "copies.json").exists():
            runs.write_json(path / "copies.json", copies)

        with resumable(path, say):
            # Train.
            keeper = BudgetKeeper(
                plan.timeline,
                plan.recipe.budget,
                plan.cost,
                plan.sizes,
                began=plan.began,
                strengths=plan.strengths,
                recorded=plan.later_fits,
                note=lambda line: say(line, detail=True),
            )
            checkpoints = CheckpointKeeper(path / "checkpoints", say=say)
            start = newest(checkpoints.folder, say) if resumes else None
            introduce(plan, path, start, say)
            trainer = fit(plan, path, keeper, checkpoints, start)
            fits = [*plan.timeline.fits, *keeper.recorded]
            resolved |= {"timeline": {"fits": fits}, "dial": record_dial(plan, fits)}  # for `repeat`
            recipe = with_values(plan.recipe, plan.strengths[plan.timeline.total])
            runs.write_recipe(path, recipe, resolved)

            # Save the model, and take every figure from the saved one.
            data, interrupted = plan.data, checkpoints.interrupted
            save_bundle(bundle_of(plan.model, data.store, data.splits.train), path / "bundle")
            if "repeats" in resolved and not interrupted:
                resolved["exact"] = has_same_weights(path, Path(resolved["repeats"]), resolved["exact"], say)
                runs.write_recipe(path, recipe, resolved)
            summary = summarize(plan, keeper, trainer.global_step, interrupted)
            if not interrupted:
                figures = final_figures(path, data.splits, request.judges, plan.machine.device, say)
                finish(trainer.loggers, figures, trainer.global_step - 1)  # Lightning counts steps from zero
                summary |= figures
                if has_diverged(figures, data.store.num_classes):
                    summary["diverged"] = True
            summary["total_seconds"] = round(keeper.total_seconds, 2)
            runs.write_json(path / "summary.json", summary)
            if interrupted:
                raise KeyboardInterrupt
            conclude(summary, plan, path, say)
            say(f"report: {write_report(path)}")  # after the figures, since its heat maps take seconds
    return Run(path)


def fit(
    plan: Plan, path: Path, keeper: BudgetKeeper, checkpoints: CheckpointKeeper, start: Path | None
) -> pl.Trainer:
    """Runs Lightning's Trainer from the checkpoint `start`, or from the beginning, to the end of the budget."""
    machine = plan.machine
    classifier = Classifier(
        plan.model,
        plan.recipe,
        timeline=plan.timeline,
        seed=plan.request.seed,
        class_counts=plan.data.class_counts,
    )
    if machine.compile:
        for block in plan.model.blocks:
            block.compile(dynamic=False)
    start_step = step_of(start) if start else 0
    metrics = MetricsCsv(
        path / "metrics.csv",
        seconds=lambda: keeper.train_seconds,
        steps_per_epoch=plan.sizes.steps_per_epoch,
        start_step=start_step,
    )

    def follow(strengths: Mapping[str, Any]) -> None:
        """Trains on with other values of the keys that follow the epochs."""
        recipe = with_values(plan.recipe, strengths)
        if recipe != classifier.recipe:
            keeper.note(describe_strengths(plan.timeline.total / plan.sizes.steps_per_epoch, strengths))
            classifier.recipe = recipe
            plan.data.augment = make_augment(recipe, plan.data, plan.request.seed)

    keeper.follow = follow
    extra = extra_logger(plan.request.logger, path, plan.recipe.tables())
    trainer = pl.Trainer(
        accelerator={"cuda": "gpu"}.get(machine.device, machine.device),
        devices=1,
        precision="bf16-mixed" if machine.precision == "bf16" else "32-true",
        max_epochs=-1,  # the keeper ends the training
        check_val_every_n_epoch=keeper.validate_every,
        limit_val_batches=1.0 if plan.sizes.val else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=min(50, max(1, plan.timeline.total // 400)),
        logger=[metrics, extra] if extra else [metrics],
        callbacks=[keeper, Progress(keeper), checkpoints],
        plugins=WholeFile(),
        default_root_dir=path,
        enable_checkpointing=False,  # CheckpointKeeper writes whole, hashed files
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(classifier, datamodule=plan.data, ckpt_path=start, weights_only=True)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns a second Ctrl-C into an exit
        checkpoints.interrupted = True
    except RuntimeError as error:
        if start and "loading state_dict" in str(error):
            raise VitreousError(
                f"{path / 'recipe.toml'} has changed since the run began, so its checkpoint does not fit; restore it, "
                "or train anew."
            ) from None
        raise
    return trainer


@with_hints
def show(
    data: Any,
    recipe: str = "default",
    out: Path | str | None = None,
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    flops: float | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    data_dir: Path | str | None = None,
    image_size: int | None = None,
    fit: str = "stretch",
    value_range: tuple[float, float] | str | None = None,
    splits: str | Mapping[str, str] = "auto",
    group_by: str | None = None,
    skip_bad: bool = False,
) -> Path:
    """Writes a PNG of a data set: images with their labels, and the same images as a training would augment them.

    The augmentation depends on recipe and budget, so both are given as for `train`. For a budget of minutes, a few
    steps are timed first.

    Args:
        out: the PNG, which replaces a PNG of that name; by default DATA.png in the current folder, or DATA-2.png and so
            on if DATA.png is not from this function.

    Returns:
        The path of the PNG.

    Raises:
        VitreousError: as `train` does.
    """
    target = default_target(data_name(data)) if out is None else check_target(out)
    chosen = recipes.load(notebook_for(data) if recipe == "notebook" else recipe, overrides)
    chosen = with_budget(chosen, minutes=minutes, epochs=epochs, steps=steps, flops=flops)
    request = Request(
        data,
        data_dir=data_dir,
        image_size=image_size,
        fit=fit,
        value_range=value_range,
        splits=splits,
        group_by=group_by,
        skip_bad=skip_bad,
    )
    with machines.keep_torch():
        plan = make_plan(chosen, request, lambda line, detail=False: None if detail else print(line))
    planned_epochs = plan.timeline.total / plan.sizes.steps_per_epoch
    length = str(chosen.budget)
    if chosen.budget.unit != "epochs":
        length += f" ({planned_epochs:.1f} epochs)"
    print(f"augmentation: {describe_augmentation(plan.recipe.augment)}, as in a training of {length}")
    return draw(plan.data.store, plan.data.augment, target)


def resolve(plan: Plan, earlier: Mapping[str, Any] | None, say: Say) -> dict[str, Any]:
    """The `[resolved]` table of a run: everything that was decided and detected.

    Args:
        earlier: the `[resolved]` table of the run that is resumed or repeated, to compare with.
    """
    store = plan.data.store
    resolved = {
        "fingerprint": store.fingerprint,
        "data_source": store.source,
        "image_size": store.image_size,
        "num_classes": store.num_classes,
        "parameters": count_parameters(plan.model),
        "steps_per_epoch": plan.sizes.steps_per_epoch,
        "step_flops": plan.cost.full.flops,
        "fitted": list(plan.fitted),
        "exact": True,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "vitreous": vitreous.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch_lightning": pl.__version__,
            "numpy": np.__version__,
        },
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "machine": plan.machine.record(),
        "request": record_request(plan.request),
        "dial": record_dial(plan, plan.timeline.fits),
    }
    if earlier is None:
        return resolved
    changes = differences(earlier, resolved)
    if changes:
        say(f"The weights may differ from those of the earlier run in their last bits: {', '.join(changes)}.")
    return {**resolved, "exact": earlier["exact"] and not changes}


def differences(earlier: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The facts that may give two runs of the same recipe, seed and data different bits.

    Each of these facts can change the order of additions: device, processor and its vector extensions, precision,
    backend, attention, compiler, number of threads, versions of torch and vitreous, and the variables in `ENVIRONMENT`.
    Compilation depends on the training's FLOPs, which are measured for a budget of minutes. Two such runs may differ in
    it, but a repeat uses the recorded choice.

    Args:
        earlier, current: `[resolved]` tables.
    """
    machine = (
        "device",
        "name",
        "capability",
        "precision",
        "matmul_precision",
        "backend",
        "attention",
        "compile",
        "compiler",
        "threads",
    )
    pairs = [(name, earlier["machine"][name], current["machine"][name]) for name in machine]
    pairs += [(name, earlier["versions"][name], current["versions"][name]) for name in ("torch", "vitreous")]
    pairs += [
        (name, *(table.get("environment", {}).get(name) for table in (earlier, current)))
        for name in ENVIRONMENT
    ]
    return [f"{name} was {old or 'none'} and is {new or 'none'}" for name, old, new in pairs if old != new]


def has_same_weights(path: Path, original: Path, expected: bool, say: Say) -> bool:
    """Whether the run at `path` has the weights of the `original` that it repeats; `expected` if those are gone."""
    try:
        digests = {
            sha256((run / "bundle" / "model.safetensors").read_bytes()).digest() for run in (original, path)
        }
    except OSError:
        say(f"The weights of {original} cannot be read, so they are not compared.")
        return expected
    same = len(digests) == 1
    say(
        f"The weights are those of {original}, to the bit."
        if same
        else f"The weights differ from {original}'s."
    )
    return same


def introduce(plan: Plan, path: Path, start: Path | None, say: Say) -> None:
    """Announces the training in three lines: the data, the network, the budget. All else is detail.

    Args:
        start: the checkpoint that the run continues from, or None.
    """
    recipe = plan.recipe
    for notice in plan.notices:
        say(notice)
    for reason in plan.machine.reasons:
        if reason not in plan.notices:
            say(reason, detail=True)
    size, classes = plan.model.image_size, plan.model.num_classes
    say(render(describe_architecture(recipe.variant, recipe.model, size, classes)), detail=True)
    optimizer = f"AdamW at learning rate {recipe.optimizer.learning_rate:g}"
    if recipe.optimizer.name == "muon":
        matrices = f"Muon at learning rate {recipe.optimizer.muon_learning_rate:g} for matrices"
        optimizer = f"{matrices}, {optimizer} for the rest"
    say(f"optimizer: {optimizer}", detail=True)
    say(f"cost: {plan.cost.mean()[0] / 1e9:,.1f} GFLOP a step, on average", detail=True)
    say(f"data: {describe_data(plan.data)}")
    say(f"network: {describe_network(plan, known=start is None)}")
    resumed = f", resumed after step {step_of(start):,} ({start.name})" if start else ""
    say(f"budget: {describe_budget(plan, known=start is None)}{resumed}, saved in {path}")


def describe_data(data: ImageData) -> str:
    """The data in a line, with the origin of the validation and test images."""
    splits, store = data.splits, data.store
    origin = dict.fromkeys(splits.cut, " (cut from training)")
    if "test" not in store.splits and "val" in store.splits:
        origin["test"] = " (its val split)"
    validation = f"{len(splits.val):,} to validate{origin.get('val', '')}"
    if data.train_on_val:
        validation = "validation images among them"
    return (
        f"{store.name}, {count(len(splits.train), 'image')} to train on, {validation}, "
        f"{len(splits.test):,} to test{origin.get('test', '')}, {store.num_classes} classes "
        f"({shortened(store.classes, SHOWN_CLASSES)}), {store.image_size} x {store.image_size} pixels"
    )


def describe_network(plan: Plan, known: bool) -> str:
    """The network in a line, with the dial's reasons for its size and augmentation.

    Args:
        known: whether the plan knows the augmentation. A resumed run has it in its checkpoint.
    """
    recipe = plan.recipe
    size = "" if plan.size_reason else f"{describe_size(recipe.model)}, "
    parameters = count(count_parameters(plan.model), "parameter")
    augmentation = plan.strengths_reason or f"augmentation: {describe_augmentation(recipe.augment)}"
    if not known and plan.strengths[plan.timeline.total]:
        augmentation = ""
    reasons = "; ".join(filter(None, (plan.size_reason, augmentation)))
    return f"{recipe.variant}, {size}{parameters}" + (f" ({reasons})" if reasons else "")


def describe_augmentation(augment: AugmentSection) -> str:
    """The augmentations that are on: "crop 2, flip alternating"."""
    values = dataclasses.asdict(augment)
    off = dataclasses.asdict(AugmentSection())
    active = [
        name
        if value is True
        else f"{name} {'-'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in values.items()
        if value != off[name]
    ]
    return ", ".join(active) or "none"


def describe_budget(plan: Plan, known: bool) -> str:
    """The budget in a line, and its length in steps and epochs.

    Args:
        known: whether the plan knows that length. A resumed run has it in its checkpoint.
    """
    budget, sizes = plan.recipe.budget, plan.sizes
    amount = f"{scientific(budget.amount)} FLOPs" if budget.unit == "flops" else str(budget)
    if not known and budget.unit == "minutes":
        return amount
    total = plan.later_fits[-1][1] if plan.later_fits else plan.timeline.total
    about = "about " if budget.unit == "minutes" and plan.later_fits is None else ""
    steps = f"{about}{count(total, 'step')} of {count(sizes.batch, 'image')}"
    epochs = f"{total / sizes.steps_per_epoch:.2f} epochs"
    if budget.unit == "steps":
        return f"{steps}, {epochs}"
    return f"{amount}, {steps}" if budget.unit == "epochs" else f"{amount}, {steps}, {epochs}"


def summarize(plan: Plan, keeper: BudgetKeeper, steps: int, interrupted: bool) -> dict[str, Any]:
    """The run's summary without the figures of its model."""
    return {
        "status": "interrupted" if interrupted else "finished",
        "data": plan.data.store.name,
        "recipe": plan.recipe.name,
        "seed": plan.request.seed,
        "parameters": count_parameters(plan.model),
        "steps": steps,
        "epochs": round(steps / plan.sizes.steps_per_epoch, 4),
        "planned_epochs": round(plan.timeline.fits[0][1] / plan.sizes.steps_per_epoch, 4),
        "train_flops": keeper.flops,
        "planned_flops": round(plan.timeline.fits[0][1] * plan.cost.mean()[0]),
        "encoder_flops_share": round(encoder_flops_share(plan.model, plan.recipe.schedule), 4),
        "train_seconds": round(keeper.train_seconds, 2),
        "images_per_second": round(steps * plan.data.batch_size / max(keeper.train_seconds, 1e-9), 2),
    }


def conclude(summary: Mapping[str, Any], plan: Plan, path: Path, say: Say) -> None:
    """Reports the result of the run in `path` in a sentence, and its cost in a line."""
    split = "test" if "test_acc" in summary else "val"
    run = Run(path)
    leaks = run.copies.get("leaks", [])
    copied = len({leak["name"] for leak in leaks if leak["split"] == "test"})
    judged = getattr(plan.data.splits, split)
    if is_unequal(np.bincount(judged.labels).tolist()):
        say(describe_macro(summary))
    say(describe_result(summary, len(plan.data.splits.val), len(plan.data.splits.test), copied))
    say(
        ", ".join(f"{key} {summary[key]:.4f}" for key in summary if key.endswith(("_acc", "_loss"))),
        detail=True,
    )
    if summary.get("diverged"):
        say(
            f"Warning: the training diverged ({split}_loss {summary[f'{split}_loss']:.4g}), so this model is useless; "
            "train again with a smaller learning_rate."
        )
    missed = far_from_plan(summary, run.resolved)
    if missed:
        say(f"{missed.shows} {missed.step}")
    say(
        f"{count(summary['steps'], 'step')}, {summary['epochs']:.2f} epochs, "
        f"{scientific(summary['train_flops'], 3)} FLOPs, "
        f"{summary['images_per_second']:,.0f} images/s, {duration(summary['total_seconds'])} in all"
    )


def describe_macro(summary: Mapping[str, Any]) -> str:
    """The macro recalls as a sentence, for data whose accuracy says little about the smaller classes."""
    recalls = [
        f"{percent(summary[f'{split}_cat_recall'])} on {name}"
        for split, name in (("test", "test"), ("val", "validation"))
        if f"{split}_cat_recall" in summary
    ]
    return f"Mean of the classes' recalls, which counts unequal classes alike: {', '.join(recalls)}."


def describe_result(summary: Mapping[str, Any], val_images: int, test_images: int, copied: int = 0) -> str:
    """The accuracies as sentences, with the number of images behind each and the majority-class baseline.

    Args:
        copied: number of test images that are copies of training images.
    """
    split = "test" if "test_acc" in summary else "val"
    baseline = f"(always guessing the largest class: {percent(summary[f'{split}_majority'])})"
    if split == "val":
        return (
            f"Validation accuracy: {percent(summary['val_acc'])} on {count(val_images, 'image')} {baseline}. "
            "The test images were not looked at."
        )
    validation = (
        f"; validation {percent(summary['val_acc'])} on {val_images:,}" if "val_acc" in summary else ""
    )
    novelty = f", {copied:,} of them in training too" if copied else " it had never seen"
    return (
        f"Test accuracy: {percent(summary['test_acc'])} on {count(test_images, 'image')}{novelty} "
        f"{baseline}{validation}."
    )


def has_diverged(figures: Mapping[str, float], num_classes: int) -> bool:
    """Whether a final loss is not finite, or far above that of guessing."""
    losses = [value for name, value in figures.items() if name.endswith("_loss")]
    return not all(loss <= DIVERGED * math.log(num_classes) for loss in losses)  # NaN fails the comparison


@contextmanager
def resumable(path: Path, say: Say) -> Iterator[None]:
    """Adds the command that continues the run to whatever ends it early. Ctrl-C also writes a report."""
    hint = f"vitreous train --resume {shlex.quote(str(path))}"
    try:
        yield
    except KeyboardInterrupt:
        say(f"report: {write_report(path)}")
        say(f"Interrupted; continue with: {hint}")
        raise InterruptedRun from None
    except VitreousError as error:
        raise VitreousError(f"{error} Then continue with: {hint}") from None


def data_name(data: Any) -> str:
    """The name of the data in that of a run folder: a data set's own name, or the last part of a path."""
    if isinstance(data, str | Path):
        path = path_of(data)
        stem = (path.resolve() if path.name in ("", "..") else path).stem
        return "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-") or "data"
    return data.name if isinstance(data, ImageStore) else name_of(data)


def notebook_for(data: Any) -> str:
    """The recipe that "notebook" stands for, which depends on the data."""
    name = recipes.notebook(data_name(data))
    print(f"recipe: {name}, which 'notebook' means for these data")
    return name


def check_torch() -> None:
    """Raises `VitreousError` if the caller has set torch in a way that prevents training."""
    if torch.get_default_dtype() != torch.float32 or not torch.is_grad_enabled():
        raise VitreousError(
            "Training needs gradients and float32 as torch's default; call it outside of torch.no_grad() and "
            "torch.inference_mode(), and with torch.set_default_dtype(torch.float32)."
        )


def check_data(data: Any, recipe: Any) -> None:
    """Raises `VitreousError` if arrays were given as two arguments instead of one pair."""
    if isinstance(recipe, str | Path | Recipe):
        return
    if isinstance(data, tuple | list) and isinstance(recipe, tuple | list):
        raise VitreousError(
            "The second argument is a recipe. A test split of your own goes into the data: "
            "train(((images, labels), (test_images, test_labels)))."
        )
    if is_dataset(recipe):
        raise VitreousError(
            "The second argument is a recipe. A test split of your own goes into the data: train((train, test))."
        )
    raise VitreousError(
        f"The second argument is a recipe, by name, file or as a Recipe, not {type(recipe).__name__}; "
        "give images and labels as one pair: train((images, labels))."
    )


def recorded_choices(recipe: str | Path | Recipe, request: Request) -> dict[str, Any]:
    """The choices of the run whose recipe.toml is used, as far as the request leaves them open; {} without a run."""
    if isinstance(recipe, Recipe) or not str(recipe).endswith(".toml"):
        return {}
    resolved = recipes.read(str(recipe)).get("resolved")
    if resolved is None:
        return {}
    check_values(resolved, recipe)
    machine = resolved.get("machine", {})
    requested = {
        "precision": request.precision,
        "backend": request.backend,
        "attention": "auto",
        "compile": "auto",
    }
    missing = [name for name in requested if name not in machine]
    if missing:
        print(f"{recipe} does not record {', '.join(missing)}, so every machine choice starts from auto.")
        return {}
    return {"machine": {name: machine[name] for name, value in requested.items() if value == "auto"}}
