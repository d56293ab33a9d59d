"""Fitted Q evaluation: values of policies from data alone, against those that the dynamics give."""

from __future__ import annotations

import dataclasses
import json
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from orrery.datasets.schema import Episode
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.jobs.config import FanoutConfig
from orrery.pipeline.jobs.job import read_status
from orrery.pipeline.stage import Context
from orrery.stages.baselines.mlp_policy import MlpPolicy, MlpPolicyConfig
from orrery.stages.fqe.config import FqeConfig
from orrery.stages.fqe.estimates import ValueEstimate, rank_correlations, select
from orrery.stages.fqe.fitted_q import Frames, estimate_values
from orrery.stages.fqe.stage_fqe import Fqe
from orrery.stages.policy.policy_index import policy_entry, write_index

from .stores import point_mass_spec, write_store

SPEC = point_mass_spec("toy/line", discount=0.9, episode_length=30)
SMALL = {"units": [32, 32], "batch_size": 128, "updates": 300, "lr": 3e-3, "target_rate": 0.1}


def line_episodes(count: int, terminates: bool = False) -> list[Episode]:
    """x' = 0.9 x + 0.3 a from anywhere, reward 1 - x^2, random actions; ends beyond 0.8 where it terminates."""
    random = np.random.default_rng(0)
    episodes = []
    for index in range(count):
        x, xs, actions, rewards = random.uniform(-1, 1), [], [], []
        for _ in range(30):
            xs.append([x, 1.0])
            action = random.uniform(-1, 1)
            rewards.append(1 - x**2)
            actions.append([action])
            x = 0.9 * x + 0.3 * action
            if terminates and abs(x) > 0.8:
                break
        ended = terminates and abs(x) > 0.8
        columns = (np.array(column, np.float32) for column in ([*xs, [x, 1.0]], actions, rewards))
        episodes.append(Episode(*columns, ended, label=f"e{index}"))
    return episodes


def true_value(gain: float, begins: np.ndarray, terminates: bool = False) -> float:
    """Mean discounted return of a = clip(gain x) from some states."""
    total = np.zeros(len(begins))
    x, alive = begins.copy(), np.ones(len(begins))
    for step in range(200):
        total += 0.9**step * alive * (1 - x**2)
        x = 0.9 * x + 0.3 * np.clip(gain * x, -1, 1)
        alive *= 1 if not terminates else np.abs(x) <= 0.8
    return float(total.mean())


@pytest.mark.parametrize("terminates", [False, True])
def test_values_are_those_of_the_dynamics(tmp_path, terminates):
    spec = dataclasses.replace(SPEC, terminates=terminates)
    store = write_store(tmp_path, [(spec, line_episodes(60, terminates))])
    frames = Frames.read(store, spec.name, 10_000)
    begins = frames.observation_FO[frames.begin_E, 0].double().numpy()
    for gain in (-3.0, 0.3):
        action_FA = (gain * frames.observation_FO[:, :1]).clamp(-1, 1)
        values_K = estimate_values(frames, action_FA, FqeConfig(**SMALL | {"updates": 700}, critics=2))
        assert values_K.mean() == pytest.approx(true_value(gain, begins, terminates), rel=0.12), gain


def test_critics_see_resampled_episodes_and_whole_ones_are_read(tmp_path):
    store = write_store(tmp_path, [(SPEC, line_episodes(12))])
    frames = Frames.read(store, SPEC.name, 100)
    assert (len(frames.begin_E), len(frames.reward_F)) == (3, 93)
    assert frames.transition_S.tolist() == [f for f in range(93) if f % 31 != 30]
    reward_T = frames.reward_F[:30].double().numpy()
    assert frames.return_F[0] == pytest.approx(float((reward_T * 0.9 ** np.arange(30)).sum()))
    assert not frames.terminal_F.any()
    frames = Frames.read(store, SPEC.name, 10_000)
    still_FA = torch.zeros(len(frames.reward_F), 1)
    values_K = estimate_values(frames, still_FA, FqeConfig(**SMALL))
    assert values_K.std() > 0
    torch.testing.assert_close(values_K, estimate_values(frames, still_FA, FqeConfig(**SMALL)), rtol=0, atol=0)


def write_policies(folder, gains: dict[tuple[str, int], float], imagined: float | None = None):
    """Perceptrons without hidden layer that act by tanh(gain x)."""
    entries = []
    for (algorithm, seed), gain in gains.items():
        config = MlpPolicyConfig("mlp", SPEC.to_dict(), [], {"algorithm": algorithm, "seed": seed})
        policy = MlpPolicy(config)
        with torch.no_grad():
            policy.layers[0].weight.copy_(torch.tensor([[gain, 0.0]]))
            policy.layers[0].bias.zero_()
        entry = policy_entry(algorithm, SPEC, seed, imagined_value=imagined)
        policy.save(folder / entry["path"])
        entries.append(entry)
    write_index(folder, [SPEC], entries)
    return folder


def run(folder, policies, **settings) -> tuple[str, pd.DataFrame]:
    def progress(*_, **__):
        return nullcontext(SimpleNamespace(advance=lambda amount=1: None, note=lambda text: None))

    out = folder / "fqe"
    out.mkdir(exist_ok=True)
    config = FqeConfig(**{**SMALL, **settings})
    inputs = {"policies": policies, "store": [folder / "store"]}
    summary = Fqe(config).run(Context(out, inputs, 1, 1, logging.getLogger("test.fqe"), progress))
    return summary, pd.read_csv(out / "estimates.csv")


def test_the_better_policy_is_selected_and_an_exploiting_one_is_named(tmp_path, caplog):
    write_store(tmp_path / "store", [(SPEC, line_episodes(40))])
    good = write_policies(tmp_path / "good", {("good", 0): -3.0, ("good", 1): -2.0})
    bad = write_policies(tmp_path / "bad", {("bad", 0): 3.0}, imagined=50.0)
    summary, table = run(tmp_path, [good, bad])
    assert summary == "3 policies estimated; selected: good on 1 task"
    assert list(table) == [field.name for field in dataclasses.fields(ValueEstimate)]
    by_run = table.set_index(["algorithm", "seed"])
    assert by_run.value["good", 0] > by_run.value["bad", 0]
    assert (table.low < table.value).all()
    assert (table.value < table.high).all()
    assert "the world model overestimates bad on toy/line, seed 0: imagined value 50" in caplog.text
    assert "overestimates good" not in caplog.text
    chosen = json.loads((tmp_path / "fqe/selection.json").read_text())["toy/line"]
    assert chosen["algorithm"] == "good"
    assert chosen["folder"].startswith(str(good))


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_estimates_of_earlier_policies_are_kept_and_those_of_changed_ones_are_not(tmp_path, executor):
    write_store(tmp_path / "store", [(SPEC, line_episodes(10))])
    policies = write_policies(tmp_path / "p", {("a", 0): -1.0, ("a", 1): 1.0})
    settings = {"updates": 20, "fanout": FanoutConfig(executor)}
    _, before = run(tmp_path, [policies], **settings)
    others = write_policies(tmp_path / "o", {("b", 0): -0.5})
    _, after = run(tmp_path, [policies, others], **settings)
    assert after.value[:2].tolist() == before.value.tolist()
    jobs = sorted(path.name for path in (tmp_path / "fqe.jobs").iterdir())
    assert jobs == ["000-toy.line", "000-toy.line.2"]
    assert read_status(tmp_path / "fqe.jobs" / jobs[0]).attempts == 1
    write_policies(tmp_path / "p", {("a", 0): -1.0, ("a", 1): 0.5})
    _, changed = run(tmp_path, [policies], **settings)
    assert changed.value[0] == before.value[0]
    assert changed.value[1] != before.value[1]


def test_what_cannot_be_estimated_is_said(tmp_path, caplog):
    write_store(tmp_path / "store", [(SPEC, line_episodes(4))])
    policies = write_policies(tmp_path / "p", {("a", 0): -1.0})
    with pytest.raises(ConfigError, match=r"fqe.algorithms: no policy of svg; there are policies of: a"):
        run(tmp_path, [policies], algorithms=["svg"])
    other = dataclasses.replace(SPEC, name="toy/other")
    write_store(tmp_path / "elsewhere/store", [(other, line_episodes(4))])
    with pytest.raises(StageError, match="none of the policies can be estimated"):
        run(tmp_path / "elsewhere", [policies])
    assert "left out a: the store has no data of toy/line" in caplog.text
    wide = dataclasses.replace(SPEC, observation_dim=3)
    episodes = [dataclasses.replace(e, observations=np.pad(e.observations, ((0, 0), (0, 1)))) for e in line_episodes(4)]
    write_store(tmp_path / "wide/store", [(wide, episodes)])
    with pytest.raises(
        ConfigError, match=r"acts on 2 observation and 1 action columns of toy/line, the store .* has 3"
    ):
        run(tmp_path / "wide", [policies])
    with pytest.raises(ConfigError, match="critics must be at least 2"):
        FqeConfig(critics=1)


def test_selection_is_by_algorithm_and_correlation_by_rank():
    def one(algorithm, seed, value):
        return ValueEstimate(algorithm, "t", seed, value, value - 1, value + 1, 0.0)

    estimates = [one("a", 0, 9.0), one("a", 1, 0.0), one("b", 0, 5.0), one("b", 1, 6.0)]
    assert select(estimates)["t"] == one("b", 1, 6.0)
    real = {("a", "t", 0): 40.0, ("a", "t", 1): 10.0, ("b", "t", 0): 20.0, ("b", "t", 1): 30.0}
    assert rank_correlations(estimates, real) == {"t": 1.0}
    assert rank_correlations(estimates[:2], real) == {}
