"""How folders are understood, from lists of names: each case is a way in which people keep images."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sample_data import random_png
from vitreous.data.layout import Layout, read_layout
from vitreous.data.layout.names import IMAGE_SUFFIXES, LITTER, UNSUPPORTED, natural_key, text_of
from vitreous.data.layout.split_names import fold_of, split_name, split_of
from vitreous.data.layout.table import read_table
from vitreous.errors import VitreousError

ROOT = Path("/data/pets")
QUESTION = "--splits none"


def images(*folders: str, count: int = 2, suffix: str = "jpg") -> list[str]:
    """`count` images in each folder; "train/cat,dog" are two folders in train."""
    paths = [f"{parent}{part}" for folder in folders for parent, part in _parts(folder)]
    return [f"{path}/{i}.{suffix}".lstrip("/") for path in paths for i in range(count)]


def _parts(folder: str) -> list[tuple[str, str]]:
    parent, slash, last = folder.rpartition("/")
    return [(parent + slash, part) for part in last.split(",")]


def layout(
    names: Collection[str],
    splits: str = "auto",
    folders: Collection[str] = (),
    contents: Mapping[str, bytes] | None = None,
    unusable: Mapping[str, tuple[str, str]] | None = None,
) -> Layout:
    def read(name: str, limit: int | None = None) -> bytes:
        return (contents or {})[name][:limit]

    return read_layout(ROOT, names, folders, read, splits, unusable)


def refusal(names: Collection[str], splits: str = "auto", **options: object) -> str:
    with pytest.raises(VitreousError) as caught:
        layout(names, splits, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


@dataclass(frozen=True)
class Case:
    """Names and what they mean: the number of images by split, the classes, and the number of other files by kind."""

    names: list[str]
    counts: dict[str, int]
    classes: str
    passed_over: dict[str, int] = field(default_factory=dict)
    understood: tuple[str, ...] = ()
    splits: str = "auto"


TRAIN_TEST = {"train": 4, "test": 4}
CASES = {
    "class folders": Case(images("cat,dog"), {"train": 4}, "cat dog"),
    "plain splits": Case(images("train/cat,dog", "test/cat,dog"), TRAIN_TEST, "cat dog"),
    "splits in capitals": Case(images("TRAIN/cat,dog", "Val/cat,dog"), {"train": 4, "val": 4}, "cat dog"),
    "Training and Testing": Case(
        images("Training/glioma,none", "Testing/glioma,none"),
        TRAIN_TEST,
        "glioma none",
        understood=("Training/ and Testing/ are the splits train and test.",),
    ),
    "the same name twice": Case(
        images("training_set/training_set/cats,dogs", "test_set/test_set/cats,dogs"),
        TRAIN_TEST,
        "cats dogs",
        understood=("training_set/ and test_set/ are the splits train and test.",),
    ),
    "Intel scenes": Case(
        images("seg_train/seg_train/forest,sea", "seg_test/seg_test/forest,sea", "seg_pred/seg_pred"),
        TRAIN_TEST,
        "forest sea",
        {"in seg_pred/, which is no split": 2},
        ("seg_train/ and seg_test/ are the splits",),
    ),
    "wrapped in two folders beside a text": Case(
        [*images("data/archive/seg_train/seg_train/a,b"), "readme.md", "data/licence.txt"],
        {"train": 4},
        "a b",
        {".md": 1, ".txt": 1},
        ("seg_train/ is the split train.",),
    ),
    "chest X-rays, which hold themselves": Case(
        [
            *images(*(f"chest_xray/{inner}{s}/ok,ill" for inner in ("", "chest_xray/") for s in ("train", "val"))),
            *(f"__MACOSX/chest_xray/._{i}.jpeg" for i in range(9)),
            "chest_xray/.DS_Store",
        ],
        {"train": 4, "val": 4},
        "ill ok",
        {"in chest_xray/, which repeats the folders beside it": 8, LITTER: 2},
        ("left out as a copy",),
    ),
    "classes beside a copy of them": Case(
        images("yes,no", "brain/yes,no"),
        {"train": 4},
        "no yes",
        {"in brain/, which repeats the folders beside it": 4},
        ("left out as a copy",),
    ),
    "Tiny ImageNet": Case(
        [
            *images("tiny/train/n01/images", "tiny/train/n02/images", suffix="JPEG"),
            "tiny/train/n01/n01_boxes.txt",
            *images("tiny/val/images", "tiny/test/images", count=50, suffix="JPEG"),
            "tiny/val/val_annotations.txt",
        ],
        {"train": 4},
        "n01 n02",
        {".txt": 2, "in val/, which has no class folders": 50, "in test/, which has no class folders": 50},
        ("val/ has no class folders, so its 50 images", "test/ has no class folders"),
    ),
    "a test split without labels": Case(
        images("train/cat,dog") + images("test", count=9),
        {"train": 4},
        "cat dog",
        {"in test/, which has no class folders": 9},
        ("test/ has no class folders",),
    ),
    "Imagenette": Case(
        [*images("imagenette2/train/n01,n02", "imagenette2/val/n01,n02"), "imagenette2/noisy_imagenette.csv"],
        {"train": 4, "val": 4},
        "n01 n02",
        {".csv": 1},
    ),
    "MVTec": Case(
        images("train/good", "test/good,broken", "ground_truth/broken"),
        {"train": 2, "test": 4},
        "broken good",
        {"in ground_truth/, which is no split": 2},
    ),
    "Caltech": Case(
        [*images("101_ObjectCategories/ant,bee"), "Annotations/ant/1.mat"], {"train": 4}, "ant bee", {".mat": 1}
    ),
    "named after the data set": Case(
        images("cars_train/audi,bmw", "cars_test/audi,bmw"),
        TRAIN_TEST,
        "audi bmw",
        understood=("cars_train/ and cars_test/ are the splits",),
    ),
    "alphabet with a flat test": Case(
        images("asl_alphabet_train/asl_alphabet_train/A,B", "asl_alphabet_test/asl_alphabet_test"),
        {"train": 4},
        "A B",
        {"in asl_alphabet_test/, which has no class folders": 2},
        ("asl_alphabet_train/ is the split train.", "asl_alphabet_test/ has no class folders"),
    ),
    "a class of vehicles": Case(
        images("bus,train"), {"train": 4}, "bus train", understood=("train/ is taken for a class",)
    ),
    "tests of vehicles": Case(images("crash_test,smoke_test"), {"train": 4}, "crash_test smoke_test"),
    "splits in each class": Case(
        images("cat/train,test", "dog/train,test"),
        TRAIN_TEST,
        "cat dog",
        understood=("The splits train and test are taken from the folders inside each class folder.",),
    ),
    "folds": Case(
        images(*(f"fold{i}/siren,drill" for i in range(1, 11))),
        {"train": 32, "val": 4, "test": 4},
        "drill siren",
        understood=("fold10/ is the test split, fold9/ is val",),
    ),
    "two folds": Case(
        images("Fold 1/a,b", "Fold 2/a,b"),
        TRAIN_TEST,
        "a b",
        understood=("Fold 1/ and Fold 2/ are taken for folds: Fold 2/ is the test split",),
    ),
    "folders beside the splits": Case(
        [*images("train/a,b", "test/a,b", "extra", "unlabeled/x"), "train/list.csv", "1.jpg", "train/2.jpg"],
        TRAIN_TEST,
        "a b",
        {
            ".csv": 1,
            "in extra/, which is no split": 2,
            "in unlabeled/, which is no split": 2,
            "outside the class folders": 2,
        },
    ),
    "masks in each class": Case(
        images("COVID/COVID/images,masks", "COVID/Normal/images,masks"),
        {"train": 4},
        "COVID Normal",
        {"in masks/, which belongs to the images beside it": 4},
        ("masks/ stands beside a folder of images",),
    ),
    "masks of all classes": Case(
        images("images/a,b", "masks/a,b"),
        {"train": 4},
        "a b",
        {"in masks/, which belongs to the images beside it": 4},
        ("masks/ stands beside",),
    ),
    "loose images": Case(
        [*images("a,b"), "1.png", "2.png"], {"train": 4}, "a b", {"outside the class folders": 2}
    ),
    "an empty split": Case([*images("train/a,b"), "test/a/readme.txt"], {"train": 4}, "a b", {".txt": 1},
                           ("test/ holds no images",)),
    "deeper folders": Case(
        ["cat/indoors/1.png", "cat/2.png", "dog/x/y/3.png"],
        {"train": 3},
        "cat dog",
        understood=("cat/indoors/ to cat",),
    ),
    "captions": Case(
        [*images("a,b"), "a/0.txt", "a/1.txt", "b/0.json"], {"train": 4}, "a b", {".txt": 2, ".json": 1}
    ),
    "numbers": Case(images(*map(str, range(12)), count=1), {"train": 12}, " ".join(map(str, range(12)))),
    "letter case between splits": Case(
        images("train/Cat,dog", "test/cat,dog "),
        TRAIN_TEST,
        "Cat dog",
        understood=("'Cat' and 'cat' are one class", "'dog' and 'dog ' are one class"),
    ),
    "letter case in one split": Case(
        images("train/Cat,cat", "test/cat"),
        {"train": 4, "test": 2},
        "Cat cat",
        understood=("'Cat' and 'cat' are different classes",),
    ),
    # what the option `splits` says
    "none": Case(images("train/a,b", "test/a,b"), {"train": 8}, "test train", splits="none"),
    "none, wrapped": Case(images("x/train_a,train_b"), {"train": 4}, "train_a train_b", splits="none"),
    "folders that are named": Case(
        images("first/a,b", "second/a,b", "third/a,b"),
        TRAIN_TEST,
        "a b",
        {"in third/, which is no split": 4},
        splits="train=first,test=second",
    ),
    "several folders of a split": Case(
        images("w/fold1/a,b", "w/fold2/a,b", "w/fold3/a,b"),
        {"train": 8, "test": 4},
        "a b",
        splits="train=fold1+fold2, test=./w/fold3/",
    ),
    "a plus in a name": Case(
        images("a+b/x,y", "c/x,y"), {"train": 4, "val": 4}, "x y", splits="train=a+b,validation=c"
    ),
    "splits in a split": Case(
        images("train/train/a,b", "train/val/a,b", "test/a,b"),
        {"train": 4, "val": 4, "test": 4},
        "a b",
        splits="train=train/train,val=train/val,test=test",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("top", ["", "wrapped/"])
def test_folders_as_their_owners_mean_them(case: Case, top: str) -> None:
    found = layout([top + name for name in case.names], case.splits)
    counts = {split: sum(entry.split == split for entry in found.entries) for split in found.splits}
    assert (counts, found.classes) == (case.counts, tuple(case.classes.split()))
    assert {group.kind: len(group.names) for group in found.passed_over} == case.passed_over
    assert len(found.entries) + sum(
        len(group.names) for group in found.passed_over if group.kind != LITTER
    ) == len([name for name in case.names if "._" not in name and ".DS" not in name])
    assert not found.problems and all(entry.location.endswith(entry.name) for entry in found.entries)
    told = " ".join(found.understood)
    for words in case.understood:
        assert words in told
    assert bool(told) == bool(case.understood)


DOUBTFUL = {
    "train_a and train_b": images("train_a/cat,dog", "train_b/cat,dog"),
    "names of splits with other words": images("cars_train,cars_test"),
    "split names by class": images("cats_train,cats_test", "dogs_train,dogs_test"),
    "train beside its classes": images("train/cat,dog", "cat,dog"),
    "a test folder beside classes": images("cat,dog,test"),
    "no train": images("val/a,b", "test/a,b"),
    "images and test": images("images/a,b", "test/a,b"),
    "an unknown split": images("train/a,b", "test/a,b", "special/a,b"),
    "a name that only looks like a split": images("train/a,b", "crash_test/a,b"),
    "unknown names with the same classes": images("erste/a,b", "zweite/a,b"),
    "domains": images("amazon/images/mug,pen", "dslr/images/mug,pen", "webcam/images/mug"),
    "patients": images("p1/0,1", "p2/0,1", "p3/0"),
    "splits of several data sets": images(
        "bottle/train/good", "bottle/test/good,bad", "cable/train/good", "cable/test/good"
    ),
    "a data set beside others": images("ds/train/a,b", "ds/test/a,b", "shots"),
    "splits in some classes": images("cat/train,test", "dog"),
    "splits in a split": images("train/train/a,b", "train/val/a,b", "test/a,b"),
    "folds with splits": images("fold1/train/a,b", "fold1/val/a,b", "fold2/train/a,b", "fold2/val/a,b"),
    "folds beside a test split": images("fold1/a,b", "fold2/a,b", "test/a,b"),
    "folds in a split": images("train/fold1/a,b", "train/fold2/a,b", "test/a,b"),
    "a changed copy": images("train/a,b", "test/a,b", "x/train/a,b", "x/test/a"),
    "classes beside a changed copy of them": [*images("yes,no", "brain/yes,no"), "brain/yes/9.jpg"],
}  # fmt: skip


@pytest.mark.parametrize("names", DOUBTFUL.values(), ids=DOUBTFUL)
def test_folders_in_doubt_are_refused_with_a_way_out(names: list[str]) -> None:
    message = refusal(names)
    assert QUESTION in message and str(ROOT) in message
    assert len(layout(names, "none").classes) > 1  # the first advice works when followed
    for advised in re.findall(r"--splits ('[^']+'|[^' ]*=[^ ]+)", message):
        followed = layout(names, shlex.split(advised)[0])
        assert "train" in followed.splits and len(followed.classes) > 1


TWICE = {
    "val and valid": (images("train/a,b", "val/a,b", "valid/a,b"), "both val/ and valid/"),
    "two test folders": (images("train/a,b", "test1/a,b", "test2/a,b"), "both test1/ and test2/"),
    "letter case": (images("train/a,b", "Train/a,b"), "both Train/ and train/"),
}


@pytest.mark.parametrize(("names", "words"), TWICE.values(), ids=TWICE)
def test_two_folders_of_one_split_are_refused(names: list[str], words: str) -> None:
    message = refusal(names)
    assert words in message
    assert "train" in layout(names, re.findall(r"--splits (\S+)\.", message)[0]).splits


FLAT = {
    "images alone": images("images"),
    "dogs and cats": ["train/cat.0.jpg", "train/dog.0.jpg", "test1/1.jpg"],
    "dogs and cats, twice in each other": ["train/train/cat.0.jpg", "train/train/dog.0.jpg", "test1/test1/1.jpg"],
    "train alone": images("train"),
    "Oxford pets": [*images("images"), "annotations/list.txt", *images("annotations/trimaps", suffix="png")],
    "Oxford flowers": images("jpg"),
    "VOC": images("VOCdevkit/JPEGImages", "VOCdevkit/SegmentationClass", "VOCdevkit/SegmentationObject"),
    "COCO": [*images("train2017,val2017"), "annotations/instances_val2017.json"],
    "YOLO": [*images("train/images", "valid/images"), "train/labels/0.txt", "data.yaml"],
    "YOLO, the other way": [*images("images/train,val"), "labels/train/0.txt"],
    "masks": images("train/images,masks", "test/images,masks"),
    "flat folds": images("fold1,fold2,fold3"),
}  # fmt: skip


@pytest.mark.parametrize("names", FLAT.values(), ids=FLAT)
@pytest.mark.parametrize("top", ["", "wrapped/"])
def test_images_without_classes_are_refused_with_both_ways_to_give_them(names: list[str], top: str) -> None:
    message = refusal([top + name for name in names])
    assert "has no class folders" in message and "cat/1.jpg" in message and "labels.csv" in message


def test_a_table_of_another_name_is_pointed_out() -> None:
    message = refusal([*images("train"), "train.csv", "sample_submission.csv"])
    assert message.endswith("If train.csv gives the labels, copy it there with such a header.")


def test_one_folder_is_one_class() -> None:
    assert "has no class folders; put" in refusal(images(""))
    assert layout(images("cat")).classes == ("cat",)  # which the import then refuses


# ---- the option `splits`


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (
            "train=frist,test=second",
            "has no folder frist with images, which --splits names; did you mean first?",
        ),
        ("train=nothing", "choose from first"),
        ("train=data/pets/first/", "did you mean first?"),
        ("tain=first", "did you mean 'train'?"),
        ("train=first,test=", "gives no folder for test"),
        ("train=first,train=second", "names train twice; join its folders by +"),
        ("test=first", "names no folder to train on"),
        ("train=first,test=first/a", "share files"),
        ("train=.,test=first", "share files"),
        ("train=first/a,test=second/a", "has no class folders: a/ and a/ hold images"),
        ("train=../first", "has no folder ../first"),
    ],
)
def test_folders_that_cannot_be_splits(splits: str, words: str) -> None:
    assert words in refusal(images("first/a,b", "second/a,b"), splits)


# ---- files


def test_every_suffix_of_an_image_is_read_in_any_letter_case() -> None:
    names = [f"a/{i}.{suffix}" for i, suffix in enumerate(sorted(IMAGE_SUFFIXES))]
    found = layout([*names, *(name.upper().replace("A/", "b/") for name in names)])
    assert len(found.entries) == 2 * len(IMAGE_SUFFIXES) and not found.passed_over


def test_images_in_other_formats_are_problems_unless_a_readable_one_is_beside() -> None:
    assert not IMAGE_SUFFIXES & set(UNSUPPORTED)
    assert {"mpo", "pfm"} <= IMAGE_SUFFIXES  # `decode` reads them
    names = [*images("a,b"), "a/9.CR2", "a/8.dcm", "b/0.NEF", "b/scan.nii.gz", "logo.svg"]
    found = layout(names)
    assert {(problem.reason, problem.name) for problem in found.problems} == {
        ("unsupported format", "a/9.CR2"),
        ("unsupported format", "a/8.dcm"),
        ("unsupported format", "b/scan.nii.gz"),
    }
    assert all("convert it to PNG or JPEG" in problem.detail for problem in found.problems)
    assert {group.kind: group.names for group in found.passed_over} == {
        ".nef": ("b/0.NEF",),
        "outside the class folders": ("logo.svg",),
    }


def test_files_without_a_suffix_are_known_by_their_first_bytes() -> None:
    png = random_png(1)
    contents = {
        "a/photo": png,
        "a/image.001": png,
        "b/x.jpg_large": b"\xff\xd8\xff\xe0",
        "b/y.jpg?w=1": b"RIFF\0\0\0\0WEBP",
        "b/heic": b"\0\0\0\x18ftypheic",
        "b/scan": bytes(128) + b"DICM",
        "a/BM": b"BMI is a number",
        "a/README": b"read me",
        "a/P1": b"P1234",
    }
    found = layout(contents, contents=contents)
    assert {entry.name for entry in found.entries} == {
        "a/photo",
        "a/image.001",
        "b/x.jpg_large",
        "b/y.jpg?w=1",
        "b/heic",
    }
    assert [problem.name for problem in found.problems] == ["b/scan"]
    assert {group.kind: group.names for group in found.passed_over} == {
        "without a suffix": ("a/BM", "a/P1", "a/README")
    }


def test_a_file_that_cannot_be_read_to_see_what_it_is_is_passed_over() -> None:
    def read(name: str, limit: int | None = None) -> bytes:
        raise VitreousError("too large")

    found = read_layout(ROOT, [*images("a,b"), "a/huge"], [], read)
    assert [group.text for group in found.passed_over] == ["1 file without a suffix"]


def test_only_the_first_bytes_of_a_file_without_a_suffix_are_read() -> None:
    limits = []

    def read(name: str, limit: int | None = None) -> bytes:
        limits.append(limit)
        return b""

    read_layout(ROOT, [*images("a,b"), "a/huge"], [], read)
    assert limits == [256]


def test_an_entry_named_as_the_folder_of_macos_is_litter() -> None:
    found = layout([*images("a,b"), "__MACOSX", "a/__MACOSX"])
    assert {group.kind: group.names for group in found.passed_over} == {LITTER: ("__MACOSX", "a/__MACOSX")}


def test_what_systems_leave_is_counted_once_by_folder() -> None:
    litter = [
        ".DS_Store", "a/._0.jpg", "a/Thumbs.db", "a/ehthumbs.db", "b/Desktop.ini", "a/0.jpg:Zone.Identifier",
        "a/0.jpgZone.Identifier", "a/0.jpg:com.apple.quarantine:$DATA", "a/SYNOFILE_THUMB_M.png", "b/Picasa.ini",
        "b/Icon\r", "b/x.tmp", "b/x.jpg.part", "b/x.crdownload", "b/0.jpg~", "b/~$notes.docx", "a/0.lnk",
    ]  # fmt: skip
    in_folders = [
        f"{folder}/{name}"
        for folder in (
            "__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found",
            "@Recycle", ".@__thumb", "a/.ipynb_checkpoints", "__pycache__", ".git", ".svn", "CVS", "a/@eaDir",
        )
        for name in ("1.jpg", "x/2.jpg")
    ]  # fmt: skip
    kept = [*images("a,b"), "2024-01-01T12:30:01.jpg"]
    found = layout([*kept, *litter, *in_folders], folders=["@eaDir", ".git/objects", "a/.cache"])
    groups = {group.kind: group.names for group in found.passed_over}
    assert set(groups) == {LITTER, "outside the class folders"}
    assert len(groups[LITTER]) == len(litter) + len(in_folders) / 2
    assert found.classes == ("a", "b") and not found.empty and len(found.entries) == 4


def test_files_that_must_not_be_opened() -> None:
    names = [*images("a,b"), "a/x.png", "b/pipe.png", "b/pipe", "c", "a/x.txt", "d.jpg"]
    lost = ("dangling link", "it leads to /disk, which cannot be reached")
    found = layout(
        names,
        unusable={
            "a/x.png": lost,
            "a/x.txt": lost,
            "c": lost,
            "d.jpg": lost,
            "b/pipe.png": ("not an image", "a pipe"),
            "b/pipe": ("not an image", "a pipe"),
            "e": ("unreadable", "a folder"),
        },
    )
    assert [(problem.reason, problem.name) for problem in found.problems] == [
        ("dangling link", "a/x.png"),
        ("not an image", "b/pipe.png"),
        ("dangling link", "c"),
    ]
    assert {group.text for group in found.passed_over} == {
        "1 .txt file",
        "1 file outside the class folders",
        "1 file of a special type (pipe, socket or device)",
    }


def test_folders_without_an_image_say_what_they_hold() -> None:
    names = [*images("a,b"), "texts/1.txt", "texts/deep/2.txt", "raw/1.cr2", "docs/x.md", "masks/x.xml"]
    found = layout(names, folders=["none", "models"])
    assert {folder.name: folder.detail for folder in found.empty_classes} == {
        "none": "a folder without files",
        "raw": "only 1 .cr2 file",
        "texts": "only 2 .txt files",
    }
    split = layout([*images("Training/a,b", "Testing/b"), "Testing/A/1.txt"], folders=["Training/c"])
    assert [(folder.name, folder.split, folder.label) for folder in split.empty_classes] == [
        ("Testing/A", "test", "a"),
        ("Training/c", "train", "c"),
    ]
    assert split.empty == ("Testing/A", "Training/c")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "contains no images"),
        (["a/1.npy", "a/2.npy", "b/1.txt"], "it holds 2 .npy files and 1 .txt file"),
        (["train.zip"], "it holds 1 .zip file; unpack"),
        ([".DS_Store", "cat/Thumbs.db"], "contains no images; give"),
        (
            images("cat,dog", suffix="dcm"),
            "no training image that can be used: 4 files cannot, such as cat/0.dcm",
        ),
        ([*images("train/a,b", suffix="nef"), *images("test/a,b")], "no training image that can be used"),
        (["/".join("abcdefgh" * 10) + "/1.jpg"], "more than 64 folders"),
    ],
)
def test_refusals_without_usable_images(names: list[str], words: str) -> None:
    assert words in refusal(names)


# ---- names


def test_names_that_are_not_utf8_stay_apart_and_become_text() -> None:
    names = [
        "caf\udce9/1.jpg",
        "caf\udce8/1.jpg",
        "caf\\xe9/1.jpg",
        "caf\x85/1.jpg",
        "caf\udc85/1.jpg",
        "a\nb/1.jpg",
    ]
    found = layout(names)
    assert set(found.classes) == {"caf\\xe9", "caf\\xe8", "caf\\x5cxe9", "caf\\u0085", "caf\\x85", "a\\x0ab"}
    for entry in found.entries:
        assert (entry.name + entry.label).encode().isascii() and "\n" not in entry.name
    assert {entry.location for entry in found.entries} == set(names)


def test_names_are_composed() -> None:
    found = layout(["u\u0308/1.jpg", "b/1.jpg"])
    assert found.classes == ("b", "\xfc") and text_of("u\u0308") == "\xfc"


def test_natural_order_of_classes() -> None:
    names = ["b", "10", "2", "a10", "a9", "A", "a", "01", "1", "Zebra", "x 2", "x 10", "9" * 5000]
    assert sorted(names, key=natural_key) == [
        "01", "1", "2", "10", "9" * 5000, "A", "Zebra", "a", "a9", "a10", "b", "x 2", "x 10",
    ]  # fmt: skip
    plain = ["b", "A", "_", "\xe4", "aa", "a b", "a", "#", "~", "Z-a"]
    assert sorted(plain, key=natural_key) == sorted(plain)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Training TRN seg_train training_set train_images TrainData Trainset TRAINset trainingSet "
                  "train-64x64 train2017 trainval images.train Trainingsdaten 训练集"),
        ("val", "val valid Validation dev devel val2017 ValidSet validation_data Validación"),
        ("test", "test Testing tst eval evaluation holdout hold-out held_out test1 images-test testset Testdaten "
                 "测试集"),
        ("", "crash_test train_cars cats_test train_a train_test station devices valley contest retest trains 1 x"),
    ],
)  # fmt: skip
def test_words_for_splits(split: str, names: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


def test_other_words_in_the_name_of_a_split_are_kept() -> None:
    crash = split_name("Crash-Test 2")
    assert crash and (crash.split, crash.rest) == ("test", ("crash",))
    assert split_name("bus") is None


def test_names_of_folds() -> None:
    assert [fold_of(name) for name in ("fold1", "Fold_02", "Fold 3", "cv4", "5-fold", "fold", "folder1", "x1")] == [
        1, 2, 3, 4, 5, None, None, None,
    ]  # fmt: skip


# ---- tables of labels


def table(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def from_table(names: list[str], content: bytes, splits: str = "auto", name: str = "labels.csv") -> Layout:
    return layout([*names, name], splits, contents={name: content})


FOUR = images("pictures", count=4)
TABLES = {
    "comma": (table("file,label", *(f"pictures/{i}.jpg,{'ab'[i % 2]}" for i in range(4))), "labels.csv"),
    "semicolons, Windows": (
        b"\xef\xbb\xbfFileName;Class;\r\n"
        + b"".join(b"pictures\\%d.jpg;%c;\r\n" % (i, b"ab"[i % 2]) for i in range(4)),
        "Labels.CSV",
    ),
    "tabs": (table("label\timage", *(f"{'ab'[i % 2]}\t./pictures/{i}.jpg" for i in range(4))), "labels.tsv"),
    "base names": (table("id,extra,target", *(f"{i}.jpg,x,{'ab'[i % 2]}" for i in range(4))), "labels.csv"),
    "stems, an unknown column": (table("id,breed", *(f"{i},{'ab'[i % 2]}" for i in range(4))), "labels.csv"),
    "an index, quotes and empty lines": (
        table("sep=,", ",image_path,label", "", *(f'{i},"pictures/{i}.jpg", {"ab"[i % 2]} ' for i in range(4)), ",,"),
        "labels.csv",
    ),
    "UTF-16": ("file\tlabel\n0.jpg\ta\n1.jpg\tb\n2.jpg\ta\n3.jpg\tb\n".encode("utf-16"), "labels.csv"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "name"), TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("top", ["", "wrapped/", "pictures/"])
def test_labels_from_a_table(content: bytes, name: str, top: str) -> None:
    if top == "pictures/":  # the table lies beside the images
        names, content = [*FOUR, top + name], content.replace(b"pictures/", b"").replace(b"pictures\\", b"")
    else:
        names = [top + part for part in (*FOUR, name)]
    found = layout(names, contents={top + name: content})
    assert [(entry.location.rpartition("/")[2], entry.label, entry.split) for entry in found.entries] == [
        (f"{i}.jpg", "ab"[i % 2], "train") for i in range(4)
    ]
    assert f"{name} gives the labels from its column" in found.understood[0]
    assert found.classes == ("a", "b") and not found.passed_over and not found.problems


def test_a_table_gives_splits_and_groups() -> None:
    rows = ["0.jpg,a,Training,p1", "1.jpg,b,train,p1", "2.jpg,a,validation,p2", "3.jpg,10,TEST,p 3"]
    found = from_table(FOUR, table("name,label,subset,group", *rows))
    assert [(entry.split, entry.label, entry.group) for entry in found.entries] == [
        ("train", "a", "p1"), ("train", "b", "p1"), ("val", "a", "p2"), ("test", "10", "p 3"),
    ]  # fmt: skip
    assert found.classes == ("10", "a", "b")
    assert "labels from its column label, splits from its column subset and groups" in found.understood[0]


def test_folders_give_the_splits_of_a_table_without_them() -> None:
    rows = [f"{split}_images/{i}.jpg,{'ab'[i]}" for split in ("train", "test") for i in range(2)]
    names = images("train_images,test_images", "extra")
    found = from_table(names, table("file,label", *rows))
    assert [(entry.split, entry.label) for entry in found.entries] == [
        ("train", "a"), ("train", "b"), ("test", "a"), ("test", "b"),
    ]  # fmt: skip
    assert [group.text for group in found.passed_over] == ["2 files in no row of labels.csv"]
    assert from_table(names, table("file,label", *rows), "none").splits == ("train",)
    named = from_table(names, table("file,label", *rows), "train=test_images")
    assert [entry.location for entry in named.entries] == ["test_images/0.jpg", "test_images/1.jpg"]
    assert {group.kind: len(group.names) for group in named.passed_over} == {
        "in extra/, which is no split": 2,
        "in train_images/, which is no split": 2,
    }
    assert "add a column split" in refusal(
        [*names, "labels.csv"], contents={"labels.csv": table("file,label", *rows, "extra/0.jpg,a")}
    )


def test_a_kaggle_table_of_ids_labels_train_only() -> None:
    names = [f"dogs/train/{i}f.jpg" for i in range(3)] + [f"dogs/test/{i}e.jpg" for i in range(5)]
    content = table("id,breed", "0f,pug", "1f,collie", "2f,pug")
    found = layout([*names, "dogs/labels.csv"], contents={"dogs/labels.csv": content})
    assert {entry.name: entry.label for entry in found.entries} == {
        "train/0f.jpg": "pug", "train/1f.jpg": "collie", "train/2f.jpg": "pug",
    }  # fmt: skip
    assert [group.text for group in found.passed_over] == ["5 files in no row of labels.csv"]
    assert any(
        "without their folder or suffix, such as 0f with train/0f.jpg" in line for line in found.understood
    )


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["0.jpg,a", "1.jpg,b"], "The first line of labels.csv names no column"),
        (["file", "0.jpg"], "names no column label"),
        (["picture,MEL,NV", "0.jpg,1,0"], "names no column label"),
        (["label,x", "a,b"], "names no column file"),
        (["file,label"], "no lines below its header"),
        ([], "it is empty"),
        (["file,label", "0.jpg,a", "9.jpg,b", "8.jpg,b"], "names 2 files not found among the images, such as 9.jpg"),
        (["file,label", "0.jpg,a", "", "1.jpg, "], "Line 4 of labels.csv has no label"),
        (["file,label", ",a"], "Line 2 of labels.csv names no file"),
        (["file,label", "0.jpg,a,b"], "Line 2 of labels.csv has more cells than the header"),
        (["file,label", "0.jpg,a", "pictures/0.jpg,b"], "Lines 2 and 3 of labels.csv give pictures/0.jpg the labels a"),
        (["file,label", "/data/0.jpg,a"], "leads out of the folder"),
        (["file,label", "C:\\0.jpg,a"], "leads out of the folder"),
        (["file,label", "../pictures/0.jpg,a"], "leads out of the folder"),
        (["file,label,split", "0.jpg,a,train", "1.jpg,b,"], "Line 3 of labels.csv has no split"),
        (["file,label,split", "0.jpg,a,first"], "has the split 'first'; write train, val or test"),
        (["file,label,split", "0.jpg,a,test"], "no training images"),
        (["file,label,group", "0.jpg,a,1", "1.jpg,b,"], "Line 3 of labels.csv has no group"),
        (["file,label,split", "0.jpg,a,train", "0.jpg,a,test"], "the splits train and test"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(lines: list[str], words: str) -> None:
    message = refusal([*FOUR, "labels.csv"], contents={"labels.csv": table(*lines)})
    assert words in message


def test_a_folder_in_a_table_that_contradicts_the_image_is_no_match() -> None:
    names = images("test,train")
    content = table("file,label", "train/0.jpg,a", "test/1.jpg,b", "other/0.jpg,b")
    message = refusal([*names, "labels.csv"], contents={"labels.csv": content})
    assert "names 1 file not found among the images, such as other/0.jpg" in message
    content = table("file,label", "train/0.jpg,a", "train/1.jpg,b", "train/7.jpg,b")
    names = ["train/0.jpg", "train/1.jpg", "test/7.jpg"]
    assert "such as train/7.jpg" in refusal([*names, "labels.csv"], contents={"labels.csv": content})


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("data/images/0.jpg", "images/0.jpg"),
        ("images/0.jpg", "data/images/0.jpg"),
        ("Images/0.jpg", "data/images/0"),
        ("data/images/0.jpg", "0.jpg"),
    ],
)
def test_a_folder_in_a_table_may_be_longer_or_shorter(file: str, row: str) -> None:
    content = table("file,label", f"{row},a", "1.jpg,b")
    found = layout([file, "1.jpg", "labels.csv"], contents={"labels.csv": content})
    assert {entry.location: entry.label for entry in found.entries} == {file: "a", "1.jpg": "b"}


def test_more_refusals_of_tables() -> None:
    good = table("file,label", "0.jpg,a")
    two = {"labels.csv": good, "labels.tsv": good}
    assert "both labels.csv and labels.tsv" in refusal([*FOUR, *two], contents=two)
    latin = {"labels.csv": "file,label\n0.jpg,caf\xe9\n".encode("latin-1")}
    assert "not in UTF-8" in refusal([*FOUR, *latin], contents=latin)
    huge = {"labels.csv": bytes(64 * 2**20 + 1)}
    assert "67 MB" in refusal([*FOUR, *huge], contents=huge)
    twice = [*images("x,y", count=1), "labels.csv"]
    assert "may be x/0.jpg or y/0.jpg" in refusal(twice, contents={"labels.csv": good})
    both = {"labels.csv": table("file,label,split", "pictures/0.jpg,a,train")}
    assert "leave --splits out" in refusal([*FOUR, *both], "train=pictures", contents=both)


def test_a_table_that_gives_no_labels_leaves_class_folders_as_they_are() -> None:
    for content in (b"", table("ClassId,Name", "0,Stop", "1,Yield"), table("a,b,c", "1,2,3")):
        found = from_table(images("0,1"), content)
        assert found.classes == ("0", "1") and len(found.entries) == 4
        assert found.understood[0].startswith(
            "The table of labels is not used, and the folders give the classes."
        )
        assert [group.text for group in found.passed_over] == ["1 .csv file"]
    over_folders = from_table(
        images("x,y"), table("file,label", *(f"{f}/{i}.jpg,{'ab'[i]}" for f in "xy" for i in (0, 1)))
    )
    assert over_folders.classes == ("a", "b")


def test_a_table_elsewhere_is_a_file_like_others() -> None:
    found = layout([*images("a,b"), "a/labels.csv"])
    assert [group.text for group in found.passed_over] == ["1 .csv file"]


def test_unsupported_images_in_a_table_are_problems() -> None:
    found = from_table(["0.jpg", "1.cr2"], table("file,label", "0.jpg,a", "1.cr2,b"))
    assert [problem.name for problem in found.problems] == ["1.cr2"] and len(found.entries) == 1


# ---- all of it


def test_the_order_of_a_listing_does_not_matter() -> None:
    names = [*images("train/Cat,dog", "test/cat,dog", "extra/x"), "a.txt", "train/dog/deep/1.jpg"]
    assert layout(names) == layout(names[::-1])


def test_a_hundred_thousand_names_take_about_a_second() -> None:
    names = [f"train/class {i % 500}/image {i}.jpg" for i in range(100_000)]
    start = time.process_time()
    assert len(layout(names).entries) == len(names)
    assert time.process_time() - start < 4  # 0.7 seconds on a desktop computer, with room for slow ones


def test_columns_of_a_table_that_are_not_used_are_named() -> None:
    table = b"file,label,patient_id\na.png,cat,3\nb.png,dog,4\n"
    assert (
        read_table("labels.csv", table)
        .sentence()
        .endswith(
            "Not used: its column patient_id; name one of them group to keep its images on one side of each cut."
        )
    )
    assert "Not used" not in read_table("labels.csv", b"file,label\na.png,cat\n").sentence()


def test_a_split_of_another_name_in_a_table_is_said() -> None:
    rows = b"file,label,split\na.png,cat,train\nb.png,dog,holdout\nc.png,dog,Validation\n"
    sentence = read_table("labels.csv", rows).sentence()
    assert "'holdout' is test." in sentence and "Validation" not in sentence and "'train'" not in sentence
