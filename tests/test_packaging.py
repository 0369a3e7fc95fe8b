"""What the package asks of others: versions without known holes, which the development environment has."""

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
def test_versions_with_known_holes_are_not_taken(name: str, last: str) -> None:
    assert last not in REQUIRED[canonicalize_name(name)]


def test_the_development_environment_is_one_that_the_package_allows() -> None:
    extras = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
    asked = REQUIRED | {canonicalize_name(each.name): each.specifier for each in extras}
    pinned = {name: asked[name].contains(PINNED[name]) for name in asked if name in PINNED}
    assert all(pinned.values()) and set(REQUIRED) <= set(pinned)
