"""The notebook runs from top to bottom, its exercises work as printed, and its stored form is complete and correct."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import vitreous
from vitreous import cli, recipe
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


def output_text(notebook: Any) -> str:
    """Everything in the outputs that is not an image."""
    texts = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            texts.append(output.get("text", ""))
            texts += [str(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(texts)


def exercise_commands() -> list[str]:
    """The code spans of the exercises that are complete commands, of Python or of the terminal."""
    cells = nbformat.read(PATH, as_version=4).cells
    exercises = next(cell.source for cell in cells if cell.source.startswith("## 13 "))
    spans = re.findall(r"`([^`]+)`", exercises)
    return [span for span in spans if span.startswith(("vitreous.", "vitreous "))]


def image_folder(path: Path) -> Path:
    """A folder with train and test images in one subfolder per class; so few that an epoch takes a second."""
    store = shapes(train=200, test=100)
    for split, part in store.splits.items():
        for number, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            file = path / split / store.classes[label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(image)).save(file)
    return path


def test_runs_from_top_to_bottom(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITREOUS_NOTEBOOK_MINUTES", "0.05")
    monkeypatch.setenv("VITREOUS_NOTEBOOK_DATA", str(image_folder(tmp_path / "images")))
    monkeypatch.setenv("VITREOUS_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses the one that draws into the notebook
    client = NotebookClient(
        nbformat.from_dict(notebook), timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    executed = client.execute(env=dict(os.environ))  # raises if a cell does
    assert all(cell.execution_count for cell in code_cells(executed))
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 2


@pytest.mark.parametrize("command", exercise_commands())
def test_an_exercise_works_as_printed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the command in the names that the notebook has at its end, for three steps instead of its own budget."""
    monkeypatch.setenv("VITREOUS_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "my-images")
    if command.startswith("vitreous "):
        assert cli.main(shlex.split(command)[1:]) == 0
        return

    train, trained_runs = vitreous.train, []

    def train_three_steps(*args: Any, **options: Any) -> Any:
        budget = {"minutes", "epochs", "steps", "flops"} & set(options)
        assert len(budget) == 1
        run = train(*args, **{name: value for name, value in options.items() if name not in budget}, steps=3)
        trained_runs.append(run)
        assert run.summary["steps"] == 3
        for key, value in options.get("overrides", {}).items():
            section, name = key.split(".")
            trained_with = getattr(getattr(run.recipe, section), name)
            assert (list(trained_with) if isinstance(value, list) else trained_with) == value
        return run

    monkeypatch.setattr(vitreous, "train", train_three_steps)
    store = shapes(train=200, test=100)
    names = {"vitreous": vitreous, "DATA": store, "np": np, "train_split": store.splits["train"]}
    eval(command, names)
    assert len(trained_runs) == 1


def test_its_exercises_have_commands() -> None:
    commands = exercise_commands()
    assert len(commands) >= 10
    assert any("np.random.permutation" in command for command in commands)
    assert any('"model.stem": "linear", "model.stem_dims": []' in command for command in commands)
    assert all('judge="val"' in command for command in commands if command.startswith("vitreous.train(DATA"))


def test_is_stored_executed(notebook: Any) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 10
    assert PATH.stat().st_size <= 3_000_000


def test_begins_with_a_short_cell_and_hides_the_code_that_only_draws(notebook: Any) -> None:
    first, helpers = code_cells(notebook)[:2]
    assert len([line for line in first.source.splitlines() if line.strip()]) <= 11
    assert "MINUTES =" in first.source and "DATA =" in first.source
    assert helpers.metadata["jupyter"]["source_hidden"] is True
    assert helpers.metadata["tags"] == ["hide-input"]


def test_speaks_of_images_and_epochs(notebook: Any) -> None:
    sources = "\n".join(cell.source for cell in notebook.cells)
    assert not re.findall(r"(?i)\bpictures?\b|\bpass(?:es)? over the\b|\beach pass\b", sources)


def test_its_outputs_say_nothing_of_the_machine_they_were_made_on(notebook: Any) -> None:
    text = output_text(notebook)
    assert not MACHINE_PATH.search(text)
    assert "Warning" not in text and "site-packages" not in text


def test_it_shows_real_data_and_four_lines(notebook: Any) -> None:
    assert "cifar10 with 10 classes" in output_text(notebook)
    four = next(cell.source for cell in code_cells(notebook) if "minutes=MINUTES)" in cell.source)
    assert len([line for line in four.splitlines() if line.strip()]) <= 4


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
    network = describe(name, num_classes)
    assert parameters in (None, network["parameters"])
    row = f"| {num_classes} | {network['parameters']:,} | {network['flops'] / 1e6:,.0f} |"
    assert row in output_text(notebook)


def test_its_prose_says_what_the_default_recipe_does(notebook: Any) -> None:
    text, default = prose(notebook), recipe.load("default")
    numbers = {2: "two", 3: "three", 4: "four", 6: "six", 8: "eight"}
    assert f"up to {numbers[default.augment.crop]} pixels" in text
    assert ("mirrored every other epoch" in text) == (default.augment.flip == "alternating")
    assert ("**Muon** for the matrices" in text) == (default.optimizer.name == "muon")
    assert f"{default.training.label_smoothing:.0%} of the target probability" in text
    assert ("convolutional stem" in text) == (default.model.stem == "conv")
    assert ("Queries and keys are normalised" in text) == default.model.qk_norm
    assert ("Each layer starts as the identity" in text) == default.model.zero_init
    assert (default.schedule.name, default.schedule.warmup) == ("linear", 0.1)  # as under the loss curves
    assert default.schedule.small_sides == (0.75,) and "three quarters of their size, 24 pixels" in text
    assert 0.6 < default.schedule.small_until[0] < 0.7 and "first two thirds of the steps" in text


def test_its_references_lead_where_they_say(notebook: Any) -> None:
    links = re.findall(
        r"\[(?:arXiv )?(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/(\d{4}\.\d{5})\)", prose(notebook)
    )
    assert len(links) > 15
    assert all(shown == target for shown, target in links)
