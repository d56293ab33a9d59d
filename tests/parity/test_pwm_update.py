"""One whole extraction update, and the running variance, give the numbers of the published PWM code.

golden/pwm_update.npz was produced by imgeorgiev/PWM @aa5a1d8 from the state in pwm_forward_actor_td.npz: horizon 16,
eight rollouts, actor step, then eight passes over four critic minibatches. The update is ours with every correction
off.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from orrery.stages.extraction.config import FirstOrderConfig, ReleasedPwmConfig
from orrery.stages.extraction.first_order import FirstOrderExtraction
from orrery.stages.extraction.program import PolicySpec, RunningVariance
from orrery.stages.extraction.starts import StartLatents

from .test_pwm import ACTOR_LAYERS, NETWORKS, load_critic
from .test_tdmpc2 import load, published_model

RELEASED = ReleasedPwmConfig("symlog", True, True, 0.99, True, True)
CONFIG = FirstOrderConfig(horizon=16, batch_size=8, lambda_=0.0, networks=NETWORKS, released=RELEASED)


@pytest.fixture(scope="module")
def before():
    return load("pwm_forward_actor_td")


@pytest.fixture(scope="module")
def after():
    return load("pwm_update")


@pytest.fixture
def extraction(before):
    state = {key.removeprefix("sd_wm/"): value for key, value in before.items() if key.startswith("sd_wm/")}
    model = published_model(state, "_encoder.", action_dims=(6, 6, 6, 6)).requires_grad_(False)
    z = model.encode(before["in/obs"][0], before["in/task"])[None]
    starts = StartLatents(z, torch.zeros(1, 8, 6), z, torch.ones(1), {0: 0})
    extraction = FirstOrderExtraction(model, starts, [PolicySpec("pwm", "toy/0", 0, 0.0, True)], CONFIG, 10_000, 0)
    with torch.no_grad():
        extraction.actor.log_std.copy_(before["sd_actor/logstd"][None, None])
        for i, (linear, norm) in enumerate(ACTOR_LAYERS):
            extraction.actor.mlp.weight[i].copy_(before[f"sd_actor/mu_net.{linear}.weight"].T[None])
            extraction.actor.mlp.bias[i].copy_(before[f"sd_actor/mu_net.{linear}.bias"][None, None])
            if norm is not None:
                extraction.actor.mlp.norm_weight[i].copy_(before[f"sd_actor/mu_net.{norm}.weight"][None, None])
                extraction.actor.mlp.norm_bias[i].copy_(before[f"sd_actor/mu_net.{norm}.bias"][None, None])
    load_critic(extraction.critic, [before[f"sd_critic/params.{i}"] for i in range(10)])
    # The published batch mixes tasks within one policy.
    for name in ("tasks", "_imagining"):
        setattr(extraction, name, dataclasses.replace(extraction.tasks, task_M1=before["in/task"][None]))
    extraction._random = lambda _: (torch.arange(8)[None], before["in/eps"][:, None])
    return extraction


def test_whole_update(before, after, extraction):
    metrics = extraction.update(0)
    assert float(metrics["actor_grad_norm"][0]) == pytest.approx(after["out/actor_grad_norm"], rel=1e-4)
    assert float(metrics["critic_loss"][0]) == pytest.approx(after["out/value_loss"], rel=1e-4)
    mlp = extraction.actor.mlp
    close = {"rtol": 1e-4, "atol": 1e-4 * NETWORKS.lr}
    torch.testing.assert_close(extraction.actor.log_std[0, 0], after["sd_actor_after/logstd"], **close)
    for i, (linear, norm) in enumerate(ACTOR_LAYERS):
        torch.testing.assert_close(mlp.weight[i][0].T, after[f"sd_actor_after/mu_net.{linear}.weight"], **close)
        torch.testing.assert_close(mlp.bias[i][0, 0], after[f"sd_actor_after/mu_net.{linear}.bias"], **close)
        if norm is not None:
            torch.testing.assert_close(mlp.norm_weight[i][0, 0], after[f"sd_actor_after/mu_net.{norm}.weight"], **close)
    expected = extraction.critic.__class__(1, 64, NETWORKS)
    load_critic(expected, [after[f"sd_critic_after/params.{i}"] for i in range(10)])
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(extraction.critic.state_dict()[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_running_variance(after):
    variance = RunningVariance(1, torch.device("cpu"))
    for x, (mean, var, count) in zip(after["rms_in"], after["rms_mean_var_count"], strict=True):
        variance.update(x[None])
        assert float(variance.mean_M) == pytest.approx(float(mean), rel=1e-5, abs=1e-6)
        assert float(variance.variance_M) == pytest.approx(float(var), rel=1e-5)
        assert float(variance.count) == pytest.approx(float(count), rel=1e-6)


def test_learning_rates(after, extraction):
    for epoch, actor, critic, _ in after["lr_schedule(epoch,actor,critic,wm)of_10000"].tolist():
        extraction._set_learning_rate(int(epoch))
        assert extraction._actor_optimizer.param_groups[0]["lr"] == pytest.approx(actor, rel=1e-6)
        assert extraction._critic_optimizer.param_groups[0]["lr"] == pytest.approx(critic, rel=1e-6)
