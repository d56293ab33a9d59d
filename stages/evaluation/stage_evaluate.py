"""The stage evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.schema import TaskSpec, read_table
from ...datasets.store import TaskSummary, read_summaries
from ...pipeline.artifact import remove
from ...pipeline.errors import StageError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members, pack_by_task
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import PolicyIndex
from .config import BASELINES, EvaluateConfig
from .episodes import EvaluationJob, Run
from .job import FINISHED, read_finished, write_finished
from .scores import (
    SUMMARY_FILE,
    AlgorithmScores,
    EpisodeRow,
    Failure,
    ImaginedReturn,
    ScoreRow,
    Summary,
    exploiting,
    score_data,
    score_run,
    summarise,
    with_references,
    write_csv,
)
from .statistics import INTERVAL_METHOD

OVERESTIMATED = (
    "evaluate: the world model overestimates %(algorithm)s on %(task)s: imagined return %(imagined).4g, "
    "real return %(real).4g"
)


class Evaluate(Stage):
    """Evaluate every policy in its real environment, with the behaviour of the data and a random policy as
    baselines."""

    Config = EvaluateConfig
    inputs = {
        "policies": Input("policies", many=True, optional=True),
        "store": Input("store", optional=True),
        # Another evaluation, whose references of normalised scores count here too.
        "references": Input("scores", optional=True, outside=True),
    }
    output_kind = "scores"
    not_hashed = ("accelerator", "fanout")
    calls = ("policies",)
    config: EvaluateConfig

    def check(self) -> None:
        self.config.fanout.check_gpus(self.config.accelerator, "evaluate.accelerator")

    def check_machine(self) -> None:
        self.config.fanout.check_machine(self.config.accelerator, "evaluate.accelerator")

    def outdated(self, folder: Path, inputs: Mapping[str, Sequence[Path]]) -> str | None:
        """Return a reason to rerun if the environment of a skipped task is available now."""
        try:
            skipped = Summary.read(folder).skipped
        except StageError as error:
            return f"its output is damaged: {error}"
        if not skipped:
            return None
        _, specs = _read_policies(inputs["policies"])
        _read_data(inputs["store"], specs)
        still = _without_environment(spec for name, spec in specs.items() if name in skipped)
        if not (found := [name for name in skipped if name in specs and name not in still]):
            return None
        return f"an environment is available now: {', '.join(found)}"

    def run(self, context: Context) -> str:
        policies, specs = _read_policies(context.inputs["policies"])
        data = _read_data(context.inputs["store"], specs)
        if not specs:
            raise StageError("evaluate needs policies or a store; run extract or pack first")
        skipped = _without_environment(specs.values())
        for name, reason in skipped.items():
            context.log.warning("evaluate: %s is not evaluated: %s", name, reason)
        jobs = self._jobs(policies, specs, skipped)
        rows = self._play(context, jobs)
        specs, references = self._references(context, specs, data, rows)
        return self._write(context, specs, references, policies, data, skipped, [job.run for job in jobs], rows)

    def _jobs(
        self, policies: Mapping[Run, Mapping[str, Any]], specs: Mapping[str, TaskSpec], skipped: Mapping[str, str]
    ) -> list[EvaluationJob]:
        """One job per run; jobs of a task are adjacent so that a process keeps its environments."""
        jobs = []
        for name, spec in specs.items():
            if name in skipped:
                continue
            own = [run for run in policies if run[1] == name]
            jobs += [
                EvaluationJob(run, spec, self.config, policies[run]["folder"], policies[run]["content"]) for run in own
            ]
            if "random" in self.config.baselines:
                seeds = sorted({run[2] for run in own}) or [0]
                jobs += [EvaluationJob(("random", name, seed), spec, self.config, None, "random") for seed in seeds]
        return jobs

    def _play(self, context: Context, jobs: Sequence[EvaluationJob]) -> list[EpisodeRow]:
        """The episodes of all jobs in order; those that earlier evaluations have played are not played again.

        Raises:
            StageError: see `play_runs`; or every episode failed.
        """
        from .job import play_runs

        config = self.config
        known = self._known(context, jobs)
        members = [
            {
                "run": list(job.run),
                "task": job.spec.to_dict(),
                "content": job.content,
                "first": len(known[job.key]),
            }
            for job in jobs
            if len(known[job.key]) < config.episodes
        ]
        program = MemberJobs(
            {
                "config": {**asdict(replace(config, baselines=[])), "fanout": {}},
                "policies": {job.key: str(Path(job.policy).absolute()) for job in jobs if job.policy is not None},
            },
            members,
            partial(
                pack_by_task,
                per_job=config.fanout.per_job(len(members), 0),
                slug=lambda member: TaskSpec.from_dict(member["task"]).slug,
            ),
            ["policies", "config.accelerator", "config.fanout"],
        )
        (found,) = fan_out_members(
            [program], play_runs, context, config.fanout, accelerator=config.accelerator, hashed=[]
        )
        played = {result: dict(read_finished(result / FINISHED)) for result in dict.fromkeys(found)}
        missing = [job.key for job in jobs if len(known[job.key]) < config.episodes]
        for key, result in zip(missing, found, strict=True):
            known[key] = [*known[key], *played[result][key]]
        rows = [row for job in jobs for row in known[job.key]]
        if jobs and all(row.error is not None for row in rows):
            for result in played:
                remove(result.parent)  # what is wrong with all of them may be put right
            raise StageError(f"every episode of the evaluation failed; the first: {rows[0].error}")
        write_finished(context.folder / FINISHED, known)
        return rows

    def _known(self, context: Context, jobs: Sequence[EvaluationJob]) -> dict[str, list[EpisodeRow]]:
        """The first episodes of each run by its key, as far as earlier evaluations have played them."""
        wanted = {job.key: job for job in jobs}
        known: dict[str, list[EpisodeRow]] = {key: [] for key in wanted}
        for folder, _ in self.earlier(context, ["episodes", "baselines"]):
            for key, rows in read_finished(folder / FINISHED):
                if (job := wanted.get(key)) is not None:
                    rows = rows[: _reusable(rows, self.config.episodes, alone=job.policy is None)]
                    known[key] = max(known[key], rows, key=len)
        return known

    def _references(
        self,
        context: Context,
        specs: Mapping[str, TaskSpec],
        data: Mapping[str, TaskSummary],
        episodes: Sequence[EpisodeRow],
    ) -> tuple[dict[str, TaskSpec], dict[str, dict[str, Any]]]:
        """The specs with the references of normalised scores, and what summary.json says of these."""
        folder = context.optional_input("references")
        earlier = {} if folder is None else Summary.read(folder).references
        known, references = {}, {}
        for name, spec in specs.items():
            random = [row for row in episodes if (row.task, row.algorithm) == (name, "random") and row.error is None]
            returns = [row.return_ for row in random]
            known[name], reference = with_references(spec, returns, data.get(name), earlier.get(name))
            if reference is not None:
                references[name] = reference
                if reference["problem"]:
                    context.log.warning("%s has returns but no score: %s", name, reference["problem"])
        return known, references

    def _write(
        self,
        context: Context,
        specs: Mapping[str, TaskSpec],
        references: Mapping[str, Mapping[str, Any]],
        policies: Mapping[Run, Mapping[str, Any]],
        data: Mapping[str, TaskSummary],
        skipped: Mapping[str, str],
        runs: Sequence[Run],
        episodes: list[EpisodeRow],
    ) -> str:
        folder = context.folder
        scores: list[ScoreRow] = []
        for name, spec in specs.items():
            own = [row for row in episodes if row.task == name]
            for run in (run for run in runs if run[1] == name):
                scores.append(
                    score_run(spec, run, [row for row in own if (row.algorithm, row.seed) == (run[0], run[2])])
                )
            if "behaviour" in self.config.baselines and name in data:
                scores.append(score_data(spec, data[name]))
        order = [*dict.fromkeys(run[0] for run in policies), *BASELINES]
        scores.sort(key=lambda row: order.index(row.algorithm))
        write_csv(folder / "episodes.csv", EpisodeRow, episodes)
        write_csv(folder / "scores.csv", ScoreRow, scores)
        suites = sorted({spec.suite for spec in specs.values()})
        imagined = _imagined(policies, episodes)
        summary = Summary(
            algorithms=summarise(scores, episodes),
            by_suite={
                suite: summarise([row for row in scores if specs[row.task].suite == suite],
                                 [row for row in episodes if specs[row.task].suite == suite])
                for suite in suites
            },
            protocol={
                "episodes": self.config.episodes,
                "seed": self.config.seed,
                "policy": "final, deterministic actions",
                "success": "at any step",
                "interval": INTERVAL_METHOD,
            },
            references={name: dict(one) for name, one in references.items()},
            imagined=imagined,
            exploiting=exploiting(imagined, scores),
            skipped=dict(skipped),
            failures=[
                Failure(row.algorithm, row.task, row.seed, row.episode, row.error)
                for row in episodes if row.error is not None
            ],
        )  # fmt: skip
        for one in summary.exploiting:
            context.log.warning(OVERESTIMATED, asdict(one))
        (folder / SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=1, allow_nan=False))
        return self._headline(summary.algorithms, len(specs) - len(skipped), policies)

    def _headline(self, algorithms: Mapping[str, AlgorithmScores], tasks: int, policies: Mapping[Run, Any]) -> str:
        parts = [f"{name} {values.text()}" for name, values in algorithms.items()]
        seeds = len({run[2] for run in policies}) or 1
        failed = sum(values.failed_episodes for values in algorithms.values())
        line = (
            f"{', '.join(parts)} (mean score over {counted(tasks, 'task')} x {counted(seeds, 'seed')} x "
            f"{counted(self.config.episodes, 'episode')})"
        )
        return f"{line}; {counted(failed, 'episode')} failed" if failed else line


def _without_environment(specs: Iterable[TaskSpec]) -> dict[str, str]:
    """Return the tasks that cannot be played, and why.

    An environment named by the user must be available, or the stage fails. One stated by a published dataset may need
    anything; without it, the rest is still evaluated.
    """
    from ...datasets.tasks import unplayable

    skipped = {}
    for spec in specs:
        if not spec.environment:
            skipped[spec.name] = "no environment is known; set pack.sources.NAME.environment and pack again"
        elif "spec_json" in spec.environment and (reason := unplayable(spec)):
            skipped[spec.name] = reason
    return skipped


def _read_policies(artifacts: Sequence[Path]) -> tuple[dict[Run, dict[str, Any]], dict[str, TaskSpec]]:
    """Every policy by its run, with its folder, and the specs of their tasks.

    Tasks of the table that no policy is for are left out, so that baselines are judged on the tasks that policies are.
    """
    policies: dict[Run, dict[str, Any]] = {}
    specs: dict[str, TaskSpec] = {}
    for artifact in artifacts:
        index = PolicyIndex.read(artifact)
        contents = index.contents()
        named = {entry["task"] for entry in index.entries}
        specs |= {spec.name: spec for spec in index.tasks if spec.name in named}
        for entry in index.entries:
            run = (entry["algorithm"], entry["task"], int(entry["seed"]))
            if run in policies:
                raise StageError(
                    f"two policies of algorithm {run[0]!r} on {run[1]} with seed {run[2]}: {policies[run]['folder']} "
                    f"and {artifact / entry['path']}; evaluate them separately"
                )
            policies[run] = {**entry, "folder": artifact / entry["path"], "content": contents[entry["path"]]}
    return policies, specs


def _read_data(stores: Sequence[Path], specs: dict[str, TaskSpec]) -> dict[str, TaskSummary]:
    """Statistics of each task's data; adds the store's tasks to `specs` if no policy has brought any."""
    data: dict[str, TaskSummary] = {}
    for store in stores:
        data |= {summary.task: summary for summary in read_summaries(store)}
        if not specs:
            specs |= {spec.name: spec for spec in read_table(store)}
    return data


def _reusable(rows: Sequence[EpisodeRow], episodes: int, *, alone: bool) -> int:
    """How many of a run's first episodes are those that an evaluation of `episodes` would play, bit for bit.

    A policy acts on the episodes that are under way as one batch, and the size of a batch may change the last bit of an
    action: of fewer or more episodes, those count whose batches are the same. That takes episodes of one length.

    Args:
        alone: episodes do not depend on the others in their batch.
    """
    from ...datasets.rollout import LANES

    if alone or len(rows) == episodes:
        return episodes
    whole = min(len(rows), episodes) // LANES * LANES
    same = len({row.length for row in rows[:whole]}) == 1 and all(row.error is None for row in rows[:whole])
    return whole if same else 0


def _imagined(policies: Mapping[Run, Mapping[str, Any]], episodes: Sequence[EpisodeRow]) -> list[ImaginedReturn]:
    completed: dict[Run, list[float]] = {}
    for row in episodes:
        if row.error is None:
            completed.setdefault((row.algorithm, row.task, row.seed), []).append(row.return_)
    real = {run: float(np.mean(returns)) for run, returns in completed.items()}
    return [ImaginedReturn(*run, entry.get("imagined_return"), real.get(run)) for run, entry in policies.items()]
