"""The LightningModule: the network with its loss, figures, optimizer and schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Trains a `VisionTransformer` by a recipe, in `vitreous.train` or in a Lightning Trainer of your own.

    A batch is a dictionary from `ImageData`, or a pair (images [B, 3, H, W], labels [B]). The module logs `train_loss`
    and, over whole splits, each of `vitreous.metrics.FIGURES` as `val_…` and `test_…`.

    Args:
        model: the network, moved and trained in place.
        recipe: its optimizer, schedule and training sections are used.
        timeline: the run's length in steps; by default the Trainer's own estimate.
        seed: of dropout and stochastic depth, together with the step.
        class_counts: training images of each class, which `balance = "loss"` needs. Any other `balance` changes nothing
            here: `vitreous.train` decides what "auto" is, and "sampler" is a matter of the data.

    Raises:
        VitreousError: the recipe balances the loss, and `class_counts` are missing or do not fit.
    """

    def __init__(
        self,
        model: VisionTransformer,
        recipe: Recipe,
        *,
        timeline: Timeline | None = None,
        seed: int = 42,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.timeline = timeline
        self.seed = seed
        self.phases = phases(recipe.schedule, model.image_size)
        sizes: dict[str, Any] = {
            "image_size": model.image_size,
            "num_classes": model.num_classes,
            "seed": seed,
        }
        self.register_buffer("prior", None, persistent=False)  # share of each class in training, [C]
        if recipe.training.balance == "loss":
            self.prior = class_shares(class_counts, model.num_classes)
            sizes["class_counts"] = list(map(int, class_counts or ()))
        self.save_hyperparameters({**recipe.tables(), **sizes})
        self.figures = SplitMetrics(model.num_classes)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's version cannot build a network
        cls, checkpoint_path: Path | str, map_location: str | torch.device = "cpu"
    ) -> Classifier:
        """The classifier that was saved in a checkpoint, with its recipe, sizes and weights.

        Raises:
            VitreousError: the file does not exist, or it is not a checkpoint of a `Classifier`.
        """
        path = path_of(checkpoint_path)
        try:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
            tables = dict(checkpoint["hyper_parameters"])
            image_size, num_classes, seed = (tables.pop(n) for n in ("image_size", "num_classes", "seed"))
            counts = tables.pop("class_counts", None)
            recipe = recipes.parse(tables, own=True)
            with torch.random.fork_rng(devices=[]):
                model = VisionTransformer(recipe.model, image_size, num_classes)
            classifier = cls(model, recipe, seed=seed, class_counts=counts)
            classifier.load_state_dict(checkpoint["state_dict"])
        except FileNotFoundError:
            raise VitreousError(f"There is no checkpoint {path}; check the path.") from None
        except Exception as error:  # torch's reader can raise nearly any error on a foreign file
            reason = " ".join(str(error).split())[:200]
            raise VitreousError(
                f"{path} is damaged or not a checkpoint of a vitreous Classifier ({reason}); give another file."
            ) from None
        return classifier.to(map_location)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalised images [B, 3, H, W]."""
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = named(batch)
        images, labels = batch["image"], batch["label"]
        assert self.timeline is not None
        side = self.phases[phase_at(self.phases, self.timeline.fraction(self.global_step))].side
        images = resized(images, side)
        # Compiling again for an epoch's last, smaller batch does not pay.
        stance = "default" if len(labels) == self.recipe.training.batch_size else "force_eager"
        # The keys stay until the end of the step, because a checkpointed block runs again in the backward pass.
        samples = batch["sample"] if "sample" in batch else torch.arange(len(labels), device=self.device)
        key_noise(self.model, self.seed, self.global_step, samples)
        generator = counted_generator(self.seed, self.global_step, self.device)
        with generator, torch.compiler.set_stance(stance):
            logits = self(images)
        loss = self._loss(logits.float(), labels)
        if "share" in batch:  # mixup or cutmix
            other, share = self._loss(logits.float(), batch["other"]), batch["share"]
            loss = share * loss + (1 - share) * other
        loss = loss.mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each image, [B]; with `balance = "loss"` of the logits plus the classes' log shares."""
        smoothing = self.recipe.training.label_smoothing
        if self.prior is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        # The smoothed part of the target has the classes' shares too. Spread evenly, it would make the network answer
        # a rare class for images that are surely of another one.
        log_probabilities = F.log_softmax(logits + self.prior.log(), dim=1)
        own = F.nll_loss(log_probabilities, labels, reduction="none")
        # A sum, not a matrix product, which autocast would compute in bf16.
        return (1 - smoothing) * own - smoothing * (log_probabilities * self.prior).sum(1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch = named(batch)
        self.figures.update(self._logits(batch["image"]), batch["label"])

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logits float32 [B, num_classes]; a batch may also be images alone."""
        return self._logits(batch if isinstance(batch, Tensor) else named(batch)["image"])

    def _logits(self, images: Tensor) -> Tensor:
        """Logits in float32 at any precision of the Trainer, and not compiled, since every figure is float32."""
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
        """Refuses a Trainer whose precision would change the type of the weights, which is float32."""
        precision = self.trainer.precision
        if precision not in ("32-true", "bf16-mixed", "16-mixed"):
            raise VitreousError(
                f"This Trainer's precision is {precision}, but the weights of a Classifier stay float32; "
                'give the Trainer precision="bf16-mixed" or "32-true".'
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.timeline is None:
            self.timeline = trainers_timeline(self.trainer)
        return make_optimizer(self.model, self.recipe.optimizer, bf16=self.trainer.precision == "bf16-mixed")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert self.timeline is not None
        optimizer = cast("torch.optim.Optimizer", self.optimizers())
        set_learning_rates(optimizer, self.recipe, self.timeline, self.global_step)
        for group in optimizer.param_groups:
            group["weight_decay"] = self.recipe.optimizer.weight_decay  # may follow the epochs
            name = "muon_learning_rate" if group.get("muon") else "learning_rate"
            # A tensor on the CPU, because Lightning would copy a number to the device and wait for it in each step.
            self.log(name, torch.tensor(group["lr"]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        free_noise(self.model)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for logger in self.loggers:
            if isinstance(logger, Wandb):
                logger.log_histograms(self.model, self.global_step)


def class_shares(counts: Sequence[int] | None, num_classes: int) -> Tensor:
    """The share of each class in the training images, float32 [C]; raises `VitreousError` if one has none."""
    if counts is None or len(counts) != num_classes or min(counts) < 1:
        raise VitreousError(
            f'training.balance is "loss", which needs the numbers of training images of {num_classes} classes, not '
            f"{counts}; give the Classifier class_counts, all above zero, or set balance=none."
        )
    images = torch.tensor(list(map(int, counts)), dtype=torch.float64)
    return (images / images.sum()).float()


def named(batch: Any) -> dict[str, Any]:
    """The batch as a dictionary, also if it is a pair (images, labels)."""
    return batch if isinstance(batch, dict) else {"image": batch[0], "label": batch[1]}


class TimedTimeline(Timeline):
    """The timeline of a Trainer with `max_time`: the larger of the elapsed shares of its time and of its steps."""

    def __init__(self, timer: Timer, steps: int) -> None:
        super().__init__([(0, steps)])
        self.timer = timer

    def fraction(self, step: int) -> float:
        elapsed, remaining = self.timer.time_elapsed(), self.timer.time_remaining() or 0.0
        return min(1.0, max(super().fraction(step), elapsed / max(elapsed + remaining, 1e-9)))


def trainers_timeline(trainer: pl.Trainer) -> Timeline:
    """The timeline that follows from a Trainer's own limits; raises `VitreousError` if it has none."""
    steps = trainer.estimated_stepping_batches
    known = 0 < steps < math.inf
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    timers = [c for c in callbacks if isinstance(c, Timer) and c.time_remaining() is not None]
    if timers:
        return TimedTimeline(timers[0], int(steps) if known else 2**31)
    if not known:
        raise VitreousError(
            "This Trainer has no end, but the learning rate's schedule needs one; "
            "give it max_epochs, max_steps or max_time."
        )
    return Timeline([(0, int(steps))])


def make_optimizer(
    model: VisionTransformer, section: OptimizerSection, *, bf16: bool
) -> torch.optim.Optimizer:
    """AdamW for all parameters, or Muon for the matrices of stem and encoder and AdamW for the rest.

    With `bf16`, Muon's products are in bfloat16, like those of the network. For an accelerated network, native kernels
    compute Muon's steps too.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    betas = (section.beta1, section.beta2)
    if section.name == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            trained.values(),
            lr=section.learning_rate,
            betas=betas,
            weight_decay=section.weight_decay,
            fused=all(p.device.type != "meta" for p in trained.values()),  # the fused form has no meta device
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


def set_learning_rates(
    optimizer: torch.optim.Optimizer, recipe: Recipe, timeline: Timeline, step: int
) -> None:
    """Sets the learning rates (and OneCycle's beta1) of `step`, a pure function of the step and the timeline."""
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
