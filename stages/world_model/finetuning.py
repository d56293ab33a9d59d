"""Training of a model that has learned new tasks' rows and columns: what of it learns, and where a new row starts.

Dimension letters: K tasks, J old tasks, E task embedding, D latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from .config import LossConfig
from .module import WorldModelTraining
from .networks import WorldModel
from .objective import rollout_losses

LEVELS: Mapping[str, tuple[str, ...]] = {
    "embedding": (),
    "heads": ("reward", "continue_head", "values", "policy_prior"),
    "dynamics": ("dynamics", "action_dynamics", "disagreement_heads"),
    "everything": ("encoder", "task_embedding"),
}
"""Parts of the model that learn, each level with those before it. What is new in the model always learns."""


def learning_masks(model: WorldModel, fresh: Mapping[str, torch.Tensor], train: str) -> dict[str, torch.Tensor | None]:
    """What learns of every parameter that does: None for all of it, else 1 where it does, of its shape.

    Args:
        fresh: as `expand_model` gives it.
        train: one of LEVELS.
    """
    levels = list(LEVELS)
    learning = {part for level in levels[: levels.index(train) + 1] for part in LEVELS[level]}
    masks: dict[str, torch.Tensor | None] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".", 1)[0]
        if part == "target_values":  # they follow the values
            continue
        if part in learning:
            masks[name] = None
        elif bool(fresh[name].any()):
            masks[name] = fresh[name].to(parameter.dtype)
    return masks


def initial_rows(
    model: WorldModel, old_tasks: int, rule: str, batches: Sequence[Sequence[TensorDict]], loss: LossConfig
) -> list[dict[str, Any]]:
    """Set the new rows of the task embedding, and say how.

    nearest: the row of the old task whose row gives the smallest loss on the new task's data, with everything else the
    new task's own (scaling, action components): the open-loop training loss of consistency, reward and end of episode,
    without values. mean: of the old rows. random: as drawn.

    Args:
        old_tasks: J; rows from there on are new.
        batches: of windows, for each new task.
    Returns:
        for each new task: rule; and with nearest, the old task's name and `losses` by old task.
    """
    weight = model.task_embedding.weight
    said: list[dict[str, Any]] = []
    for k, own in enumerate(batches, old_tasks):
        entry: dict[str, Any] = {"rule": rule}
        with torch.no_grad():
            if rule == "mean":
                weight[k] = weight[:old_tasks].mean(0)
            elif rule == "nearest":
                losses_J = row_losses(model, k, old_tasks, own, loss)
                j = int(losses_J.argmin())
                weight[k] = weight[j]
                names = model.table.names[:old_tasks]
                entry |= {"nearest": names[j], "losses": dict(zip(names, losses_J.tolist(), strict=True))}
        said.append(entry)
    return said


@torch.no_grad()
def row_losses(
    model: WorldModel, k: int, old_tasks: int, batches: Sequence[TensorDict], loss: LossConfig
) -> torch.Tensor:
    """[J]: mean loss over `batches`, all of task k, with each old row in place of its own, which is kept."""
    weight, training = model.task_embedding.weight, model.training
    own = weight[k].clone()
    ones_K = torch.ones(len(model.table), device=weight.device)
    model.eval()
    losses = []
    for j in range(old_tasks):
        weight[k] = weight[j]
        totals = [rollout_losses(model, batch, loss, ones_K)[0]["total"] for batch in batches]
        losses.append(torch.stack(totals).mean())
    weight[k] = own
    model.train(training)
    return torch.stack(losses)


class Finetuning(WorldModelTraining):
    """`WorldModelTraining` in which a part of the model learns, to the element; the rest keeps its bits."""

    def __init__(self, model: WorldModel, masks: Mapping[str, torch.Tensor | None], *args: Any, **kwargs: Any) -> None:
        """Args:
        masks: as `learning_masks` gives them.
        args, kwargs: of WorldModelTraining, after the model.
        """
        super().__init__(model, *args, **kwargs)
        self._masked: dict[str, str] = {}
        for number, (name, parameter) in enumerate(model.named_parameters()):
            in_prior = name.startswith("policy_prior.")  # has its own optimiser, which switches it on
            if not in_prior:
                parameter.requires_grad_(name in masks)
            mask = masks.get(name)
            if name in masks and mask is None:
                continue
            if in_prior or mask is not None:
                self._masked[name] = f"_mask_{number}"
                self.register_buffer(self._masked[name], torch.zeros(()) if mask is None else mask, persistent=False)
        rows = masks.get("task_embedding.weight")
        kept = 0 if rows is None else int((rows.amax(-1) == 0).sum())
        self.register_buffer("_kept_rows", model.task_embedding.weight[:kept].detach().clone(), persistent=False)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Before clipping: what does not learn has no part in the norm. Adam moves nothing whose gradient was always 0.
        for name, mask in self._masked.items():
            gradient = self.model.get_parameter(name).grad
            if gradient is not None:
                gradient.mul_(getattr(self, mask))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():  # a row of length 1 can lose its last bit when it is renormalised
            self.model.task_embedding.weight[: len(self._kept_rows)] = self._kept_rows
