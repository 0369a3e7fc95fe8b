"""Unequal classes: the loss, the sampler, what `auto` is, and which figures come first."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score

import vitreous
from conftest import TINY
from test_training import interrupt_at, same
from vitreous import balance, cli
from vitreous import compare as comparing
from vitreous import recipe as recipes
from vitreous.bundle import load_bundle
from vitreous.data.augment import Augment
from vitreous.data.loader import BatchLoader, balanced_order, epoch_order
from vitreous.data.module import ImageData
from vitreous.data.store import Split
from vitreous.errors import VitreousError
from vitreous.evaluation import figures_of
from vitreous.export.card import _figures
from vitreous.metrics import MACRO
from vitreous.model.vit import VisionTransformer
from vitreous.statistics import interval, mean_recall_difference, mean_recall_interval
from vitreous.training.classifier import Classifier

Arrays = tuple[np.ndarray, np.ndarray]
COUNTS = [200, 60, 10]


def classifier(counts: list[int] | None = COUNTS, **overrides: Any) -> Classifier:
    recipe = recipes.load("default", TINY | {"balance": "loss"} | overrides)
    torch.manual_seed(0)
    model = VisionTransformer(recipe.model, 16, len(counts or COUNTS))
    return Classifier(model, recipe, class_counts=counts)


@pytest.fixture(scope="module")
def unequal() -> Arrays:
    """270 images of 3 classes of 200, 60 and 10 images that differ in brightness, the small class hardly."""
    labels = np.repeat(np.arange(3), COUNTS)
    images = np.random.default_rng(0).integers(0, 100, (270, 16, 16, 3))
    return (images + np.array([0, 70, 5])[labels, None, None, None]).astype(np.uint8), labels


# ---- the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_of_logits_and_log_shares(smoothing: float) -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    shares = torch.tensor(COUNTS) / sum(COUNTS)
    targets = (1 - smoothing) * F.one_hot(labels, 3) + smoothing * shares
    expected = torch.nn.CrossEntropyLoss(reduction="none")(logits + shares.log(), targets)
    torch.testing.assert_close(classifier(label_smoothing=smoothing)._loss(logits, labels), expected)


def test_the_balanced_loss_is_float32_under_autocast() -> None:
    torch.manual_seed(2)
    logits, labels = torch.randn(64, 3), torch.randint(3, (64,))
    balanced = classifier([20, 5, 1], label_smoothing=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = balanced._loss(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, balanced._loss(logits, labels))


def test_equal_classes_have_the_usual_loss() -> None:
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    usual = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")(logits, labels)
    torch.testing.assert_close(classifier([7, 7, 7], label_smoothing=0.1)._loss(logits, labels), usual)


def test_what_the_loss_trains_answers_as_if_classes_were_equally_frequent() -> None:
    """Three kinds of image, whose frequencies in each class are known: the best answer follows from Bayes' rule.

    With the smoothed part of the target spread evenly, the network would answer the rare class for the first kind.
    """
    kinds = torch.tensor([[0.9, 0.1, 0.4], [0.05, 0.6, 0.1], [0.05, 0.3, 0.5]]).double()  # p(kind | class)
    shares = torch.tensor([0.98, 0.015, 0.005]).double()
    joint = kinds * shares  # [kind, class]
    own = classifier([980, 15, 5], label_smoothing=0.1)
    own.prior = shares
    logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses = torch.stack([own._loss(logits, torch.full((3,), label)) for label in range(3)], dim=1)
        loss = (joint * losses).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert logits.argmax(dim=1).tolist() == kinds.argmax(dim=1).tolist() == [0, 1, 2]
    assert joint.argmax(dim=1).tolist() == [0, 0, 0]  # while the likeliest class is always the largest
    # Up to the smoothing, the logits are the logarithms of p(kind | class) / p(kind).
    expected = (0.9 * joint / joint.sum(dim=1, keepdim=True) / shares + 0.1).log()
    found = logits.detach() - logits.detach().logsumexp(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected - expected.logsumexp(dim=1, keepdim=True), atol=2e-3, rtol=0)


def test_a_mixed_image_has_the_loss_of_a_mixed_target(monkeypatch: pytest.MonkeyPatch) -> None:
    own = classifier(label_smoothing=0.1)
    monkeypatch.setattr(own, "log", lambda *args, **options: None)
    own.timeline = recipes_timeline()
    monkeypatch.setattr(Classifier, "global_step", 0)
    batch = {
        "image": torch.randn(8, 3, 16, 16),
        "label": torch.arange(8) % 3,
        "other": (torch.arange(8) + 1) % 3,
        "share": torch.linspace(0.2, 1, 8),
    }
    shares = torch.tensor(COUNTS) / sum(COUNTS)
    first, second = (F.one_hot(batch[name], 3) for name in ("label", "other"))
    share = batch["share"][:, None]
    targets = 0.9 * (share * first + (1 - share) * second) + 0.1 * shares
    loss = own.training_step(batch, 0)
    images = batch["image"]
    from vitreous.data.augment import resized

    logits = own(resized(images, own.phases[0].side))
    torch.testing.assert_close(loss, F.cross_entropy(logits + shares.log(), targets))


def recipes_timeline() -> Any:
    from vitreous.training.schedule import Timeline

    return Timeline([(0, 10)])


@pytest.mark.parametrize("counts", [None, [5, 5], [5, 0, 5]])
def test_a_balanced_loss_without_fitting_counts_is_refused(counts: list[int] | None) -> None:
    recipe = recipes.load("default", TINY | {"balance": "loss"})
    with pytest.raises(VitreousError, match="class_counts"):
        Classifier(VisionTransformer(recipe.model, 16, 3), recipe, class_counts=counts)


def test_a_checkpoint_keeps_the_counts(tmp_path: Path, unequal: Arrays) -> None:
    import pytorch_lightning as pl

    own = classifier()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.fit(own, datamodule=ImageData(unequal, batch_size=32))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "own.ckpt")
    assert torch.equal(again.prior, own.prior)


# ---- the sampler


def test_every_class_is_drawn_equally_often_and_every_image_of_it_too() -> None:
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(4), [100, 37, 7, 1]))
    used = np.zeros(len(labels), dtype=int)
    for epoch in range(40):
        index, sample = balanced_order(labels, 42, epoch)
        counts = np.bincount(labels[index])
        assert counts.sum() == len(labels) and counts.max() - counts.min() <= 1
        assert len(set(sample.tolist())) == len(labels)  # so no two uses are augmented alike
        assert (sample % len(labels) == index).all()
        used += np.bincount(index, minlength=len(labels))
        for label in range(4):
            uses = used[labels == label]
            assert uses.max() - uses.min() <= 1  # all images of a class before any of them again
    totals = np.bincount(labels, weights=used)
    assert totals.max() - totals.min() <= 1


def test_equal_classes_use_every_image_once_an_epoch() -> None:
    labels = np.repeat(np.arange(5), 20)
    for epoch in range(3):
        index, sample = balanced_order(labels, 0, epoch)
        assert sorted(index.tolist()) == list(range(100)) and (index == sample).all()


def test_the_order_is_the_same_on_every_machine_and_new_in_each_epoch() -> None:
    labels = np.repeat(np.arange(3), COUNTS)
    orders = [np.concatenate(balanced_order(labels, 42, epoch)) for epoch in range(2)]
    assert [hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] for order in orders] == DIGESTS
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(
        orders[0], np.concatenate(balanced_order(labels, 43, 0))
    )
    # The order of an epoch without balance is that of numpy's Philox alone, as before there was a sampler.
    raw = np.random.Philox(key=np.array([42, 3], dtype=np.uint64)).random_raw(50)
    assert (epoch_order(50, 42, 3) == raw.argsort(kind="stable")).all()


DIGESTS = ["0325dcb209a8ac11", "c9d6ce3da9244066"]


def test_the_places_in_an_epoch_are_random() -> None:
    """Chi-square of the class at each tenth of an epoch, over 30 epochs: 3 x 10 cells, 18 degrees of freedom."""
    labels = np.repeat(np.arange(3), COUNTS)
    table = np.zeros((10, 3))
    for epoch in range(30):
        index, _ = balanced_order(labels, 5, epoch)
        for tenth, part in enumerate(np.array_split(labels[index], 10)):
            table[tenth] += np.bincount(part, minlength=3)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 42.3  # 99.9 % of the distribution


def test_an_image_that_is_repeated_in_an_epoch_is_augmented_anew(unequal: Arrays) -> None:
    images, labels = unequal
    split = Split(images, labels, [str(i) for i in range(len(labels))])
    (batch,) = BatchLoader(split, len(labels), seed=1, shuffle=True, balanced=True)
    small = batch["label"] == 2
    uses = torch.nonzero(small & (batch["index"] == batch["index"][small][0])).squeeze(1)
    assert len(uses) >= 8
    augment = Augment(crop=4, flip="alternating", seed=1)
    seen = augment(batch["image"], batch["sample"], 0)[uses]
    assert (
        len({image.numpy().tobytes() for image in seen}) >= len(uses) - 1
    )  # 162 crops: two may agree by chance
    again = augment(batch["image"][uses], batch["sample"][uses], 0)
    assert torch.equal(seen, again)


@pytest.mark.parametrize(
    "step", [5, 16]
)  # within the first epoch, and at its end: 216 images are 13 steps of 16
def test_a_run_with_the_sampler_continues_to_the_same_bits(
    unequal: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    tiny["overrides"] |= {"dropout": 0.1, "crop": 2, "mixup": 0.3}
    whole = vitreous.train(unequal, steps=20, balance="sampler", out=tmp_path / "whole", **tiny)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            vitreous.train(unequal, steps=20, balance="sampler", out=tmp_path / "cut", **tiny)
    rest = vitreous.resume(tmp_path / "cut", unequal)
    assert rest.summary["steps"] == 20 and rest.recipe.training.balance == "sampler"
    assert same(whole, rest)
    plain = vitreous.train(unequal, steps=20, balance="none", out=tmp_path / "plain", **tiny)
    assert not same(whole, plain)


# ---- auto, and what is refused


def test_auto_follows_from_the_sizes_of_the_classes() -> None:
    names = ("ant", "bee")
    assert balance.choose_balance("auto", [10, 10], names)[0] == "none"
    assert balance.choose_balance("auto", [30, 10], names)[0] == "none"
    chosen, reason = balance.choose_balance("auto", [10, 31], names)
    assert chosen == "loss" and "ant" in reason and "bee" in reason
    assert balance.choose_balance("auto", [10, 0], names) == ("none", "since bee has no training image")
    for choice in ("none", "loss", "sampler"):
        assert balance.choose_balance(choice, [1000, 1], names) == (choice, "")
    with pytest.raises(VitreousError, match="bee has none"):
        balance.choose_balance("sampler", [10, 0], names)


def test_a_run_records_what_auto_was_and_says_why(
    unequal: Arrays, arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = vitreous.train(unequal, steps=2, out=tmp_path / "unequal", **tiny)
    assert (
        run.recipe.training.balance == "loss" and 'balance = "loss"' in (run.path / "recipe.toml").read_text()
    )
    assert (
        "balance: loss, since 0 has 20.0 times the training images of 2 (160 and 8)"
        in capsys.readouterr().out
    )
    forced = vitreous.train(unequal, steps=2, balance="none", out=tmp_path / "forced", **tiny)
    assert forced.recipe.training.balance == "none" and not same(run, forced)
    equal, none = (
        vitreous.train(arrays, steps=2, balance=choice, out=tmp_path / choice, **tiny)
        for choice in ("auto", "none")
    )
    assert equal.recipe == none.recipe and same(equal, none)

    # The list of runs shows what a person changed, not what follows from the data.
    vitreous.repeat(run.path, unequal, out=tmp_path / "repeated")
    changes = {
        Path(record["path"]).name: record["changes"].split() for record in comparing.list_runs(tmp_path)
    }
    shown = {name: [key for key in keys if key.startswith("balance")] for name, keys in changes.items()}
    assert shown == {
        "unequal": [], "repeated": [], "forced": ["balance=none"], "auto": [], "none": ["balance=none"]
    }  # fmt: skip


def test_the_notebooks_recipe_and_earlier_runs_are_not_balanced() -> None:
    assert all(recipes.load(name).training.balance == "none" for name in recipes.NOTEBOOKS)
    tables = recipes.load("default").tables()
    del tables["training"]["balance"]
    assert recipes.parse(tables).training.balance == "none"


def test_a_misspelt_choice_is_refused_with_the_nearest(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    for words in (["--balance", "lossy"], ["balance=lossy"]):
        assert cli.main(["train", "shapes", "--steps", "1", "--out", out, *words]) == 2
        assert "did you mean 'loss'?" in capsys.readouterr().err
    with pytest.raises(VitreousError, match="did you mean 'sampler'"):
        vitreous.train(arrays, balance="samplers", out=out, **tiny)
    assert not (tmp_path / "run").exists()


# ---- figures


@pytest.fixture(scope="module")
def judged(unequal: Arrays, tmp_path_factory: pytest.TempPathFactory) -> vitreous.Run:
    return vitreous.train(
        unequal,
        steps=12,
        balance="none",
        device="cpu",
        precision="32",
        overrides={**TINY, "val_fraction": 0.2},
        out=tmp_path_factory.mktemp("judged") / "run",
    )


def test_macro_figures_come_first_and_are_sklearns(judged: vitreous.Run) -> None:
    kept = judged.predictions["test"]
    expected = balanced_accuracy_score(kept.labels, kept.logits.argmax(axis=1))
    accuracy = (kept.labels == kept.logits.argmax(axis=1)).mean()
    assert abs(expected - accuracy) > 0.1  # so one cannot be taken for the other
    assert judged.summary["test_cat_recall"] == pytest.approx(expected)

    names = [key for key in judged.summary if key.startswith("test_")]
    assert names[:3] == [f"test_{name}" for name in MACRO]
    written = json.loads((judged.path / "summary.json").read_text())
    assert [key for key in written if key.startswith("val_")][:3] == [f"val_{name}" for name in MACRO]

    html = (judged.path / "report.html").read_text(encoding="utf-8")
    digits = 0  # of 54 images
    assert f'<p class="big num">{100 * expected:.{digits}f}\u202f%</p>' in html
    table = html[html.index("<h2>Metrics</h2>") :]
    assert table.index("Recall (macro)") < table.index(">Accuracy<")

    log = (judged.path / "log.txt").read_text(encoding="utf-8")
    assert f"{100 * expected:.1f} % on test" in log and log.index("Mean of the classes' recalls") < log.index(
        "Test accuracy"
    )
    shown = cli.figures_table("test", figures_of(kept)).splitlines()[2]
    assert shown.split()[:3] == ["Recall", "(macro)", f"{expected:.4f}"]

    bundle = load_bundle(judged.path / "bundle")
    lines = list(_figures(bundle, judged))
    assert lines[0].startswith("Test, mean of the classes' recalls") and f"{100 * expected:.1f} %" in lines[0]
    assert next(_figures(bundle, None)).startswith("Test accuracy")


def test_equal_classes_are_judged_by_accuracy(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    run = vitreous.train(arrays, steps=3, out=tmp_path / "run", **tiny)
    assert next(key for key in run.summary if key.startswith("test_")) == "test_loss"
    assert "Mean of the classes" not in (run.path / "log.txt").read_text()


def test_unequal_is_more_than_three_to_one() -> None:
    assert not balance.is_unequal([30, 10]) and balance.is_unequal([31, 10])
    assert not balance.is_unequal([30, 0, 10]) and not balance.is_unequal([0, 0])


def test_the_interval_of_a_mean_of_recalls() -> None:
    assert mean_recall_interval([7], [10]) == pytest.approx(interval(7, 10))
    low, high = mean_recall_interval([10, 10], [10, 10])
    assert 0.8 < low < 1 and high == 1
    # As many of the intervals of random splits hold the true mean as they say.
    rng = np.random.default_rng(0)
    recalls, support = np.array([0.9, 0.7, 0.4]), np.array([150, 40, 12])
    held = 0
    for _ in range(2000):
        low, high = mean_recall_interval(rng.binomial(support, recalls).tolist(), support.tolist())
        held += low <= recalls.mean() <= high
    assert 0.94 < held / 2000 < 0.97


def test_the_interval_of_a_difference_of_mean_recalls() -> None:
    rng = np.random.default_rng(1)
    classes = np.repeat(np.arange(3), [150, 40, 12])
    first, second = np.array([0.9, 0.7, 0.4]), np.array([0.85, 0.7, 0.6])
    held = 0
    for _ in range(1000):
        draws = rng.random(len(classes))  # the same images are hard for both
        left, right = ((draws < recalls[classes])[None] for recalls in (first, second))
        found = mean_recall_difference(left, right, classes)
        held += found.low <= (second - first).mean() <= found.high
    assert 0.93 < held / 1000 < 0.99
    left, right = rng.random((2, 1, len(classes))) < 0.7
    expected = balanced_accuracy_score(classes, np.where(right[0], classes, (classes + 1) % 3))
    expected -= balanced_accuracy_score(classes, np.where(left[0], classes, (classes + 1) % 3))
    assert mean_recall_difference(left, right, classes).value == pytest.approx(expected)


def test_the_interval_of_a_difference_of_mean_recalls_covers_images_and_seeds() -> None:
    rng = np.random.default_rng(2)
    classes = np.repeat(np.arange(3), [150, 40, 12])
    first, second = np.array([2.2, 1.0, -0.4]), np.array([2.0, 1.0, 0.4])
    spread = 0.4  # of the seeds, beside that of 1 of the images
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    means = expit([[*first], [*second]] + np.sqrt(1 + spread**2) * nodes[:, None, None])
    before, after = (weights / weights.sum()) @ means.mean(axis=2)
    true = after - before
    trials, held, held_by_images = 400, 0, 0
    for _ in range(trials):
        hard = rng.normal(0, 1, len(classes))  # the same images are hard for all runs
        left, right = (
            rng.random((3, len(classes))) < expit(levels[classes] + hard + rng.normal(0, spread, (3, 1)))
            for levels in (first, second)
        )
        found = mean_recall_difference(left, right, classes)
        assert found.over_seeds
        held += found.low <= true <= found.high
        of_images = mean_recall_difference(left, right, classes, groups=[])
        held_by_images += of_images.low <= true <= of_images.high
    assert held / trials > 0.92  # 0.95 less three standard errors
    assert held_by_images / trials < 0.9


def test_compare_puts_unequal_classes_first(judged: vitreous.Run, unequal: Arrays, tmp_path: Path) -> None:
    other = vitreous.train(
        unequal,
        steps=12,
        balance="sampler",
        device="cpu",
        precision="32",
        overrides={**TINY, "val_fraction": 0.2},
        out=tmp_path / "other",
    )
    found = comparing.compare([judged.path, other.path])
    shown = comparing.text(found, 200).splitlines()
    assert shown[2].split()[:3] == ["run", "recall", "(macro)"]
    kept = [vitreous.Run(group.runs[0].path).predictions["val"] for group in found.groups]
    recalls = [balanced_accuracy_score(one.labels, one.logits.argmax(axis=1)) for one in kept]
    for line, recall in zip(shown[3:5], recalls, strict=True):
        assert f"{100 * recall:.0f} %" in line
    assert found.sentences[0].startswith("Unequal classes counted alike")
    assert found.pairs[0].recalls is not None
    assert found.pairs[0].recalls.value == pytest.approx(recalls[0] - recalls[1])
    assert comparing.to_json(found)["groups"][0]["macro_recall"] == pytest.approx(recalls[0])
    comparing.write_page(found, tmp_path / "compare.html")
