"""The package as others get it: safe versions of its dependencies, whole distributions, an installation that works."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
}
REQUIRED = {
    canonicalize_name(requirement.name): requirement.specifier
    for line in PROJECT["dependencies"]
    if (requirement := Requirement(line))
}
EXTRAS = {
    canonicalize_name(requirement.name): requirement.specifier
    for lines in PROJECT["optional-dependencies"].values()
    for line in lines
    if (requirement := Requirement(line))
}
TOP_LEVEL = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
INSTALL = ("install", "--quiet", "--no-deps", "--no-index", "--ignore-installed")


@pytest.mark.parametrize(
    ("name", "last"),
    [("torch", "2.9.1"), ("pillow", "12.2.0"), ("safetensors", "0.7.0"), ("pytorch-lightning", "2.6.5")],
)
def test_vulnerable_versions_are_excluded(name: str, last: str) -> None:
    assert last not in REQUIRED[canonicalize_name(name)]


def test_pinned_versions_satisfy_the_package() -> None:
    allowed = REQUIRED | EXTRAS
    assert not [name for name in allowed if name in PINNED and PINNED[name] not in allowed[name]]
    assert set(REQUIRED) <= set(PINNED)


def test_every_tool_of_the_development_extra_is_pinned() -> None:
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["dev"]}
    assert names <= set(PINNED)


def test_citation_matches_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"], str(citation["version"])) == (PROJECT["name"], PROJECT["version"])
    assert (citation["license"], citation["cff-version"]) == (PROJECT["license"], "1.2.0")


def test_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(PROJECT['version'])} \(", changelog, re.MULTILINE)


def package_files() -> set[str]:
    """The package's files in this checkout, as paths below src."""
    files = (path for path in (ROOT / "src" / "vitreous").rglob("*") if path.is_file())
    return {path.relative_to(ROOT / "src").as_posix() for path in files if "__pycache__" not in path.parts}


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def build(source: Path, target: Path, *kinds: str) -> list[Path]:
    """Builds distributions with the tools of this environment, so that no network is needed."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(target), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return sorted(target.iterdir())


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel that is built from it, as a release has them."""
    # Built from a copy: setuptools writes into the folder, and reads lists that earlier builds left there.
    source = tmp_path_factory.mktemp("source")
    for name in TOP_LEVEL:
        shutil.copy(ROOT / name, source)
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=junk)
    sdist, wheel = sorted(build(source, tmp_path_factory.mktemp("dist")), key=lambda path: path.suffix)
    return sdist, wheel


def test_wheel_holds_the_package_and_nothing_else(distributions: tuple[Path, Path]) -> None:
    files = wheel_files(distributions[1])
    info = {name for name in files if name.split("/")[0].endswith(".dist-info")}
    assert set(files) - info == package_files()
    assert {name.rpartition("/")[2] for name in info} >= {"METADATA", "RECORD", "entry_points.txt", "LICENSE"}
    for name in (
        "recipes/default.toml",
        "native/kernels.cpp",
        "native/vectors.h",
        "report.html.jinja",
        "py.typed",
    ):
        assert files[f"vitreous/{name}"] == (ROOT / "src" / "vitreous" / name).read_bytes()


def test_source_distribution_holds_what_builds_the_package(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in package_files()} | set(TOP_LEVEL) <= files
    assert not [
        name
        for name in files
        if name.startswith(("tests", "benchmarks", "docs", ".")) or "__pycache__" in name
    ]


def test_wheel_is_the_same_from_the_checkout_and_from_the_source_distribution(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in TOP_LEVEL:
        shutil.copy(ROOT / name, source)
    (direct,) = build(source, tmp_path / "dist", "--wheel")
    assert wheel_files(direct) == wheel_files(distributions[1])


def test_metadata_names_license_python_and_dependencies(distributions: tuple[Path, Path]) -> None:
    files = wheel_files(distributions[1])
    text = next(content for name, content in files.items() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(text)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {canonicalize_name(r.name) for r in required if not r.marker} == set(REQUIRED)


@pytest.mark.slow
def test_installed_wheel_trains_from_another_folder(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    """In a new environment that sees this one's dependencies, but not this checkout."""
    venv.create(tmp_path / "venv", with_pip=False)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # A path file makes the dependencies importable. Python does not read the path files in there, so an editable
    # installation of this checkout stays invisible.
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(folders), encoding="utf-8")
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, *INSTALL, str(distributions[1])], check=True)

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"VITREOUS_DATA": str(tmp_path / "data"), "COLUMNS": "200"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = [str(python), "-c", "import vitreous; print(vitreous.__file__)"]
    location = subprocess.check_output(where, cwd=elsewhere, env=environment, text=True).strip()
    assert Path(location) == packages / "vitreous" / "__init__.py"

    command = [str(python.with_name("vitreous")), "train", "shapes", "--steps", "5", "--device", "cpu"]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = (elsewhere / "runs").iterdir()
    assert (run / "bundle" / "model.safetensors").exists() and (run / "report.html").exists()
