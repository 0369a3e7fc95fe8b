"""The network with its loss, figures, optimizer and schedule, as a LightningModule."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.data.augment import resized
from vitreous.metrics import SplitMetrics
from vitreous.model.dropout import keyed_noise
from vitreous.model.vit import VisionTransformer
from vitreous.native.accelerate import is_accelerated
from vitreous.recipe import OptimizerSection, Recipe
from vitreous.training.loggers import Wandb
from vitreous.training.muon import Muon
from vitreous.training.schedule import Timeline, linear, onecycle, phase_at, phases


class Classifier(pl.LightningModule):
    """Trains a `VisionTransformer` by a recipe, in `vitreous.train` and in a Trainer of your own.

    Batches are dictionaries as `ImageData` makes them, or pairs of (images, labels). It logs
    `train_loss` and, over whole splits, `val_…` and `test_…`: loss, acc, cat_prec, cat_recall, cat_f1
    (macro), ovr_prec, ovr_recall, ovr_f1 (micro), ece, majority, and top5 above ten classes.

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
        self.save_hyperparameters(recipe.tables())
        self.figures = SplitMetrics(model.num_classes)

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
        with self._noise(batch), torch.compiler.set_stance(stance):
            logits = self(images)
        loss = self._loss(logits.float(), labels)
        if "share" in batch:  # pictures mixed of two
            other, share = self._loss(logits.float(), batch["other"]), batch["share"]
            loss = share * loss + (1 - share) * other
        loss = loss.mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _noise(self, batch: dict[str, Any]) -> AbstractContextManager[None]:
        """The one source of randomness inside the network, for the step in progress and the samples of `batch`."""
        unnumbered = torch.arange(len(batch["label"]), device=self.device)
        return keyed_noise(self.model, self.seed, self.global_step, batch.get("index", unnumbered))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each picture, [B]."""
        smoothing = self.recipe.training.label_smoothing
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch = named(batch)
        images, labels = batch["image"], batch["label"]
        with torch.compiler.set_stance("force_eager"):  # nor is evaluation
            logits = self(images)
        self.figures.update(logits, labels)

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self.figures.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._log_figures("val")

    def on_test_epoch_end(self) -> None:
        self._log_figures("test")

    def _log_figures(self, stage: str) -> None:
        self.log_dict(self.figures.compute().named(stage), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.timeline is None:
            self.timeline = Timeline([(0, int(self.trainer.estimated_stepping_batches))])
        return make_optimizer(self.model, self.recipe.optimizer, bf16=self.trainer.precision == "bf16-mixed")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert self.timeline is not None
        optimizer = cast("torch.optim.Optimizer", self.optimizers())
        set_rates(optimizer, self.recipe, self.timeline, self.global_step)
        for group in optimizer.param_groups:
            name = "muon_learning_rate" if group.get("muon") else "learning_rate"
            # A tensor on the CPU, since Lightning would send a number to the device, and wait for it in each step.
            self.log(name, torch.tensor(group["lr"]))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for logger in self.loggers:
            if isinstance(logger, Wandb):
                logger.log_histograms(self.model, self.global_step)


def named(batch: Any) -> dict[str, Any]:
    """A batch as `ImageData` makes it: itself, or made of a pair (images, labels)."""
    return batch if isinstance(batch, dict) else {"image": batch[0], "label": batch[1]}


def make_optimizer(
    model: VisionTransformer, section: OptimizerSection, *, bf16: bool
) -> torch.optim.Optimizer:
    """AdamW on everything, or Muon on the matrices of stem and encoder and AdamW on the rest.

    With `bf16` Muon's products are in that type, as those of the network then are, and where our own kernels do the
    network, they do Muon, too.
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
