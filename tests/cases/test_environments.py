"""Data and the environment it was recorded in: actions, observations, and what is said where they disagree."""

import pytest


def test_13_bounds_make_whole_numbers_continuous(run_case) -> None:
    printed = run_case("13-whole-number-actions")
    assert "lab/one obs 2 act 1 continuous" in printed["one with bounds"]
    assert "actions: {'low': [0.0], 'high': [400.0], 'origin': 'override'}" in printed["one with bounds"]
    for name, warning in (("multi", "whole numbers in 2 columns"), ("onehot", "a single 1 among 4 columns")):
        assert "continuous" in printed[name]
        assert warning in printed[name]


@pytest.mark.slow
def test_14_the_recorded_action_is_applied_whatever_the_bounds(run_case) -> None:
    printed = run_case("14-native-bounds-below-one")
    applied = [line.split("evaluation: [")[1] for text in printed.values() for line in text.splitlines() if "-> nat" in line]
    assert [float(line.split("]")[0]) for line in applied] == pytest.approx([0.4] * 3)
    scores = printed["whole run: bc must earn 20 * 0.4 = 8"]
    (cloned,) = [line for line in scores.splitlines() if line.startswith("bc,")]
    assert float(cloned.split(",")[4]) > 7.5, "the expert earns 8; acting at 0.4 of the data would earn 3.2"


def test_15_goal_parts_come_in_the_order_of_the_environment(run_case) -> None:
    printed = run_case("15-goal-dict-order")
    for text in printed.values():
        data, environment = (part.split("]")[0].split()[-1] for part in text.split("first observation")[1].split("[")[1:])
        assert (data, environment) == ("7.", "7.")
    assert "are put in the environment's order" in printed[""]


@pytest.mark.slow
def test_40_choices_that_start_elsewhere(run_case) -> None:
    printed = run_case("40-choice-numbers")
    kinds = {"gap": "act 4 discrete", "floats": "act 1 continuous", "column": "act 3 discrete", "bytes": "act 2 discrete"}
    for name, kind in kinds.items():
        assert kind in printed[name]
    assert "choices_start=-1 for 3 choices" in printed["negative"]
    assert "rc=2" in printed["negative"]
    assert "rc=0" in printed["from_one in Discrete(2, start=1)"]
    assert "rc=0" in printed["choices=2"]


@pytest.mark.slow
def test_34_an_environment_that_does_not_serve_is_found_before_training(run_case) -> None:
    printed = run_case("34-own-environment")
    assert "rc=0" in printed["on PYTHONPATH"]
    scores = [line.split(",") for line in printed["on PYTHONPATH"].splitlines() if line.startswith(("pwm,", "random,"))]
    assert all(row[6] for row in scores), "success is reported"
    key = "error: pack.sources.lab/slide.environment="
    for title, said in {
        "module in the current folder, not on the path": "add its folder to the environment variable PYTHONPATH",
        "id without module": "write MODULE:Slide-v0",
        "an environment of other sizes": "observations of 3 numbers, expected 2 numbers",
    }.items():
        assert key in printed[title]
        assert said in printed[title]
        assert "rc=2" in printed[title]
        assert "pack: running" not in printed[title]
        assert "starts" not in printed[title]


@pytest.mark.slow
def test_33_an_exported_policy_speaks_native_units(run_case) -> None:
    printed = run_case("33-export-units")[""]
    assert printed.count("rc=0") == 2
    assert "'units': 'environment', 'low': [-2.0], 'high': [2.0]" in printed
    assert float(printed.split("onnx and torch differ by ")[1].split()[0]) < 1e-5


@pytest.mark.slow
def test_31_an_episode_starts_where_its_seed_says(run_case) -> None:
    lines = [line for line in run_case("31-initial-states")[""].splitlines() if "skipped" not in line]
    assert len(lines) >= 5
    for line in lines:
        assert line.endswith("over policies and lanes: True; distinct initial states of 5 seeds: 5")
