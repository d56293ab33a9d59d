"""Training of a model that has learned new tasks' rows and columns: what of it learns, and where a new row starts.

Dimension letters: K tasks, J old tasks, E task embedding, D latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict

from ..world_model.module import WorldModelTraining
from ..world_model.networks import WorldModel

LEVELS: Mapping[str, tuple[str, ...]] = {
    "embedding": (),
    "heads": ("reward", "continue_head", "values", "policy_prior"),
    "dynamics": ("dynamics", "action_dynamics", "disagreement_heads"),
    "everything": ("encoder", "task_embedding"),
}
"""Parts of the model that learn, each level with those before it. What is new in the model always learns."""


def learning_masks(model: WorldModel, fresh: Mapping[str, torch.Tensor], train: str) -> dict[str, torch.Tensor | None]:
    """What learns of every parameter that does: None for all of it, else 1 if it does, of its shape.

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


@dataclass(frozen=True)
class Candidate:
    """A way to begin a new task: as an old one."""

    task: int
    scaled_as_old: bool
    """With the old task's scaling of observations, not that of the new data."""
    error: float
    """See `relative_error`."""


@torch.no_grad()
def begin_rows(
    model: WorldModel, old_tasks: int, rule: str, scaling: str, batches: Sequence[Sequence[TensorDict]]
) -> list[dict[str, Any]]:
    """Set the new rows of the task embedding and the scaling of their observations, and say how.

    nearest: the row of the old task as which the model predicts the new data best, by `relative_error`. Each is tried
    with the scaling of the new data and, with scaling `best`, with the old task's where its observations have as many
    components; the better one stays. mean: of the old rows. random: as drawn; both with the new data's scaling.

    Args:
        old_tasks: J; rows from there on are new, and scaled by their own data.
        batches: of windows, for each new task.
    Returns:
        for each new task: rule; and with nearest, the old task, whose scaling it has, and the errors by old task.
    """
    weight = model.task_embedding.weight
    said: list[dict[str, Any]] = []
    for k, own in enumerate(batches, old_tasks):
        entry: dict[str, Any] = {"rule": rule, "scaling": "own"}
        if rule == "mean":
            weight[k] = weight[:old_tasks].mean(0)
        elif rule == "nearest":
            tried = try_rows(model, k, old_tasks, scaling, own)
            best = min(tried, key=lambda one: one.error)
            _become(model, k, best)
            names = model.table.names
            errors: dict[str, float] = {}
            for one in sorted(tried, key=lambda one: -one.error):
                errors[names[one.task]] = one.error
            entry |= {"nearest": names[best.task], "errors": dict(sorted(errors.items(), key=lambda pair: pair[1]))}
            entry["scaling"] = "nearest" if best.scaled_as_old else "own"
        said.append(entry)
    return said


@torch.no_grad()
def try_rows(model: WorldModel, k: int, old_tasks: int, scaling: str, batches: Sequence[TensorDict]) -> list[Candidate]:
    """The error of task k's data as each old task; the model is left as it was."""
    kept = [tensor[k].clone() for tensor in _rows(model)]
    size = model.table[k].observation_dim
    tried = []
    for j in range(old_tasks):
        for scaled_as_old in (False, True):
            if scaled_as_old and (scaling == "own" or model.table[j].observation_dim != size):
                continue
            _become(model, k, Candidate(j, scaled_as_old, 0.0))
            tried.append(Candidate(j, scaled_as_old, relative_error(model, batches)))
            for tensor, row in zip(_rows(model), kept, strict=True):
                tensor[k] = row
    return tried


def _rows(model: WorldModel) -> list[torch.Tensor]:
    scaling = [model.observation_mean_KO, model.observation_scale_KO, model.angle_KO]
    return [model.task_embedding.weight, *(tensor for tensor in scaling if tensor is not None)]


def _become(model: WorldModel, k: int, one: Candidate) -> None:
    for tensor in _rows(model)[: None if one.scaled_as_old else 1]:
        tensor[k] = tensor[one.task]


@torch.no_grad()
def relative_error(model: WorldModel, batches: Sequence[TensorDict]) -> float:
    """Open-loop error of the latents, in that of predicting that nothing changes.

        sum_t |z_t - encode(o_t)|^2 / sum_t |z_0 - encode(o_t)|^2,    t = 1..T,  z_0 = encode(o_0)

    Relative, because a row that maps all states to nearly the same latent has a small error whatever it predicts. The
    reward is left out: a new task on a known body has new rewards.
    """
    training = model.training
    model.eval()
    error = change = 0.0
    for batch in batches:
        task, action = batch["task"], batch["action"].transpose(0, 1)
        z = model.rollout(model.encode(batch["observation"][:, 0], task), action, task)
        target = model.encode(batch["observation"].transpose(0, 1)[1:], task.expand(len(action), -1))
        valid = batch["valid"].T[..., None]
        error += float(((z[1:] - target).square() * valid).sum())
        change += float(((z[:1] - target).square() * valid).sum())
    model.train(training)
    return error / max(change, 1e-12)


class Finetuning(WorldModelTraining):
    """`WorldModelTraining` in which a part of the model learns, to the element; the rest keeps its bits."""

    _kept_rows: torch.Tensor

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
