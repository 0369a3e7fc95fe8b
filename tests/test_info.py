"""What `data info` says about how a data set was read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from sample_data import random_png, write_files
from vitreous.data.arrays import from_arrays
from vitreous.data.info import info, info_text
from vitreous.data.sources import open_data
from vitreous.request import OPTIONS


def test_settings_that_differ_from_the_usual_and_notes_are_shown(tmp_path: Path) -> None:
    files = {f"{label}/{i}.png": random_png(i, 20, 60) for label in "ab" for i in range(4)}
    path = write_files(tmp_path / "pets", files | {"a/notes.txt": b""})
    store = open_data(path, tmp_path / "data", fit="pad", value_range="0,4095", say=lambda line: None)
    store = replace(store, preprocess=replace(store.preprocess, value_range=(0.0, 4095.0)))
    record = json.loads(json.dumps(info(store)))
    assert record["preprocess"]["fit"] == "pad" and record["preprocess"]["size"] == 32
    assert record["notes"] == list(store.notes) and len(record["notes"]) >= 1
    lines = info_text(record).splitlines()
    assert "preprocess  fit pad, value_range 0 to 4095" in lines
    assert "note        Passed over: 1 .txt file (a/notes.txt)." in lines


def test_the_usual_settings_are_not_worth_a_line() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    record = info(from_arrays(images, [0, 1]))
    assert record["preprocess"]["fit"] == OPTIONS["fit"].default and record["notes"] == []
    assert not any(line.startswith(("preprocess", "note")) for line in info_text(record).splitlines())
