"""The order of the pictures: batches as a function of (seed, epoch) and nothing else."""

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
    """The permutation of `range(count)` (int64) that epoch `epoch` of a run with `seed` goes through.

    It sorts one raw 64-bit draw per picture from Philox keyed by (seed, epoch) (Salmon et al., "Parallel
    random numbers: as easy as 1, 2, 3", 2011). The raw stream is fixed for all versions of numpy, which
    `Generator.permutation` is not, so an old run keeps its order.
    """
    key = np.array([operator.index(seed) % 2**64, epoch], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


def partners(count: int) -> np.ndarray:
    """Whom mixup and cutmix mix each picture of a whole batch with: int64 [count], positions in the batch.

    It is the picture before, and the last one for the first. The order of the epoch is random, so the pairs
    are too. `count` is the size of the batch that a step trains on, however many processes share it: a
    process that holds a part looks up the whole batch's partners and augments each by its own index.
    """
    return (np.arange(count) - 1) % count


class BatchLoader:
    """Batches of a split, an epoch per `iter()`; serves as a dataloader of a Lightning Trainer as it is.

    Each batch is a dict: `image` uint8 [B, H, W, 3], `label` int64 [B], `index` int64 [B] (position in the
    split, what augmentation counts its randomness by), `partner` int64 [B] (position in the batch of the
    picture that each is mixed with, see `partners`) and `epoch` int. There are no workers: gathering uint8
    pictures from memory takes well under a thousandth of a training step.

    One iteration at a time. It counts itself as it yields: with the last batch of an epoch the state is
    already the start of the next one, whether or not the iterator is asked again. An iteration that is
    left early does not count: the next one starts the same epoch from its first batch (so peeking at a
    batch changes nothing), unless `load_state_dict` asked for the position inside it.

    Args:
        split: the pictures.
        batch_size: pictures in a batch; the last batch of an epoch holds the rest.
        seed: of the order, where `shuffle` is set.
        shuffle: a new order each epoch (see `epoch_order`) instead of the split's own.
        drop_last: leave the partial last batch out, unless it is the only one.

    Raises:
        VitreousError: the split is empty or the batch size is not positive.
    """

    def __init__(
        self, split: Split, batch_size: int, *, seed: int = 0, shuffle: bool = False, drop_last: bool = False
    ) -> None:
        if len(split) == 0:
            raise VitreousError("This split holds no pictures; give it at least one.")
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise VitreousError(f"The batch size is {batch_size}; it must be a whole number, at least 1.")
        self.split = split
        self.batch_size = int(batch_size)
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self._batch = 0  # batches of this epoch that have been yielded
        self._resume = False  # the next iteration starts at `_batch` instead of 0
        self._ahead = 0  # by how many epochs this count is ahead of that of `set_epoch`'s caller

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the loader stands."""
        count = len(self.split)
        if self.drop_last:
            return max(1, count // self.batch_size)
        return math.ceil(count / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator: nothing here runs before the first batch is asked for, so the iterators that
        # Lightning makes and drops while it sets up cost nothing and change nothing.
        epoch = self.epoch
        start = self._batch if self._resume else 0
        self._resume = False
        count = len(self.split)
        order = epoch_order(count, self.seed, epoch) if self.shuffle else np.arange(count)
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            item = {
                # Indexing by an array copies, so the tensors are writable and stay when the file is closed.
                "image": torch.from_numpy(np.ascontiguousarray(self.split.images[index])),
                "label": torch.from_numpy(np.asarray(self.split.labels[index], dtype=np.int64)),
                "index": torch.from_numpy(index.copy()),
                "partner": torch.from_numpy(partners(len(index))),
                "epoch": epoch,
            }
            last = batch + 1 == len(self)
            self.epoch, self._batch = (epoch + 1, 0) if last else (epoch, batch + 1)
            yield item

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: `epoch`, and the batches of it that have been yielded, `batch`."""
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration continue exactly at `state`.

        Raises:
            VitreousError: `state` lies beyond this loader's epoch, so it is from another loader.
        """
        if not 0 <= state["batch"] < len(self):
            raise VitreousError(
                f"The saved run stopped after {state['batch']} batches of an epoch that now has {len(self)}; "
                "resume with the data and the batch size that it was started with."
            )
        self.epoch, self._batch = state["epoch"], state["batch"]
        self._resume = True

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration epoch `epoch` from its first batch, unless a loaded state is waiting.

        Lightning calls this before each epoch. It matters where an epoch was left early, and where training
        resumes after a whole number of epochs: Lightning restores a loader's state only inside an epoch.
        But resumed under `max_steps` it may count an epoch that held no batch, so a loaded state is the
        surer one, and what Lightning counts afterwards is taken relative to it.
        """
        if self._resume:
            self._ahead = self.epoch - epoch
        else:
            self.epoch, self._batch = epoch + self._ahead, 0

    batch_sampler = None  # Lightning asks for it where it finds a sampler

    @property
    def sampler(self) -> BatchLoader:
        """The loader itself: Lightning looks for `set_epoch` on a dataloader's sampler."""
        return self
