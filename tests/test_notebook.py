"""The notebook runs from top to bottom, and its stored form is whole and tells the truth."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from vitreous import recipe
from vitreous.data.shapes import shapes
from vitreous.model.summary import describe

PATH = Path(__file__).parent.parent / "notebooks" / "vision_transformer.ipynb"
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|tmp|usr|var|opt|mnt|work|Users)/|[A-Z]:\\")


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(PATH, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: Any) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def texts(notebook: Any) -> str:
    """Everything in the outputs that is not a picture."""
    found = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            found.append(output.get("text", ""))
            found += [str(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(found)


def picture_folder(path: Path) -> Path:
    """A folder of class folders with train and test, so small that an epoch takes a second."""
    store = shapes(train=200, test=100)
    for split, part in store.splits.items():
        for number, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            file = path / split / store.classes[label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(image)).save(file)
    return path


def test_runs_from_top_to_bottom(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITREOUS_NOTEBOOK_MINUTES", "0.05")
    monkeypatch.setenv("VITREOUS_NOTEBOOK_DATA", str(picture_folder(tmp_path / "pictures")))
    monkeypatch.setenv("VITREOUS_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses the one that draws into the notebook
    client = NotebookClient(
        nbformat.from_dict(notebook), timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    executed = client.execute(env=dict(os.environ))  # raises where a cell does
    assert all(cell.execution_count for cell in code_cells(executed))
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 2


def test_is_stored_executed(notebook: Any) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 10
    assert PATH.stat().st_size < 1_500_000


def test_its_outputs_say_nothing_of_the_machine_they_were_made_on(notebook: Any) -> None:
    found = texts(notebook)
    assert not MACHINE_PATH.search(found)
    assert "Warning" not in found and "site-packages" not in found


def test_it_shows_real_data_and_five_lines(notebook: Any) -> None:
    shown = texts(notebook)
    assert "cifar10 with 10 classes" in shown
    five = next(cell.source for cell in code_cells(notebook) if "minutes=MINUTES)" in cell.source)
    assert len([line for line in five.splitlines() if line.strip()]) <= 5


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("notebook-cifar100", 100, 12_862_820),
        ("notebook-cifar10", 100, 3_374_948),
        ("notebook-cifar10", 10, 3_328_778),
        ("vit-b16", 1000, 86_567_656),
        ("compact", 10, None),
    ],
)
def test_its_counts_are_those_of_the_models(
    notebook: Any, name: str, num_classes: int, parameters: int | None
) -> None:
    found = describe(name, num_classes)
    assert parameters in (None, found["parameters"])
    row = f"| {num_classes} | {found['parameters']:,} | {found['flops'] / 1e6:,.0f} |"
    shown = texts(notebook)
    assert row in shown


def test_its_prose_says_what_the_default_recipe_does(notebook: Any) -> None:
    text, default = prose(notebook), recipe.load("default")
    numbers = {2: "two", 3: "three", 4: "four", 6: "six", 8: "eight"}
    assert f"up to {numbers[default.augment.crop]} pixels" in text
    assert ("mirrored every other time" in text) == (default.augment.flip == "alternating")
    assert ("**Muon** for the matrices" in text) == (default.optimizer.name == "muon")
    assert f"{default.training.label_smoothing:.0%} of the certainty" in text
    assert ("convolutional stem" in text) == (default.model.stem == "conv")
    assert ("Queries and keys are normalised" in text) == default.model.qk_norm
    assert ("Each layer begins as nothing" in text) == default.model.zero_init
    assert (default.schedule.name, default.schedule.warmup) == ("linear", 0.1)  # as under the loss curves
    assert default.schedule.small_sides == (0.75,) and "three quarters of their size, 24 pixels" in text
    assert 0.6 < default.schedule.small_until[0] < 0.7 and "first two thirds of the steps" in text


def test_its_references_lead_where_they_say(notebook: Any) -> None:
    links = re.findall(
        r"\[(?:arXiv )?(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/(\d{4}\.\d{5})\)", prose(notebook)
    )
    assert len(links) > 15
    assert all(shown == target for shown, target in links)
