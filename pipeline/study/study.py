"""Runs a series of runs, the variants of a study or rounds, and their comparison; and says how far it is.

    from orrery.pipeline.study.study import read_study, run_study
    frame = run_study("regularisation", ["seeds=3"])
    frame = read_study("runs/regularisation")

Every variant is an ordinary run in a folder of its own, with the folder of the series in its `reuse_from`: a stage that
an earlier variant has computed is linked, not computed again. The same call continues after an interruption. The
comparison is the stage `compare` in the folder of the series.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.text import Text

from .. import artifact
from ..config.load import RunConfig, discover_stages
from ..config.schema import build
from ..errors import Detached, OrreryError, StageError, labelled
from ..lock import locked
from ..paths import CONFIG_DIR, user_path
from ..plan import EARLIER, NOT_RUN, Decision, check_machine, plan, start_line
from ..reading import decode, make_again, read_csv, read_json, reading
from ..run_folder import disk_errors
from ..runner import Outcome, end_line, run_on_console
from ..stage import Stage
from ..termination import handled
from .config import Series, Variant, prepare_study

if TYPE_CHECKING:
    import pandas as pd

STUDY_FILE, FORMER_FILE = "study.json", "iteration.json"
COMPARE_STAGE = "compare"
TABLE = "study.csv"
SCORES = "scores.txt"
PAGE = "study.html"
WORDS = {"study": "variant", "iterate": "round"}


@dataclass(frozen=True)
class Result:
    """How a variant ended."""

    status: str
    """waiting, fresh, done, failed, detached, or blocked: a variant that it needs something of is not complete."""
    reason: str = ""
    """Why it is not complete."""
    bug: bool = False
    """The failure was not one that a user is meant to read."""

    @property
    def complete(self) -> bool:
        return self.status in ("fresh", "done")


WAITING = Result("waiting")


class Blocked(OrreryError):
    """A stage that failed in another variant, or whose jobs run, is not started again."""


def plan_series(series: Series, stages: Mapping[str, type[Stage]]) -> dict[str, list[Decision] | None]:
    """What each variant would do, by its name; None where that is known only when the one before is complete.

    Raises:
        OrreryError: what `orrery run` would raise for a variant before its first stage.
    """
    plans: dict[str, list[Decision] | None] = {}
    makers: dict[str, str] = {}

    def shared(decision: Decision, name: str) -> Decision:
        maker = (
            makers.setdefault(decision.key, name) if decision.made is None else sibling(series, decision.made.parent)
        )
        if stages[decision.stage].about_run or maker in ("", name):
            return decision
        return replace(decision, action="reuse", reason=f"shared with {maker}", waits=False)

    for variant in series.variants:
        before = plans[variant.reads_from] if variant.reads_from else []
        ready = before is not None and all(one.action == "fresh" for one in before)
        config = variant.config if ready else variant.preview
        # The previews of a series differ in nothing that is checked.
        if config is not None and (ready or None not in plans.values()):
            with labelled(variant.label):
                decisions = [shared(one, variant.name) for one in plan(config, stages, variant.anew)]
                check_machine(config, stages, [one for one in decisions if one.action != "reuse"])
        plans[variant.name] = decisions if ready else None
    return plans


def print_head(series: Series, plans: Mapping[str, Sequence[Decision] | None], console: Console) -> None:
    """Say what the series is, and which variants are the same."""
    count = f"{len(series.variants)} {WORDS[series.command]}s of {series.variants[0].config.experiment}"
    console.print(Text(f"{series.name}: {count} in {series.run_dir}"), soft_wrap=True)
    same: dict[tuple[str, ...], list[str]] = {}
    for name, decisions in plans.items():
        same.setdefault(tuple(one.key for one in decisions or ()), []).append(name)
    for names in (names for keys, names in same.items() if keys and len(names) > 1):
        console.print(Text(f"identical variants: {' = '.join(names)}", style="yellow"), soft_wrap=True)


def sibling(series: Series, run_dir: Path) -> str:
    """The name of a run of the series by its folder; empty for other folders."""
    return run_dir.name if run_dir.absolute().parent == series.run_dir.absolute() else ""


def run_series(series: Series, stages: Mapping[str, type[Stage]], console: Console) -> dict[str, Result]:
    """Bring every variant up to date in turn, then the comparison.

    Raises:
        OrreryError: something is wrong with a variant, or this machine cannot do what a stage needs (before anything
            runs); the folder cannot be written, or another process runs the series.
        StageInterrupted, StageTerminated: Ctrl-C, or one of `termination.SIGNALS`; the same call continues.
    """
    print_head(series, plan_series(series, stages), console)  # raises for what is wrong before anything is written
    with handled(), locked(series.run_dir):
        return _Loop(series, stages, console).run()


def compare_again(series: Series, stages: Mapping[str, type[Stage]], console: Console) -> dict[str, Result]:
    """Make the comparison anew from what there is, up to date or not, and run nothing else.

    Raises:
        StageError: nothing is there to compare.
    """
    with handled(), locked(series.run_dir):
        loop = _Loop(series, stages, console)
        for one in series.variants:
            own = one.config.settings.stages
            loop.made[one.name] = [stage for stage in own if (one.config.run_dir / stage / artifact.MANIFEST).is_file()]
        if (result := loop.compare(only=COMPARE_STAGE)) is None:
            raise StageError(
                f"nothing to compare: no variant of {series.name} in {series.run_dir} has results yet; continue with "
                f"orrery resume {series.run_dir}"
            )
        return {COMPARE_STAGE: result}


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
    series = prepare_study(str(source), overrides, stages, config_dir)
    results = run_series(series, stages, console or Console(highlight=False))
    if unfinished := {name: one for name, one in results.items() if not one.complete}:
        lines = [f"  {name}: {one.status}, {one.reason}" for name, one in unfinished.items()]
        raise StageError(f"parts of study {series.name} are not finished:\n" + "\n".join(lines))
    return read_study(series.run_dir)


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


def results_text(folder: Path) -> Text:
    """The scores, and where the comparison is."""
    compared = folder / COMPARE_STAGE
    if not (compared / TABLE).is_file():
        return Text(f"folder: {folder}")
    scores = (compared / SCORES).read_text(encoding="utf-8") if (compared / SCORES).is_file() else ""
    return Text(f"{scores}table: {compared / TABLE}\ncomparison: {compared / PAGE}", no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Record:
    """study.json: enough to show a series, and to compare it again."""

    command: Literal["study", "iterate"]
    name: str
    source: str
    overrides: Sequence[str]
    variants: Mapping[str, Result]


def is_study(folder: Path) -> bool:
    """Whether a folder holds variants or rounds."""
    return any((folder / name).is_file() for name in (STUDY_FILE, FORMER_FILE))


def read_record(folder: Path) -> Record:
    """Return what study.json says.

    Raises:
        StageError: there is none, it is damaged, or an earlier version wrote it.
    """
    path = folder / STUDY_FILE if (folder / STUDY_FILE).is_file() else folder / FORMER_FILE
    remedy = f"run the same `orrery study` or `orrery iterate` command with run_dir={folder}; nothing is lost"
    with reading(path, StageError, remedy):
        values = read_json(path, StageError, remedy)
        if isinstance(values, dict) and "command" not in values:
            raise StageError(f"an earlier version wrote {path}; {remedy}")
        return decode(Record, values)


class _Loop:
    """One pass over the variants of a series, with a line for each that has something to do, and below it one for each
    stage that starts or ends."""

    def __init__(self, series: Series, stages: Mapping[str, type[Stage]], console: Console) -> None:
        self._series, self._stages, self._console = series, stages, console
        self._results: dict[str, Result] = {}
        self.made: dict[str, list[str]] = {one.name: [] for one in series.variants}
        """Stages that are up to date, by variant."""
        self._stopped: dict[str, str] = {}
        """Variants by the keys of stages that failed in them, or whose jobs still run."""
        self._redone: dict[str, Path] = {}
        """Artifacts that this command has run again, by key: other variants take them."""
        self._working = ""
        """Key of the stage that has started last."""
        self._head = ""
        """Printed before the first line about the variant."""
        self._reused: dict[str, list[str]] = {}
        """Stages in a row that were reused, by where they come from."""

    def run(self) -> dict[str, Result]:
        variants = self._series.variants
        self._write_record()
        for number, variant in enumerate(variants):
            self._head = f"[{number + 1}/{len(variants)}] {variant.name}{variant.note}"
            self._results[variant.name] = result = self._run_variant(variant)
            if not result.complete:
                self._print(Text(f"{result.status}: {result.reason}", style="red" if result.bug else "yellow"))
            elif self._reused:
                self._print()
            self._write_record()
            # Rounds take long, and the curve so far is worth a look.
            if self._series.command == "iterate" and result.status == "done" and variant is not variants[-1]:
                self.compare()
        compared = self.compare()
        return self._results if compared is None else {**self._results, COMPARE_STAGE: compared}

    def _run_variant(self, variant: Variant) -> Result:
        if variant.reads_from and not self._results[variant.reads_from].complete:
            return Result("blocked", f"waits for {variant.reads_from}")
        self._working = ""

        def on_start(decision: Decision) -> None:
            if decision.key in self._stopped:
                raise Blocked(f"{decision.stage} waits for {self._stopped[decision.key]}")
            self._working = decision.key
            self._print(start_line(decision))

        def on_end(outcome: Outcome) -> None:
            self.made[variant.name].append(outcome.stage)
            if outcome.status == "reused":
                made_in = outcome.made_in
                maker = sibling(self._series, Path(made_in)) if made_in else ""
                origin = f"shared with {maker}" if maker else f"reused from {made_in}" if made_in else EARLIER
                self._reused.setdefault(origin, []).append(outcome.stage)
            else:
                self._print_end(outcome)

        try:
            with locked(variant.config.run_dir):
                result = self._run(variant.config, on_start, on_end, anew=variant.anew)
        except StageError as error:  # its folder is in use, or cannot be written
            return Result("failed", str(error))
        if result.status in ("failed", "detached"):
            self._stopped[self._working] = variant.name
        return result

    def _run(
        self,
        config: RunConfig,
        on_start: Callable[[Decision], None],
        on_end: Callable[[Outcome], None],
        only: str | None = None,
        anew: Sequence[str] = (),
    ) -> Result:
        """Run the stages of one run; what goes wrong with it is its result."""
        try:
            outcomes = run_on_console(
                config, self._stages, self._console, on_start=on_start, on_end=on_end, only=only, anew=anew,
                redone=self._redone,
            )  # fmt: skip
        except (Blocked, Detached) as error:
            return Result("blocked" if isinstance(error, Blocked) else "detached", str(error))
        except OrreryError as error:
            return Result("failed", str(error))
        except Exception as error:  # a bug in one variant must not cost the others; its traceback is in log.txt
            return Result("failed", f"{type(error).__name__}: {error}; see {config.run_dir / 'log.txt'}", bug=True)
        return Result("fresh" if all(outcome.status == "fresh" for outcome in outcomes) else "done")

    def compare(self, only: str | None = None) -> Result | None:
        """Run the stage `compare` on what is up to date; None where there is nothing, or no such stage."""
        if COMPARE_STAGE not in self._stages:
            return None
        series, stage = self._series, self._stages[COMPARE_STAGE]
        inputs: dict[str, dict[str, None]] = {name: {} for name in stage.inputs}
        places: dict[tuple[str, str], str] = {}
        variants = {}
        for variant in series.variants:
            artifacts: dict[str, list[str]] = {name: [] for name in inputs}
            for made in self.made[variant.name]:
                # Variants that share an artifact are given it in the same place, so that it counts once.
                digest = artifact.digest_of(variant.config.run_dir / made)
                place = places.setdefault((made, digest), f"{variant.name}/{made}")
                for name in (name for name, one in stage.inputs.items() if one.kind == self._stages[made].output_kind):
                    artifacts[name].append(place)
                    inputs[name][str(series.run_dir.absolute() / place)] = None
            missing = next((one for one in variant.config.settings.stages if one not in self.made[variant.name]), None)
            reason = self._results.get(variant.name, WAITING).reason or NOT_RUN
            variants[variant.name] = {
                "group": variant.group,
                "parameters": dict(variant.parameters),
                "artifacts": artifacts,
                "problem": f"{missing}: {reason}" if missing else "",
            }
        given = {name: os.pathsep.join(paths) for name, paths in inputs.items() if paths}
        if not given:
            return None
        config = series.variants[0].config
        settings: dict[str, Any] = {"stages": [COMPARE_STAGE], "inputs": given}
        values = {"title": series.name, "description": series.description, "variants": variants}
        values = {**config.resolved[COMPARE_STAGE], **values}
        config = replace(
            config,
            overrides=series.overrides,
            run_dir=series.run_dir,
            settings=replace(config.settings, **settings),
            stage_configs={COMPARE_STAGE: build(stage.Config, values, COMPARE_STAGE)},
            resolved={**config.resolved, **settings, COMPARE_STAGE: values},
        )
        # Why it runs is a list of all artifacts that are new.
        return self._run(config, lambda one: self._print(start_line(replace(one, reason=""))), self._print_end, only)

    def _write_record(self) -> None:
        series = self._series
        variants = {one.name: self._results.get(one.name, WAITING) for one in series.variants}
        record = Record(series.command, series.name, series.source, series.overrides, variants)
        with disk_errors(series.run_dir):
            artifact.write_json(series.run_dir / STUDY_FILE, asdict(record))

    def _print_end(self, outcome: Outcome) -> None:
        if outcome.status != "fresh":
            self._print(end_line(outcome))

    def _print(self, *lines: Text) -> None:
        if self._head:
            self._console.print(Text(self._head, style="bold"), soft_wrap=True)
        reused = [Text(f"{', '.join(names)}: {origin}") for origin, names in self._reused.items()]
        for line in (*reused, *lines):
            self._console.print(Text.assemble("  ", line), soft_wrap=True)
        self._head = ""
        self._reused.clear()
