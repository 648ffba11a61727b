"""The versions that the constraints pin are versions that the project allows."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize(
    ("constraints", "extra"), [("constraints.txt", "trt"), ("constraints-cu12.txt", "trt-cu12")]
)
def test_every_dependency_is_pinned_to_a_version_that_it_may_have(constraints, extra):
    lines = (ROOT / constraints).read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    for text in (*PROJECT["dependencies"], *EXTRAS[extra]):
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"platform_machine": "x86_64"}):
            assert pinned[needed.name] in needed.specifier, text
