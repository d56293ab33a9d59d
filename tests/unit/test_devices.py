"""Devices, as far as a machine without a GPU can tell."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.pipeline.accelerator import ACCELERATORS, check_gpu, device_of, matmul_precision
from orrery.pipeline.config.load import discover_stages, dotted_keys
from orrery.pipeline.config.schema import build, make_schema
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.jobs.config import FanoutConfig
from orrery.pipeline.jobs.executors.slurm import SlurmExecutor
from orrery.stages.extraction.packing import gpu_memory
from orrery.stages.training import fit
from orrery.stages.training.config import OptimizerConfig, TrainerConfig
from orrery.stages.world_model.config import LossConfig, WorldModelConfig
from orrery.stages.world_model.module import WorldModelTraining
from orrery.stages.world_model.networks import WorldModel

STAGES = discover_stages()


def accelerator_keys():
    """Every setting of every stage that names an accelerator."""
    for name, stage in STAGES.items():
        schema = make_schema({name: (stage.Config, stage.Config())})
        for key, _ in dotted_keys(OmegaConf.to_container(schema)):
            if key.endswith(".accelerator"):
                yield name, key


KEYS = list(accelerator_keys())


def stage_with(name, key, value):
    schema = make_schema({name: (STAGES[name].Config, STAGES[name].Config())})
    OmegaConf.update(schema, key, value)
    return STAGES[name](build(STAGES[name].Config, OmegaConf.to_container(schema)[name], name))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_every_stage_that_computes_on_a_device_lets_it_be_chosen():
    assert {name for name, _ in KEYS} >= {"pretrain", "finetune", "extract", "evaluate", "mrq", "mrq_online", "powr"}


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_a_stage_takes_every_spelling_and_refuses_a_missing_gpu_by_its_key(name, key, no_gpu):
    for accelerator in ("auto", "cpu"):
        stage_with(name, key, accelerator).check_machine()
    for accelerator in ("cuda", "gpu"):
        with pytest.raises(StageError, match=rf"^{key} is {accelerator}, but no GPU is available: .*{key}=cpu"):
            stage_with(name, key, accelerator).check_machine()
    with pytest.raises(ConfigError, match=rf"^{key}: expected auto, cpu, cuda or gpu \(alias of cuda\), found 'mps'"):
        stage_with(name, key, "mps")


def test_an_accelerator_is_the_same_device_by_each_of_its_names(monkeypatch, no_gpu):
    assert {name: device_of(name).type for name in ("auto", "cpu")} == {"auto": "cpu", "cpu": "cpu"}
    with pytest.raises(StageError, match="no GPU"):
        device_of("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = {name: device_of(name).type for name in ACCELERATORS}
    assert found == {"auto": "cuda", "cpu": "cpu", "cuda": "cuda", "gpu": "cuda"}


def test_more_devices_than_there_are_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_gpu("gpu", "pretrain.trainer.accelerator", devices=2)
    check_gpu("cpu", "pretrain.trainer.accelerator", devices=3)
    for accelerator in ("gpu", "auto"):
        with pytest.raises(StageError, match=f"is {accelerator} with 4 devices, but PyTorch finds 2 here"):
            check_gpu(accelerator, "pretrain.trainer.accelerator", devices=4)


@pytest.mark.parametrize("precision", ["", "high"])
def test_a_precision_of_products_ends_with_what_set_it(precision):
    @matmul_precision(precision)
    def fails():
        assert torch.get_float32_matmul_precision() == (precision or "highest")
        torch.set_float32_matmul_precision("medium")
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.get_float32_matmul_precision() == "highest"


def test_policies_are_split_into_groups_on_a_cpu_alone():
    config = STAGES["extract"].Config
    assert [config().groups_on(device) for device in ("cpu", "cuda")] == [2, 1]
    assert [config(groups=3).groups_on(device) for device in ("cpu", "cuda")] == [3, 3]
    assert [config(accelerator=name).cores for name in ACCELERATORS] == [2, 2, 1, 1]


def test_jobs_are_packed_by_the_memory_that_is_free_on_the_fullest_gpu(monkeypatch):
    assert gpu_memory() == 0 or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: [(70, 80), (30, 80)][gpu])
    assert gpu_memory() == 30


@pytest.mark.parametrize("name", ["extract", "mrq", "mrq_online"])
def test_jobs_of_slurm_that_need_a_gpu_ask_for_one(name, no_gpu):
    fanout = FanoutConfig("slurm", time_limit_min=1.0, policies_per_job=1)
    config = STAGES[name].Config(accelerator="gpu", fanout=fanout)
    with pytest.raises(ConfigError, match=rf"{name}\.accelerator is gpu, but {name}\.fanout\.options\.gpus is 0"):
        STAGES[name](config).check()
    fanout = dataclasses.replace(fanout, options={"gpus": 1})
    fanout.check_gpus("gpu", f"{name}.accelerator")


def test_a_gpu_is_looked_for_only_where_the_jobs_run(no_gpu, monkeypatch):
    monkeypatch.setattr(SlurmExecutor, "check_machine", lambda *_: None)
    FanoutConfig("slurm", time_limit_min=1.0, options={"gpus": 1}).check_machine("cuda")
    for fanout in (FanoutConfig("inline"), FanoutConfig("local")):
        with pytest.raises(StageError, match="no GPU is available"):
            fanout.check_machine("cuda", "extract.accelerator")


@pytest.mark.parametrize(
    ("precision", "width", "units", "taken"),
    [
        ("auto", 384, True, "bf16-mixed"),
        ("auto", 384, False, "32-true"),
        ("auto", 256, True, "32-true"),
        ("32-true", 384, True, "32-true"),
    ],
)
def test_auto_precision_is_bfloat16_where_the_processor_and_the_model_gain(monkeypatch, precision, width, units, taken):
    monkeypatch.setattr("orrery.pipeline.accelerator.multiplies_bfloat16", lambda: units)
    model = WorldModel(WorldModelConfig(mlp_dim=width), TaskTable([TaskSpec("toy/a", 3, 1, 50)]))
    module = WorldModelTraining(model, LossConfig(), OptimizerConfig(), torch.ones(1), total_steps=1, log_every=1)
    assert fit._precision(TrainerConfig(accelerator="cpu", precision=precision), module) == taken
