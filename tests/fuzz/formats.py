"""One small valid input of every format that Orrery reads, and how it is read: whole, as a stage would.

A reader returns what it read; an input is damaged below its folder, and the outcome of reading it again is judged by
`worker.py`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium.spaces as gs
import h5py
import minari
import numpy as np
import pyarrow.parquet
import torch
from minari.data_collector import EpisodeBuffer
from orrery.datasets.formats.hdf5 import Hdf5Reader
from orrery.datasets.formats.minari import MinariReader
from orrery.datasets.formats.sources import open_reader
from orrery.datasets.formats.tdmpc2 import Tdmpc2Reader
from orrery.datasets.schema import TaskSpec
from orrery.datasets.store import TaskStore
from orrery.pipeline import artifact
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.jobs.job import (
    FolderJob,
    JobContext,
    JobStatus,
    execute,
    is_done,
    prepare,
    read_progress,
    read_status,
    write_status,
)
from orrery.pipeline.run_folder import Attempt, attempt_file, read_attempt, write_attempt
from orrery.pipeline.status import describe_status, read_run_status
from orrery.pipeline.study.command import describe_study, read_study_status
from orrery.pipeline.study.config import load_study
from orrery.stages.data import inspect
from orrery.stages.evaluation.scores import EpisodeRow, ImaginedReturn, ScoreRow, Summary, summarise, write_csv
from orrery.stages.policy.policy import Policy, load_policy
from orrery.stages.policy.policy_index import PolicyIndex, policy_entry, write_index
from orrery.stages.reporting.config import VariantConfig
from orrery.stages.reporting.results import ReportData
from orrery.stages.reporting.scoring import markdown_table, score_table
from orrery.stages.reporting.study_results import read_results
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.tdmpc2_checkpoint import describe, from_tdmpc2, read_tdmpc2
from rich.console import Console
from tensordict import TensorDict
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from unit import chunks, deployed, models, stores, tdmpc2_states


@dataclass(frozen=True)
class Format:
    make: Callable[[Path], None]
    """Writes a valid input into an empty folder."""
    read: Callable[[Path], Any]
    verified: bool = False
    """Whether a checksum is promised: then nothing but what was written may be read."""


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _make_minari(folder: Path) -> None:
    last = np.arange(5) == 4
    space = gs.Dict({"place": gs.Box(-np.inf, np.inf, (2,), np.float64), "goal": gs.Box(-1, 1, (1,), np.float32)})
    episodes = [
        EpisodeBuffer(
            observations={"place": _random(6, 2).astype(float), "goal": _random(6, 1)},
            actions=_random(5, 2),
            rewards=_random(5).astype(float),
            terminations=last & bool(index),
            truncations=last & (not index),
            infos={"success": last},
        )
        for index in range(2)
    ]
    with warnings.catch_warnings(action="ignore"):
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
        minari.create_dataset_from_buffers(
            "point/random-v0", episodes, observation_space=space, action_space=gs.Box(-1, 1, (2,), np.float32)
        )


def _read_dataset(reader: Any) -> Any:
    return [reader.task.to_dict(), dict(reader.source), [vars(episode) for episode in reader]]


def _make_flat(folder: Path) -> None:
    with h5py.File(folder / "flat.hdf5", "w") as file:
        file["observations"], file["actions"], file["rewards"] = _random(12, 3), _random(12, 2), _random(12)
        file["terminals"], file["timeouts"] = np.arange(12) == 4, np.arange(12) % 6 == 5
        file.create_dataset("infos/qpos", data=_random(12, 2), chunks=(4, 2), compression="gzip")


def _make_robomimic(folder: Path) -> None:
    with h5py.File(folder / "demos.hdf5", "w") as file:
        for index in range(2):
            group = file.create_group(f"data/demo_{index}")
            group.attrs["num_samples"] = 5
            group["actions"], group["rewards"], group["dones"] = _random(5, 2), _random(5), np.arange(5) == 4
            group["obs/place"], group["obs/goal"] = _random(5, 2), _random(5)
            group["next_obs/place"], group["next_obs/goal"] = _random(5, 2), _random(5)
        file["data"].attrs["env_args"] = "{}"


def _make_mapped(folder: Path) -> None:
    with h5py.File(folder / "own.hdf5", "w") as file:
        file["s/x"], file["s/y"], file["a"], file["r"] = _random(12, 2), _random(12), _random(12, 2), _random(12)
        file["end"] = np.arange(12) % 6 == 5
    (folder / "columns.yaml").write_text("observation: [s/*]\naction: a\nreward: r\ntruncated: end\n")


def _make_npz(folder: Path) -> None:
    np.savez_compressed(
        folder / "play.npz", observations=_random(12, 3), actions=_random(12, 2), terminals=np.arange(12) % 6 == 5
    )


def _make_d3rlpy(folder: Path) -> None:
    with h5py.File(folder / "replay.h5", "w") as file:
        file["columns"], file["num_episodes"] = ["observations", "actions", "rewards", "terminated"], 2
        for index in range(2):
            file[f"observations_{index}"], file[f"actions_{index}"] = _random(6, 3), _random(6, 2)
            file[f"rewards_{index}"], file[f"terminated_{index}"] = _random(6, 1), bool(index)


def _make_lerobot(folder: Path) -> None:
    columns = {
        "observation.state": _random(12, 3).tolist(),
        "action": _random(12, 2).tolist(),
        "next.reward": _random(12),
        "next.done": np.arange(12) % 6 == 5,
        "episode_index": np.arange(12) // 6,
    }
    (folder / "set/data/chunk-000").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "set/data/chunk-000/file-000.parquet")
    features = {name: {"dtype": "float32", "shape": [1], "names": None} for name in columns}
    info = {"codebase_version": "v3.0", "total_frames": 12, "total_tasks": 1, "features": features}
    (folder / "set/meta").mkdir()
    (folder / "set/meta/info.json").write_text(json.dumps(info))


def _make_torchrl(folder: Path) -> None:
    states, last = torch.from_numpy(_random(13, 3)), (torch.arange(12) % 6 == 5)[:, None]
    following = {"observation": states[1:], "reward": torch.ones(12, 1), "done": last, "terminated": last}
    data = {"observation": states[:-1], "action": torch.from_numpy(_random(12, 2)), "next": following}
    TensorDict(data, batch_size=[12]).memmap(folder / "buffer/storage")  # as `dumps`, which prints
    (folder / "buffer/storage/storage_metadata.json").write_text(json.dumps({"is_pytree": False, "len": 12}))
    (folder / "buffer/writer").mkdir()
    (folder / "buffer/writer/metadata.json").write_text(json.dumps({"cursor": 6, "write_count": 18}))


def _make_store(folder: Path) -> None:
    tasks = []
    for name, width in (("toy/a", 3), ("toy/b", 2)):
        spec = stores.point_mass_spec(name, observation_dim=width, episode_length=5)
        tasks.append((spec, stores.point_mass_episodes(spec, 3, length=5)))
    stores.write_store(folder / "pack", tasks)
    _finish(folder / "pack", "store")


def _finish(folder: Path, kind: str) -> None:
    artifact.finish(folder, kind=kind, stage="made", key="0", config={}, inputs={}, seconds=1.0, summary="tiny")


def _read_store(folder: Path) -> Any:
    store = TaskStore.open(folder / "pack")
    return [
        [task.spec.to_dict(), vars(task.summary), task.rows.clone(), task.offsets, task.terminated, task.returns]
        for task in store.tasks
    ]


def _verified(kind: str, name: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def verify_and_read(folder: Path) -> Any:
        artifact.verify(folder / name, kind)
        artifact.verify_listed(folder / name, ["store.json", "tasks.json"])
        return read(folder)

    return verify_and_read


def _make_model(folder: Path) -> None:
    tasks = [TaskSpec("toy/a", 3, 2, 25, terminates=True), TaskSpec("toy/b", 2, 1, 50)]
    models.random_model(deployed.TaskTable(tasks)).save(folder / "pretrain")
    _finish(folder / "pretrain", "world_model")


def _model(model: nn.Module) -> Any:
    return [dict(model.state_dict()), str(vars(model).get("config"))]


def _make_policies(folder: Path) -> None:
    torch.manual_seed(0)
    arm, grid, made = deployed.arm_task(), deployed.grid_task(), []
    policies = {
        "pwm": deployed.latent(arm), "bpo": deployed.state(arm), "sac": deployed.perceptron(arm),
        "mrq": deployed.mrq(arm, on_latents=True), "powr": deployed.kernel(grid, "delta", full=True),
    }  # fmt: skip
    for algorithm, policy in policies.items():
        made.append({"algorithm": algorithm, "task": policy.task.name, "seed": 0, "path": f"{algorithm}/seed_0"})
        policy.save(folder / "extract" / made[-1]["path"])
    write_index(folder / "extract", [arm, grid], made)
    _finish(folder / "extract", "policies")


def _read_policies(folder: Path) -> Any:
    index = PolicyIndex.read(folder / "extract")
    loaded = [load_policy(folder / "extract" / entry["path"]) for entry in index.entries]
    return [[task.to_dict() for task in index.tasks], index.entries, list(map(_model, loaded))]


def _read_one_policy(folder: Path) -> Any:
    return _model(Policy.from_pretrained(folder / "extract", algorithm="bpo", task="test/arm"))


def _make_checkpoint(folder: Path) -> None:
    torch.save({"model": tdmpc2_states.random_state("new", tasks=2), "step": 3}, folder / "model.pt")


def _read_checkpoint(folder: Path) -> Any:
    path = folder / "model.pt"
    state = read_tdmpc2(path)
    describe(state, where=str(path))
    return _model(from_tdmpc2(state, where=str(path), frozen=False))


def _make_chunks(folder: Path) -> None:
    rows = chunks.task_rows("mt30", "dmc/pendulum-swingup", 2, filler=0.0)
    for index, part in enumerate((chunks.cut(rows, 0, 1), chunks.cut(rows, 1))):
        torch.save({name: torch.from_numpy(value) for name, value in part.items()}, folder / f"chunk_{index}.pt")


def _read_chunks(folder: Path) -> Any:
    return _read_dataset(Tdmpc2Reader(folder, task_set="mt30", name="dmc/pendulum-swingup"))


def _make_experiment(folder: Path) -> None:
    (folder / "mine.yaml").write_text(
        "# Mine\nstages: [pack, pretrain, extract]\ntasks: &tasks [dmc/cartpole-balance]\nseeds: 1\n"
        "algorithms: [pwm]\npretrain:\n  steps: 10\n  model: {size: small, latent_dim: 16}\nextract:\n"
        "  tasks: *tasks\n"
    )


def _read_experiment(folder: Path) -> Any:
    config = load_config(str(folder / "mine.yaml"), [], stages=_stages())
    return json.loads(json.dumps(config.resolved, default=str))


_found: dict[str, Any] = {}


def _stages() -> Any:
    return _found or _found.update(discover_stages()) or _found


def _make_study(folder: Path) -> None:
    (folder / "study.yaml").write_text(
        "experiment: quickstart\noverrides: [seeds=1]\ngrid: {pretrain.steps: [1, 2]}\n"
        "variants: {small: [pretrain.model.latent_dim=16]}\n"
    )


def _read_study(folder: Path) -> Any:
    return str(load_study(str(folder / "study.yaml")))


def _make_run(folder: Path) -> None:
    run = folder / "run"
    _make_model(run)
    stages = [
        {"stage": "pretrain", "status": "done", "seconds": 3.0, "summary": "tiny"},
        {"stage": "extract", "status": "interrupted", "seconds": 0.0, "summary": ""},
    ]
    artifact.write_json(
        run / "run.json",
        {"experiment": "quickstart", "overrides": ["seeds=1"], "config": {}, "versions": {}, "stages": stages},
    )
    write_attempt(run / "extract", Attempt("0", artifact.MadeFrom({"steps": 1}, {}, "1.0"), 2.0), running=True)
    job = run / "extract.jobs" / "one"
    job.mkdir(parents=True)
    (job / "job.json").write_text('{"key": "0", "function": "a:b", "payload": {}, "inputs": {}, "threads": 1}')
    write_status(job, JobStatus("running", 1, 1.0, 5.0, "local", "process 1 on a", ""))
    (job / "progress.json").write_text('{"description": "steps", "total": 5, "completed": 1, "note": ""}')


def _read_run(folder: Path) -> Any:
    console, run = Console(width=120, file=io.StringIO()), folder / "run"
    console.print(describe_status(read_run_status(run)))
    console.print(inspect.render(inspect.describe(run)))
    console.print(inspect.render(inspect.describe(run / "pretrain")))
    job = run / "extract.jobs" / "one"
    found = read_attempt(run / "extract")
    return [found and found.key, vars(read_status(job)), read_progress(job), attempt_file(run / "extract").name]


def _make_series(folder: Path, command: str) -> None:
    """Of a study or of rounds, with one run."""
    stages = [{"stage": "pretrain", "status": "done", "seconds": 3.0, "summary": "tiny"}]
    record = {"experiment": "quickstart", "overrides": [], "config": {}, "versions": {}, "stages": stages}
    (folder / "one").mkdir()
    artifact.write_json(folder / "one" / "run.json", record)
    variants = {"one": {"status": "done", "reason": "", "bug": False}, "two": {"status": "failed", "reason": "tiny"}}
    values = {"command": command, "name": "mine", "source": "mine.yaml", "overrides": [], "variants": variants}
    artifact.write_json(folder / "study.json", values)


def _read_series(folder: Path) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(describe_study(read_study_status(folder)))
    return console.export_text()


def _make_results(folder: Path) -> None:
    episodes = [
        EpisodeRow(name, "dmc/cup", seed, 0, 1, float(seed), 5, None, None, None)
        for name in ("pwm", "random")
        for seed in range(2)
    ]
    scores = [
        ScoreRow(row.algorithm, row.task, row.seed, 1, row.return_, 0.0, None, 0.5 + row.seed) for row in episodes
    ]
    made = folder / "run"
    for name in ("evaluate", "extract", "pretrain", "gradients"):
        (made / name).mkdir(parents=True)
    write_csv(made / "evaluate" / "scores.csv", ScoreRow, scores)
    summary = Summary(summarise(scores, episodes), protocol={"episodes": 1}, skipped={"dmc/other": "no environment"})
    summary.imagined.append(ImaginedReturn("pwm", "dmc/cup", 0, 2.0, 1.0))
    artifact.write_json(made / "evaluate" / "summary.json", asdict(summary))
    spec = TaskSpec("dmc/cup", 8, 2, 500, score_kind="return_per_1000")
    write_index(made / "extract", [spec], [policy_entry("pwm", spec, seed, actor_grad_norm=1.5) for seed in range(2)])
    curve = "iteration,algorithm,task,seed,imagined_reward,actor_grad_norm\n1,pwm,dmc/cup,0,0.5,2.5\n"
    (made / "extract" / "training.csv").write_text(curve)
    (made / "pretrain" / "training.csv").write_text("step,train/total\n1,2.5\n2,1.5\n")
    validation = "step,task,horizon,latent_mse,reward_r2\n1,dmc/cup,1,0.1,0.9\n2,dmc/cup,1,0.1,0.95\n"
    (made / "pretrain" / "validation.csv").write_text(validation)
    measured = "task,horizon,norm,return_norm,r2,cosine\ndmc/cup,1,0.1,0.2,0.9,0.5\n"
    (made / "gradients" / "gradients.csv").write_text(measured)


def _read_results(folder: Path) -> Any:
    places = {"scores": "evaluate", "policies": "extract", "world_model": "pretrain", "gradients": "gradients"}
    data = ReportData({kind: [folder / "run" / name] for kind, name in places.items()})
    table = score_table(data)
    compared = VariantConfig("a", {"steps": "1"}, {kind: [f"run/{name}"] for kind, name in places.items()})
    study = read_results({"a": compared}, folder)
    return [
        table and markdown_table(table),
        data.imagined.to_csv(),
        data.last_validation.to_csv(),
        [frame.to_csv() for frame in study.tables.values()],
    ]


def job_of_the_job(payload: Mapping[str, Any], context: JobContext) -> None:
    (context.folder / "result.json").write_text(json.dumps(sorted(payload)))


def _make_job(folder: Path) -> None:
    prepare(folder / "one", FolderJob("one", {"steps": 3}), "key", job_of_the_job, {}, threads=1, workers=1)


def _read_job(folder: Path) -> Any:
    execute(folder / "one", logging.getLogger("orrery"), None)
    return is_done(folder / "one")


FORMATS = {
    "minari": Format(_make_minari, lambda folder: _read_dataset(MinariReader(folder / "point/random-v0"))),
    "flat": Format(_make_flat, lambda folder: _read_dataset(Hdf5Reader(folder / "flat.hdf5"))),
    "robomimic": Format(_make_robomimic, lambda folder: _read_dataset(Hdf5Reader(folder / "demos.hdf5"))),
    "columns": Format(
        _make_mapped,
        lambda folder: _read_dataset(Hdf5Reader(folder / "own.hdf5", columns=str(folder / "columns.yaml"))),
    ),
    "npz": Format(_make_npz, lambda folder: _read_dataset(open_reader(folder / "play.npz"))),
    "d3rlpy": Format(_make_d3rlpy, lambda folder: _read_dataset(open_reader(folder / "replay.h5"))),
    "lerobot": Format(_make_lerobot, lambda folder: _read_dataset(open_reader(folder / "set"))),
    "torchrl": Format(_make_torchrl, lambda folder: _read_dataset(open_reader(folder / "buffer"))),
    "store": Format(_make_store, _read_store),
    "verified store": Format(_make_store, _verified("store", "pack", _read_store), verified=True),
    "model": Format(_make_model, lambda folder: _model(WorldModel.load(folder / "pretrain"))),
    "verified model": Format(
        _make_model, lambda folder: _model(WorldModel.from_pretrained(folder / "pretrain")), verified=True
    ),
    "policies": Format(_make_policies, _read_policies),
    "verified policy": Format(_make_policies, _read_one_policy, verified=True),
    "checkpoint": Format(_make_checkpoint, _read_checkpoint, verified=True),
    "chunks": Format(_make_chunks, _read_chunks, verified=True),
    "experiment": Format(_make_experiment, _read_experiment),
    "study": Format(_make_study, _read_study),
    "run": Format(_make_run, _read_run),
    "study record": Format(lambda folder: _make_series(folder, "study"), _read_series),
    "iteration record": Format(lambda folder: _make_series(folder, "iterate"), _read_series),
    "results": Format(_make_results, _read_results),
    "job": Format(_make_job, _read_job),
}
