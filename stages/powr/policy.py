"""The policy of kernel and tabular planning: features, centres with a weight per choice, and the initial policy.

Dimension letters: B batch, M centres, D state, U actions to choose from, A action, P points of the behaviour's density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ...datasets.schema import TaskSpec
from ..policy.policy import StoredPolicy
from .features import Features, describe, restore
from .improvement import behaviour_logits, uncertainty
from .kernels import StateKernel


@dataclass(frozen=True)
class Behaviour:
    """The initial policy of mirror descent, if it is not uniform."""

    point_PD: torch.Tensor
    share_PU: torch.Tensor
    scale: float
    """Of a Gaussian kernel between states."""
    floor: float
    """Weight of the uniform policy, in units of points."""

    def logits(self, state_BD: torch.Tensor) -> torch.Tensor:
        """log pi_0: [B, U]."""
        kernel = StateKernel.of("gaussian", self.scale, state_BD.device)
        return behaviour_logits(kernel, self.point_PD, self.share_PU, state_BD, self.floor)


@dataclass(frozen=True)
class Penalty:
    """Subtracted from the logits far from the data: weight x posterior standard deviation."""

    weight: float
    """Sum of the step sizes x the penalty per standard deviation."""
    choice_UM: torch.Tensor
    form_MM: torch.Tensor


@dataclass(frozen=True)
class KernelPolicyConfig:
    """Contents of policy.json."""

    kind: str
    task: dict[str, Any]
    """The TaskSpec."""
    features: dict[str, Any]
    kernel: str
    sizes: dict[str, int]
    """Numbers of centres, choices, scales, behaviour points, and centres of the penalty."""
    action: str
    """mode takes the most likely choice, mean the average of all under the policy (continuous actions only)."""
    behaviour: dict[str, float]
    """Scale and floor of the behaviour's density; empty if the policy started uniform."""
    penalty: float
    trained_by: dict[str, Any]
    """Algorithm and seed, for the record."""


class KernelPolicy(StoredPolicy):
    """softmax of log pi_0 + k(state, centres) @ weights - penalty; acts by its mode or mean."""

    scale: torch.Tensor
    centre_MD: torch.Tensor
    weight_MU: torch.Tensor
    choice_UA: torch.Tensor
    point_PD: torch.Tensor
    share_PU: torch.Tensor
    penalty_choice_UM: torch.Tensor
    penalty_form_MM: torch.Tensor

    Config = KernelPolicyConfig
    config: KernelPolicyConfig

    def __init__(self, config: KernelPolicyConfig) -> None:
        super().__init__(config)
        self.features = restore(config.features)
        sizes, width = config.sizes, config.features["width"][1]
        shapes = {
            "scale": (sizes["scales"],),
            "centre_MD": (sizes["centres"], width),
            "weight_MU": (sizes["centres"], sizes["choices"]),
            "choice_UA": (sizes["choices"], self.task.action_dim),
            "point_PD": (sizes["points"], width),
            "share_PU": (sizes["points"], sizes["choices"]),
            "penalty_choice_UM": (sizes["choices"], sizes["penalised"]),
            "penalty_form_MM": (sizes["penalised"], sizes["penalised"]),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def of(
        cls,
        task: TaskSpec,
        features: Features,
        kernel: StateKernel,
        centre_MD: torch.Tensor,
        weight_MU: torch.Tensor,
        trained_by: dict[str, Any],
        *,
        candidate_UA: torch.Tensor | None = None,
        action: str = "mode",
        behaviour: Behaviour | None = None,
        penalty: Penalty | None = None,
    ) -> KernelPolicy:
        """Return a policy from its parts. `candidate_UA` is None if actions are discrete."""
        choice_UA = torch.eye(task.action_dim) if candidate_UA is None else candidate_UA
        sizes = {
            "centres": len(centre_MD),
            "choices": len(choice_UA),
            "scales": kernel.scale.numel(),
            "points": 0 if behaviour is None else len(behaviour.point_PD),
            "penalised": 0 if penalty is None else len(penalty.form_MM),
        }
        start = {} if behaviour is None else {"scale": behaviour.scale, "floor": behaviour.floor}
        weight = 0.0 if penalty is None else penalty.weight
        described = describe(features)
        policy = cls(
            KernelPolicyConfig(
                "kernel", task.to_dict(), described, kernel.kind, sizes, action, start, weight, trained_by
            )
        )
        policy.features.load_state_dict(features.state_dict())
        policy.scale.copy_(kernel.scale.reshape(-1))
        policy.centre_MD.copy_(centre_MD)
        policy.weight_MU.copy_(weight_MU)
        policy.choice_UA.copy_(choice_UA)
        if behaviour is not None:
            policy.point_PD.copy_(behaviour.point_PD)
            policy.share_PU.copy_(behaviour.share_PU)
        if penalty is not None:
            policy.penalty_choice_UM.copy_(penalty.choice_UM)
            policy.penalty_form_MM.copy_(penalty.form_MM)
        return policy.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, observation: torch.Tensor) -> torch.Tensor:
        """log pi(u | observation) up to a constant per row: [B, O] -> [B, U] float64."""
        config = self.config
        state_BD = self.features(observation)
        kernel = StateKernel(config.kernel, self.scale if len(self.scale) > 1 else self.scale[0])
        logits_BU = kernel(state_BD, self.centre_MD) @ self.weight_MU
        if config.behaviour:
            logits_BU += Behaviour(self.point_PD, self.share_PU, **config.behaviour).logits(state_BD)
        if config.penalty:
            # The centres of the penalty come first.
            centre_MD = self.centre_MD[: len(self.penalty_form_MM)]
            logits_BU -= config.penalty * uncertainty(
                kernel, state_BD, centre_MD, self.penalty_choice_UM, self.penalty_form_MM
            )
        return logits_BU

    @torch.no_grad()
    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot where actions are discrete."""
        logits_BU = self.logits(observation)
        if self.config.action == "mean":
            return (torch.softmax(logits_BU, 1) @ self.choice_UA).to(observation.dtype)
        share_BU = F.one_hot(logits_BU.argmax(1), logits_BU.shape[1]).double()
        return (share_BU @ self.choice_UA).to(observation.dtype)
