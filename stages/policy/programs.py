"""Programs in files of ONNX, torch.export and TorchScript, run as functions of observations.

Nothing here unpickles. What each format may do when it is loaded and run:

- ONNX (.onnx): operators of ONNX Runtime.
- torch.export (.pt2): operators of torch. `torch.export.load` itself would do more: unpickle weights, constants and
  example inputs, evaluate expressions as Python, call any function of torch by its name, and load compiled libraries. A
  file that asks for any of that is refused before torch sees it.
- TorchScript (.pt, .pth, .ts): a program in torch's own interpreter, without Python. One that reads or writes files is
  refused.

A file of any format can still ask for much memory or time.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ...pipeline.errors import CheckpointError, ConfigError

Program = Callable[[np.ndarray], np.ndarray]
"""Observations [B, ...] -> actions [B, ...]."""

ANOTHER_FORMAT = "export the policy as ONNX, torch.export (.pt2) or TorchScript"


def load_program(file: Path) -> Program:
    """What runs the program in `file` on a CPU, single-threaded where the format decides that itself.

    Raises:
        CheckpointError: it is no such file, is damaged, or would execute code.
        ConfigError: its suffix is unknown, or the package that runs it is missing.
    """
    if file.suffix not in LOADERS:
        raise ConfigError(f"{file}: expected a file that ends in {', '.join(LOADERS)}; {ANOTHER_FORMAT}")
    if not file.is_file():
        raise CheckpointError(f"there is no file {file.absolute()}")
    try:
        return LOADERS[file.suffix](file)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # each library raises what it likes
        raise CheckpointError(
            f"{file} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split()):.300}"
        ) from error


def _load_onnx(file: Path) -> Program:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError(f"{file} needs onnxruntime: pip install 'orrery[export]'")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # it prints what it raises, too
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), [one.name for one in session.get_outputs()]
    if len(inputs) != 1:
        raise CheckpointError(
            f"{file}: a policy takes one input, the observation; this model takes {len(inputs)}: "
            f"{', '.join(one.name for one in inputs)}"
        )
    action = "action" if "action" in outputs else outputs[0]
    return lambda observation: session.run([action], {inputs[0].name: observation})[0]


def _load_exported(file: Path) -> Program:
    checked = checked_archive(file)
    with quiet():
        module = torch.export.load(checked).module()
    return lambda observation: _call(module, observation)


def _load_torchscript(file: Path) -> Program:
    check_torchscript(file)
    with quiet():
        module = torch.jit.load(file, map_location="cpu")
    return lambda observation: _call(module, observation)


LOADERS = {
    ".onnx": _load_onnx,
    ".pt2": _load_exported,
    ".pt": _load_torchscript,
    ".pth": _load_torchscript,
    ".ts": _load_torchscript,
}
"""By suffix."""


def _call(function: Callable[[torch.Tensor], Any], observation: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        found = function(torch.from_numpy(observation))
        return (found[0] if isinstance(found, tuple | list) else found).numpy()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Torch's loaders warn of their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        level = logging.getLogger("torch.export").level
        logging.getLogger("torch.export").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.export").setLevel(level)


_PROGRAM, _EXAMPLE_INPUTS = "models/model.json", "data/sample_inputs/model.pt"
_EXPORTED_FILES = re.compile(
    r"(\.data/\w+|\.format_version|\.storage_alignment|archive_format|archive_version|byteorder|version"
    r"|models/model\.json|extra/.*"
    r"|data/weights/(model_weights_config\.json|weight_\d+)"
    r"|data/constants/(model_constants_config\.json|tensor_\d+)"
    r"|data/sample_inputs/model\.pt)"
)
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+(\.\w+)?|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(getitem|add|sub|mul|neg|floordiv|mod|truediv|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_OF_FILES = re.compile(r"\b(from_file|load_tensor)\b|\baten\.save\b|\btorch\.save\b")
"""Operators that read or write files."""


def checked_archive(file: Path) -> io.BytesIO:
    """What of an archive of torch.export may be loaded: its program and its tensors.

    Raises:
        CheckpointError: it is no such archive, or does more than call operators of torch on tensors.
    """

    def refuse(what: str) -> NoReturn:
        raise CheckpointError(f"{file} {what}, which would execute code when it is loaded; {ANOTHER_FORMAT} anew")

    try:
        with zipfile.ZipFile(file) as archive:
            files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        if _PROGRAM not in files:
            raise CheckpointError(f"{file} is not an archive written by torch.export.save (torch 2.8 or later)")
        for name in files:
            if not _EXPORTED_FILES.fullmatch(name):
                refuse(f"holds {name}")
        for kind in ("weights", "constants"):
            config = json.loads(files[f"data/{kind}/model_{kind}_config.json"])["config"]
            if pickled := [name for name, one in config.items() if one["use_pickle"]]:
                refuse(f"holds {pickled[0]} as a pickle")
        for key, text in _texts(json.loads(files[_PROGRAM])):
            if key == "target" and (not _OPERATORS.fullmatch(text) or _OF_FILES.search(text)):
                refuse(f"calls {text}")
            if key in ("expr_str", "guards_code") and not _is_arithmetic(text):
                refuse(f"has the expression {text:.80}")
            if key in ("in_spec", "out_spec") and "__enum__" in text:
                refuse("names classes to import")
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {type(error).__name__}: {error}") from error
    if _EXAMPLE_INPUTS in files:
        files[_EXAMPLE_INPUTS] = b""  # a pickle; nothing needs them
    # Written anew, so that torch's reader finds what was checked here, whatever a forged directory would show it.
    checked = io.BytesIO()
    with zipfile.ZipFile(checked, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"program/{name}", content)
    checked.seek(0)
    return checked


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a JSON value with the nearest key above each."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _texts(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, key)
    elif isinstance(value, str):
        yield key, value


_SYMBOLS = re.compile(
    r"[su]\d+|L|True|False|Symbol|Integer|Float|Rational|Mul|Add|Pow|PowByNatural|Abs|Max|Min|Mod|PythonMod|FloorDiv"
    r"|CeilDiv|CleanDiv|IntTrueDiv|ToFloat|TruncToInt|(Strict)?(Greater|Less)Than|Equality|Unequality|And|Or|Not|Eq|Ne"
)
"""Names in the expressions of sizes that torch.export writes."""
_ARITHMETIC = (
    ast.Expression, ast.Call, ast.keyword, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare,
    ast.Subscript, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def _is_arithmetic(text: str) -> bool:
    """Whether an expression of sizes does nothing but compute: torch evaluates it as Python."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(map(_computes, nodes))


def _computes(node: ast.AST) -> bool:
    match node:
        case ast.Attribute():
            return node.attr in ("size", "shape")
        case ast.Name():
            return bool(_SYMBOLS.fullmatch(node.id))
        case ast.Constant(value=str(text)):
            return text.isidentifier()
    return isinstance(node, _ARITHMETIC)


def check_torchscript(file: Path) -> None:
    """Raise a CheckpointError unless `file` is a TorchScript program that reads and writes no files."""
    try:
        with zipfile.ZipFile(file) as archive:
            code = [name for name in archive.namelist() if name.partition("/")[2].startswith("code/")]
            if not code:
                raise CheckpointError(
                    f"{file} holds pickled Python objects (torch.save), which would execute code when they are loaded; "
                    f"{ANOTHER_FORMAT}, such as torch.jit.script(policy).save(...)"
                )
            for name in code:
                if name.endswith(".py") and (found := _OF_FILES.search(archive.read(name).decode())):
                    raise CheckpointError(f"{file}: its program calls {found[0]}, which reads or writes files: refused")
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{file} is no TorchScript program; if it is a pickle, it would execute code when it is loaded: "
            f"{ANOTHER_FORMAT}"
        ) from error
