"""Evaluation of a saved bundle: the only source of a run's `val_` and `test_` figures."""

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
from vitreous.run import Predictions, Run, Say
from vitreous.wording import count

MISTAKES = 25
TEMPERATURES = (0.05, 20.0)  # bounds of the fit


# ---- at the end of a run


def bundle_of(model: VisionTransformer, store: ImageStore, train: Split) -> Bundle:
    """A trained network with the classes, statistics and majority class of its data."""
    counts = np.bincount(np.asarray(train.labels), minlength=store.num_classes)
    largest = int(counts.argmax())
    return Bundle(
        model,
        store.classes,
        store.mean,
        store.std,
        store.preprocess,
        majority=(store.classes[largest], int(counts[largest]) / len(train)),
        data={"name": store.name, "fingerprint": store.fingerprint},
    )


def final_figures(
    path: Path, splits: Splits, judges: tuple[str, ...], device: str, say: Say
) -> dict[str, float]:
    """Evaluates the saved bundle of the run folder `path` on the splits `judges`.

    Writes the predictions, the report's tables, and the temperature and figures into the bundle. The temperature is
    fitted on validation. It is 1 if the network was trained on validation.
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
        say("Probabilities are not calibrated (temperature: 1), because no validation images were held back.")
    named_figures: dict[str, float] = {}
    evaluation: dict[str, Any] = {"classes": bundle.classes}
    for stage, output in predictions.items():
        figures = figures_of(output)
        calibrated = figures_of(dataclasses.replace(output, logits=output.logits / np.float32(temperature)))
        named_figures |= figures.named(stage) | {f"{stage}_ece_calibrated": calibrated.scalars["ece"]}
        evaluation[stage] = {
            "figures": figures.scalars,
            "per_class": figures.per_class,
            "confusion": figures.confusion,
        }
    runs.write_json(path / "evaluation.json", evaluation)
    last = judges[-1]
    write_mistakes(path / "mistakes.npz", getattr(splits, last), predictions[last], temperature)
    write_config(dataclasses.replace(bundle, temperature=temperature, figures=named_figures), path / "bundle")
    return {**named_figures, "temperature": temperature}


def predict_split(bundle: Bundle, split: Split) -> Predictions:
    """The bundle's logits on a whole split, with the split's names and labels."""
    return Predictions(
        names=np.array(split.names, dtype=np.str_),
        labels=np.asarray(split.labels, dtype=np.int64),
        logits=bundle.logits(split.images).numpy(),
    )


def figures_of(predictions: Predictions) -> Figures:
    metrics = SplitMetrics(predictions.logits.shape[1])
    metrics.update(torch.from_numpy(predictions.logits), torch.from_numpy(predictions.labels))
    return metrics.compute()


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T for which softmax(logits / T) has the lowest cross-entropy (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: float [N, C].
        labels: int [N], the true classes.

    Returns:
        T, between `TEMPERATURES`; 1 if there is no optimum between them, as without any mistake, with logits worse
        than guessing, or after a divergence.
    """
    z = torch.as_tensor(logits, dtype=torch.float64)
    true = torch.as_tensor(labels)
    if not z.isfinite().all() or bool((z.argmax(dim=1) == true).all()):
        return 1.0
    z_true = z.gather(1, true[:, None]).squeeze(1)

    def slope(beta: float) -> tuple[float, float]:
        """First and second derivative of the mean cross-entropy by beta = 1 / T; it is convex in beta."""
        p = (beta * z).softmax(dim=1)
        mean = (p * z).sum(dim=1)
        return float((mean - z_true).mean()), float(((p * z.square()).sum(dim=1) - mean.square()).mean())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(low)[0] >= 0 or slope(high)[0] <= 0:
        return 1.0
    beta = 1.0
    for _ in range(100):  # Newton's method between shrinking bounds
        first, second = slope(beta)
        low, high = (low, beta) if first > 0 else (beta, high)
        step = beta - first / second if second > 0 else math.inf
        new = step if low < step < high else math.sqrt(low * high)
        if abs(new - beta) <= 1e-9 * beta:
            break
        beta = new
    return 1 / beta


def write_mistakes(path: Path, split: Split, predictions: Predictions, temperature: float) -> None:
    """Writes the `MISTAKES` most confident mistakes on a split, the most confident first."""
    confidence, predicted = (torch.from_numpy(predictions.logits) / temperature).softmax(dim=1).max(dim=1)
    labels = torch.from_numpy(predictions.labels)
    wrong = (predicted != labels).nonzero().squeeze(1)
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)[:MISTAKES]].numpy()
    file = BytesIO()
    np.savez_compressed(
        file,
        images=split.images[worst],
        label=labels[worst].numpy(),
        predicted=predicted[worst].numpy(),
        confidence=confidence[worst].numpy(),
        name=predictions.names[worst],
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
    """Evaluates a finished run on a split of its own data, or on other data.

    Args:
        split: "val" or "test". Other data with a single split are evaluated whole.
        data: other data, as for `train`. Their classes are matched to the run's by name; labels of plain arrays are
            positions in the run's classes. A run on arrays needs the same arrays again.
        read_test: read the test split of a run that has not read it yet. Every read is recorded in the run.
        data_dir: where data are kept; by default the run's own setting.
        device: auto|cpu|cuda|mps; auto is the run's own device.

    Raises:
        VitreousError: the run or split does not exist, the run's data have changed, the test split is unread, or
            other data have classes that the run does not know.
    """
    if split not in ("val", "test"):
        raise unknown("split", split, ("val", "test"))
    run = run if isinstance(run, Run) else Run(run)
    try:
        request, fingerprint = run.resolved["request"], run.resolved["fingerprint"]
        source, own_device, judge = request["data"], run.resolved["machine"]["device"], request["judge"]
    except (KeyError, TypeError) as error:
        raise runs.unreadable(run.path / "recipe.toml", error) from None
    device = machines.resolve_device(own_device if device == "auto" else device)
    bundle = load_bundle(run.path / "bundle", device)
    if data is None and source == "arrays":
        raise VitreousError(f"{run.path} was trained on arrays; give them again, as data=(images, labels).")
    store = _open(data, request, data_dir, bundle)
    if store.fingerprint == fingerprint:
        if split == "val" and judge == "test":
            raise VitreousError(
                f"{run.path} was trained on its validation images too, so evaluate its test split."
            )
        splits = resolve_splits(
            store, run.recipe.data.val_fraction, run.recipe.data.split_seed, recorded=run.split
        )
        part = getattr(splits, split)
        if split == "test":
            if not (read_test or _has_read_test(run)):
                raise VitreousError(
                    f"{run.path} has left its test split unread; add --read-test (in Python read_test=True) once every "
                    "choice is made, because choices made after reading it would flatter the test metrics."
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
    """Whether the test split was read before. Runs from before reads were recorded show it by their test figures."""
    return bool(run.test_reads) or ((run.path / "summary.json").exists() and "test_acc" in run.summary)


def _open(data: Any, request: Mapping[str, Any], data_dir: Path | str | None, bundle: Bundle) -> ImageStore:
    """Opens `data`, or the run's own data if it is None."""
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
        say=lambda line: None,  # standard output is for the figures
        classes=bundle.classes if isinstance(source, tuple | list) else None,
    )


def _matched(store: ImageStore, split: str, classes: tuple[str, ...]) -> Split:
    """A split of other data, or their only one, with labels as positions in `classes`."""
    unknown_classes = [name for name in store.classes if name not in classes]
    if unknown_classes:
        raise VitreousError(
            f"{store.name} has classes that the run does not know ({_shortened(unknown_classes)}); rename or remove "
            f"them. The run knows {_shortened(classes)}."
        )
    splits = dict(store.splits)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")  # training uses a single held-out split as the test split
    if len(splits) == 1:
        split = "train"
    if split not in splits:
        raise unknown(f"split of {store.name}", split, splits)
    part = splits[split]
    print(
        f"Evaluating {count(len(part), 'image')} of {store.name}, which is not the run's own data.",
        file=sys.stderr,
    )
    positions = np.array([classes.index(name) for name in store.classes])
    return Split(part.images, positions[np.asarray(part.labels)], part.names)


def _shortened(names: list[str] | tuple[str, ...]) -> str:
    """The first five names, and how many more."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
