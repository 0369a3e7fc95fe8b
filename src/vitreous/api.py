"""One page from data to honest numbers: `train`, `resume` and `evaluate` wire all parts together."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from vitreous.machine import Machine
from vitreous.model.summary import describe_architecture, render
from vitreous.model.vit import VisionTransformer
from vitreous.prepare import (
    ARRAYS,
    Request,
    build_model,
    changed_recipe,
    choose_attention,
    count_parameters,
    fit_to_budget,
    fit_to_data,
    open_module,
    run_cost,
    sample_batch,
)
from vitreous.recipe import Budget, Recipe
from vitreous.report import write_report
from vitreous.run import Run, Say
from vitreous.training.budget import BudgetKeeper, Sizes
from vitreous.training.checkpoint import CheckpointKeeper, WholeFile, newest
from vitreous.training.classifier import Classifier
from vitreous.training.cost import RunCost
from vitreous.training.loggers import MetricsCsv, check_logger, extra_logger, finish
from vitreous.training.progress import Progress, duration, quiet_lightning
from vitreous.training.schedule import Timeline

REQUESTED = [field.name for field in dataclasses.fields(Request) if field.name != "data"]


def train(
    data: Any = "cifar10",
    recipe: str | Recipe = "default",
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    flops: float | None = None,
    out: Path | str | None = None,
    overrides: Mapping[str, Any] | list[str] = {},  # noqa: B006 (never changed)
    **request: Any,
) -> Run:
    """Trains a Vision Transformer from scratch, evaluates it, and writes a run folder.

    Args:
        data: "cifar10", "cifar100", "shapes", a folder or zip of class folders, `(images, labels)`
            with uint8 [N, H, W, 3] and int [N], or an `ImageStore`.
        recipe: a name of `vitreous recipes`, a TOML file, or a `Recipe`.
        minutes, epochs, steps, flops: the budget, one of them; the recipe's own if none is given.
        out: the run folder; by default the next `runs/DATA-RECIPE-NNN`.
        overrides: fields of the recipe, as `{"model.depth": 6}` or `["depth=6"]`.
        **request: `seed` (42), `device`, `precision` ("auto"), `logger` ("csv"), `data_dir`,
            `image_size`, `skip_bad`; `judge`: "both" (val and test at the end), "val" (test stays unread)
            or "test" (val's pictures are trained on too).

    Returns:
        The run: `.summary`, `.model`, `.predict(images)`, `.path`.

    Raises:
        VitreousError: anything that the caller can mend, as one sentence.
        KeyboardInterrupt: it was stopped; the run folder can be resumed.
    """
    for key in request:
        if key not in REQUESTED:
            raise unknown("argument", key, REQUESTED)
    asked = Request(data, **request)
    if not isinstance(recipe, Recipe):
        recipe = recipes.load(notebook_for(data) if recipe == "notebook" else recipe, overrides)
    elif overrides:
        raise VitreousError("Overrides are laid over a recipe that is given by name; change a Recipe itself.")
    given = {"minutes": minutes, "epochs": epochs, "steps": steps, "flops": flops}
    amounts = {unit: _number(unit, amount) for unit, amount in given.items() if amount is not None}
    if len(amounts) > 1:
        raise VitreousError(f"Give one budget, not {' and '.join(amounts)}.")
    for unit, amount in amounts.items():
        recipe = dataclasses.replace(recipe, budget=Budget(amount, unit))
    check_logger(asked.logger)
    machine = machines.look(asked.device, asked.precision)
    with runs.created(out, data_name(data), recipe.name) as path:
        return _train(path, recipe, asked, machine)


def _number(unit: str, amount: Any) -> float:
    try:
        return float(amount)
    except (TypeError, ValueError):
        raise VitreousError(f"A budget of {unit} is a number, not {amount!r}.") from None


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
    if (run.path / "summary.json").exists() and run.summary.get("status") == "finished":
        print(f"{run.path} is finished, with {accuracies(run.summary)}: nothing is left to train.")
        if not (run.path / "report.html").exists():  # the disk was full, say
            print(f"report: {write_report(run.path)}")
        return run
    asked = Request.of(run)
    if asked.data == ARRAYS:
        if data is None:
            raise VitreousError("This run was trained on arrays; give them again, as resume(path, data).")
        asked = dataclasses.replace(asked, data=data)
    then = run.resolved["machine"]
    now = machines.look(then["device"], then["precision"])
    machine = dataclasses.replace(now, attention=then["attention"], compile=then["compile"])
    return _train(run.path, run.recipe, asked, machine, earlier=run.resolved)


def _train(
    path: Path, recipe: Recipe, asked: Request, machine: Machine, earlier: Mapping[str, Any] | None = None
) -> Run:
    with runs.log(path) as say, quiet_lightning():
        data = open_module(recipe, asked, say)
        began = time.monotonic()  # a budget of minutes starts here, with the data in the cache
        recipe = fit_to_data(recipe, data, say)

        # The network, from what the data say of themselves; what a step of it costs; what suits the machine.
        batch = sample_batch(data, machine.device)

        def prepared(recipe: Recipe) -> tuple[VisionTransformer, Machine, RunCost]:
            model = build_model(recipe, data, asked.seed)
            chosen = choose_attention(machine, model, batch) if earlier is None else machine
            model.set_attention(chosen.attention)
            return model, chosen, run_cost(recipe, model, batch, chosen)

        model, chosen, cost = prepared(recipe)
        turned = fit_to_budget(recipe, data, cost, say)
        if turned.model != recipe.model:
            model, chosen, cost = prepared(turned)
        recipe, machine = turned, chosen
        steps_per_epoch = len(data.train_dataloader())
        val, test = (
            len(getattr(data.splits, name)) if name in asked.judges else 0 for name in ("val", "test")
        )
        sizes = Sizes(data.batch_size, steps_per_epoch, val, test)
        timeline = Timeline()
        keeper = BudgetKeeper(
            timeline, recipe.budget, cost, sizes, began=began, note=lambda line: say(line, quiet=True)
        )
        if earlier is None:
            machine = machines.choose_compile(machine, keeper.forecast_seconds)
        resolved = resolve(asked, data, model, machine, cost, earlier, say)
        runs.write_recipe(path, recipe, resolved)
        runs.write_json(path / "split.json", data.splits.record())
        introduce(recipe, data, model, machine, cost, timeline, path, say)

        with resumable(path, say):
            # Train.
            checkpoints = CheckpointKeeper(path / "checkpoints", say=say)
            classifier = Classifier(model, recipe, timeline=timeline, seed=asked.seed)
            start = newest(checkpoints.folder, say) if earlier else None
            trainer = fit(path, asked, machine, classifier, data, keeper, checkpoints, start)

            # Write the model down, and take every figure from what was written.
            store = data.store
            save_bundle(bundle_of(model, store, data.splits.train), path / "bundle")
            steps = trainer.global_step
            summary: dict[str, Any] = {
                "status": "interrupted" if checkpoints.interrupted else "finished",
                "data": store.name,
                "recipe": recipe.name,
                "seed": asked.seed,
                "parameters": count_parameters(model),
                "steps": steps,
                "epochs": round(steps / steps_per_epoch, 4),
                "train_flops": keeper.flops,
                "train_seconds": round(keeper.train_seconds, 2),
                "images_per_second": round(steps * data.batch_size / max(keeper.train_seconds, 1e-9), 2),
            }
            if not checkpoints.interrupted:
                figures = final_figures(path, data.splits, asked.judges, machine.device, say)
                finish(trainer.loggers, figures, steps - 1)  # Lightning counts steps from zero
                summary |= figures
            summary["total_seconds"] = round(keeper.total_seconds, 2)
            runs.write_json(path / "summary.json", summary)
            if checkpoints.interrupted:
                raise KeyboardInterrupt
            conclude(summary, write_report(path), say)
    return Run(path)


def fit(
    path: Path,
    asked: Request,
    machine: Machine,
    classifier: Classifier,
    data: ImageData,
    keeper: BudgetKeeper,
    checkpoints: CheckpointKeeper,
    start: Path | None,
) -> pl.Trainer:
    """Runs Lightning's Trainer, from the checkpoint `start` if there is one, to the keeper's end."""
    if machine.compile:
        for block in classifier.model.blocks:
            block.compile(dynamic=False)
    start_step = int(start.stem.partition("-")[2]) if start else 0
    metrics = MetricsCsv(
        path / "metrics.csv",
        seconds=lambda: keeper.train_seconds,
        steps_per_epoch=keeper.sizes.steps_per_epoch,
        start_step=start_step,
    )
    extra = extra_logger(asked.logger, path, classifier.recipe.tables(), classifier.model)
    trainer = pl.Trainer(
        accelerator={"cuda": "gpu"}.get(machine.device, machine.device),
        devices=1,
        precision="bf16-mixed" if machine.precision == "bf16" else "32-true",
        max_epochs=-1,  # the keeper stops it
        check_val_every_n_epoch=keeper.validate_every,
        limit_val_batches=1.0 if keeper.sizes.val else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=min(50, max(1, keeper.timeline.total // 400)),
        logger=[metrics, extra] if extra else [metrics],
        callbacks=[keeper, Progress(keeper), checkpoints],
        plugins=WholeFile(),
        default_root_dir=path,
        enable_checkpointing=False,  # the keeper of checkpoints writes them whole and hashed
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(classifier, datamodule=data, ckpt_path=start, weights_only=True)
    except (KeyboardInterrupt, SystemExit):  # a second Ctrl-C; Lightning turns it into an exit
        checkpoints.interrupted = True
    except RuntimeError as error:
        if start and "loading state_dict" in str(error):
            raise changed_recipe(path) from None
        raise
    return trainer


def show(
    data: Any,
    recipe: str = "default",
    out: Path | str | None = None,
    *,
    overrides: Mapping[str, Any] | list[str] = {},  # noqa: B006
    **request: Any,
) -> Path:
    """Writes a PNG of a data set: pictures with their labels, and the same after the recipe's augmentation."""
    chosen = recipes.load(notebook_for(data) if recipe == "notebook" else recipe, overrides)
    module = open_module(chosen, Request(data, **request), print)
    return draw(module.store, module.augment, Path(out or f"{data_name(data)}.png"))


def resolve(
    asked: Request,
    data: ImageData,
    model: VisionTransformer,
    machine: Machine,
    cost: RunCost,
    earlier: Mapping[str, Any] | None,
    say: Say,
) -> dict[str, Any]:
    """What was decided and found, for `recipe.toml`; on resume, held against what was decided then."""
    store = data.store
    now = {
        "fingerprint": store.fingerprint,
        "data_source": store.source,
        "image_size": store.image_size,
        "num_classes": store.num_classes,
        "parameters": count_parameters(model),
        "steps_per_epoch": len(data.train_dataloader()),
        "step_flops": cost.full.flops,
        "exact": True,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "vitreous": vitreous.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch_lightning": pl.__version__,
            "numpy": np.__version__,
        },
        "machine": machine.record(),
        "request": asked.record(),
    }
    if earlier is None:
        return now
    check_fingerprint(earlier, data)
    changed = [
        f"{name} {then} is now {there}"
        for name, then, there in (
            ("torch", earlier["versions"]["torch"], torch.__version__),
            ("the machine", earlier["machine"]["name"], machine.name),
            ("the number of threads", earlier["machine"]["threads"], machine.threads),
        )
        if then != there
    ]
    if changed:
        say(f"Continuing, but not to the same bits: {', '.join(changed)}.")
    return {**earlier, "exact": earlier["exact"] and not changed}


def check_fingerprint(resolved: Mapping[str, Any], data: ImageData) -> None:
    """Raises `VitreousError` where the data are not those that the run was trained on."""
    if data.store.fingerprint != resolved["fingerprint"]:
        raise VitreousError(
            f"{data.store.source} no longer holds the pictures of this run (its fingerprint is "
            f"{data.store.fingerprint[:12]}, the run's {resolved['fingerprint'][:12]}); restore them or train anew."
        )


def introduce(
    recipe: Recipe,
    data: ImageData,
    model: VisionTransformer,
    machine: Machine,
    cost: RunCost,
    timeline: Timeline,
    path: Path,
    say: Say,
) -> None:
    """Says what is about to be trained, on what and for how long."""
    splits, store = data.splits, data.store
    for reason in machine.reasons:
        say(reason)
    say(
        f"data: {store.name}, {len(splits.train):,} pictures to train on"
        f"{', validation among them' if data.train_on_val else f', {len(splits.val):,} to validate'}, "
        f"{len(splits.test):,} to test, {store.num_classes} classes, {store.image_size} pixels"
    )
    say(render(describe_architecture(recipe.variant, recipe.model, model.image_size, model.num_classes)))
    about = "about " if recipe.budget.unit == "minutes" else ""
    say(
        f"budget: {recipe.budget}, {about}{timeline.total:,} steps of {data.batch_size} pictures at "
        f"{cost.mean()[0] / 1e9:,.1f} GFLOP each"
    )
    say(f"run: {path}")


def conclude(summary: Mapping[str, Any], report: Path, say: Say) -> None:
    """Says what came out of it."""
    judge = "test" if "test_acc" in summary else "val"
    say(
        f"{accuracies(summary)} (always guessing the largest class: {summary[f'{judge}_majority']:.4f}), "
        f"{judge}_loss {summary[f'{judge}_loss']:.4f}"
    )
    say(
        f"{summary['steps']:,} steps, {summary['epochs']:.2f} epochs, {summary['train_flops']:.3g} FLOPs, "
        f"{summary['images_per_second']:,.0f} images/s, {duration(summary['total_seconds'])} in all"
    )
    say(f"report: {report}")


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
