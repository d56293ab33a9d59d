"""What pyproject.toml asks for, constraints.txt pins, and the tests import."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]


def normalised(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED_BY_CI = set(map(normalised, [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["baselines"]]))


def test_everything_that_ci_installs_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normalised(line) for line in lines if "==" in line and not line.startswith("#")}
    assert pinned >= INSTALLED_BY_CI


def test_what_tests_import_is_declared() -> None:
    """As psutil was not; what pytest.importorskip guards is not imported by a statement."""
    found = set()
    for path in (ROOT / "tests").rglob("*.py"):
        if "cases" in path.parts and path.parent.name != "cases":
            continue  # scripts of public reports
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    names = {normalised(name) for module in found for name in distributions.get(module, ())}
    transitive = {"omegaconf"}
    assert "psutil" in names
    assert names - INSTALLED_BY_CI - transitive - {"orrery"} == set()


def test_python_versions_are_those_that_labmaze_has_wheels_for() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.13"
    assert (3, 11) <= sys.version_info[:2] < (3, 13)
