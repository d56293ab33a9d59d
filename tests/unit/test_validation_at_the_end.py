"""The model that is saved has been validated, whatever `validate_every`."""

import logging

import numpy as np
import pandas as pd
import pytest
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import Pretrain
from orrery.stages.training.config import TrainerConfig
from orrery.stages.world_model.config import WorldModelConfig
from rich.console import Console

from .stores import point_mass_episodes, point_mass_spec, write_store

STEPS = 7


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "store"
    spec = point_mass_spec()
    write_store(folder, [(spec, point_mass_episodes(spec, 8, 0))])
    return folder


@pytest.mark.parametrize(
    ("validate_every", "accumulate", "steps"),
    [(3, 1, {3, 6, 7}), (7, 1, {7}), (1000, 1, {7}), (4, 2, {4, 7})],
)
def test_the_last_step_is_validated_once(store, tmp_path, validate_every, accumulate, steps):
    config = PretrainConfig(
        model=WorldModelConfig(latent_dim=8, encoder_dim=8, mlp_dim=8, task_dim=4, num_q=0, num_bins=11),
        trainer=TrainerConfig(accelerator="cpu", accumulate=accumulate, log_every=1),
        steps=STEPS, batch_size=8, horizon=3, held_out=0.3,
        validate_every=validate_every, validation_batches=1, checkpoint_every=5,
    )  # fmt: skip
    context = Context(
        tmp_path, {"store": [store]}, 1, 1, logging.getLogger("test"), ConsoleProgress(Console(quiet=True))
    )
    summary = Pretrain(config).run(context)
    validation = pd.read_csv(tmp_path / "validation.csv")
    assert set(validation.step) == steps
    assert not validation.duplicated(["step", "task", "horizon"]).any()
    assert summary.startswith("open-loop reward R2 ")
    assert np.array_equal(pd.read_csv(tmp_path / "training.csv").step, np.arange(STEPS)), "no step more, none less"
