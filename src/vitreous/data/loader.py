"""Batches of a split. Their order is a function of (seed, epoch) and nothing else."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vitreous.data.store import Split
from vitreous.errors import VitreousError


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` images in epoch `epoch` of a run with `seed`: a permutation of `range(count)`, int64.

    It sorts one raw 64-bit number per image from Philox keyed by (seed, epoch) (Salmon et al., "Parallel
    random numbers: as easy as 1, 2, 3", 2011). Unlike `Generator.permutation`, the raw stream is the same in all
    versions of numpy, so old runs keep their order.
    """
    return _order(count, seed, epoch, 0)


def _order(count: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """A permutation of `range(count)` as a function of (seed, epoch, stream), where `stream` starts the counter."""
    key = np.array([operator.index(seed) % 2**64, epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key, counter=counter).random_raw(count), kind="stable")


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of an epoch in which classes occur equally often, as a function of (labels, seed, epoch).

    Each class is an endless row of its images, which repeats all of them in a new order before it repeats any again.
    An epoch takes the next images of each row: as many of each class, and all epochs together N·E/K of each class,
    rounded up or down. A class that is smaller than that repeats its images; a larger one continues in the next epoch,
    so none of its images is left out for long.

    Args:
        labels: int [N], of the split.

    Returns:
        The positions of the images in the split, int64 [N], in random order. And int64 [N], what the random numbers of
        augmentation and dropout depend on: the position, plus N for each time that the row of the class has begun anew
        within the epoch. So an image differs between its uses.
    """
    total = len(labels)
    classes = np.unique(labels)
    index, repeat = [], []
    for number, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        # By Hermite's identity these add up to N over the classes.
        first, last = ((e * total + number) // len(classes) for e in (epoch, epoch + 1))
        start, end = first // len(members), -(-last // len(members))
        row = np.concatenate(
            [members[:0], *(members[_order(len(members), seed, c, number + 1)] for c in range(start, end))]
        )
        taken = slice(first - start * len(members), last - start * len(members))
        index.append(row[taken])
        repeat.append(np.repeat(np.arange(end - start), len(members))[taken])
    order = epoch_order(total, seed, epoch)
    chosen = np.concatenate(index)[order]
    return chosen, chosen + total * np.concatenate(repeat)[order]


def partners(count: int) -> np.ndarray:
    """The image that mixup and cutmix mix each image of a batch with: int64 [count], positions in the batch.

    It is the previous image, and for the first image the last. The order of the epoch is random, so the pairs are
    random too. `count` is the size of the batch that a step trains on. If several processes share a batch, each looks
    up the partners in the full batch and augments them by their own index.
    """
    return (np.arange(count) - 1) % count


class BatchLoader:
    """Batches of a split, one epoch per `iter()`. A Lightning Trainer takes it as a dataloader.

    Each batch is a dict: `image` uint8 [B, H, W, 3], `label` int64 [B], `index` int64 [B] (position in the
    split), `sample` int64 [B] (what the random numbers of augmentation and dropout depend on: the position, and another
    number where a balanced epoch repeats an image), `partner` int64 [B] (position in the batch of the image that each
    is mixed with, see `partners`) and `epoch` int. It needs no workers: gathering uint8 images from
    memory takes well under a thousandth of a training step.

    Use one iteration at a time. The state advances with each batch: with the last batch of an epoch it is already
    the start of the next epoch, whether or not the iterator is asked again. An iteration that is left early does not
    count. The next one starts the same epoch from its first batch, so peeking at a batch changes nothing, unless
    `load_state_dict` has set a position inside the epoch.

    Args:
        split: the images.
        batch_size: images in a batch; the last batch of an epoch holds the rest.
        seed: seed of the order if `shuffle` is set.
        shuffle: a new order each epoch (see `epoch_order`) instead of the order of the split.
        drop_last: leave out the partial last batch, unless it is the only one.
        balanced: draw classes equally often in each epoch instead of each image once (see `balanced_order`).

    Raises:
        VitreousError: the split is empty or the batch size is not positive.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        balanced: bool = False,
    ) -> None:
        if len(split) == 0:
            raise VitreousError("This split has no images; give it at least one.")
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise VitreousError(f"The batch size is {batch_size}; it must be a whole number, at least 1.")
        self.split = split
        self.batch_size = int(batch_size)
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.balanced = balanced
        self.epoch = 0
        self._batch = 0  # batches already yielded in this epoch
        self._resume = False  # the next iteration starts at `_batch` instead of 0
        self._ahead = 0  # epochs by which this count is ahead of that of the caller of `set_epoch`

    def __len__(self) -> int:
        """Number of batches in a full epoch, whatever the state."""
        count = len(self.split)
        if self.drop_last:
            return max(1, count // self.batch_size)
        return math.ceil(count / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator runs nothing before its first batch, so the iterators that Lightning creates and drops
        # during its setup cost nothing and change nothing.
        epoch = self.epoch
        start = self._batch if self._resume else 0
        self._resume = False
        count = len(self.split)
        order = samples = epoch_order(count, self.seed, epoch) if self.shuffle else np.arange(count)
        if self.balanced:
            order, samples = balanced_order(np.asarray(self.split.labels), self.seed, epoch)
        for batch in range(start, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            index = order[part]
            item = {
                # Indexing with an array copies, so the tensors are writable and outlive an open file.
                "image": torch.from_numpy(np.ascontiguousarray(self.split.images[index])),
                "label": torch.from_numpy(np.asarray(self.split.labels[index], dtype=np.int64)),
                "index": torch.from_numpy(index.copy()),
                "sample": torch.from_numpy(samples[part].copy()),
                "partner": torch.from_numpy(partners(len(index))),
                "epoch": epoch,
            }
            last = batch + 1 == len(self)
            self.epoch, self._batch = (epoch + 1, 0) if last else (epoch, batch + 1)
            yield item

    def state_dict(self) -> dict[str, int]:
        """The position: `epoch`, and `batch`, the number of its batches that have been yielded."""
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration continue exactly at `state`.

        Raises:
            VitreousError: `state` is beyond the end of this loader's epoch, so it belongs to another loader.
        """
        if not 0 <= state["batch"] < len(self):
            raise VitreousError(
                f"The saved run stopped after {state['batch']} batches of an epoch, but an epoch now has "
                f"{len(self)}; resume with the data and the batch size that it was started with."
            )
        self.epoch, self._batch = state["epoch"], state["batch"]
        self._resume = True

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration start epoch `epoch` from its first batch, unless a loaded state is waiting.

        Lightning calls this before each epoch. The call matters if an epoch was left early, and if training resumes
        at the end of an epoch, since Lightning restores a loader's state only inside an epoch. When it resumes
        under `max_steps`, Lightning may count an epoch without batches. A loaded state therefore takes precedence,
        and later calls count from it.
        """
        if self._resume:
            self._ahead = self.epoch - epoch
        else:
            self.epoch, self._batch = epoch + self._ahead, 0

    batch_sampler = None  # Lightning reads it if there is a sampler

    @property
    def sampler(self) -> BatchLoader:
        """The loader itself, because Lightning calls `set_epoch` on a dataloader's sampler."""
        return self
