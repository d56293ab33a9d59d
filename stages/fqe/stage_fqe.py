"""The stage fqe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import read_store_facts
from ...datasets.schema import read_table
from ...pipeline.artifact import write_json
from ...pipeline.entry_points import load
from ...pipeline.errors import CheckpointError, ConfigError, StageError
from ...pipeline.jobs.pool import run_all
from ...pipeline.reading import read_json, read_made
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import PolicyIndex
from .config import FqeConfig
from .estimates import ESTIMATES_FILE, SELECTION_FILE, ValueEstimate, select

if TYPE_CHECKING:
    from .fitted_q import Frames

ACTED_ON = 4096
"""Frames that a policy acts on at once."""
RESULTS = "by_policy"
"""Folder of the estimates, one file per policy."""

EXPLOITS = (
    "fqe: %s exploits errors of the world model on %s, seed %d: imagined value %.4g, the data says %.4g [%.4g, %.4g]"
)


@dataclass(frozen=True)
class _Job:
    """One policy."""

    entry: Mapping[str, Any]
    """Of policies.json."""
    folder: Path
    store: Path
    config: FqeConfig
    result: Path
    """Where its estimate is kept; an interrupted stage finds it there."""

    def __str__(self) -> str:
        return f"fitted Q evaluation of {self.entry['algorithm']} on {self.entry['task']}, seed {self.entry['seed']}"


class Fqe(Stage):
    """Estimate from the store alone what policies earn, by fitted Q evaluation (FQE), and select one per task.

    For tasks without a simulator, and to choose before anything is deployed. `estimates.csv` has a row per policy:
    algorithm, task, seed; value, low, high: discounted return from the data's first states and its 95% interval over
    resampled episodes; data: that of the recorded episodes; imagined: what the world model says of the policy, empty
    where it was not extracted from one. `selection.json` names the policy with the largest estimate by task.
    """

    Config = FqeConfig
    inputs = {"policies": Input("policies", many=True), "store": Input("store", facts=read_store_facts)}
    output_kind = "estimates"
    run_keys = ("seed",)
    config: FqeConfig

    def run(self, context: Context) -> str:
        import pandas as pd

        jobs = self._jobs(context)
        remaining = [job for job in jobs if not job.result.exists()]
        (context.folder / RESULTS).mkdir(exist_ok=True)
        with context.progress("fqe", total=len(jobs), completed=len(jobs) - len(remaining)) as progress:
            for job, one in run_all(_estimate, remaining, workers=context.workers, kept="finished estimates"):
                write_json(job.result, asdict(one))
                progress.advance()
                progress.note(f"{one.algorithm} {one.task}: {one.value:.4g}")
        estimates = [read_made(job.result, ValueEstimate) for job in jobs]
        pd.DataFrame(map(asdict, estimates)).to_csv(context.folder / ESTIMATES_FILE, index=False)
        paths = {(job.entry["algorithm"], job.entry["task"], job.entry["seed"]): job.folder for job in jobs}
        selected = select(estimates)
        write_json(
            context.folder / SELECTION_FILE,
            {
                task: {**asdict(one), "folder": str(paths[one.algorithm, task, one.seed])}
                for task, one in selected.items()
            },
        )
        for one in estimates:
            if one.exploits:
                context.log.warning(
                    EXPLOITS, one.algorithm, one.task, one.seed, one.imagined, one.value, one.low, one.high
                )
        chosen = [one.algorithm for one in selected.values()]
        counts = ", ".join(f"{name} on {counted(chosen.count(name), 'task')}" for name in dict.fromkeys(chosen))
        return f"{counted(len(estimates), 'policy', 'policies')} estimated; selected: {counts}"

    def _jobs(self, context: Context) -> list[_Job]:
        """One job per policy; those of a task are adjacent, so that a process reads its data once.

        Raises:
            ConfigError: there is no policy of the algorithms that are set, or the store is of other tasks.
        """
        store, results = context.input("store"), context.folder / RESULTS
        specs = {spec.name: spec for spec in read_table(store)}
        jobs: list[_Job] = []
        unfit: dict[str, list[str]] = {}
        known = set()
        for artifact in context.inputs["policies"]:
            index = PolicyIndex.read(artifact)
            known |= {entry["algorithm"] for entry in index.entries}
            widths = {task.name: (task.observation_dim, task.action_dim) for task in index.tasks}
            for entry in index.entries:
                algorithm, task = entry["algorithm"], entry["task"]
                if self.config.algorithms and algorithm not in self.config.algorithms:
                    continue
                folder = artifact / entry["path"]
                if task not in specs:
                    unfit.setdefault(f"the store has no data of {task}", []).append(algorithm)
                elif widths[task] != (specs[task].observation_dim, specs[task].action_dim):
                    raise ConfigError(
                        f"fqe: {folder} acts on {widths[task][0]} observation and {widths[task][1]} action columns of "
                        f"{task}, the store {store} has {specs[task].observation_dim} and {specs[task].action_dim}; "
                        "set inputs.store to the store that the policy is for"
                    )
                elif _plans(folder):
                    reason = "it plans at every step, which takes hours on recorded frames"
                    unfit.setdefault(reason, []).append(algorithm)
                else:
                    result = results / f"{specs[task].slug}.{algorithm}.{entry['seed']}.json"
                    jobs.append(_Job(entry, folder, store, self.config, result))
        for reason, algorithms in unfit.items():
            context.log.warning("fqe: left out %s: %s", ", ".join(dict.fromkeys(algorithms)), reason)
        if missing := [name for name in self.config.algorithms if name not in known]:
            raise ConfigError(
                f"fqe.algorithms: no policy of {', '.join(missing)}; there are policies of: {', '.join(sorted(known))}"
            )
        if not jobs:
            raise StageError("fqe: none of the policies can be estimated from this store; see the warnings above")
        order = list(specs)
        return sorted(jobs, key=lambda job: order.index(job.entry["task"]))


def _plans(folder: Path) -> bool:
    """Whether the policy plans at every step."""
    kind = read_json(folder / "policy.json", CheckpointError)["kind"]
    return hasattr(load("policies", kind, object), "begin")


def _estimate(job: _Job) -> ValueEstimate:
    """Fit the critics of one policy. Runs in a worker process."""
    import torch

    from ..policy.policy import load_policy
    from .fitted_q import estimate_values

    entry, frames = job.entry, _frames(job.store, job.entry["task"], job.config.frames_per_task)
    policy = load_policy(job.folder)
    with torch.inference_mode():
        acted = torch.cat([policy.act(observation) for observation in frames.observation_FO.split(ACTED_ON)])
    values = estimate_values(frames, acted.clone(), job.config).numpy()
    data = float(frames.return_F[frames.begin_E].mean())
    return ValueEstimate.of_critics(
        entry["algorithm"], entry["task"], entry["seed"], values, data, entry.get("imagined_value")
    )


@lru_cache(maxsize=1)
def _frames(store: Path, task: str, limit: int) -> Frames:
    """The data of the latest task in this process."""
    from ...datasets.store import TaskStore
    from .fitted_q import Frames

    return Frames.read(TaskStore.open(store), task, limit)
