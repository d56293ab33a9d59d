"""Runs from Python: start one, or open what one has left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orrery.datasets.tasks import expand_names
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.hub import artifact_in
from orrery.pipeline.lock import locked
from orrery.pipeline.paths import user_path
from orrery.pipeline.plan import plan
from orrery.pipeline.reading import read_csv
from orrery.pipeline.runner import run_on_console
from orrery.pipeline.status import read_run_file

if TYPE_CHECKING:
    import pandas
    from orrery.datasets.store import TaskStore
    from orrery.stages.policy.policy import Policy
    from orrery.stages.world_model.networks import WorldModel
    from rich.console import Console


@dataclass(frozen=True)
class Run:
    """What a run has left in its folder. Nothing is loaded before it is asked for."""

    folder: Path
    experiment: str
    config: dict[str, Any]
    """Every key with its final value, nested."""

    def world_model(self) -> WorldModel:
        """The pretrained model, frozen, on the CPU. Raises OrreryError if there is none, or several."""
        from orrery.stages.world_model.networks import WorldModel

        return WorldModel.from_pretrained(self.folder)

    def store(self) -> TaskStore:
        """The packed data. Raises OrreryError if there is none, or several."""
        from orrery.datasets.store import TaskStore

        return TaskStore.open(artifact_in(self.folder, "store"))

    def policy(self, task: str | None = None, *, algorithm: str | None = None, seed: int | None = None) -> Policy:
        """One policy of the run; see `load_policy`."""
        return load_policy(self.folder, task=task, algorithm=algorithm, seed=seed)

    def scores(self) -> pandas.DataFrame:
        """One row per algorithm, task and seed: episodes, return_mean, return_std, success_rate, score."""
        file = artifact_in(self.folder, "scores") / "scores.csv"
        return read_csv(file)


def load_run(folder: str | Path) -> Run:
    """Open a run folder.

    Raises:
        StageError: there is no run in it.
    """
    path = user_path(folder)
    record = read_run_file(path)
    return Run(path, record["experiment"], record["config"])


def load_policy(
    reference: str | Path, *, task: str | None = None, algorithm: str | None = None, seed: int | None = None
) -> Policy:
    """A policy on the CPU, every byte of its files checked.

    Args:
        reference: a run folder, a policies artifact (RUN/extract), one policy's folder, or a Hugging Face Hub id.
        task, algorithm: which, if there are several.
        seed: which; None is the lowest.
    Raises:
        OrreryError: there is no such policy, or it is damaged.
    """
    from orrery.stages.policy.policy import Policy

    name = None if task is None else expand_names([task])[0]
    return Policy.from_pretrained(reference, task=name, algorithm=algorithm, seed=seed)


def run(
    experiment: str | Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
    console: Console | None = None,
) -> Run:
    """Run the stages of an experiment that are not up to date, as `orrery run` does.

    Args:
        experiment: name of a built-in experiment, or path of a YAML file.
        overrides: settings as on the command line: ["pretrain.steps=500", "tasks=[dmc/walker-run]"].
        run_dir: None is runs/EXPERIMENT.
        console: where messages and progress go; None is standard error.
    Raises:
        OrreryError: wrong settings, found before anything runs, or a stage that failed; the same call continues.
    """
    from rich.console import Console

    words = [*overrides, *([] if run_dir is None else [f"run_dir={run_dir}"])]
    stages = discover_stages()
    config = load_config(str(experiment), words, stages=stages)
    plan(config, stages)
    with locked(config.run_dir):
        run_on_console(config, stages, console or Console(stderr=True))
    return load_run(config.run_dir)
