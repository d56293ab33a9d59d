"""The policy that plans at every step: MPPI over imagined trajectories, as TD-MPC2 does.

A round samples action sequences around a mean, imagines their returns, and fits mean and standard deviation to the best
of them. Trajectories of the policy prior take part in every round, and the next step starts from the mean of this
one, shifted by a step.

Differences from TD-MPC2's code: the action is the mean of the last round, not of a sampled elite (`sample_elite` turns
that back on); the terminal value is the mean of all value functions, not of two drawn by chance; the prior's
trajectories are imagined once per step, with the same noise in every round; terminations weight the return by their
probability, where the code cuts it at one half; discrete actions are planned as the largest of their components.

Dimension letters: B environments, H horizon, N sampled trajectories, P trajectories of the policy prior, E elites, A
action (the task's own components), D latent, O observation.
Source: TD-MPC2 (arXiv 2310.16828) section 3.3; MPPI: Williams et al. (arXiv 1509.01149).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ...datasets.schema import TaskSpec
from ...pipeline.accelerator import matmul_precision
from ...pipeline.artifact import hash_json, write_json
from ...pipeline.errors import CheckpointError
from ...pipeline.paths import user_path
from ...pipeline.saved_config import read_config
from ...pipeline.seeding import derive_seed
from ..policy.policy import Predicts
from ..sequence_model.kinds import load_model
from ..sequence_model.networks import SequenceModel
from ..world_model.networks import WorldModel
from .config import PlannerConfig, check_can_plan
from .sequence_task import StateModel
from .task_model import TaskModel


@dataclass(frozen=True)
class PlanNoise:
    """Random numbers of one step, standard normal except `choice`. S = H + 1: the last is for the prior's action at
    the end of each trajectory."""

    prior_SBPA: torch.Tensor
    rounds: Sequence[torch.Tensor]
    """[S, B, N, A] each."""
    choice_B: torch.Tensor
    """Uniform in [0, 1)."""

    @classmethod
    def draw(
        cls, generators: Sequence[torch.Generator], config: PlannerConfig, action_dim: int, device: torch.device
    ) -> PlanNoise:
        """Draw from one generator per environment, so that environments do not affect each other."""
        prior, sampled = config.prior_trajectories, config.samples - config.prior_trajectories
        shape = config.horizon + 1, prior + config.iterations * sampled, action_dim
        # On the CPU, so that a plan is the same on every device, up to float rounding.
        normal = torch.stack([torch.randn(shape, generator=one) for one in generators], 1).to(device)
        choice = torch.stack([torch.rand((), generator=one) for one in generators]).to(device)
        return cls(normal[:, :, :prior], normal[:, :, prior:].split(sampled, 2), choice)


@dataclass(frozen=True)
class PlannedAction:
    """Result of one step of planning."""

    action_BA: torch.Tensor
    mean_HBA: torch.Tensor
    std_HBA: torch.Tensor


class Imaginable(Protocol):
    """Model for planning: one task of a frozen world model. z is a latent or an observation."""

    def executable(self, action: torch.Tensor) -> torch.Tensor:
        """The nearest action [..., A] that the environment can execute."""
        ...

    def prior_actions(self, z_BD: torch.Tensor, noise_HBNA: torch.Tensor, /) -> torch.Tensor:
        """Trajectories of the policy prior [H, B, N, A], or [H, B, 0, A] without one."""
        ...

    def returns(self, z_BD: torch.Tensor, action_HBNA: torch.Tensor, noise_BNA: torch.Tensor, /) -> torch.Tensor:
        """Imagined return [B, N] of each trajectory, environment units."""
        ...


def plan(
    model: Imaginable, z_BD: torch.Tensor, mean_HBA: torch.Tensor, noise: PlanNoise, config: PlannerConfig
) -> PlannedAction:
    """Plan from z [B, D] for each environment, starting from `mean_HBA` with the largest standard deviation."""
    prior_HBPA = model.prior_actions(z_BD, noise.prior_SBPA[:-1])
    prior_return_BP = model.returns(z_BD, prior_HBPA, noise.prior_SBPA[-1])
    std_HBA = torch.full_like(mean_HBA, config.max_std)
    for noise_SBNA in noise.rounds:
        sampled_HBNA = model.executable(mean_HBA[:, :, None] + std_HBA[:, :, None] * noise_SBNA[:-1])
        return_BN = model.returns(z_BD, sampled_HBNA, noise_SBNA[-1])
        best = torch.cat([prior_return_BP, return_BN], 1).topk(config.elites, dim=1)
        index = best.indices[None, :, :, None].expand(len(mean_HBA), -1, -1, mean_HBA.shape[-1])
        elite_HBEA = torch.cat([prior_HBPA, sampled_HBNA], 2).gather(2, index)
        # exp(temperature * (return - best return)), normalised.
        weight_BE = torch.softmax(config.temperature * best.values, 1)
        weight_BE1 = weight_BE[..., None]
        mean_HBA = (weight_BE1 * elite_HBEA).sum(2)
        variance_HBA = (weight_BE1 * (elite_HBEA - mean_HBA[:, :, None]).square()).sum(2)
        std_HBA = variance_HBA.sqrt().clamp(config.min_std, config.max_std)
    if not config.sample_elite:
        return PlannedAction(model.executable(mean_HBA[0]), mean_HBA, std_HBA)
    drawn_B1 = torch.searchsorted(weight_BE.cumsum(1), noise.choice_B[:, None]).clamp(max=config.elites - 1)
    first_BEA = elite_HBEA[0]
    return PlannedAction(first_BEA.take_along_dim(drawn_B1[..., None], 1)[:, 0], mean_HBA, std_HBA)


@dataclass(frozen=True)
class PlannerPolicyConfig:
    """Contents of policy.json. All planners of an artifact share one folder of weights."""

    kind: str
    task: dict[str, Any]
    """The TaskSpec."""
    world_model: str
    """Folder of the world model, relative to that of this policy."""
    world_model_digest: str
    planner: dict[str, Any]
    """The PlannerConfig."""
    noise_seed: int
    """Base of the planner's random numbers."""
    trained_by: dict[str, Any]
    """Algorithm and seed, for the record."""

    def save(self, folder: Path) -> None:
        """Write policy.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "policy.json", asdict(self))


def world_model_digest(folder: Path) -> str:
    """Hash over all files of a world model's folder."""
    digests = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hash_json(digests)


def relative_folder(world_model: Path, policy: Path) -> str:
    """Return `world_model` relative to the folder `policy`, with forward slashes."""
    return Path(os.path.relpath(world_model, policy)).as_posix()


@dataclass
class PlanMemory:
    """State that an episode's next step starts from."""

    generator: torch.Generator
    mean_HA: torch.Tensor


class Planner(Predicts, nn.Module):
    """A Policy that remembers its last plan within an episode; see `stages.policy.StatefulPolicy`."""

    model: TaskModel | StateModel

    def __init__(
        self, model: WorldModel | SequenceModel, task: TaskSpec, config: PlannerConfig, noise_seed: int
    ) -> None:
        super().__init__()
        _keep_freed_memory()
        self.task, self.config, self._noise_seed = task, config, noise_seed
        self.trained_by: dict[str, Any] = {}
        """Algorithm and seed, where it was read from a folder."""
        if isinstance(model, SequenceModel):
            model.check_horizon(config.horizon)
            self.model = StateModel(model, task.name)
        else:
            self.model = TaskModel(model, model.table.id_of(task.name))

    def begin(self, episode: int) -> PlanMemory:
        """Return the memory before the first step of an episode; the episode number sets the random seed."""
        generator = torch.Generator().manual_seed(derive_seed("plan", self._noise_seed, episode))
        mean_HA = torch.zeros(self.config.horizon, self.task.action_dim, device=next(self.model.buffers()).device)
        return PlanMemory(generator, mean_HA)

    @torch.no_grad()
    def act(self, observation: torch.Tensor, memory: Sequence[PlanMemory] | None = None) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot where actions are discrete.

        Args:
            memory: of each row's episode, from `begin`, brought up to date here; None plans as at the start of one.
        """
        memory = [self.begin(0) for _ in observation] if memory is None else memory
        # On a CPU one by one: half a thousand trajectories fill its cache, and a row's numbers do not depend on others.
        batch = 1 if observation.device.type == "cpu" else len(observation)
        with matmul_precision(self.config.matmul_precision):
            actions = [
                self._act(rows, memory[i * batch : (i + 1) * batch]) for i, rows in enumerate(observation.split(batch))
            ]
        return torch.cat(actions)

    def _act(self, observation: torch.Tensor, memory: Sequence[PlanMemory]) -> torch.Tensor:
        generators = [one.generator for one in memory]
        noise = PlanNoise.draw(generators, self.config, self.task.action_dim, observation.device)
        z_BD = self.model.encode(observation)
        found = plan(self.model, z_BD, torch.stack([one.mean_HA for one in memory], 1), noise, self.config)
        next_HBA = torch.cat([found.mean_HBA[1:], torch.zeros_like(found.mean_HBA[:1])])
        for b, one in enumerate(memory):
            one.mean_HA = next_HBA[:, b]
        return found.action_BA

    @classmethod
    def load(cls, folder: str | Path) -> Planner:
        """Read what `PlannerPolicyConfig.save` wrote, and the world model it refers to.

        Raises:
            CheckpointError: the world model is missing, a different one, or has no values.
        """
        folder = user_path(folder)
        stored = read_config(folder, "policy", PlannerPolicyConfig)
        source = (folder / stored.world_model).resolve()
        if not source.is_dir():
            raise CheckpointError(
                f"{folder / 'policy.json'} plans with the world model in {source}, which is missing; move a planner "
                "together with its whole artifact"
            )
        if (found := world_model_digest(source)) != stored.world_model_digest:
            raise CheckpointError(
                f"{folder / 'policy.json'} plans with the world model in {source}, which has changed since: expected "
                f"digest {stored.world_model_digest[:12]}..., found {found[:12]}...; run the stage mppi again"
            )
        model: WorldModel | SequenceModel
        if (source / "sequence_model.json").is_file():
            model = load_model(source)
        else:
            model = WorldModel.load(source)
            check_can_plan(model.config.num_q > 0, model.config.dynamics, f"the world model in {source}")
        planner = cls(model, TaskSpec.from_dict(stored.task), PlannerConfig(**stored.planner), stored.noise_seed)
        planner.trained_by = stored.trained_by
        return planner


def _keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next tensors.

    Otherwise glibc returns every block of more than 128 KiB to the kernel, and page faults take a sixth of the planning
    time. It keeps blocks up to the largest size freed so far, at most 32 MiB (mallopt(3)).
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
