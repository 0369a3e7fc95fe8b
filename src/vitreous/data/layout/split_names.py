"""What the name of a folder tells about the split that it may hold."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words for each split, in lower case and without accents. Some are of other languages.
_WORDS = {
    "train": (
        "train training trn trainval "
        "trainings entrenamiento treino treinamento entrainement apprentissage addestramento 训练 訓練 学習"
    ),
    "val": (
        "val valid vali validation validate dev devel development "
        "validierung validierungs validacion validacao validazione 验证 驗證 検証"
    ),
    "test": "test tests testing tst eval evaluation holdout heldout prueba pruebas teste 测试 測試 テスト",
}
SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words.split()}
_IMAGE_WORDS = _words(
    "image images img imgs picture pictures pic pics photo photos bild bilder jpg jpgs jpeg jpegs png pngs"
)
_DATA_WORDS = _words("data dataset datasets daten 数据集")
# Words that say nothing about what a folder holds.
_FILLERS = (
    _IMAGE_WORDS
    | _DATA_WORDS
    | _words(
        "set sets split splits folder folders dir file files seg cls class classes "
        "classification original orig raw resized cropped crops full all final new processed preprocessed clean "
        "cleaned labeled labelled rgb the my of for in x px v ver version satz 集"
    )
)
# Folders of these names beside images hold something else than more images to classify.
_ANNOTATION_WORDS = _words(
    "annotation annotations annot annots label labels mask masks trimap trimaps segmentation segmentations "
    "segmentationclass segmentationobject groundtruth gt bbox bboxes boxes thumbnail thumbnails thumbs"
)
_EXTRA_WORDS = _words(
    "extra extras unlabeled unlabelled unlabel unsup unsupervised pred preds predict prediction predictions"
)
_WORK_WORDS = _words("doc docs code src script scripts model models log logs result results metadata meta")
_FOLD = re.compile(r"(?:k[\W_]*)?(?:folds?|cv|partition)[\W_]*(\d+)|(\d+)[\W_]*folds?")


@dataclass(frozen=True)
class SplitName:
    """A folder name with a split's name in it.

    Attributes:
        split: "train", "val" or "test".
        rest: the other words of the name, in order. If there are some, the name only looks like a split.
    """

    split: str
    rest: tuple[str, ...]

    @property
    def sure(self) -> bool:
        return not self.rest


@lru_cache(maxsize=1 << 12)
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, without accents; numbers are words too.

    "TrainData" and "traindata" both become ("train", "data"), and "val2017" becomes ("val", "2017").
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain).lower()
    plain = re.sub(r"\b(hold|held)[\W_]+out\b", r"\1out", plain)
    plain = re.sub(r"\bground[\W_]+truth\b", "groundtruth", plain)
    return tuple(part for word in re.findall(r"[^\W\d_]+|\d+", plain) for part in _parts_of(word))


def _parts_of(word: str) -> tuple[str, ...]:
    """The two words of which one that is written together consists, if one of them is a split's."""
    for cut in range(1, len(word)):
        first, second = word[:cut], word[cut:]
        if (first in SPLIT_OF_WORD and second in _FILLERS) or (first in _FILLERS and second in SPLIT_OF_WORD):
            return (first, second) if word not in SPLIT_OF_WORD else (word,)
    return (word,)


def split_name(name: str) -> SplitName | None:
    """The split that a folder's name speaks of, in any letter case and with the usual words around it, or None."""
    words = [word for word in words_of(name) if not (word in _FILLERS or word.isdigit())]
    splits = [SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD]
    if not splits:
        return None
    several = tuple(dict.fromkeys(splits))[1:]  # as in "train_test"
    return SplitName(splits[0], (*(word for word in words if word not in SPLIT_OF_WORD), *several))


def split_of(name: str) -> str:
    """The split that a name surely means; "" if there is doubt."""
    meaning = split_name(name)
    return meaning.split if meaning and meaning.sure else ""


def fold_of(name: str) -> int | None:
    """The number in a name such as "fold1", "Fold 1" or "cv1"."""
    match = _FOLD.fullmatch(name.strip().lower())
    return int((match[1] or match[2])[-9:]) if match else None


def only_images(name: str) -> bool:
    """Whether a name such as "images", "data" or "JPEGImages" says no more than that images are inside."""
    words = words_of(name)
    about_images = [word in _IMAGE_WORDS | _DATA_WORDS or _made_of_images(word) for word in words]
    return any(about_images) and all(
        about or word in _FILLERS or word.isdigit() for about, word in zip(about_images, words, strict=True)
    )


def _made_of_images(word: str) -> bool:
    return any(word[:cut] in _IMAGE_WORDS and word[cut:] in _IMAGE_WORDS for cut in range(1, len(word)))


def beside_images(name: str) -> bool:
    """Whether a name such as "masks" or "annotations" speaks of something that belongs to images."""
    return any(word in _ANNOTATION_WORDS for word in words_of(name))


def no_split(name: str) -> bool:
    """Whether a folder of this name beside splits is surely none of them."""
    return beside_images(name) or any(word in _EXTRA_WORDS for word in words_of(name))


def no_class(name: str) -> bool:
    """Whether a folder of this name without images is no empty class, but holds code, notes or annotations."""
    return beside_images(name) or any(word in _WORK_WORDS for word in words_of(name))
