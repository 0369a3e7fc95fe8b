"""What `ImageData` hands to a training step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from vitreous.data.augment import Augment, normalize
from vitreous.data.module import ImageData


def test_a_mixed_batch_names_the_label_and_holds_the_picture_of_each_ones_partner() -> None:
    """Each picture is of one colour, its class, so the mixture tells whom it was mixed with."""
    labels = np.repeat(np.arange(100), 3)
    images = np.repeat(2 * labels.astype(np.uint8), 8 * 8 * 3).reshape(300, 8, 8, 3)
    data = ImageData((images, labels), augment=Augment(mixup=1.0), batch_size=40)
    data.setup()
    data.trainer = SimpleNamespace(training=True)  # type: ignore[assignment]
    for raw in data.train_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        share = batch["share"]
        colour = 2 * (share * batch["label"] + (1 - share) * batch["other"])
        expected = (colour / 255)[:, None, None, None].expand(-1, 3, 8, 8)
        torch.testing.assert_close(
            batch["image"], normalize(expected, data.store.mean, data.store.std), atol=1e-4, rtol=0
        )
        assert (batch["label"] != batch["other"]).any() and share.min() < 0.5
