"""Extraction for some of a model's tasks: from a store that holds only these, and from saved frames without a store."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import h5py
import pytest
import torch
from orrery.datasets.facts import DataFacts, read_store_facts
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.datasets.tables import find_tasks
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import CheckpointError, ConfigError, DatasetError, StageError
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.extraction.config import ActorCriticConfig, ExtractConfig, FirstOrderConfig, StartsConfig, SvgConfig
from orrery.stages.extraction.stage_extract import Extract
from orrery.stages.extraction.stage_starts import Starts
from orrery.stages.policy.policy import Policy
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.facts import read_model_facts
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.start_frames import SAVED_FRAMES, draw_frames, load_frames, save_store_frames
from rich.console import Console

from .grown import computed
from .stores import point_mass_episodes, point_mass_spec, write_store

NETWORKS = ActorCriticConfig(actor_units=(16,), critic_units=(16,), num_critics=2)
SPECS = {
    "toy/a": point_mass_spec("toy/a"),
    "toy/b": point_mass_spec("toy/b", observation_dim=4, action_dim=2),
    "toy/c": point_mass_spec("toy/c", observation_dim=3),
}


def config(**settings) -> ExtractConfig:
    first_order = FirstOrderConfig(horizon=3, batch_size=8, critic_passes=1, critic_minibatches=2, networks=NETWORKS)
    values = {
        "first_order": first_order, "iterations": 6, "starts_per_task": 64, "seeds": 1, "accelerator": "cpu",
        "algorithms": ["pwm"], "groups": 1, "svg": SvgConfig(batch_size=8, starts=4, networks=NETWORKS),
    }  # fmt: skip
    return ExtractConfig(**{**values, **settings})


def store_of(folder: Path, *names: str, **changes):
    specs = [point_mass_spec(name, **{**vars_of(name), **changes}) for name in names]
    write_store(folder, [(spec, point_mass_episodes(spec, 6)) for spec in specs])
    return folder


def vars_of(name: str) -> dict[str, object]:
    return {"observation_dim": SPECS[name].observation_dim, "action_dim": SPECS[name].action_dim}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    made = WorldModel(
        WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4), TaskTable(list(SPECS.values()))
    )
    torch.nn.init.normal_(made.reward[-1].weight, std=0.5)
    made.save(folder)
    return folder


def context_of(folder: Path, **inputs: Path) -> Context:
    folder.mkdir(parents=True)
    given = {name: [path] for name, path in inputs.items()}
    return Context(folder, given, 1, 1, logging.getLogger("test"), ConsoleProgress(Console(quiet=True)))


def extract(folder: Path, settings: ExtractConfig, **inputs: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of the policies by task."""
    Extract(settings).run(context_of(folder, **inputs))
    index = json.loads((folder / "policies.json").read_text())
    return {entry["task"]: Policy.from_pretrained(folder / entry["path"]).state_dict() for entry in index["policies"]}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("algorithm", ["pwm", "svg"])
def test_a_store_of_the_wanted_tasks_alone_gives_the_same_policies(model: Path, tmp_path: Path, algorithm) -> None:
    """Also where its rows are narrower than the model's, since the widest task is not in it."""
    everything = store_of(tmp_path / "everything", "toy/a", "toy/b", "toy/c")
    narrow = store_of(tmp_path / "narrow", "toy/c", "toy/a")
    wanted = config(tasks=["toy/a", "toy/c"], algorithms=[algorithm])
    whole = extract(tmp_path / "whole", wanted, world_model=model, store=everything)
    part = extract(tmp_path / "part", wanted, world_model=model, store=narrow)
    assert list(whole) == list(part) == ["toy/a", "toy/c"]
    assert all(same(whole[name], part[name]) for name in whole)


def test_tables_that_do_not_match_are_both_shown(model: Path, tmp_path: Path) -> None:
    def refusal(settings: ExtractConfig, store: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            extract(tmp_path / store.name / "out", settings, world_model=model, store=store)
        return str(caught.value)

    message = refusal(config(), store_of(tmp_path / "fewer", "toy/a", "toy/b"))
    assert "have different task tables" in message
    assert "toy/c (O=3, A=1)" in message
    assert "toy/c is not in the store" in message
    assert "extract.tasks=[toy/a,toy/b]" in message
    message = refusal(config(tasks=["toy/a"]), store_of(tmp_path / "longer", "toy/a", episode_length=50, discount=0.9))
    assert "toy/a: episode_length 25 of the model, 50 of the store" in message
    assert "toy/a: discount 0.95 of the model, 0.9 of the store" in message
    message = refusal(config(tasks=["toy/a"]), store_of(tmp_path / "wider", "toy/a", observation_dim=3))
    assert "toy/a: observation_dim 2 of the model, 3 of the store" in message
    assert "They share no task" in message
    assert "toy/x: not in the task table" in refusal(
        config(tasks=["toy/x"]), store_of(tmp_path / "whole", "toy/a", "toy/b", "toy/c")
    )


def test_windows_longer_than_every_episode_are_refused(model: Path, tmp_path: Path) -> None:
    """Before anything runs where the store is there already, else at the start of extract."""
    store = store_of(tmp_path / "store", "toy/a", "toy/b", "toy/c")
    settings = config(tasks=["toy/a", "toy/c"], algorithms=["svg"], svg=SvgConfig(n_step=26))
    expected = r"extract\.svg\.n_step is 26.*: toy/a 25, toy/c 25\. Set extract\.svg\.n_step=25 or less"
    facts = read_store_facts(store)
    assert facts == DataFacts(("toy/a", "toy/b", "toy/c"), (25, 25, 25))
    with pytest.raises(ConfigError, match=expected):
        Extract(settings).check_input("store", store, facts)
    with pytest.raises(ConfigError, match=expected):
        extract(tmp_path / "out", settings, world_model=model, store=store)
    Extract(settings).check_input("store", store, DataFacts(("toy/a", "toy/b", "toy/c")))  # not known yet
    Extract(config(algorithms=["pwm"], svg=SvgConfig(n_step=26))).check_input("store", store, facts)
    (store / SPECS["toy/b"].slug / "episodes.npz").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"episodes\.npz.*is damaged"):
        read_store_facts(store)


def test_saved_frames_take_the_place_of_the_data(model: Path, tmp_path: Path) -> None:
    folder = store_of(tmp_path / "store", "toy/a", "toy/b", "toy/c")
    with_frames = tmp_path / "model"
    WorldModel.load(model, frozen=False).save(with_frames)
    from orrery.datasets.store import TaskStore

    store = TaskStore.open(folder)
    save_store_frames(store, with_frames)
    saved = load_frames(with_frames, list(SPECS.values()))["toy/b"]
    assert saved.observation_NO.shape == (SAVED_FRAMES, 4)
    assert saved.action_NA.shape == (SAVED_FRAMES, 2)
    drawn = draw_frames(store, "toy/b", SAVED_FRAMES, 64, 0)
    assert torch.equal(saved.observation_NO, drawn.observation_NO)
    assert saved.reward_rms == drawn.reward_rms > 0
    # Each frame is one of the data, with the action taken there.
    rows = {tuple(row[[0, 1, 2, 3, 4, 5]].tolist()) for row in store.tasks[1].rows}
    assert all(tuple(row.tolist()) in rows for row in torch.cat([saved.observation_NO, saved.action_NA], 1))

    policies = extract(tmp_path / "alone", config(tasks=["toy/b"]), world_model=with_frames)
    assert list(policies) == ["toy/b"]
    # The stage starts hands the same frames on; what comes of them is the same.
    given = context_of(tmp_path / "starts", world_model=with_frames)
    assert f"{SAVED_FRAMES:,} frames of each of 1 task," in Starts(StartsConfig(tasks=["toy/b"])).run(given)
    again = extract(tmp_path / "again", config(tasks=["toy/b"]), world_model=model, starts=tmp_path / "starts")
    assert same(policies["toy/b"], again["toy/b"])
    with pytest.raises(CheckpointError, match="has no start frames of toy/a, only of toy/b"):
        extract(tmp_path / "other", config(tasks=["toy/a"]), world_model=model, starts=tmp_path / "starts")
    for needy, reason in {"bc": "bc clones the actions of a store", "svg": "svg learns its critics from the"}.items():
        with pytest.raises(ConfigError, match=rf"{reason}.*algorithms=\[pwm\].*inputs\.store=PATH"):
            Extract(config(algorithms=["pwm", needy])).check_inputs({"world_model": [None], "store": [], "starts": []})
    with pytest.raises(CheckpointError, match="toy/x: not in the task table"):
        extract(tmp_path / "unknown", config(tasks=["toy/x"]), world_model=with_frames)


def test_nowhere_to_start_says_what_to_do(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no start frames.*Add the stage starts before extract"):
        extract(tmp_path / "out", config(), world_model=model)
    with pytest.raises(StageError, match="no environment is known for toy/a"):
        Starts(StartsConfig(tasks=["toy/a"])).run(context_of(tmp_path / "starts", world_model=model))


def test_frames_of_episodes_played_now(tmp_path: Path) -> None:
    from orrery.datasets.tasks import task_spec

    specs = [task_spec("gymnasium/Pendulum-v1"), task_spec("gymnasium/CartPole-v1")]
    WorldModel(WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4), TaskTable(specs)).save(
        tmp_path / "model"
    )
    settings = StartsConfig(episodes=3, frames=500)
    Starts(settings).run(context_of(tmp_path / "one", world_model=tmp_path / "model"))
    Starts(settings).run(context_of(tmp_path / "two", world_model=tmp_path / "model"))
    # More episodes and tasks play only what is missing.
    grown = context_of(tmp_path / "grown", world_model=tmp_path / "model")
    for more in (
        dataclasses.replace(settings, tasks=[specs[0].name], episodes=5),
        dataclasses.replace(settings, episodes=8),
    ):
        Starts(more).run(grown)
    assert list(computed(grown).values()) == [1, 3]  # chunks of 5; of 3, 5 and 3 episodes
    found = load_frames(tmp_path / "one", specs)
    again = load_frames(tmp_path / "two", specs)
    pendulum, cartpole = (found[spec.name] for spec in specs)
    assert torch.equal(pendulum.observation_NO, again["gymnasium/Pendulum-v1"].observation_NO)
    # Equally many of both, although the one's episodes last 200 steps and the other's a few dozen.
    assert 20 < len(pendulum.observation_NO) == len(cartpole.observation_NO) <= 500
    assert len(pendulum.initial_BO) == 3
    assert pendulum.behaviour == "exploration"
    assert cartpole.reward_rms == 1.0
    assert cartpole.action_NA.sum(1).eq(1).all()  # a choice each
    assert pendulum.observation_NO[:, :2].norm(dim=1).sub(1).abs().max() < 1e-5  # cosine and sine


def test_tasks_of_a_model_are_found_as_a_config_spells_them(tmp_path):
    table = TaskTable([TaskSpec("dmc/ball_in_cup-catch", 8, 2, 500), TaskSpec("toy/b", 3, 1, 50)])
    assert [task.name for task in find_tasks(table, ["cup-catch"], tmp_path)] == ["dmc/ball_in_cup-catch"]
    assert find_tasks(table, [], tmp_path) == list(table)


def test_a_model_knows_the_task_of_a_file_that_a_run_names_by_its_path(tmp_path):
    table = TaskTable([point_mass_spec("hdf5/arm")])
    with h5py.File(file := tmp_path / "arm.hdf5", "w"):
        pass
    assert [task.name for task in find_tasks(table, [str(file)], tmp_path)] == ["hdf5/arm"]
    with pytest.raises(CheckpointError, match="hdf5/none: not in the task table"):
        find_tasks(table, ["none.hdf5"], tmp_path)


def test_the_tasks_of_a_run_are_those_that_policies_are_made_for():
    overrides = ["tasks=[metaworld/reach-v3]", "algorithms=[pwm,tdmpc2_plan]", "world_model=runs/quickstart/pretrain"]
    read = load_config("quickstart", overrides, stages=discover_stages())
    assert [read.stage_configs[name].tasks for name in ("extract", "mppi")] == [["metaworld/reach-v3"]] * 2


@pytest.mark.parametrize("stage", [Extract(config(tasks=["toy/z"])), Starts(StartsConfig(tasks=["toy/z"]))])
def test_a_task_that_a_model_does_not_know_is_refused_before_anything_runs(stage, model):
    with pytest.raises(CheckpointError, match=rf"toy/z: not in the task table of .*{model}.* holds: toy/a, toy/b"):
        stage.check_input("world_model", model, read_model_facts(model))
