"""Policies by backpropagation through imagined episodes (BPO): all seeds of a task as one program.

    J = mean_B [ sum_t r_t ] / return_scale + entropy_weight mean_{B,t} [ entropy(pi(. | s^_t)) ]

No discount and no bootstrapped value: the episode, or the horizon, is imagined as a whole.

Dimension letters: H steps, M members (seeds), B rollouts of a member, N starts, S start, A action, X noise
(see `imagine`).
Source: Ma et al. (arXiv 2402.05290), section 4. What differs: the return is divided by the spread of returns in the
data, so that one entropy weight serves all tasks; a gradient that is not finite stops the run and is not set to zero.
"""

from __future__ import annotations

from typing import Any

import torch

from ...datasets.schema import TaskSpec
from ...datasets.store import TaskRows
from ...datasets.windows import WindowIndex
from ...pipeline.errors import ConfigError, StageError
from ...pipeline.seeding import derive_seed
from ..layers.gradients import clip_members
from ..sequence_model.dynamics import Dynamics, SimulatorDynamics
from ..sequence_model.networks import SequenceModel
from .config import BpoConfig
from .imagination import Imagined, imagine, imagine_in_parallel
from .policy import StackedPolicy

IMAGINED_EPISODES = 16
"""Over which the imagined return of a finished policy is averaged."""


def bpo_objective(
    reward_HMB: torch.Tensor, entropy_HMB: torch.Tensor, return_scale: float, entropy_weight: float
) -> torch.Tensor:
    """J of each member [M]; see the module's equation. Rewards in environment units, entropies in nats."""
    returns_M = reward_HMB.sum(0).mean(1) / return_scale
    return returns_M + entropy_weight * entropy_HMB.mean((0, 2))


def imagined_horizon(
    config: BpoConfig, spec: TaskSpec, model: SequenceModel | None, setting: str = "bpo.bpo.horizon"
) -> int:
    """Steps to imagine for a task.

    Args:
        setting: the key of `config.horizon`, for the message.
    Raises:
        ConfigError: more than the model has learned positions for, or than an episode has.
    """
    longest = spec.episode_length
    if model is not None:
        longest = min(longest, model.config.longest_prediction() or longest)
    horizon = config.horizon or (longest if model is None else min(longest, model.config.horizon))
    if horizon > longest:
        raise ConfigError(
            f"{setting} is {horizon}, but episodes of task {spec.name!r} have {spec.episode_length} steps"
            + (
                ""
                if model is None
                else f" and the {model.config.kind} model was trained on {model.config.horizon} of them"
            )
            + f"; use at most {longest}"
        )
    return horizon


def start_observations(rows: TaskRows, horizon: int, count: int, seed: int, held_out: float = 0.0) -> torch.Tensor:
    """Observations [N, O_task] of the data to start from, at most `count`, each with `horizon` steps left, of the
    episodes that are not held out.

    First frames alone where the horizon is a whole episode.

    Raises:
        ConfigError: no episode of the data is that long.
    """
    whole = horizon >= rows.spec.episode_length
    index = WindowIndex.build([rows], horizon, "train", held_out)
    kept = ~rows.held_out(held_out)
    if whole:
        frames = torch.from_numpy(rows.offsets[:-1][kept & (rows.lengths >= horizon)])
    else:
        total = int(index.counts[0])
        generator = torch.Generator().manual_seed(derive_seed("bpo starts", rows.spec.name, seed))
        chosen = torch.randperm(total, generator=generator)[:count]
        first, left, _ = index.locate(chosen.numpy())
        frames = torch.from_numpy(first[left >= horizon])
    if not len(frames):
        raise ConfigError(
            f"task {rows.spec.name!r}: no episode of its data is as long as the horizon of {horizon} steps (longest: "
            f"{rows.lengths[kept].max()}); use a shorter horizon"
        )
    return rows.rows[frames[:count]][:, : rows.spec.observation_dim].clone()


def return_scale(rows: TaskRows) -> float:
    """Standard deviation of the data's returns; where they hardly differ, a thousandth of their mean's size."""
    return max(float(rows.returns.std()), 1e-3 * abs(float(rows.returns.mean())), 1e-6)


class PolicyOptimisation:
    """State and update of the policies of one task, one per seed. The dynamics are frozen."""

    def __init__(
        self,
        dynamics: Dynamics,
        spec: TaskSpec,
        starts_NS: torch.Tensor | None,
        statistics: tuple[torch.Tensor, torch.Tensor],
        scale: float,
        seeds: list[int],
        horizon: int,
        iterations: int,
        config: BpoConfig,
        seed: int,
    ) -> None:
        """Args:
            starts_NS: what `dynamics` begins from; None draws states of the simulator.
            statistics: mean and scale of the task's observations, [O] each.
            scale: what returns are divided by.
            iterations: of the whole run; the learning rate falls linearly over them.
            seed: base of all randomness; a member's own stream depends on (seed, task, member seed) alone.
        Raises:
            ConfigError: discrete actions, or a task that terminates.
        """
        if spec.action_kind != "continuous":
            raise ConfigError(
                f"bpo needs continuous actions; task {spec.name!r} has {spec.action_dim} discrete actions"
            )
        if spec.terminates:
            raise ConfigError(
                f"task {spec.name!r} can end in a terminal state, which sequence models do not predict; use extract"
            )
        self.dynamics, self.spec, self.seeds, self.horizon = dynamics, spec, seeds, horizon
        self._starts, self._scale, self._config, self._seed = starts_NS, scale, config, seed
        self._iterations = iterations
        self.policy = StackedPolicy(len(seeds), spec.observation_dim, spec.action_dim, config.units)
        self.policy.mean_O.copy_(statistics[0][: spec.observation_dim])
        self.policy.scale_O.copy_(statistics[1][: spec.observation_dim])
        for m, member in enumerate(seeds):
            self.policy.mlp.initialise_uniform(m, self._generator("weights", member))
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.lr)

    def update(self, iteration: int) -> dict[str, torch.Tensor]:
        """Iteration number `iteration`; metrics per member [M]: imagined_return, entropy, grad_norm."""
        start_MBS, noise_HMBX = self._draw(f"update {iteration}", self._config.batch_size)
        imagined = self._imagine(start_MBS, noise_HMBX)
        objective_M = bpo_objective(imagined.reward_HMB, imagined.entropy_HMB, self._scale, self._config.entropy)
        parameters = list(self.policy.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(-objective_M.sum(), parameters), strict=True):
            parameter.grad = gradient
        norm_M = clip_members(parameters, len(self.seeds), self._config.clip_norm)
        if not torch.isfinite(norm_M).all():
            raise StageError(
                f"bpo: the policy gradient of task {self.spec.name!r} is not finite at iteration {iteration}; use a "
                "shorter horizon, or a model whose gradients stay bounded (kind: awm)"
            )
        share = iteration / self._iterations
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * (1 + share * (self._config.final_lr_scale - 1))
        self._optimizer.step()
        return {
            "imagined_return": imagined.reward_HMB.detach().sum(0).mean(1),
            "entropy": imagined.entropy_HMB.detach().mean((0, 2)),
            "grad_norm": norm_M,
        }

    @torch.no_grad()
    def imagined_return(self) -> torch.Tensor:
        """Return per episode [M] of the deterministic policies.

        Where the imagined horizon is shorter than an episode, its reward per step stands for all of the episode.
        """
        start_MBS, noise_HMBX = self._draw("imagined return", IMAGINED_EPISODES)
        noise_HMBX[..., : self.spec.action_dim] = 0  # the policy's; the world's stays
        return (
            imagine(self.dynamics, self.policy, start_MBS, noise_HMBX).reward_HMB.mean((0, 2))
            * self.spec.episode_length
        )

    def gradient(self, start_MBS: torch.Tensor, noise_HMBX: torch.Tensor) -> list[torch.Tensor]:
        """Gradient of the mean return alone, one tensor per parameter; for diagnostics."""
        returns = self._imagine(start_MBS, noise_HMBX).reward_HMB.sum(0).mean(1).sum()
        return list(torch.autograd.grad(returns, list(self.policy.parameters())))

    def gradient_noise(self, draws: int = 8) -> torch.Tensor:
        """[M] variance of the gradient of the mean return over batches, relative to its squared mean, as
        `FirstOrderExtraction.gradient_noise` has it."""
        gradients = []
        for draw in range(draws):
            found = self.gradient(*self._draw(f"gradient noise {draw}", self._config.batch_size))
            gradients.append(torch.cat([part.flatten(1) for part in found], 1))
        stacked_NMX = torch.stack(gradients)
        return stacked_NMX.var(0).sum(1) / stacked_NMX.mean(0).square().sum(1)

    def _imagine(self, start_MBS: torch.Tensor, noise_HMBX: torch.Tensor) -> Imagined:
        share = self._config.policy_input_gradient
        if self.dynamics.in_parallel and share == 0:
            return imagine_in_parallel(self.dynamics, self.policy, start_MBS, noise_HMBX)
        return imagine(self.dynamics, self.policy, start_MBS, noise_HMBX, share)

    def _draw(self, purpose: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Starts [M, B, S] and noise [H, M, B, X] of policy and dynamics, each member's from its own stream."""
        starts, noise = [], []
        for member in self.seeds:
            generator = self._generator(purpose, member)
            if self._starts is None:
                assert isinstance(self.dynamics, SimulatorDynamics)
                starts.append(self.dynamics.task.initial_state(count, generator))
            else:
                starts.append(self._starts[torch.randint(len(self._starts), (count,), generator=generator)])
            width = self.spec.action_dim + self.dynamics.noise_dim
            noise.append(torch.randn(self.horizon, count, width, generator=generator))
        return torch.stack(starts), torch.stack(noise, 1)

    def _generator(self, purpose: str, member: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed("bpo", purpose, self._seed, self.spec.name, member))

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, for exact resume."""
        return {"policy": self.policy.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self._optimizer.load_state_dict(state["optimizer"])
