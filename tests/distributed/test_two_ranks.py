"""Two gloo ranks on CPU train the model that one process trains on the same global batch."""

from __future__ import annotations

import json
import logging
import multiprocessing
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
import torch
from orrery.pipeline.errors import StageError
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import Pretrain
from orrery.stages.training.config import OptimizerConfig, TrainerConfig
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.module import WorldModelTraining
from safetensors.torch import load_file

from ..unit.stores import point_mass_episodes, point_mass_spec, write_store

BF16 = TrainerConfig(accelerator="cpu", precision="bf16-mixed", log_every=25)
SMALL = {"latent_dim": 16, "encoder_dim": 16, "mlp_dim": 16, "task_dim": 4}


def pretrain(folder, store, **changes):
    """Run the stage with a tiny model; `changes` go into its config."""
    devices = changes.pop("devices", 1)
    config = PretrainConfig(
        **{
            "model": WorldModelConfig(**SMALL, num_q=2, dropout=0.0),
            # Adam divides by the gradient's size, which enlarges rounding differences: few and small steps.
            "optimizer": OptimizerConfig(lr=1e-3),
            "trainer": TrainerConfig(accelerator="cpu", devices=devices, log_every=1),
            "steps": 6,
            "batch_size": 24 // devices,
            "horizon": 4,
            "held_out": 0.2,
            "validate_every": 3,
            "validation_batches": 2 // devices,
            **changes,
        }
    )
    folder.mkdir(exist_ok=True)
    stage = Pretrain(config)
    context = Context(folder, {"store": [store]}, 1, 1, logging.getLogger("test"), ConsoleProgress())
    stage.run(context)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    tasks = [point_mass_spec("toy/a"), point_mass_spec("toy/b", observation_dim=4, action_dim=2)]
    write_store(folder, [(spec, point_mass_episodes(spec, 20, seed)) for seed, spec in enumerate(tasks)])
    return folder


# Lightning warns of loaders without worker processes (batches are drawn faster without) and of its own deprecations.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_two_ranks_equal_one_process_at_the_same_global_batch(store, tmp_path):
    torch.manual_seed(0)
    one = pretrain(tmp_path / "one", store)
    two = pretrain(tmp_path / "two", store, devices=2)
    assert any(name.startswith("policy_prior") for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    # Validation is reduced over ranks: two ranks saw half of the batches each, and report on all of them.
    found, expected = (pd.read_csv(tmp_path / n / "validation.csv") for n in ("two", "one"))
    assert (found[["step", "task", "horizon"]] == expected[["step", "task", "horizon"]]).all(axis=None)
    assert found.latent_mse.notna().all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_two_ranks_equal_one_where_windows_end_early(tmp_path):
    """Padded windows: the ranks have different numbers of valid steps at each step of a batch."""
    spec = point_mass_spec("toy/ends", terminates=True)
    episodes = [
        replace(episode, terminated=True)
        for length in (3, 6, 9)
        for episode in point_mass_episodes(spec, 7, seed=length, length=length)
    ]
    named = [replace(episode, label=f"e{number}") for number, episode in enumerate(episodes)]
    write_store(tmp_path / "store", [(spec, named)])
    torch.manual_seed(0)
    one = pretrain(tmp_path / "one", tmp_path / "store")
    two = pretrain(tmp_path / "two", tmp_path / "store", devices=2)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_more_ranks_than_windows_is_one_message(store, tmp_path):
    with pytest.raises(StageError, match=r"task 'toy/a' has \d+ windows .* needs up to 401 \(400 per rank x 2 ranks\)"):
        pretrain(tmp_path / "one", store, devices=2, batch_size=400)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_rank_that_is_killed_is_named(store, tmp_path):
    def kill_one():
        while not (tmp_path / "one" / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with pytest.raises(StageError, match=r"rank \d of the training was ended from outside \(SIGKILL"):
        pretrain(tmp_path / "one", store, devices=2, steps=10**6, checkpoint_every=2)
    killer.join()


class KilledError(Exception):
    """Stands for the end of the process."""


@contextmanager
def killed_at(step, monkeypatch, where="training_step"):
    """Training is cut off when it has done `step` optimiser steps, in the next of them or in the validation there."""
    original = getattr(WorldModelTraining, where)

    def cut_off(self, batch, batch_index):
        if self.global_step == step:
            raise KilledError
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(WorldModelTraining, where, cut_off)
        yield


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("step", "where", "settings"),
    [
        (5, "training_step", {}),  # one step past the checkpoint at 4
        (5, "training_step", {"accumulate": 2}),
        (5, "training_step", {"log_every": 3}),  # the checkpoint falls between two logged steps
        (4, "validation_step", {}),  # of the step of the checkpoint at 4
        (4, "validation_step", {"accumulate": 2}),
        (6, "validation_step", {}),  # the last
    ],
)
def test_a_killed_and_resumed_pretrain_equals_an_uninterrupted_one_bit_for_bit(
    store, tmp_path, monkeypatch, step, where, settings
):
    changes = {
        "checkpoint_every": 2,
        "validate_every": 2,
        "trainer": TrainerConfig(**{"accelerator": "cpu", "log_every": 1, **settings}),
        "model": WorldModelConfig(**SMALL, num_q=2, dropout=0.1),
    }
    whole = pretrain(tmp_path / "whole", store, **changes)
    with killed_at(step, monkeypatch, where), pytest.raises(KilledError):
        pretrain(tmp_path / "resumed", store, **changes)
    resumed = pretrain(tmp_path / "resumed", store, **changes)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    for table in ("training.csv", "validation.csv"):
        assert (tmp_path / "whole" / table).read_text() == (tmp_path / "resumed" / table).read_text()
    assert json.loads((tmp_path / "whole" / "model.json").read_text())["latent_dim"] == 16


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_bf16_trains_nearly_the_same_model(store, tmp_path):
    exact = pretrain(tmp_path / "exact", store, steps=3)
    mixed = pretrain(tmp_path / "mixed", store, steps=3, trainer=BF16)
    for name, value in exact.items():
        assert mixed[name].dtype == torch.float32
        torch.testing.assert_close(mixed[name], value, atol=0.01, rtol=0.05, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow  # the compiler needs a minute
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_pretrain_equals_an_eager_one(store, tmp_path, monkeypatch):
    compiled_functions = []
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: compiled_functions.append(f) or compile_(f, **kwargs))
    eager = pretrain(tmp_path / "eager", store, steps=3)
    assert not compiled_functions
    compiled = pretrain(tmp_path / "compiled", store, steps=3, trainer=TrainerConfig(accelerator="cpu", compile=True))
    assert [function.__name__ for function in compiled_functions] == ["rollout_losses"]
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
