"""Which notebooks run in the same process."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the notebooks that share the run folder of `small.yaml` one after another."""
    for item in items:
        shared = "small.yaml" in item.path.read_text()
        item.add_marker(pytest.mark.xdist_group("small.yaml" if shared else item.name))
