"""What training and acting would do on a GPU, on a stand-in for one: see stand_in.py."""

from __future__ import annotations

import copy
import dataclasses

import lightning
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from orrery.datasets.datamodule import WindowData, WindowSettings, _Batches
from orrery.datasets.windows import WindowSampler
from orrery.pipeline.logging import ConsoleProgress
from orrery.stages.extraction.first_order import FirstOrderExtraction
from orrery.stages.extraction.starts import encode_starts
from orrery.stages.mrq.learner import Learner, Shapes
from orrery.stages.mrq.offline import OfflineMember, OfflineTraining
from orrery.stages.mrq.replay import Replay
from orrery.stages.planning.planner import Planner
from orrery.stages.powr.actions import CandidateActions, DiscreteActions
from orrery.stages.powr.config import KernelPlannerConfig, OfflineConfig
from orrery.stages.powr.evaluation import Centres, KernelBlocks, fit
from orrery.stages.powr.improvement import mirror_descent, uniform_logits
from orrery.stages.powr.kernels import StateKernel
from orrery.stages.powr.offline import Data, plan
from orrery.stages.powr.repeated import next_state_model
from orrery.stages.powr.transitions import Transitions
from orrery.stages.sequence_model.config import KINDS, SequenceLossConfig, SequenceModelConfig
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.sequence_model.module import SequenceModelTraining
from orrery.stages.training.config import OptimizerConfig
from orrery.stages.training.progress import StepProgress, quiet_lightning
from orrery.stages.world_model.config import LossConfig
from orrery.stages.world_model.module import WorldModelTraining
from orrery.stages.world_model.start_frames import draw_frames
from rich.console import Console

from .kernel_problems import F64, make_rows
from .models import SMALL, random_model
from .mrq_cases import LEARN, OFFLINE
from .stand_in import Device
from .stores import point_mass_episodes, write_store
from .test_extraction import CONFIG, SPECS, members_of, one_hot_episodes
from .test_planner import SMALL as PLAN

AWM = {"awm_horizon": 4, "awm_width": 12, "awm_layers": 1, "num_q": 0}


@pytest.fixture
def device(monkeypatch):
    with Device(monkeypatch) as made:
        yield made


def test_the_stand_in_refuses_and_counts_what_a_gpu_would(device):
    there, here = torch.ones(3, device=device.name), torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, generator=torch.Generator(), device=device.name)
    assert torch.randn(3, generator=torch.Generator(device.name), device=device.name).shape == (3,)
    assert not device.waits
    there * torch.tensor(2.0) + 1
    here.to(device.name, non_blocking=True)
    assert not device.waits
    for wait in (
        lambda: bool(there.any()),
        lambda: there.sum().item(),
        lambda: there.tolist(),
        lambda: there.cpu().numpy(),
        lambda: there.nonzero(),
        lambda: there[there > 0],
        lambda: there[torch.tensor([0, 1])],
        lambda: here.to(device.name),
        lambda: torch.tensor([1.0, 2.0], device=device.name),
    ):
        device.waits.clear()
        wait()
        assert device.waits


# Extraction


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A store of three tasks of different sizes and kinds, and a random world model of them with every part."""
    episodes = [one_hot_episodes(s) if s.action_kind == "discrete" else point_mass_episodes(s, 6) for s in SPECS]
    ended = dataclasses.replace(episodes[1][0], terminated=True)
    episodes[1] = [ended, *episodes[1][1:]]
    store = write_store(tmp_path_factory.mktemp("store"), list(zip(SPECS, episodes, strict=True)))
    return store, {dynamics: world_model(store, dynamics) for dynamics in ("step", "awm")}


def world_model(store, dynamics):
    config = dataclasses.replace(SMALL, dynamics=dynamics, **AWM) if dynamics == "awm" else SMALL
    return random_model(store.table, config).requires_grad_(False)


@pytest.mark.parametrize("dynamics", ["step", "awm"])
def test_extraction_stays_on_its_device_and_never_waits(models, device, dynamics):
    store, made = models
    model = copy.deepcopy(made[dynamics]).to(device.name)
    members = [dataclasses.replace(member, uncertainty=0.5) for member in members_of(store.table.names)]
    starts = encode_starts(model, [0, 1, 2], lambda name: draw_frames(store, name, 64, 4, 0))
    extraction = FirstOrderExtraction(model, starts, members, CONFIG, iterations=10, seed=0)
    extraction.update(0)
    device.waits.clear()
    for iteration in range(1, 12):  # into the second block of random numbers
        metrics = extraction.update(iteration)
    assert not device.waits
    assert {value.device.type for value in metrics.values()} == {device.name}
    extraction.check_finite(metrics, 1)
    assert [column.shape for column in extraction.imagined_returns()] == [(len(members),)] * 2
    assert len(extraction.gradient_noise()) == extraction.num_imagining
    extraction.load_state_dict(extraction.state_dict())
    extraction.update(12)


# World models under Lightning


class StandIn(CPUAccelerator):
    def setup_device(self, device):
        pass


def train_on(device, module, data, steps=6):
    quiet_lightning()
    trainer = lightning.Trainer(
        strategy=SingleDeviceStrategy(torch.device(device.name), StandIn()),
        max_steps=steps, val_check_interval=3, check_val_every_n_epoch=None, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=3,
        callbacks=[StepProgress(ConsoleProgress(Console(quiet=True)), steps, "train")],
    )  # fmt: skip
    trainer.fit(module, data)


@pytest.mark.parametrize("load_up_to_gb", [0.0, 1.0])
@pytest.mark.parametrize("dynamics", ["step", "awm"])
def test_a_latent_model_trains_on_its_device(models, device, dynamics, load_up_to_gb):
    store, made = models
    model = copy.deepcopy(made[dynamics]).requires_grad_(True).train()
    settings = WindowSettings(4, 8, 0, 0.2, 4, 1, load_up_to_gb=load_up_to_gb)
    module = WorldModelTraining(
        model, LossConfig(), OptimizerConfig(), torch.ones(3), total_steps=6, log_every=3, compiled=False
    )
    train_on(device, module, WindowData(store.folder, settings))
    # Apart from batches made on the host, what is waited for is made once, or logged.
    read = [wait for wait in device.waits if not wait.startswith("aten.copy_") and "_to_copy" not in wait]
    assert sum("float(loss)" in wait for wait in read) <= 2, read  # shown where it is logged
    known = ("isfinite(value)", "always, never =", "float(loss)")
    assert all(any(one in wait for one in known) for wait in read), read


def test_a_window_sampler_of_a_loaded_store_never_waits(models, device):
    store, _ = models
    sampler = WindowSampler(store.load(device.name), length=4, batch_size=6, seed=0)
    device.waits.clear()
    for step in range(3):
        batch = sampler.batch(step)
    assert batch["observation"].device.type == device.name
    assert not device.waits


@pytest.mark.gpu
def test_batches_of_a_mapped_store_are_pinned(models):
    sampler = WindowSampler(models[0], length=4, batch_size=6, seed=0)
    for batch in _Batches(sampler, count=2, ahead=True):
        assert all(field.is_pinned() and field.is_contiguous() for field in batch.values())


# Sequence models and planning


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_model_trains_and_plans_on_its_device(models, device, kind):
    store, _ = models
    config = SequenceModelConfig(kind=kind, horizon=4, width=12, states=4, stride=2)
    model = build_model(config, store.table)
    module = SequenceModelTraining(model, SequenceLossConfig(), OptimizerConfig(), 6, log_every=3)
    train_on(device, module, WindowData(store.folder, WindowSettings(4, 8, 0, 0.2, 4, 1)))
    plan = dataclasses.replace(PLAN, horizon=3, prior_trajectories=0)
    policy = Planner(model.requires_grad_(False).eval(), SPECS[0], plan, 0).to(device.name)
    memories = [policy.begin(episode) for episode in range(2)]
    assert policy.act(torch.randn(2, 2, device=device.name), memories).device.type == device.name


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.slug)
def test_a_latent_planner_and_a_latent_policy_act_on_their_device(models, device, spec):
    _, made = models
    planner = Planner(copy.deepcopy(made["step"]), spec, PLAN, 0).to(device.name)
    memories = [planner.begin(episode) for episode in range(2)]
    for _ in range(2):
        action = planner.act(torch.randn(2, spec.observation_dim, device=device.name), memories)
    assert action.shape == (2, spec.action_dim)
    assert action.device.type == device.name


# MR.Q


@pytest.mark.parametrize("variant", ["mrq", "no_unroll", "model_free"])
@pytest.mark.parametrize("tasks", [["toy/small", "toy/wide"], ["toy/choice"]])
def test_mrq_from_a_store_waits_once_per_period(models, device, monkeypatch, tasks, variant):
    store, _ = models
    monkeypatch.setattr("orrery.stages.mrq.targets.LIMIT_BYTES", 0)  # their number is made up here
    monkeypatch.setattr("orrery.stages.mrq.offline.device_of", lambda _: torch.device(device.name))
    training = OfflineTraining(store, [OfflineMember(name, 0) for name in tasks], OFFLINE, variant)
    for _ in range(training.encoder_periods + 1):
        training.advance()
    device.waits.clear()
    for _ in range(LEARN.period - 1):
        metrics = training.learner.train(training._sources)
    assert not device.waits
    assert {value.device.type for value in metrics.values()} == {device.name}
    training.load_state_dict(training.state_dict())
    training.advance()


@pytest.mark.parametrize("image", [False, True])
def test_mrq_from_a_replay_waits_once_per_period(device, monkeypatch, image):
    monkeypatch.setattr("orrery.stages.mrq.targets.LIMIT_BYTES", 0)  # their number is made up here
    stored, seen = ((1, 84, 84), (2, 84, 84)) if image else ((3,), (3,))
    shapes = Shapes(seen, False, torch.ones(1, 2), torch.tensor([0.99]))
    learn = dataclasses.replace(LEARN, batch_size=2) if image else LEARN
    learner = Learner(shapes, learn, [0], device.name)
    replay = Replay(100, stored, 2, learn.horizons, frames=2 if image else 1, device=device.name)
    observation = torch.zeros(stored, dtype=torch.uint8 if image else torch.float32)
    for t in range(30):
        replay.add(0, observation, torch.zeros(2), 1.0, observation, t % 10 == 9, False)
    assert not [wait for wait in device.waits if "scalar" in wait and "replay" in wait]
    learner.train([replay])
    device.waits.clear()
    for _ in range(learn.period - 1):
        learner.train([replay])
    assert not device.waits
    learner.explore(torch.zeros(1, 1, *seen, device=device.name))
    learner.load_state_dict(learner.state_dict())


# POWR


def powr_problem(kind, choices):
    """Rows and actions on the CPU, as the data come."""
    rows = make_rows(60, actions=choices)
    if kind == "discrete":
        return rows, DiscreteActions(choices)
    rows = Transitions(rows.state_NO, torch.rand(60, 1, dtype=F64), rows.next_state_NO, rows.reward_N)
    return rows, CandidateActions(torch.linspace(-1, 1, choices, dtype=F64)[:, None], torch.ones(1, dtype=F64))


@pytest.mark.parametrize("start", ["behaviour", "uniform"])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_powr_plans_on_its_device_from_data_of_the_cpu(device, kind, start):
    rows, actions = powr_problem(kind, 3)
    ended = torch.arange(60) % 20 == 19
    data = Data(rows, ended, rows[:9], ended[:9], rows.state_NO[:5])
    planner = KernelPlannerConfig(centres=20, selection="uniform", steps=3)
    config = OfflineConfig(planner=planner, penalty=0.5, start=start)
    made = plan(data, StateKernel.of("gaussian", 1.0), actions, 0.9, config, 0, device.name)
    assert {made.improvement.weight_M.device.type, made.penalty.form_MM.device.type} == {device.name}


# With one choice, and every row a centre, the process over next states is taken: all are distinct here.
@pytest.mark.parametrize(
    ("kind", "choices", "cache_bytes"),
    [("discrete", 3, 0), ("discrete", 3, 2**30), ("continuous", 3, 0), ("continuous", 1, 0)],
)
def test_a_step_of_powr_never_waits(device, kind, choices, cache_bytes):
    rows, actions = powr_problem(kind, choices)
    if kind == "continuous":
        actions = CandidateActions(actions.candidate_UA.to(device.name), actions.scale_A.to(device.name))
    rows, kernel = rows.to(device.name), StateKernel.of("laplace", 1.0).to(device.name)
    centres = Centres.of(rows, torch.arange(60).to(device.name))
    blocks = KernelBlocks(kernel, actions, centres, rows, block_rows=25, cache_bytes=cache_bytes)
    model = fit(blocks, 1e-3, 1e-6)
    assert (next_state_model(blocks, model) is not None) == (choices == 1)
    assert model.factors  # once per fit
    waits = []
    for steps in (1, 4):
        device.waits.clear()
        start_NU = uniform_logits(choices, rows.next_state_NO)
        found = mirror_descent(blocks, model, start_NU, [0.1] * steps, 0.9, penalty_NU=torch.zeros_like(start_NU))
        assert found.weight_M.device.type == device.name
        waits.append(list(device.waits))
    # Steps add none. Once per fit: whether next states repeat, whether a system was singular, and the spectral radius.
    assert waits[0] == waits[1]
    once = ["torch.unique", *["choice_M.nonzero"] * (choices == 1), "pivot.regular", "start_M", "complete_D", "eigvals"]
    assert [name for name, wait in zip(once, waits[0], strict=True) if name not in wait] == []
