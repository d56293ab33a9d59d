"""What is known of an artifact before it exists: models from every stage are refused by the same checks."""

from dataclasses import replace
from pathlib import Path

import pytest
from orrery.datasets.facts import DataFacts
from orrery.datasets.schema import TaskTable
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.pipeline.plan import plan
from orrery.stages.bpo.config import BpoStageConfig
from orrery.stages.bpo.stage_bpo import Bpo
from orrery.stages.diagnostics.config import GradientsConfig
from orrery.stages.diagnostics.stage_gradients import Gradients
from orrery.stages.dyna.config import DynaConfig
from orrery.stages.dyna.stage_dyna import Dyna
from orrery.stages.extraction.config import ExtractConfig, FirstOrderConfig, StartsConfig, SvgConfig
from orrery.stages.extraction.stage_extract import Extract
from orrery.stages.extraction.stage_starts import Starts
from orrery.stages.finetune.config import FinetuneConfig
from orrery.stages.finetune.stage_finetune import Finetune
from orrery.stages.mrq.config import MrqConfig
from orrery.stages.mrq.stage_mrq import Mrq
from orrery.stages.planning.config import MppiConfig
from orrery.stages.planning.stage_mppi import Mppi
from orrery.stages.powr.config import PowrConfig
from orrery.stages.powr.stage_powr import Powr
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import Pretrain
from orrery.stages.sequence_model.config import SequenceModelConfig
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.world_model.config import ExportTdmpc2Config, ImportTdmpc2Config, WorldModelConfig
from orrery.stages.world_model.facts import ModelFacts, read_model_facts
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.stage_export_tdmpc2 import ExportTdmpc2
from orrery.stages.world_model.stage_import_tdmpc2 import ImportTdmpc2

from .stores import point_mass_spec

OLD, NEW = DataFacts(("toy/a", "toy/b")), DataFacts(("toy/new",))


def pretrained(**settings) -> ModelFacts:
    return Pretrain(PretrainConfig(**settings)).promise({"store": [OLD]})


def finetuned(model: ModelFacts, **settings) -> ModelFacts:
    return Finetune(FinetuneConfig(**settings)).promise({"world_model": [model], "store": [NEW], "replay": []})


def imported(*tasks: str) -> ModelFacts:
    return ImportTdmpc2(ImportTdmpc2Config(tasks=list(tasks))).promise({"store": []})


AWM = finetuned(pretrained(model=WorldModelConfig(dynamics="awm", num_q=2), horizon=16))
WITHOUT_VALUES, PER_TASK = finetuned(pretrained()), finetuned(pretrained(), per_task=True)
SEQUENCE = pretrained(kind="sequence", horizon=100)
LONG = ExtractConfig(algorithms=["pwm"], first_order=FirstOrderConfig(horizon=17))


@pytest.mark.parametrize(
    ("stage", "facts", "message"),
    [
        (Extract(LONG), AWM, "extract.first_order.horizon is 17, .* later .*has learned 16 positions"),
        (Extract(ExtractConfig(tasks=["toy/z"])), AWM, "toy/z: not in the task table .* toy/a, toy/b, toy/new"),
        (Extract(ExtractConfig(tasks=["toy/a"])), PER_TASK, "toy/a: not in the task table .* holds: toy/new"),
        (
            Extract(ExtractConfig(tasks=["toy/a"], task_anchor={"toy/b": 1.0})),
            AWM,
            "extract.task_anchor names toy/b, but policies are extracted for: toy/a",
        ),
        (Finetune(FinetuneConfig(horizon=17)), AWM, "finetune.horizon is 17, .*has learned 16 positions"),
        (
            Finetune(FinetuneConfig()),
            PER_TASK,
            "finetune reads one world model, but .*later holds one for each of toy/new",
        ),
        (Mppi(MppiConfig()), AWM, "whole action sequences .dynamics is awm"),
        (Mppi(MppiConfig()), WITHOUT_VALUES, "no value functions and no policy prior"),
        (Mppi(MppiConfig()), PER_TASK, "mppi reads one world model"),
        (Mppi(MppiConfig(algorithms=["cem"])), imported(), "mppi.algorithms has cem, .*later predicts latents"),
        (Mppi(MppiConfig(tasks=["toy/z"])), imported("dmc/walker-run"), "toy/z: not in the task table"),
        (Powr(PowrConfig(states="latent")), SEQUENCE, "powr.states=latent needs a world model that predicts latents"),
        (Powr(PowrConfig(states="latent")), PER_TASK, "powr.states=latent reads one world model"),
        (Mrq(MrqConfig(start_from_world_model=True)), SEQUENCE, "mrq.start_from_world_model=true needs .* latents"),
        (Gradients(GradientsConfig()), PER_TASK, "gradients reads one world model"),
        (Bpo(BpoStageConfig()), WITHOUT_VALUES, "bpo needs a world model that predicts observations"),
        (Bpo(BpoStageConfig()), imported(), "bpo needs a world model that predicts observations"),
        (Dyna(DynaConfig()), imported(), "dyna needs a world model that predicts observations"),
        (Starts(StartsConfig(tasks=["toy/z"])), AWM, "toy/z: not in the task table"),
        (ExportTdmpc2(ExportTdmpc2Config()), WITHOUT_VALUES, "TD-MPC2 cannot .*later: it has neither values"),
    ],
)
def test_a_model_that_does_not_serve_is_refused_whoever_makes_it(stage, facts, message):
    with pytest.raises((CheckpointError, ConfigError), match=message):
        stage.check_input("world_model", Path("later"), facts)


def test_what_serves_is_not_refused():
    for facts in (imported("toy/a"), finetuned(pretrained(model=WorldModelConfig(size="1")))):
        for stage in (Mppi(MppiConfig()), Extract(LONG), Starts(StartsConfig())):
            stage.check_input("world_model", Path("later"), facts)
    for stage in (Powr(PowrConfig()), Mrq(MrqConfig()), Gradients(GradientsConfig())):  # do not read its latents
        stage.check_input("world_model", Path("later"), SEQUENCE)


def test_a_promise_is_what_the_artifact_states(tmp_path):
    table = TaskTable([point_mass_spec(name) for name in OLD.tasks])
    latent = WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, num_q=2)
    WorldModel(latent, table).save(tmp_path / "latent")
    assert read_model_facts(tmp_path / "latent") == pretrained(model=latent)
    sequence = SequenceModelConfig(horizon=10, width=8, heads=2, layers=1)
    build_model(sequence, table).save(tmp_path / "sequence")
    assert read_model_facts(tmp_path / "sequence") == pretrained(kind="sequence", sequence=sequence, horizon=10)


def test_a_plan_hands_promises_on(tmp_path):
    checkpoint = tmp_path / "model.pt"
    checkpoint.touch()
    words = ["stages=[collect,pack,import_tdmpc2,dyna]", f"import_tdmpc2.checkpoint={checkpoint}"]
    stages = discover_stages()
    config = load_config("quickstart", [*words, f"run_dir={tmp_path / 'run'}"], stages=stages)
    with pytest.raises(CheckpointError, match=r"dyna needs .* observations, but .*import_tdmpc2 predicts latents"):
        plan(config, stages)


def test_only_the_algorithms_asked_for_decide_on_the_horizon():
    for chosen, key in {"pwm": "first_order", "svg": "svg"}.items():
        long = ExtractConfig(algorithms=[chosen], svg=SvgConfig(horizon=17), first_order=FirstOrderConfig(horizon=17))
        with pytest.raises(ConfigError, match=f"extract.{key}.horizon is 17"):
            Extract(long).check_input("world_model", Path("later"), AWM)
    Extract(replace(LONG, algorithms=["svg", "bc"])).check_input("world_model", Path("later"), AWM)
    with pytest.raises(ConfigError, match=r"penalty of pwm, but algorithms is \[svg,bc\]"):
        Extract(ExtractConfig(uncertainty=[0, 1])).check()
