"""Optimiser and trainer configs. Reading them imports no torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from ...pipeline.accelerator import check_accelerator
from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_positive, check_shares
from ...pipeline.errors import ConfigError

PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")
"""auto, and Lightning's precisions that keep weights in float32, the format of the files and their readers."""


LOGGERS = {"csv": "", "tensorboard": "", "wandb": "wandb", "mlflow": "mlflow"}
"""Names of loggers, with the package and extra that they need."""


def check_loggers(config: Any) -> None:
    """Raise a ConfigError if `loggers` names an unknown one, or one twice."""
    names = config.loggers or []
    if unknown := [name for name in names if name not in LOGGERS]:
        raise ConfigError(f"loggers: expected some of {', '.join(LOGGERS)}, found {unknown[0]!r}")
    if len(set(names)) < len(names):
        raise ConfigError(f"loggers must not repeat: {', '.join(names)}")


def check_loggers_installed(config: Any, stage: str) -> None:
    """Raise a ConfigError, before anything runs, if the package of a logger is not installed."""
    for name in config.loggers or ():
        if LOGGERS[name] and importlib.util.find_spec(LOGGERS[name]) is None:
            raise ConfigError(
                f"{stage}.loggers has {name}, which is not installed: pip install 'orrery[{LOGGERS[name]}]', or leave "
                "it out"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam as in TD-MPC2. The policy prior has its own optimiser, with eps 1e-5."""

    lr: float = 3e-4
    """Learning rate."""
    encoder_lr_scale: float = 0.3
    """Factor on `lr` for the encoder."""
    clip_norm: float = 20.0
    """Maximum global gradient norm."""
    final_lr_scale: float = 1.0
    """Linear schedule: the learning rate at the last step is `lr` times this; 1 = constant."""

    def __post_init__(self) -> None:
        check_positive(self, "lr", "clip_norm")
        check_not_negative(self, "encoder_lr_scale")
        check_shares(self, "final_lr_scale")


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of lightning.Trainer."""

    accelerator: str = "auto"
    """Device: cpu, cuda (alias gpu), or auto (a GPU if there is one)."""
    devices: int = 1
    """Processes per node, one per GPU or CPU rank."""
    nodes: int = 1
    """Number of nodes. With several nodes, or under srun or torchrun, start the command once per device; all processes
    must see the run folder."""
    strategy: str = "auto"
    """Lightning's strategy; auto uses ddp_spawn for several devices."""
    precision: str = "32-true"
    """32-true, 16-mixed, bf16-mixed or auto: bf16-mixed on a CPU with AVX512-BF16 or AMX if the model's layers are at
    least 384 wide, else 32-true. Mixed precisions narrow matrix products only; weights, norms and losses stay in 32
    bit. On a GPU, 32-true multiplies matrices in TF32, as TD-MPC2 does."""
    compile: bool = False
    """Compile the model's losses with torch.compile. For GPUs: on a CPU the first step takes minutes and the speed-up
    is small."""
    accumulate: int = 1
    """Micro-batches per optimiser step."""
    log_every: int = 25
    """Steps between logged losses."""

    def __post_init__(self) -> None:
        check_counts(self, "devices", "nodes", "accumulate", "log_every")
        check_accelerator(self)
        check_choices(self, precision=PRECISIONS)
        if self.devices > 1 and self.strategy in ("ddp", "fsdp", "deepspeed"):
            raise ConfigError(
                f"strategy {self.strategy!r} would start the whole command once per device, but the run folder is "
                "locked; use ddp_spawn"
            )

    @property
    def launched_strategy(self) -> str:
        """The strategy passed to Lightning."""
        return "ddp_spawn" if self.strategy == "auto" and self.devices > 1 else self.strategy


TRAINING_NOT_HASHED = (
    "trainer.accelerator", "trainer.strategy", "trainer.compile", "trainer.log_every",
    "load_up_to_gb", "validate_every", "checkpoint_every", "loggers",
)  # fmt: skip
"""`Stage.not_hashed` of stages that train with Lightning. trainer.devices and trainer.nodes are hashed, because each
device draws its own batch."""
