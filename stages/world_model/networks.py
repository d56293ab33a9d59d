"""The latent world model: encoder, dynamics, reward, continue and value heads and a policy prior, conditioned on a
task embedding.

Dimension letters: B batch (any leading dimensions), O observation, A action, D latent, M bins, K tasks,
N value functions.
Source: TD-MPC2 (arXiv 2310.16828) section 3.1. What differs: rows of the task embedding are kept within the unit
ball by `renormalise_task_embedding`, called after the optimiser step, and never inside forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...datasets.schema import TaskTable, read_table
from ...pipeline.artifact import verify, verify_listed
from ...pipeline.checkpoint import load_module, save_weights
from ...pipeline.errors import CheckpointError, ConfigError
from ...pipeline.hub import find_artifact
from ...pipeline.paths import user_path
from ...pipeline.reading import reading
from ...pipeline.saved_config import read_config
from ..layers.activations import ACTIVATIONS, Activation, at_least_float32, simnorm
from ..layers.ensemble import HeadEnsemble
from .config import WorldModelConfig
from .latent_awm import LatentActionModel
from .losses import two_hot_decode
from .values import PriorSample, sample_prior

MIN_OBSERVATION_SCALE = 0.01
"""Environment units: a hundredth of a metre, of a radian, of a metre per second."""


class NormedLinear(nn.Module):
    """Linear, LayerNorm, activation."""

    def __init__(self, in_dim: int, out_dim: int, activation: Activation) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)
        self._activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._activation(self.norm(at_least_float32(self.linear(x))))


def mlp(in_dim: int, hidden_dims: Sequence[int], last: nn.Module, activation: Activation) -> nn.Sequential:
    """NormedLinear layers of the given widths, then `last`."""
    widths = [in_dim, *hidden_dims]
    return nn.Sequential(*(NormedLinear(a, b, activation) for a, b in pairwise(widths)), last)


def initialise(module: nn.Module) -> None:
    """Initialise linear weights from N(0, 0.02^2) truncated at two units, biases with zero, embeddings from U(-0.02,
    0.02), as TD-MPC2 does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.uniform_(module.weight, -0.02, 0.02)


def latent_activation(config: WorldModelConfig) -> Activation:
    """Return the output activation of encoder and dynamics."""
    if config.latent == "simnorm":
        return partial(simnorm, group=config.simnorm_dim)
    return ACTIVATIONS[config.latent]


def encoder_input(
    observation: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, angle: torch.Tensor | None
) -> torch.Tensor:
    """Scale observations [B, O] for the encoder.

    Args:
        angle: [O] or [B, O], 1 for each column whose sine and cosine are appended, in O columns each, and 0 for one
            whose are replaced by zeros; None appends nothing.
    Returns:
        [B, O] or [B, 3 O].
    """
    scaled = (observation - mean) / scale
    if angle is None:
        return scaled
    return torch.cat([scaled, angle * observation.sin(), angle * observation.cos()], -1)


class Encoder(nn.Module):
    """Maps scaled observation and task embedding to a latent. Separate from the model because every policy carries
    one."""

    def __init__(self, config: WorldModelConfig, observation_dim: int) -> None:
        super().__init__()
        hidden = [config.encoder_dim] * (config.encoder_layers - 1)
        in_dim = config.observation_parts * observation_dim + config.task_dim
        out = NormedLinear(hidden[-1] if hidden else in_dim, config.latent_dim, latent_activation(config))
        self.layers = mlp(in_dim, hidden, out, ACTIVATIONS[config.activation])

    def forward(self, observation: torch.Tensor, task_embedding: torch.Tensor) -> torch.Tensor:
        """`encoder_input` [B, O or 3 O], [B, E] -> z [B, D]."""
        return self.layers(torch.cat([observation, task_embedding], -1))


class WorldModel(nn.Module):
    """Latent world model over one table of tasks: encode, step, decode_reward. Sizes come from the config and the
    table."""

    bins_M: torch.Tensor
    action_mask_KA: torch.Tensor
    terminates_K: torch.Tensor
    discount_K: torch.Tensor
    observation_mean_KO: torch.Tensor
    observation_scale_KO: torch.Tensor
    angle_KO: torch.Tensor | None

    def __init__(self, config: WorldModelConfig, table: TaskTable) -> None:
        super().__init__()
        config = config.complete()
        self.config, self.table = config, table
        self.origin: Path | None = None
        """The artifact that `from_pretrained` loaded it from."""
        joint_dim = config.latent_dim + config.task_dim + table.action_dim
        self.task_embedding = nn.Embedding(len(table), config.task_dim)
        self.encoder = Encoder(config, table.observation_dim)
        activation = ACTIVATIONS[config.activation]

        def head(in_dim: int, last: nn.Module) -> nn.Sequential:
            return mlp(in_dim, [config.mlp_dim, config.mlp_dim], last, activation)

        def ensemble(heads: int, out_dim: int, dropout: float) -> HeadEnsemble:
            return HeadEnsemble(heads, joint_dim, config.mlp_dim, out_dim, config.activation, dropout)

        self._latent_activation = latent_activation(config)
        if config.dynamics == "step":
            self.dynamics = head(joint_dim, NormedLinear(config.mlp_dim, config.latent_dim, self._latent_activation))
        reward_bins = nn.Linear(config.mlp_dim, config.num_bins)
        self.reward = head(joint_dim, reward_bins)
        self.models_termination = any(task.terminates for task in table)
        if self.models_termination:
            # Of the next latent: whether the state that was reached lets the episode continue.
            self.continue_head = head(config.latent_dim + config.task_dim, nn.Linear(config.mlp_dim, 1))
        if config.num_q:
            self.values = ensemble(config.num_q, config.num_bins, config.dropout)
            self.target_values = ensemble(config.num_q, config.num_bins, config.dropout).requires_grad_(False)
            prior_out = nn.Linear(config.mlp_dim, 2 * table.action_dim)
            self.policy_prior = head(config.latent_dim + config.task_dim, prior_out)
        if config.disagreement_heads:
            self.disagreement_heads = ensemble(config.disagreement_heads, config.latent_dim, 0.0)
        self.apply(initialise)
        if config.num_q:
            nn.init.zeros_(self.values.weight[-1])
            self.target_values.load_state_dict(self.values.state_dict())
        if config.dynamics == "awm":
            # Made here, since its transformer has an initialisation of its own.
            if config.awm_horizon < 1:
                raise ConfigError(f"model.awm_horizon must be at least 1, found {config.awm_horizon}")
            last = NormedLinear(config.mlp_dim, config.latent_dim, self._latent_activation)
            decoder = mlp(config.awm_width, [config.mlp_dim], last, activation).apply(initialise)
            self.action_dynamics = LatentActionModel(config, table.action_dim, decoder)
        nn.init.zeros_(reward_bins.weight)  # uniform over the bins: an untrained head decodes to 0
        self.register_buffer("bins_M", torch.linspace(-config.bin_limit, config.bin_limit, config.num_bins), False)
        self.register_buffer("action_mask_KA", torch.from_numpy(table.action_mask()), False)
        self.register_buffer("discount_K", torch.tensor([task.discount for task in table], dtype=torch.float32), False)
        # Saved with the weights: a model is of no use without the scaling it was trained with.
        shape = len(table), table.observation_dim
        self.register_buffer("observation_mean_KO", torch.zeros(shape))
        self.register_buffer("observation_scale_KO", torch.ones(shape))
        self.register_buffer("angle_KO", torch.zeros(shape) if config.wrap_angles else None)
        self.register_buffer("terminates_K", torch.tensor([task.terminates for task in table]), False)

    def set_observation_statistics(self, task: int, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Scale observations of `task` by these statistics of its own columns, [O_task] each.

        Nearly constant columns keep a scale of MIN_OBSERVATION_SCALE, so that noise is not amplified.
        """
        self.observation_mean_KO[task, : len(mean)] = mean
        self.observation_scale_KO[task, : len(std)] = std.clamp(min=MIN_OBSERVATION_SCALE)

    def encode(self, observation: torch.Tensor, task: torch.Tensor | str) -> torch.Tensor:
        """Encode observations to latents z [B, D].

        Args:
            observation: [B, O] float32, environment units, padded to the table's width.
            task: [B] int64, positions in the table; or the name of one task, whose observations need no padding and may
                be an array or of another type.
        Raises:
            TaskError: the table has no task of that name, or its observations are of another width.
        """
        if isinstance(task, str):
            observation = torch.as_tensor(observation).to(self.observation_mean_KO)
            self.table.spec_of(task).check_observation(observation.shape[-1])
            observation = F.pad(observation, (0, self.table.observation_dim - observation.shape[-1]))
            task = torch.full(observation.shape[:1], self.table.id_of(task), device=observation.device)
        angle = None if self.angle_KO is None else self.angle_KO[task]
        mean, scale = self.observation_mean_KO[task], self.observation_scale_KO[task]
        return self.encoder(encoder_input(observation, mean, scale, angle), self.task_embedding(task))

    def step(
        self, z: torch.Tensor, action: torch.Tensor, task: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Predict one imagined step.

        Args:
            z: [B, D]. action: [B, A] in [-1, 1]; padded components are masked here, whatever they hold. task: [B].
        Returns:
            next z [B, D]; reward logits [B, M] of (z, action); continue logit [B] of the next z, None if no task
            of the table terminates.
        """
        next_z = self.next_latent(z, action, task)
        return next_z, self.reward_logits(z, action, task), self.continue_logits(next_z, task)

    def next_latent(self, z: torch.Tensor, action: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """The next latent of `step`. A rollout only needs this one at a time; rewards and ends are cheaper to decode
        from all latents together afterwards."""
        if self.config.dynamics == "awm":
            return self.advance(self.start(z, task), action, task)[0]
        return self.dynamics(self._joint(z, action, task))

    @property
    def in_parallel(self) -> bool:
        """Whether `rollout` is a single pass over all steps, which is cheaper than repeated `advance`."""
        return self.config.dynamics == "awm"

    def start(self, z: torch.Tensor, task: torch.Tensor) -> Any:
        """Return the carry of an open-loop rollout from z [B, D], for `advance`."""
        return self.action_dynamics.start(z, self.task_embedding(task)) if self.in_parallel else z

    def advance(self, carry: Any, action: torch.Tensor, task: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return the latent [B, D] after an action [B, A], and the next carry.

        Raises:
            ConfigError: an action model has no positions left.
        """
        if not self.in_parallel:
            z = self.next_latent(carry, action, task)
            return z, z
        self.config.check_horizon(carry[0], "the horizon of a rollout")
        return self.action_dynamics.advance(carry, action * self.action_mask_KA[task], self.task_embedding(task))

    def rollout(self, z: torch.Tensor, action_TBA: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Return open-loop latents [T + 1, B, D], starting with z [B, D]. Equal to `advance` up to float rounding."""
        if self.in_parallel:
            self.config.check_horizon(len(action_TBA), "the horizon of a rollout")
            masked = action_TBA * self.action_mask_KA[task]
            return torch.cat([z[None], self.action_dynamics(z, masked, self.task_embedding(task))])
        latents = [z]
        for action in action_TBA:
            latents.append(self.next_latent(latents[-1], action, task))
        return torch.stack(latents)

    def reward_logits(self, z: torch.Tensor, action: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Reward logits of `step`: [B, M]."""
        return at_least_float32(self.reward(self._joint(z, action, task)))

    def continue_logits(self, z: torch.Tensor, task: torch.Tensor) -> torch.Tensor | None:
        """Logit [B] that the episode continues after reaching z; None if no task terminates."""
        if not self.models_termination:
            return None
        return at_least_float32(self.continue_head(torch.cat([z, self.task_embedding(task)], -1))[..., 0])

    def value_logits(
        self,
        z: torch.Tensor,
        action: torch.Tensor,
        task: torch.Tensor,
        heads: torch.Tensor | None = None,
        *,
        target: bool = False,
        frozen: bool = False,
    ) -> torch.Tensor:
        """Value logits [n, B, M] of `heads` [n], or of all N.

        Args:
            target: of the slowly moving copy.
            frozen: no gradient to the weights and the task embedding; one to z and action still flows.
        """
        ensemble = self.target_values if target else self.values
        return ensemble(self._joint(z, action, task, detach_embedding=frozen), heads, frozen=frozen)

    def decode_value(self, logits: torch.Tensor) -> torch.Tensor:
        """Decode [n, B, M] value logits to [n, B], environment units."""
        return two_hot_decode(logits, self.bins_M)

    def sample_prior(
        self, z: torch.Tensor, task: torch.Tensor, noise: torch.Tensor, *, squashed_entropy: bool = True
    ) -> PriorSample:
        """Sample an action of the policy prior in z [B, D], from standard normal `noise` [B, A].

        The embedding is detached: the prior's loss must leave no gradient on it (TD-MPC2's code of 2026 lets one leak
        into the next step of the model).
        """
        head = at_least_float32(self.policy_prior(torch.cat([z, self.task_embedding(task).detach()], -1)))
        mask = self.action_mask_KA[task]
        return sample_prior(head, noise, mask, self.config, squashed_entropy=squashed_entropy)

    def head_latents(self, z: torch.Tensor, action: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Next latent of each of the C disagreement heads: [C, B, D]. The task embedding is detached."""
        return self._latent_activation(self.disagreement_heads(self._joint(z, action, task, detach_embedding=True)))

    def disagreement(self, z: torch.Tensor, action: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Variance of the next latent over the disagreement heads, averaged over components: [B]."""
        return self.head_latents(z, action, task).var(0, unbiased=False).mean(-1)

    @torch.no_grad()
    def update_target_values(self, rate: float) -> None:
        """Move the target values towards the values by the fraction `rate`."""
        targets: list[torch.Tensor] = list(self.target_values.parameters())
        sources: list[torch.Tensor] = list(self.values.parameters())
        torch._foreach_lerp_(targets, sources, rate)

    def _joint(
        self, z: torch.Tensor, action: torch.Tensor, task: torch.Tensor, *, detach_embedding: bool = False
    ) -> torch.Tensor:
        embedding = self.task_embedding(task)
        embedding = embedding.detach() if detach_embedding else embedding
        return torch.cat([z, embedding, action * self.action_mask_KA[task]], -1)

    def decode_reward(self, logits: torch.Tensor) -> torch.Tensor:
        """Decode [B, M] reward logits to [B], environment units per step."""
        return two_hot_decode(logits, self.bins_M)

    @torch.no_grad()
    def renormalise_task_embedding(self) -> None:
        """Scale rows of the task embedding that are longer than 1 to length 1."""
        weight = self.task_embedding.weight
        weight.div_(weight.norm(dim=-1, keepdim=True).clamp(min=1))

    def save(self, folder: Path) -> None:
        """Write model.safetensors, model.json and tasks.json."""
        save_weights(folder, "model", self.state_dict(), self.config)
        (folder / "tasks.json").write_text(self.table.to_json())

    def freeze(self) -> WorldModel:
        """Prepare for use: evaluation mode, no gradients, rows of the task embedding at most 1 long.

        Rows trained here never are, but for rounding; those of a published model can be.
        """
        if bool((self.task_embedding.weight.norm(dim=-1) > 1 + 1e-5).any()):
            self.renormalise_task_embedding()
        return self.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, reference: str | Path, *, frozen: bool = True) -> WorldModel:
        """Load the model named by `reference` on the CPU, and verify every file.

        Args:
            reference: an artifact's folder (RUN/pretrain), a run folder that holds one model, or an id of the Hugging
                Face Hub: user/name, user/name@revision.
        Raises:
            OrreryError: there is no such model, it cannot be downloaded, it is of another kind, or it is damaged.
        """
        folder = find_artifact(reference, "world_model")
        verify(folder, "world_model")
        verify_listed(folder, ("model.json", "model.safetensors", "tasks.json"))
        model = cls.load(folder, frozen=frozen)
        model.origin = folder
        return model

    @classmethod
    def load(cls, folder: str | Path, *, frozen: bool = True) -> WorldModel:
        """Load what `save` wrote, and `freeze` it unless `frozen` is False.

        Raises:
            CheckpointError: files are missing, or weights do not fit the config and task table; names each.
        """
        folder = user_path(folder)
        with reading(folder / "model.json", CheckpointError):
            config, table = read_config(folder, "model", WorldModelConfig), read_table(folder)
            table.check_fits(folder / "model.safetensors")
            model = load_module(folder, "model", lambda: cls(config, table))
        return model.freeze() if frozen else model
