"""Extraction in jobs: how members are split, that neither executor nor SIGTERM changes a result, what is refused."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from orrery.datasets.tasks import task_spec
from orrery.pipeline import termination
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.jobs.fanout import FanoutConfig, FanoutFailed, job_names
from orrery.pipeline.jobs.job import cpu_seconds, read_status
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.extraction import packing
from orrery.stages.extraction.config import ActorCriticConfig, ExtractConfig, FirstOrderConfig, SvgConfig
from orrery.stages.extraction.packing import MemoryEstimate, pack, policies_per_job
from orrery.stages.extraction.program import PolicySpec
from orrery.stages.extraction.stage_extract import Extract
from orrery.stages.policy.policy import load_policy
from orrery.stages.reporting.training_figures import draw_extraction
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.start_frames import save_store_frames
from rich.console import Console
from safetensors.torch import load_file

from .stores import numbered_episode, point_mass_episodes, point_mass_spec, write_store

TASKS = ("toy/a", "toy/b")
NETWORKS = ActorCriticConfig(actor_units=(16,), critic_units=(16,), num_critics=2)
CONFIG = ExtractConfig(
    algorithms=["pwm", "svg", "bc"],
    svg=SvgConfig(horizon=1, updates=1, batch_size=8, starts=4, networks=NETWORKS),
    first_order=FirstOrderConfig(horizon=3, batch_size=8, critic_passes=1, critic_minibatches=2, networks=NETWORKS),
    iterations=12,
    starts_per_task=64,
    log_every=4,
    checkpoint_every=5,
    accelerator="cpu",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("inputs")
    store = write_store(
        folder / "store", [(spec, point_mass_episodes(spec, 6)) for spec in map(point_mass_spec, TASKS)]
    )
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4), store.table)
    torch.nn.init.normal_(model.reward[-1].weight, std=0.5)
    model.save(folder / "model")
    return {"store": [folder / "store"], "world_model": [folder / "model"]}


QUIET = ConsoleProgress(Console(quiet=True))


def extract(inputs: dict[str, list[Path]], folder: Path, config: ExtractConfig, progress=QUIET) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    context = Context(folder, inputs, 2, 1, logging.getLogger("test"), progress)
    Extract(config).run(context)
    return context


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "logs"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fanout(**settings) -> ExtractConfig:
    return dataclasses.replace(CONFIG, fanout=FanoutConfig(**settings))


def test_executors_give_the_same_bytes(inputs, tmp_path) -> None:
    here = extract(inputs, tmp_path / "inline", fanout(policies_per_job=6))
    # One thread per job, as in this process: the number of threads may change the last bit.
    there = extract(inputs, tmp_path / "local", fanout(policies_per_job=6, executor="local", cpus_per_job=1))
    names = ["000-toy.a", "001-toy.b"]
    assert sorted(path.name for path in there.jobs.iterdir()) == names
    assert {read_status(there.jobs / name).executor for name in names} == {"local"}
    found = contents(here.folder)
    policies = {f"{a}/{t}/seed_{s}" for a in ("pwm", "svg", "bc") for t in ("toy.a", "toy.b") for s in (0, 1)}
    files = {f"{policy}/policy.{ending}" for policy in policies for ending in ("json", "safetensors")}
    assert found.keys() == files | {"policies.json", "training.csv"}
    assert contents(there.folder) == found
    assert load_policy(here.folder / "pwm" / "toy.b" / "seed_1").task.name == "toy/b"


def test_the_split_changes_rounding_alone(inputs, tmp_path) -> None:
    together = extract(inputs, tmp_path / "together", CONFIG)
    apart = extract(inputs, tmp_path / "apart", fanout(policies_per_job=1))
    assert len(list(together.jobs.iterdir())) == 1
    assert len(list(apart.jobs.iterdir())) == 12
    assert contents(together.folder).keys() == contents(apart.folder).keys()
    for path in together.folder.rglob("*.safetensors"):
        expected, found = load_file(path), load_file(apart.folder / path.relative_to(together.folder))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    heads = [
        [line.split(",")[:4] for line in (one.folder / "training.csv").read_text().splitlines()]
        for one in (together, apart)
    ]
    assert heads[0] == heads[1]
    assert heads[0][1:4] == [["4", "pwm", "toy/a", "0"], ["4", "pwm", "toy/a", "1"], ["4", "pwm", "toy/b", "0"]]


def test_cpu_time_is_that_of_each_algorithm(inputs, tmp_path) -> None:
    job = extract(inputs, tmp_path / "extract", dataclasses.replace(CONFIG, iterations=60, log_every=60))
    costs = pd.read_csv(job.folder / "logs" / "costs.csv")
    (folder,) = job.jobs.iterdir()
    assert costs.cpu_seconds.sum() == pytest.approx(cpu_seconds(folder), abs=0.01)
    by_algorithm = costs.groupby("algorithm").cpu_seconds.mean()
    assert by_algorithm["bc"] < 0.7 * by_algorithm["svg"]
    assert by_algorithm["bc"] < 0.7 * by_algorithm["pwm"]


@pytest.mark.parametrize("source", ["store", "starts"])
def test_one_more_seed_and_task_train_only_their_own_policies(inputs, tmp_path, source) -> None:
    algorithms = CONFIG.algorithms if source == "store" else ["pwm"]
    larger = dataclasses.replace(
        fanout(policies_per_job=1), tasks=list(TASKS), checkpoint_every=3, algorithms=algorithms
    )
    smaller = dataclasses.replace(larger, tasks=["toy/a"], seeds=1, checkpoint_every=4)
    # The data grows, too, by a task that is wider than the first.
    specs = [*map(point_mass_spec, TASKS), point_mass_spec("toy/wide", observation_dim=2, action_dim=3)]
    tasks = [(spec, point_mass_episodes(spec, 6)) for spec in specs]
    few, more = write_store(tmp_path / "few", tasks[:1]), write_store(tmp_path / "more", tasks)
    if source == "starts":
        for store in (few, more):
            (tmp_path / f"{store.folder.name}.starts").mkdir()
            save_store_frames(store, tmp_path / f"{store.folder.name}.starts")
        first, inputs = ({**inputs, "store": [], "starts": [tmp_path / f"{name}.starts"]} for name in ("few", "more"))
    else:
        first, inputs = ({**inputs, "store": [tmp_path / name]} for name in ("few", "more"))
    extract(first, tmp_path / "grown", smaller)
    shutil.rmtree(tmp_path / "grown")
    grown = extract(inputs, tmp_path / "grown", larger)
    assert contents(grown.folder) == contents(extract(inputs, tmp_path / "whole", larger).folder)
    assert len(list(grown.jobs.iterdir())) == 2 * 2 * len(larger.algorithms)
    assert {read_status(path).attempts for path in grown.jobs.iterdir()} == {1}
    assert all(path.stat().st_nlink == 2 for path in grown.folder.rglob("*.safetensors"))  # jobs take no space
    # Fewer settings again take what is there, too.
    shutil.rmtree(grown.folder)
    fewer = extract(
        inputs, tmp_path / "grown", dataclasses.replace(larger, tasks=["toy/b"], algorithms=algorithms[-1:])
    )
    assert len(list(fewer.folder.rglob("policy.json"))) == 2
    assert {read_status(path).attempts for path in grown.jobs.iterdir()} == {1}


class StopsAt:
    """A progress that sends SIGTERM to this process after some iterations."""

    def __init__(self, iterations: int) -> None:
        self.left = iterations

    @contextmanager
    def __call__(self, description: str, total: float, completed: float = 0) -> Iterator[StopsAt]:
        self.counts = description == "extract"
        yield self

    def advance(self, amount: float = 1) -> None:
        if self.counts:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    def note(self, text: str) -> None: ...


def test_sigterm_between_two_checkpoints_loses_no_iteration(inputs, tmp_path) -> None:
    expected = contents(extract(inputs, tmp_path / "whole", CONFIG).folder)
    with termination.handled(), pytest.raises(termination.Terminated):
        extract(inputs, tmp_path / "stopped", CONFIG, StopsAt(7))
    (checkpoint,) = (tmp_path / "stopped.jobs").glob("*/result.partial/checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["iteration"] == 7
    context = extract(inputs, tmp_path / "stopped", CONFIG)
    assert contents(context.folder) == expected
    assert read_status(checkpoint.parents[1]).attempts == 2


def test_evaluations_in_the_environment_change_no_policy(tmp_path) -> None:
    spec = dataclasses.replace(task_spec("gymnasium/Pendulum-v1"), episode_length=10)
    store = write_store(tmp_path / "store", [(spec, [numbered_episode(spec, e, 10) for e in range(4)])])
    model = WorldModel(WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4), store.table)
    model.save(tmp_path / "model")
    given = {"store": [tmp_path / "store"], "world_model": [tmp_path / "model"]}
    plain = dataclasses.replace(CONFIG, algorithms=["pwm", "bc"])
    config = dataclasses.replace(plain, evaluate_every=5, evaluation_episodes=2)
    without = contents(extract(given, tmp_path / "without", plain).folder)
    evaluated = contents(extract(given, tmp_path / "with", config).folder)
    rows = pd.read_csv(tmp_path / "with" / "training.csv").dropna(subset="evaluation_return")
    assert sorted(set(rows["iteration"])) == [5, 10, 12]
    assert len(rows) == 3 * 4
    imagining = pd.read_csv(tmp_path / "with" / "training.csv").dropna(subset="imagined_reward")
    titles = [title for title, _ in draw_extraction(imagining, [spec.name], [], {"pwm": ("#111111", "-")})]
    assert titles == [spec.name, f"{spec.name}, return in the environment"]
    assert rows["evaluation_return"].between(-17 * 10, 0).all()  # Pendulum pays -16.3 to 0 per step
    policies = {name for name in without if name.endswith("safetensors")}
    assert len(policies) == 4
    assert {name: evaluated[name] for name in policies} == {name: without[name] for name in policies}
    with termination.handled(), pytest.raises(termination.Terminated):
        extract(given, tmp_path / "stopped", config, StopsAt(7))
    assert contents(extract(given, tmp_path / "stopped", config).folder) == evaluated


def test_a_job_that_fails_names_its_members_and_the_others_are_kept(inputs, tmp_path, monkeypatch) -> None:
    from orrery.stages.extraction.first_order import FirstOrderExtraction

    def not_finite(self, metrics, iteration) -> None:
        if any(member.task == "toy/b" for member in self.members):
            raise StageError("toy/b is not finite")

    monkeypatch.setattr(FirstOrderExtraction, "check_finite", not_finite)
    with pytest.raises(FanoutFailed, match=r"1 of 2 jobs.*\n  001-toy\.b: toy/b is not finite"):
        extract(inputs, tmp_path / "broken", fanout(policies_per_job=6))
    monkeypatch.undo()
    context = extract(inputs, tmp_path / "broken", fanout(policies_per_job=6))
    assert [read_status(path).attempts for path in sorted(context.jobs.iterdir())] == [1, 2]


def test_members_are_cut_task_by_task() -> None:
    members = [PolicySpec("pwm", task, seed, 0.0, True) for task in TASKS for seed in (0, 1)]
    members += [PolicySpec("bc", task, seed, 1.0, False) for task in TASKS for seed in (0, 1)]
    assert pack(members, 8) == [members]
    parts = pack(members, 3)
    named = [[(member.algorithm, member.task, member.seed) for member in part] for part in parts]
    assert named == [
        [("pwm", "toy/a", 0), ("pwm", "toy/a", 1), ("bc", "toy/a", 0)],
        [("pwm", "toy/b", 0), ("pwm", "toy/b", 1), ("bc", "toy/a", 1)],
        [("bc", "toy/b", 0), ("bc", "toy/b", 1)],
    ]
    assert job_names([[member.task.replace("/", ".") for member in part] for part in parts]) == [
        "000-toy.a",
        "001-toy.b+1",
        "002-toy.b",
    ]


def test_memory_decides_how_many_members_a_job_has(monkeypatch) -> None:
    assert MemoryEstimate(fixed=100, per_member=10).members_in(200) == 6
    assert MemoryEstimate(fixed=100, per_member=10).members_in(50) == 1

    def members(memory_gb: float, executor: str = "inline", workers: int = 2) -> int:
        monkeypatch.setattr(packing, "machine_memory", lambda: memory_gb * 2**30)
        monkeypatch.setattr(packing, "gpu_memory", lambda: 0)
        config = ExtractConfig(algorithms=["pwm"], seeds=3, accelerator="cpu", fanout=FanoutConfig(executor=executor))
        return policies_per_job(60, config, WorldModelConfig(size="5"), 25 * 2**20, 6, workers)

    assert members(256) == 60
    # 0.5 GiB per member with PWM's settings on the model of 5 million parameters: measured 0.49.
    assert 20 <= members(16) <= 30
    assert members(1) == 1
    # As many jobs as run at once, of two cores each, share what there is.
    assert members(256, "local", workers=8) == 15
    assert members(32, "local", workers=8) < 15


def test_an_estimated_split_is_kept_when_an_attempt_continues(inputs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(packing, "machine_memory", lambda: 2**40)
    with termination.handled(), pytest.raises(termination.Terminated):
        extract(inputs, tmp_path / "run", CONFIG, StopsAt(7))
    monkeypatch.setattr(packing, "machine_memory", lambda: 0)
    context = extract(inputs, tmp_path / "run", CONFIG)
    assert [path.name for path in context.jobs.iterdir()] == ["000-toy.a+1"]
    assert extract(inputs, tmp_path / "new", CONFIG).jobs.joinpath("011-toy.b").is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"executor": "slurm", "time_limit_min": 1.0},
            "set extract.fanout.policies_per_job or extract.fanout.memory_gb",
        ),
        (
            {"executor": "ray", "options": {"address": "head:6379"}},
            "set extract.fanout.policies_per_job or extract.fanout.memory_gb",
        ),
    ],
)
def test_memory_of_other_machines_has_to_be_given(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Extract(fanout(**settings)).check()
    Extract(fanout(memory_gb=40.0, **settings)).check()


def test_a_gpu_has_to_be_asked_for() -> None:
    slurm = FanoutConfig(executor="slurm", time_limit_min=1.0, policies_per_job=8)
    with pytest.raises(ConfigError, match=r"accelerator is cuda, but extract\.fanout\.options\.gpus is 0"):
        Extract(ExtractConfig(accelerator="cuda", fanout=slurm)).check()
    Extract(ExtractConfig(accelerator="cuda", fanout=dataclasses.replace(slurm, options={"gpus": 1}))).check()
