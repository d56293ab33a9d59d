"""TorchRL: stores as replay buffers, the frozen model and tasks as environments, policies as modules."""

from __future__ import annotations

import warnings

import orrery
import pytest
import torch
from orrery.datasets.schema import TaskSpec
from orrery.pipeline.errors import ConfigError, DatasetError, TaskError
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from torchrl.envs.utils import check_env_specs

from . import deployed
from .stores import numbered_episode, write_store

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of TorchRL, about itself
    from torchrl.collectors import Collector

TASK = TaskSpec("toy/narrow", 3, 1, 20, terminates=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    wide = TaskSpec("toy/wide", 5, 2, 20)
    episodes = [numbered_episode(TASK, e, length, terminated=e == 1) for e, length in enumerate((4, 7, 2, 6))]
    folder = tmp_path_factory.mktemp("store")
    return write_store(folder, [(wide, [numbered_episode(wide, 0, 9)]), (TASK, episodes)])


def test_single_transitions_are_the_stores_without_a_copy(store):
    buffer = store.replay_buffer("toy/narrow", batch_size=4000)
    batch = buffer.sample()
    episode, t = batch["observation"][:, 0], batch["observation"][:, 1]
    assert batch["action"].shape == (4000, 1)
    torch.testing.assert_close(batch["next", "reward"][:, 0], 1000 * episode + t)
    torch.testing.assert_close(batch["next", "observation"][:, 1], t + 1)
    torch.testing.assert_close(batch["action"][:, 0], (t + 1) / 1000)
    assert {(int(e), int(s)) for e, s in zip(episode, t, strict=True)} == {
        (e, s) for e, length in enumerate((4, 7, 2, 6)) for s in range(length)
    }
    ends = t == torch.tensor([3, 6, 1, 5])[episode.long()]
    torch.testing.assert_close(batch["next", "done"][:, 0], ends)
    torch.testing.assert_close(batch["next", "terminated"][:, 0], ends & (episode == 1))
    torch.testing.assert_close(batch["next", "truncated"][:, 0], ends & (episode != 1))
    rows = store.rows_of("toy/narrow").rows
    assert buffer[:]["observation"].data_ptr() == rows.data_ptr()


def test_slices_lie_within_one_episode_and_none_is_held_out(store):
    held_out = store.rows_of("toy/narrow").held_out(0.25)
    batch = store.replay_buffer("toy/narrow", slice_len=3, batch_size=900, held_out=0.25).sample()
    episode, t = (batch["observation"][:, column].view(-1, 3) for column in (0, 1))
    assert (episode == episode[:, :1]).all()
    assert (t == t[:, :1] + torch.arange(3)).all()
    assert set(episode[:, 0].int().tolist()) == {e for e in (0, 1, 3) if not held_out[e]}


def test_a_replay_buffer_refuses_what_does_not_fit(store):
    with pytest.raises(DatasetError, match="slice_len: expected at most 7, the longest episode, found 8"):
        store.replay_buffer("toy/narrow", slice_len=8, batch_size=8)
    with pytest.raises(DatasetError, match="batch_size: expected a multiple of slice_len 3, found 256"):
        store.replay_buffer("toy/narrow", slice_len=3)
    with pytest.raises(TaskError, match="toy/none"):
        store.replay_buffer("toy/none")


@pytest.mark.parametrize("batch_size", [(), 3, (2, 2)])
def test_the_model_is_an_environment_of_torchrl(batch_size):
    model = deployed.world_model(deployed.arm_task())
    environment = orrery.WorldModelEnv(model, "test/arm", torch.randn(5, 3), batch_size=batch_size, max_steps=6)
    check_env_specs(environment)
    environment.set_seed(0)
    rollout = environment.rollout(10)
    assert rollout.shape[-1] == 6
    assert rollout["next", "truncated"][..., -1, 0].all()
    # Each step is the model's own.
    first = rollout[..., 0].reshape(-1)
    action = torch.nn.functional.pad(first["action"], (0, 3))
    expected, reward, _ = model.step(first["latent"], action, torch.ones(len(first), dtype=torch.int64))
    torch.testing.assert_close(first["next", "latent"], expected)
    torch.testing.assert_close(first["next", "reward"][:, 0], model.decode_reward(reward))


def test_gradients_reach_the_actions():
    environment = orrery.WorldModelEnv(deployed.world_model(deployed.arm_task()), "test/arm", torch.randn(5, 3))
    action = torch.zeros(2, requires_grad=True)
    step = environment.step(environment.reset().set("action", action))
    (gradient,) = torch.autograd.grad(step["next", "latent"].square().sum(), action)
    assert gradient.abs().min() > 0


def test_imagined_episodes_terminate():
    config = WorldModelConfig(latent_dim=16, task_dim=4, encoder_dim=24, encoder_layers=2, mlp_dim=8, num_q=0)
    model = WorldModel(config, orrery.datasets.schema.TaskTable([TASK])).freeze()
    model.continue_head[-1].bias.fill_(-3.0)
    environment = orrery.WorldModelEnv(model, "toy/narrow", torch.randn(5, 3), batch_size=4)
    check_env_specs(environment)
    rollout = environment.rollout(5)
    assert rollout["next", "terminated"].all()
    assert not rollout["next", "truncated"].any()


def test_an_environment_refuses_what_does_not_fit():
    model = deployed.world_model(deployed.arm_task())
    with pytest.raises(TaskError, match="observations of 3 numbers, found 4"):
        orrery.WorldModelEnv(model, "test/arm", torch.randn(5, 4))
    config = WorldModelConfig(latent_dim=16, task_dim=4, dynamics="awm", awm_horizon=4, num_q=0)
    with pytest.raises(ConfigError, match="expected a model with dynamics=step, found awm"):
        orrery.WorldModelEnv(WorldModel(config, model.table), "test/arm", torch.randn(5, 3))
    with pytest.raises(TaskError, match="backend: expected gymnasium or torchrl, found 'jax'"):
        orrery.make_env(deployed.arm_task(), "jax")
    with pytest.raises(TaskError, match=r"task: expected a name, such as dmc/walker-run, or a TaskSpec, found None"):
        orrery.make_env(None)


def test_a_collector_runs_a_policy_in_a_task_and_in_the_model():
    task = deployed.arm_task()
    policy = deployed.latent(task)
    real = orrery.make_env(task, "torchrl")
    check_env_specs(real)
    imagined = orrery.WorldModelEnv(deployed.world_model(task), task.name, torch.randn(5, 3), batch_size=2)
    for environment, module in [
        (real, orrery.PolicyModule(policy)),
        (imagined, orrery.PolicyModule(policy, latents=True)),
    ]:
        collector = Collector(
            environment, module, frames_per_batch=20, total_frames=20, auto_register_policy_transforms=False
        )
        (batch,) = list(collector)
        collector.shutdown()
        assert batch.numel() == 20
        assert batch["next", "done"].any()
    observation = torch.randn(4, 3)
    torch.testing.assert_close(orrery.PolicyModule(policy)(observation=observation), policy.act(observation))


def test_a_policy_on_observations_cannot_act_on_latents():
    with pytest.raises(TypeError, match="StatePolicy does not act on latents"):
        orrery.PolicyModule(deployed.state(deployed.arm_task()), latents=True)
