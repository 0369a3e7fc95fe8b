"""The network with its loss, figures, optimizer and schedule, as a LightningModule."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Timer
from torch import Tensor

from vitreous import recipe as recipes
from vitreous.data.augment import resized
from vitreous.errors import VitreousError
from vitreous.files import path_of
from vitreous.metrics import SplitMetrics
from vitreous.model.dropout import counted_generator, free_noise, key_noise
from vitreous.model.vit import VisionTransformer
from vitreous.native.accelerate import is_accelerated
from vitreous.recipe import OptimizerSection, Recipe
from vitreous.training.loggers import Wandb
from vitreous.training.muon import Muon
from vitreous.training.schedule import Timeline, linear, onecycle, phase_at, phases


class Classifier(pl.LightningModule):
    """Trains a `VisionTransformer` by a recipe, in `vitreous.train` and in a Trainer of your own.

    Batches are dictionaries as `ImageData` makes them, or pairs of (images, labels). It logs
    `train_loss` and, over whole splits, each of `vitreous.metrics.FIGURES` as `val_…` and `test_…`.

    Args:
        model: the network; moved and trained in place.
        recipe: its optimizer, schedule and training sections are used.
        timeline: the run's length in steps; by default the Trainer's own estimate.
        seed: of dropout and stochastic depth, together with the step.
    """

    def __init__(
        self, model: VisionTransformer, recipe: Recipe, *, timeline: Timeline | None = None, seed: int = 42
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.timeline = timeline
        self.seed = seed
        self.phases = phases(recipe.schedule, model.image_size)
        sizes = {"image_size": model.image_size, "num_classes": model.num_classes, "seed": seed}
        self.save_hyperparameters({**recipe.tables(), **sizes})
        self.figures = SplitMetrics(model.num_classes)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's cannot make a network
        cls, checkpoint_path: Path | str, map_location: str | torch.device = "cpu"
    ) -> Classifier:
        """The classifier of a checkpoint that it was saved in, with the recipe, sizes and weights of then.

        Raises:
            VitreousError: there is no such file, or it is no checkpoint of a `Classifier`.
        """
        path = path_of(checkpoint_path)
        try:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
            tables = dict(checkpoint["hyper_parameters"])
            image_size, num_classes, seed = (tables.pop(n) for n in ("image_size", "num_classes", "seed"))
            recipe = recipes.parse(tables, own=True)
            with torch.random.fork_rng(devices=[]):
                model = VisionTransformer(recipe.model, image_size, num_classes)
            classifier = cls(model, recipe, seed=seed)
            classifier.load_state_dict(checkpoint["state_dict"])
        except FileNotFoundError:
            raise VitreousError(f"There is no checkpoint {path}; check the path.") from None
        except Exception as error:  # on others' bytes torch's reader raises nearly anything
            reason = " ".join(str(error).split())[:200]
            raise VitreousError(
                f"{path} is damaged or no checkpoint of a vitreous Classifier ({reason}); give another."
            ) from None
        return classifier.to(map_location)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalised pictures [B, 3, H, W]."""
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = named(batch)
        images, labels = batch["image"], batch["label"]
        assert self.timeline is not None
        side = self.phases[phase_at(self.phases, self.timeline.fraction(self.global_step))].side
        images = resized(images, side)
        # An epoch's last, smaller batch is not worth compiling for.
        stance = "default" if len(labels) == self.recipe.training.batch_size else "force_eager"
        # The keys stay until the end of the step: a checkpointed block runs again in the backward pass.
        samples = batch["index"] if "index" in batch else torch.arange(len(labels), device=self.device)
        key_noise(self.model, self.seed, self.global_step, samples)
        generator = counted_generator(self.seed, self.global_step, self.device)
        with generator, torch.compiler.set_stance(stance):
            logits = self(images)
        loss = self._loss(logits.float(), labels)
        if "share" in batch:  # pictures mixed of two
            other, share = self._loss(logits.float(), batch["other"]), batch["share"]
            loss = share * loss + (1 - share) * other
        loss = loss.mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each picture, [B]."""
        smoothing = self.recipe.training.label_smoothing
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch = named(batch)
        self.figures.update(self._logits(batch["image"]), batch["label"])

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logits float32 [B, num_classes]; a batch may also be images alone."""
        return self._logits(batch if isinstance(batch, Tensor) else named(batch)["image"])

    def _logits(self, images: Tensor) -> Tensor:
        """In float32 whatever the Trainer's precision, as every figure is, and not compiled."""
        device = self.device.type
        available = torch.amp.is_autocast_available(device)  # not on "meta"
        full = torch.autocast(device, enabled=False) if available else nullcontext()
        with full, torch.compiler.set_stance("force_eager"):
            return self(images)

    def on_validation_epoch_start(self) -> None:
        self.figures.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._log_figures("val")

    def on_test_epoch_end(self) -> None:
        self._log_figures("test")

    def _log_figures(self, stage: str) -> None:
        self.log_dict(self.figures.compute().named(stage), prog_bar=True)

    def setup(self, stage: str) -> None:
        """Refuses a Trainer that would change the weights' type: they are float32, as every figure is."""
        precision = self.trainer.precision
        if precision not in ("32-true", "bf16-mixed", "16-mixed"):
            raise VitreousError(
                f"This Trainer's precision is {precision}, and a Classifier's weights stay float32; "
                'give it precision="bf16-mixed" or "32-true".'
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.timeline is None:
            self.timeline = trainers_timeline(self.trainer)
        return make_optimizer(self.model, self.recipe.optimizer, bf16=self.trainer.precision == "bf16-mixed")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert self.timeline is not None
        optimizer = cast("torch.optim.Optimizer", self.optimizers())
        set_rates(optimizer, self.recipe, self.timeline, self.global_step)
        for group in optimizer.param_groups:
            name = "muon_learning_rate" if group.get("muon") else "learning_rate"
            # A tensor on the CPU, since Lightning would send a number to the device, and wait for it in each step.
            self.log(name, torch.tensor(group["lr"]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        free_noise(self.model)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for logger in self.loggers:
            if isinstance(logger, Wandb):
                logger.log_histograms(self.model, self.global_step)


def named(batch: Any) -> dict[str, Any]:
    """A batch as `ImageData` makes it: itself, or made of a pair (images, labels)."""
    return batch if isinstance(batch, dict) else {"image": batch[0], "label": batch[1]}


class TimedTimeline(Timeline):
    """The timeline of a Trainer with `max_time`: as far as its clock or its steps have come, whichever is further."""

    def __init__(self, timer: Timer, steps: int) -> None:
        super().__init__([(0, steps)])
        self.timer = timer

    def fraction(self, step: int) -> float:
        elapsed, remaining = self.timer.time_elapsed(), self.timer.time_remaining() or 0.0
        return min(1.0, max(super().fraction(step), elapsed / max(elapsed + remaining, 1e-9)))


def trainers_timeline(trainer: pl.Trainer) -> Timeline:
    """What a Trainer says of its own length; raises `VitreousError` where it says nothing."""
    steps = trainer.estimated_stepping_batches
    known = 0 < steps < math.inf
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    timers = [c for c in callbacks if isinstance(c, Timer) and c.time_remaining() is not None]
    if timers:
        return TimedTimeline(timers[0], int(steps) if known else 2**31)
    if not known:
        raise VitreousError(
            "This Trainer has no end, and the learning rate's schedule needs one; "
            "give it max_epochs, max_steps or max_time."
        )
    return Timeline([(0, int(steps))])


def make_optimizer(
    model: VisionTransformer, section: OptimizerSection, *, bf16: bool
) -> torch.optim.Optimizer:
    """AdamW on everything, or Muon on the matrices of stem and encoder and AdamW on the rest.

    With `bf16` Muon's products are in that type, as those of the network are. On an accelerated network native kernels
    do Muon's steps, too.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    betas = (section.beta1, section.beta2)
    if section.name == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            trained.values(),
            lr=section.learning_rate,
            betas=betas,
            weight_decay=section.weight_decay,
            fused=all(p.device.type != "meta" for p in trained.values()),  # torch refuses to fuse there
        )
    else:
        matrices = {
            name: p
            for name, p in trained.items()
            if p.ndim >= 2 and name.startswith(("patch_embed.", "blocks."))
        }
        optimizer = Muon(
            matrices.values(),
            [p for name, p in trained.items() if name not in matrices],
            learning_rate=section.learning_rate,
            betas=betas,
            weight_decay=section.weight_decay,
            muon_learning_rate=section.muon_learning_rate,
            momentum=section.muon_momentum,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            native=is_accelerated(model),
        )
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, timeline: Timeline, step: int) -> None:
    """Sets learning rate (and OneCycle's beta1) for `step`, a pure function of it and the timeline."""
    total = timeline.total
    position = timeline.fraction(step) * total
    warmup = recipe.schedule.warmup
    for group in optimizer.param_groups:
        if recipe.schedule.name == "onecycle":
            factor, beta1 = onecycle(position, total, warmup)
            if "betas" in group:
                group["betas"] = (beta1, group["betas"][1])
        else:
            factor = linear(position, total, warmup)
        group["lr"] = group["peak_lr"] * factor
