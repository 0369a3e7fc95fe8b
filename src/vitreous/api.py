"""One page from data to honest numbers: `train`, `resume`, `repeat` and `evaluate` wire all parts together."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from vitreous.bundle import save_bundle
from vitreous.data.module import ImageData
from vitreous.data.show import show as draw
from vitreous.errors import VitreousError, unknown
from vitreous.evaluation import bundle_of, final_figures
from vitreous.evaluation import evaluate as evaluate  # for those who look for it here
from vitreous.model.summary import describe_architecture, render
from vitreous.plan import (
    Plan,
    check_record,
    check_values,
    count_parameters,
    make_plan,
    record_request,
    stored_request,
)
from vitreous.recipe import Budget, Recipe
from vitreous.report import write_report
from vitreous.request import Request
from vitreous.run import Run, Say
from vitreous.training.budget import BudgetKeeper
from vitreous.training.checkpoint import CheckpointKeeper, WholeFile, newest
from vitreous.training.classifier import Classifier
from vitreous.training.cost import encoder_flops_share
from vitreous.training.loggers import MetricsCsv, check_logger, extra_logger, finish
from vitreous.training.progress import Progress, quiet_lightning
from vitreous.wording import count, duration

DIVERGED = 10  # times the loss of guessing, ln(classes)
Given = ParamSpec("Given")
Found = TypeVar("Found")


def hints(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Refuses an unknown argument with the nearest name, as the command line does with its options."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        for key in kwargs:
            if key not in known:
                raise unknown("argument", key, known)
        return function(*args, **kwargs)

    return checked


@hints
def train(
    data: Any = "cifar10",
    recipe: str | Path | Recipe = "default",
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    flops: float | None = None,
    out: Path | str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    seed: int = 42,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    logger: str = "csv",
    data_dir: Path | str | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    classes: Sequence[str] | None = None,
    judge: str = "both",
) -> Run:
    """Trains a Vision Transformer from scratch, evaluates it, and writes a run folder.

    Args:
        data: "cifar10", "cifar100", "shapes", a folder or zip of class folders, `(images, labels)`
            with uint8 [N, H, W, 3] and int [N], or an `ImageStore`.
        recipe: a name that `vitreous recipes` lists, or a TOML file, a run's too; or a `Recipe`.
        minutes: budget: wall clock, from the data in the cache to the test figures.
        epochs: budget: passes over the training images.
        steps: budget: steps of the optimizer.
        flops: budget: counted training FLOPs, as in 6e13.
        out: the run folder itself; by default the next runs/DATA-RECIPE-NNN.
        overrides: keys of the recipe, as `{"model.depth": 6}` or `["depth=6"]`.
        seed: seed of weights, order, augmentation and noise.
        device: where to train: auto|cpu|cuda|mps.
        precision: type of the products; auto is bf16 where the processor has it: auto|32|bf16.
        backend: torch, or native: kernels compiled for this CPU; auto is native where it can be.
        logger: beside metrics.csv, which is always written: csv|tensorboard|wandb.
        data_dir: where data are kept; by default $VITREOUS_DATA or ~/.cache/vitreous.
        image_size: side in pixels that images are resized to.
        skip_bad: leave out bad files instead of stopping.
        classes: names of the labels, for arrays.
        judge: final figures: both; val leaves test unread; test trains on validation too.

    Returns:
        The run: `.summary`, `.model`, `.predict(images)`, `.path`.

    Raises:
        VitreousError: anything that the caller can mend, as one sentence.
        KeyboardInterrupt: it was stopped; the run folder can be resumed.
    """
    request = Request(
        data, seed, device, precision, backend, logger, data_dir, image_size, skip_bad, classes, judge
    )
    check_data(data, recipe)
    recorded = recorded_choices(recipe, request)
    if not isinstance(recipe, Recipe):
        recipe = recipes.load(notebook_for(data) if recipe == "notebook" else str(recipe), overrides)
    elif overrides:
        raise VitreousError("Overrides are laid over a recipe that is given by name; change a Recipe itself.")
    recipe = with_budget(recipe, minutes=minutes, epochs=epochs, steps=steps, flops=flops)
    with runs.created(_path("out", out), data_name(data), recipe.name) as path:
        return _train(path, recipe, request, recorded)


def with_budget(recipe: Recipe, **budgets: float | None) -> Recipe:
    """The recipe with the one budget that is given, by its unit, or with its own."""
    given = {unit: _number(unit, amount) for unit, amount in budgets.items() if amount is not None}
    if len(given) > 1:
        raise VitreousError(f"Give one budget, not {' and '.join(given)}.")
    for unit, amount in given.items():
        recipe = dataclasses.replace(recipe, budget=Budget(amount, unit))
    return recipe


def _number(unit: str, amount: Any) -> float:
    try:
        return float(amount)
    except (TypeError, ValueError):
        raise VitreousError(f"A budget of {unit} is a number, not {amount!r}.") from None


def _path(name: str, path: Any) -> Any:
    if not isinstance(path, str | Path | None):
        raise VitreousError(f"{name} is {path!r}; give the path of a folder.")
    return path


def resume(path: Path | str, data: Any = None) -> Run:
    """Continues an interrupted run to the same bits, with the choices that were made when it began.

    Args:
        path: the run folder.
        data: the arrays again, for a run on arrays.

    Raises:
        VitreousError: there is no such run, its data have changed, or this machine cannot honour its
            choices.
    """
    run = Run(Path(path))
    if is_finished(run):
        print(f"{run.path} is finished, with {accuracies(run.summary)}: nothing is left to train.")
        if not (run.path / "report.html").exists():  # the disk was full, say
            print(f"report: {write_report(run.path)}")
        return run
    recorded = check_record(run)
    return _train(run.path, run.recipe, stored_request(run, data), recorded, resumes=True)


def repeat(path: Path | str, data: Any = None, *, out: Path | str | None = None) -> Run:
    """Trains once more as a finished run did, to the same bits, in a run folder of its own.

    It uses the run's request, recipe, choices and the steps that were fitted to its budget, of minutes too.
    What this machine cannot honour is said. Whether the weights turned out the same is said at the end, and stands in
    the new run's `[resolved]` as `exact`.

    Args:
        path: the run folder.
        data: the arrays again, for a run on arrays.
        out: the run folder itself; by default the next runs/DATA-RECIPE-NNN.

    Raises:
        VitreousError: there is no such run, it is not finished, or its data have changed.
    """
    run = Run(Path(path))
    recorded, request = check_record(run), stored_request(run, data)
    if not is_finished(run) or "timeline" not in recorded:
        raise VitreousError(
            f"{run.path} is not finished; continue it with --resume {run.path} and repeat it then."
        )
    with runs.created(_path("out", out), data_name(request.data), run.recipe.name) as new:
        return _train(new, run.recipe, request, recorded, repeats=run)


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
) -> Run:
    """The page: plan, write it down, train, evaluate.

    `recorded` is the `[resolved]` table of the run that is resumed or repeated, or a part of the one whose recipe
    is used.
    """
    check_torch()
    check_logger(request.logger)
    with runs.log(path) as say, quiet_lightning(), machines.keep_memory(), machines.keep_torch():
        plan = make_plan(recipe, request, say, recorded, strict=resumes)
        resolved = resolve(plan, recorded if resumes or repeats else None, say)
        if resumes:
            resolved = {**recorded, "exact": resolved["exact"]}  # type: ignore[dict-item]
        if repeats:
            # The steps stand there from the start, so that a repeat that is killed goes on as one.
            resolved |= {"repeats": str(repeats.path.resolve()), "timeline": recorded["timeline"]}  # type: ignore[index]
        runs.write_recipe(path, plan.recipe, resolved)
        runs.write_json(path / "split.json", plan.data.splits.record())
        introduce(plan, path, say)

        with resumable(path, say):
            # Train.
            keeper = BudgetKeeper(
                plan.timeline,
                plan.recipe.budget,
                plan.cost,
                plan.sizes,
                began=plan.began,
                recorded=plan.later_fits,
                note=lambda line: say(line, quiet=True),
            )
            checkpoints = CheckpointKeeper(path / "checkpoints", say=say)
            start = newest(checkpoints.folder, say) if resumes else None
            trainer = fit(plan, path, keeper, checkpoints, start)
            resolved["timeline"] = {"fits": [*plan.timeline.fits, *keeper.recorded]}  # for `repeat`
            runs.write_recipe(path, plan.recipe, resolved)

            # Write the model down, and take every figure from what was written.
            data, interrupted = plan.data, checkpoints.interrupted
            save_bundle(bundle_of(plan.model, data.store, data.splits.train), path / "bundle")
            if "repeats" in resolved and not interrupted:
                resolved["exact"] = has_same_weights(path, Path(resolved["repeats"]), resolved["exact"], say)
                runs.write_recipe(path, plan.recipe, resolved)
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
            conclude(summary, write_report(path), say)
    return Run(path)


def fit(
    plan: Plan, path: Path, keeper: BudgetKeeper, checkpoints: CheckpointKeeper, start: Path | None
) -> pl.Trainer:
    """Runs Lightning's Trainer, from the checkpoint `start` if there is one, to the keeper's end."""
    machine = plan.machine
    classifier = Classifier(plan.model, plan.recipe, timeline=plan.timeline, seed=plan.request.seed)
    if machine.compile:
        for block in plan.model.blocks:
            block.compile(dynamic=False)
    start_step = int(start.stem.partition("-")[2]) if start else 0
    metrics = MetricsCsv(
        path / "metrics.csv",
        seconds=lambda: keeper.train_seconds,
        steps_per_epoch=plan.sizes.steps_per_epoch,
        start_step=start_step,
    )
    extra = extra_logger(plan.request.logger, path, plan.recipe.tables())
    trainer = pl.Trainer(
        accelerator={"cuda": "gpu"}.get(machine.device, machine.device),
        devices=1,
        precision="bf16-mixed" if machine.precision == "bf16" else "32-true",
        max_epochs=-1,  # the keeper stops it
        check_val_every_n_epoch=keeper.validate_every,
        limit_val_batches=1.0 if plan.sizes.val else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=min(50, max(1, plan.timeline.total // 400)),
        logger=[metrics, extra] if extra else [metrics],
        callbacks=[keeper, Progress(keeper), checkpoints],
        plugins=WholeFile(),
        default_root_dir=path,
        enable_checkpointing=False,  # the keeper of checkpoints writes them whole and hashed
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(classifier, datamodule=plan.data, ckpt_path=start, weights_only=True)
    except (KeyboardInterrupt, SystemExit):  # a second Ctrl-C; Lightning turns it into an exit
        checkpoints.interrupted = True
    except RuntimeError as error:
        if start and "loading state_dict" in str(error):
            raise VitreousError(
                f"{path / 'recipe.toml'} was changed since the run began; restore it or train anew."
            ) from None
        raise
    return trainer


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
    skip_bad: bool = False,
) -> Path:
    """Writes a PNG of a data set: images with their labels, and the same as a training would see them.

    That depends on recipe and budget, which are given as to `train`; a budget of minutes is measured in steps first.
    """
    chosen = recipes.load(notebook_for(data) if recipe == "notebook" else recipe, overrides)
    chosen = with_budget(chosen, minutes=minutes, epochs=epochs, steps=steps, flops=flops)
    request = Request(data, data_dir=data_dir, image_size=image_size, skip_bad=skip_bad)
    with machines.keep_torch():
        plan = make_plan(chosen, request, print)
    print(f"augmentation: as in a training of {chosen.budget}; another budget may call for another")
    return draw(plan.data.store, plan.data.augment, Path(_path("out", out) or f"{data_name(data)}.png"))


def resolve(plan: Plan, earlier: Mapping[str, Any] | None, say: Say) -> dict[str, Any]:
    """What was decided and found, for `recipe.toml`.

    Args:
        earlier: the same of the run that is resumed or repeated, against which this one is held.

    Raises:
        VitreousError: the data are not those of the earlier run.
    """
    store = plan.data.store
    now = {
        "fingerprint": store.fingerprint,
        "data_source": store.source,
        "image_size": store.image_size,
        "num_classes": store.num_classes,
        "parameters": count_parameters(plan.model),
        "steps_per_epoch": plan.sizes.steps_per_epoch,
        "step_flops": plan.cost.full.flops,
        "exact": True,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "vitreous": vitreous.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch_lightning": pl.__version__,
            "numpy": np.__version__,
        },
        "machine": plan.machine.record(),
        "request": record_request(plan.request),
    }
    if earlier is None:
        return now
    check_fingerprint(earlier, plan.data)
    changed = differences(earlier, now)
    if changed:
        say(f"This run may not have the bits of the earlier one: {', '.join(changed)}.")
    return {**now, "exact": earlier["exact"] and not changed}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What keeps two runs of one recipe, seed and data from the same bits, by their `[resolved]` tables.

    Bits hold within one device, processor, its vector extensions, precision, backend, attention, compiler, number of
    threads and version of torch and vitreous: another of any of them may add in another order. Whether the network is
    compiled follows from the training's FLOPs, which are measured where the budget is in minutes: two such runs may
    differ there, where a repeat has the first one's choice.
    """
    held = (
        "device",
        "name",
        "capability",
        "precision",
        "matmul_precision",
        "backend",
        "attention",
        "compile",
    )
    pairs = [(name, then["machine"][name], now["machine"][name]) for name in (*held, "compiler", "threads")]
    pairs += [(name, then["versions"][name], now["versions"][name]) for name in ("torch", "vitreous")]
    return [f"{name} was {old or 'none'} and is {new or 'none'}" for name, old, new in pairs if old != new]


def has_same_weights(path: Path, original: Path, expected: bool, say: Say) -> bool:
    """Whether the run at `path` has the weights of the `original` that it repeats; `expected` where that is gone."""
    try:
        then, now = (
            sha256((run / "bundle" / "model.safetensors").read_bytes()).digest() for run in (original, path)
        )
    except OSError:
        say(f"The weights of {original} cannot be read, so they are not compared.")
        return expected
    say(
        f"The weights are those of {original}, to the bit."
        if now == then
        else f"The weights differ from {original}'s."
    )
    return now == then


def check_fingerprint(resolved: Mapping[str, Any], data: ImageData) -> None:
    """Raises `VitreousError` where the data are not those that the run was trained on."""
    if data.store.fingerprint != resolved["fingerprint"]:
        raise VitreousError(
            f"{data.store.source} no longer holds the pictures of this run (its fingerprint is "
            f"{data.store.fingerprint[:12]}, the run's {resolved['fingerprint'][:12]}); restore them or train anew."
        )


def introduce(plan: Plan, path: Path, say: Say) -> None:
    """Says what is about to be trained, on what and for how long."""
    recipe, splits, store = plan.recipe, plan.data.splits, plan.data.store
    for reason in plan.machine.reasons:
        say(reason)
    say(
        f"data: {store.name}, {len(splits.train):,} images to train on"
        f"{', validation among them' if plan.data.train_on_val else f', {len(splits.val):,} to validate'}, "
        f"{len(splits.test):,} to test, {store.num_classes} classes, {store.image_size} pixels"
    )
    say(
        render(
            describe_architecture(recipe.variant, recipe.model, plan.model.image_size, plan.model.num_classes)
        )
    )
    rates = f"learning rate {recipe.optimizer.learning_rate:g}"
    if recipe.optimizer.name == "muon":
        rates = f"learning rate {recipe.optimizer.muon_learning_rate:g} for matrices, AdamW with {rates} for the rest"
    say(f"optimizer: {recipe.optimizer.name}, {rates}")
    about = "about " if recipe.budget.unit == "minutes" else ""
    steps = count(plan.timeline.total, "step")
    say(
        f"budget: {recipe.budget}, {about}{steps} of {plan.sizes.batch} images at "
        f"{plan.cost.mean()[0] / 1e9:,.1f} GFLOP each"
    )
    say(f"run: {path}")


def summarize(plan: Plan, keeper: BudgetKeeper, steps: int, interrupted: bool) -> dict[str, Any]:
    """What a run has done so far, without the figures of its model."""
    return {
        "status": "interrupted" if interrupted else "finished",
        "data": plan.data.store.name,
        "recipe": plan.recipe.name,
        "seed": plan.request.seed,
        "parameters": count_parameters(plan.model),
        "steps": steps,
        "epochs": round(steps / plan.sizes.steps_per_epoch, 4),
        "train_flops": keeper.flops,
        "encoder_flops_share": round(encoder_flops_share(plan.model, plan.recipe.schedule), 4),
        "train_seconds": round(keeper.train_seconds, 2),
        "images_per_second": round(steps * plan.data.batch_size / max(keeper.train_seconds, 1e-9), 2),
    }


def conclude(summary: Mapping[str, Any], report: Path, say: Say) -> None:
    """Says what came out of it."""
    judge = "test" if "test_acc" in summary else "val"
    say(
        f"{accuracies(summary)} (majority-class baseline: {summary[f'{judge}_majority']:.4f}), "
        f"{judge}_loss {summary[f'{judge}_loss']:.4f}"
    )
    if summary.get("diverged"):
        say(
            f"Warning: the training diverged ({judge}_loss {summary[f'{judge}_loss']:.4g}), so this model is of no "
            "use; train again with a smaller learning_rate."
        )
    say(
        f"{count(summary['steps'], 'step')}, {summary['epochs']:.2f} epochs, "
        f"{summary['train_flops']:.3g} FLOPs, "
        f"{summary['images_per_second']:,.0f} images/s, {duration(summary['total_seconds'])} in all"
    )
    say(f"report: {report}")


def has_diverged(figures: Mapping[str, float], num_classes: int) -> bool:
    """Whether a final loss is not finite, or far above that of guessing."""
    losses = [value for name, value in figures.items() if name.endswith("_loss")]
    return not all(loss <= DIVERGED * math.log(num_classes) for loss in losses)  # nan is not, either


def accuracies(summary: Mapping[str, Any]) -> str:
    names = [name for name in ("val_acc", "test_acc") if name in summary]
    return ", ".join(f"{name} {summary[name]:.4f}" for name in names)


@contextmanager
def resumable(path: Path, say: Say) -> Iterator[None]:
    """Whatever ends a run early also says how it goes on; Ctrl-C leaves a report of what there is."""
    hint = f"continue with: vitreous train --resume {shlex.quote(str(path))}"
    try:
        yield
    except KeyboardInterrupt:
        say(f"Interrupted; {hint}")
        say(f"report: {write_report(path)}")
        raise
    except VitreousError as error:
        raise VitreousError(f"{error} Then {hint}") from None


def data_name(data: Any) -> str:
    """A name for run folders: of a named set as it is, of a path its last part."""
    if isinstance(data, str | Path):
        stem = Path(data).stem or Path(data).resolve().name
        return "".join(c if c.isalnum() or c in "-_" else "-" for c in stem) or "data"
    return getattr(data, "name", "arrays")


def notebook_for(data: Any) -> str:
    """Which of the notebook's two recipes `notebook` alone means."""
    name = "notebook-cifar100" if data_name(data) == "cifar100" else "notebook-cifar10"
    print(f"recipe: notebook means {name} here")
    return name


def check_torch() -> None:
    """Raises `VitreousError` where the caller has set torch so that nothing can be trained."""
    if torch.get_default_dtype() != torch.float32 or not torch.is_grad_enabled():
        raise VitreousError(
            "Training needs float32 as torch's default and gradients; call it outside of torch.no_grad(), "
            "torch.inference_mode() and another torch.set_default_dtype()."
        )


def check_data(data: Any, recipe: Any) -> None:
    """Raises `VitreousError` where arrays were given as two arguments rather than as one."""
    if isinstance(recipe, str | Path | Recipe):
        return
    if isinstance(data, tuple | list) and isinstance(recipe, tuple | list):
        raise VitreousError(
            "The second argument is a recipe. A test split of your own goes into the data: "
            "train(((images, labels), (test_images, test_labels)))."
        )
    raise VitreousError(
        f"The second argument is a recipe, by name, file or as a Recipe, not {type(recipe).__name__}; "
        "give images and labels as one pair: train((images, labels))."
    )


def recorded_choices(recipe: str | Path | Recipe, request: Request) -> dict[str, Any]:
    """The choices of the run whose `recipe.toml` is given, where the request leaves them open; else none."""
    if isinstance(recipe, Recipe) or not str(recipe).endswith(".toml"):
        return {}
    resolved = recipes.read(str(recipe)).get("resolved")
    if resolved is None:
        return {}
    check_values(resolved, recipe)
    then = resolved.get("machine", {})
    missing = [name for name in ("precision", "backend", "attention", "compile") if name not in then]
    if missing:
        print(
            f"{recipe} does not record {', '.join(missing)} as this version does; all of it is chosen anew."
        )
        return {}
    wanted = {
        "attention": "auto",
        "compile": "auto",
        "precision": request.precision,
        "backend": request.backend,
    }
    return {"machine": {name: then[name] for name, asked in wanted.items() if asked == "auto"}}
