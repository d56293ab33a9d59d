"""The stages around sequence models: pretrain, bpo, bpo_online."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from orrery.datasets.facts import DataFacts
from orrery.datasets.schema import Episode
from orrery.datasets.tasks import task_spec
from orrery.datasets.tasks.myriad import simulator
from orrery.pipeline.artifact import finish
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.bpo.config import BpoConfig, BpoOnlineConfig, BpoStageConfig, OnlineConfig
from orrery.stages.bpo.stage_bpo import Bpo
from orrery.stages.bpo.stage_bpo_online import BpoOnline
from orrery.stages.diagnostics.config import GradientsConfig
from orrery.stages.diagnostics.gradient_record import jacobian_norm_by_probes, return_norms, return_sign_changes
from orrery.stages.diagnostics.stage_gradients import Gradients
from orrery.stages.policy.policy import load_policy
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import Pretrain
from orrery.stages.sequence_model.config import SequenceModelConfig
from orrery.stages.sequence_model.episodes import correlated_actions, simulate
from orrery.stages.sequence_model.kinds import load_model
from orrery.stages.training.config import OptimizerConfig, TrainerConfig
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.facts import read_model_facts
from orrery.stages.world_model.networks import WorldModel

from .grown import computed
from .stores import point_mass_episodes, point_mass_spec, write_store

TASKS = ("myriad/cancer@10", "myriad/predator_prey@10")
SMALL = SequenceModelConfig(kind="awm", horizon=10, width=12, mlp_units=(16,))
POLICY = BpoConfig(batch_size=4, units=(8,))


def context(folder, **inputs):
    folder.mkdir(exist_ok=True)
    given = {"world_model": [], "store": [], **{name: [path] for name, path in inputs.items()}}
    return Context(folder, given, 1, 1, logging.getLogger("test"), ConsoleProgress())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A store of two tasks, and a sequence model pretrained on it."""
    folder = tmp_path_factory.mktemp("bpo")
    tasks = []
    for name in TASKS:
        spec = task_spec(name)
        data = simulate(simulator(spec), correlated_actions(40, 10, 1, torch.Generator().manual_seed(0)))
        parts = zip(data.observation_NTO.numpy(), data.action_NTA.numpy(), data.reward_NT.numpy(), strict=True)
        tasks.append((spec, [Episode(*part, False) for part in parts]))
    write_store(folder / "store", tasks)
    config = PretrainConfig(
        kind="sequence", sequence=SMALL, optimizer=OptimizerConfig(lr=1e-2),
        trainer=TrainerConfig(accelerator="cpu", log_every=5), steps=20, batch_size=16, horizon=10, held_out=0.1,
        validate_every=10, checkpoint_every=10, validation_batches=2,
    )  # fmt: skip
    summary = Pretrain(config).run(context(folder / "model", store=folder / "store"))
    return folder, summary


def test_pretrain_makes_a_sequence_model_and_its_record(run):
    folder, summary = run
    assert "open-loop observation R2" in summary
    model = load_model(folder / "model")
    assert model.table.names == TASKS
    assert model.observation_scale_KO[0, 1].item() == pytest.approx(2.87, abs=0.01)  # of the times 0..9
    assert model.clock_step_KO.bool().tolist() == [[False, True, False, False], [False, False, False, True]]
    validation = pd.read_csv(folder / "model" / "validation.csv")
    assert set(validation.horizon) == {1, 5, 10}
    assert validation.observation_r2.notna().all()
    assert "reward_r2" in validation
    assert {"train/prediction", "train/reward", "train/total"} <= set(pd.read_csv(folder / "model" / "training.csv"))


def test_bpo_trains_a_policy_per_task_seed_and_gradient_and_resumes(run, tmp_path):
    folder, _ = run
    config = BpoStageConfig(bpo=POLICY, gradients=["model", "simulator"], seeds=2, iterations=4, log_every=2)

    def inputs(name):
        return context(tmp_path / name, world_model=folder / "model", store=folder / "store")

    whole = inputs("whole")
    assert Bpo(config).run(whole) == "8 policies for 2 tasks, 4 updates each"
    index = json.loads((whole.folder / "policies.json").read_text())
    assert [(e["algorithm"], e["task"], e["seed"]) for e in index["policies"]] == [
        (algorithm, task, seed) for task in TASKS for algorithm in ("bpo_awm", "bpo_simulator") for seed in (0, 1)
    ]
    policy = load_policy(whole.folder / index["policies"][0]["path"])
    assert policy.act(torch.rand(5, 2)).shape == (5, 1)
    assert all(entry["gradient_noise"] > 0 for entry in index["policies"])
    curves = pd.read_csv(whole.folder / "training.csv")
    assert len(curves) == 8 * 2
    assert {"imagined_reward", "imagined_return", "entropy", "grad_norm"} <= set(curves)

    # Interrupted after the first unit: what that had finished is kept, the rest comes out the same.
    half = inputs("half")
    trained = []

    from orrery.stages.bpo.bpo import PolicyOptimisation

    update = PolicyOptimisation.update

    def stopping(self, iteration):
        trained.append(iteration)
        if len(trained) == 6:
            raise KeyboardInterrupt
        return update(self, iteration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyOptimisation, "update", stopping)
        with pytest.raises(KeyboardInterrupt):
            Bpo(config).run(half)
        trained[:] = [0] * 10
        Bpo(dataclasses.replace(config, log_every=1)).run(half)
    assert len(trained) == 10 + 3 * 4
    assert (half.folder / "policies.json").read_text() == (whole.folder / "policies.json").read_text()
    for entry in index["policies"]:
        one, other = (load_policy(base / entry["path"]).state_dict() for base in (whole.folder, half.folder))
        assert all(torch.equal(value, other[name]) for name, value in one.items())

    # One more seed trains alone.
    Bpo(dataclasses.replace(config, seeds=3)).run(whole)
    assert sorted(computed(whole).values()) == [1] * 4 + [2] * 4
    assert len(pd.read_csv(whole.folder / "training.csv")) == 12 * 2


def test_bpo_says_what_it_lacks(run, tmp_path):
    folder, _ = run
    with pytest.raises(CheckpointError, match=r"no world model: run pretrain first.*gradients=\[simulator\]"):
        Bpo(BpoStageConfig()).run(context(tmp_path / "a", store=folder / "store"))
    spec = point_mass_spec("toy/point")
    write_store(tmp_path / "other", [(spec, point_mass_episodes(spec, 3))])
    with pytest.raises(CheckpointError, match="different task tables"):
        Bpo(BpoStageConfig()).run(context(tmp_path / "c", store=tmp_path / "other", world_model=folder / "model"))
    with pytest.raises(ConfigError, match=r"expected some of model, simulator, found \['sim'\]"):
        BpoStageConfig(gradients=["sim"])


def test_what_cannot_work_is_refused_before_anything_runs(run, tmp_path):
    def check(model=None, store=None, **config):
        stage = Bpo(BpoStageConfig(**config))
        stage.check_input("world_model", tmp_path / "pretrain", model)
        stage.check_inputs({"world_model": [model], "store": [store]})

    def made(**changes):
        sequence = dataclasses.replace(SMALL, **changes)
        config = PretrainConfig(kind="sequence", sequence=sequence, horizon=10)
        return Pretrain(config).promise({"store": [None]})

    latent = Pretrain(PretrainConfig()).promise({"store": [None]})
    with pytest.raises(CheckpointError, match=r"bpo needs .* observations, .* latents; .*pretrain.kind=sequence"):
        check(latent)
    check(read_model_facts(run[0] / "model"))
    check(latent, gradients=["simulator"])  # which reads no model
    with pytest.raises(ConfigError, match=r"bpo.bpo.horizon is 11.*\(awm\).*use at most 10, or pretrain"):
        check(made(), bpo=BpoConfig(horizon=11))
    check(made(), bpo=BpoConfig(horizon=10))
    check(made(kind="rnn"), bpo=BpoConfig(horizon=11))
    headless = made(reward_head=False)
    with pytest.raises(ConfigError, match=r"bpo.bpo.reward is learned.*pretrain.sequence.reward_head=true"):
        check(headless, bpo=BpoConfig(reward="learned"))
    mixed = DataFacts(("myriad/cancer@10", "dmc/cartpole-balance"))
    check(headless, DataFacts(("myriad/cancer@10",)))
    with pytest.raises(ConfigError, match=r"dmc/cartpole-balance has no .* simulator, and the model has no reward"):
        check(headless, mixed)
    with pytest.raises(ConfigError, match=r"bpo.gradients has simulator, but dmc/cartpole-balance has no .* simulator"):
        check(None, mixed, gradients=["model", "simulator"])
    with pytest.raises(ConfigError, match=r"bpo\.bpo\.reward is simulator, but dmc/cartpole-balance has"):
        check(None, mixed, bpo=BpoConfig(reward="simulator"))
    check(None, mixed, gradients=["simulator"], tasks=["myriad/cancer@10"])
    with pytest.raises(ConfigError, match=r"bpo.bpo.horizon is 11.*'myriad/cancer@10' have 10 steps"):
        check(None, mixed, bpo=BpoConfig(horizon=11))
    check(None, mixed, bpo=BpoConfig(horizon=10))
    check(gradients=["simulator"])


def test_a_horizon_beyond_the_model_is_refused_before_training():
    with pytest.raises(ConfigError, match=r"pretrain.horizon 20 is longer than the 10 steps"):
        PretrainConfig(kind="sequence", sequence=SMALL, horizon=20)
    with pytest.raises(ConfigError, match="expected latent, sequence"):
        PretrainConfig(kind="markov")


def test_the_online_loop_makes_the_updates_it_states_and_repeats_itself(tmp_path):
    online = OnlineConfig(steps=105, warmup=40, model_every=2, policy_every=16, batch_size=4, bpo=POLICY)
    config = BpoOnlineConfig(online=online, model=SMALL, tasks=["myriad/cancer@10"], seeds=2, loggers=["csv"])
    stage = BpoOnline(config)
    stage.check()
    folder = context(tmp_path / "one")
    assert stage.run(folder) == "2 policies for 1 task, 105 steps each"
    curves = pd.read_csv(folder.folder / "training.csv")
    first = curves[curves.seed == 0]
    assert first.iteration.tolist() == list(range(10, 101, 10))
    assert first.model_updates.tolist() == [0, 0, 0, 0, 5, 10, 15, 20, 25, 30]
    assert first.policy_updates.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 3, 3]
    assert first["return"].nunique() == 10
    logged = min(tmp_path.glob("logs/csv/**/metrics.csv"))
    of_policy = pd.read_csv(logged).filter(like="/seed_0/").rename(columns=lambda name: name.rpartition("/")[2])
    np.testing.assert_allclose(of_policy["return"], first["return"])
    again = context(tmp_path / "again")
    stage.run(again)
    assert (again.folder / "training.csv").read_text() == (folder.folder / "training.csv").read_text()
    entries = json.loads((folder.folder / "policies.json").read_text())["policies"]
    assert load_policy(folder.folder / entries[0]["path"]).act(torch.rand(3, 2)).shape == (3, 1)


def test_the_online_loop_refuses_what_it_cannot_simulate():
    with pytest.raises(ConfigError, match="not of the suite myriad"):
        BpoOnline(BpoOnlineConfig(tasks=["dmc/cartpole-balance"])).check()
    with pytest.raises(ConfigError, match="tasks is empty"):
        BpoOnline(BpoOnlineConfig()).check()
    from orrery.stages.bpo.online import OnlineLoop

    with pytest.raises(ConfigError, match="leave no data to learn from"):
        OnlineLoop(task_spec("myriad/cancer@10"), SMALL, OnlineConfig(steps=30, warmup=30), 0)


def test_gradients_of_a_run_are_recorded_beside_their_skill(run, tmp_path):
    folder, _ = run
    stage = Gradients(GradientsConfig(horizons=[2, 5, 10, 50], trajectories=8))
    here = context(tmp_path / "sequence", world_model=folder / "model", store=folder / "store")
    assert stage.run(here).endswith("at 10 steps (medians over tasks)")
    table = pd.read_csv(here.folder / "gradients.csv")
    assert list(zip(table.task, table.horizon, strict=True)) == [(task, h) for task in TASKS for h in (2, 5, 10)]
    assert table[["norm", "r2", "cosine", "return_norm", "sign_changes"]].notna().all().all()
    assert (table.norm > 0).all()
    assert table.cosine.abs().max() <= 1 + 1e-6
    assert (here.folder / "myriad.cancer@10.svg").is_file()

    # Of a published model, whose manifest says what it has not seen, r2 is of that; gradients stay what they are.
    published = tmp_path / "published"
    shutil.copytree(folder / "model", published)
    config = {"held_out": 0.3}
    finish(published, kind="world_model", stage="pretrain", key="", config=config, inputs={}, seconds=0, summary="")
    unseen = context(tmp_path / "unseen", world_model=published, store=folder / "store")
    stage.run(unseen)
    again = pd.read_csv(unseen.folder / "gradients.csv")
    pd.testing.assert_frame_equal(again.drop(columns="r2"), table.drop(columns="r2"))
    assert (again.r2 != table.r2).all()

    sizes = {"latent_dim": 8, "encoder_dim": 8, "mlp_dim": 8, "task_dim": 4, "num_bins": 11}
    (tmp_path / "latent").mkdir()
    WorldModel(WorldModelConfig(**sizes), load_model(folder / "model").table).save(tmp_path / "latent")
    there = context(tmp_path / "of_latent", world_model=tmp_path / "latent", store=folder / "store")
    stage.run(there)
    table = pd.read_csv(there.folder / "gradients.csv")
    assert table[["norm", "r2", "return_norm", "sign_changes"]].notna().all().all()
    assert table.cosine.isna().all()
    with pytest.raises(ConfigError, match=r"allows at most 10 steps .* found \[50\]"):
        Gradients(GradientsConfig(horizons=[50])).run(here)


def test_a_norm_from_probes_is_unbiased():
    matrix = torch.tensor([[3.0, 0.0], [0.0, 4.0], [1.0, 2.0]])

    def predict(first, action):
        return (action @ matrix.T).cumsum(1)

    generator = torch.Generator().manual_seed(0)
    found = jacobian_norm_by_probes(predict, torch.zeros(2, 1), torch.zeros(2, 3, 2), (1, 3), 4000, generator)
    assert found.flatten().tolist() == pytest.approx([30**0.5] * 4, rel=0.03)


def test_return_norms_by_hand():
    # r_t = a_1 t for one component: the return up to t has derivative t (t + 1) / 2.
    def rewards(first, action):
        return action[:, :1, 0] * torch.arange(1.0, 5.0)

    assert return_norms(rewards, torch.zeros(3, 1), torch.zeros(3, 4, 2), (1, 2, 4)).tolist() == [[1, 3, 10]] * 3


def test_sign_changes_by_hand():
    # Of the two trajectories one has rewards 0, 0, and the other sin(pi x), then sin(4 pi x) on top of -sin(pi x).
    def rewards(first, action):
        wave = torch.sin(torch.pi * action[:, 0].sum(-1) / 2)
        faster = torch.sin(4 * torch.pi * action[:, 1].sum(-1) / 2 * action[:, 0, 0])
        return first * torch.stack([wave, faster - wave], 1)

    first, action = torch.tensor([[0.0], [1.0]]), torch.ones(2, 2, 2)
    # cos(pi x) has two zeros in [-1, 1], cos(4 pi x) eight.
    assert return_sign_changes(rewards, first, action, (1, 2)).tolist() == [[0, 0], [2, 8]]
