"""pack: datasets of any format, validated, into one memory-mapped store."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...datasets.schema import BEHAVIOURS, TaskSpec
from ...datasets.tasks import expand_names
from ...datasets.tasks.tdmpc2 import SETS
from ...pipeline.config.checks import check_counts
from ...pipeline.config.overrides import quoted
from ...pipeline.errors import ConfigError, DatasetError, StageError, TaskError
from ...pipeline.paths import user_path
from ...pipeline.reading import read_made, reading_made
from ...pipeline.stage import Context, Input, Stage


@dataclass(frozen=True)
class _Datasets:
    """What of datasets.json is read."""

    tasks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class SourceConfig:
    """A dataset that Orrery did not collect."""

    path: str = ""
    """HDF5 file, Minari folder, or Minari id; of mt30 and mt80, the folder of TD-MPC2's chunk_*.pt."""
    columns: str = ""
    """YAML file that maps the columns of an HDF5 file; empty recognises D4RL's and robomimic's layouts."""
    behaviour: str = ""
    """exploration, expert or policy: how the data was made; decides the default behaviour anchor. Empty takes what the
    dataset says of itself; mt30 and mt80 count as exploration."""
    episode_length: int = 0
    """Decisions per episode; 0 takes the environment's limit, or the longest episode."""
    score_random: float | None = None
    """Return that scores 0."""
    score_expert: float | None = None
    """Return that scores 1; above `score_random`."""
    environment: str = ""
    """Environment the data was recorded in, for evaluation, where the dataset does not tell: a Gymnasium id, with the
    module that registers it as MODULE:ID, or a task such as dmc/walker-run. Its action bounds and time limit apply."""
    action_low: list[float] = field(default_factory=list)
    """Value of each action component that becomes -1, in the dataset's units (one number for all, or one each); actions
    are then continuous. Empty: bounds of the environment or action space, else the largest magnitude in the data."""
    action_high: list[float] = field(default_factory=list)
    """Value of each action component that becomes 1."""
    choices: int = 0
    """HDF5: number of choices of a discrete action, where the data does not show all, or holds them as floats or
    one-hot rows."""
    choices_start: int | None = None
    """HDF5: number that the data gives to the first choice. Empty: as the environment counts, else 0."""

    def check(self, name: str) -> None:
        """Raise a ConfigError where settings of the source `name` contradict each other."""
        if not self.path:
            raise ConfigError(
                f"pack.sources.{name}.path is empty. Settings of a dataset need its path (an HDF5 file, a Minari "
                f"folder or id) under a task name of your choice: tasks=[lab/arm] pack.sources.lab/arm.path=arm.hdf5"
            )
        if self.behaviour not in ("", *BEHAVIOURS):
            raise ConfigError(
                f"pack.sources.{name}.behaviour: expected {', '.join(BEHAVIOURS)}, found {self.behaviour!r}"
            )
        for key in ("episode_length", "choices"):
            if getattr(self, key) < 0:
                raise ConfigError(f"pack.sources.{name}.{key} must not be negative, found {getattr(self, key)}")
        if bool(self.action_low) != bool(self.action_high):
            raise ConfigError(f"pack.sources.{name}: action_low and action_high are given together")
        random, expert = self.score_random, self.score_expert
        if random is not None and expert is not None and not random < expert:
            raise ConfigError(
                f"pack.sources.{name}.score_expert must be above score_random, or a worse policy would score higher; "
                f"found {expert:g} and {random:g}"
            )
        if self.action_low and (discrete := [key for key in ("choices", "choices_start") if getattr(self, key)]):
            raise ConfigError(
                f"pack.sources.{name}: {discrete[0]} is for discrete actions, action_low and action_high for others"
            )

    def overrides(self) -> dict[str, Any]:
        """What it says of the task, as `open_reader` takes it."""
        scores = {"score_random": self.score_random, "score_expert": self.score_expert}
        given: dict[str, Any] = {key: score for key, score in scores.items() if score is not None}
        if self.episode_length:
            given["episode_length"] = self.episode_length
        if self.action_low:
            given |= {"action_low": self.action_low, "action_high": self.action_high}
        if self.environment:
            given["environment"] = self.environment
        if self.choices:
            given |= {"action_kind": "discrete", "action_dim": self.choices}
        if self.choices_start is not None:
            given |= {"action_kind": "discrete", "choices_start": self.choices_start}
        return given


@dataclass(frozen=True)
class PackConfig:
    """Which datasets make the store, in which order."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the table, in order: simulated tasks that `collect` made, names under `sources`, Minari datasets as
    minari/<id>, or HDF5 files; mt30 and mt80 are TD-MPC2's sets. Empty takes everything that was collected, then every
    source."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Datasets by the task name they get; one named mt30 or mt80 has every task of TD-MPC2's set."""
    window: int = 5
    """Decisions of the windows that will be drawn; an error where no episode is as long."""
    episodes: int = 0
    """At most so many of each task, the first ones of its dataset; 0 takes all."""

    def __post_init__(self) -> None:
        check_counts(self, "window")
        if self.episodes < 0:
            raise ConfigError(f"pack.episodes must not be negative (0 takes all), found {self.episodes}")
        for name, source in self.sources.items():
            source.check(name)
            if name in SETS and source != SourceConfig(path=source.path, behaviour=source.behaviour):
                raise ConfigError(f"pack.sources.{name}: only path and behaviour apply to the tasks of a set")
            if self.tasks and name in SETS and not set(self.names) & set(SETS[name]):
                raise ConfigError(f"pack.sources names {name!r}, of which no task is in tasks: {', '.join(self.tasks)}")
            if self.tasks and name not in SETS and name not in self.names:
                raise ConfigError(f"pack.sources names {name!r}, which is not in tasks: {', '.join(self.tasks)}")
        if SETS.keys() <= self.sources.keys():
            raise ConfigError(f"pack.sources names {' and '.join(SETS)}, which share tasks; leave one of them out")

    @property
    def names(self) -> list[str]:
        """`tasks` without sets and aliases."""
        return self._expand(self.tasks)

    @property
    def offered(self) -> list[str]:
        """The tasks that `sources` have."""
        return list(dict.fromkeys(self._expand(self.sources)))

    @property
    def task_set(self) -> str | None:
        """mt30 or mt80, where `sources` has it."""
        return next((name for name in self.sources if name in SETS), None)

    def from_set(self, name: str) -> bool:
        """Whether the data of a task is in the chunks of that set."""
        return self.task_set is not None and name in SETS[self.task_set] and name not in self.sources

    def _expand(self, names: Iterable[str]) -> list[str]:
        return expand_names(names, keep=self.sources.keys() - SETS.keys())


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


SIMULATED = ("dmc/", "metaworld/", "gymnasium/", "myriad/")


class Pack(Stage):
    """A TaskStore out of Minari and HDF5 datasets, and of TD-MPC2's chunks. What several collections hold of a task is
    put together."""

    Config = PackConfig
    inputs = {"datasets": Input("datasets", optional=True, many=True)}
    output_kind = "store"
    config: PackConfig

    def check(self) -> None:
        from ...datasets.formats.sources import open_reader
        from ...datasets.formats.tdmpc2 import chunk_files

        sources: dict[str, list[str]] = {}
        for name in self._external_names():
            external = _external(self.config, name)
            try:
                with _named_environment(self.config, name):
                    reader = open_reader(**external)
            except DatasetError as error:
                if not (quotes := _with_quotes(self.config.tasks, name)):
                    raise
                raise DatasetError(f"{error}. A comma in the name of a file needs quotes: {quotes}") from error
            sources.setdefault(reader.name, []).append(external["source"])
        for name, same in sources.items():
            if len(same) > 1:
                raise ConfigError(
                    f"{' and '.join(same)} would both be task {name!r}. Name each: tasks=[NAME,...] and, for each, "
                    f"pack.sources.NAME.path={same[0]}"
                )
        if self.config.task_set:
            chunk_files(self.config.sources[self.config.task_set].path)

    def check_inputs(self, inputs: Mapping[str, Sequence[tuple[Path, Any]]]) -> None:
        collected: list[str] = []
        for folder, maker in inputs["datasets"]:
            if maker is None:
                collected += read_made(folder / "datasets.json", _Datasets)["tasks"]
            elif tasks := getattr(maker, "tasks", ()):
                collected += expand_names(tasks)
            else:
                return  # a stage of which only its output says what it has data of
        self._check_data(self.config.names or [*collected, *self.config.offered], collected)

    def _check_data(self, names: Sequence[str], collected: Collection[str]) -> None:
        """Raise a StageError if there is nothing to pack, or a task that nothing has data of."""
        if not names:
            raise StageError("pack: nothing to pack; name datasets, for example tasks=[minari/mujoco/hopper/medium-v0]")
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
        from ...datasets.store import StoreRecord, finish_store
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
        finish_store(context.folder, table)
        summaries = read_made(context.folder / "store.json", StoreRecord)["tasks"]
        for summary in summaries:
            for warning in summary["findings"].get("warnings", []):
                context.log.warning("pack: %s: %s", summary["task"], warning)
        transitions = sum(summary["transitions"] for summary in summaries)
        return f"{transitions:,} transitions of {len(table)} tasks"

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
                for name, entry in read_made(path, _Datasets)["tasks"].items():
                    collected.setdefault(name, []).append(str(folder / entry["path"]))
        names = self.config.names or [*collected, *self.config.offered]
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
                f"pack: {', '.join(both)} was collected and is in pack.sources.{task_set} too; give collect.tasks the "
                f"others only, or leave pack.sources.{task_set} out"
            )
        source = self.config.sources[task_set]
        chunks, published = chunk_files(source.path), LAYOUTS[task_set].chunks
        if len(chunks) < published:
            context.log.warning("pack: %d of the %d chunks of %s are there", len(chunks), published, task_set)
        with context.progress(f"find the tasks of {task_set}", total=len(chunks)) as progress:
            rows = find_rows(source.path, task_set, names, on_chunk=lambda: progress.advance(1))
        common = {"source": source.path, "task_set": task_set, "behaviour": source.behaviour or None}
        return {name: {**common, "name": name, "rows": rows[name]} for name in names}


def _external(config: PackConfig, name: str) -> Mapping[str, Any]:
    """Arguments of `open_reader` for a dataset from outside."""
    if name not in config.sources:
        return {"source": name}
    source = config.sources[name]
    return {
        "source": source.path,
        "columns": source.columns or None,
        "name": name,
        "behaviour": source.behaviour or None,
        "overrides": source.overrides(),
    }


def _with_quotes(tasks: Sequence[str], name: str) -> str:
    """`tasks=[...]` with quotes around the file whose name was taken apart at its commas, `name` being a part; empty
    where no neighbours of it join to the name of a file.
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
    """Say with which key the environment was named that does not serve."""
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
    findings = Findings(warnings=[*reader.warnings, *_environment_warnings(reader.task)])
    taken = itertools.islice(reader, job.episodes)
    episodes = validate(taken, reader.task, job.window, findings, reader.source.get("columns", ()))
    TaskWriter(job.folder, reader.task, job.observation_dim, job.action_dim).write(
        episodes, behaviour=reader.behaviour, source=reader.source, findings=findings
    )


def _environment_warnings(task: TaskSpec) -> list[str]:
    """What to say before training where the environment that a published dataset states cannot be played here."""
    from ...datasets.tasks import unplayable

    if "spec_json" not in task.environment or (reason := unplayable(task)) is None:
        return []
    return [
        f"policies will not be evaluated: {reason}. Name an environment with pack.sources.NAME.environment=ID, where "
        "pack.sources.NAME.path is this dataset"
    ]
