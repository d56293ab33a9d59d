"""Accelerators by name, the same in every stage's settings: `auto`, `cpu`, and `cuda`, for which `gpu` may stand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, StageError

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("auto", "cpu", "cuda", "gpu")
PRECISIONS = ("auto", "32-true", "bf16-mixed")
"""Names of `autocast`."""
LEAST_AUTO_WIDTH = 384
"""Of the layers that `auto` narrows. Below it, conversions may take more than the products gain: a single policy of
width 128 takes 1.3 times as long."""


def check_accelerator(config: Any) -> None:
    """Raise a ConfigError if `config.accelerator` is none of ACCELERATORS."""
    if config.accelerator not in ACCELERATORS:
        raise ConfigError(
            f"accelerator: expected auto, cpu, cuda or gpu (alias of cuda), found {config.accelerator!r}; only GPUs "
            "that PyTorch calls cuda (NVIDIA, AMD with ROCm) are supported"
        )


def wants_gpu(accelerator: str) -> bool:
    """Whether it names a GPU that has to be there."""
    return accelerator in ("cuda", "gpu")


def device_of(accelerator: str) -> torch.device:
    """The device that an accelerator names on this machine.

    Raises:
        StageError: it names a GPU, and there is none.
    """
    import torch

    check_gpu(accelerator)
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def check_gpu(accelerator: str, key: str = "accelerator", devices: int = 1) -> None:
    """Raise a StageError if a GPU is named that this machine lacks.

    Args:
        key: the setting, for the message.
        devices: GPUs that are needed; also with `auto`, where there is at least one.
    """
    if not wants_gpu(accelerator) and (devices == 1 or accelerator == "cpu"):
        return
    import torch

    if wants_gpu(accelerator) and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = (
            "PyTorch finds no GPU (see nvidia-smi and CUDA_VISIBLE_DEVICES)"
            if built
            else f"PyTorch {torch.__version__} is a build without CUDA"
        )
        raise StageError(
            f"{key} is {accelerator}, but no GPU is available: {reason}. Set {key}=cpu, or auto to use a GPU if there "
            "is one"
        )
    if devices > 1 and 0 < torch.cuda.device_count() < devices:
        raise StageError(
            f"{key} is {accelerator} with {devices} devices, but PyTorch finds {torch.cuda.device_count()} here; use "
            f"at most that many devices, or {key}=cpu"
        )


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions that multiply bfloat16 matrices: AVX512-BF16 or AMX (as Linux says)."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def narrows(precision: str, device: torch.device, width: int) -> bool:
    """Whether matrix products are narrowed to bfloat16: if `precision` is bf16-mixed, or auto on a CPU that multiplies
    such matrices and layers of `width` that gain by it."""
    if precision != "auto":
        return precision == "bf16-mixed"
    return device.type == "cpu" and width >= LEAST_AUTO_WIDTH and multiplies_bfloat16()


def autocast(precision: str, device: torch.device, width: int) -> AbstractContextManager[Any]:
    """Within, matrix products are narrowed if `narrows` says so.

    Weights are narrowed anew for each product: kept, they would outlast an optimiser step.
    """
    import torch

    narrow = narrows(precision, device, width)
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False) if narrow else nullcontext()


@contextmanager
def matmul_precision(precision: str = "") -> Iterator[None]:
    """Leave the precision of float32 matrix products afterwards as it was before, whatever sets it meanwhile.

    Args:
        precision: within; highest, high (TF32 on a GPU) or medium. Empty begins with that of before.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision or before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
