"""Which world models TD-MPC2's own code can hold. Needs no torch, so that it is said before a model is trained."""

from __future__ import annotations

from ...pipeline.errors import CheckpointError
from .config import WorldModelConfig


def check_tdmpc2_can_hold(
    config: WorldModelConfig, where: str, *, scaled: bool, tasks: int = 1, terminates: bool = False
) -> None:
    """Raise a CheckpointError with all that TD-MPC2 has no place for or computes otherwise, and what to set instead.

    Args:
        config: complete, without widths of -1.
        where: the model, for the message.
        scaled: observations are.
        tasks: of its table, as far as they are known.
        terminates: one of them can end in a terminal state.
    """
    several_tasks = tasks > 1 and not config.task_dim
    reasons = {
        "it has neither values nor policy prior": (not config.num_q, "num_q=5"),
        f"its activation is {config.activation}, not mish": (config.activation != "mish", "activation=mish"),
        f"its latent ends in {config.latent}, not simnorm": (config.latent != "simnorm", "latent=simnorm"),
        f"its dynamics are {config.dynamics}, not step": (config.dynamics != "step", "dynamics=step"),
        "it has disagreement_heads": (config.disagreement_heads > 0, "disagreement_heads=0"),
        "it scales observations": (scaled, "normalize_observations=false"),
        "it reads sines and cosines": (config.wrap_angles, "wrap_angles=false"),
        "its encoder has one layer, fewer than two": (config.encoder_layers < 2, "encoder_layers=2"),
        "it has several tasks but no task embedding": (several_tasks, "task_dim=96"),
        "it predicts terminations with a task embedding": (terminates and bool(config.task_dim), "task_dim=0"),
    }
    if found := {reason: setting for reason, (holds, setting) in reasons.items() if holds}:
        settings = " ".join(f"pretrain.model.{setting}" for setting in found.values())
        raise CheckpointError(f"TD-MPC2 cannot represent {where}: {'; '.join(found)}. Pretrain one with {settings}")
