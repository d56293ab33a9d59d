"""One list of algorithms, shared among the stages that train them; and the other keys that stages take from the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
from orrery.datasets.facts import DataFacts
from orrery.pipeline.config.help import experiment_help
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.pipeline.plan import plan
from orrery.pipeline.stage import Input, Stage
from rich.console import Console

from .toy_stages import Make, Show


@dataclass(frozen=True)
class LearnConfig:
    algorithms: list[str] = field(default_factory=lambda: ["deep", "shallow"])
    tasks: list[str] = field(default_factory=list)
    seeds: int = 7
    seed: int = 3


@dataclass(frozen=True)
class SelectConfig:
    tasks: list[str] = field(default_factory=list)
    seeds: int = 7


class Learn(Stage):
    """Trains two."""

    Config = LearnConfig
    output_kind = "total"
    inputs = {"numbers": Input("numbers")}
    algorithms = ("deep", "shallow")


class Other(Stage):
    """Trains one, for some of the tasks of its input."""

    Config = SelectConfig
    output_kind = "total"
    algorithms = ("wide",)
    run_keys = ("seeds",)


class Unlisted(Other):
    """Trains one, and no experiment lists it."""

    algorithms = ("tall",)


STAGES = {"make": Make, "learn": Learn, "other": Other, "unlisted": Unlisted, "report": Show}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "base.yaml").write_text("defaults: [schema, _self_]\n")
    toy = "stages: [make, learn, other, report]\n"
    for name, text in {"toy": toy, "chosen": toy + "algorithms: [wide, shallow]\n"}.items():
        (tmp_path / "experiments" / f"{name}.yaml").write_text(
            f"# @package _global_\ndefaults: [/base, _self_]\n{text}"
        )
    return lambda *overrides, experiment="toy": load_config(experiment, overrides, stages=STAGES, config_dir=tmp_path)


@pytest.mark.parametrize(
    ("algorithms", "stages", "own"),
    [
        ("[deep]", ["make", "learn", "report"], ["deep"]),
        ("[wide,shallow,deep]", ["make", "learn", "other", "report"], ["shallow", "deep"]),
        ("[wide]", ["make", "other", "report"], None),
        ("[]", ["make", "learn", "other", "report"], ["deep", "shallow"]),
        ("[tall]", ["make", "unlisted", "report"], None),
        ("[tall,deep]", ["make", "learn", "unlisted", "report"], ["deep"]),
    ],
)
def test_algorithms_choose_the_policy_stages(load, algorithms, stages, own):
    config = load(f"algorithms={algorithms}")
    assert config.settings.stages == config.resolved["stages"] == stages
    assert list(config.stage_configs) == stages
    if own is not None:
        # What decides whether the artifact is up to date knows nothing of other stages' algorithms.
        assert config.resolved["learn"]["algorithms"] == config.stage_configs["learn"].algorithms == own


def test_without_a_choice_listed_stages_train_their_defaults(load):
    assert load().settings.algorithms == load().resolved["algorithms"] == ["deep", "shallow", "wide"]
    # What the command line lists runs, and nothing beside it.
    config = load("stages=[make,unlisted]")
    assert config.settings.stages == ["make", "unlisted"]
    assert config.settings.algorithms == ["tall"]


@pytest.mark.parametrize(
    ("overrides", "stages", "trained"),
    [
        # Those of the experiment's algorithms that the listed stages train.
        (["stages=[make,other,report]"], ["make", "other", "report"], ["wide"]),
        # A stage that is typed runs, also where the experiment names none of its algorithms.
        (["stages=[make,learn,unlisted]"], ["make", "learn", "unlisted"], ["shallow", "tall"]),
        (["stages=[make,unlisted]"], ["make", "unlisted"], ["tall"]),
        (["stages=[make,report]"], ["make", "report"], []),
        (["stages=[make,learn,unlisted]", "algorithms=[deep]"], ["make", "learn"], ["deep"]),
    ],
)
def test_stages_on_the_command_line_run_whatever_the_experiments_algorithms(load, overrides, stages, trained):
    config = load(*overrides, experiment="chosen")
    assert (config.settings.stages, config.resolved["algorithms"]) == (stages, trained or ["wide", "shallow"])


def test_a_stage_may_be_told_by_itself(load):
    config = load("algorithms=[wide]", "learn.algorithms=[shallow]")
    assert config.settings.stages == ["make", "learn", "other", "report"]
    assert config.stage_configs["learn"].algorithms == ["shallow"]
    # A misspelt one is left in place, for the stage to refuse.
    assert load("learn.algorithms=[shalow]").stage_configs["learn"].algorithms == ["shalow"]


@pytest.mark.parametrize("algorithms", ["[]", "[deep]"])
def test_a_run_without_policy_stages_trains_none(load, algorithms):
    assert load("stages=[make,report]", f"algorithms={algorithms}").settings.stages == ["make", "report"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["algorithms=[deep,wid]"],
            "unknown algorithm 'wid'. Did you mean 'wide'? Known, with their stages: deep (learn), ",
        ),
        (["algorithms=[wid]", "stages=[make]"], "unknown algorithm 'wid'"),
        (
            ["algorithms=[deep,wide]", "stages=[make,learn]"],
            "'wide' is trained by stage 'other', which is missing from stages=[make,learn]",
        ),
        (["algorithms=[deep,deep]"], "algorithms must not repeat: deep"),
    ],
)
def test_what_cannot_be_trained_is_an_error_before_anything_runs(load, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert message in str(caught.value)


def test_stages_take_the_runs_keys_unless_their_own_are_set(load):
    config = load("tasks=[a,b]", "seeds=5", "seed=9", "other.seeds=1")
    assert config.stage_configs["learn"] == LearnConfig(["deep", "shallow"], ["a", "b"], 5, 9)
    assert config.stage_configs["other"] == SelectConfig([], 1)
    shown = StringIO()
    Console(file=shown, width=200).print(experiment_help(config, STAGES))
    assert "learn.seeds       5 (int)  Taken from the run's `seeds`." in shown.getvalue()
    assert "other.tasks  [] (list[str])" in shown.getvalue()


def test_another_name_is_another_report():
    stages = discover_stages()
    titles = [
        load_config("quickstart", words, stages=stages).stage_configs["report"].title for words in ([], ["name=A"])
    ]
    assert titles == ["", "A"]


@pytest.mark.parametrize("algorithm", ["mrq", "powr", "sac", "bpo", "tabular", "tdmpc2_plan"])
def test_an_algorithm_takes_the_place_of_extraction_and_changes_nothing_else(algorithm):
    stages = discover_stages()
    (stage,) = (name for name, one in stages.items() if algorithm in one.algorithms)
    before, alone, beside = (
        load_config("quickstart", overrides, stages=stages)
        for overrides in ([], [f"algorithms=[{algorithm}]"], [f"algorithms=[svg,{algorithm},bc]"])
    )
    assert before.settings.stages == ["collect", "pack", "pretrain", "extract", "evaluate", "report"]
    assert alone.settings.stages == ["collect", "pack", "pretrain", stage, "evaluate", "report"]
    assert beside.settings.stages == ["collect", "pack", "pretrain", "extract", stage, "evaluate", "report"]
    assert beside.resolved["extract"] == before.resolved["extract"]


def test_tabular_rejects_continuous_actions_before_data_is_collected():
    stages = discover_stages()
    config = load_config("quickstart", ["algorithms=[tabular]"], stages=stages)
    with pytest.raises(ConfigError, match="task 'dmc/cartpole-balance' has continuous actions"):
        plan(config, stages)
    plan(load_config("tabular", stages=stages), stages)


FROM_A_STORE = {"mrq": "mrq", "powr": "powr", "bpo": "bpo", "tabular": "tabular", "baselines_offline": "td3_bc"}
"""A stage that trains policies for tasks of a store, and an algorithm of it."""


@pytest.mark.parametrize(("stage", "algorithm"), FROM_A_STORE.items())
def test_the_tasks_of_a_run_select_among_those_of_a_store_from_outside(stage, algorithm):
    known = discover_stages()
    overrides = ["tasks=[metaworld/reach-v3]", f"algorithms=[{algorithm}]", "inputs.store=runs/other/pack"]
    config = load_config("quickstart", overrides, stages=known).stage_configs[stage]
    assert config.tasks == ["metaworld/reach-v3"]
    with pytest.raises(
        CheckpointError, match=r"reach-v3: not in the task table of the store in \S+pack, which holds: t/a"
    ):
        known[stage](config).check_input("store", Path("runs/other/pack"), DataFacts(("t/a",)))
