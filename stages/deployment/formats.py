"""The files that a policy is exported to: PyTorch's .pt2 archive and ONNX.

Both take any number of observations at once. ONNX needs the extra `export`; a .pt2 needs torch alone to be run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ...pipeline.errors import ConfigError
from ..policy.programs import Program
from .function import DeployedPolicy

FILES = {"torch": "policy.pt2", "onnx": "policy.onnx"}

_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def check_available(formats: list[str]) -> None:
    """Raise a ConfigError if what writes and checks one of the formats is not installed."""
    if "onnx" not in formats:
        return
    if missing := [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"ONNX needs {', '.join(missing)}: pip install 'orrery[export]', or export with --format torch"
        )


def trace(function: DeployedPolicy, example: np.ndarray) -> torch.export.ExportedProgram:
    """The function as a graph of standard operations, for any number of observations.

    Args:
        example: two or more observations; their number is not kept.
    """
    with torch.no_grad(), _quiet():
        batch = {0: torch.export.Dim("batch", min=1)}
        return torch.export.export(function, (torch.from_numpy(example),), dynamic_shapes={"observation": batch})


def write(program: torch.export.ExportedProgram, file: Path) -> None:
    """Write the traced function; the file's suffix says how."""
    with torch.no_grad(), _quiet():
        if file.suffix == ".pt2":
            torch.export.save(program, file)
            return
        made = torch.onnx.export(
            program, dynamo=True, input_names=["observation"], output_names=["action"], external_data=False,
            verbose=False,
        )  # fmt: skip
        assert made is not None  # only the old exporter, which dynamo=True is not, gives None
        made.save(str(file))


def eager(function: DeployedPolicy) -> Program:
    """The function itself, not exported."""
    return lambda observation: _run(function, observation)


def _run(function: Callable[[torch.Tensor], torch.Tensor], observation: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return function(torch.from_numpy(observation)).numpy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own insides, print their progress, and say that torchvision is missing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore", (FutureWarning))
            warnings.simplefilter("ignore", (DeprecationWarning))
            yield
    finally:
        logger.setLevel(level)
