"""A model goes on from an earlier one exactly, or what stands against it is named."""

import pytest
import torch
from orrery.datasets.schema import TaskTable
from orrery.pipeline.errors import CheckpointError
from orrery.stages.sequence_model.config import SequenceModelConfig
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.training.warm_start import take_weights
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

from .stores import point_mass_spec

TABLE = TaskTable([point_mass_spec()])
LATENT = WorldModelConfig(latent_dim=16, encoder_dim=24, mlp_dim=24, task_dim=4)
SEQUENCE = SequenceModelConfig(kind="markov", mlp_units=(8,), horizon=5)


def test_weights_and_scales_are_those_of_the_earlier_model(tmp_path):
    latent, sequence = WorldModel(LATENT, TABLE), build_model(SEQUENCE, TABLE)
    latent.set_observation_statistics(0, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    for name, model in (("model", latent), ("sequence_model", sequence)):
        model.save(tmp_path / name)
        fresh = WorldModel(LATENT, TABLE) if model is latent else build_model(SEQUENCE, TABLE)
        assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
        take_weights(fresh, tmp_path / name, name)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(fresh.state_dict()[key], value, rtol=0, atol=0)
        assert all(parameter.requires_grad for parameter in fresh.parameters())


def test_what_differs_is_named(tmp_path):
    WorldModel(LATENT, TABLE).save(tmp_path / "latent")
    build_model(SEQUENCE, TABLE).save(tmp_path / "sequence")
    wider = WorldModelConfig(latent_dim=24, encoder_dim=24, mlp_dim=24, task_dim=4)
    with pytest.raises(CheckpointError, match="other settings than this run: latent_dim 16 -> 24;"):
        take_weights(WorldModel(wider, TABLE), tmp_path / "latent", "model")
    other = TaskTable([point_mass_spec("toy/other")])
    with pytest.raises(CheckpointError, match="has the tasks toy/point, the store has toy/other"):
        take_weights(WorldModel(LATENT, other), tmp_path / "latent", "model")
    with pytest.raises(CheckpointError, match=r"expected model.json in .*sequence, which has a sequence model"):
        take_weights(WorldModel(LATENT, TABLE), tmp_path / "sequence", "model")
