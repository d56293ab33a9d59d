"""One task of a sequence model for the planner: MPPI and the cross-entropy method over imagined rewards.

Observations replace latents. There is no policy prior and no value after the last imagined step, so the horizon must
cover everything that a plan considers. Any kind of model works: markov, hwm and rerooted unroll
step by step, awm, rnn and ssm predict a whole trajectory at once.

Dimension letters: B environments, H steps, N trajectories of each environment, R = B N, O observation, A action.
Source: MPPI: Williams et al. (arXiv 1509.01149). Cross-entropy method: Rubinstein (1999); with a learned model: Chua et
al. (arXiv 1805.12114), section 5. CEM is the planner's round with elites weighted equally, `temperature: 0`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...pipeline.errors import ConfigError
from ..sequence_model.dynamics import ModelDynamics
from ..sequence_model.networks import SequenceModel


class StateModel(nn.Module):
    """Imagined returns of one task of a frozen sequence model; see `world_model.planner.Imaginable`."""

    def __init__(self, model: SequenceModel, task: str) -> None:
        """Raises ConfigError: the task terminates, which these models do not predict, or there is no reward to plan
        for."""
        super().__init__()
        self.model = model
        self.dynamics = ModelDynamics(model, task, "auto")
        spec = self.dynamics.spec
        if spec.terminates:
            raise ConfigError(
                f"task {task!r} can end in a terminal state, which sequence models do not predict; plan for it with a "
                "latent model (pretrain.kind=latent) and tdmpc2_plan"
            )
        self.action_dim, self.discrete = spec.action_dim, spec.action_kind == "discrete"
        self.discount = float(spec.discount or 1.0)

    def encode(self, observation_BO: torch.Tensor) -> torch.Tensor:
        """The observation itself."""
        return observation_BO

    def executable(self, action: torch.Tensor) -> torch.Tensor:
        """The nearest action that the environment can execute, [..., A]: within [-1, 1], or one-hot."""
        if self.discrete:
            return F.one_hot(action.argmax(-1), self.action_dim).to(action.dtype)
        return action.clamp(-1, 1)

    def prior_actions(self, observation_BO: torch.Tensor, noise_HBNA: torch.Tensor) -> torch.Tensor:
        """No trajectories [H, B, 0, A]: there is no prior."""
        return noise_HBNA[:, :, :0]

    def returns(self, observation_BO: torch.Tensor, action_HBNA: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        """sum_t discount^t r(s^_t, a_t, s^_{t+1}) of each trajectory, [B, N], environment units."""
        H, B, N, _A = action_HBNA.shape
        if not N:
            return action_HBNA.new_zeros(B, 0)
        action_HRA = action_HBNA.flatten(1, 2)
        start_RO = observation_BO.repeat_interleave(N, 0)
        if self.dynamics.in_parallel:
            following_HRO = self.dynamics.predict(start_RO, action_HRA.transpose(0, 1)).transpose(0, 1)
        else:
            _first, carry = self.dynamics.begin(start_RO)
            unrolled = []
            for action_RA in action_HRA:
                following_RO, carry = self.dynamics.advance(carry, action_RA)
                unrolled.append(following_RO)
            following_HRO = torch.stack(unrolled)
        before_HRO = torch.cat([start_RO[None], following_HRO[:-1]])
        reward_HR = self.dynamics.reward(before_HRO, action_HRA, following_HRO)
        weight_H1 = self.discount ** torch.arange(H, device=reward_HR.device)[:, None]
        return (weight_H1 * reward_HR).sum(0).unflatten(0, (B, N))
