"""Rounds are ordinary runs whose configs say where policies, data and model of earlier rounds are."""

import os
import re

import gymnasium
import pytest
from orrery.pipeline.cli import main
from orrery.pipeline.config.load import discover_stages
from orrery.pipeline.errors import ConfigError
from orrery.pipeline.study.iterate import load_iteration, plan_rounds
from orrery.pipeline.study.iterate_command import score_table
from rich.console import Console

STAGES = discover_stages()


def closed():
    raise RuntimeError("the simulator has no licence")


gymnasium.register("OrreryTest/Closed-v0", closed)


def load(*overrides, experiment="iterate_cartpole"):
    return load_iteration(experiment, overrides, STAGES)


def test_a_later_round_takes_policies_and_data_of_the_earlier_ones(tmp_path):
    iteration = load("rounds=3", f"run_dir={tmp_path}", "later.collect.episodes=4", "pretrain.steps=7")
    first, second, third = iteration.rounds
    assert iteration.policies == "extract"
    assert first.stage_configs["collect"].policy is None
    assert first.settings.inputs == {}
    assert third.run_dir == tmp_path / "round_2"
    assert third.stage_configs["collect"].policy == str(tmp_path / "round_1" / "extract")
    assert third.settings.inputs == {
        "datasets": os.pathsep.join(f"{tmp_path}/round_{k}/collect" for k in (0, 1)),
        "references": f"{tmp_path}/round_0/evaluate",
    }
    assert [one.stage_configs["collect"].episodes for one in iteration.rounds] == [10, 4, 4]
    assert {one.stage_configs["pretrain"].steps for one in iteration.rounds} == {7}
    assert len({one.stage_configs["collect"].seed for one in iteration.rounds}) == 3
    assert len({one.stage_configs["evaluate"].seed for one in iteration.rounds}) == 1
    assert second.stage_configs["collect"].policy_noise == [0.0, 0.4]
    assert first.stage_configs["collect"].policy_noise == [0.0, 0.0]
    assert second.stage_configs["pretrain"].start_from == ""


def test_more_rounds_leave_those_that_are_there_alone(tmp_path):
    few, many = (load(f"rounds={count}", f"run_dir={tmp_path}").rounds for count in (2, 4))
    assert [one.resolved for one in few] == [one.resolved for one in many[:2]]


def test_what_the_command_says_wins_over_how_policies_explore_by_default(tmp_path):
    run_dir = f"run_dir={tmp_path}"
    _, second = load("rounds=2", run_dir, "collect.policy_noise=[0.1,0.2]").rounds
    assert second.stage_configs["collect"].policy_noise == [0.1, 0.2]
    _, second = load("rounds=2", run_dir, "later.collect.policy_random_share=0").rounds
    assert second.stage_configs["collect"].policy_random_share == 0


def test_a_warm_start_goes_on_from_the_model_of_the_round_before(tmp_path):
    first, second = load("rounds=2", f"run_dir={tmp_path}/it's here", "warm_start=true").rounds
    assert first.stage_configs["pretrain"].start_from == ""
    assert second.stage_configs["pretrain"].start_from == f"{tmp_path}/it's here/round_0/pretrain"


def test_data_from_elsewhere_stays_in_all_rounds(tmp_path):
    _, second = load("rounds=2", f"run_dir={tmp_path}", "inputs.datasets=/data/old").rounds
    assert second.settings.inputs["datasets"] == os.pathsep.join(["/data/old", f"{tmp_path}/round_0/collect"])


def test_a_reference_from_elsewhere_stays_and_rounds_without_scores_have_none(tmp_path):
    rounds = load("rounds=2", f"run_dir={tmp_path}", "inputs.references=/runs/old/evaluate").rounds
    assert [one.settings.inputs["references"] for one in rounds] == ["/runs/old/evaluate"] * 2
    _, second = load("rounds=2", f"run_dir={tmp_path}", "stages=[collect,pack,pretrain,extract]").rounds
    assert "references" not in second.settings.inputs


def test_a_plan_ends_where_it_depends_on_what_is_not_there_yet(tmp_path):
    first, *others = plan_rounds(load(f"run_dir={tmp_path}"), STAGES)
    assert [decision.action for decision in first] == ["run"] * 5
    assert others == [None, None]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rounds=0"], "rounds must be a number of rounds, at least 1, found '0'"),
        (["rounds=2.5"], "found '2.5'"),
        (["warm_start=yes"], "warm_start: expected true or false, found 'yes'"),
        (["policies=bc"], "policies=bc: expected a stage that makes policies: extract"),
        (["later.colect.episodes=3"], r"unknown key 'colect.episodes'. Did you mean 'collect.episodes'"),
        (["stages=[pack,pretrain,extract]"], "but iterate_cartpole has no stage 'collect'"),
        (["stages=[collect,pack,pretrain]"], "has no stage that makes policies; its stages: collect, pack, pretrain"),
        (["run_dir=a:b"], "must not have ':' in its path"),
    ],
)
def test_what_cannot_be_iterated_is_refused_before_anything_runs(overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load(*overrides)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", [[], ["--plan"]])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks=[gymnasium/OrreryTest/Closed-v0]"], "^error: task 'gymnasium/OrreryTest/Closed-v0'.*no licence"),
        (["later.tasks=[gymnasium/OrreryTest/Closed-v0]"], "^error: round_1: task 'gymnasium/Orrery.*no licence"),
        (["later.tasks=[dmc/absent]"], "^error: round_1: unknown task 'dmc/absent'"),
        (["later.pack.tasks=[dmc/walker-run]"], "^error: round_1: pack: no data for 'dmc/walker-run'"),
        (["world_model=elsewhere"], "^error: world_model=elsewhere would not be used"),
    ],
)
def test_what_run_refuses_is_refused_for_every_round_before_anything_runs(overrides, message, flag, tmp_path, capsys):
    assert main(["iterate", "iterate_cartpole", "rounds=3", f"run_dir={tmp_path}/rounds", *overrides, *flag]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert list(tmp_path.iterdir()) == []


def test_a_warm_start_needs_a_model():
    with pytest.raises(ConfigError, match="warm_start=true: the experiment has no stage 'pretrain'"):
        load("warm_start=true", experiment="powr_offline")


def test_returns_stand_where_a_round_has_no_score(tmp_path):
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "study.csv").write_text(
        "variant,group,row,algorithm,task,score,low,high,return_mean\n"
        "round_0,round_0,task,pwm,a,,,,12.5\nround_0,round_0,task,pwm,b,,,,-3\nround_0,round_0,mean,pwm,,,,,\n"
        "round_1,round_1,task,pwm,a,0.5,,,20\nround_1,round_1,mean,pwm,,0.5,0.4,0.6,\n"
    )
    console = Console(width=120)
    with console.capture() as printed:
        console.print(score_table(tmp_path))
    lines = printed.get().splitlines()
    assert lines[1].split("  ")[1].strip() == "no score, return -3 to 12.5"
    assert "0.500 [0.400, 0.600]" in lines[2]
