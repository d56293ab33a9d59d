"""The stage pack."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import DataFacts, DatasetsRecord, read_dataset_facts
from ...datasets.schema import TaskSpec
from ...datasets.tasks import SIMULATED
from ...pipeline.config.overrides import quoted
from ...pipeline.errors import ConfigError, DatasetError, StageError, TaskError
from ...pipeline.paths import user_path
from ...pipeline.reading import read_made, reading_made
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from .config import PackConfig, SourceConfig

if TYPE_CHECKING:
    from ...datasets.formats.reader import EpisodeReader


@dataclass(frozen=True)
class PackJob:
    """One task to be packed, in a process of its own."""

    folder: Path
    observation_dim: int
    action_dim: int
    window: int
    episodes: int | None
    """At most so many, the first ones."""
    reader: Mapping[str, Any]
    """Arguments of `open_reader`."""


class Pack(Stage):
    """Validate datasets and pack them into one memory-mapped store.

    Reads HDF5, npz and Parquet files, Minari, LeRobot and TorchRL datasets, and TD-MPC2's chunks. Datasets
    of the same task from several collections are joined.
    """

    Config = PackConfig
    inputs = {"datasets": Input("datasets", optional=True, many=True, facts=read_dataset_facts)}
    output_kind = "store"
    not_hashed = ("window",)  # a check only
    calls = ("formats",)
    config: PackConfig

    def check(self) -> None:
        from ...datasets.formats.sources import dataset_files
        from ...datasets.formats.tdmpc2 import chunk_files

        for name in (name for name, source in self.config.sources.items() if not source.path):
            try:
                dataset_files(name)
            except DatasetError as error:
                raise ConfigError(
                    f"pack.sources.{name}.path is empty, and {name!r} is not the path or id of a dataset. Set the path "
                    f"of the dataset (a file, a folder or a Minari id): pack.sources.{name}.path=arm.hdf5"
                ) from error
        sources: dict[str, list[str]] = {}
        for name in self._external_names():
            try:
                reader = self._open(name)
            except DatasetError as error:
                if not (quotes := _with_quotes(self.config.tasks, name)):
                    raise
                raise DatasetError(f"{error}. File names with a comma need quotes: {quotes}") from error
            sources.setdefault(reader.name, []).append(_external(self.config, name)["source"])
        for name, same in sources.items():
            if len(same) > 1:
                raise ConfigError(
                    f"{' and '.join(same)} would both become task {name!r}. Give each a name: tasks=[NAME,...] and, "
                    f"for each, pack.sources.NAME.path={same[0]}"
                )
        if self.config.task_set:
            chunk_files(self.config.sources[self.config.task_set].path)

    def check_inputs(self, inputs: Mapping[str, Sequence[Any]]) -> None:
        if (collected := _tasks_of(inputs["datasets"])) is not None:
            self._check_data(self._names(collected), collected)

    def promise(self, inputs: Mapping[str, Sequence[Any]]) -> DataFacts | None:
        collected = _tasks_of(inputs["datasets"])
        if collected is None and not self.config.names:
            return None
        outside = {name: self._open(name).name for name in self._external_names() if name not in (collected or ())}
        return DataFacts(tuple(outside.get(name, name) for name in self._names(collected or ())))

    def _names(self, collected: Iterable[str]) -> list[str]:
        """What is packed, by the names of the config."""
        return self.config.names or [*collected, *self.config.offered]

    def _open(self, name: str) -> EpisodeReader:
        """The dataset from outside of a task."""
        from ...datasets.formats.sources import open_reader

        with _named_environment(self.config, name):
            return open_reader(**_external(self.config, name))

    def _check_data(self, names: Sequence[str], collected: Collection[str]) -> None:
        """Raise a StageError if there is nothing to pack, or a task that nothing has data of."""
        if not names:
            raise StageError("pack.tasks is empty: name datasets, for example tasks=[minari/mujoco/hopper/medium-v0]")
        for name in names:
            outside = name in self.config.sources or self.config.from_set(name) or not name.startswith(SIMULATED)
            if name not in collected and not outside:
                raise StageError(
                    f"pack: no data for {name!r}; add the stage `collect`, give inputs.datasets=FOLDER, or "
                    f"pack.sources.{name}.path=DATASET. Collected: {', '.join(collected) or 'nothing'}"
                )

    def reads(self) -> list[Path]:
        from ...datasets.formats.sources import dataset_files
        from ...datasets.formats.tdmpc2 import chunk_files

        files = [user_path(source.columns) for source in self.config.sources.values() if source.columns]
        if self.config.task_set:
            files += chunk_files(self.config.sources[self.config.task_set].path)
        external = [_external(self.config, name)["source"] for name in self._external_names()]
        return [path for source in external for path in dataset_files(source)] + files

    def run(self, context: Context) -> str:
        from ...datasets.formats.sources import open_reader
        from ...datasets.schema import TaskTable
        from ...datasets.store import finish_store
        from ...pipeline.jobs.fanout import JobFailure, run_jobs

        readers = self._readers(context)
        table = TaskTable([open_reader(**reader).task for reader in readers])
        folders = [context.folder / task.slug for task in table]
        jobs = [
            PackJob(
                folder,
                table.observation_dim,
                table.action_dim,
                self.config.window,
                self.config.episodes or None,
                reader,
            )
            for folder, reader in zip(folders, readers, strict=True)
            if not (folder / "task.json").is_file()  # finished by an interrupted attempt
        ]
        failures = []
        with context.progress("pack", total=len(readers), completed=len(readers) - len(jobs)) as progress:
            for _, result in run_jobs(pack_task, jobs, workers=min(context.workers, len(jobs))):
                progress.advance(1)
                if isinstance(result, JobFailure):
                    failures.append(result.error)
        if failures:
            raise StageError("pack: " + "\n".join(failures))
        summaries = finish_store(context.folder, table)
        for summary in summaries:
            for warning in summary.findings.get("warnings", []):
                context.log.warning("pack: %s: %s", summary.task, warning)
        transitions = sum(summary.transitions for summary in summaries)
        return f"{counted(transitions, 'transition')} of {counted(len(table), 'task')}"

    def _external_names(self) -> list[str]:
        """The tasks that have a dataset of their own from outside."""
        names = self.config.names or self.config.offered
        return [
            name
            for name in names
            if name in self.config.sources or not (name.startswith(SIMULATED) or self.config.from_set(name))
        ]

    def _readers(self, context: Context) -> list[Mapping[str, Any]]:
        """Arguments of `open_reader` for every task, in the order of the table."""
        collected: dict[str, list[str]] = {}
        for folder in context.inputs["datasets"]:
            with reading_made(path := folder / "datasets.json"):
                for name, entry in read_made(path, DatasetsRecord).tasks.items():
                    collected.setdefault(name, []).append(str(folder / entry["path"]))
        names = self._names(collected)
        self._check_data(names, collected)
        from_set = self._set_readers(context, [name for name in names if self.config.from_set(name)], collected)
        readers: list[Mapping[str, Any]] = []
        for name in names:
            if name in collected:
                readers.append({"source": collected[name] if len(collected[name]) > 1 else collected[name][0]})
            elif name in from_set:
                readers.append(from_set[name])
            else:
                readers.append(_external(self.config, name))
        return readers

    def _set_readers(
        self, context: Context, names: list[str], collected: Container[str]
    ) -> dict[str, Mapping[str, Any]]:
        """Arguments of `open_reader` for the tasks whose data is in the chunks of a set."""
        from ...datasets.formats.tdmpc2 import LAYOUTS, chunk_files, find_rows

        task_set = self.config.task_set
        if task_set is None:
            return {}
        if both := [name for name in names if name in collected]:
            raise StageError(
                f"pack: {', '.join(both)} was collected and is also in pack.sources.{task_set}; remove it from "
                f"collect.tasks, or remove pack.sources.{task_set}"
            )
        source = self.config.sources[task_set]
        chunks, published = chunk_files(source.path), LAYOUTS[task_set].chunks
        if len(chunks) < published:
            context.log.warning("pack: found %d of the %d chunks of %s", len(chunks), published, task_set)
        with context.progress(f"find the tasks of {task_set}", total=len(chunks)) as progress:
            rows = find_rows(source.path, task_set, names, on_chunk=lambda: progress.advance(1))
        common = {"source": source.path, "task_set": task_set, "behaviour": source.behaviour or None}
        return {name: {**common, "name": name, "rows": rows[name]} for name in names}


def _tasks_of(datasets: Sequence[DataFacts | None]) -> list[str] | None:
    """The tasks of several datasets; None where those of one are not known yet."""
    known = [facts.tasks for facts in datasets if facts is not None]
    return [name for tasks in known for name in tasks] if len(known) == len(datasets) else None


def _external(config: PackConfig, name: str) -> Mapping[str, Any]:
    """Arguments of `open_reader` for a dataset from outside."""
    if name not in config.sources:
        return {"source": name}
    source = config.sources[name]
    return {
        "source": source.path or name,
        "columns": source.columns or None,
        "name": name if source.path else None,
        "behaviour": source.behaviour or None,
        "overrides": source.overrides(),
    }


def _with_quotes(tasks: Sequence[str], name: str) -> str:
    """`tasks=[...]` with quotes around the file whose name was taken apart at its commas, `name` being a part; empty
    if no neighbours of it join to the name of a file.
    """
    for start, end in itertools.combinations(range(len(tasks) + 1), 2):
        parts = tasks[start:end]
        for whole in (",".join(parts), ", ".join(parts)):
            if len(parts) > 1 and name in parts and user_path(whole).exists():
                items = [*tasks[:start], whole, *tasks[end:]]
                return shlex.quote(f"tasks=[{','.join(map(quoted, items))}]")
    return ""


@contextmanager
def _named_environment(config: PackConfig, name: str) -> Iterator[None]:
    """Name the key of an environment that cannot be used."""
    source = config.sources.get(name, SourceConfig())
    try:
        yield
    except TaskError as error:
        if not source.environment:
            raise
        raise ConfigError(f"pack.sources.{name}.environment={source.environment}: {error}") from error


def pack_task(job: PackJob) -> None:
    """Validate and write one task. Runs in a worker process."""
    from ...datasets.formats.sources import open_reader
    from ...datasets.store import TaskWriter
    from ...datasets.validate import Findings, validate

    reader = open_reader(**job.reader)
    key = f"pack.sources.{job.reader.get('name') or job.reader['source']}.environment"
    findings = Findings(warnings=[*reader.warnings, *_environment_warnings(reader.task, key)])
    taken = itertools.islice(reader, job.episodes)
    episodes = validate(taken, reader.task, job.window, findings, reader.source.get("columns", ()))
    TaskWriter(job.folder, reader.task, job.observation_dim, job.action_dim).write(
        episodes, behaviour=reader.behaviour, source=reader.source, findings=findings
    )


def _environment_warnings(task: TaskSpec, key: str) -> list[str]:
    """Warn before training that policies cannot be evaluated: no environment is known, or the stated one is missing.

    Args:
        key: the setting that names another environment.
    """
    from ...datasets.tasks import unplayable

    reason: str | None = None
    if not task.environment:
        reason = "no environment is known"
    elif "spec_json" in task.environment:
        reason = unplayable(task)
    if reason is None:
        return []
    return [f"policies will not be evaluated: {reason}. Set {key} to the environment of the data"]
