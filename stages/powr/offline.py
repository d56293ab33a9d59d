"""POWR on a fixed dataset: rows of a packed task, one fit, mirror descent from the behaviour policy.

Dimension letters: N rows, M centres, P points of the behaviour's density, U choices, D state, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...datasets.store import TaskRows
from ...pipeline.seeding import derive_seed
from .actions import ActionKernel, CandidateActions, DiscreteActions, grid_candidates, kmeans_candidates
from .centres import choose_centres
from .config import OfflineConfig
from .evaluation import Centres, Fit, KernelBlocks, fit, successor_matrix
from .features import Features
from .improvement import Improvement, mirror_descent, step_sizes, uncertainty, uncertainty_form, uniform_logits
from .kernels import StateKernel, median_distance
from .policy import Behaviour, Penalty
from .transitions import Transitions, with_sinks

KMEANS_ROWS = 20_000
"""Actions that candidates are clustered from."""


@dataclass(frozen=True)
class Data:
    """Rows of one task."""

    train: Transitions
    """Without sinks."""
    terminated_N: torch.Tensor
    held_out: Transitions
    """Rows of episodes that the fit never sees; empty if the task has one episode or none is held out."""
    held_out_terminated_N: torch.Tensor
    first_ND: torch.Tensor
    """States in which episodes start."""


def read_rows(task: TaskRows, features: Features, observation_dim: int, config: OfflineConfig, seed: int) -> Data:
    """Transitions of a packed task, at most `config.max_rows` of them, and those of its held-out episodes.

    Args:
        observation_dim: padded width of the store's observations.
    Raises:
        DatasetError: a state or reward that is not finite.
    """
    spec = task.spec
    episode_of = np.repeat(np.arange(len(task.terminated)), np.diff(task.offsets))
    last = np.zeros(len(episode_of), bool)
    last[task.offsets[1:] - 1] = True  # holds the final observation; nothing was done there
    unseen = task.held_out(config.held_out)
    held = unseen[episode_of] & ~last
    random = np.random.default_rng(derive_seed("rows", spec.name, seed))

    def take(chosen: np.ndarray, limit: int) -> tuple[Transitions, torch.Tensor]:
        row = np.flatnonzero(chosen)
        row = row if len(row) <= limit else np.sort(random.choice(row, limit, replace=False))
        data = task.rows[torch.from_numpy(row)]
        following = task.rows[torch.from_numpy(row + 1)]
        action = data[:, observation_dim : observation_dim + spec.action_dim]
        ended = task.terminated[episode_of[row]] & last[np.minimum(row + 1, len(last) - 1)]
        found = Transitions(
            features(data[:, : spec.observation_dim]),
            action.argmax(1) if spec.action_kind == "discrete" else action.double(),
            features(following[:, : spec.observation_dim]),
            data[:, -1].double(),
        )
        return found, torch.from_numpy(ended)

    train, ended = take(~held & ~last, config.max_rows)
    held_out, held_out_ended = take(held, min(config.max_rows, 5000))
    first = features(task.rows[torch.from_numpy(task.offsets[:-1][~unseen])][:, : spec.observation_dim])
    return Data(train, ended, held_out, held_out_ended, first)


def make_actions(data: Data, action_kind: str, action_dim: int, config: OfflineConfig, seed: int) -> ActionKernel:
    """Return the choices of the policy. Raises ConfigError if actions are continuous and `candidates` is none."""
    if action_kind == "discrete" or config.candidates == "none":
        actions = DiscreteActions(action_dim)
        actions.check(data.train.action)
        return actions
    taken_NA = data.train.action
    chosen = np.random.default_rng(derive_seed("candidates", seed)).permutation(len(taken_NA))[:KMEANS_ROWS]
    taken_NA = taken_NA[torch.from_numpy(chosen)]
    if config.candidates == "grid":
        candidate_UA = grid_candidates(config.grid, action_dim)
    else:
        candidate_UA = kmeans_candidates(taken_NA, config.num_candidates, seed)
    scale_A = torch.full((action_dim,), config.action_scale * median_distance(taken_NA, seed), dtype=torch.float64)
    return CandidateActions(candidate_UA, scale_A)


def estimate_behaviour(rows: Transitions, actions: ActionKernel, config: OfflineConfig, seed: int) -> Behaviour:
    """Kernel-weighted frequencies of the data's actions, over at most `behaviour_points` rows."""
    chosen = np.random.default_rng(derive_seed("behaviour", seed)).permutation(len(rows))[: config.behaviour_points]
    points = rows[torch.from_numpy(chosen)]
    if isinstance(actions, CandidateActions):
        # Each action counts for the candidates around it, by their kernel; in logarithms, since it may be far from all.
        distance_PU = torch.cdist(points.action / actions.scale_A, actions.candidate_UA / actions.scale_A)
        share_PU = torch.softmax(-distance_PU.square() / 2, 1)
        scale = config.behaviour_scale * median_distance(points.state_NO, seed)
    else:
        share_PU = torch.nn.functional.one_hot(points.action, actions.num).double()
        repeats = len(torch.unique(points.state_NO, dim=0)) < len(points) / 2
        # States that repeat have frequencies of their own: a kernel narrower than any two of them.
        scale = 1e-3 if repeats else config.behaviour_scale * median_distance(points.state_NO, seed)
    return Behaviour(points.state_NO, share_PU, scale, config.behaviour_floor)


@dataclass(frozen=True)
class OfflinePlan:
    """Result of mirror descent on one dataset."""

    model: Fit
    improvement: Improvement
    behaviour: Behaviour | None
    penalty: Penalty | None
    facts: dict[str, float]
    """For the record: rows, centres, spectral radius, held-out temporal-difference error, value at the start."""


def plan(
    data: Data,
    kernel: StateKernel,
    actions: ActionKernel,
    discount: float,
    config: OfflineConfig,
    seed: int,
    device: str | torch.device = "cpu",
) -> OfflinePlan:
    """Fit once, then take `config.planner.steps` steps of mirror descent.

    Step size and penalty are in units of the spread of the initial policy's values over the choices, so that they mean
    the same in every task.
    """
    planner = config.planner
    offset = planner.reward_offset - (lowest_reward(data) if config.shift == "lowest" else 0.0)
    choices = None
    if planner.sinks == "all":
        choices = actions.candidate_UA if isinstance(actions, CandidateActions) else torch.arange(actions.num)
    rows = with_sinks(_offset(data.train, offset), data.terminated_N, choices, offset)
    behaviour = estimate_behaviour(data.train, actions, config, seed) if config.start == "behaviour" else None
    index_M = choose_centres(rows, planner.centres, planner.selection, derive_seed("centres", seed), kernel, actions)

    rows, kernel, actions = rows.to(device), kernel.to(device), _to(actions, device)
    blocks = KernelBlocks(kernel, actions, Centres.of(rows, index_M.to(device)), rows)
    model = fit(blocks, planner.ridge, planner.jitter)
    start_NU = _start(behaviour, actions, rows.next_state_NO)
    choice_UM = actions.of_choices(model.centres.action)

    first_M = model.value_weights(successor_matrix(blocks, torch.softmax(start_NU, 1)), discount)
    spread = float(model.features(rows.next_state_NO[:5000], first_M).std(1, correction=0).square().mean().sqrt())
    unit = 1 / max(spread, 1e-12)
    sizes = step_sizes(planner.step_size * unit, planner.steps, planner.step_growth)
    penalty, penalty_NU = None, None
    if config.penalty > 0:
        form_MM = uncertainty_form(model)
        weight = config.penalty * spread
        parts = rows.next_state_NO.split(5000)
        sd_NU = torch.cat([uncertainty(kernel, part, model.centres.state_MO, choice_UM, form_MM) for part in parts])
        penalty_NU = weight * sd_NU
        penalty = Penalty(weight * sum(sizes), choice_UM, form_MM)
    found = mirror_descent(blocks, model, start_NU, sizes, discount, penalty_NU=penalty_NU)

    before_M, size_before = found.weight_M - sizes[-1] * found.value_weight_M, sum(sizes[:-1])

    def evaluated(state_ND: torch.Tensor) -> torch.Tensor:
        """The last evaluated policy, before the last step."""
        logits_NU = _start(behaviour, actions, state_ND) + model.features(state_ND, before_M)
        if penalty is not None:
            sd_NU = uncertainty(kernel, state_ND, model.centres.state_MO, choice_UM, penalty.form_MM)
            logits_NU -= config.penalty * spread * size_before * sd_NU
        return torch.softmax(logits_NU, 1)

    weight_M, end_value = found.value_weight_M, offset / (1 - discount)
    facts = {
        "rows": len(rows),
        "centres": len(index_M),
        "choices": actions.num,
        "reward_offset": offset,
        "action_value_spread": spread,
        "spectral_radius": found.radius,
    }
    for name, part, ended_N in (
        ("train", data.train[:5000], data.terminated_N[:5000]),
        ("held_out", data.held_out, data.held_out_terminated_N),
    ):
        moved = _offset(part, offset).to(device)
        next_NU = evaluated(moved.next_state_NO)
        facts[f"td_error_{name}"] = _td_error(model, moved, ended_N.to(device), next_NU, weight_M, discount, end_value)
    first_ND = data.first_ND.to(device)
    value_B = (evaluated(first_ND) * model.features(first_ND, weight_M)).sum(1)
    facts["value_at_start"] = float(value_B.mean()) - end_value
    return OfflinePlan(model, found, behaviour, penalty, facts)


def lowest_reward(data: Data) -> float:
    """Lowest reward of a step; at most 0 if an episode terminates, because terminal states have reward 0 forever."""
    lowest = float(data.train.reward_N.min())
    return min(lowest, 0.0) if bool(data.terminated_N.any()) else lowest


def _start(behaviour: Behaviour | None, actions: ActionKernel, state_ND: torch.Tensor) -> torch.Tensor:
    if behaviour is None:
        return uniform_logits(actions.num, state_ND)
    moved = Behaviour(
        behaviour.point_PD.to(state_ND), behaviour.share_PU.to(state_ND), behaviour.scale, behaviour.floor
    )
    return (
        torch.cat([moved.logits(part) for part in state_ND.split(5000)])
        if len(state_ND)
        else state_ND.new_zeros(0, actions.num)
    )


def _offset(rows: Transitions, offset: float) -> Transitions:
    return Transitions(rows.state_NO, rows.action, rows.next_state_NO, rows.reward_N + offset)


def _to(actions: ActionKernel, device: str | torch.device) -> ActionKernel:
    if isinstance(actions, CandidateActions):
        return CandidateActions(actions.candidate_UA.to(device), actions.scale_A.to(device))
    return actions


def _td_error(
    model: Fit,
    rows: Transitions,
    ended_N: torch.Tensor,
    next_policy_NU: torch.Tensor,
    weight_M: torch.Tensor,
    discount: float,
    end_value: float,
) -> float:
    """Root mean square of r + discount V(y) - q(x, a): the Bellman residual on these rows."""
    if not len(rows):
        return float("nan")
    centres = model.centres
    kernel_NM = model.kernel(rows.state_NO, centres.state_MO) * model.actions.between(rows.action, centres.action)
    next_N = (next_policy_NU * model.features(rows.next_state_NO, weight_M)).sum(1)
    next_N = torch.where(ended_N, end_value, next_N)
    return float((rows.reward_N + discount * next_N - kernel_NM @ weight_M).square().mean().sqrt())
