"""The action world model over latents: no path through predicted latents, one pass equal to the cached unroll, and a
world model like any other to pretraining, extraction and diagnostics."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd
import pytest
import torch
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.pipeline.jobs.fanout import FanoutFailed
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.diagnostics.config import GradientsConfig
from orrery.stages.diagnostics.stage_gradients import Gradients
from orrery.stages.extraction.actor_critic import StackedActor
from orrery.stages.extraction.config import ActorCriticConfig, ExtractConfig, FirstOrderConfig
from orrery.stages.extraction.rollout import _roll_out, imagine, imagined_return, member_tasks
from orrery.stages.extraction.stage_extract import Extract
from orrery.stages.planning.config import check_can_plan
from orrery.stages.policy.policy import load_policy
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import Pretrain
from orrery.stages.training.config import TrainerConfig
from orrery.stages.training.module import diagnosed_horizons
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.objective import rollout_losses
from orrery.stages.world_model.open_loop import DIAGNOSED_HORIZONS, validation_length

from .stores import point_mass_episodes, point_mass_spec, write_store

LENGTH = 6
SIZES = {"latent_dim": 16, "encoder_dim": 12, "mlp_dim": 20, "task_dim": 6, "num_bins": 11, "activation": "silu"}
CONFIG = WorldModelConfig(**SIZES, dynamics="awm", awm_horizon=LENGTH, awm_width=12, awm_heads=3)
SPECS = [point_mass_spec("toy/small"), point_mass_spec("toy/wide", action_dim=3, observation_dim=4, terminates=True)]
NETWORKS = ActorCriticConfig(actor_units=(16,), critic_units=(16,), num_critics=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), [(spec, point_mass_episodes(spec, 12)) for spec in SPECS])


@pytest.fixture
def model(store):
    torch.manual_seed(0)
    model = WorldModel(CONFIG, store.table)
    torch.nn.init.normal_(model.reward[-1].weight, std=0.5)
    # Far from an untrained model's, so that a wrong path would show.
    for parameter in model.action_dynamics.decoder.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.double()


def random_rollout(model, decisions=LENGTH, rows=3):
    task = torch.arange(rows) % 2
    z = model.encode(torch.randn(rows, 4).double(), task)
    return z, torch.rand(decisions, rows, 3).double() * 2 - 1, task


def test_a_latent_depends_on_the_actions_before_it_and_on_no_other(model):
    z, action, task = random_rollout(model, rows=1)
    found = torch.autograd.functional.jacobian(lambda a: model.rollout(z, a, task)[1:, 0], action)
    jacobian = found[:, :, :, 0].abs().amax((1, 3))
    assert not torch.triu(jacobian, 1).any()  # bitwise: latent t + 1 comes before action k > t
    assert (torch.tril(jacobian) > 0).sum() == LENGTH * (LENGTH + 1) / 2


def test_one_pass_equals_the_cached_unroll_of_any_shape(model):
    z, action, task = random_rollout(model, rows=6)
    whole = model.rollout(z, action, task)
    torch.testing.assert_close(whole[0], z)
    shape = 2, 3
    task_MB, carry = task.view(shape), model.start(z.view(*shape, -1), task.view(shape))
    for t in range(LENGTH):
        found, carry = model.advance(carry, action[t].view(*shape, -1), task_MB)
        torch.testing.assert_close(found.flatten(0, 1), whole[t + 1])
    members = model.rollout(z.view(*shape, -1), action.unflatten(1, shape), task_MB)
    torch.testing.assert_close(members.flatten(1, 2), whole)
    torch.testing.assert_close(model.next_latent(z, action[0], task), whole[1])


def test_two_rollouts_may_go_on_from_one_carry(model):
    z, action, task = random_rollout(model)
    with torch.no_grad():
        carry = model.start(z, task)
        for t in range(3):
            _, carry = model.advance(carry, action[t], task)
        other = carry
        for t in range(3, LENGTH):
            turned, other = model.advance(other, -action[t], task)
            found, carry = model.advance(carry, action[t], task)
    torch.testing.assert_close(found, model.rollout(z, action, task)[-1])
    changed = torch.cat([action[:3], -action[3:]])
    torch.testing.assert_close(turned, model.rollout(z, changed, task)[-1])


def test_padded_action_components_and_other_rows_change_nothing(model):
    z, action, task = random_rollout(model)
    changed = action.clone()
    changed[:, task == 0, 1:] += 5  # this task has one component
    torch.testing.assert_close(model.rollout(z, changed, task), model.rollout(z, action, task))
    changed[:, 0, 0] += 1
    torch.testing.assert_close(model.rollout(z, changed, task)[:, 1:], model.rollout(z, action, task)[:, 1:])


def test_targets_of_the_consistency_loss_carry_no_gradient(model, store):
    from orrery.datasets.windows import WindowSampler
    from orrery.stages.world_model.config import LossConfig

    batch = WindowSampler(store, length=LENGTH, batch_size=8, seed=0).batch(0)
    batch["observation"], batch["action"] = batch["observation"].double(), batch["action"].double()
    batch["observation"].requires_grad_()
    losses, _ = rollout_losses(model, batch, LossConfig(), torch.ones(2).double())
    (gradient,) = torch.autograd.grad(losses["total"], batch["observation"])
    assert gradient[:, 0].any()
    assert not gradient[:, 1:].any()


def imagination(model, B=4):
    actor = StackedActor(2, 16, 3, NETWORKS)
    for m in range(2):
        actor.mlp.initialise_uniform(m, torch.Generator().manual_seed(m))
    tasks = member_tasks(model, [0, 1], torch.device("cpu"))
    start = model.encode(torch.randn(2, B, 4).double(), tasks.task_M1.expand(2, B))
    return actor.double(), start, torch.randn(LENGTH, 2, B, 3).double(), tasks


def test_imagination_in_one_pass_has_the_numbers_and_the_gradient_of_the_unroll(model):
    model.eval().requires_grad_(False)
    actor, start, noise, tasks = imagination(model)
    rollout = imagine(model, actor, start, noise, tasks, slice(0, 2))
    z, action = _roll_out(model, actor, start, noise, tasks, slice(0, 2))
    torch.testing.assert_close(rollout.action_HMBA, action)
    torch.testing.assert_close(torch.cat([rollout.z_HMBD[:1], rollout.next_z_HMBD]), z)
    task = tasks.task_M1.expand(LENGTH, 2, 4)
    reward = model.decode_reward(model.reward_logits(z[:-1], action, task))
    parameters = list(actor.parameters())
    one = torch.autograd.grad(rollout.reward_HMB.sum(), parameters)
    other = torch.autograd.grad(reward.sum(), parameters)
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.any()


def test_a_whole_episode_goes_on_from_the_last_latent_where_positions_end(model):
    model.eval().requires_grad_(False)
    actor, start, _, tasks = imagination(model)
    tasks = type(tasks)(tasks.task_M1, tasks.discount_M1, tasks.mask_M1A.double(), tasks.discrete_M11, False)
    found, discounted = imagined_return(model, actor, start, tasks, torch.tensor([LENGTH + 2, LENGTH]))
    # By hand, for the first member, whose task does not terminate.
    from orrery.stages.extraction.rollout import act_deterministic

    z, total, value, weight, task = start, 0.0, 0.0, 1.0, tasks.task_M1.expand(2, 4)
    for stretch in (LENGTH, 2):
        carry = model.start(z, task)
        for _ in range(stretch):
            action = act_deterministic(actor, z, tasks)
            reward = model.decode_reward(model.reward_logits(z, action, task))[0].mean()
            total, value, weight = total + reward, value + weight * reward, weight * float(tasks.discount_M1[0])
            z, carry = model.advance(carry, action, task)
    torch.testing.assert_close(found[0], total)
    torch.testing.assert_close(discounted[0], value)


def test_an_imagined_return_counts_rewards_as_often_as_episodes_get_there(model):
    """The other member's task terminates: what follows a probable end must hardly count, and no length divides it."""
    model.eval().requires_grad_(False)
    actor, start, _, tasks = imagination(model)
    tasks = type(tasks)(tasks.task_M1, tasks.discount_M1, tasks.mask_M1A.double(), tasks.discrete_M11, False)
    found, _ = imagined_return(model, actor, start, tasks, torch.tensor([LENGTH, LENGTH]))
    from orrery.stages.extraction.rollout import act_deterministic

    task = tasks.task_M1.expand(2, 4)
    z, total, alive, carry = start, 0.0, 1.0, model.start(start, task)
    for _ in range(LENGTH):
        action = act_deterministic(actor, z, tasks)
        total = total + alive * model.decode_reward(model.reward_logits(z, action, task))[1]
        z, carry = model.advance(carry, action, task)
        alive = alive * torch.sigmoid(model.continue_logits(z, task)[1])
    assert (alive < 0.9).all()
    torch.testing.assert_close(found[1], total.mean())


def test_a_horizon_beyond_the_positions_is_refused_wherever_it_is_asked_for(model):
    z, action, task = random_rollout(model, decisions=LENGTH + 1)
    with pytest.raises(ConfigError, match=r"has learned 6 positions; use at most 6, or pretrain with pretrain.horizon"):
        model.rollout(z, action, task)
    carry = model.start(z, task)
    for taken in action[:-1]:
        _, carry = model.advance(carry, taken, task)
    with pytest.raises(ConfigError, match="learned 6 positions"):
        model.advance(carry, action[-1], task)
    pretrain = PretrainConfig(model=WorldModelConfig(dynamics="awm"), horizon=16)
    assert pretrain.latent_model.awm_horizon == 16
    extract = Extract(ExtractConfig(algorithms=["pwm"], first_order=FirstOrderConfig(horizon=17)))
    with pytest.raises(ConfigError, match=r"extract.first_order.horizon is 17.*learned .*16 positions"):
        extract.check_input("world_model", Path("pretrain"), Pretrain(pretrain).promise({"store": [None]}))
    unlimited = Pretrain(PretrainConfig(horizon=5)).promise({"store": [None]})  # a step model knows no limit
    extract.check_input("world_model", Path("pretrain"), unlimited)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="expected step, awm, found 'gru'"):
        WorldModelConfig(dynamics="gru")
    with pytest.raises(ConfigError, match="multiple of awm_heads"):
        WorldModelConfig(awm_width=10, awm_heads=4)
    with pytest.raises(ConfigError, match=r"awm_horizon is 20 and pretrain.horizon 5"):
        PretrainConfig(model=WorldModelConfig(dynamics="awm", awm_horizon=20), horizon=5)
    with pytest.raises(CheckpointError, match=r"pretrain.model.dynamics=step"):
        check_can_plan(True, "awm", "the world model")


def test_validation_windows_reach_as_far_as_training_and_no_further_than_the_model():
    assert validation_length(5, None) == 16
    assert diagnosed_horizons(DIAGNOSED_HORIZONS, 16) == (1, 4, 8, 16)
    assert validation_length(5, 5) == 5
    assert diagnosed_horizons(DIAGNOSED_HORIZONS, 5) == (1, 4, 5)
    assert diagnosed_horizons(DIAGNOSED_HORIZONS, validation_length(100, 100)) == (1, 4, 8, 16, 50, 100)


def context(folder, **inputs):
    folder.mkdir()
    return Context(
        folder, {name: [path] for name, path in inputs.items()}, 1, 1, logging.getLogger(), ConsoleProgress()
    )


def test_the_stages_run_on_it(store, tmp_path):
    config = PretrainConfig(
        model=WorldModelConfig(**SIZES, dynamics="awm", awm_width=12, awm_heads=3),
        trainer=TrainerConfig(accelerator="cpu", log_every=5), steps=20, batch_size=16, horizon=LENGTH, held_out=0.2,
        validate_every=10, validation_batches=2, checkpoint_every=10,
    )  # fmt: skip
    Pretrain(config).run(context(tmp_path / "pretrain", store=store.folder))
    model = WorldModel.load(tmp_path / "pretrain")
    assert model.config.longest_prediction() == LENGTH
    validation = pd.read_csv(tmp_path / "pretrain" / "validation.csv")
    assert set(validation.horizon) == {1, 4, LENGTH}
    assert validation.latent_mse.notna().all()
    inputs = {"store": store.folder, "world_model": tmp_path / "pretrain"}
    first_order = FirstOrderConfig(horizon=LENGTH, batch_size=8, critic_passes=1, networks=NETWORKS)
    extract = ExtractConfig(
        first_order=first_order, algorithms=["pwm", "bc"], seeds=1, iterations=4, starts_per_task=64, groups=1
    )
    assert Extract(extract).run(context(tmp_path / "extract", **inputs)).startswith("4 policies")
    entry = json.loads((tmp_path / "extract" / "policies.json").read_text())["policies"][0]
    assert load_policy(tmp_path / "extract" / entry["path"]).act(torch.rand(5, 2)).shape == (5, 1)
    gradients = GradientsConfig(horizons=[2, LENGTH, 50], trajectories=8, probes=4)
    Gradients(gradients).run(context(tmp_path / "gradients", **inputs))
    table = pd.read_csv(tmp_path / "gradients" / "gradients.csv")
    assert set(table.horizon) == {2, LENGTH}
    assert (table.norm > 0).all()
    too_far = ExtractConfig(algorithms=["pwm"], first_order=FirstOrderConfig(horizon=LENGTH + 1))
    with pytest.raises(FanoutFailed, match="learned 6 positions"):
        Extract(too_far).run(context(tmp_path / "refused", **inputs))
