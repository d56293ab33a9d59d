"""`orrery run | plan | report | status`, and the way to `study` and `iterate`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from .config.help import experiment_help, run_help
from .config.load import RunConfig, discover_stages, list_experiments, load_config
from .errors import EXIT_USER_ERROR, ConfigError, StageError
from .kept import kept_note
from .lock import lock_holder, locked
from .logging import ConsoleProgress, duration
from .plan import Decision, check_machine, code_notes, plan, stages_anew, start_line
from .ranks import Launch, check_launch, follow, launched
from .runner import Outcome, end_line, run_on_console
from .stage import Stage
from .status import describe_status, read_run_file, read_run_status
from .study import command as study_command
from .study.study import is_study, read_record
from .tables import print_json, rows_table

REPORT_STAGE = "report"
REPORT_PAGE = "index.html"


def show_status(arguments: argparse.Namespace, console: Console) -> int:
    """`orrery status`."""
    study = is_study(arguments.path)
    status = (study_command.read_study_status if study else read_run_status)(arguments.path)
    if arguments.json:
        print_json(status, console)
    else:
        console.print((study_command.describe_study if study else describe_status)(status))
    return 0


def work(
    arguments: argparse.Namespace, given: Mapping[str, type[Stage]] | None, config_dir: Path, console: Console
) -> int:
    """The commands that need the stages.

    Args:
        given: stages by name; None takes the installed ones.
    """
    stages = discover_stages() if given is None else given
    if arguments.command == "resume":
        arguments = _recorded_command(arguments.path)
    if arguments.command in study_command.LOAD:
        return _series(arguments, stages, config_dir, console)
    if arguments.command == "report" and is_study(arguments.run_dir):
        return study_command.report(arguments.run_dir, stages, config_dir, console)
    if arguments.command == "report":
        record = read_run_file(arguments.run_dir)
        # All stages of the experiment, also where the last command was about some of them.
        overrides = [one for one in record["overrides"] if not one.startswith("stages=")]
        overrides.append(f"run_dir={arguments.run_dir}")
        config = load_config(record["experiment"], overrides, stages=stages, config_dir=config_dir)
        if REPORT_STAGE not in config.settings.stages:
            raise StageError(f"the run in {arguments.run_dir} has no stage {REPORT_STAGE!r}; add it to `stages`")
        return _run(config, stages, console, only=REPORT_STAGE)
    if arguments.experiment is None:
        console.print(run_help(list_experiments(config_dir), stages, arguments.command))
        return 0 if arguments.wants_help else EXIT_USER_ERROR
    config = load_config(arguments.experiment, arguments.overrides, stages=stages, config_dir=config_dir)
    if arguments.wants_help:
        console.print(experiment_help(config, stages))
        return 0
    anew = stages_anew(config, arguments.first, force=arguments.force)
    if arguments.plan:
        return _show_plan(config, stages, anew, console, as_json=arguments.json)
    return _run(config, stages, console, anew=anew)


def _show_plan(
    config: RunConfig, stages: Mapping[str, type[Stage]], anew: Collection[str], console: Console, *, as_json: bool
) -> int:
    decisions, holder = plan(config, stages, anew), lock_holder(config.run_dir)
    check_machine(config, stages, decisions)
    replaced = [d.stage for d in decisions if d.action != "fresh" and (config.run_dir / d.stage).is_dir()]
    notes = [f"artifacts of other settings, which will be kept: {', '.join(replaced)}"] if replaced else []
    notes += code_notes(config, [decision.stage for decision in decisions if decision.action == "fresh"])
    notes += filter(None, [kept_note(config.run_dir)])
    # The process that runs in the folder works on the stage that would continue.
    rows = [
        {"stage": one.stage, "action": "running", "reason": holder}
        if holder is not None and one.action == "resume"
        else {"stage": one.stage, "action": one.would, "reason": one.reason}
        for one in decisions
    ]
    if as_json:
        made = {one.stage: str(one.made) if one.made else None for one in decisions}
        found = [{**row, "artifact": made[row["stage"]]} for row in rows]
        folder = str(config.run_dir)
        print_json({"experiment": config.experiment, "folder": folder, "stages": found, "notes": notes}, console)
        return 0
    console.print(rows_table(rows))
    for note in notes:
        console.print(Text(note), soft_wrap=True)
    return 0


def _recorded_command(folder: Path) -> argparse.Namespace:
    """The command that was run last in a folder, as `_parser` would read it."""
    command: str
    if is_study(folder):
        series = read_record(folder)
        command, source, overrides = series.command, series.source, series.overrides
    else:
        record = read_run_file(folder)
        command, source, overrides = "run", record["experiment"], record["overrides"]
    return argparse.Namespace(
        command=command, experiment=source, overrides=[*overrides, f"run_dir={folder}"], wants_help=False, plan=False,
        json=False, first=None, force=False,
    )  # fmt: skip


def _series(
    arguments: argparse.Namespace, stages: Mapping[str, type[Stage]], config_dir: Path, console: Console
) -> int:
    """`orrery study` and `orrery iterate`."""
    if launched() is not None:
        raise ConfigError(f"orrery {arguments.command} runs in a single process; start it once")
    if arguments.experiment is None or arguments.wants_help:
        console.print(study_command.series_help(arguments.command, config_dir))
        return 0 if arguments.wants_help else EXIT_USER_ERROR
    series = study_command.LOAD[arguments.command](arguments.experiment, arguments.overrides, stages, config_dir)
    if arguments.force or arguments.first:
        variants = [
            replace(one, anew=stages_anew(one.config, arguments.first, force=arguments.force))
            for one in series.variants
        ]
        series = replace(series, variants=tuple(variants))
    command = study_command.show_plan if arguments.plan else study_command.run
    return command(series, stages, console)


def _run(
    config: RunConfig,
    stages: Mapping[str, type[Stage]],
    console: Console,
    only: str | None = None,
    anew: Collection[str] = (),
) -> int:
    plan(config, stages, anew)  # raises for what is wrong before anything is written
    if (launch := launched()) is not None:
        check_launch(config, stages, launch)
        if launch.rank > 0:
            return _follow(config, stages, launch, console)
    printer = _Printer(console, config.settings.stages)
    started = time.monotonic()
    with locked(config.run_dir):
        outcomes = run_on_console(
            config, stages, console, on_start=printer.on_start, on_end=printer.on_end, only=only, anew=anew
        )
    if all(outcome.status == "fresh" for outcome in outcomes):
        console.print("nothing to do: all stages are up to date")
    else:
        console.print(f"done in {duration(time.monotonic() - started)}")
    for note in code_notes(config, [outcome.stage for outcome in outcomes if outcome.status == "fresh"]):
        console.print(Text(note), soft_wrap=True)
    page = config.run_dir / REPORT_STAGE / REPORT_PAGE
    console.print(Text(f"report: {page}" if page.is_file() else f"run folder: {config.run_dir}"), soft_wrap=True)
    return 0


def _follow(config: RunConfig, stages: Mapping[str, type[Stage]], launch: Launch, console: Console) -> int:
    me = f"rank {launch.rank} of {launch.world_size}"
    console.print(f"{me} joins the first process in {config.run_dir}", soft_wrap=True)
    follow(config, stages, launch, progress=ConsoleProgress(console), on_join=lambda s: console.print(f"{me}: {s}"))
    console.print(f"{me}: done")
    return 0


class _Printer:
    """Prints a line when a stage starts and when it ends; up-to-date stages only if others run."""

    def __init__(self, console: Console, stages: Sequence[str]) -> None:
        self._console = console
        self._stages = stages
        self._fresh: list[Outcome] = []

    def on_start(self, decision: Decision) -> None:
        for outcome in self._fresh:
            self._print(outcome.stage, end_line(outcome))
        self._fresh.clear()
        self._print(decision.stage, start_line(decision))

    def on_end(self, outcome: Outcome) -> None:
        if outcome.status == "fresh":
            self._fresh.append(outcome)
        else:
            self._print(outcome.stage, end_line(outcome))

    def _print(self, stage: str, line: Text) -> None:
        number = f"[{self._stages.index(stage) + 1}/{len(self._stages)}] "
        self._console.print(Text.assemble(number, line), soft_wrap=True)
