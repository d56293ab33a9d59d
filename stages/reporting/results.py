"""Reads the artifacts of a run into typed tables. The report, the comparison of variants and the model card are views
of these and open no file themselves.

Whatever is not there is empty or None. A file that is damaged, or lacks a column, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ...datasets.schema import TaskSpec, read_table
from ...datasets.store import TaskSummary, read_summaries
from ...pipeline import reading
from ...pipeline.artifact import read_manifest
from ...pipeline.status import read_run_file
from ..evaluation.config import BASELINES
from ..evaluation.scores import SUMMARY_FILE, ScoreRow, Summary
from ..finetune.config import ADDED, FORGETTING
from ..fqe.estimates import ESTIMATES_FILE, ValueEstimate, read_estimates
from ..policy.policy_index import COSTS_FILE, PolicyIndex

SCORE_COLUMNS = tuple(column.name for column in fields(ScoreRow) if column.default is MISSING)
"""Those that every version has written."""
VALIDATION_COLUMNS = ("step", "task", "horizon", "reward_r2")
FORGETTING_COLUMNS = ("task", "new", "horizon", "reward_r2_before", "reward_r2_after")
GRADIENT_COLUMNS = ("task", "horizon", "norm", "return_norm", "r2", "cosine")
COST_COLUMNS = ("algorithm", "task", "seed", "cpu_seconds")
CURVE_COLUMNS = ("iteration", "algorithm", "task", "seed")


@dataclass(frozen=True)
class _ByTask:
    """datasets.json, and what finetuning added."""

    tasks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ReportData:
    """The artifacts of one run as tables, each read when it is first asked for.

    Every table raises an OrreryError that names the file where that is damaged or lacks columns.
    """

    inputs: Mapping[str, Sequence[Path]]
    """Artifact folders by kind; any may be absent or empty. Of several only `policies` and `datasets` are all read, of
    the others the last."""
    run: Any = None
    """The `run` of a stage's Context."""

    @classmethod
    def of_run(cls, folder: Path) -> ReportData:
        """The artifacts in a run folder, in the order of its stages.

        Raises:
            StageError: it is no run folder, or a manifest is damaged.
        """
        inputs: dict[str, list[Path]] = {}
        for made in (folder / one["stage"] for one in read_run_file(folder)["stages"]):
            if made.is_dir() and (manifest := read_manifest(made)) is not None:
                inputs.setdefault(manifest.kind, []).append(made)
        return cls(inputs)

    @cached_property
    def data(self) -> list[TaskSummary]:
        """What the store says of each task."""
        return [summary for folder in self._last("store") for summary in read_summaries(folder)]

    @cached_property
    def collected(self) -> Mapping[str, Mapping[str, Any]]:
        """Per task of the collected datasets, as in datasets.json."""
        return self._by_task("datasets", "datasets.json")

    @cached_property
    def training(self) -> pd.DataFrame | None:
        """World model: step, train/<loss>..."""
        return self._table("world_model", "training.csv", ("step",))

    @cached_property
    def validation(self) -> pd.DataFrame | None:
        """World model: step, task, horizon, reward_r2, latent_mse."""
        return self._table("world_model", "validation.csv", VALIDATION_COLUMNS)

    @cached_property
    def last_validation(self) -> pd.DataFrame:
        """The rows of the last step; without rows where there is no validation."""
        table = self.validation
        return pd.DataFrame(columns=VALIDATION_COLUMNS) if table is None else table[table.step == table.step.max()]

    @cached_property
    def forgetting(self) -> pd.DataFrame | None:
        """Finetuned world model: task, new, horizon, reward_r2_before, reward_r2_after, latent_mse_before, ..."""
        return self._table("world_model", FORGETTING, FORGETTING_COLUMNS)

    @cached_property
    def added(self) -> Mapping[str, Mapping[str, Any]]:
        """How its new tasks began: rule, nearest, scaling, errors."""
        return self._by_task("world_model", ADDED)

    @cached_property
    def model_gradients(self) -> pd.DataFrame | None:
        """Through the world model: task, horizon, norm, return_norm, r2, cosine."""
        return self._table("gradients", "gradients.csv", GRADIENT_COLUMNS)

    @cached_property
    def indices(self) -> list[PolicyIndex]:
        """Every policies.json."""
        return [PolicyIndex.read(folder) for folder in self.inputs.get("policies", ())]

    @property
    def policies(self) -> list[dict[str, Any]]:
        """Entries of every policies.json."""
        return [entry for index in self.indices for entry in index.entries]

    @cached_property
    def costs(self) -> pd.DataFrame | None:
        """Of training: algorithm, task, seed, cpu_seconds."""
        paths = [folder / COSTS_FILE for folder in self.inputs.get("policies", ())]
        read = [frame for path in paths if (frame := _read_csv(path, COST_COLUMNS)) is not None]
        return pd.concat(read, ignore_index=True) if read else None

    @cached_property
    def curves(self) -> dict[Path, pd.DataFrame]:
        """Training of policies, by file: iteration, algorithm, task, seed, and what the algorithm logs."""
        paths = [folder / "training.csv" for folder in self.inputs.get("policies", ())]
        return {path: frame for path in paths if (frame := _read_csv(path, CURVE_COLUMNS)) is not None}

    @property
    def extraction(self) -> pd.DataFrame | None:
        """What the policies earned in imagination or, with extract.evaluate_every, in their environment while they
        learned: iteration, algorithm, task, seed, imagined_reward, evaluation_return."""
        earned = ["imagined_reward", "evaluation_return"]
        frames = [one.reindex(columns=[*CURVE_COLUMNS, *earned]) for one in self.curves.values()]
        frames = [kept for one in frames if not (kept := one.dropna(subset=earned, how="all")).empty]
        return pd.concat(frames, ignore_index=True) if frames else None

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """algorithm, task, seed, episodes, return_mean, return_std, success_rate, score."""
        return self._table("scores", "scores.csv", SCORE_COLUMNS)

    @cached_property
    def summary(self) -> Summary:
        """Of the evaluation."""
        return next((Summary.read(one) for one in self._last("scores") if (one / SUMMARY_FILE).is_file()), Summary())

    @property
    def imagined(self) -> pd.DataFrame:
        """Imagined and real return per episode of every run that has both."""
        columns = ["algorithm", "task", "seed", "imagined_return", "real_return"]
        return pd.DataFrame(self.summary.imagined, columns=columns).dropna()

    @cached_property
    def estimates(self) -> list[ValueEstimate]:
        """What the data says of each policy."""
        tables = (read_estimates(folder / ESTIMATES_FILE) for folder in self._last("estimates"))
        return [one for table in tables for one in table]

    @cached_property
    def real_returns(self) -> Mapping[tuple[str, str, int], float]:
        """Mean return of evaluated policies by (algorithm, task, seed); finite."""
        if self.scores is None:
            return {}
        known = self.scores.dropna(subset="return_mean")
        return {(row.algorithm, row.task, row.seed): row.return_mean for row in known.itertuples()}

    @cached_property
    def specs(self) -> Mapping[str, TaskSpec]:
        """By name, those of the store first."""
        folders = [folder for kind in ("store", "world_model") for folder in self._last(kind)]
        tables = [list(read_table(folder)) for folder in folders if (folder / "tasks.json").is_file()]
        tables += [index.tasks for index in self.indices]
        found: dict[str, TaskSpec] = {}
        for spec in (spec for table in tables for spec in table):
            found.setdefault(spec.name, spec)
        return found

    @cached_property
    def tasks(self) -> list[str]:
        """In the order of the task table; tasks that only scores name come last."""
        evaluated = [] if self.scores is None else self.scores["task"].tolist()
        return list(dict.fromkeys([*self.specs, *evaluated, *self.summary.skipped]))

    @cached_property
    def algorithms(self) -> list[str]:
        """Learned algorithms in the order of their policies, then the baselines."""
        evaluated = [] if self.scores is None else self.scores["algorithm"].tolist()
        return baselines_last([*(entry["algorithm"] for entry in self.policies), *evaluated])

    @property
    def predicts_no_reward(self) -> bool:
        """Whether the world model is one of observations alone."""
        table = self.validation
        return table is not None and "observation_r2" in table and bool(table["reward_r2"].isna().all())

    @property
    def config(self) -> Mapping[str, Any]:
        """Every key of the run with its final value."""
        return {} if self.run is None else self.run.config

    @cached_property
    def records(self) -> Mapping[str, Mapping[str, Any]]:
        """Manifests by stage, earliest first; artifacts from outside the run by `input: folder`."""
        records = {} if self.run is None else dict(self.run.stage_records)
        own = {record["digest"] for record in records.values()}
        outside = {}
        for name, folders in self.inputs.items():
            for folder in folders:
                manifest = read_manifest(folder)
                if manifest is not None and manifest.digest not in own:
                    outside[f"{name}: {folder}"] = asdict(manifest)
        return outside | records

    def has_file(self, kind: str, file: str) -> bool:
        """Whether there is such a file, be it a table without rows."""
        return any((folder / file).is_file() for folder in self._last(kind))

    def _last(self, kind: str) -> Sequence[Path]:
        return self.inputs.get(kind, ())[-1:]

    def _table(self, kind: str, file: str, columns: Sequence[str]) -> pd.DataFrame | None:
        return next((_read_csv(folder / file, columns) for folder in self._last(kind)), None)

    def _by_task(self, kind: str, file: str) -> dict[str, dict[str, Any]]:
        paths = [folder / file for folder in self.inputs.get(kind, ())]
        read = [reading.read_made(path, _ByTask).tasks for path in paths if path.is_file()]
        return {task: facts for tasks in read for task, facts in tasks.items()}


def baselines_last(names: Sequence[str]) -> list[str]:
    """The names once each, the baselines behind the learned algorithms."""
    return [*(name for name in dict.fromkeys(names) if name not in BASELINES), *(b for b in BASELINES if b in names)]


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    """The table in `path`; None where there is no such file or no row in it."""
    frame = reading.read_csv(path, columns) if path.is_file() else None
    return None if frame is None or frame.empty else frame
