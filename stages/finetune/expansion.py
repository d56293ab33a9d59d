"""A pretrained model over a longer table of tasks: what it does on its own tasks stays as it is.

Every tensor keeps its numbers, at the places that the wider table gives them. What is new is zero: input columns of
larger observations and actions, and the policy prior's outputs for further action components. Inputs of the old tasks
are zero there (padding), so their outputs are the same: bit for bit where the widths are, up to the rounding of a
longer sum where they grow.

Dimension letters: K tasks, O observation, A action, E task embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...datasets.schema import TaskSpec, TaskTable
from ..world_model.networks import WorldModel

PRIOR_OUTPUT = "policy_prior.2."
"""Means of an action's components, then log standard deviations."""


def expand_model(old: WorldModel, new: Sequence[TaskSpec]) -> tuple[WorldModel, dict[str, torch.Tensor]]:
    """A model of the old tasks and then the new ones, with weights that can be trained.

    The new rows of the task embedding are drawn as for a new model, U(-0.02, 0.02), from the global random stream; so
    is a continue head, where the old tasks never terminate and a new one does.

    Returns:
        the model; and by the name of each of its tensors, where in it there are numbers that the old model does not
        have: bool, of the tensor's shape.
    """
    table = TaskTable([*old.table, *new])
    model = WorldModel(old.config, table)
    source = old.state_dict()
    fresh = {}
    for name, value in model.state_dict().items():  # these share the model's memory
        fresh[name] = torch.ones_like(value, dtype=torch.bool)
        if name not in source:
            continue
        places = torch.meshgrid(
            *_places(name, source[name], old.table, table, old.config.observation_parts), indexing="ij"
        )
        if name not in ("task_embedding.weight", "observation_scale_KO"):
            value.zero_()
        value[places] = source[name].to(value)
        fresh[name][places] = False
    return model, fresh


def _places(name: str, value: torch.Tensor, old: TaskTable, new: TaskTable, parts: int) -> list[torch.Tensor]:
    """Index in the wider tensor of every index of the old one, along each dimension."""
    places = [torch.arange(size) for size in value.shape]
    if name == "encoder.layers.0.linear.weight":  # (observation, its sine and cosine if there are, task embedding)
        places[-1] = _shifted(places[-1], old.observation_dim, new.observation_dim, parts)
    elif name == "action_dynamics.embed_action.weight":  # (action, task embedding)
        places[-1] = _shifted(places[-1], old.action_dim, new.action_dim)
    elif name.startswith(PRIOR_OUTPUT):
        places[0] = _shifted(places[0], old.action_dim, new.action_dim)
    return places


def _shifted(places: torch.Tensor, old: int, new: int, parts: int = 1) -> torch.Tensor:
    """Each of the first `parts` runs of `old` places widens to `new`; what stands after it moves."""
    return places + (places // old).clamp(max=parts) * (new - old)
