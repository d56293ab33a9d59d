"""Losses, statistics and training of sequence models."""

from __future__ import annotations

import lightning
import numpy as np
import pytest
import torch
from orrery.datasets.schema import Episode
from orrery.datasets.windows import WindowSampler
from orrery.pipeline.errors import StageError
from orrery.stages.sequence_model.config import KINDS, SequenceLossConfig, SequenceModelConfig
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.sequence_model.losses import masked_mean, prediction_error, sequence_losses, set_statistics
from orrery.stages.sequence_model.module import DIAGNOSED_HORIZONS, OpenLoopSkill, SequenceModelTraining
from orrery.stages.training.config import OptimizerConfig
from orrery.stages.training.module import check_finite, diagnosed_horizons
from orrery.stages.training.progress import quiet_lightning
from tensordict import TensorDict
from torch.utils.data import DataLoader

from .stores import point_mass_episodes, point_mass_spec, write_store

LENGTH = 10


def clocked(episode, start=0):
    """The episode with the time and a constant as further columns."""
    time = np.arange(start, start + len(episode) + 1, dtype=np.float32)
    columns = [episode.observations, time[:, None], np.full((len(time), 1), 3, np.float32)]
    return Episode(np.concatenate(columns, 1), episode.actions, episode.rewards, False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two tasks: a point mass with a clock and a constant, and one that pushes the other way without them."""
    wide = point_mass_spec("toy/clocked", observation_dim=4)
    plain = point_mass_spec("toy/plain")
    episodes = [clocked(episode) for episode in point_mass_episodes(plain, 60)]
    reversed_ = point_mass_episodes(plain, 60, seed=1)
    for episode in reversed_:
        episode.actions[:] *= -1
    return write_store(tmp_path_factory.mktemp("store"), [(wide, episodes), (plain, reversed_)])


def trained(store, kind, steps, **changes):
    torch.manual_seed(0)
    # No exploration of sizes: the least that learns a linear system within seconds.
    config = SequenceModelConfig(kind=kind, horizon=LENGTH, width=24, states=8, stride=4, **changes)
    model = build_model(config, store.table)
    set_statistics(model, store)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    sampler = WindowSampler(store, length=LENGTH, batch_size=32, seed=0, held_out=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        losses = sequence_losses(model, sampler.batch(step), SequenceLossConfig(), generator)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    return model, skill(model, store, "train"), skill(model, store, "held_out")


def skill(model, store, split):
    found = OpenLoopSkill(model, LENGTH, torch.device("cpu"))
    sampler = WindowSampler(store, length=LENGTH, batch_size=64, seed=0, split=split, held_out=0.1)
    for step in range(4):
        found.add(model, sampler.batch(step))
    return tuple(found.result().values())


def test_losses_by_hand():
    assert masked_mean(torch.tensor([[1.0, 5.0], [3.0, 9.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == 2
    assert masked_mean(torch.ones(1, 1), torch.zeros(1, 1)) == 0
    predicted = torch.tensor([[[1.0, 2.0, 9.0]]])
    found = prediction_error(predicted, torch.zeros(1, 1, 3), torch.tensor([[1.0, 1.0, 0.0]]))
    assert found.tolist() == [[0.5 * (1 + 4) / 2]]


def test_statistics_find_scales_clocks_and_constants(store):
    model = build_model(SequenceModelConfig(kind="markov"), store.table)
    set_statistics(model, store)
    rows = store.tasks[0]
    last = np.zeros(len(rows.rows), bool)
    last[rows.offsets[1:] - 1] = True
    kept = rows.rows.numpy()[~last].astype(np.float64)
    np.testing.assert_allclose(model.observation_mean_KO[0], kept[:, :4].mean(0), rtol=1e-5, atol=1e-6)
    scale = model.observation_scale_KO[0].numpy()
    np.testing.assert_allclose(scale[:3], kept[:, :3].std(0), rtol=1e-5)
    assert scale[3] == 1
    np.testing.assert_allclose(model.clock_step_KO.numpy(), [[0, 0, 1 / scale[2], 0], [0, 0, 0, 0]])
    assert model.reward_scale_K[0].item() == pytest.approx(kept[:, -1].std(), rel=1e-5)
    assert model.reward_mean_K[0].item() == pytest.approx(kept[:, -1].mean(), rel=1e-5)
    change = np.diff(rows.rows.numpy()[: rows.offsets[1], 0]).std()
    assert model.difference_scale_KO[0, 0].item() == pytest.approx(change / scale[0], rel=0.5)


def windows(store):
    return WindowSampler(store, length=LENGTH, batch_size=16, seed=1).batch(0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_padded_or_not_valid_changes_no_loss_and_no_gradient(store, kind):
    torch.manual_seed(0)
    model = build_model(SequenceModelConfig(kind=kind, horizon=LENGTH, width=12, states=4, stride=4), store.table)
    set_statistics(model, store)
    batch = windows(store)
    valid = batch["valid"].clone()
    valid[:4, 6:] = False

    def losses(junk):
        changed = batch.clone()
        changed["valid"] = valid
        plain = (changed["task"] == 1)[:, None, None]
        changed["observation"][:4, 7:] += junk
        changed["observation"][..., 2:] += junk * plain
        changed["action"][:4, 6:] = junk
        changed["reward"][:4, 6:] += junk
        model.zero_grad()
        found = sequence_losses(model, changed, SequenceLossConfig(), torch.Generator().manual_seed(0))
        found["total"].backward()
        return found["total"].item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    (quiet, quiet_gradient), (loud, loud_gradient) = losses(0.0), losses(7.0)
    assert loud == pytest.approx(quiet, rel=1e-6)
    for one, other in zip(quiet_gradient, loud_gradient, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_reward_head_is_no_path_into_the_predictions(store):
    model = build_model(SequenceModelConfig(kind="awm", horizon=LENGTH, width=12), store.table)
    sequence_losses(model, windows(store), SequenceLossConfig())["reward"].backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved
    assert all(name.startswith(("reward_layers", "task_embedding")) for name in moved)
    headless = build_model(SequenceModelConfig(kind="awm", horizon=LENGTH, width=12, reward_head=False), store.table)
    assert sequence_losses(headless, windows(store), SequenceLossConfig())["reward"] == 0


@pytest.mark.parametrize("kind", ["markov", "awm", "ssm"])
def test_one_model_learns_two_tasks(store, kind):
    model, (_, reward_r2), (observation_r2, _) = trained(store, kind, 250)
    # The tasks push opposite ways, so a model that ignores the task explains next to nothing of the far columns.
    assert (observation_r2[:, -1] > 0.8).all(), observation_r2
    # In six held-out episodes a task the narrow reward hardly varies, so its R^2 is taken where it does.
    assert (reward_r2[:, 0] > 0.5).all(), reward_r2
    batch = windows(store)
    predicted = model.predict(batch["observation"][:, 0], batch["action"], batch["task"])
    first = batch["task"] == 0
    torch.testing.assert_close(predicted[first][..., 2], batch["observation"][first, 1:, 2], rtol=1e-4, atol=1e-3)


def test_skill_of_a_perfect_and_of_a_mean_prediction(store):
    model = build_model(SequenceModelConfig(kind="awm", horizon=LENGTH, width=12), store.table)
    set_statistics(model, store)
    batch = windows(store)

    def skill_of(predict):
        model.predict = predict
        found = OpenLoopSkill(model, LENGTH, torch.device("cpu"))
        found.add(model, batch)
        return found.result()["observation_r2"]

    perfect = skill_of(lambda first, action, task: batch["observation"][:, 1:])
    assert torch.allclose(perfect, torch.ones_like(perfect))
    task = batch["task"]
    means = torch.stack([batch["observation"][task == k, 1:].mean(0) for k in (0, 1)])
    mean = skill_of(lambda first, action, _: means[task])
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)


def test_horizons_that_are_diagnosed():
    assert diagnosed_horizons(DIAGNOSED_HORIZONS, 10) == (1, 5, 10)
    assert diagnosed_horizons(DIAGNOSED_HORIZONS, 60) == (1, 5, 10, 20, 50, 60)


def test_a_loss_that_is_not_finite_is_named():
    with pytest.raises(StageError, match=r"not finite at step 3 \(reward\)"):
        check_finite({"prediction": torch.tensor(1.0), "reward": torch.tensor(torch.nan)}, 3)


def test_the_module_trains_and_repeats_itself(store, tmp_path):
    quiet_lightning()

    def fit():
        torch.manual_seed(0)
        model = build_model(SequenceModelConfig(kind="awm", horizon=LENGTH, width=12), store.table)
        set_statistics(model, store)
        module = SequenceModelTraining(model, SequenceLossConfig(), OptimizerConfig(lr=1e-2), 20, log_every=10, seed=4)
        sampler = WindowSampler(store, length=LENGTH, batch_size=16, seed=1)
        loader = DataLoader([sampler.batch(step) for step in range(20)], batch_size=None, collate_fn=_same)
        trainer = lightning.Trainer(
            max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, loader, loader)
        return model, {name: value.item() for name, value in trainer.callback_metrics.items()}

    (model, metrics), (again, same) = fit(), fit()
    assert metrics.keys() >= {"train/total", "observation_r2/10/toy/plain", "reward_r2/5/toy/clocked"}
    assert metrics == pytest.approx(same, nan_ok=True)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def _same(batch: TensorDict) -> TensorDict:
    return batch
