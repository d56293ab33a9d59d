"""What MR.Q logs beside its losses."""

from __future__ import annotations

import pytest
from orrery.stages.mrq.config import LearnConfig, MrqConfig, NetworkConfig
from orrery.stages.mrq.offline import OfflineMember, OfflineTraining

from .stores import numbered_episode, point_mass_spec, write_store

LEARN = LearnConfig(networks=NetworkConfig(8, 8, 4, 8, 8, 8), batch_size=4, period=3)


def test_the_reward_scale_of_fixed_data_is_logged_for_every_policy(tmp_path):
    """A constant added to all rewards, as D4RL's tasks have it, changes the scale and with it the targets."""
    specs = [point_mass_spec("toy/a"), point_mass_spec("toy/b")]
    episodes = [[numbered_episode(specs[0], 0, 9)], [numbered_episode(specs[1], 1, 9)]]
    store = write_store(tmp_path, list(zip(specs, episodes, strict=True)))
    config = MrqConfig(learn=LEARN, encoder_updates=0, updates=4, log_every=2, accelerator="cpu")
    training = OfflineTraining(store, [OfflineMember(spec.name, 0) for spec in specs], config, "mrq")
    for _ in range(4):
        training.advance()
    found = [(row["iteration"], row["task"], row["reward_scale"]) for row in training.curve]
    assert all(row["model_dynamics"] > 0 for row in training.curve), "of the last burst, made between two rows"
    assert found == [(2, "toy/a", 4.0), (2, "toy/b", pytest.approx(1004.0)), (4, "toy/a", 4.0), (4, "toy/b", 1004.0)]


def test_the_terminal_loss_is_logged_where_it_is_trained(tmp_path):
    """Untrained, the terminal head drifts with the latents; without a terminal state there is no loss to report."""
    specs = [point_mass_spec("toy/endless"), point_mass_spec("toy/ends", terminates=True)]
    episodes = [[numbered_episode(spec, 0, 9, terminated=spec.terminates)] for spec in specs]
    store = write_store(tmp_path, list(zip(specs, episodes, strict=True)))
    config = MrqConfig(learn=LEARN, encoder_updates=6, updates=1, accelerator="cpu")
    training = OfflineTraining(store, [OfflineMember(spec.name, 0) for spec in specs], config, "mrq")
    while training.completed < training.total:
        training.advance()
    for row in training.curve:
        assert (row["model_done"] == 0) == (row["task"] == "toy/endless")
