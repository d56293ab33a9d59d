"""Rounds are ordinary runs whose configs say where policies, data and model of earlier rounds are."""

import json
import os
import re

import gymnasium
import pytest
from orrery.pipeline.cli import main
from orrery.pipeline.config.load import discover_stages
from orrery.pipeline.errors import ConfigError
from orrery.pipeline.study.rounds import load_rounds

STAGES = discover_stages()


def closed():
    raise RuntimeError("the simulator has no licence")


gymnasium.register("OrreryTest/Closed-v0", closed)


def load(*overrides, experiment="iterate_cartpole"):
    """Configs of all rounds."""
    return [one.config for one in load_rounds(experiment, overrides, STAGES).variants]


def test_a_later_round_takes_policies_and_data_of_the_earlier_ones(tmp_path):
    rounds = load("rounds=3", f"run_dir={tmp_path}", "later.collect.episodes=4", "pretrain.steps=7")
    first, second, third = rounds
    assert first.stage_configs["collect"].policy is None
    assert first.settings.inputs == {}
    assert third.run_dir == tmp_path / "round_2"
    assert third.stage_configs["collect"].policy == str(tmp_path / "round_1" / "extract")
    assert third.settings.inputs == {
        "datasets": os.pathsep.join(f"{tmp_path}/round_{k}/collect" for k in (0, 1)),
        "references": f"{tmp_path}/round_0/evaluate",
    }
    assert [one.stage_configs["collect"].episodes for one in rounds] == [10, 4, 4]
    assert {one.stage_configs["pretrain"].steps for one in rounds} == {7}
    assert len({one.stage_configs["collect"].seed for one in rounds}) == 3
    assert len({one.stage_configs["evaluate"].seed for one in rounds}) == 1
    assert second.stage_configs["collect"].policy_noise == [0.0, 0.4]
    assert first.stage_configs["collect"].policy_noise == [0.0, 0.0]
    assert second.stage_configs["pretrain"].start_from == ""


def test_more_rounds_leave_those_that_are_there_alone(tmp_path):
    few, many = (load(f"rounds={count}", f"run_dir={tmp_path}") for count in (2, 4))
    assert [one.resolved for one in few] == [one.resolved for one in many[:2]]


def test_what_the_command_says_wins_over_how_policies_explore_by_default(tmp_path):
    run_dir = f"run_dir={tmp_path}"
    _, second = load("rounds=2", run_dir, "collect.policy_noise=[0.1,0.2]")
    assert second.stage_configs["collect"].policy_noise == [0.1, 0.2]
    _, second = load("rounds=2", run_dir, "later.collect.policy_random_share=0")
    assert second.stage_configs["collect"].policy_random_share == 0


def test_policies_that_the_round_before_trains_may_collect(tmp_path):
    for algorithm in ("bc", "pwm@1"):
        _, second = load(
            "rounds=2", f"run_dir={tmp_path}", "algorithms=[pwm,bc]", f"later.collect.policy_algorithm={algorithm}"
        )
        assert second.stage_configs["collect"].policy_algorithm == algorithm


def test_a_warm_start_goes_on_from_the_model_of_the_round_before(tmp_path):
    first, second = load("rounds=2", f"run_dir={tmp_path}/it's here", "warm_start=true")
    assert first.stage_configs["pretrain"].start_from == ""
    assert second.stage_configs["pretrain"].start_from == f"{tmp_path}/it's here/round_0/pretrain"


def test_data_from_elsewhere_stays_in_all_rounds(tmp_path):
    _, second = load("rounds=2", f"run_dir={tmp_path}", "inputs.datasets=/data/old")
    assert second.settings.inputs["datasets"] == os.pathsep.join(["/data/old", f"{tmp_path}/round_0/collect"])


def test_a_reference_from_elsewhere_stays_and_rounds_without_scores_have_none(tmp_path):
    rounds = load("rounds=2", f"run_dir={tmp_path}", "inputs.references=/runs/old/evaluate")
    assert [one.settings.inputs["references"] for one in rounds] == ["/runs/old/evaluate"] * 2
    _, second = load("rounds=2", f"run_dir={tmp_path}", "stages=[collect,pack,pretrain,extract]")
    assert "references" not in second.settings.inputs


def test_a_plan_ends_where_it_depends_on_what_is_not_there_yet(tmp_path, capsys):
    assert main(["iterate", "iterate_cartpole", f"run_dir={tmp_path}", "--plan"]) == 0
    rows = [re.split("  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["round_0", "collect", "run", "not run yet"] in rows
    assert rows[-2:] == [[f"round_{k}", f"it waits for round_{k - 1}"] for k in (1, 2)]
    assert list(tmp_path.iterdir()) == []


def test_rounds_of_an_earlier_version_are_named(tmp_path, capsys):
    (tmp_path / "iteration.json").write_text(json.dumps({"experiment": "quickstart", "overrides": [], "rounds": 2}))
    assert main(["status", str(tmp_path)]) == 2
    assert "an earlier version wrote" in capsys.readouterr().err


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
        (
            ["later.collect.policy_algorithm=pmw"],
            "collect.policy_algorithm=pmw: stage 'extract' trains pwm. Did you mean 'pwm'",
        ),
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
