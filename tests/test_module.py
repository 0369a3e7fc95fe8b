"""What `ImageData` hands to a training step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from vitreous.data.augment import Augment
from vitreous.data.module import ImageData
from vitreous.data.store import in_memory


def test_a_mixed_batch_has_the_labels_and_shares_of_what_was_mixed() -> None:
    """Each image has one colour, its class, so a mixture tells what was mixed."""
    labels = np.repeat(np.arange(100), 3)
    images = np.repeat(2 * labels.astype(np.uint8), 8 * 8 * 3).reshape(300, 8, 8, 3)
    split = (images, labels, [f"p{i}" for i in range(300)])
    # All splits are given: equal images are never cut apart, and those of a class are equal here.
    store = in_memory(
        name="colours",
        classes=[str(label) for label in range(100)],
        splits={"train": split, "val": split, "test": split},
        source="a test",
    )
    data = ImageData(store, augment=Augment(mixup=1.0), batch_size=40)
    data.setup()
    data.trainer = SimpleNamespace(training=True)  # type: ignore[assignment]
    for raw in data.train_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        share = batch["share"]
        colour = 2 * (share * batch["label"] + (1 - share) * batch["other"])
        mean, std = (torch.tensor(channels).view(3, 1, 1) for channels in (data.store.mean, data.store.std))
        expected = ((colour / 255)[:, None, None, None] - mean) / std
        torch.testing.assert_close(batch["image"], expected.expand(-1, 3, 8, 8), atol=1e-4, rtol=0)
        assert (batch["label"] != batch["other"]).any() and share.min() < 0.5
