"""The required versions of other packages have no known vulnerabilities, and the development environment meets them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
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


@pytest.mark.parametrize(
    ("name", "last"),
    [("torch", "2.9.1"), ("pillow", "12.2.0"), ("safetensors", "0.7.0"), ("pytorch-lightning", "2.6.5")],
)
def test_vulnerable_versions_are_excluded(name: str, last: str) -> None:
    assert last not in REQUIRED[canonicalize_name(name)]


def test_the_development_environment_meets_the_requirements() -> None:
    extras = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
    required = REQUIRED | {canonicalize_name(extra.name): extra.specifier for extra in extras}
    met = {name: required[name].contains(PINNED[name]) for name in required if name in PINNED}
    assert all(met.values()) and set(REQUIRED) <= set(met)
