"""The Classifier in a Trainer of one's own: loading, predicting, time limits, precision."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from conftest import TINY
from vitreous import recipe as recipes
from vitreous.data.module import ImageData
from vitreous.errors import VitreousError
from vitreous.model.vit import VisionTransformer
from vitreous.training.classifier import Classifier

Arrays = tuple[np.ndarray, np.ndarray]
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def make(**overrides: Any) -> Classifier:
    recipe = recipes.load("default", TINY | overrides)
    torch.manual_seed(0)
    return Classifier(VisionTransformer(recipe.model, 16, 3), recipe, seed=7)


def trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(**{**QUIET, "enable_checkpointing": False, **options})  # type: ignore[arg-type]


@pytest.fixture
def saved(arrays: Arrays, tmp_path: Path) -> tuple[Classifier, ImageData, Path]:
    classifier, data = make(), ImageData(arrays, batch_size=32)
    own = trainer(max_steps=4)
    own.fit(classifier, datamodule=data)
    own.save_checkpoint(tmp_path / "own.ckpt")
    return classifier, data, tmp_path / "own.ckpt"


def test_a_checkpoint_holds_all_that_its_classifier_is_made_of(
    saved: tuple[Classifier, ImageData, Path],
) -> None:
    classifier, data, path = saved
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for place in (path, str(path)):
        again = Classifier.load_from_checkpoint(place)
        assert again.recipe == classifier.recipe and again.seed == 7
        for name, weight in classifier.state_dict().items():
            assert torch.equal(again.state_dict()[name], weight)
    assert torch.equal(torch.rand(3), expected)  # the caller's randomness is left alone
    trainer(max_steps=8).fit(again, datamodule=data, ckpt_path=path)  # and it trains on
    assert (
        torch.equal(make().state_dict()["model.head.bias"], torch.zeros(3)) and again.trainer.global_step == 8
    )


def test_what_is_no_checkpoint_is_a_sentence_and_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    attack = tmp_path / "attack.ckpt"
    torch.save({"hyper_parameters": Attack()}, attack)
    plain = tmp_path / "plain.ckpt"
    plain.write_bytes(pickle.dumps(Attack()))
    words = tmp_path / "words.ckpt"
    words.write_text("root:x:0:0")
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {}}, other)
    empty = tmp_path / "empty.ckpt"
    empty.touch()
    for path in (attack, plain, words, other, empty):
        with pytest.raises(VitreousError, match=rf"{path.name} is damaged or not a checkpoint"):
            Classifier.load_from_checkpoint(path)
    assert not marker.exists()
    with pytest.raises(VitreousError, match="There is no checkpoint"):
        Classifier.load_from_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(VitreousError, match="3 cannot be used as a path"):
        Classifier.load_from_checkpoint(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_trainer_predicts_in_float32(
    saved: tuple[Classifier, ImageData, Path], arrays: Arrays, precision: Any
) -> None:
    classifier, data, _ = saved
    own = trainer(precision=precision)
    by_module = own.predict(classifier, datamodule=data)
    assert by_module is not None
    logits = torch.cat(by_module)  # type: ignore[arg-type]
    assert logits.shape == (len(data.splits.test), 3) and logits.dtype == torch.float32
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.store.mean, data.store.std))
    pixels = torch.from_numpy(np.array(data.splits.test.images)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = classifier.model.eval()((pixels - mean) / std)
    torch.testing.assert_close(logits, expected)
    images = (pixels - mean) / std
    for batches in ([images], [(images, data.splits.test.labels)]):  # images alone, or with labels
        loader = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        (alone,) = own.predict(classifier, loader)  # type: ignore[misc]
        torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_of_another_type_than_float32_are_refused(arrays: Arrays, precision: Any) -> None:
    data = ImageData(arrays, batch_size=32)
    for run in ("fit", "validate", "predict"):
        with pytest.raises(VitreousError, match=rf"{precision}.*\"bf16-mixed\" or \"32-true\""):
            getattr(trainer(max_steps=1, precision=precision), run)(make(), datamodule=data)


def test_validation_in_training_is_in_float32(arrays: Arrays) -> None:
    classifier, data = make(), ImageData(arrays, batch_size=32)
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    classifier.model.head.register_forward_hook(
        lambda module, args, output: seen[module.training].add(output.dtype)
    )
    own = trainer(max_epochs=1, precision="bf16-mixed", num_sanity_val_steps=0)
    own.fit(classifier, datamodule=data)
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}
    figures = {name: float(value) for name, value in own.callback_metrics.items() if name.startswith("val_")}
    (again,) = trainer(precision="32-true").validate(classifier, datamodule=data, verbose=False)
    assert figures == pytest.approx({name: again[name] for name in figures})


def test_max_time_alone_is_a_length(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up clock: a tenth of the time is gone with each step."""
    classifier, data = make(), ImageData(arrays, batch_size=32)
    own = trainer(max_time={"seconds": 50}, limit_val_batches=0)
    (timer,) = (c for c in own.callbacks if type(c).__name__ == "Timer")  # type: ignore[attr-defined]
    monkeypatch.setattr(timer, "time_elapsed", lambda stage="train": 5.0 * own.global_step)
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[-1]["lr"])

    own.callbacks.append(Watch())  # type: ignore[attr-defined]
    own.fit(classifier, datamodule=data)
    assert own.global_step == 10
    peak = classifier.recipe.optimizer.learning_rate
    warmup = classifier.recipe.schedule.warmup
    expected = [min(t / warmup, (1 - t) / (1 - warmup)) * peak for t in np.arange(10) / 10]
    np.testing.assert_allclose(rates, expected, atol=1e-6 * peak)


def test_max_time_beside_epochs_ends_at_whichever_is_first(arrays: Arrays) -> None:
    classifier, data = make(), ImageData(arrays, batch_size=32)
    own = trainer(max_time="00:01:00:00", max_epochs=2, limit_val_batches=0)
    own.fit(classifier, datamodule=data)
    assert classifier.timeline is not None and classifier.timeline.total == own.global_step
    assert classifier.timeline.fraction(own.global_step // 2) == pytest.approx(0.5, abs=0.05)


def test_a_trainer_without_end_is_refused_in_a_sentence(arrays: Arrays) -> None:
    with pytest.raises(VitreousError, match="give it max_epochs, max_steps or max_time"):
        trainer(max_epochs=-1).fit(make(), datamodule=ImageData(arrays, batch_size=32))
