"""Figures of a written bundle: the only way by which a run's `val_` and `test_` figures come about."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous import machine as machines
from vitreous import run as runs
from vitreous.bundle import Bundle, load_bundle, write_config
from vitreous.data.named import downloaded
from vitreous.data.sources import open_data
from vitreous.data.splits import Splits, resolve_splits
from vitreous.data.store import ImageStore, Split
from vitreous.errors import VitreousError, unknown
from vitreous.files import atomic_write
from vitreous.metrics import Figures, SplitMetrics
from vitreous.model.vit import VisionTransformer
from vitreous.preprocess import Preprocess
from vitreous.run import Predictions, Run, Say

MISTAKES = 25
TEMPERATURES = (0.05, 20.0)  # the fitted one lies between


# ---- at the end of a run


def bundle_of(model: VisionTransformer, store: ImageStore, train: Split) -> Bundle:
    """A trained network with what its data say of themselves."""
    counts = np.bincount(np.asarray(train.labels), minlength=store.num_classes)
    largest = int(counts.argmax())
    return Bundle(
        model,
        store.classes,
        store.mean,
        store.std,
        Preprocess(store.image_size),
        majority=(store.classes[largest], int(counts[largest]) / len(train)),
        data={"name": store.name, "fingerprint": store.fingerprint},
    )


def final_figures(
    path: Path, splits: Splits, judges: tuple[str, ...], device: str, say: Say
) -> dict[str, float]:
    """Evaluates the written bundle, this once, on the splits `judges`.

    Writes the predictions, what the report shows of them, and the temperature and figures into the bundle. The
    temperature is fitted on validation, and 1 where that was trained on.
    """
    bundle = load_bundle(path / "bundle", device)
    if "test" in judges:
        runs.note_test_read(path, "train")
    predictions = {stage: predict_split(bundle, getattr(splits, stage)) for stage in judges}
    runs.write_predictions(path / "predictions.npz", predictions)
    if "val" in predictions:
        temperature = fit_temperature(predictions["val"].logits, predictions["val"].labels)
    else:
        temperature = 1.0
        say("temperature: 1, for probabilities are calibrated on validation, which was trained on")
    named: dict[str, float] = {}
    evaluation: dict[str, Any] = {"classes": bundle.classes}
    for stage, made in predictions.items():
        figures = figures_of(made)
        calibrated = figures_of(dataclasses.replace(made, logits=made.logits / np.float32(temperature)))
        named |= figures.named(stage) | {f"{stage}_ece_calibrated": calibrated.scalars["ece"]}
        evaluation[stage] = {
            "figures": figures.scalars,
            "per_class": figures.per_class,
            "confusion": figures.confusion,
        }
    runs.write_json(path / "evaluation.json", evaluation)
    last = judges[-1]
    write_mistakes(path / "mistakes.npz", getattr(splits, last), predictions[last], temperature)
    write_config(dataclasses.replace(bundle, temperature=temperature, figures=named), path / "bundle")
    return {**named, "temperature": temperature}


def predict_split(bundle: Bundle, split: Split) -> Predictions:
    """The bundle's logits of a whole split, beside its names and labels."""
    return Predictions(
        names=np.array(split.names, dtype=np.str_),
        labels=np.asarray(split.labels, dtype=np.int64),
        logits=bundle.logits(split.images).numpy(),
    )


def figures_of(made: Predictions) -> Figures:
    metrics = SplitMetrics(made.logits.shape[1])
    metrics.update(torch.from_numpy(made.logits), torch.from_numpy(made.labels))
    return metrics.compute()


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that makes softmax(logits / T) likeliest for the labels (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: float [N, C].
        labels: int [N], the true classes.

    Returns:
        T, between `TEMPERATURES`; 1 where the best is not: no mistake to learn from, logits that are worse than a
        guess, a model that has diverged.
    """
    z = torch.as_tensor(logits, dtype=torch.float64)
    true = torch.as_tensor(labels)
    if not z.isfinite().all() or bool((z.argmax(dim=1) == true).all()):
        return 1.0
    z_true = z.gather(1, true[:, None]).squeeze(1)

    def slope(beta: float) -> tuple[float, float]:
        """First and second derivative of the mean cross-entropy by beta = 1 / T, in which it is convex."""
        p = (beta * z).softmax(dim=1)
        mean = (p * z).sum(dim=1)
        return float((mean - z_true).mean()), float(((p * z.square()).sum(dim=1) - mean.square()).mean())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(low)[0] >= 0 or slope(high)[0] <= 0:
        return 1.0
    beta = 1.0
    for _ in range(100):  # Newton's method, kept between bounds that close in
        first, second = slope(beta)
        low, high = (low, beta) if first > 0 else (beta, high)
        step = beta - first / second if second > 0 else math.inf
        new = step if low < step < high else math.sqrt(low * high)
        if abs(new - beta) <= 1e-9 * beta:
            break
        beta = new
    return 1 / beta


def write_mistakes(path: Path, split: Split, made: Predictions, temperature: float) -> None:
    """Writes the most confident mistakes on a split, most confident first."""
    confidence, predicted = (torch.from_numpy(made.logits) / temperature).softmax(dim=1).max(dim=1)
    labels = torch.from_numpy(made.labels)
    wrong = (predicted != labels).nonzero().squeeze(1)
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)[:MISTAKES]].numpy()
    file = BytesIO()
    np.savez_compressed(
        file,
        images=split.images[worst],
        label=labels[worst].numpy(),
        predicted=predicted[worst].numpy(),
        confidence=confidence[worst].numpy(),
        name=made.names[worst],
    )
    atomic_write(path, file.getvalue())


# ---- afterwards


def evaluate(
    run: Run | Path | str,
    split: str = "test",
    *,
    data: Any = None,
    read_test: bool = False,
    data_dir: Path | str | None = None,
    device: str = "auto",
) -> Figures:
    """Figures of a finished run's bundle, on a split of its own data or on other data.

    Args:
        split: "val" or "test". Of other data with a single set of images, all of them are taken.
        data: other data, as for `train`; their classes are matched to the run's by name (labels of plain arrays are
            positions in the run's classes). The arrays again, for a run on arrays.
        read_test: reads the test split of a run that has left it unread so far. Every read is noted in the run.
        device: by default the run's own.

    Raises:
        VitreousError: no such run or split, the run's data have changed, the test split is unread, or other data
            have classes that the run does not know.
    """
    if split not in ("val", "test"):
        raise unknown("split", split, ("val", "test"))
    run = run if isinstance(run, Run) else Run(run)
    try:
        request, fingerprint = run.resolved["request"], run.resolved["fingerprint"]
        asked, own_device, judge = request["data"], run.resolved["machine"]["device"], request["judge"]
    except (KeyError, TypeError) as error:
        raise runs.unreadable(run.path / "recipe.toml", error) from None
    device = machines.resolve_device(own_device if device == "auto" else device)
    bundle = load_bundle(run.path / "bundle", device)
    if data is None and asked == "arrays":
        raise VitreousError("This run was trained on arrays; give them again, as data=(images, labels).")
    store = _open(data, request, data_dir, bundle)
    if store.fingerprint == fingerprint:
        if split == "val" and judge == "test":
            raise VitreousError(
                f"{run.path} was trained on its validation pictures too; evaluate its test split."
            )
        part = getattr(resolve_splits(store, run.recipe.data.val_fraction, run.recipe.data.split_seed), split)
        if split == "test":
            if not (read_test or _has_read_test(run)):
                raise VitreousError(
                    f"{run.path} has left its test split unread; add --read-test (in Python read_test=True) "
                    "once everything is chosen, since what is chosen after reading it makes its figures too good."
                )
            runs.note_test_read(run.path, "evaluate")
    elif data is None:
        raise VitreousError(
            f"{store.source} no longer holds the images of this run (its fingerprint is "
            f"{store.fingerprint[:12]}, the run's {fingerprint[:12]}); restore them or train anew."
        )
    else:
        part = _matched(store, split, bundle.classes)
    return figures_of(predict_split(bundle, part))


def _has_read_test(run: Run) -> bool:
    """Whether it was read before: noted, or, before reads were noted, told by the run's own test figures."""
    return bool(run.test_reads) or ((run.path / "summary.json").exists() and "test_acc" in run.summary)


def _open(data: Any, request: Mapping[str, Any], data_dir: Path | str | None, bundle: Bundle) -> ImageStore:
    """The run's own data if `data` is None, else those."""
    source, size = (
        (request["data"], request.get("image_size")) if data is None else (data, bundle.preprocess.size)
    )
    folder = data_dir or request.get("data_dir")
    # Folders are packed at a size, and shapes drawn at one; other images are resized when the bundle meets them.
    sized = isinstance(source, str | Path) and downloaded(source) is None
    return open_data(
        source,
        Path(folder) if folder else None,
        image_size=size if sized else None,
        skip_bad=request.get("skip_bad", False),
        say=lambda line: None,
        classes=bundle.classes if isinstance(source, tuple | list) else None,
    )


def _matched(store: ImageStore, split: str, classes: tuple[str, ...]) -> Split:
    """A split of other data, or all of a single one, its labels as positions in `classes`."""
    strange = [name for name in store.classes if name not in classes]
    if strange:
        raise VitreousError(
            f"{store.name} has classes that the run does not know ({_few(strange)}); "
            f"the run's are {_few(classes)}. Rename them, or leave them out."
        )
    splits = dict(store.splits)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")  # as in training
    if len(splits) == 1:
        split = "train"
    if split not in splits:
        raise unknown(f"split of {store.name}", split, splits)
    part = splits[split]
    print(
        f"Evaluating {len(part):,} images of {store.name}, which is not the run's own data.", file=sys.stderr
    )
    positions = np.array([classes.index(name) for name in store.classes])
    return Split(part.images, positions[np.asarray(part.labels)], part.names)


def _few(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
