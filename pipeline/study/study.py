"""Runs a study: every branch in turn, then the comparison of its variants; and says how far it is.

    from orrery.pipeline.study.study import read_study, run_study
    frame = run_study("regularisation", ["seeds=3"])
    frame = read_study("runs/regularisation")

A branch is an ordinary run, so that the same call continues what was interrupted, and one that fails costs only what is
made from it. The comparison is the stage `compare` in the study's own folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .. import artifact
from ..config.load import CONFIG_DIR, RunConfig, discover_stages
from ..config.schema import build
from ..errors import OrreryError, StageError
from ..jobs.fanout import Detached
from ..paths import user_path
from ..plan import Decision
from ..reading import decode, make_again, read_csv, read_json, reading
from ..run_folder import disk_errors, locked
from ..runner import Outcome, run_on_console
from ..stage import Stage
from ..termination import handled
from .config import Study, compose_variants, load_study
from .plan import plan_branches, take_over
from .tree import COMPARE_STAGE, Branch, Layout, lay_out

if TYPE_CHECKING:
    import pandas as pd

STUDY_FILE = "study.json"
TABLE = "study.csv"
PAGE = "study.html"


@dataclass(frozen=True)
class BranchResult:
    """How a branch ended."""

    status: str
    """fresh, done, failed, detached, or blocked, which is by the failure of another one."""
    reason: str = ""
    """Why it failed, or which branch it waits for."""
    bug: bool = False
    """The failure was not one that a user is meant to read."""


class StudyObserver:
    """Is told what happens; does nothing itself."""

    def on_branch(self, branch: Branch) -> None: ...
    def on_start(self, decision: Decision) -> None: ...
    def on_end(self, outcome: Outcome) -> None: ...
    def on_result(self, branch: Branch, result: BranchResult) -> None: ...


def is_study(folder: Path) -> bool:
    """Return whether a folder holds a study."""
    return (folder / STUDY_FILE).is_file()


def prepare_study(
    source: str, overrides: Sequence[str], stages: Mapping[str, type[Stage]], config_dir: Path = CONFIG_DIR
) -> tuple[Study, Layout]:
    """Read a study, and compose and check all its variants. Writes nothing.

    Raises:
        OrreryError: for whatever is wrong with any of them.
    """
    study = load_study(source, overrides, config_dir=config_dir)
    return study, lay_out(study, compose_variants(study, stages, config_dir), stages, config_dir)


def run_branches(
    study: Study,
    layout: Layout,
    stages: Mapping[str, type[Stage]],
    console: Console,
    observer: StudyObserver | None = None,
) -> dict[str, BranchResult]:
    """Bring every branch up to date, then the comparison.

    Raises:
        OrreryError: this machine cannot do what a stage needs (before anything runs), the study's folder cannot be
            written, or another process runs the study.
        StageInterrupted, StageTerminated: Ctrl-C, or one of `termination.SIGNALS`; the same call continues.
    """
    observer = observer or StudyObserver()
    plan_branches(study, layout, stages)  # raises for what is wrong before anything is written
    with handled(), locked(study.run_dir):
        results: dict[str, BranchResult] = {}
        made: set[str] = set()
        take_over(study, layout, stages)
        _write_study_file(study, layout, results)
        for branch in layout.branches:
            observer.on_branch(branch)
            missing = [layout.branch_of[key].name for key in branch.reads if key not in made]
            if missing:
                results[branch.name] = BranchResult("blocked", f"it waits for {missing[0]}")
            else:
                results[branch.name] = _run_branch(branch, stages, console, observer, made)
            observer.on_result(branch, results[branch.name])
            _write_study_file(study, layout, results)
        if (config := _comparison(study, layout, stages, results, made)) is not None:
            results[COMPARE_STAGE] = _run(config, stages, console, observer, observer.on_end)
        return results


def compare_again(
    study: Study, layout: Layout, stages: Mapping[str, type[Stage]], console: Console, observer: StudyObserver
) -> BranchResult:
    """Make the comparison anew from what there is, up to date or not, and run nothing else.

    Raises:
        StageError: nothing is there to compare.
    """
    with handled(), locked(study.run_dir):
        made: set[str] = set()
        results: dict[str, BranchResult] = {}
        take_over(study, layout, stages)
        for branch in layout.branches:
            made |= {step.key for step in branch.steps if (branch.folder_of(step.key) / artifact.MANIFEST).is_file()}
            results[branch.name] = BranchResult("waiting")
        if (config := _comparison(study, layout, stages, results, made)) is None:
            raise StageError(f"no variant of study {study.name} in {study.run_dir} is far enough to be compared")
        return _run(config, stages, console, observer, observer.on_end, only=COMPARE_STAGE)


def run_study(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    stages: Mapping[str, type[Stage]] | None = None,
    config_dir: Path = CONFIG_DIR,
    console: Console | None = None,
) -> pd.DataFrame:
    """Run a study, or what is left of it, and return its table.

    Args:
        source: name of a built-in study, or path of a YAML file.
        overrides: `key=value` for all variants, as on the command line; also run_dir=PATH and grid.KEY=[...].
        stages, config_dir: as `load_config` takes them; by default the package's own.
        console: where progress is shown; a quiet one shows none.
    Returns:
        What `read_study` does.
    Raises:
        OrreryError: something is wrong with a variant (before anything runs), or some failed; the results of all
            others are there, and `read_study` returns them.
    """
    stages = discover_stages() if stages is None else stages
    study, layout = prepare_study(str(source), overrides, stages, config_dir)
    results = run_branches(study, layout, stages, console or Console(highlight=False))
    if unfinished := {name: one for name, one in results.items() if one.status not in ("fresh", "done")}:
        lines = [f"  {name}: {one.status}, {one.reason}" for name, one in unfinished.items()]
        raise StageError(f"parts of study {study.name} are not finished:\n" + "\n".join(lines))
    return read_study(study.run_dir)


def read_study(folder: str | Path) -> pd.DataFrame:
    """Return the table of a study: a row per variant, algorithm and task, and rows over all tasks.

    Columns are described in `orrery.stages.reporting.study_results`.

    Raises:
        StageError: there is none in `folder`.
    """
    path = user_path(folder) / COMPARE_STAGE / TABLE
    if not path.is_file():
        raise StageError(
            f"{folder} has no {COMPARE_STAGE}/{TABLE}; `orrery study` makes it when a variant is evaluated"
        )
    frame = read_csv(path)
    if missing := {"variant", "task"} - set(frame):
        raise StageError(f"{path} lacks the columns {', '.join(sorted(missing))}; {make_again(path)}")
    return frame.fillna({"variant": "", "task": ""})


@dataclass(frozen=True)
class _VariantRecord:
    name: str
    branches: list[str]


@dataclass(frozen=True)
class _BranchRecord:
    name: str
    stages: list[str]
    parent: str | None
    status: str
    reason: str


@dataclass(frozen=True)
class _StudyRecord:
    """What study.json must hold to be shown or compared again."""

    name: str
    source: str
    overrides: list[str]
    variants: list[_VariantRecord]
    branches: list[_BranchRecord]


def read_study_file(folder: Path) -> dict[str, Any]:
    """Return what study.json says.

    Raises:
        StageError: there is none, or it is damaged.
    """
    path, remedy = folder / STUDY_FILE, "`orrery study` writes it again"
    with reading(path, StageError, remedy):
        record: dict[str, Any] = read_json(path, StageError, remedy)
        decode(_StudyRecord, record)
    return record


def _run(
    config: RunConfig,
    stages: Mapping[str, type[Stage]],
    console: Console,
    observer: StudyObserver,
    on_end: Callable[[Outcome], None],
    only: str | None = None,
) -> BranchResult:
    """Run the stages of one run; what goes wrong with it is its result."""
    try:
        outcomes = run_on_console(config, stages, console, on_start=observer.on_start, on_end=on_end, only=only)
    except Detached as error:
        return BranchResult("detached", str(error))
    except OrreryError as error:
        return BranchResult("failed", str(error))
    except Exception as error:  # a bug in one variant must not cost the others; its traceback is in log.txt
        return BranchResult("failed", f"{type(error).__name__}: {error}; see {config.run_dir / 'log.txt'}", bug=True)
    fresh = all(outcome.status == "fresh" for outcome in outcomes)
    return BranchResult("fresh" if fresh else "done")


def _run_branch(
    branch: Branch,
    stages: Mapping[str, type[Stage]],
    console: Console,
    observer: StudyObserver,
    made: set[str],
) -> BranchResult:
    """Run a branch, and add to `made` the steps whose artifacts are there."""
    keys = {step.stage: step.key for step in branch.steps}

    def on_end(outcome: Outcome) -> None:
        made.add(keys[outcome.stage])
        observer.on_end(outcome)

    try:
        with locked(branch.config.run_dir):
            return _run(branch.config, stages, console, observer, on_end)
    except StageError as error:  # its folder is in use, or cannot be written
        return BranchResult("failed", str(error))


def _comparison(
    study: Study,
    layout: Layout,
    stages: Mapping[str, type[Stage]],
    results: Mapping[str, BranchResult],
    made: Container[str],
) -> RunConfig | None:
    """The run of the stage `compare` on what there is; None where there is nothing or no such stage."""
    if COMPARE_STAGE not in stages:
        return None
    wanted = stages[COMPARE_STAGE].inputs
    inputs: dict[str, list[str]] = {name: [] for name in wanted}
    variants = {}
    for variant in layout.variants:
        artifacts: dict[str, list[str]] = {name: [] for name in wanted}
        problem = ""
        for step in layout.steps[variant.name]:
            branch = layout.branch_of[step.key]
            if step.key not in made:
                problem = problem or f"{step.stage}: {results[branch.name].reason or 'it has not run yet'}"
                continue
            for name, one in wanted.items():
                if one.kind == stages[step.stage].output_kind:
                    artifacts[name].append(f"{branch.name}/{step.stage}")
                    inputs[name].append(str(branch.folder_of(step.key)))
        variants[variant.name] = {
            "group": variant.group,
            "parameters": dict(variant.parameters),
            "artifacts": artifacts,
            "problem": problem,
        }
    values = {"title": study.name, "description": study.description}
    config = layout.variants[0].config
    return comparison_run(config, study.run_dir, study.overrides, values, variants, inputs, stages)


def comparison_run(
    config: RunConfig,
    run_dir: Path,
    overrides: Sequence[str],
    values: Mapping[str, str],
    variants: Mapping[str, Mapping[str, Any]],
    inputs: Mapping[str, Sequence[str]],
    stages: Mapping[str, type[Stage]],
) -> RunConfig | None:
    """The run of the stage `compare` alone; None where there is nothing to compare.

    Args:
        config: what its other settings are taken from.
        values: title and description.
        variants: fields of VariantConfig by name.
        inputs: folders of artifacts by input name.
    """
    given = {name: os.pathsep.join(dict.fromkeys(paths)) for name, paths in inputs.items() if paths}
    if not given:
        return None
    own: dict[str, Any] = {"stages": [COMPARE_STAGE], "inputs": given}
    whole = {**config.resolved[COMPARE_STAGE], **values, "variants": variants}
    return replace(
        config,
        overrides=tuple(overrides),
        run_dir=run_dir,
        settings=replace(config.settings, **own),
        stage_configs={COMPARE_STAGE: build(stages[COMPARE_STAGE].Config, whole, COMPARE_STAGE)},
        resolved={**config.resolved, **own, COMPARE_STAGE: whole},
    )


def _write_study_file(study: Study, layout: Layout, results: Mapping[str, BranchResult]) -> None:
    waiting = BranchResult("waiting")
    record = {
        "name": study.name,
        "description": study.description,
        "source": study.source,
        "overrides": list(study.typed),
        "variants": [
            {
                "name": variant.name,
                "parameters": dict(variant.parameters),
                "branches": list(dict.fromkeys(layout.branch_of[one.key].name for one in layout.steps[variant.name])),
            }
            for variant in layout.variants
        ],
        "branches": [
            {
                "name": branch.name,
                "stages": list(branch.config.settings.stages),
                "parent": branch.parent,
                **asdict(results.get(branch.name, waiting)),
            }
            for branch in layout.branches
        ],
    }
    with disk_errors(study.run_dir):
        artifact.write_json(study.run_dir / STUDY_FILE, record)
