"""The commands of the README are run, on small data and with small budgets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitreous import cli, recipe
from vitreous.data.packed import pack, store_path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
TINY = [
    "model.embed_dim=32",
    "model.mlp_dim=32",
    "model.depth=1",
    "model.num_heads=2",
    "training.batch_size=32",
]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "vitreous"]


def small_cifar(name: str, classes: int, data_dir: Path) -> None:
    generator = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return images, np.arange(count) % classes, [str(i) for i in range(count)]

    pack(
        store_path(data_dir, name),
        name=name,
        classes=[f"class {i:03d}" for i in range(classes)],
        splits={"train": split(20 * classes), "test": split(2 * classes)},
        source="a test",
    )


def test_every_command_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITREOUS_DATA", str(tmp_path / "data"))
    small_cifar("cifar10", 10, tmp_path / "data")
    small_cifar("cifar100", 100, tmp_path / "data")
    for index in range(30):
        folder = tmp_path / "path" / "to" / "pictures" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    found = commands()
    assert len(found) >= 10
    for words in found:
        if words[0] == "train" and not {"--resume", "--repeat"} & set(words):
            budget = next(
                i for i, word in enumerate(words) if word in ("--minutes", "--epochs", "--steps", "--flops")
            )
            stem = ["stem_dims=[8,16]"] if "notebook" not in words else ["head_hidden=16"]
            words = [*words[:budget], *words[budget + 2 :], "--steps", "2", "--device", "cpu", *TINY, *stem]
        assert cli.main(words) == 0, f"vitreous {' '.join(words)}: {capsys.readouterr().err}"
    assert (tmp_path / "runs" / "cifar10-default-001" / "report.html").exists()
    assert (tmp_path / "pictures.png").exists()


def test_every_named_recipe_of_the_readme_exists() -> None:
    for words in commands():
        if "--recipe" in words:
            assert words[words.index("--recipe") + 1] in [*recipe.names(), "notebook"]


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (root / target).exists(), target
