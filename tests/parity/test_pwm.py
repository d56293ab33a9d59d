"""Extraction's numbers are those of the published PWM code, in its released form and in the corrected one.

golden/pwm_forward_actor_td.npz was produced by imgeorgiev/PWM @aa5a1d8. The released objective sums symlog rewards,
drives padded action components and bootstraps with discount^(H + 1); here those are undone in the test.
"""

from __future__ import annotations

import pytest
import torch
from orrery.stages.extraction.actor_critic import StackedActor, StackedCritic
from orrery.stages.extraction.config import ActorCriticConfig
from orrery.stages.extraction.returns import bootstrapped_return, lambda_return
from orrery.stages.extraction.rollout import imagine, member_tasks
from orrery.stages.world_model.losses import symlog
from torchrl.objectives.value.functional import td_lambda_return_estimate

from .test_tdmpc2 import CLOSE, load, published_model

NETWORKS = ActorCriticConfig(actor_units=(40, 24, 16), critic_units=(40, 24), num_critics=3)
GAMMA = torch.tensor(0.99)
# Published sequences are Linear, Mish, LayerNorm, ...: index of each Linear, and of the LayerNorm after it.
ACTOR_LAYERS = [(0, 2), (3, 5), (6, 8), (9, None)]


@pytest.fixture(scope="module")
def golden():
    return load("pwm_forward_actor_td")


@pytest.fixture(scope="module")
def model(golden):
    state = {key.removeprefix("sd_wm/"): value for key, value in golden.items() if key.startswith("sd_wm/")}
    return published_model(state, "_encoder.", action_dims=(6, 6, 6, 6))  # as released: nothing is masked


@pytest.fixture(scope="module")
def actor(golden):
    """Eight members with the one published actor, a member for each of the eight rollouts and their tasks."""
    actor = StackedActor(8, 64, 6, NETWORKS)
    with torch.no_grad():
        actor.log_std.copy_(golden["sd_actor/logstd"].expand(8, 1, -1))
        for i, (linear, norm) in enumerate(ACTOR_LAYERS):
            actor.mlp.weight[i].copy_(golden[f"sd_actor/mu_net.{linear}.weight"].T.expand(8, -1, -1))
            actor.mlp.bias[i].copy_(golden[f"sd_actor/mu_net.{linear}.bias"].expand(8, 1, -1))
            if norm is not None:
                actor.mlp.norm_weight[i].copy_(golden[f"sd_actor/mu_net.{norm}.weight"].expand(8, 1, -1))
                actor.mlp.norm_bias[i].copy_(golden[f"sd_actor/mu_net.{norm}.bias"].expand(8, 1, -1))
    return actor


@pytest.fixture(scope="module")
def critic(golden):
    critic = StackedCritic(1, 64, NETWORKS)
    load_critic(critic, [golden[f"sd_critic/params.{i}"] for i in range(10)])
    return critic.requires_grad_(False)


def load_critic(critic, parameters):
    """From the published order: weight, bias and LayerNorm of each layer."""
    with torch.no_grad():
        for i in range(3):
            critic.mlp.weight[i].copy_(parameters[4 * i].transpose(1, 2))
            critic.mlp.bias[i].copy_(parameters[4 * i + 1][:, None])
        for i in range(2):
            critic.mlp.norm_weight[i].copy_(parameters[4 * i + 2][:, None])
            critic.mlp.norm_bias[i].copy_(parameters[4 * i + 3][:, None])


@pytest.fixture(scope="module")
def rollout(golden, model, actor):
    start = model.encode(golden["in/obs"][0], golden["in/task"])[:, None]
    tasks = member_tasks(model, golden["in/task"].tolist(), torch.device("cpu"))
    return imagine(model, actor, start, golden["in/eps"][:, :, None], tasks, slice(0, 8))


def value(critic, z_HMBD):
    """[H, 8] smallest value, of latents [H, 8, 1, D]."""
    return torch.stack([critic(z[None, :, 0])[0].amin(0) for z in z_HMBD])


def test_actor_and_critics(golden, model, actor, critic):
    z = golden["out/z0"]
    torch.testing.assert_close(actor.head(z[:, None])[:, 0], golden["out/actor_mu"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(critic(z[None])[0], golden["out/critic_all"][..., 0], rtol=1e-5, atol=2e-6)
    clamped = actor.log_std.clamp(min=NETWORKS.log_std_min)[0, 0]
    torch.testing.assert_close(clamped, golden["out/logstd_after_clamp"])


def test_imagined_rollout(golden, critic, rollout):
    torch.testing.assert_close(rollout.z_HMBD[:, :, 0], golden["out/z_buf"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(symlog(rollout.reward_HMB[..., 0]), golden["out/rew_buf"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value(critic, rollout.next_z_HMBD), golden["out/next_values"], rtol=1e-4, atol=1e-5)


def objective(critic, rollout, bootstrap_factor):
    """Released loss per sample: symlog rewards, bootstrap times `bootstrap_factor` beyond discount^H."""
    reward = symlog(rollout.reward_HMB[..., 0])
    final = value(critic, rollout.next_z_HMBD[-1:])[0] * bootstrap_factor
    return -bootstrapped_return(reward, final, torch.ones_like(reward), GAMMA)


def test_actor_loss_released_and_corrected(golden, critic, rollout):
    released = objective(critic, rollout, GAMMA)
    torch.testing.assert_close(
        released, golden["out/actor_loss_per_sample_released(gamma^(H+1) bootstrap)"], rtol=1e-5, atol=1e-5
    )
    corrected = objective(critic, rollout, 1.0)
    torch.testing.assert_close(
        corrected, golden["out/actor_loss_per_sample_corrected(gamma^H bootstrap)"], rtol=1e-5, atol=1e-5
    )
    mean = released.mean() / len(rollout.reward_HMB)
    assert float(mean.detach()) == pytest.approx(golden["out/actor_loss_div_H(detach=True,no ret_rms)"], rel=1e-5)


def test_actor_gradient(golden, actor, critic, rollout):
    parameters = list(actor.parameters())
    loss = objective(critic, rollout, GAMMA).mean() / len(rollout.reward_HMB)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    # The eight members are one policy: its gradient is the sum of theirs.
    norm = torch.stack([g.sum(0).square().sum() for g in gradients]).sum().sqrt()
    assert float(norm) == pytest.approx(golden["out/actor_grad_norm(detach=True,no ret_rms)"], rel=1e-4)
    # The published gradient is of the loss over its running deviation: the same direction.
    scale = golden["out/actor_grad_norm_preclip"] / norm
    by_name = {id(p): g.sum(0) for p, g in zip(parameters, gradients, strict=True)}
    for i, (linear, _) in enumerate(ACTOR_LAYERS):
        found = by_name[id(actor.mlp.weight[i])].T * scale
        expected = golden[f"grad_actor/mu_net.{linear}.weight"]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_actor_gradient_through_the_policys_input(golden, model, actor, critic):
    """PWM's `detach: false`: the policy's dependence on the latents that it reads is differentiated, too."""
    start = model.encode(golden["in/obs"][0], golden["in/task"])[:, None]
    tasks = member_tasks(model, golden["in/task"].tolist(), torch.device("cpu"))
    noise = golden["in/eps"][:, :, None]
    rollout = imagine(model, actor, start, noise, tasks, slice(0, 8), policy_input_gradient=1.0)
    loss = objective(critic, rollout, GAMMA).mean() / len(rollout.reward_HMB)
    assert float(loss.detach()) == pytest.approx(golden["out/actor_loss_div_H(detach=False,no ret_rms)"], rel=1e-5)
    gradients = torch.autograd.grad(loss, list(actor.parameters()))
    norm = torch.stack([g.sum(0).square().sum() for g in gradients]).sum().sqrt()
    assert float(norm) == pytest.approx(golden["out/actor_grad_norm(detach=False,no ret_rms)"], rel=1e-4)


@pytest.mark.parametrize("mask", ["released_all_ones", "last_only"])
def test_value_targets(golden, mask):
    """With done everywhere, as released, the published recursion is the one-step target; last only, TD(lambda)."""
    reward, next_value = golden["td/rew"], golden["td/next_values"]
    lambda_ = 0.0 if mask == "released_all_ones" else 0.95
    found = lambda_return(reward, next_value, torch.ones_like(reward), GAMMA, lambda_)
    torch.testing.assert_close(found, golden[f"td/target_{mask}"], **CLOSE)


def test_lambda_return_is_the_textbook_one(golden):
    reward, next_value = golden["td/rew"], golden["td/next_values"]
    found = lambda_return(reward, next_value, torch.ones_like(reward), GAMMA, 0.95)
    torch.testing.assert_close(found, golden["td/textbook_lambda_return"], **CLOSE)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
def test_lambda_return_is_torchrls(lambda_):
    """Also where the episode ends inside the rollout."""
    generator = torch.Generator().manual_seed(0)
    reward, next_value = torch.randn(2, 12, 5, generator=generator)
    terminated = torch.rand(12, 5, generator=generator) < 0.2
    done = terminated.clone()
    done[-1] = True
    columns = [x.T[..., None] for x in (next_value, reward, done, terminated)]
    expected = td_lambda_return_estimate(0.97, lambda_, *columns)[..., 0].T
    found = lambda_return(reward, next_value, (~terminated).float(), torch.tensor(0.97), lambda_)
    torch.testing.assert_close(found, expected, **CLOSE)
