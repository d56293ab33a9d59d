"""Importing the libraries of the extra `baselines`."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any


def library(name: str) -> Any:
    """The module, without the notice that gym, which both libraries import where it is installed, prints of itself."""
    with contextlib.redirect_stderr(io.StringIO()):
        return importlib.import_module(name)
