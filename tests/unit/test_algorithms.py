"""One list of algorithms, shared out among the stages that make them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import ConfigError
from orrery.pipeline.stage import Input, Stage

from .toy_stages import Make, Show


@dataclass(frozen=True)
class LearnConfig:
    algorithms: list[str] = field(default_factory=lambda: ["deep", "shallow"])


@dataclass(frozen=True)
class OtherConfig:
    size: int = 1


class Learn(Stage):
    """Makes two."""

    Config = LearnConfig
    output_kind = "total"
    inputs = {"numbers": Input("numbers")}
    algorithms = ("deep", "shallow")


class Other(Stage):
    """Makes one, and has no list of its own."""

    Config = OtherConfig
    output_kind = "total"
    algorithms = ("wide",)


STAGES = {"make": Make, "learn": Learn, "other": Other, "report": Show}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "base.yaml").write_text(
        "defaults: [schema, _self_]\nalgorithms: [deep]\nlearn: {algorithms: '${algorithms}'}\n"
    )
    (tmp_path / "experiments" / "toy.yaml").write_text(
        "# @package _global_\ndefaults: [/base, _self_]\nstages: [make, learn, other, report]\n"
    )
    return lambda *overrides: load_config("toy", overrides, stages=STAGES, config_dir=tmp_path)


@pytest.mark.parametrize(
    ("algorithms", "stages", "own"),
    [
        ("[deep]", ["make", "learn", "report"], ["deep"]),
        ("[wide,shallow,deep]", ["make", "learn", "other", "report"], ["shallow", "deep"]),
        ("[wide]", ["make", "other", "report"], None),
        ("[]", ["make", "report"], None),
    ],
)
def test_a_stage_runs_for_what_it_makes_and_sees_nothing_else(load, algorithms, stages, own):
    config = load(f"algorithms={algorithms}")
    assert config.settings.stages == config.resolved["stages"] == stages
    assert list(config.stage_configs) == stages
    if own is not None:
        # What decides whether the artifact is up to date knows nothing of other stages' algorithms.
        assert config.resolved["learn"]["algorithms"] == config.stage_configs["learn"].algorithms == own


def test_a_stage_may_be_told_by_itself(load):
    config = load("algorithms=[wide]", "learn.algorithms=[shallow]")
    assert config.settings.stages == ["make", "learn", "other", "report"]
    assert config.stage_configs["learn"].algorithms == ["shallow"]
    # A misspelt one is left in place, for the stage to refuse.
    assert load("learn.algorithms=[shalow]").stage_configs["learn"].algorithms == ["shalow"]


def test_a_run_that_makes_no_policies_leaves_the_list_alone(load):
    assert load("stages=[make,report]").settings.stages == ["make", "report"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["algorithms=[deep,wid]"],
            "no stage makes 'wid'. Did you mean 'wide'? Known, with their stages: deep (learn), ",
        ),
        (["algorithms=[wid]", "stages=[make]"], "no stage makes 'wid'"),
        (["algorithms=[deep,wide]", "stages=[make,learn]"], "'wide' is made by stage 'other', which `stages` does not"),
        (["algorithms=[deep,deep]"], "each may be listed once; repeated: deep"),
        (["algorithms=[]", "stages=[learn]"], "algorithms (none) leave no stage to run"),
    ],
)
def test_what_nobody_makes_is_an_error_before_anything_runs(load, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert message in str(caught.value)


def test_the_planner_is_one_word_away_and_changes_nothing_else():
    stages = discover_stages()
    before, after = (
        load_config("quickstart", overrides, stages=stages) for overrides in ([], ["algorithms=[pwm,tdmpc2_plan,bc]"])
    )
    assert set(after.settings.stages) - set(before.settings.stages) == {"mppi"}
    assert after.resolved["extract"] == before.resolved["extract"]
    assert after.resolved["mppi"]["algorithms"] == ["tdmpc2_plan"]
