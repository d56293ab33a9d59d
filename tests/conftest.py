"""How many processes run the tests."""

from __future__ import annotations

import pytest
from orrery.pipeline.jobs.pool import usable_cores


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one process per core, up to four: each takes a gigabyte.

    The tests of a single file run in pytest's own process (0): starting others takes seconds.
    """
    files = {argument.partition("::")[0] for argument in config.args}
    return 0 if len(files) == 1 and files.pop().endswith(".py") else min(usable_cores(), 4)
