"""finetune: frozen parts keep their bits, what was forgotten, what is refused, resuming."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from orrery.datasets.facts import DataFacts
from orrery.datasets.store import TaskStore
from orrery.datasets.windows import WindowSampler
from orrery.pipeline import artifact
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import CheckpointError, ConfigError, StageError
from orrery.pipeline.jobs.fanout import FanoutConfig
from orrery.pipeline.keys import hashed
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.plan import check_all
from orrery.pipeline.sources import find_sources
from orrery.pipeline.stage import Context
from orrery.pipeline.study.config import prepare_study
from orrery.stages.extraction.config import ActorCriticConfig, ExtractConfig, FirstOrderConfig
from orrery.stages.extraction.stage_extract import Extract
from orrery.stages.finetune.config import FinetuneConfig
from orrery.stages.finetune.expansion import expand_model
from orrery.stages.finetune.module import Finetuning, begin_rows, try_rows
from orrery.stages.finetune.stage_finetune import Finetune
from orrery.stages.policy.policy import load_policy
from orrery.stages.training.config import OptimizerConfig, TrainerConfig
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.facts import ModelFacts, models_by_task, read_model_facts
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.start_frames import saved_behaviours
from rich.console import Console
from safetensors.torch import load_file

from .models import SMALL, random_model
from .stores import point_mass_episodes, point_mass_spec, write_store


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """A model of two tasks, their store, and one of two new tasks, one of them larger and pushed the other way."""
    folder = tmp_path_factory.mktemp("finetune")
    old = [
        (spec, point_mass_episodes(spec, 12, seed))
        for seed, spec in enumerate(map(point_mass_spec, ("toy/a", "toy/b")))
    ]
    write_store(folder / "old", old)
    wide = point_mass_spec("toy/wide", observation_dim=4, action_dim=2)
    near = point_mass_spec("toy/near")
    seen = point_mass_episodes(wide, 12, 5)
    for number, episode in enumerate(seen):
        episode.observations[:, 2:] = np.random.default_rng(number).normal(size=(26, 2))
    write_store(folder / "new", [(wide, seen), (near, point_mass_episodes(near, 12, 6))])
    torch.manual_seed(0)
    config = WorldModelConfig(
        latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4, num_bins=11, bin_limit=1, num_q=2, dropout=0.1
    )
    model = WorldModel(config, TaskStore.open(folder / "old").table)
    model.save(folder / "model")
    return {"world_model": [folder / "model"], "store": [folder / "new"], "replay": [folder / "old"]}


NETWORKS = ActorCriticConfig(actor_units=(8,), critic_units=(8,), num_critics=2)
FIRST_ORDER = FirstOrderConfig(horizon=2, batch_size=8, critic_passes=1, critic_minibatches=1, networks=NETWORKS)
CONFIG = FinetuneConfig(
    steps=6,
    batch_size=16,
    horizon=3,
    held_out=0.2,
    validate_every=3,
    validation_batches=2,
    checkpoint_every=2,
    optimizer=OptimizerConfig(lr=1e-2),
    trainer=TrainerConfig(accelerator="cpu", log_every=1),
)


def finetune(inputs, folder, config=CONFIG, leave_out=()):
    folder.mkdir(parents=True, exist_ok=True)
    given = {name: paths for name, paths in inputs.items() if name not in leave_out}
    context = Context(folder, given, 2, 1, logging.getLogger("test"), ConsoleProgress(Console(quiet=True)))
    return Finetune(config).run(context)


def changed(config, **changes):
    return dataclasses.replace(config, **changes)


def learned(before: Path, after: Path) -> set[str]:
    """Tensors of which something that both models have differs."""
    old, new = WorldModel.load(before), WorldModel.load(after)
    expanded, fresh = expand_model(old, list(new.table)[len(old.table) :])
    differing = set()
    for name, value in expanded.state_dict().items():
        if not torch.equal(value[~fresh[name]], new.state_dict()[name][~fresh[name]]):
            differing.add(name)
    return differing


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ("embedding", set()),
        ("heads", {"reward", "values", "policy_prior"}),
        ("dynamics", {"reward", "values", "policy_prior", "dynamics"}),
        ("everything", {"reward", "values", "policy_prior", "dynamics", "encoder", "task_embedding"}),
    ],
)
def test_what_is_frozen_keeps_its_bits_and_the_rest_learns(inputs, tmp_path, train, parts):
    finetune(inputs, tmp_path, changed(CONFIG, train=train, replay=0.25))
    found = {name.split(".")[0] for name in learned(inputs["world_model"][0], tmp_path)} - {"target_values"}
    assert found == parts
    new = load_file(tmp_path / "model.safetensors")
    columns = new["encoder.layers.0.linear.weight"][:, 2:4]  # of the larger observation
    assert (columns != 0).any()
    assert (new["dynamics.0.linear.weight"][:, -1] != 0).any()
    record = json.loads((tmp_path / "added.json").read_text())
    assert record["parameters"]["task_embedding.weight"] == (2 * 4 if train != "everything" else 4 * 4)


def test_embedding_alone_forgets_nothing(inputs, tmp_path):
    finetune(inputs, tmp_path, changed(CONFIG, train="embedding"))
    frame = pd.read_csv(tmp_path / "forgetting.csv")
    old = frame[~frame["new"]]
    assert sorted(old["task"].unique()) == ["toy/a", "toy/b"]
    pd.testing.assert_series_equal(old["reward_r2_before"], old["reward_r2_after"], check_names=False)
    pd.testing.assert_series_equal(old["latent_mse_before"], old["latent_mse_after"], check_names=False)
    new = frame[frame["new"]]
    assert (new["latent_mse_before"] != new["latent_mse_after"]).all()


class KilledError(Exception):
    pass


@contextmanager
def killed_at(step, monkeypatch):
    original = Finetuning.training_step

    def training_step(self, batch, batch_index):
        if self.global_step == step:
            raise KilledError
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Finetuning, "training_step", training_step)
        yield


@pytest.mark.parametrize("train", ["heads", "everything"])
def test_a_killed_and_resumed_finetune_equals_an_uninterrupted_one(inputs, tmp_path, monkeypatch, train):
    config = changed(CONFIG, train=train, replay=0.5)
    finetune(inputs, tmp_path / "whole", config)
    with killed_at(5, monkeypatch), pytest.raises(KilledError):  # one step past the checkpoint at 4
        finetune(inputs, tmp_path / "killed", config)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    names = ["model.safetensors", "forgetting.csv", "added.json", "training.csv", "validation.csv"]
    if train == "everything":  # settings that are not hashed may change meanwhile
        other = {"load_up_to_gb": 0.0, "validate_every": 2, "checkpoint_every": 3, "tasks": ["toy/wide"]}
        config = changed(config, **other, trainer=dataclasses.replace(CONFIG.trainer, log_every=3))
        assert hashed(dataclasses.asdict(config), Finetune) == hashed(
            dataclasses.asdict(changed(CONFIG, train=train, replay=0.5)), Finetune
        )
        names = names[:3]
    finetune(inputs, tmp_path / "killed", config)
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_each_task_with_a_model_of_its_own(inputs, tmp_path):
    config = changed(CONFIG, per_task=True, replay=0.25, fanout=FanoutConfig(executor="local", cpus_per_job=1))
    finetune(inputs, tmp_path / "each", config)
    folders = models_by_task(tmp_path / "each")
    assert list(folders) == ["toy/wide", "toy/near"]
    near = WorldModel.load(folders["toy/near"])
    assert near.table.names == ("toy/a", "toy/b", "toy/near")
    assert near.table.observation_dim == 2  # nothing of the larger task
    # Where jobs run changes nothing, to the bit.
    finetune(inputs, tmp_path / "here", changed(config, fanout=FanoutConfig(executor="inline")))
    for name, folder in models_by_task(tmp_path / "here").items():
        for file in ("model.safetensors", "forgetting.csv"):
            assert (folder / file).read_bytes() == (folders[name] / file).read_bytes()
    extract = ExtractConfig(
        first_order=FIRST_ORDER,
        algorithms=["pwm", "bc"],
        iterations=2,
        starts_per_task=32,
        accelerator="cpu",
        seeds=1,
    )
    given = {"world_model": [tmp_path / "each"], "store": inputs["store"]}
    (tmp_path / "policies").mkdir()
    log, quiet = logging.getLogger("test"), ConsoleProgress(Console(quiet=True))
    Extract(extract).run(Context(tmp_path / "policies", given, 2, 1, log, quiet))
    index = json.loads((tmp_path / "policies" / "policies.json").read_text())
    assert [task["name"] for task in index["tasks"]] == ["toy/wide", "toy/near"]
    assert [(one["algorithm"], one["task"]) for one in index["policies"]] == [
        (algorithm, task) for algorithm in ("pwm", "bc") for task in ("toy/wide", "toy/near")
    ]
    policy = load_policy(tmp_path / "policies" / "pwm" / "toy.wide" / "seed_0")
    assert policy.act(torch.zeros(3, 4)).shape == (3, 2)
    with pytest.raises(CheckpointError, match=r"toy/a: not in the task table .* which holds: toy/wide, toy/near"):
        Extract(dataclasses.replace(extract, tasks=["toy/a"])).run(Context(tmp_path, given, 2, 1, log, quiet))
    frame = pd.read_csv(tmp_path / "each" / "forgetting.csv")
    assert set(frame["model"]) == {"toy/wide", "toy/near"}
    assert models_by_task(inputs["world_model"][0]) == {}


def test_a_new_task_begins_as_the_old_one_that_predicts_it_best(inputs):
    """Data of task b under a new name: no other row and no other scaling than b's fit the windows as well."""
    store = TaskStore.open(inputs["replay"][0])
    old = random_model(store.table, dataclasses.replace(SMALL, task_dim=2))
    new = point_mass_spec("toy/new")
    model, _ = expand_model(old, [new])
    model.set_observation_statistics(2, torch.zeros(2), torch.full((2,), 3.0))
    batch = WindowSampler(store, length=3, batch_size=32, seed=0, weights={"toy/a": 0.0}, split="all").batch(0)

    def error_as(task, mean, scale):
        """Worked out from the old model alone."""
        with torch.no_grad():
            one = random_model(store.table, dataclasses.replace(SMALL, task_dim=2))
            one.observation_mean_KO[task], one.observation_scale_KO[task] = mean, scale
            ids = torch.full((32,), task)
            first = z = one.encode(batch["observation"][:, 0], ids)
            error = change = 0.0
            for t in range(3):
                z = one.next_latent(z, batch["action"][:, t], ids)
                target = one.encode(batch["observation"][:, t + 1], ids)
                error, change = error + (z - target).square().sum(), change + (first - target).square().sum()
            return float(error / change)

    own = torch.zeros(2), torch.full((2,), 3.0)
    stored = [(old.observation_mean_KO[j], old.observation_scale_KO[j]) for j in range(2)]
    expected = {(j, as_old): error_as(j, *(stored[j] if as_old else own)) for j in range(2) for as_old in (False, True)}
    batch["task"] = torch.full((32,), 2)
    tried = {(one.task, one.scaled_as_old): one.error for one in try_rows(model, 2, 2, "best", [batch])}
    assert tried == pytest.approx(expected, rel=1e-4)
    assert {key for key in expected if not key[1]} == {
        (one.task, one.scaled_as_old) for one in try_rows(model, 2, 2, "own", [batch])
    }
    j, as_old = min(expected, key=expected.get)
    said = begin_rows(model, 2, "nearest", "best", [[batch]])[0]
    assert (said["nearest"], said["scaling"]) == (store.table.names[j], "nearest" if as_old else "own")
    assert next(iter(said["errors"])) == said["nearest"]
    assert torch.equal(model.task_embedding.weight[2], old.task_embedding.weight[j])
    assert torch.equal(model.observation_scale_KO[2], stored[j][1] if as_old else own[1])


def test_a_new_task_is_scaled_by_its_own_data(inputs, tmp_path):
    finetune(inputs, tmp_path, changed(CONFIG, scaling="own"), leave_out=("replay",))
    model, store = WorldModel.load(tmp_path), TaskStore.open(inputs["store"][0])
    rows = store.tasks[0]
    seen = rows.rows[rows.sample_transitions(10**6, CONFIG.held_out), : rows.spec.observation_dim]
    torch.testing.assert_close(model.observation_mean_KO[2], seen.mean(0))
    assert model.table.names == ("toy/a", "toy/b", "toy/wide", "toy/near")
    assert set(pd.read_csv(tmp_path / "forgetting.csv")["task"]) == {"toy/wide", "toy/near"}
    assert set(saved_behaviours(tmp_path)) == {"toy/wide", "toy/near"}  # the old model has no frames saved


def test_a_single_episode_is_trained_on_and_not_validated(inputs, tmp_path):
    spec = point_mass_spec("toy/new")
    write_store(tmp_path / "one", [(spec, point_mass_episodes(spec, 1, 3))])
    given = {**inputs, "store": [tmp_path / "one"]}
    finetune(given, tmp_path / "model", changed(CONFIG, batch_size=8), leave_out=("replay",))
    assert WorldModel.load(tmp_path / "model").table.names[-1] == "toy/new"
    assert pd.read_csv(tmp_path / "model" / "validation.csv").empty
    finetune(given, tmp_path / "replayed", changed(CONFIG, batch_size=8, replay=0.5))
    assert set(pd.read_csv(tmp_path / "replayed" / "validation.csv")["task"]) == {"toy/a", "toy/b"}


def test_a_known_task_is_refused_before_anything_runs(inputs):
    stage = Finetune(changed(CONFIG, tasks=["toy/new", "toy/b"]))
    with pytest.raises(CheckpointError, match=r"toy/b: already in the task table of .* which holds: toy/a, toy/b"):
        stage.check_input("world_model", inputs["world_model"][0], read_model_facts(inputs["world_model"][0]))
    with pytest.raises(CheckpointError, match="toy/b: already in the task table of the world model, which holds"):
        Finetune(CONFIG).check_inputs(
            {"world_model": [ModelFacts(tasks=("toy/a", "toy/b"))], "store": [DataFacts(("toy/b",))]}
        )


def test_bad_inputs_are_refused_with_a_reason(inputs, tmp_path):
    with pytest.raises(CheckpointError, match="already in the task table"):
        finetune({**inputs, "store": inputs["replay"]}, tmp_path / "known")
    with pytest.raises(
        StageError, match=r"finetune.replay is 0.5, but the old tasks' data is missing: set inputs.replay"
    ):
        finetune(inputs, tmp_path / "replay", changed(CONFIG, replay=0.5), leave_out=("replay",))
    with pytest.raises(CheckpointError, match=r"inputs.replay: .* has other tasks .*\n.*toy/wide.*not a task of"):
        finetune({**inputs, "replay": inputs["store"]}, tmp_path / "other")
    spec = point_mass_spec("toy/discrete", action_kind="discrete", action_dim=2)
    write_store(tmp_path / "discrete", [(spec, point_mass_episodes(spec, 4))])
    with pytest.raises(CheckpointError, match=r"toy/discrete: actions are discrete, but .* continuous actions only"):
        finetune({**inputs, "store": [tmp_path / "discrete"]}, tmp_path / "kind")


def test_a_folder_that_is_no_world_model_is_refused(tmp_path):
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"holds no world model: expected model.json or sequence_model.json, found policy.json"
    ):
        read_model_facts(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replay": 1.0}, "at least 0 and below 1"),
        ({"replay": 0.01}, "leaves no window for old or for new tasks"),
        ({"train": "all"}, "expected embedding, heads, dynamics, everything"),
        ({"initial": "zero"}, "expected nearest, mean, random"),
        ({"scaling": "none"}, "expected own, best"),
        ({"held_out": 0.0}, "between 0 and 1"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        changed(CONFIG, **changes)


def published(source: Path, folder: Path, kind: str) -> Path:
    """A copy as a stage publishes it."""
    shutil.copytree(source, folder)
    about = {"kind": kind, "stage": "made", "key": "a" * 64, "config": {}, "inputs": {}}
    artifact.finish(folder, seconds=1.0, summary="", **about)
    return folder


@pytest.fixture
def pretrained(inputs, tmp_path):
    return published(inputs["world_model"][0], tmp_path / "model", "world_model")


def test_the_experiment_starts_from_the_model_and_extracts_from_what_it_makes(pretrained, inputs, tmp_path):
    stages = discover_stages()
    given = [f"world_model={pretrained}", "tasks=[dmc/cartpole-swingup]"]
    store = published(inputs["store"][0], tmp_path / "store", "store")
    config = load_config("finetune", given, stages=stages)
    sources = check_all(config, stages)
    assert [source.folder for source in sources["finetune"]["world_model"]] == [pretrained]
    assert sources["finetune"]["replay"] == []  # not the store of the new tasks
    assert [source.stage for source in sources["extract"]["world_model"]] == ["finetune"]
    assert config.stage_configs["extract"].tasks == ["dmc/cartpole-swingup"]
    known = load_config(
        "finetune", [given[0], "tasks=[toy/a]", "stages=[finetune]", f"inputs.store={store}"], stages=stages
    )
    with pytest.raises(CheckpointError, match="toy/a: already in the task table"):
        check_all(known, stages)
    with pytest.raises(StageError, match="'finetune' needs an input 'world_model'"):
        check_all(load_config("finetune", given[1:], stages=stages), stages)


def test_the_few_shot_study_gives_the_model_to_finetune_alone(pretrained, tmp_path):
    stages = discover_stages()
    series = prepare_study("few_shot", [f"world_model={pretrained}", f"run_dir={tmp_path}"], stages)
    makers = {}
    for variant in series.variants:
        listed = variant.config.settings.stages
        makers[variant.name] = next(name for name in ("finetune", "pretrain", "mrq") if name in listed)
        sources = [find_sources(variant.config, stages, stage) for stage in listed]
        reads = [source.folder for found in sources for many in found.values() for source in many]
        assert (pretrained in reads) == ("finetune" in listed), variant.name
    assert makers == {
        f"{name},episodes={n}": stage
        for name, stage in (("finetuned", "finetune"), ("scratch", "pretrain"), ("mrq", "mrq"))
        for n in (1, 5, 20, 100)
    }
    # Fewer episodes are the first ones of the same data.
    assert len({str(one.config.resolved["collect"]) for one in series.variants}) == 1
