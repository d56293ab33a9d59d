"""Scores of policies outside of a run: from the words of a command line to episodes and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...datasets.schema import TaskSpec
from ...datasets.tasks import expand_names, make_environment, task_spec
from ...pipeline.artifact import verify
from ...pipeline.errors import ConfigError
from ...pipeline.hub import find_artifact
from ...pipeline.jobs.pool import run_all
from ...pipeline.paths import user_path
from ...pipeline.reading import read_json
from ..evaluation.config import EvaluateConfig
from ..evaluation.episodes import EvaluationJob, Run, evaluate_run
from ..evaluation.scores import score_run
from ..policy.foreign import is_foreign, load_any_policy, load_foreign
from ..policy.policy_index import POLICIES_FILE, PolicyIndex
from .choice import made_by, read_policy
from .exporting import DESCRIPTION
from .playing import play, task_of_the_same_shape


@dataclass(frozen=True)
class FoundPolicy:
    """A policy to score, and the task to score it on."""

    name: str
    run: Run
    spec: TaskSpec
    policy: Path | str
    """As `load_any_policy` takes it."""


def find_policies(reference: str, wishes: Mapping[str, str]) -> list[FoundPolicy]:
    """What a user means by a word of the command line.

    Args:
        wishes: `task` to score on, where it is not the policy's own; of a folder with several policies, `task`,
            `algorithm` and `seed` select.
    Raises:
        OrreryError: there is no such policy, it would execute code or does not act in the task; an unknown task.
    """
    task = expand_names([wishes["task"]])[0] if "task" in wishes else None
    if is_foreign(reference):
        spec = _task_of_export(user_path(reference)) if task is None else task_spec(task)
        if spec is None:
            raise ConfigError(
                f"{reference} does not say for which task it is; add task=NAME, such as task=dmc/walker-run"
            )
        load_foreign(reference, spec)
        return [FoundPolicy(reference, (Path(reference).stem, spec.name, 0), spec, reference)]
    folder = find_artifact(reference, "policies")
    if not (folder / POLICIES_FILE).is_file():
        policy = read_policy(reference, {})
        made = made_by(policy)
        same = task in (None, policy.task.name)
        spec = policy.task if same else task_of_the_same_shape(policy.task, str(task))
        return [FoundPolicy(reference, (made["algorithm"], spec.name, made["seed"]), spec, folder)]
    verify(folder, "policies")
    index = PolicyIndex.read(folder)
    specs = {spec.name: spec for spec in index.tasks}
    wanted = {**wishes} if task is None else {**wishes, "task": task}
    entries = [one for one in index.entries if all(str(one[key]) == value for key, value in wanted.items())]
    if not entries:
        known = ", ".join(f"{one['algorithm']} {one['task']} seed {one['seed']}" for one in index.entries)
        asked = " ".join(f"{key}={value}" for key, value in wanted.items())
        raise ConfigError(f"{folder} has no policy with {asked}; it has: {known or 'none at all'}")
    return [
        FoundPolicy(
            f"{reference} {one['algorithm']}, seed {one['seed']}",
            (one["algorithm"], one["task"], int(one["seed"])),
            specs[one["task"]],
            folder / one["path"],
        )
        for one in entries
    ]


def _task_of_export(file: Path) -> TaskSpec | None:
    """What `orrery export` has written beside the file."""
    description = file.with_name(DESCRIPTION)
    return TaskSpec.from_dict(read_json(description, ConfigError)["task"]) if description.is_file() else None


def evaluate_policies(found: Sequence[FoundPolicy], episodes: int, seed: int, workers: int = 1) -> list[dict[str, Any]]:
    """Returns, scores and failures of each policy: the same episodes as of the stage evaluate."""
    config = EvaluateConfig(episodes=episodes, seed=seed)
    for spec in {one.spec.name: one.spec for one in found}.values():
        make_environment(spec).close()
    jobs = [EvaluationJob(one.run, one.spec, config, one.policy, "") for one in found]
    played = {id(job): rows for job, rows in run_all(evaluate_run, jobs, workers=min(workers, len(jobs)))}
    made = []
    for one, job in zip(found, jobs, strict=True):
        rows = played[id(job)]
        score = score_run(one.spec, one.run, rows)
        made.append(
            {
                "policy": one.name,
                "algorithm": score.algorithm,
                "task": score.task,
                "seed": score.seed,
                "episodes": score.episodes,
                "return_mean": score.return_mean,
                "return_std": score.return_std,
                "success_rate": score.success_rate,
                "score": score.score,
                "score_problem": one.spec.score_problem,
                "returns": [row.return_ for row in rows if row.error is None],
                "lengths": [row.length for row in rows if row.error is None],
                "episode_seeds": [row.episode_seed for row in rows],
                "failures": [row.error for row in rows if row.error is not None],
            }
        )
    return made


def record_video(one: FoundPolicy, out: Path, seed: int) -> Path:
    """The first of the episodes; its file."""
    policy = load_any_policy(one.policy, one.spec)
    return play(policy, out, task=None if policy.task.name == one.spec.name else one.spec.name, seed=seed).out
