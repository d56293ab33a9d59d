"""The stages powr, powr_online and tabular: artifacts that load, what they refuse, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from orrery.datasets.rollout import EpisodeResult, play_episodes
from orrery.datasets.schema import Episode, TaskSpec
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import ConfigError, DatasetError, OrreryError, StageError
from orrery.pipeline.jobs.config import FanoutConfig
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.policy.policy import load_policy
from orrery.stages.powr import job as powr_job
from orrery.stages.powr.config import KernelPlannerConfig, OfflineConfig, PowrConfig, PowrOnlineConfig, discrete_task
from orrery.stages.powr.curves import completed_returns, failure_warnings
from orrery.stages.powr.online import OnlineLearner
from orrery.stages.powr.stage_powr import Powr
from orrery.stages.powr.stage_powr_online import PowrOnline
from orrery.stages.tabular.config import TabularConfig
from orrery.stages.tabular.stage_tabular import Tabular
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

from .grown import computed, contents, pack_store
from .stores import point_mass_episodes, point_mass_spec, write_store

LENGTH = 6
"""States of the chain; the last is terminal and pays 1."""


def chain_spec():
    return TaskSpec("toy/chain", LENGTH, 2, 20, action_kind="discrete", terminates=True, discount=0.9)


def chain_episodes(count=40, seed=0):
    """Left or right at random along a chain of one-hot states, from the first to the last or 20 steps."""
    random, episodes = np.random.default_rng(seed), []
    for _ in range(count):
        states, actions, rewards = [0], [], []
        while states[-1] < LENGTH - 1 and len(actions) < 20:
            actions.append(int(random.integers(2)))
            states.append(max(states[-1] + 2 * actions[-1] - 1, 0))
            rewards.append(float(states[-1] == LENGTH - 1))
        eye, choice = np.eye(LENGTH, dtype=np.float32), np.eye(2, dtype=np.float32)
        episodes.append(Episode(eye[states], choice[actions], np.array(rewards, np.float32), states[-1] == LENGTH - 1))
    return episodes


def context_of(folder, name="out", **inputs):
    (folder / name).mkdir(exist_ok=True)
    given = {key: [value] for key, value in inputs.items()}
    return Context(folder / name, {"world_model": [], **given}, 1, 1, logging.getLogger("test"), ConsoleProgress())


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    write_store(folder, [(chain_spec(), chain_episodes())])
    return folder


@pytest.fixture(scope="module")
def point_mass(tmp_path_factory):
    folder = tmp_path_factory.mktemp("point_mass")
    spec = point_mass_spec()
    write_store(folder, [(spec, point_mass_episodes(spec, 40))])
    return folder


def small(**changes):
    planner = KernelPlannerConfig(centres=40, ridge=1e-4, step_size=1.0, steps=3)
    return OfflineConfig(**{"planner": planner, "max_rows": 400, "num_candidates": 5, **changes})


def policies_of(folder):
    index = json.loads((folder / "policies.json").read_text())
    return {(entry["task"], entry["seed"]): load_policy(folder / entry["path"]) for entry in index["policies"]}


RIGHT = [1] * (LENGTH - 1)


def chosen(policy):
    return policy.act(torch.eye(LENGTH))[:-1].argmax(1).tolist()


@pytest.mark.parametrize("method", ["value_iteration", "policy_iteration", "mirror_descent"])
def test_tabular_solves_the_chain(chain, tmp_path, method):
    summary = Tabular(TabularConfig(method=method)).run(context_of(tmp_path, store=chain))
    assert "1 policy" in summary
    assert f"over {LENGTH} states" in summary
    (policy,) = policies_of(tmp_path / "out").values()
    assert chosen(policy) == RIGHT


def test_tabular_avoids_what_was_never_tried(tmp_path):
    """Left pays -1 and right was never tried: avoided, or taken because 0 is more than -1."""
    spec = TaskSpec("toy/one", 2, 2, 5, action_kind="discrete", discount=0.9)
    eye = np.eye(2, dtype=np.float32)
    left = Episode(eye[[0, 1, 0]], eye[[0, 0]], np.full(2, -1, np.float32), False)
    write_store(tmp_path / "store", [(spec, [left])])
    for unseen, expected in (("avoid", [0, 0]), ("zero", [1, 1])):
        Tabular(TabularConfig(unseen=unseen)).run(context_of(tmp_path, unseen, store=tmp_path / "store"))
        (policy,) = policies_of(tmp_path / unseen).values()
        assert policy.act(torch.eye(2)).argmax(1).tolist() == expected


def test_tabular_gives_terminal_states_no_value(tmp_path):
    """Action 0 ends with 2; action 1 goes on, with 1 now and 1.5 at the end. The end looks like the start."""
    spec = TaskSpec("toy/loop", 2, 2, 5, action_kind="discrete", terminates=True, discount=0.9)
    eye = np.eye(2, dtype=np.float32)
    short = Episode(eye[[0, 0]], eye[[0]], np.array([2], np.float32), True)
    long = Episode(eye[[0, 1, 0]], eye[[1, 0]], np.array([1, 1.5], np.float32), True)
    write_store(tmp_path / "store", [(spec, [short, long])])
    Tabular(TabularConfig()).run(context_of(tmp_path, store=tmp_path / "store"))
    (policy,) = policies_of(tmp_path / "out").values()
    assert policy.act(torch.eye(2)).argmax(1).tolist() == [1, 0]  # 1 + 0.9 * 1.5 > 2
    long.rewards[1] = 1.0  # 1.9 < 2, but for an end that were worth another turn
    write_store(tmp_path / "less", [(spec, [short, long])])
    Tabular(TabularConfig()).run(context_of(tmp_path, "second", store=tmp_path / "less"))
    (policy,) = policies_of(tmp_path / "second").values()
    assert policy.act(torch.eye(2)).argmax(1).tolist() == [0, 0]


def test_tabular_refuses_what_is_not_discrete(point_mass, tmp_path):
    with pytest.raises(ConfigError, match="task 'toy/point' has continuous actions"):
        Tabular(TabularConfig()).run(context_of(tmp_path, store=point_mass))
    spec = TaskSpec("toy/many", 2, 2, 5, action_kind="discrete")
    observations = np.random.default_rng(0).random((40, 2), dtype=np.float32)
    episode = Episode(observations, np.eye(2, dtype=np.float32)[np.zeros(39, int)], np.zeros(39, np.float32), False)
    write_store(tmp_path / "store", [(spec, [episode])])
    with pytest.raises(DatasetError, match="40 distinct observations in 40 rows, expected at most 20"):
        Tabular(TabularConfig(max_states=20)).run(context_of(tmp_path, store=tmp_path / "store"))
    with pytest.raises(ConfigError, match="method: expected value_iteration"):
        TabularConfig(method="guess")


@pytest.mark.parametrize("stage", [Tabular(TabularConfig()), Powr(PowrConfig(seeds=1, offline=small()))])
def test_rewards_that_are_not_finite_are_refused(stage, tmp_path):
    episodes = chain_episodes(5)
    episodes[2].rewards[0] = np.nan
    write_store(tmp_path / "store", [(chain_spec(), episodes)])
    with pytest.raises(OrreryError, match=r"the reward of row \d+ is nan"):
        stage.run(context_of(tmp_path, store=tmp_path / "store"))


def test_powr_on_one_hot_observations_is_the_tabular_solution(chain, tmp_path):
    planner = KernelPlannerConfig(centres=2 * LENGTH, ridge=1e-8, step_size=5.0, steps=15, step_growth=1.5)
    config = PowrConfig(seeds=2, offline=small(planner=planner, start="uniform", held_out=0.0))
    Powr(config).run(context_of(tmp_path, store=chain))
    for policy in policies_of(tmp_path / "out").values():
        assert policy.config.kernel == "delta"
        assert chosen(policy) == RIGHT
    facts = pd.read_csv(tmp_path / "out" / "fit.csv")
    # The way right is 5 steps long and pays at the last: 0.9^4.
    assert facts["value_at_start"].to_numpy() == pytest.approx([0.9**4] * 2, rel=1e-3)
    assert (facts["spectral_radius"] < 1).all()


@pytest.mark.parametrize("changes", [{}, {"penalty": 0.5}, {"candidates": "grid"}, {"start": "uniform"}])
def test_powr_on_continuous_actions(point_mass, tmp_path, changes):
    config = PowrConfig(seeds=1, action="mean" if changes else "mode", offline=small(**changes))
    Powr(config).run(context_of(tmp_path, store=point_mass))
    (policy,) = policies_of(tmp_path / "out").values()
    action = policy.act(torch.randn(9, 2))
    assert action.shape == (9, 1)
    assert float(action.abs().max()) <= 1
    facts = pd.read_csv(tmp_path / "out" / "fit.csv").iloc[0]
    assert facts["choices"] == (3 if "candidates" in changes else 5)
    assert 0 < facts["td_error_held_out"] < 20


def test_powr_refuses_continuous_actions_without_candidates(point_mass, tmp_path):
    with pytest.raises(StageError, match=r": toy/point: .* there are no candidates; set candidates: kmeans"):
        Powr(PowrConfig(offline=small(candidates="none"))).run(context_of(tmp_path, store=point_mass))


def test_powr_refuses_more_centres_than_rows(point_mass, tmp_path):
    offline = small(planner=KernelPlannerConfig(centres=5000))
    with pytest.raises(StageError, match=r": toy/point: 5000 centres of 400 rows"):
        Powr(PowrConfig(offline=offline)).run(context_of(tmp_path, store=point_mass))


def test_powr_on_latents(point_mass, tmp_path):
    config = PowrConfig(states="latent", components=3, seeds=1, offline=small())
    with pytest.raises(ConfigError, match="needs a world model: run pretrain"):
        Powr(config).run(context_of(tmp_path, store=point_mass))
    spec = point_mass_spec()
    from orrery.datasets.schema import TaskTable

    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4), TaskTable([spec]))
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    Powr(config).run(context_of(tmp_path, store=point_mass, world_model=tmp_path / "model"))
    (policy,) = policies_of(tmp_path / "out").values()
    observation = torch.randn(200, 2)
    z = model.eval().encode(observation, torch.zeros(200, dtype=torch.int64)).double()
    expected = (z - policy.features.mean_E) @ policy.features.projection_ED
    torch.testing.assert_close(policy.features(observation), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape == (200, 3)
    assert policy.act(observation).shape == (200, 1)


def test_powr_plans_only_the_policies_of_one_more_seed_or_task(tmp_path):
    config = PowrConfig(seeds=1, offline=small(planner=KernelPlannerConfig(centres=5)))
    chains = [(spec, chain_episodes()) for spec in (chain_spec(), dataclasses.replace(chain_spec(), name="toy/other"))]
    pack_store(tmp_path / "one", chains[:1])
    pack_store(tmp_path / "two", chains)
    grown = context_of(tmp_path, "grown", store=tmp_path / "one")
    for seeds, store, jobs in (
        (1, "one", {"000-toy.chain": 1}),
        (2, "one", {"000-toy.chain": 1, "000-toy.chain.2": 1}),
        (2, "two", {"000-toy.chain": 1, "000-toy.chain.2": 1, "000-toy.other": 2}),
    ):
        grown = context_of(tmp_path, "grown", store=tmp_path / store)
        Powr(dataclasses.replace(config, seeds=seeds)).run(grown)
        assert computed(grown) == jobs
    whole = context_of(tmp_path, "whole", store=tmp_path / "two")
    local = FanoutConfig(executor="local", policies_per_job=4)
    Powr(dataclasses.replace(config, seeds=2, fanout=local)).run(whole)
    assert computed(whole) == {"000-toy.chain+1": 4}
    assert contents(grown.folder) == contents(whole.folder)


def test_powr_continues_with_the_policies_that_are_there(chain, tmp_path, monkeypatch):
    config, planned = PowrConfig(seeds=2, offline=small(planner=KernelPlannerConfig(centres=5))), []
    plan = powr_job._plan

    def stopping(*arguments):
        planned.append(arguments[4])
        if len(planned) == 2:
            raise KeyboardInterrupt
        return plan(*arguments)

    monkeypatch.setattr(powr_job, "_plan", stopping)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            Powr(config).run(context_of(tmp_path, store=chain))
    assert planned == [0, 1, 1]
    assert len(policies_of(tmp_path / "out")) == 2


ONLINE = {
    "task": "gymnasium/FrozenLake-v1", "environment": {"is_slippery": False}, "kernel": "delta", "transitions": 60,
    "evaluation_episodes": 2, "seeds": 2,
}  # fmt: skip


def test_powr_online_writes_policies_and_curves_and_continues(tmp_path):
    config = PowrOnlineConfig(**ONLINE)
    PowrOnline(config).check()
    summary = PowrOnline(config).run(context_of(tmp_path))
    assert "median of 2 seeds" in summary
    policies = policies_of(tmp_path / "out")
    assert set(policies) == {("gymnasium/FrozenLake-v1", 0), ("gymnasium/FrozenLake-v1", 1)}
    assert policies["gymnasium/FrozenLake-v1", 0].act(torch.eye(16)).shape == (16, 4)
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert (curves.groupby("seed")["transitions"].max() >= 60).all()
    assert "<svg" in (tmp_path / "out" / "curves.svg").read_text()
    # one more seed learns alone, and comes out as if all had learned together
    PowrOnline(dataclasses.replace(config, seeds=1)).run(grown := context_of(tmp_path, "grown"))
    PowrOnline(config).run(grown)
    assert computed(grown) == {"000-gymnasium.FrozenLake-v1": 1, "000-gymnasium.FrozenLake-v1.2": 1}
    assert contents(grown.folder) == contents(tmp_path / "out")
    # and drawn beside baselines
    other = tmp_path / "other"
    other.mkdir()
    (other / "curves.csv").write_text((tmp_path / "out" / "curves.csv").read_text().replace("powr_online", "ppo"))
    PowrOnline(config).run(context_of(tmp_path, curves=other))
    assert "ppo" in (tmp_path / "out" / "curves.svg").read_text()


class Fragile(gymnasium.Env):
    """Pays 1 at each of 10 steps; episodes of an even seed break off after the sixth."""

    observation_space = gymnasium.spaces.Discrete(11)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.breaks, self.at = seed % 2 == 0, 0
        return 0, {}

    def step(self, action):
        self.at += 1
        if self.breaks and self.at > 6:
            raise RuntimeError("contact buffer overflow")
        return self.at, 1.0, False, self.at == 10, {}


gymnasium.register("OrreryTest/Fragile-v0", Fragile, max_episode_steps=10)


def test_failed_episodes_are_left_out_of_the_curves_of_powr_online(tmp_path, caplog):
    """They counted with what they had earned before they failed: 6 of 10."""
    settings = ONLINE | {"task": "gymnasium/OrreryTest/Fragile-v0", "environment": {}, "seeds": 1}
    PowrOnline(PowrOnlineConfig(**settings | {"evaluation_episodes": 8, "episodes": 6})).run(context_of(tmp_path))
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    names = ["train_return", "greedy_return", "greedy_min", "greedy_max", "sampled_return"]
    assert (curves[names] == 10).all(axis=None)
    assert "episodes failed and skipped in the curve; the first: RuntimeError: contact buffer overflow" in caplog.text


def test_returns_of_completed_episodes():
    """What the stage baselines counts too, whose library is not installed everywhere."""
    results = [
        EpisodeResult(seed, 10.0 * seed, 5, None, None, error) for seed, error in ((1, None), (2, "no"), (3, None))
    ]
    failed = []
    assert completed_returns(results, "a", failed) == [10.0, 30.0]
    assert failure_warnings(failed) == ["1 episode failed and skipped in the curve; the first: no"]
    assert failure_warnings([]) == []
    with pytest.raises(StageError, match="task 'a': all 1 episodes failed; the first: no"):
        completed_returns(results[1:2], "a", failed)


def test_powr_online_improves_within_episodes(tmp_path, monkeypatch):
    """Every 4 transitions if a pair among them is new, and at the end of each epoch; no transition is lost."""
    learners, improvements = [], []
    improve = OnlineLearner.improve

    def counting(learner):
        learners.append(learner)
        improvements.append(len(learner.rows))
        return improve(learner)

    monkeypatch.setattr(OnlineLearner, "improve", counting)
    config = PowrOnlineConfig(**{**ONLINE, "seeds": 1, "replan_every": 4, "transitions": 150, "evaluate_every": 60})
    PowrOnline(config).run(context_of(tmp_path))
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    transitions = curves["transitions"].tolist()
    assert all(later - earlier >= 60 for earlier, later in itertools.pairwise(transitions[:-1]))
    assert transitions[-1] >= 150
    assert improvements[0] == 4
    assert len(improvements) > 2 * len(transitions)
    (learner,) = set(learners)
    sinks = (learner.rows.state_NO == learner.rows.next_state_NO)[:, 0] & (learner.rows.reward_N == 0)
    ends = sinks & torch.isin(learner.rows.state_NO[:, 0], torch.tensor([5.0, 7, 11, 12, 15], dtype=torch.float64))
    assert len(learner.rows) - int(ends.sum()) == transitions[-1]


def test_decisions_heard_are_the_episode():
    spec = discrete_task("gymnasium/CartPole-v1", {})
    heard = []

    def right(observation, _):
        return np.eye(2, dtype=np.float32)[[1] * len(observation)]

    ((_, result),) = play_episodes(spec, right, [3], record=True, heard=heard.append)
    assert len(heard) == result.length > 1
    np.testing.assert_array_equal(np.stack([one.observations[0] for one in heard]), result.episode.observations[:-1])
    np.testing.assert_array_equal(heard[-1].observations[1], result.episode.observations[-1])
    assert [len(one) for one in heard] == [1] * len(heard)
    assert [one.terminated for one in heard] == [False] * (len(heard) - 1) + [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": ""}, "powr_online.task is empty"),
        ({"task": "gymnasium/Pendulum-v1"}, "continuous actions, but powr_online needs discrete ones"),
    ],
)
def test_powr_online_checks_its_task(changes, message):
    with pytest.raises(ConfigError, match=message):
        PowrOnline(PowrOnlineConfig(**{**ONLINE, **changes})).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": [1.0, 0.0]}, r"scales must be positive, found \[1.0, 0.0\]"),
        ({"discount": 1.0}, r"discount must lie in \[0, 1\)"),
        ({"kernel": "rbf"}, "kernel: expected delta"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
        ({"replan_every": -1}, "replan_every must not be negative"),
    ],
)
def test_powr_online_refuses_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        PowrOnlineConfig(**{**ONLINE, **changes})


def test_powr_online_says_what_makes_its_system_singular_and_no_more(tmp_path):
    planner = KernelPlannerConfig(ridge=0.0, jitter=0.0, selection="uniform", centres=500)
    with pytest.raises(StageError, match=r": powr_online on gymnasium/FrozenLake-v1, seed 0: the system K'K") as raised:
        PowrOnline(PowrOnlineConfig(**ONLINE, planner=planner)).run(context_of(tmp_path))
    message = str(raised.value)
    assert "is singular at centre" in message
    assert "raise ridge (now 0) or jitter (now 0)" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("name", ["frozenlake", "taxi", "cartpole", "mountaincar", "lunarlander", "offline"])
def test_experiments_compose(name):
    config = load_config(f"powr_{name}", stages=discover_stages())
    assert {"powr", "powr_online"} & set(config.settings.stages)
