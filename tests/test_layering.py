"""Which room may import which: a leaf uses the core, and the core knows no leaf."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitreous

ROOT = Path(vitreous.__file__).parent
PACKAGE_ROOM = {"vitreous"}  # of vitreous/__init__.py, which only names where things are

# What each room may import of vitreous; everyone may import files and errors.
MAY = {
    "errors": set(),
    "files": set(),
    "counted": set(),
    "progress": set(),
    "wording": set(),
    "settings": set(),
    "habits": {"request"},
    "model": set(),
    "native": {"model"},
    "balance": set(),
    "metrics": {"balance"},
    "statistics": set(),
    "coverage": set(),
    "label_errors": set(),
    "calibration": {"metrics", "statistics"},
    "confusion": {"bundle"},
    "advice": {"balance", "calibration", "statistics"},
    "charts": {"calibration", "statistics"},
    "attribution": {"bundle", "machine", "model", "native", "data.normalize"},
    "request": set(),
    "machine": {"native.build", "request"},
    "depth": set(),
    "profiles": set(),
    "preprocess": {"depth", "profiles", "request"},
    "data": {"depth", "preprocess", "profiles", "request"},
    "recipe": {"habits", "model.variants", "request"},
    "recipes": set(),
    "bundle": {"coverage", "machine", "model", "native", "preprocess", "data.decode", "data.normalize"},
    "run": {"recipe", "bundle", "model"},
    "training": {"model", "native", "data", "metrics", "recipe", "machine", "run"},
    "report": {
        "advice", "attribution", "balance", "bundle", "calibration", "charts", "confusion", "dial", "label_errors",
        "metrics", "run", "statistics", "training.schedule", "model.summary", "request",
    },
    "predict": {"run", "bundle", "statistics", "preprocess", "data", "machine"},
    "explain": {"run", "bundle", "model", "attribution", "preprocess", "depth", "data"},
    "export": {
        "balance", "run", "bundle", "model", "coverage", "statistics", "preprocess", "data", "evaluation",
        "depth", *PACKAGE_ROOM,
    },
    "compare": {"balance", "run", "bundle", "metrics", "statistics", "recipe"},
    "dial": {"model.variants", "recipe"},
    "plan": {
        "balance", "dial", "data", "model", "native", "recipe", "request", "machine", "run", "training",
        *PACKAGE_ROOM,
    },
    "evaluation": {
        "data", "bundle", "metrics", "run", "machine", "model", "preprocess", "request", "coverage",
        "calibration", "confusion", "label_errors",
    },
    "api": {
        "balance", "data", "model", "training", "metrics", "recipe", "machine", "bundle", "run", "report",
        "plan", "request", "habits", "evaluation", "dial", "advice", *PACKAGE_ROOM,
    },
    "cli": {
        "api", "data", "dial", "habits", "metrics", "model", "recipe", "report", "request",
        "predict", "explain", "export", "compare", *PACKAGE_ROOM,
    },
    "__main__": {"cli"},
    "__init__": set(),
}  # fmt: skip
LEAVES = {"report", "predict", "explain", "export", "compare", "serve"}
SHARED = {"errors", "files", "counted", "progress", "settings", "wording"}
MODULES = sorted(ROOT.rglob("*.py"))


def room(module: str) -> str:
    return module.partition(".")[0]


def name(file: Path) -> str:
    """The module's name below vitreous, as "data.store"."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def exists(module: str) -> bool:
    place = ROOT.joinpath(*module.split("."))
    return place.is_dir() or place.with_suffix(".py").exists()


def imported(file: Path) -> set[str]:
    """The modules below vitreous that a file imports anywhere in it, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            # `from vitreous import run` imports a module, `from vitreous.run import Run` a name of one.
            both = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if exists(n.removeprefix("vitreous.")) else str(node.module) for n in both]
        for each in names:
            if each == "vitreous" or each.startswith("vitreous."):
                found.add(each.removeprefix("vitreous."))
    return found


def test_every_room_is_in_the_table() -> None:
    assert {room(name(file)) for file in MODULES} <= set(MAY)


@pytest.mark.parametrize("file", MODULES, ids=name)
def test_a_room_imports_only_what_it_may(file: Path) -> None:
    own = room(name(file))
    allowed = MAY[own] | SHARED | {own}
    for module in imported(file):
        assert any(module == may or module.startswith(may + ".") for may in allowed), (
            f"{name(file)} imports {module}"
        )


def test_every_place_in_the_architectures_table_exists() -> None:
    page = (ROOT.parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = []
    for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE):
        folder = ""
        for place in re.findall(r"`([^`]+)`", row):
            folder = place.rpartition("/")[0] or folder
            found.append(f"{folder}/{place.rpartition('/')[2]}".lstrip("/"))
    assert len(found) > 30
    assert not [place for place in found if not list(ROOT.glob(place))]
    rooms = {room(name(file)) for file in MODULES} - {"__init__", "__main__"}
    assert not [each for each in rooms if not any(place.startswith(each) for place in found)]


@pytest.mark.parametrize("file", MODULES, ids=name)
def test_only_the_page_and_the_command_line_know_a_leaf(file: Path) -> None:
    if room(name(file)) not in (*LEAVES, "api", "cli"):
        assert not {room(module) for module in imported(file)} & LEAVES


def test_the_table_reads_what_is_there() -> None:
    """The reading itself is checked on imports that are known to stand in the code."""
    assert {"run", "recipe", "report", "data.module", "plan"} <= imported(ROOT / "api.py")
    assert {"model.vit", "native.accelerate"} <= imported(ROOT / "plan.py")
    assert "model.vit" in imported(ROOT / "bundle.py")
    assert not any(module.startswith("native") for module in imported(ROOT / "model" / "vit.py"))
    assert "data.check" in imported(ROOT / "cli.py")  # inside a function


HEAVY = {"torch", "numpy", "PIL", "pytorch_lightning", "torchmetrics", "matplotlib", "jinja2", "safetensors"}


@pytest.mark.parametrize("module", ["", ".recipe", ".model.variants", ".errors", ".cli", ".data.named"])
def test_what_is_light_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, vitreous{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"vitreous{module}" in loaded.split()
    assert not HEAVY & set(loaded.split())


def test_the_network_loads_without_lightning() -> None:
    code = "import sys, vitreous.model.vit, vitreous.bundle, vitreous.run; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" in loaded.split()
    assert not {"pytorch_lightning", "torchmetrics", "matplotlib"} & set(loaded.split())


def test_no_file_reads_a_pickle_by_python_itself() -> None:
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [str(node.module)]
            assert not {"pickle", "marshal", "shelve", "dill", "joblib"} & {
                m.partition(".")[0] for m in modules
            }
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                safe = node.arg == "weights_only"
                assert isinstance(node.value, ast.Constant) and node.value.value is safe, (
                    f"{file}:{node.value.lineno}"
                )
