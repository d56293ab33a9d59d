"""Generated data: short episodes imagined by a sequence model from states of the data, as Dyna adds them to it.

    s_0 from the data,   a_t from a policy, from elsewhere in the data, or uniform, with noise on top,
    s_{t+1} ~ model(s_t, a_t),   r_t = r(s_t, a_t, s_{t+1})

A Markov model with likelihood gaussian is sampled from; all others predict one next observation.

Dimension letters: N episodes, T steps, O observation, A action.
Source: Sutton (1990), Dyna; short branches from real states: Janner et al. (arXiv 1906.08253), section 5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ...datasets.schema import TaskSpec
from ...datasets.store import TaskRows
from ...pipeline.errors import DatasetError, StageError
from ..sequence_model.dynamics import ModelDynamics
from ..sequence_model.episodes import Episodes
from ..sequence_model.networks import MarkovModel

Choose = Callable[[int, torch.Tensor], torch.Tensor]
"""Actions [N, A] at step t in observations [N, O], environment units."""


@torch.no_grad()
def generate(
    dynamics: ModelDynamics, start_NO: torch.Tensor, choose: Choose, length: int, generator: torch.Generator
) -> Episodes:
    """N episodes of `length` steps from these observations of the task's own width.

    Raises:
        ConfigError: longer than the model has learned to predict.
        StageError: a prediction is not finite.
    """
    model, observation_NO = dynamics.model, start_NO
    sampled = isinstance(model, MarkovModel) and model.config.likelihood == "gaussian"
    _first, carry = dynamics.begin(start_NO)
    observations, actions, rewards = [start_NO], [], []
    for t in range(length):
        action_NA = choose(t, observation_NO)
        if sampled:
            following_NO = _sample(dynamics, observation_NO, action_NA, generator)
        else:
            following_NO, carry = dynamics.advance(carry, action_NA)
        rewards.append(dynamics.reward(observation_NO, action_NA, following_NO))
        if not (torch.isfinite(following_NO).all() and torch.isfinite(rewards[-1]).all()):
            raise StageError(
                f"task {dynamics.spec.name!r}: the model's prediction is not finite {t + 1} steps from the data; "
                "generate shorter episodes (dyna.length), or train the model for longer"
            )
        observations.append(following_NO)
        actions.append(action_NA)
        observation_NO = following_NO
    return Episodes(torch.stack(observations, 1), torch.stack(actions, 1), torch.stack(rewards, 1))


def _sample(
    dynamics: ModelDynamics, observation_NO: torch.Tensor, action_NA: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    model, spec = dynamics.model, dynamics.spec
    assert isinstance(model, MarkovModel)
    task_N = torch.full((len(observation_NO),), dynamics.task_id)
    padded_NO = F.pad(observation_NO, (0, model.table.observation_dim - spec.observation_dim))
    padded_NA = F.pad(action_NA, (0, model.table.action_dim - spec.action_dim))
    mean_NO, std_NO = model.next_distribution(padded_NO, padded_NA, task_N)
    noise_NO = torch.randn(mean_NO.shape, generator=generator)
    return (mean_NO + std_NO * noise_NO)[:, : spec.observation_dim]


def explored(choose: Choose, spec: TaskSpec, level_N1: torch.Tensor, generator: torch.Generator) -> Choose:
    """`choose` with noise of level `level_N1` [N, 1]: the standard deviation of a Gaussian on continuous actions, the
    probability of a uniform choice where they are discrete."""

    def noisy(t: int, observation_NO: torch.Tensor) -> torch.Tensor:
        action_NA = choose(t, observation_NO)
        if spec.action_kind == "continuous":
            return (action_NA + level_N1 * torch.randn(action_NA.shape, generator=generator)).clamp(-1, 1)
        other_NA = uniform_actions(spec, len(action_NA), generator)
        return torch.where(torch.rand(level_N1.shape, generator=generator) < level_N1, other_NA, action_NA)

    return noisy


def uniform_actions(spec: TaskSpec, count: int, generator: torch.Generator) -> torch.Tensor:
    """[N, A], uniform over [-1, 1] or over the choices."""
    if spec.action_kind == "discrete":
        return F.one_hot(torch.randint(spec.action_dim, (count,), generator=generator), spec.action_dim).float()
    return torch.rand(count, spec.action_dim, generator=generator) * 2 - 1


def starts_and_actions(
    rows: TaskRows, observation_dim: int, count: int, length: int, held_out: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations [N, O_task] anywhere in the data, and action sequences [N, T, A_task] from anywhere else in it.

    Args:
        observation_dim: O of the store's table.
        held_out: share of the episodes that is left out, as `TaskRows.held_out` chooses them.
    Raises:
        DatasetError: no episode of the data is as long.
    """
    spec, data = rows.spec, rows.rows
    kept = ~rows.held_out(held_out)
    first = torch.cat([
        torch.arange(start, start + n - length + 1)
        for start, n in zip(rows.offsets[:-1][kept].tolist(), rows.lengths[kept].tolist(), strict=True)
        if n >= length
    ] or [torch.zeros(0, dtype=torch.int64)])  # fmt: skip
    if not len(first):
        raise DatasetError(
            f"task {spec.name!r}: no episode of its data has {length} steps (longest: "
            f"{rows.lengths[kept].max()}); use a smaller dyna.length"
        )
    start_N = first[torch.randint(len(first), (count,), generator=generator)]
    other_N = first[torch.randint(len(first), (count,), generator=generator)]
    action_NTA = data[other_N[:, None] + torch.arange(length)][..., observation_dim : observation_dim + spec.action_dim]
    return data[start_N][:, : spec.observation_dim].clone(), action_NTA.clone()
