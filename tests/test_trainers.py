"""`Classifier` and `ImageData` in Lightning Trainers of other people."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.overrides import TorchFunctionMode

import vitreous
from vitreous import recipe as recipes
from vitreous.data.module import ImageData
from vitreous.errors import VitreousError
from vitreous.training.classifier import Classifier

Arrays = tuple[np.ndarray, np.ndarray]


def classifier(tiny: dict[str, Any], **overrides: Any) -> Classifier:
    recipe = recipes.load("default", {**tiny["overrides"], **overrides})
    torch.manual_seed(0)
    return Classifier(vitreous.VisionTransformer(recipe.model, 16, 3), recipe)


def trainer(**options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return pl.Trainer(**{"max_epochs": 1, "accelerator": "cpu", **quiet, **options})


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_several_processes_are_refused(
    strategy: str, arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    many = trainer(devices=2, strategy=strategy)
    data = ImageData(arrays)
    assert many.world_size == 2
    # No process is started: the first action of each is enough.
    pickle.loads(pickle.dumps(data))  # as a spawned process receives it
    data.trainer = many
    with pytest.raises(VitreousError, match=r"one process, but this Trainer has 2; give .*devices=1"):
        data.setup("fit")
    data.trainer = trainer(devices=1)
    data.setup("fit")


def test_a_pair_is_never_searched_for_the_keys_of_a_dictionary(tiny: dict[str, Any]) -> None:
    """`"share" in (images, labels)` compares each tensor with a string."""
    compared = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, arguments: Any = (), options: Any = None
        ) -> Any:
            if any(isinstance(argument, str) and argument == "share" for argument in arguments):
                compared.append(function)
            return function(*arguments, **(options or {}))

    model = classifier(tiny)
    for pair in [
        (torch.randn(8, 3, 16, 16), torch.arange(8) % 3),
        [torch.randn(8, 3, 16, 16), torch.arange(8) % 3],
    ]:
        own = trainer()
        with Watch():
            own.fit(model, torch.utils.data.DataLoader([pair], batch_size=None))  # type: ignore[arg-type]
        assert own.global_step == 1
        assert torch.isfinite(own.callback_metrics["train_loss"])
    assert compared == []


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [("adamw", {"learning_rate"}), ("muon", {"learning_rate", "muon_learning_rate"})],
)
def test_learning_rates_in_a_trainer_of_ones_own(
    tiny: dict[str, Any], optimizer: str, names: set[str]
) -> None:
    batches = [(torch.randn(8, 3, 16, 16), torch.arange(8) % 3)] * 2
    own = trainer()
    model = classifier(tiny, **{"optimizer.name": optimizer})
    own.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert {name for name in own.callback_metrics if "rate" in name} == names
    for name in names:
        group = own.optimizers[0].param_groups[0 if name.startswith("muon") else -1]
        assert float(own.callback_metrics[name]) == pytest.approx(group["lr"])


def test_learning_rates_stay_off_the_device(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would send a number there and wait for the device in each step."""
    logged: dict[str, Any] = {}
    log = Classifier.log

    def watched(self: Classifier, name: str, value: Any, **options: Any) -> None:
        logged[name] = value
        log(self, name, value, **options)

    monkeypatch.setattr(Classifier, "log", watched)
    batches = [(torch.randn(8, 3, 16, 16), torch.arange(8) % 3)]
    trainer().fit(classifier(tiny), torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    for name in ("learning_rate", "muon_learning_rate"):
        assert isinstance(logged[name], torch.Tensor) and logged[name].device.type == "cpu"
