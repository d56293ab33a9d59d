"""Data and the environment it was recorded in: actions, observations, and what is said where they disagree."""

import pytest


def test_13_bounds_make_whole_numbers_continuous(run_case) -> None:
    printed = run_case("13-whole-number-actions")
    assert "lab/one obs 2 act 1 continuous" in printed["one with bounds"]
    assert "actions: {'low': [0.0], 'high': [400.0], 'origin': 'override'}" in printed["one with bounds"]
    for name, warning in (("multi", "integers in 2 columns"), ("onehot", "one-hot with 4 columns")):
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
    assert "are reordered to match the environment" in printed[""]


@pytest.mark.slow
def test_40_choices_that_start_elsewhere(run_case) -> None:
    printed = run_case("40-choice-numbers")
    kinds = {"gap": "act 4 discrete", "floats": "act 1 continuous", "column": "act 3 discrete", "bytes": "act 2 discrete"}
    for name, kind in kinds.items():
        assert kind in printed[name]
    assert "choices_start=-1 for 3 actions" in printed["negative"]
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
        "an environment of other sizes": "observations of 3 numbers, but the data has 2 numbers",
    }.items():
        assert key in printed[title]
        assert said in printed[title]
        assert "rc=2" in printed[title]
        assert "pack: running" not in printed[title]


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


@pytest.mark.slow
def test_21_without_an_environment_there_is_a_report(run_case) -> None:
    printed = run_case("21-minari-no-environment")
    assert "rc=0" in printed["plain"]
    assert "no environment is known" in printed["plain"]
    assert "rc=0" in printed["adapt"]
    assert "obs 9 act 8 discrete" in printed["adapt"], "2 choices, 5 flags, 2 choices"


@pytest.mark.slow
def test_22_an_unknown_wrapper_is_said_before_training_and_leaves_a_report(run_case) -> None:
    printed = run_case("22-minari-unknown-wrapper")
    before, _, after = printed[""].partition("pretrain")
    assert "stable_baselines3.common.monitor:Monitor" in before
    assert "Set pack.sources.minari/pend/medium-v0.environment" in before
    assert "rc=0" in after
    assert "is not evaluated: task 'minari/pend/medium-v0': its dataset was recorded with the wrapper" in after
    assert "rc=0" in printed["environment named"]
    assert "random,pend/medium,0,2," in printed["environment named"]


def test_23_a_single_grey_frame_is_an_image(run_case) -> None:
    printed = run_case("23-minari-image-like")
    for name, shape in (("stack", "(2, 16, 16)"), ("gray", "(16, 16)")):
        assert f"observation has shape {shape}, which looks like images" in printed[name]
        assert "rc=2" in printed[name]


@pytest.mark.slow
def test_24_odd_spaces_of_minari_are_read(run_case) -> None:
    printed = run_case("24-minari-odd-spaces")
    assert "obs 4 act 5 discrete" in printed["start"]
    assert "actions: one-hot from -2" in printed["start"]
    assert "ep0 obs [[1.0, 0.0, 0.0, 0.0]" in printed["start"]
    assert "actions: {'low': [-9.0, -3.0], 'high': [9.0, 1.0]" in printed["half"]
    assert "20 of 40 episodes are shorter than the window" in printed["one"]
    assert "obs 5 act 1" in printed["tuple"]
    assert "terminated [True, True]" in printed["both"]


@pytest.mark.slow
def test_35_a_task_is_called_by_the_id_that_was_given(run_case) -> None:
    printed = run_case("35-minari-tree")
    assert "== minari/other/renamed-v3 obs 2" in printed["other/renamed-v3"]
    assert "rc=0" in printed["a copy and its original in one run"]
    assert "holds 7 more episodes than the 5 that total_episodes" in printed["tree/fewer-v0"]
    assert "episode_12 is missing, the first of 3 out of the 15 episodes" in printed["tree/more-v0"]
    assert "episode_4 is missing" in printed["tree/gap-v0"]
    assert "240 transitions" in printed["tree/arrow-v0"] or "pyarrow is not installed" in printed["tree/arrow-v0"]


@pytest.mark.slow
def test_45_rewards_beyond_the_bins_are_said_before_training(run_case) -> None:
    printed = run_case("45-large-rewards")[""]
    before, _, _ = printed.partition("true mean")
    assert "rewards exceed the reward bins, which end at 22,025" in before
    assert "Set pretrain.model.bin_limit=14 (it is 10)" in before
    assert before.index("Set pretrain") < before.index("parameters, 600 steps")
