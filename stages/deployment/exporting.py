"""Export of one policy: traced, written, read back, compared with the policy, timed; only then put in place."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...pipeline.errors import ExportError
from ...pipeline.paths import user_path
from ..policy.interface import Interface
from ..policy.policy import Policy
from ..policy.programs import load_program
from . import equality, formats
from .function import DeployedPolicy
from .latency import Latency, measure, one_thread

DESCRIPTION = "export.json"


@dataclass(frozen=True)
class Exported:
    """One format of an exported policy."""

    file: str
    bytes: int
    differences: dict[str, float]
    """By kind of observation: largest difference from the policy's actions, in halves of a component's range."""
    latency: Latency


@dataclass(frozen=True)
class Written:
    """What was written."""

    folder: Path
    formats: dict[str, Exported]
    eager: Latency
    """Of the policy as it is, in PyTorch."""
    description: dict[str, Any]


def export_policy(
    policy: Policy,
    formats_wanted: Sequence[str],
    out: str | Path,
    *,
    store: Path | None = None,
    source: dict[str, Any] | None = None,
) -> Written:
    """Write `policy.onnx` and/or `policy.pt2`, and `export.json`, which says what goes in and comes out.

    Args:
        formats_wanted: of `onnx` and `torch`.
        out: folder to write to; made if missing. Files of an earlier export are replaced.
        store: packed data to compare on; without it, the observations of an episode in the environment.
        source: about the policy, for the record.
    Raises:
        ExportError: the policy cannot be exported, or would not act as it does; nothing is written then.
        ConfigError: a package is missing.
    """
    formats.check_available(list(formats_wanted))
    _check_exportable(policy)
    out = user_path(out)
    interface = Interface.of(policy.task)
    function = DeployedPolicy(policy, interface).eval()
    with _writable(out) as folder, one_thread():
        known = equality.recorded(policy, policy.task, store)
        tried = [one for one in (known, equality.random(interface, known)) if one is not None]
        example = interface.raw(tried[0].flat_BO[:1])
        try:
            program = formats.trace(function, np.repeat(example, 3, 0))
        except Exception as error:  # the tracer raises what it likes
            raise ExportError(f"{type(policy).__name__} cannot be traced by torch.export: {_line(error)}") from error
        made = {}
        for name in formats_wanted:
            file = Path(folder) / formats.FILES[name]
            try:
                formats.write(program, file)
            except Exception as error:  # so does the translation to ONNX
                raise ExportError(f"{type(policy).__name__} cannot be written as {name}: {_line(error)}") from error
            run = load_program(file)
            differences = {one.kind: equality.difference(policy, interface, run, one) for one in tried}
            _check_equal(name, differences)
            made[name] = Exported(file.name, file.stat().st_size, differences, measure(partial(run, example)))
        eager = formats.eager(function)
        timed = measure(partial(eager, example))
        description = {
            "task": policy.task.to_dict(),
            **interface.describe(),
            "source": source or {},
            "tolerance": equality.TOLERANCE,
            "eager": asdict(timed),
            "formats": {name: asdict(one) for name, one in made.items()},
            "versions": {"orrery": version("orrery"), "torch": torch.__version__},
        }
        (Path(folder) / DESCRIPTION).write_text(json.dumps(description, indent=1))
        if (out / DESCRIPTION).is_file():  # nothing of another policy may stay beside the new description
            for name in formats.FILES.values():
                (out / name).unlink(missing_ok=True)
        for file in Path(folder).iterdir():
            file.replace(out / file.name)
    return Written(out, made, timed, description)


def _check_exportable(policy: Policy) -> None:
    if hasattr(policy, "begin"):
        raise ExportError(
            f"a {type(policy).__name__} plans each step with random numbers and memory, so its action is not a "
            "function of the observation; export a policy of another algorithm, or train one with `extract`"
        )
    if not isinstance(policy, torch.nn.Module):
        raise ExportError(f"a {type(policy).__name__} is not a torch module and cannot be exported")


def _check_equal(name: str, differences: dict[str, float]) -> None:
    for kind, apart in differences.items():
        if apart > equality.TOLERANCE:
            raise ExportError(
                f"exported as {name}, the policy acts differently: on observations {kind}, "
                f"an action differs by {apart:.3g} of half its range (allowed {equality.TOLERANCE:g}; 1 or more is "
                "another discrete action). Nothing was written"
            )


class _writable:
    """A folder within `out`, removed at the end; what is finished is moved up from it.

    Raises:
        ExportError: `out` cannot be written to.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._is_new = out, not out.exists()
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._partial = tempfile.mkdtemp(prefix=".partial-", dir=out)
        except OSError as error:
            raise ExportError(f"cannot write to {out}: {error.strerror}; choose another folder with --out") from error

    def __enter__(self) -> str:
        return self._partial

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        if self._is_new and not any(self._out.iterdir()):
            self._out.rmdir()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
