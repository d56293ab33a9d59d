"""Assign policies to extraction jobs by an estimate of the memory that training them needs.

Dimension letters as in first_order.py: H horizon, B rollouts of a policy, D latent, A action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from ...pipeline.memory import machine_memory
from ..world_model.config import WorldModelConfig
from .config import ActorCriticConfig, FirstOrderConfig, SvgConfig
from .program import NOISE_BLOCK

if TYPE_CHECKING:
    from .config import ExtractConfig
    from .program import PolicySpec

FLOAT = 4
MARGIN = 0.8
"""Share of a job's memory that the estimate may use."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a job in bytes."""

    fixed: float
    """Libraries, the frozen model and the start latents."""
    per_member: float

    def members_in(self, memory: float) -> int:
        """Members that fit into so many bytes; at least 1."""
        return max(1, math.floor((MARGIN * memory - self.fixed) / self.per_member))


def estimate(
    model: WorldModelConfig,
    model_bytes: int,
    action_dim: int,
    starts_per_task: int,
    members_per_task: int,
    config: FirstOrderConfig,
) -> MemoryEstimate:
    """From what autograd keeps of a rollout. With step dynamics within 16% per member of the peak resident memory
    measured on a CPU, with models of sizes small, 1 and 5 and 1 to 32 members; with either dynamics 0.9 to 1.6 times
    what torch allocates. What is fixed is taken twice as large as measured.

    Args:
        model_bytes: of the model's weights.
        members_per_task: at least; they share the task's start latents.
    """
    networks = config.networks
    actor, critics = _parameters(networks, model.latent_dim, model.latent_dim, action_dim)
    row = _rollout_row(model, networks, action_dim)
    rollout = config.horizon * config.batch_size * (row + NOISE_BLOCK * action_dim)
    rows = config.horizon * config.batch_size / config.critic_minibatches
    fitting = rows * networks.num_critics * (model.latent_dim + 4 * sum(networks.critic_units))
    # Weights, gradient and two moments.
    per_member = FLOAT * (4 * (actor + critics) + rollout + fitting)
    starts = FLOAT * starts_per_task * (model.latent_dim + action_dim)
    return MemoryEstimate(PROCESS_BYTES + model_bytes + starts, per_member + starts / members_per_task)


def estimate_svg(model: WorldModelConfig, action_dim: int, members_per_task: int, config: SvgConfig) -> float:
    """Bytes per member where critics learn from real transitions: its share of the task's latents, weights, and what
    autograd keeps of a batch and of the rollouts. Args as those of `estimate`."""
    networks, joint_dim = config.networks, model.latent_dim + action_dim
    actor, critics = _parameters(networks, model.latent_dim, joint_dim, action_dim)
    latents = config.frames_per_task * (joint_dim + 7) / members_per_task  # 7: return, steps left, end, number
    values = 2 * config.batch_size * networks.num_critics * (joint_dim + 4 * sum(networks.critic_units))
    rollout = config.starts * (1 + config.horizon) * _rollout_row(model, networks, action_dim)
    drawn = NOISE_BLOCK * config.batch_size * (action_dim + 2)
    return FLOAT * (latents + 4 * actor + 5 * critics + values + rollout + drawn)


def _parameters(networks: ActorCriticConfig, latent_dim: int, critic_in_dim: int, action_dim: int) -> tuple[int, int]:
    """Weights of an actor and of the critics of a member."""
    sizes = []
    for widths in ([latent_dim, *networks.actor_units, action_dim], [critic_in_dim, *networks.critic_units, 1]):
        sizes.append(sum(a * b + 3 * b for a, b in pairwise(widths)))
    return sizes[0], networks.num_critics * sizes[1]


def _rollout_row(model: WorldModelConfig, networks: ActorCriticConfig, action_dim: int) -> int:
    """Numbers that autograd keeps of a step of one imagined state.

    Of a hidden layer of the model: input of the norm and of the activation, and the latter's output while it is
    computed; of the actor, whose weights learn, also the input of the product.
    """
    joint = model.latent_dim + model.task_dim + action_dim
    dynamics = 6 * model.mlp_dim + 4 * model.latent_dim + joint
    if model.dynamics == "awm":
        # A token: of each block the inputs of both norms, queries, keys, values, what is attended to and a hidden layer
        # of four widths, whose output there is once at a time; then the decoder. Attention itself keeps no matrix of
        # all pairs, and the cache of the unroll is gone when gradients are computed.
        blocks = 12 * model.awm_layers * model.awm_width
        embedded = 2 * model.awm_width + model.task_dim + action_dim
        dynamics = blocks + embedded + 4 * model.mlp_dim + 4 * model.latent_dim
    heads = 6 * model.mlp_dim + 6 * model.num_bins + joint
    return dynamics + heads + 4 * sum(networks.actor_units) + 6 * action_dim


PROCESS_BYTES = 600 * 2**20
"""Python, torch and what they allocate before the first update; a CUDA context takes about as much."""


def policies_per_job(
    members: int, config: ExtractConfig, model: WorldModelConfig, model_bytes: int, action_dim: int, workers: int
) -> int:
    """Policies per job: as many as fit into its memory, and no more than keep all parallel jobs busy.

    Args:
        members: total number of policies.
        workers: processes that this machine may run.
    """
    fanout = config.fanout
    slots = fanout.jobs_here(fanout.resources(config.cores, config.accelerator, workers))
    memory = machine_memory() / slots
    if config.accelerator != "cpu" and (gpu := gpu_memory()):
        memory = gpu / min(fanout.jobs_per_gpu, slots)
    if fanout.memory_gb:
        memory = fanout.memory_gb * 2**30
    per_task = config.seeds * len(config.algorithms)
    widths = model.complete()
    found = estimate(widths, model_bytes, action_dim, config.starts_per_task, per_task, config.first_order)
    if "svg" in config.algorithms:
        svg = estimate_svg(widths, action_dim, per_task, config.svg)
        found = MemoryEstimate(found.fixed, max(found.per_member, svg))
    jobs = max(math.ceil(members / found.members_in(memory)), min(slots, members))
    return math.ceil(members / jobs)


def pack(members: Sequence[PolicySpec], policies_per_job: int) -> list[list[PolicySpec]]:
    """Cut the members into jobs, task by task, so that a job encodes the starts of few tasks; those that imagine first
    in each."""
    order = {task: k for k, task in enumerate(dict.fromkeys(member.task for member in members))}
    by_task = sorted(members, key=lambda member: order[member.task])
    parts = [by_task[i : i + policies_per_job] for i in range(0, len(by_task), policies_per_job)]
    return [sorted(part, key=lambda member: not member.imagines) for part in parts]


def gpu_memory() -> float:
    """Bytes that are free on the fullest of this machine's GPUs; 0 if it has none."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.empty_cache()  # what this process keeps of an earlier stage is free for the jobs
    return min(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count()))
