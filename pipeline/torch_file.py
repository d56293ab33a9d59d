"""Files written by `torch.save` elsewhere, read without running anything that is in them.

Such a file is a pickle, and a pickle names functions to be called. Only tensors, plain containers and TensorDict are
read here; a file that names anything else is refused. Three things stand in the way of a call:

- the names are listed from the pickle's bytes, before it is opened, and compared with those below;
- torch's own restricted unpickler (`weights_only`) does the reading, so that no name is ever looked up by import;
- it is given inert stand-ins for TensorDict, and nothing that the process has allowed to be loaded otherwise.

A TensorDict is stored as the fields of its object, which differ by version (checked from 0.1.2 to 0.14.3); all of them
hold the entries and the batch size under the same two names, and nothing else of it is kept.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import mmap as memory
import pickletools
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import torch

from .errors import CheckpointError, OrreryError
from .paths import user_path

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file that torch wrote before 1.6, or with `_use_new_zipfile_serialization=False`."""

_READ = {
    "collections.OrderedDict",
    "builtins.set",
    "_codecs.encode",  # how protocol 2 writes bytes
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
"""Beside storage types and dtypes, what torch's unpickler itself may build of all that it knows."""

_PLAIN = (str, int, float, complex, bool, bytes, type(None), torch.Size, torch.dtype, torch.device)


class TensorTree(dict[str, Any]):
    """The entries of a TensorDict, by name; nested ones are TensorTrees too."""

    def __init__(self, entries: dict[str, Any], batch_size: tuple[int, ...] | None) -> None:
        super().__init__(entries)
        self.batch_size = batch_size
        """Leading dimensions that all entries share; None where the file does not say."""


def read_torch_file(
    path: str | Path, mmap: bool = True, *, checksums: bool = True, error: type[OrreryError] = CheckpointError
) -> Any:
    """What `torch.save` wrote to `path`, on the CPU.

    Args:
        path: a file in either of torch's formats.
        mmap: map tensors from the file instead of copying them, so that reading one reads its part of the file. They
            may be written to, which leaves the file as it is. The legacy format cannot be mapped and is copied.
        checksums: compare the CRC-32 of every tensor, which reads the whole file; the legacy format has none.
        error: class of the errors raised.
    Returns:
        Tensors without gradient, in dicts, lists, tuples and sets with numbers, text, bytes, None, torch.Size,
        torch.dtype and torch.device. An OrderedDict becomes a dict, a parameter its tensor, a TensorDict a TensorTree.
    Raises:
        OrreryError, of the class `error`: there is no such file, it is not torch's or is cut short, or it holds
            something else; the message then names that as `module.name`.
    """
    path = user_path(path)
    if not path.is_file():
        raise error(f"no file at {path}: expected one written by torch.save (.pt, .pth)")
    try:
        mapped = _check(path, error, checksums)
        with _allowing(_STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return _Plain(path, error, copy=mapped and not mmap)(content, "")
    except OrreryError:
        raise
    except Exception as reason:  # a damaged file fails in as many ways as there are bytes
        parts = str(reason).split("\n\n")  # torch puts advice before and after what it has to say
        said = " ".join(parts[-2 if len(parts) > 1 else 0].rpartition("WeightsUnpickler error: ")[2].split())
        raise error(
            f"{path}: cannot be read ({type(reason).__name__}: {said}); it is truncated or damaged; download or write "
            "it again"
        ) from reason


def _check(path: Path, error: type[OrreryError], checksums: bool) -> bool:
    """Refuse what will not be read, by name. Returns whether the file is a zip archive, which can be mapped."""
    if not path.stat().st_size:
        raise error(f"{path}: is not a file written by torch.save; expected a .pt or .pth file")
    # Mapped, since a file would set aside what a damaged pickle says is coming before it looks.
    with path.open("rb") as opened, memory.mmap(opened.fileno(), 0, access=memory.ACCESS_READ) as mapped:
        file = cast(IO[bytes], mapped)  # it reads as one, which its annotations do not say
        if file.read(4) == b"PK\x03\x04":
            _check_names(path, io.BytesIO(_zipped_pickle(path, error, checksums)), error)
            return True
        file.seek(0)
        try:
            first = [argument for _, argument, _ in itertools.islice(pickletools.genops(file), 3)]
        except (ValueError, EOFError):
            first = []
        if _LEGACY_MAGIC not in first:
            raise error(f"{path}: is not a file written by torch.save; expected a .pt or .pth file")
        for _ in range(3):  # pickles: the version of the format, sizes of the machine's types, the object
            _check_names(path, file, error)
    return False


def _zipped_pickle(path: Path, error: type[OrreryError], checksums: bool) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            records = {record.filename.partition("/")[2]: record for record in archive.infolist()}
            if "data.pkl" not in records:
                raise error(f"{path}: is a zip archive, but not written by torch.save: it has no data.pkl")
            if "constants.pkl" in records:
                raise error(f"{path}: is a TorchScript program, not data; expected a file written by torch.save")
            if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
                raise error(f"{path}: was compressed after torch.save wrote it; download the original file")
            if checksums and (damaged := archive.testzip()):
                raise error(f"{path}: is damaged: {damaged} in it has another checksum; download or write it again")
            return archive.read(records["data.pkl"])
    except zipfile.BadZipFile as reason:
        raise error(
            f"{path}: is truncated or damaged ({reason}; {path.stat().st_size:,} bytes); download or write it again"
        ) from reason


def _check_names(path: Path, pickle: IO[bytes], error: type[OrreryError]) -> None:
    """Refuse a pickle that refers to a `module.name` which is not read. The message says after which text, which is
    mostly the key whose value it is."""
    refused: dict[str, str] = {}
    memo: dict[int, str] = {}
    text = ""
    for code, argument, _ in pickletools.genops(pickle):
        if code.name in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")
            if name not in _READ and name not in _STAND_INS and not _is_tensor_type(name):
                refused.setdefault(name, f" (after the entry {text!r})" if text else "")
        elif code.name == "PROTO" and argument != 2:
            raise error(
                f"{path}: written with pickle protocol {argument}, expected 2, torch.save's default; save it again"
            )
        elif code.name == "BINUNICODE":
            text = str(argument)
        elif code.name in ("BINPUT", "LONG_BINPUT"):
            memo[int(str(argument))] = text
        elif code.name in ("BINGET", "LONG_BINGET"):
            text = memo.get(int(str(argument)), text)
    if refused:
        (name, near), *others = refused.items()
        more = f", and also {', '.join(other for other, _ in others)}" if others else ""
        raise error(
            f"{path}: holds {name}{near}{more}. Only tensors, numbers, text, dicts, lists and TensorDict are read, "
            "because anything else could run code; save the data as those types"
        )


def _is_tensor_type(name: str) -> bool:
    module, _, last = name.rpartition(".")
    found = getattr(torch, last, None) if module == "torch" else None
    return isinstance(found, torch.dtype) or (isinstance(found, type) and last.endswith("Storage"))


class _Packed:
    """Stands where a TensorDict, or the module that holds one, was: keeps the fields of its object and does nothing."""

    fields: Any = None

    def __setstate__(self, fields: Any) -> None:
        self.fields = fields


class _PackedDict:
    """A subclass of dict that only checks its keys; becomes a dict."""

    def __new__(cls) -> dict[str, Any]:  # type: ignore[misc]
        return {}


class _Dropped:
    """What only a live TensorDict uses."""

    def __new__(cls, *_: Any) -> None:  # type: ignore[misc]
        return None


def _packed(_: Any, fields: Any) -> _Packed:
    packed = _Packed()
    packed.fields = fields
    return packed


def _emptied(*_: Any) -> list[Any]:
    return []


_STAND_INS: dict[str, Any] = {
    "tensordict.tensordict.TensorDict": _Packed,  # up to 0.2
    "tensordict._td.TensorDict": _Packed,
    "tensordict.nn.params.TensorDictParams": _Packed,
    "tensordict._reductions._make_td": _packed,  # from 0.5 on
    "tensordict.utils._StringOnlyDict": _PackedDict,  # 0.2 to 0.4
    "tensordict.utils._LockedSchema": _Dropped,
    "collections.deque": _emptied,  # of TensorDictParams: its last operations
}

_allowing_one = threading.Lock()


@contextlib.contextmanager
def _allowing(stand_ins: dict[str, Any]) -> Iterator[None]:
    """Let torch's unpickler build these and nothing else that this process has allowed; a list that is torch's own."""
    with _allowing_one:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()])
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


class _Plain:
    """Turns what the unpickler built into plain containers, or names what is none. Shared parts stay shared."""

    def __init__(self, path: Path, error: type[OrreryError], *, copy: bool) -> None:
        self._path, self._error, self._copy = path, error, copy
        self._num_bytes = path.stat().st_size
        self._done: dict[int, Any] = {}

    def __call__(self, value: Any, where: str) -> Any:
        if id(value) not in self._done:
            self._done[id(value)] = self._convert(value, where)
        return self._done[id(value)]

    def _convert(self, value: Any, where: str) -> Any:
        if type(value) is _Packed:
            return self._unpack(value.fields, where)
        if type(value) in (dict, OrderedDict):
            return {self(key, where): self(one, f"{where}[{key!r}]") for key, one in value.items()}
        if type(value) in (list, tuple, set):
            return type(value)(self(one, f"{where}[{index}]") for index, one in enumerate(value))
        if type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided:
            if value.numel() * value.element_size() > self._num_bytes:  # repeated by a stride of 0
                raise self._error(
                    f"{self._path}: {where or 'its content'} declares shape {list(value.shape)}, more than the file's "
                    f"{self._num_bytes:,} bytes; save it as a contiguous tensor"
                )
            return value.detach().clone() if self._copy else value.detach()
        if type(value) in _PLAIN:
            return value
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise self._error(f"{self._path}: {where or 'its content'} is a {kind}; expected tensors and plain containers")

    def _unpack(self, fields: Any, where: str) -> Any:
        if isinstance(fields, dict) and isinstance(inner := fields.get("_param_td"), _Packed):
            return self(inner, where)
        if not isinstance(fields, dict) or not isinstance(entries := fields.get("_tensordict"), dict):
            raise self._error(
                f"{self._path}: {where or 'its content'} is a TensorDict of an unknown version: expected its entries "
                "under _tensordict; save it again as td.to_dict()"
            )
        batch_size = fields.get("_batch_size")
        return TensorTree(self(entries, where), tuple(batch_size) if isinstance(batch_size, torch.Size) else None)
