"""Configs of training by Lightning: what an optimiser does, and on which devices. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.accelerator import check_accelerator
from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_positive, check_shares
from ...pipeline.errors import ConfigError

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Lightning's that keep weights in float32, as the files and whatever reads them have them."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam as in TD-MPC2; the policy prior has its own, with eps 1e-5."""

    lr: float = 3e-4
    """Learning rate."""
    encoder_lr_scale: float = 0.3
    """The encoder learns at lr times this."""
    clip_norm: float = 20.0
    """Global gradient norm is clipped to this."""
    final_lr_scale: float = 1.0
    """lr falls linearly to lr times this at the last step; 1 is constant."""

    def __post_init__(self) -> None:
        check_positive(self, "lr", "clip_norm")
        check_not_negative(self, "encoder_lr_scale")
        check_shares(self, "final_lr_scale")


@dataclass(frozen=True)
class TrainerConfig:
    """Passed to lightning.Trainer."""

    accelerator: str = "auto"
    """cpu, cuda (or gpu, the same), or auto: a GPU where there is one."""
    devices: int = 1
    """Processes of this node, one per GPU or CPU rank."""
    nodes: int = 1
    """Machines. With several, or under srun or torchrun, the command is started once for each device of each node, and
    all see the run folder."""
    strategy: str = "auto"
    """As Lightning names them; auto is ddp_spawn for several devices."""
    precision: str = "32-true"
    """32-true, 16-mixed or bf16-mixed. On a GPU, 32-true multiplies matrices in TF32, as TD-MPC2 does."""
    compile: bool = False
    """Compile the model's losses with torch.compile, as one graph. For a GPU: on a CPU the first step takes minutes and
    the others hardly less than without."""
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
                f"strategy {self.strategy!r} starts the whole command again for each device, which the lock of the run "
                "folder refuses; use ddp_spawn"
            )

    @property
    def launched_strategy(self) -> str:
        """What Lightning is given."""
        return "ddp_spawn" if self.strategy == "auto" and self.devices > 1 else self.strategy


TRAINING_NOT_HASHED = (
    "trainer.accelerator", "trainer.strategy", "trainer.compile", "trainer.log_every",
    "load_up_to_gb", "validate_every", "checkpoint_every",
)  # fmt: skip
"""`Stage.not_hashed` of stages that train with Lightning. trainer.devices and trainer.nodes are hashed, because each
device draws its own batch."""
