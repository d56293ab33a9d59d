"""The networks of MR.Q for several members at once, as stacked weights: one batched matmul serves all members.

A member is one policy with everything that it learned from: encoder, model, values. Members share nothing, so the
gradient of the summed loss is each member's own. A single member costs 4% more than unstacked layers would.

    f: s -> z_s        state encoder, of vectors or of 84 x 84 images
    g: z_s, a -> z_sa  state-action encoder, the action through an embedding
    m: z_sa -> done, next z_s, reward logits, by one linear map: a linear model of the decision process
    Q: z_sa -> two values;    pi: z_s -> action

g, Q and pi see embeddings only. The predicted next z_s is the raw output of m, also where it is fed back into g.

Dimension letters: M members, B batch, T steps of a window, O observation, A action, D latent z_s, E z_sa, K reward
bins, C channels. Source: MR.Q (arXiv 2501.16142) section 4 and appendix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ...pipeline.errors import ConfigError
from ..layers.activations import at_least_float32
from ..layers.products import stacked_linear
from .config import IMAGE_SIZE, DesignConfig, NetworkConfig
from .norm import norm_elu, norm_relu

Activation = Callable[[torch.Tensor], torch.Tensor]


class StackedLinear(nn.Module):
    """M linear maps, [M, B, in] -> [M, B, out]; weights [M, in, out]."""

    def __init__(self, members: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(members, 1, out_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return stacked_linear(self.bias, x, self.weight)


class HiddenLayers(nn.Module):
    """Linear, norm and activation, twice, then Linear; the norms have no parameters."""

    def __init__(
        self, members: int, in_dim: int, hidden_dim: int, out_dim: int, activation: Activation = norm_elu
    ) -> None:
        super().__init__()
        self.l1 = StackedLinear(members, in_dim, hidden_dim)
        self.l2 = StackedLinear(members, hidden_dim, hidden_dim)
        self.l3 = StackedLinear(members, hidden_dim, out_dim)
        self._activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after_first(self.l1(x))

    def after_first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the layers after the first to its output."""
        return self.l3(self._activation(self.l2(self._activation(hidden))))


class ImageLayers(nn.Module):
    """Four convolutions, 32 channels, kernel 3, strides 2, 2, 2, 1, ELU; then Linear. Of one member."""

    def __init__(self, channels: int, out_dim: int) -> None:
        super().__init__()
        pairs = [(channels, 2), (32, 2), (32, 2), (32, 1)]
        self.convolutions = nn.ModuleList([nn.Conv2d(c, 32, 3, stride) for c, stride in pairs])
        self.out = StackedLinear(1, 1568, out_dim)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[1, B, C, 84, 84] uint8 or float in [0, 255] -> [1, B, out]."""
        x = image[0].float() / 255 - 0.5
        for convolution in self.convolutions:
            x = F.elu(at_least_float32(convolution(x)))
        return self.out(x.flatten(1)[None])


@dataclass(frozen=True)
class Prediction:
    """Predictions of the model for one or more steps."""

    done: torch.Tensor
    """[M, ..., B]: 1 if the step is predicted to end the episode."""
    latent: torch.Tensor
    """[M, ..., B, D]: next z_s."""
    reward: torch.Tensor
    """[M, ..., B, K] logits, or [M, ..., B, 1] where the reward is predicted as a number."""


class MrqEncoder(nn.Module):
    """f, g and the model m: what the encoder's optimiser trains."""

    def __init__(
        self,
        members: int,
        observation_shape: tuple[int, ...],
        action_dim: int,
        widths: NetworkConfig,
        design: DesignConfig,
    ) -> None:
        """Args:
            observation_shape: (O,) of vectors, or (C, 84, 84) of images.
        Raises:
            ConfigError: images of another size, or for several members.
        """
        super().__init__()
        self._latent_dim = widths.latent_dim
        self.state: nn.Module
        if len(observation_shape) == 1:
            self.state = HiddenLayers(members, observation_shape[0], widths.encoder_dim, widths.latent_dim)
        else:
            check_image(observation_shape)
            if members != 1:
                raise ConfigError(f"image encoders support one policy per program, found {members}")
            self.state = ImageLayers(observation_shape[0], widths.latent_dim)
        self.action = StackedLinear(members, action_dim, widths.action_dim)
        joint_dim = widths.latent_dim + widths.action_dim
        self.joint = HiddenLayers(members, joint_dim, widths.encoder_dim, widths.state_action_dim)
        reward_dim = widths.num_bins if design.two_hot_reward else 1
        outputs = 1 + widths.latent_dim + reward_dim
        self._outputs = [1, widths.latent_dim, reward_dim]
        self.model: StackedLinear | HiddenLayers
        if design.linear_model:
            self.model = StackedLinear(members, widths.state_action_dim, outputs)
        else:
            self.model = HiddenLayers(members, widths.state_action_dim, widths.encoder_dim, outputs)

    def encode(self, observation: torch.Tensor) -> torch.Tensor:
        """f: [M, B, O] or [M, B, C, 84, 84] -> z_s [M, B, D]."""
        return norm_elu(self.state(observation))

    def embed_action(self, action: torch.Tensor) -> torch.Tensor:
        """[M, B, A] -> z_a [M, B, .]; no norm."""
        return F.elu(self.action(action))

    def state_action(self, z: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """g: z_s [M, B, D], action [M, B, A] -> z_sa [M, B, E]; raw output, no norm, no activation."""
        return self.with_action(self.state_part(z), action)

    def state_part(self, z: torch.Tensor) -> torch.Tensor:
        """Return the part of g's first layer [M, B, .] that depends on z_s [M, B, D] only."""
        return stacked_linear(self.joint.l1.bias, z, self.joint.l1.weight[:, : self._latent_dim])

    def with_action(self, state_part: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """g from `state_part` on: z_sa [M, B, E] of actions [M, B, A]."""
        weight = self.joint.l1.weight[:, self._latent_dim :]
        return self.joint.after_first(stacked_linear(state_part, self.embed_action(action), weight))

    def predict(self, z_sa: torch.Tensor) -> Prediction:
        """m: [M, B, E] -> prediction of one step."""
        done, latent, reward = self.model(z_sa).split(self._outputs, -1)
        return Prediction(done[..., 0], latent, reward)

    def unroll(self, z: torch.Tensor, action_MTBA: torch.Tensor) -> Prediction:
        """Predictions [M, T, B, ...] along the data's actions, from z_s [M, B, D]; gradients pass through all of it.

        What does not depend on earlier steps is computed for all of them at once: the action's part of g's first
        layer in advance, done and reward afterwards. Equal to T calls of `state_action` and `predict` up to rounding.
        """
        steps = action_MTBA.shape[1]
        weight_z, weight_a = self.joint.l1.weight.split([z.shape[-1], self.joint.l1.weight.shape[1] - z.shape[-1]], 1)
        embedded = self.embed_action(action_MTBA.flatten(1, 2))
        from_action = stacked_linear(self.joint.l1.bias, embedded, weight_a).unflatten(1, (steps, -1)).unbind(1)
        if not isinstance(self.model, StackedLinear):
            return self._unroll_nonlinear(z, weight_z, from_action)
        done_w, latent_w, reward_w = self.model.weight.split(self._outputs, 2)
        done_b, latent_b, reward_b = self.model.bias.split(self._outputs, 2)
        embeddings, latents = [], []
        for part in from_action:
            embeddings.append(self.joint.after_first(stacked_linear(part, z, weight_z)))
            z = stacked_linear(latent_b, embeddings[-1], latent_w)
            latents.append(z)
        z_sa = torch.cat(embeddings, 1)
        rest = stacked_linear(torch.cat([done_b, reward_b], 2), z_sa, torch.cat([done_w, reward_w], 2))
        rest = rest.unflatten(1, (steps, -1))
        return Prediction(rest[..., 0], torch.stack(latents, 1), rest[..., 1:])

    def _unroll_nonlinear(
        self, z: torch.Tensor, weight_z: torch.Tensor, from_action: tuple[torch.Tensor, ...]
    ) -> Prediction:
        predictions = []
        for part in from_action:
            predictions.append(self.predict(self.joint.after_first(stacked_linear(part, z, weight_z))))
            z = predictions[-1].latent
        done, latent, reward = zip(*((p.done, p.latent, p.reward) for p in predictions), strict=True)
        return Prediction(torch.stack(done, 1), torch.stack(latent, 1), torch.stack(reward, 1))


class TwinValues(nn.Module):
    """Two values of a state-action embedding per member."""

    def __init__(self, members: int, widths: NetworkConfig, linear: bool) -> None:
        super().__init__()
        self._linear = linear
        if not linear:
            self.hidden = HiddenLayers(2 * members, widths.state_action_dim, widths.value_dim, widths.value_dim)
        self.out = StackedLinear(2 * members, widths.state_action_dim if linear else widths.value_dim, 1)

    def forward(self, z_sa: torch.Tensor) -> torch.Tensor:
        """[M, B, E] -> [M, B, 2]."""
        x = z_sa.repeat_interleave(2, 0)
        if not self._linear:
            x = norm_elu(self.hidden(x))
        return self.out(x)[..., 0].unflatten(0, (-1, 2)).transpose(1, 2)


class PolicyNetwork(nn.Module):
    """pi before its squash: [M, B, D] -> [M, B, A]."""

    def __init__(self, members: int, action_dim: int, widths: NetworkConfig) -> None:
        super().__init__()
        self.layers = HiddenLayers(members, widths.latent_dim, widths.policy_dim, action_dim, norm_relu)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)


def check_image(shape: tuple[int, ...]) -> None:
    """Raise a ConfigError unless `shape` is (C, 84, 84)."""
    if len(shape) != 3 or shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        raise ConfigError(
            f"the image encoder takes images of shape (channels, {IMAGE_SIZE}, {IMAGE_SIZE}), found {shape}; "
            f"resize the environment's images, for example with gymnasium.wrappers.ResizeObservation"
        )


@torch.no_grad()
def initialise(module: nn.Module, members: int, generators: list[torch.Generator]) -> None:
    """Xavier-uniform weights with gain sqrt(2), zero biases; member m draws from generators[m] alone."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight, 2**0.5, generators[0])
            nn.init.zeros_(cast(torch.Tensor, layer.bias))
        elif isinstance(layer, StackedLinear):
            per_member = len(layer.weight) // members
            for index, weight in enumerate(layer.weight):
                nn.init.xavier_uniform_(weight, 2**0.5, generators[index // per_member])
            nn.init.zeros_(layer.bias)
