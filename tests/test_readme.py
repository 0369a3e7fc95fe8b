"""The README's commands run, on small data and with small budgets; every page names only what exists."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitreous import cli, recipe
from vitreous.data.packed import pack, store_path
from vitreous.request import OPTIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", ".github/pull_request_template.md")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
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
        folder = tmp_path / "path" / "to" / "images" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    shutil.copytree(tmp_path / "path" / "to" / "images", tmp_path / "more")
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "more")
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    # The run that `make train` leaves, and that later commands name.
    run = "runs/cifar10-default-seed42-001"
    small = [*TINY, "stem_dims=[8,16]", "--device", "cpu", "--out", run]
    assert cli.main(["train", "cifar10", "--steps", "2", *small]) == 0
    found = commands()
    assert len(found) >= 10
    for words in found:
        if words[0] == "train" and not {"--resume", "--repeat"} & set(words):
            budget = next(
                i for i, word in enumerate(words) if word in ("--minutes", "--epochs", "--steps", "--flops")
            )
            stem = ["stem_dims=[8,16]"] if "notebook" not in words else ["head_hidden=16"]
            words = [*words[:budget], *words[budget + 2 :], "--steps", "2", "--device", "cpu", *TINY, *stem]
        # As a shell does it; only the path to the runs has a star.
        words = [
            name
            for word in words
            for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
        ]
        # A page is unproven where there is no browser.
        allowed = {0, 3} if words[0] == "export" else {0}
        assert cli.main(words) in allowed, f"vitreous {' '.join(words)}: {capsys.readouterr().err}"
    assert (tmp_path / "images.png").exists()


def test_every_named_recipe_of_the_readme_exists() -> None:
    for words in commands():
        if "--recipe" in words:
            assert words[words.index("--recipe") + 1] in [*recipe.names(), "notebook"]


def lines_of_code(page: str) -> list[str]:
    """What a page shows as code, in blocks and inside sentences, without comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) + re.findall(
        r"^    \S.*$", text, re.MULTILINE
    )
    inline = re.findall(r"`([^`\n]+)`", text)
    return [line.partition(" #")[0].strip() for part in blocks + inline for line in part.splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_and_variables_exist(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE))
    for line in lines_of_code(page):
        if line.startswith("make "):
            for word in shlex.split(line)[1:]:
                name, assigned, _ = word.partition("=")
                assert name in (variables if assigned else targets), f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_their_options_exist(page: str) -> None:
    for line in lines_of_code(page):
        if match := re.match(r"(?:\S*python3? )(benchmarks/\S+\.py)(.*)", line):
            script = (ROOT / match[1]).read_text(encoding="utf-8")
            own, _, training = match[2].partition(" -- ")
            for option in re.findall(r"--[\w-]+", own):
                assert f'"{option}"' in script, f"{page}: {line}"
            for option in re.findall(r"--([\w-]+)", training):
                assert option.replace("-", "_") in OPTIONS, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    for line in lines_of_code(page):
        for path in re.findall(r"(?<![\w/.-])(?:src|tests|benchmarks|docs|\.github)/[\w./-]*\w", line):
            assert (ROOT / path).exists(), f"{page}: {path}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert target.startswith("http") or ((ROOT / page).parent / target).exists(), target


def test_the_checks_of_pages_see_their_commands() -> None:
    lines = lines_of_code("CONTRIBUTING.md")
    assert {"make setup", "make test"} <= set(lines)
    assert sum("benchmarks/" in line and "python" in line for line in lines) >= 4
