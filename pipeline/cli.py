"""The command line: `orrery run | plan | study | iterate | status | clean | report`, and those of entry points.

Errors that are meant for the user are printed without a traceback and end with exit code 2, Ctrl-C with 130, a bug
with 1 and its traceback. 75 says that the same command has to be run again to continue: after SIGTERM, SIGUSR1 or
SIGUSR2, and while jobs that it submitted are queued or running. Heavy libraries are imported by the stages when they
run, so that a run that is up to date says so at once.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import clean_command
from .command import Command
from .config.help import experiment_help, run_help
from .config.load import CONFIG_DIR, RunConfig, discover_stages, list_experiments, load_config
from .config.overrides import SWEEP
from .entry_points import load, load_all, names
from .errors import ConfigError, OrreryError, StageError
from .jobs.fanout import Detached
from .kept import kept_note
from .logging import ConsoleProgress, duration
from .paths import user_path
from .plan import Decision, check_machine, code_notes, plan, stages_from, start_line
from .ranks import Launch, check_launch, follow, launched
from .run_folder import disk_errors, lock_holder, locked
from .runner import Outcome, StageInterrupted, end_line, run_on_console
from .stage import Stage
from .status import describe_status, read_run_file
from .study import command as study_command
from .study import iterate_command
from .study.command import describe_study
from .study.iterate import is_iteration, read_iteration_file
from .study.study import is_study, read_study_file
from .termination import EXIT_UNFINISHED, Terminated, handled, ignore

REPORT_STAGE = "report"
REPORT_PAGE = "index.html"

COMMANDS = ("run", "plan", "resume", "study", "iterate", "status", "clean", "report")
"""Those that are no entry points."""

PIPE_WIDTH = 160

EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(
    argv: Sequence[str] | None = None,
    *,
    stages: Mapping[str, type[Stage]] | None = None,
    config_dir: Path = CONFIG_DIR,
) -> int:
    """Run one command and return its exit code.

    Args:
        argv: its words; None takes those of this process, which is taken to end with the command.
    """
    with handled():
        try:
            status = _answer(argv, stages, config_dir)
        except Terminated as stop:
            Console(stderr=True, highlight=False).print(f"\n{stop}", style="yellow", soft_wrap=True)
            status = EXIT_UNFINISHED
    if argv is None and status == EXIT_UNFINISHED:
        ignore()
    return status


def _answer(argv: Sequence[str] | None, stages: Mapping[str, type[Stage]] | None, config_dir: Path) -> int:
    # Into a file or a pipe, tables may be as wide as they need, and a bar that redraws itself is noise, whatever
    # FORCE_COLOR says: Jupyter and CI set it.
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, force_terminal=terminal, width=None if terminal else PIPE_WIDTH)
    errors = Console(stderr=True, highlight=False)
    try:
        commands = _other_commands(sys.argv[1:] if argv is None else argv)
        arguments = _parse(_parser(commands), argv)
        for name, value in vars(arguments).items():  # a shell leaves ~ in --out=~/x and in quotes
            if isinstance(value, Path):
                setattr(arguments, name, user_path(value))
        with disk_errors():
            return _command(arguments, commands, stages, config_dir, console)
    except OrreryError as error:
        errors.print(Text.assemble(("error: ", "bold red"), (str(error), "red")), soft_wrap=True)
        return EXIT_USER_ERROR
    except Detached as detached:
        errors.print(str(detached), style="yellow", soft_wrap=True)
        return EXIT_UNFINISHED
    except StageInterrupted as interrupt:
        again = getattr(arguments, "force", False) or getattr(arguments, "first", None)
        command = "the same command without --from and --force" if again else "the same command"
        text = f"\ninterrupted in stage {interrupt.stage}; {command} continues it"
        errors.print(text, style="yellow", soft_wrap=True)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        errors.print("\ninterrupted", style="yellow")
        return EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
        return EXIT_BUG


def _other_commands(words: Sequence[str]) -> dict[str, Command]:
    """Of the commands of entry points, the one that is called; all of them if the list of commands may be shown."""
    called = next((word for word in words if not word.startswith("-")), "")
    if called in COMMANDS:
        return {}
    if called in names("commands"):
        return {called: load("commands", called, Command)()}
    return {name: command() for name, command in load_all("commands", Command).items() if name not in COMMANDS}


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    arguments, rest = parser.parse_known_args(argv)
    flags = [word for word in rest if word.startswith("-")]
    if rest and (flags or "overrides" not in arguments):
        parser.error(
            f"unrecognized arguments: {' '.join(rest)}{_explain_flag(flags if 'overrides' in arguments else ())}"
        )
    if rest:  # argparse takes no more of them behind an option: orrery study NAME --plan key=value
        arguments.overrides += rest
    return arguments


HYDRA_FLAGS = {
    ("-m", "--multirun"): SWEEP.format(key="seed", values="0,1,2"),
    ("-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir", "--experimental-rerun"): (
        "The experiment, or the path of a YAML file, is the first word: orrery run quickstart"
    ),
    ("-c", "--cfg", "-p", "--package", "--resolve", "--info", "-hh", "--hydra-help"): (
        "Every key and its value: orrery run EXPERIMENT --help"
    ),
}
"""What serves here the purpose of an option of Hydra's."""


def _explain_flag(flags: Sequence[str]) -> str:
    """What to write in place of the first option that is none, as the end of a message."""
    for flag in flags:
        name, equals, value = flag.partition("=")
        for known, instead in HYDRA_FLAGS.items():
            if name in known:
                return f"\n{instead}"
        if name.startswith("--"):
            return f"\nSettings have no dashes: {name.lstrip('-').replace('-', '_')}={value if equals else 'VALUE'}"
    return ""


def _command(
    arguments: argparse.Namespace,
    commands: Mapping[str, Command],
    stages: Mapping[str, type[Stage]] | None,
    config_dir: Path,
    console: Console,
) -> int:
    if arguments.command == "status" and is_study(arguments.path):
        console.print(describe_study(arguments.path))
        return 0
    if arguments.command == "status" and is_iteration(arguments.path):
        console.print(iterate_command.describe_iteration(arguments.path))
        return 0
    if arguments.command == "clean":
        return clean_command.run(arguments, console)
    if arguments.command == "status":
        console.print(describe_status(arguments.path))
        return 0
    if arguments.command in commands:
        return commands[arguments.command].run(arguments, console)
    return _work(arguments, discover_stages() if stages is None else stages, config_dir, console)


def _parser(others: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orrery",
        description="Pretrain one world model on many tasks, freeze it, and extract a fast policy per task.",
    )
    parser.add_argument("--version", action="version", version=f"orrery {version('orrery')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in [
        ("run", "run the stages of an experiment that are not up to date"),
        ("plan", "say what `run` would do, and why"),
        ("study", "run an experiment in several variants; what they share runs once"),
        ("iterate", "run an experiment in rounds that collect with the policies of the round before"),
    ]:
        # Help is ours: it depends on the experiment.
        command = commands.add_parser(name, help=text, add_help=False)
        command.add_argument("-h", "--help", action="store_true", dest="wants_help")
        command.add_argument("experiment", nargs="?", metavar="EXPERIMENT")
        command.add_argument("overrides", nargs="*", metavar="key=value")
        if name in ("study", "iterate"):
            command.add_argument("--plan", action="store_true", help="say what it would run, and why")
        else:
            command.add_argument("--from", dest="first", metavar="STAGE", help="run this stage and all after it again")
            command.add_argument("--force", action="store_true", help="run all stages again")
    command = commands.add_parser("resume", help="repeat the last command of a run, a study or an iteration")
    command.add_argument("path", type=Path, metavar="RUN_DIR")
    command = commands.add_parser("status", help="how far a run, a study or an iteration is")
    command.add_argument("path", type=Path, metavar="RUN_DIR")
    clean_command.add_parser(commands)
    command = commands.add_parser("report", help="write the report of a run again, from what it has so far")
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    for name, other in others.items():
        other.add_arguments(commands.add_parser(name, help=other.help, description=other.help))
    return parser


def _work(arguments: argparse.Namespace, stages: Mapping[str, type[Stage]], config_dir: Path, console: Console) -> int:
    if arguments.command == "resume":
        arguments = _recorded_command(arguments.path)
    if arguments.command in ("study", "iterate") and launched() is not None:
        raise ConfigError(f"orrery {arguments.command} runs stage after stage in one process; start it once")
    if arguments.command == "study":
        return _study(arguments, stages, config_dir, console)
    if arguments.command == "iterate":
        return _iterate(arguments, stages, config_dir, console)
    if arguments.command == "report" and is_study(arguments.run_dir):
        return study_command.report(arguments.run_dir, stages, config_dir, console)
    if arguments.command == "report" and is_iteration(arguments.run_dir):
        raise StageError(
            f"{arguments.run_dir} holds rounds, whose comparison `orrery iterate` keeps up to date; a single round has "
            f"a report of its own where the experiment has the stage {REPORT_STAGE!r}: orrery report "
            f"{arguments.run_dir / 'round_0'}"
        )
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
        console.print(run_help(list_experiments(config_dir), stages))
        return 0 if arguments.wants_help else EXIT_USER_ERROR
    config = load_config(arguments.experiment, arguments.overrides, stages=stages, config_dir=config_dir)
    if arguments.wants_help:
        console.print(experiment_help(config, stages))
        return 0
    anew = (
        config.settings.stages if arguments.force else stages_from(config, arguments.first) if arguments.first else []
    )
    if arguments.command == "plan":
        decisions = plan(config, stages, anew)
        check_machine(config, stages, decisions)
        _print_plan(decisions, lock_holder(config.run_dir), console)
        replaced = [d.stage for d in decisions if d.action != "fresh" and (config.run_dir / d.stage).is_dir()]
        notes = [f"artifacts to be replaced, and kept for their settings: {', '.join(replaced)}"] if replaced else []
        notes += code_notes(config, [decision.stage for decision in decisions if decision.action == "fresh"])
        for note in filter(None, [*notes, kept_note(config.run_dir)]):
            console.print(Text(note), soft_wrap=True)
        return 0
    return _run(config, stages, console, anew=anew)


def _recorded_command(folder: Path) -> argparse.Namespace:
    """The command that was run last in a folder, as `_parser` would read it."""
    command = "run"
    if is_study(folder):
        command, record = "study", read_study_file(folder)
        record = {**record, "experiment": record["source"]}
    elif is_iteration(folder):
        command, record = "iterate", dict(read_iteration_file(folder))
    else:
        record = read_run_file(folder)
    overrides = [*record["overrides"], f"run_dir={folder}"]
    return argparse.Namespace(
        command=command, experiment=record["experiment"], overrides=overrides, wants_help=False, plan=False,
        first=None, force=False,
    )  # fmt: skip


def _study(arguments: argparse.Namespace, stages: Mapping[str, type[Stage]], config_dir: Path, console: Console) -> int:
    name, overrides = arguments.experiment, arguments.overrides
    if name is None or arguments.wants_help:
        console.print(study_command.study_help(config_dir))
        return 0 if arguments.wants_help else EXIT_USER_ERROR
    command = study_command.plan_study if arguments.plan else study_command.run
    return command(name, overrides, stages, config_dir, console)


def _iterate(
    arguments: argparse.Namespace, stages: Mapping[str, type[Stage]], config_dir: Path, console: Console
) -> int:
    name, overrides = arguments.experiment, arguments.overrides
    if name is None or arguments.wants_help:
        console.print(iterate_command.iterate_help())
        return 0 if arguments.wants_help else EXIT_USER_ERROR
    command = iterate_command.plan if arguments.plan else iterate_command.run
    return command(name, overrides, stages, config_dir, console)


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
        console.print("nothing to do: every stage is up to date")
    else:
        console.print(f"done in {duration(time.monotonic() - started)}")
    for note in code_notes(config, [outcome.stage for outcome in outcomes if outcome.status == "fresh"]):
        console.print(Text(note), soft_wrap=True)
    page = config.run_dir / REPORT_STAGE / REPORT_PAGE
    console.print(Text(f"report: {page}" if page.is_file() else f"run folder: {config.run_dir}"), soft_wrap=True)
    return 0


def _follow(config: RunConfig, stages: Mapping[str, type[Stage]], launch: Launch, console: Console) -> int:
    me = f"rank {launch.rank} of {launch.world_size}"
    console.print(f"{me} follows the first process in {config.run_dir}", soft_wrap=True)
    follow(config, stages, launch, progress=ConsoleProgress(console), on_join=lambda s: console.print(f"{me}: {s}"))
    console.print(f"{me}: done")
    return 0


class _Printer:
    """A line when a stage starts and one when it ends; those that are up to date only beside others."""

    def __init__(self, console: Console, stages: Sequence[str]) -> None:
        self._console = console
        self._stages = stages
        self._width = max(map(len, stages))
        self._fresh: list[Outcome] = []

    def on_start(self, decision: Decision) -> None:
        for outcome in self._fresh:
            self._print(outcome.stage, end_line(outcome, self._width))
        self._fresh.clear()
        self._print(decision.stage, start_line(decision, self._width))

    def on_end(self, outcome: Outcome) -> None:
        if outcome.status == "fresh":
            self._fresh.append(outcome)
        else:
            self._print(outcome.stage, end_line(outcome, self._width))

    def _print(self, stage: str, line: Text) -> None:
        number = f"{self._stages.index(stage) + 1}/{len(self._stages)} "
        self._console.print(Text.assemble(number, line), soft_wrap=True)


def _print_plan(decisions: Sequence[Decision], holder: str | None, console: Console) -> None:
    """Args:
    holder: the process that runs in the folder now, which works on the stage that would continue.
    """
    table = Table("stage", "would", "because", box=None, pad_edge=False)
    for decision in decisions:
        if holder is not None and decision.action == "resume":
            table.add_row(decision.stage, "running", Text(holder))
        else:
            table.add_row(decision.stage, decision.would, Text(decision.reason))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
