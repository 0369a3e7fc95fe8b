"""Evaluation of a saved bundle: the only source of a run's `val_` and `test_` figures."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous import machine as machines
from vitreous import run as runs
from vitreous.bundle import Bundle, load_bundle, with_coverage, write_config
from vitreous.calibration import probabilities_of
from vitreous.confusion import confusions
from vitreous.data.labels import UnknownClasses
from vitreous.data.named import DATASETS, downloaded
from vitreous.data.objects import name_of
from vitreous.data.reading import ReadOptions, read_options
from vitreous.data.sources import MissingPathError, grouped, open_data, open_source
from vitreous.data.splits import Splits, resolve_splits
from vitreous.data.store import ImageStore, Split
from vitreous.errors import VitreousError, unknown
from vitreous.files import atomic_write
from vitreous.label_errors import find_suspects
from vitreous.metrics import Figures, SplitMetrics
from vitreous.model.vit import VisionTransformer
from vitreous.request import READING
from vitreous.run import Predictions, Run, Say
from vitreous.wording import count, shortened

MISTAKES = 24
SUSPECTS = 24  # of each split, probable label errors whose images are kept
CONFUSIONS = 3  # recorded in the bundle
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
    evaluation: dict[str, Any] = {
        "classes": bundle.classes,
        "training_images": np.bincount(splits.train.labels, minlength=len(bundle.classes)).tolist(),
    }
    for stage, output in predictions.items():
        figures = figures_of(output).ordered()
        calibrated = figures_of(replace(output, logits=output.logits / np.float32(temperature)))
        named_figures |= figures.named(stage) | {f"{stage}_ece_calibrated": calibrated.scalars["ece"]}
        evaluation[stage] = {
            "figures": figures.scalars,
            "per_class": figures.per_class,
            "confusion": figures.confusion,
        }
    runs.write_json(path / "evaluation.json", evaluation)
    last = judges[-1]
    write_mistakes(path / "mistakes.npz", getattr(splits, last), predictions[last], temperature)
    write_label_errors(path / "label_errors.npz", splits, predictions, temperature)
    known = replace(
        bundle,
        temperature=temperature,
        figures=named_figures,
        images={
            "train": len(splits.train),
            **{stage: len(output.labels) for stage, output in predictions.items()},
        },
        confused=confusions(bundle.classes, evaluation[last]["confusion"], CONFUSIONS),
    )
    if "val" in predictions:
        known = with_coverage(known, predictions["val"].logits, predictions["val"].labels)
    write_config(known, path / "bundle")
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


def write_label_errors(
    path: Path, splits: Splits, predictions: Mapping[str, Predictions], temperature: float
) -> None:
    """Writes the images of the first `SUSPECTS` probable label errors of each split that was evaluated."""
    images, of_split, positions = [], [], []
    for stage, output in predictions.items():
        found = find_suspects(output.labels, probabilities_of(output.logits, temperature)).positions[
            :SUSPECTS
        ]
        images += [getattr(splits, stage).images[found]]
        of_split += [stage] * len(found)
        positions += found.tolist()
    file = BytesIO()
    np.savez_compressed(
        file,
        images=np.concatenate(images),
        split=np.array(of_split, dtype=np.str_),
        position=np.array(positions, dtype=np.int64),
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
        data: other data, as for `train`, which are read with the settings that the network was trained with. Classes
            are matched to the run's by name, and labels that are numbers without names are positions in the run's
            classes. The run's own data, recognised by their fingerprint, are given for a run on arrays, or on a
            folder that has moved: then the run's own split is evaluated.
        read_test: read the test split of a run that has not read it yet. Every read is recorded in the run.
        data_dir: where data are kept; by default the run's own setting.
        device: auto|cpu|cuda|mps; auto is the run's own device.

    Raises:
        VitreousError: the run or split does not exist, the run's data have changed, the test split is unread, or
            other data have classes that the run does not know.
    """
    _check_split(split)
    run = run if isinstance(run, Run) else Run(run)
    device = machines.resolve_device(_recorded(run)["device"] if device == "auto" else device)
    bundle = load_bundle(run.path / "bundle", device)
    store, part = open_split(run, split, data=data, data_dir=data_dir, bundle=bundle)
    own = store.fingerprint == run.resolved["fingerprint"]
    if own and split == "test":
        if not (read_test or has_read_test(run)):
            raise VitreousError(
                f"{run.path} has left its test split unread; add --read-test (in Python read_test=True) once every "
                "choice is made, because choices made after reading it would flatter the test metrics."
            )
        runs.note_test_read(run.path, "evaluate")
    return figures_of(predict_split(bundle, part))


def open_split(
    run: Run,
    split: str,
    *,
    data: Any = None,
    data_dir: Path | str | None = None,
    bundle: Bundle | None = None,
) -> tuple[ImageStore, Split]:
    """Opens a split of a run's own data, or of other data; the arguments are those of `evaluate`.

    Returns:
        The data set, and the split with labels as positions in the run's classes. The data are the run's own exactly
        if their fingerprint is. Whoever shows figures of the run's own test split counts the read.

    Raises:
        VitreousError: see `evaluate`.
    """
    _check_split(split)
    recorded = _recorded(run)
    request, fingerprint = recorded["request"], recorded["fingerprint"]
    place = data_dir or request.get("data_dir")
    folder = Path(place) if place else None
    bundle = bundle or run.bundle
    if data is None:
        if request["data"] == "arrays":
            raise runs.missing_arrays(run.path)
        store = _open_own(request, folder)
        runs.check_same_data(store.source, store.fingerprint, fingerprint, given=False)
    else:
        store = _open_given(data, split, request, folder, bundle, fingerprint)
    if store.fingerprint != fingerprint:
        return store, _matched(store, split, bundle.classes)
    if isinstance(data, str | Path) and store.source != request["data"]:
        print(
            f"{store.source} holds the images of this run, so its own {split} split is used.",
            file=sys.stderr,
        )
    if split == "val" and request["judge"] == "test":
        raise VitreousError(
            f"{run.path} was trained on its validation images too, so evaluate its test split."
        )
    if request.get("group_by"):
        store = grouped(store, request["group_by"])
    fraction, seed = run.recipe.data.val_fraction, run.recipe.data.split_seed
    return store, getattr(resolve_splits(store, fraction, seed, recorded=run.split), split)


def _check_split(split: str) -> None:
    if split not in ("val", "test"):
        raise unknown("split", split, ("val", "test"))


def _recorded(run: Run) -> dict[str, Any]:
    """What a run records about its data and device: request, fingerprint, device."""
    try:
        request = run.resolved["request"]
        for key in ("data", "judge"):
            request[key]
        return {
            "request": request,
            "fingerprint": run.resolved["fingerprint"],
            "device": run.resolved["machine"]["device"],
        }
    except (KeyError, TypeError) as error:
        raise runs.unreadable(run.path / "recipe.toml", error) from None


def has_read_test(run: Run) -> bool:
    """Whether the test split was read before. Runs from before reads were recorded show it by their test figures."""
    return bool(run.test_reads) or ((run.path / "summary.json").exists() and "test_acc" in run.summary)


def _open_own(request: Mapping[str, Any], data_dir: Path | None) -> ImageStore:
    """Opens the data of a run as the run did."""
    request = runs.with_earlier_defaults(request)
    reading = {name: request[name] for name in READING if name in request and name != "group_by"}
    try:
        return open_data(request["data"], data_dir, say=lambda line: None, **reading)
    except MissingPathError:
        raise runs.missing_data(request["data"]) from None


def _open_given(
    data: Any, split: str, request: Mapping[str, Any], data_dir: Path | None, bundle: Bundle, fingerprint: str
) -> ImageStore:
    """Opens the data that a person gave, with the pixels that the network was trained on.

    Those may be the run's own data, so a folder is read with the run's own options first.
    """
    settings = bundle.preprocess
    options = ReadOptions(
        image_size=settings.size, skip_bad=bool(request.get("skip_bad", False)), settings=settings
    )

    def say(line: str) -> None:  # standard output is for the figures
        print(line, file=sys.stderr)

    if isinstance(data, ImageStore) or downloaded(data) is not None:
        return open_source(data, data_dir, ReadOptions(), say)  # resized when the bundle meets them
    if not isinstance(data, str | Path):
        try:
            return open_source(data, data_dir, options, say, bundle.classes, only=split)
        except UnknownClasses as error:
            raise _unknown_classes(f"The data {name_of(data)}", error.names, bundle.classes) from None
    own_splits = read_options(splits=request.get("splits", "auto")).splits
    if own_splits != "auto" and not (isinstance(data, str) and data in DATASETS):
        try:
            store = open_source(data, data_dir, replace(options, splits=own_splits), lambda line: None)
        except VitreousError:  # other folders need not have splits of these names
            pass
        else:
            if store.fingerprint == fingerprint:
                return store
    return open_source(data, data_dir, options, say)


def _unknown_classes(name: str, classes: Sequence[str], known: Sequence[str]) -> VitreousError:
    return VitreousError(
        f"{name} has classes that the run does not know ({shortened(classes)}); rename or remove them. The run knows "
        f"{shortened(known)}."
    )


def _matched(store: ImageStore, split: str, classes: tuple[str, ...]) -> Split:
    """A split of other data, or their only one, with labels as positions in `classes`."""
    unknown_classes = [name for name in store.classes if name not in classes]
    if unknown_classes:
        raise _unknown_classes(store.name, unknown_classes, classes)
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
