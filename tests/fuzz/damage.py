"""Seeded damage to a folder of files: bytes, JSON values, HDF5 objects, YAML, archives, and what a path leads to."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

MARKER = "executed"
"""A folder of this name appears beside the input where code in it was run."""

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 10**12, 10**30, 1e308, float("nan"), float("inf"), "", "x", "..", "../../etc",
    "/etc/passwd", "\0", "ü" * 500, [], [1], [[]], {}, {"a": 1}, [None] * 3, "1", "nan",
)  # fmt: skip


def damage(folder: Path, seed: int) -> str:
    """Damage one file below `folder`; returns what was done."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    kinds: list[Callable[[Path, random.Random], str]] = [_bytes, _bytes, _path]
    kinds += [_json] * 8 * (path.suffix == ".json") + [_hdf5] * 8 * (path.suffix == ".hdf5")
    kinds += [_yaml] * 8 * (path.suffix == ".yaml") + [_npz] * 4 * (path.suffix == ".npz")
    kinds += [_torch] * 6 * (path.suffix == ".pt")
    name = path.relative_to(folder).as_posix()
    return f"{name}: {rng.choice(kinds)(path, rng)}"


def _bytes(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice([1, 4, 64, len(data)]))
    kind = rng.choice(["flip", "truncate", "delete", "duplicate", "overwrite", "empty"])
    if kind == "flip":
        for _ in range(rng.choice([1, 8])):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del data[start:]
    elif kind == "delete":
        del data[start:stop]
    elif kind == "duplicate":
        data[stop:stop] = data[start:stop]
    elif kind == "overwrite":
        data[start:stop] = rng.randbytes(stop - start)
    else:
        data.clear()
    path.write_bytes(data)
    return f"{kind} {start}:{stop}"


def _path(path: Path, rng: random.Random) -> str:
    kind = rng.choice(["missing", "folder", "pipe", "loop", "dangling", "unreadable"])
    if kind == "unreadable":
        path.write_bytes(b"\xff\xfe" * 50)
        return kind
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    return kind


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    found: list[tuple[Any, Any]] = []
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += [(value, key), *_places(value[key])]
    return found


def _json(path: Path, rng: random.Random) -> str:
    whole = [json.loads(path.read_text())]
    container, key = rng.choice(_places(whole))
    kind = rng.choice(["replace", "replace", "replace", "delete", "add", "deep", "digits", "huge"])
    if kind == "delete":
        del container[key]
    elif kind == "add" and isinstance(container, dict):
        container[rng.choice(["", "x", "\0", "kind"])] = rng.choice(VALUES)
    elif kind in ("deep", "digits"):
        container[key] = "HERE"
    elif kind == "huge":
        container[key] = rng.choice([10**9, 10**12, -(10**12)])
    else:
        container[key] = rng.choice(VALUES)
    text = json.dumps(whole[0]) if whole else ""
    text = text.replace('"HERE"', "[" * 100_000 if kind == "deep" else "9" * 5000)
    path.write_text(text)
    return f"{kind} {key!r}: {container.get(key) if isinstance(container, dict) else ''!r:.60}"


def _hdf5(path: Path, rng: random.Random) -> str:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        item = file[name]
        attributes = [(one, key) for one in (file, *map(file.get, names)) for key in one.attrs]
        kind = rng.choice(["delete", "replace", "shape", "values", "attribute", "link", "group", "attribute"])
        if kind == "attribute" and attributes:
            owner, key = rng.choice(attributes)
            value = rng.choice([v for v in VALUES if not isinstance(v, dict | list) and v != "\0" and v != 10**30])
            del owner.attrs[key]
            if rng.random() < 0.8 and value is not None:
                owner.attrs[key] = value
            return f"attribute {key} of {owner.name}: {value!r:.60}"
        shape = item.shape if isinstance(item, h5py.Dataset) else (5, 2)
        old = item[()] if isinstance(item, h5py.Dataset) else np.zeros(shape)
        del file[name]
        if kind == "replace":
            dtype = rng.choice([
                "f2", "f8", "i8", "u1", "S3", "c8", "b1", [("a", "f4"), ("b", "i4")], h5py.string_dtype(),
                h5py.vlen_dtype("f4"), h5py.ref_dtype, h5py.enum_dtype({"A": 0}, "i4"),
            ])  # fmt: skip
            file.create_dataset(name, shape, dtype=dtype)
            return f"replace {name} by {dtype}"
        if kind == "shape":
            rows = shape[0] if shape else 1
            shape = rng.choice([(), (0,), (rows + 1, *shape[1:]), (max(rows - 1, 0), *shape[1:]), (rows, 1, *shape[1:]),
                                (*shape[1:], rows), (rows,), (rows, 0)])  # fmt: skip
            if rng.random() < 0.3:
                shape = (10**9, *(max(n, 1) for n in shape[1:])) if rng.random() < 0.5 else (max(rows, 1), 10**9)
                file.create_dataset(name, shape, "f4", chunks=(1,) * len(shape))
            else:
                file.create_dataset(name, shape, "f4")
            return f"shape of {name}: {shape}"
        if kind == "values" and np.asarray(old).dtype.kind in "biuf":
            value = rng.choice([np.nan, np.inf, -np.inf, 1e38, -1e300])
            file[name] = np.full(np.shape(old), value)
            return f"values of {name}: {value}"
        if kind == "link":
            external = rng.random() < 0.5
            file[name] = h5py.ExternalLink("other.hdf5", "/x") if external else h5py.SoftLink(f"/{name}")
        elif kind == "group":
            file.create_group(name)
        return f"{kind} {name}"


def _yaml(path: Path, rng: random.Random) -> str:
    text = path.read_text()
    lines = text.splitlines()
    kind = rng.choice(["bomb", "deep", "tag", "line", "line", "line", "value", "value", "value", "recursive", "merge"])
    if kind == "bomb":
        text = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)) + text
    elif kind == "merge":
        text = (
            "m0: &m0 {a: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 40)) + text
        )
    elif kind == "recursive":
        text += "self: &self [*self]\n"
    elif kind == "deep":
        text += "deep: " + "[" * rng.choice([200, 5000]) + "\n"
    elif kind == "tag":
        text += f"tag: !!python/object/apply:os.mkdir [{path.parent / MARKER}]\n"
    elif kind == "line":
        line = rng.choice([": x", "- x", "\t", "%", "? a", "{", "${oc.env:HOME}", "a: ${b}", "a: ${.a}", "defaults: 5",
                           "defaults: [{a: b}]", "defaults: [x]", "seeds: 99999999999999999999", "1: 2", "null: 3",
                           "seeds: 2001-99-99", "? [a]\n: b", "stages: {a: 1}", "tasks: [[1]]", "pretrain: 5",
                           "pretrain: [1]", "extract: null", "x: !!float a", "x: !!int ''", "y: 0x", "a: ?", "=: 1",
                           "hydra: {run: 1}", "extract: ${extract}", "seeds: ${seeds}", "- ? x"])  # fmt: skip
        lines[rng.randrange(len(lines))] = line
        text = "\n".join(lines) + "\n"
    else:
        index = rng.randrange(len(lines))
        lines[index] = lines[index].partition(":")[0] + ": " + json.dumps(rng.choice(VALUES[:-3]))
        text = "\n".join(lines) + "\n"
    path.write_text(text)
    return kind


def _npz(path: Path, rng: random.Random) -> str:
    with np.load(path) as file:
        arrays = dict(file)
    name = rng.choice(sorted(arrays))
    old, kind = arrays[name], rng.choice(["delete", "dtype", "values", "shape", "declared", "compressed", "object"])
    if kind == "delete":
        del arrays[name]
    elif kind == "dtype":
        arrays[name] = old.astype(rng.choice(["f4", "i2", "U5", "c8", "u8"]))
    elif kind == "values":
        arrays[name] = rng.choice([old[::-1], old * 0, old + 10**6, old[:0]]) if old.dtype != bool else ~old
    elif kind == "shape":
        arrays[name] = rng.choice([old[None], old[:-1], np.concatenate([old, old]), old[0]])
    elif kind == "object":
        arrays[name] = np.array([print, None], object) if rng.random() < 0 else np.array([None, 1], object)
    (np.savez_compressed if kind == "compressed" else np.savez)(path, **arrays)
    if kind == "declared":
        header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"
        with zipfile.ZipFile(path, "w") as archive:
            for each in arrays:
                archive.writestr(f"{each}.npy", header.ljust(127) + b"\n")
    return f"{kind} {name}"


class _Executed:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def _torch(path: Path, rng: random.Random) -> str:
    content = torch.load(path, weights_only=True)
    kind = rng.choice(["payload", "crc", "crc", "crc", "wide", "protocol", "zip", "legacy"])
    tensors = content.get("model", content)
    if kind == "crc":  # a bit of a tensor, past what zip's own structure would show
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data) // 10, len(data) * 9 // 10)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "payload":
        tensors[rng.choice(list(tensors))] = _Executed(str(path.parent / MARKER))
        torch.save(content, path)
    elif kind == "wide":
        tensors[rng.choice(list(tensors))] = torch.zeros(1).expand(10**10)
        torch.save(content, path)
    elif kind == "protocol":
        path.write_bytes(pickle.dumps(_Executed(str(path.parent / MARKER))))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(rng.choice(["x/data.pkl", "data.pkl", "a"]), rng.randbytes(50))
    else:
        torch.save({"model": "x" * 50}, path, _use_new_zipfile_serialization=False)
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    return kind


def clear(folder: Path) -> None:
    """Remove a damaged folder, whatever lies in it."""
    shutil.rmtree(folder, ignore_errors=True)
