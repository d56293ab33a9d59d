"""A device that is not there: meta tensors in place of a GPU's, with what a GPU would refuse and wait for.

What runs under `Device` on "meta" computes shapes alone. Tensors of different devices that meet are an error, as on a
GPU, and so is a random number generator of another device. Where the host would wait for the GPU to hand a number over,
a made-up one is handed over and the place is kept in `waits`. Private to the tests.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = str(Path(__file__).parents[2])
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
_own_generator = torch.Generator


class Generator(_own_generator):
    """A generator of the CPU that knows for which device it was asked."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls)
        made.stands_for = torch.device(device).type
        return made

    @property
    def device(self) -> torch.device:
        return torch.device(self.stands_for)


class Device(TorchDispatchMode):
    """Everything on the stand-in runs inside `with Device(monkeypatch) as device`."""

    name = "meta"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._functions = _Functions(self)
        monkeypatch.setattr(torch, "Generator", Generator)
        autocast = torch.autocast
        monkeypatch.setattr(torch, "autocast", lambda kind, **k: autocast("cpu" if kind == "meta" else kind, **k))
        optimizer = sys.modules[torch.optim.Optimizer.__module__]
        fused = optimizer._get_fused_kernels_supported_devices
        monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), "meta"])

    def __enter__(self) -> Device:
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def wait(self, what: Any) -> None:
        """Keep the place in the project that makes the host wait."""
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOT)]
        own = [frame for frame in frames if "/tests/" not in frame.filename]
        place = f"{own[-1].filename.removeprefix(ROOT)}:{own[-1].lineno} {own[-1].line}" if own else "a test"
        self.waits.append(f"{what} at {place}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = any(tensor.is_meta for tensor in tensors)
        if func in COPIES:
            return self._copy(func, args, kwargs, tensors)
        if there:
            if func is aten._local_scalar_dense.default:
                self.wait(func)
                return True if args[0].dtype == torch.bool else 1 if not args[0].is_floating_point() else 1.0
            if func is aten.nonzero.default:
                self.wait(func)
                return torch.zeros(args[0].numel(), args[0].dim(), dtype=torch.int64, device="meta")
            if func is aten.unique_dim.default:
                self.wait(func)
                inverse = torch.zeros(args[0].shape[args[1]], dtype=torch.int64, device="meta")
                return torch.empty_like(args[0]), inverse, torch.zeros_like(inverse)
            if func is aten.equal.default:
                self.wait(func)
                return True
            if func in INDEXED:
                self._index(func, args)
                args = (args[0], [_moved(index) for index in args[1]], *args[2:])
                tensors = [args[0], *(value for value in args[2:3] if isinstance(value, torch.Tensor))]
            places = {tensor.device.type for tensor in tensors if tensor.dim() or tensor.is_meta}
            if len(places) > 1:
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {sorted(places)}")
        return func(*args, **kwargs)

    def _copy(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> Any:
        if func is aten.copy_.default:
            target, source = args[:2]
            if target.device == source.device:
                return func(*args, **kwargs)
            if not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking"):
                self.wait(func)
            return target if target.is_meta else target.zero_()
        source, device = args[0], torch.device(kwargs.get("device") or args[0].device)
        if device.type == source.device.type:
            return func(*args, **kwargs)
        if device.type == "cpu" or not kwargs.get("non_blocking"):
            self.wait(func)
        return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=device)

    def _index(self, func: Any, args: Any) -> None:
        for index in args[1]:
            if index is None:
                continue
            if not index.is_meta and args[0].is_meta and index.dim():
                self.wait(f"{func} by indices of the CPU")
            if index.dtype in (torch.bool, torch.uint8):
                self.wait(f"{func} by a mask")


def _moved(index: torch.Tensor | None) -> torch.Tensor | None:
    """As an index of the stand-in; a mask as if it were true everywhere."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return index if index is None else index.to("meta")
    return torch.zeros(index.numel(), dtype=torch.int64, device="meta")


class _Functions(TorchFunctionMode):
    """What a dispatch mode does not see: that `torch.tensor(values, device=...)` copies and waits, and which generator
    is used."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "meta":
            self._device.wait(func.__name__)
        if isinstance(kwargs.get("generator"), Generator):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            place = torch.device(kwargs.get("device") or (tensors[0].device if tensors else "cpu")).type
            if place != kwargs["generator"].stands_for:
                found = kwargs["generator"].stands_for
                raise RuntimeError(f"{func.__name__}: expected a generator of {place!r} but found one of {found!r}")
        return func(*args, **kwargs)
