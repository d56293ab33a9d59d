"""TD-MPC2's 80 tasks: their order, sizes and names, and the 11 that it adds to dm_control, built here."""

import json
import logging
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from orrery.datasets.schema import TaskTable
from orrery.datasets.tasks import (
    SETS,
    expand_names,
    make_environment,
    resolve_name,
    task_names,
    task_spec,
    tdmpc2_rewards,
)
from orrery.datasets.tasks.tdmpc2 import MT30
from orrery.pipeline.errors import ConfigError, StageError, TaskError
from orrery.pipeline.stage import Context
from orrery.stages.data.config import CollectConfig, PackConfig, SourceConfig
from orrery.stages.data.stage_collect import Collect
from orrery.stages.data.stage_pack import Pack

CUSTOM = MT30[19:]

PUBLISHED_METAWORLD = """
    mw-assembly mw-basketball mw-button-press-topdown mw-button-press-topdown-wall mw-button-press mw-button-press-wall
    mw-coffee-button mw-coffee-pull mw-coffee-push mw-dial-turn mw-disassemble mw-door-open mw-door-close
    mw-drawer-close mw-drawer-open mw-faucet-open mw-faucet-close mw-hammer mw-handle-press-side mw-handle-press
    mw-handle-pull-side mw-handle-pull mw-lever-pull mw-peg-insert-side mw-peg-unplug-side mw-pick-out-of-hole
    mw-pick-place mw-pick-place-wall mw-plate-slide mw-plate-slide-side mw-plate-slide-back mw-plate-slide-back-side
    mw-push-back mw-push mw-push-wall mw-reach mw-reach-wall mw-shelf-place mw-soccer mw-stick-push mw-stick-pull
    mw-sweep-into mw-sweep mw-window-open mw-window-close mw-bin-picking mw-box-close mw-door-lock mw-door-unlock
    mw-hand-insert
"""

PUBLISHED_SIZES = [
    # ids, their names as TD-MPC2 spells them, columns of observation and action
    (range(3), "walker-stand walker-walk walker-run", 24, 6),
    (range(3, 4), "cheetah-run", 17, 6),
    (range(4, 6), "reacher-easy reacher-hard", 6, 2),
    (range(6, 7), "acrobot-swingup", 6, 1),
    (range(7, 8), "pendulum-swingup", 3, 1),
    (range(8, 12), "cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse", 5, 1),
    (range(12, 13), "cup-catch", 8, 2),
    (range(13, 14), "finger-spin", 9, 2),
    (range(14, 16), "finger-turn-easy finger-turn-hard", 12, 2),
    (range(16, 17), "fish-swim", 24, 5),
    (range(17, 19), "hopper-stand hopper-hop", 15, 4),
    (range(19, 21), "walker-walk-backwards walker-run-backwards", 24, 6),
    (range(21, 25), "cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump", 17, 6),
    (range(25, 26), "hopper-hop-backwards", 15, 4),
    (range(26, 28), "reacher-three-easy reacher-three-hard", 8, 3),
    (range(28, 29), "cup-spin", 8, 2),
    (range(29, 30), "pendulum-spin", 3, 1),
    (range(30, 80), PUBLISHED_METAWORLD, 39, 4),
]


@pytest.mark.parametrize(("ids", "names", "observation_dim", "action_dim"), PUBLISHED_SIZES)
def test_ids_and_sizes_are_the_published_ones(ids, names, observation_dim, action_dim):
    for task_id, name in zip(ids, names.split(), strict=True):
        spec = task_spec(SETS["mt80"][task_id])
        assert resolve_name(name) == spec.name
        assert (spec.observation_dim, spec.action_dim, spec.action_repeat) == (observation_dim, action_dim, 2)
        assert (spec.episode_length, spec.discount) == ((500, 0.99) if task_id < 30 else (100, 0.95))


def test_the_sets_are_tables_of_the_published_widths():
    small, large = (TaskTable([task_spec(task) for task in SETS[name]]) for name in ("mt30", "mt80"))
    assert (len(small), small.observation_dim, small.action_dim) == (30, 24, 6)
    assert (len(large), large.observation_dim, large.action_dim) == (80, 39, 6)
    assert large.names[:30] == small.names
    assert sorted(large.names[30:]) == task_names("metaworld")


def test_describing_a_set_imports_no_simulator():
    program = (
        "import sys; from orrery.datasets.tasks import SETS, task_spec; [task_spec(name) for name in SETS['mt80']];"
        "print({'mujoco', 'dm_control', 'metaworld'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout == b"set()\n"


def test_every_spelling_of_a_task_names_one_task():
    for name in task_names("dmc"):
        assert resolve_name(name.replace("_", "-")) == name
    assert resolve_name("dmc/cup-spin") == resolve_name("cup-spin") == "dmc/ball_in_cup-spin"
    assert resolve_name("mw-push-back") == "metaworld/push-back-v3"
    assert set(CUSTOM) < set(task_names("dmc"))
    with pytest.raises(TaskError, match=r"unknown task 'cheetah-jumps': the nearest are dmc/cheetah-jump,"):
        resolve_name("cheetah-jumps")
    with pytest.raises(TaskError, match="nearest are mt30"):
        resolve_name("mt-30")


def test_a_list_of_tasks_may_name_a_set():
    assert expand_names(["dmc/cup-catch", "mt30"]) == ["dmc/ball_in_cup-catch", *MT30]
    others = ["minari/mujoco/hopper/medium-v0", "data/walker-walk.hdf5", "/tmp/minari/walker"]
    assert expand_names(others) == others
    assert expand_names(["mw-reach", "hopper-hop"], keep={"hopper-hop"}) == ["metaworld/reach-v3", "hopper-hop"]


def test_collect_expands_a_set_before_it_looks_for_repetitions():
    with pytest.raises(ConfigError, match="repeats a task: dmc/walker-walk"):
        Collect(CollectConfig(tasks=["mt30", "walker-walk"])).check()
    Collect(CollectConfig(tasks=["mt80"])).check()


def test_pack_finds_what_was_collected_under_a_set_or_another_spelling(tmp_path):
    entries = {name: {"path": f"minari/{number}"} for number, name in enumerate(MT30)}
    (tmp_path / "datasets.json").write_text(json.dumps({"tasks": entries}))
    inputs = {"datasets": [tmp_path]}
    context = Context(tmp_path, inputs, 1, 1, logging.getLogger("test"), nullcontext)

    def sources(*names, **settings):
        return [reader["source"] for reader in Pack(PackConfig(list(names), **settings))._readers(context)]

    assert sources("cup-spin", "mt30")[:2] == [str(tmp_path / "minari/28"), str(tmp_path / "minari/0")]
    assert len(sources("mt30")) == 30
    with pytest.raises(StageError, match="no data for 'metaworld/assembly-v3'"):
        sources("mt80")
    assert sources("cup-spin", sources={"cup-spin": SourceConfig("own.hdf5")}) == ["own.hdf5"]
    with pytest.raises(ConfigError, match="'dmc/dog-run', which is not in tasks: mt30"):
        PackConfig(["mt30"], sources={"dmc/dog-run": SourceConfig("own.hdf5")})
    PackConfig(["mt30"], sources={"dmc/walker-run": SourceConfig("own.hdf5")})


# A Gaussian that is 0.1 at its margin is 0.1 ** 0.25 half way there.
HALF_WAY = 0.1**0.25


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        # Standing upright, from full speed over half of it to rest: 1, (5 / 2 + 1) / 6, 1 / 6.
        (("walker_backwards", 1.2, 1.0, -1.0, {"speed": 1}), 1.0),
        (("walker_backwards", 1.2, 1.0, -0.5, {"speed": 1}), 3.5 / 6),
        (("walker_backwards", 1.2, 1.0, 0.0, {"speed": 1}), 1 / 6),
        (("walker_backwards", 1.2, 1.0, 3.0, {"speed": 1}), 1 / 6),
        (("walker_backwards", 1.2, 1.0, -1.0, {"speed": 8}), (5 / 8 + 1) / 6),
        (("walker_backwards", 1.2, 1.0, -8.0, {"speed": 8}), 1.0),
        # 0.6 m high and upside down; 0.9 m high and lying.
        (("walker_backwards", 0.6, -1.0, -1.0, {"speed": 1}), 0.3 / 4),
        (("walker_backwards", 0.9, 0.0, -9.0, {"speed": 8}), (3 * HALF_WAY + 0.5) / 4),
        (("cheetah_run_backwards", -8.0), 1.0),
        (("cheetah_run_backwards", -10.0), 1.0),
        (("cheetah_run_backwards", -2.0), 0.25),
        (("cheetah_run_backwards", 5.0), 0.0),
        (("cheetah_run_on_one_foot", 1.2, 1.3, 6.0), 1.0),
        (("cheetah_run_on_one_foot", 1.2, 1.3, 3.0), 3.5 / 6),
        (("cheetah_run_on_one_foot", 1.2, 1.3, -3.0), 1 / 6),
        (("cheetah_run_on_one_foot", 0.6, 1.2, 7.0), (3 + 0.2) / 5),
        (("cheetah_run_on_one_foot", 1.2, 0.9, 6.0), (3 * HALF_WAY + 2) / 5),
        (("cheetah_jump", 1.6, (0.8, 0.8), 0.5), 1.0),
        (("cheetah_jump", 1.6, (0.8, 0.8), -0.75), 5.5 / 6),
        (("cheetah_jump", 1.6, (0.8, 0.8), 1.0), 5 / 6),
        (("cheetah_jump", 1.2, (1.2, 0.6), 0.0), (2.5 * (1 + HALF_WAY) + 1) / 6),
        (("hopper_hop_backwards", 0.6, -1.0), 1.0),
        (("hopper_hop_backwards", 2.0, -0.5), 0.5),
        (("hopper_hop_backwards", 1.0, 0.0), 0.0),
        (("hopper_hop_backwards", 1.0, 1.0), 0.0),
        (("hopper_hop_backwards", 0.59, -1.0), 0.0),
        (("hopper_hop_backwards", 2.01, -1.0), 0.0),
        (("cup_spin", 0.5, 6.0, False), 1.0),
        (("cup_spin", 0.25, 6.0, False), 2.5 / 3),
        (("cup_spin", 0.5, 3.0, False), 2 / 3),
        (("cup_spin", 0.125, 1.5, False), (0.25 + 0.5) / 3),
        (("cup_spin", 0.5, 6.0, True), 0.0),
        (("pendulum_spin", 9.0), 1.0),
        (("pendulum_spin", -9.0), 1.0),
        (("pendulum_spin", -4.5), 0.5),
        (("pendulum_spin", 2.25), 0.25),
        (("pendulum_spin", 0.0), 0.0),
    ],
)
def test_rewards_at_points_worked_out_by_hand(reward, expected):
    name, *values = reward
    keywords = values.pop() if isinstance(values[-1], dict) else {}
    assert getattr(tdmpc2_rewards, name)(*values, **keywords) == pytest.approx(expected, abs=1e-12)


def reward_in(name, **state):
    """The reward of a task with its model in a given state; positions by joint, velocities as `d_<joint>`."""
    simulated = make_environment(task_spec(name)).native._environment
    simulated.reset()
    physics = simulated.physics
    with physics.reset_context():
        for joint, value in state.items():
            kind = "qvel" if joint.startswith("d_") else "qpos"
            getattr(physics.named.data, kind)[joint.removeprefix("d_")] = value
    return simulated.task.get_reward(physics), physics


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        # The walker's torso is 1.3 m high at the origin and upright; a root velocity moves every body alike.
        ("dmc/walker-walk-backwards", {"d_rootx": -1.0}, 1.0),
        ("dmc/walker-walk-backwards", {"d_rootx": 1.0}, 1 / 6),
        ("dmc/walker-run-backwards", {"d_rootx": -4.0}, 3.5 / 6),
        ("dmc/cheetah-run-backwards", {"d_rootx": -4.0}, 0.5),
        # 2 m above where they start, the cheetah's torso and feet are all over 1.2 m.
        ("dmc/cheetah-run-front", {"rootz": 2.0, "d_rootx": 3.0}, 3.5 / 6),
        ("dmc/cheetah-jump", {"rootz": 2.0, "d_rootx": 0.75}, 5.5 / 6),
        # The hopper stands straight, its torso 0.98 m above its foot.
        ("dmc/hopper-hop-backwards", {"d_rootx": -0.5}, 0.5),
        # At rest the ball hangs 0.35 m below the middle of the cup; (1 - 0.15 / 0.25 / 2 + 2 * 5 / 6) / 3.
        ("dmc/ball_in_cup-spin", {"d_ball_x": 3.0, "d_ball_z": 4.0}, (0.7 + 5 / 3) / 3),
        ("dmc/ball_in_cup-spin", {"ball_z": 0.35, "d_ball_x": 6.0}, 0.0),
        ("dmc/pendulum-spin", {"d_hinge": -4.5}, 0.5),
    ],
)
def test_rewards_are_taken_from_the_state_of_the_model(name, state, expected):
    assert reward_in(name, **state)[0] == pytest.approx(expected, abs=1e-9)


def test_running_on_the_front_foot_lifts_the_back_one_and_the_other_way_round():
    # Nose down the back foot is up; the torso's height is the same for both.
    front = reward_in("dmc/cheetah-run-front", rooty=np.pi / 2)[0]
    back = reward_in("dmc/cheetah-run-back", rooty=np.pi / 2)[0]
    assert front > 1.5 * back
    assert (
        reward_in("dmc/cheetah-run-front", rooty=-np.pi / 2)[0] < reward_in("dmc/cheetah-run-back", rooty=-np.pi / 2)[0]
    )


@pytest.mark.parametrize(("name", "target"), [("dmc/reacher-three-easy", 0.05), ("dmc/reacher-three-hard", 0.015)])
def test_the_reacher_has_three_links(name, target):
    shoulder, elbow, wrist = 0.3, np.deg2rad(70), np.deg2rad(-50)
    _, physics = reward_in(name, shoulder=shoulder, elbow=elbow, wrist=wrist)
    angles = np.cumsum([shoulder, elbow, wrist])
    finger = 0.09 * np.array([np.cos(angles).sum(), np.sin(angles).sum()])
    np.testing.assert_allclose(physics.named.data.geom_xpos["finger", :2], finger, atol=1e-12)
    np.testing.assert_allclose(np.rad2deg(physics.model.jnt_range), [[0, 0], [-80, 80], [-80, 80]])
    assert physics.model.jnt_limited.tolist() == [0, 1, 1]
    assert physics.named.model.geom_size["target", 0] == target

    environment = make_environment(task_spec(name))
    observation, _ = environment.reset(seed=0)
    physics = environment.native._environment.physics
    np.testing.assert_allclose(observation[:3], physics.data.qpos, atol=1e-6)
    np.testing.assert_array_equal(observation[5:], 0)
    # Full reward where the surfaces touch: the finger's radius is 0.01.
    task = environment.native._environment.task
    for distance, expected in ((0.99 * (target + 0.01), 1), (1.01 * (target + 0.01), 0)):
        with physics.reset_context():
            physics.named.model.geom_pos["target", :2] = [0.27 - distance, 0]
        assert task.get_reward(physics) == expected
    # One motor per joint, in the order of the joints.
    assert physics.model.actuator_trnid[:, 0].tolist() == [0, 1, 2]


def test_cup_spin_starts_in_the_cup_nine_times_out_of_ten():
    environment = make_environment(task_spec("cup-spin"))
    physics = environment.native._environment.physics
    inside = 0
    for seed in range(200):
        environment.reset(seed=seed)
        assert physics.data.ncon == 0
        inside += physics.in_target()
    # 180 expected with a standard deviation of 4.2.
    assert 163 <= inside <= 197


@pytest.mark.parametrize("name", CUSTOM)
def test_an_added_task_plays_500_decisions_that_its_seed_decides(name):
    spec = task_spec(name)
    actions = np.random.default_rng(0).uniform(-1, 1, (500, spec.action_dim)).astype(np.float32)
    used, fresh = make_environment(spec), make_environment(spec)
    used.reset(seed=5)
    for action in actions[:20]:
        used.step(action)

    first, again = used.reset(seed=11)[0], fresh.reset(seed=11)[0]
    assert first.shape == (spec.observation_dim,)
    np.testing.assert_array_equal(first, again)
    ends = []
    for action in actions:
        observation, reward, terminated, truncated, _ = used.step(action)
        repeated, repeated_reward, *_ = fresh.step(action)
        np.testing.assert_array_equal(observation, repeated)
        assert reward == repeated_reward
        assert np.isfinite(observation).all()
        assert 0 <= reward <= 2
        ends.append((terminated, truncated))
    assert ends == [(False, False)] * 499 + [(False, True)]
    assert not np.array_equal(first, used.reset(seed=12)[0])
