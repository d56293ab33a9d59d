"""The command line: `orrery run | plan | study | iterate | status | clean | report`, and those of entry points.

Errors that are meant for the user are printed without a traceback and end with exit code 2, Ctrl-C with 130, a bug
with 1 and its traceback. 75 says that the same command has to be run again to continue: after SIGTERM, SIGUSR1 or
SIGUSR2, and while jobs that it submitted are queued or running. What a command needs is imported when it is called,
heavy libraries when a stage runs, so that help comes at once.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.text import Text

from . import clean_command
from .command import Command
from .entry_points import load, load_all, names
from .errors import EXIT_BUG, EXIT_USER_ERROR, ConfigError, Detached, OrreryError, StageInterrupted
from .paths import CONFIG_DIR, user_path
from .run_folder import disk_errors
from .stage import Stage
from .tables import add_json
from .termination import EXIT_UNFINISHED, Terminated, handled, ignore
from .wording import sentence

COMMANDS = ("run", "plan", "resume", "study", "iterate", "status", "clean", "report")
"""Those that are no entry points."""

PIPE_WIDTH = 160

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
        arguments = _parse(_parser(commands), argv, config_dir)
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
        command = "the command without --from and --force" if again else "the command"
        text = f"\ninterrupted in stage {interrupt.stage}; rerun {command} to continue"
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


def _explain_command(word: str, config_dir: Path) -> str:
    """What to write in place of a first word that is no command."""
    from .config.load import list_experiments
    from .config.schema import nearest

    if word in names("stages"):
        return f"{word} is a stage: orrery run EXPERIMENT stages=[{word}], or orrery run EXPERIMENT --from {word}"
    if word in list_experiments(config_dir) or word.endswith((".yaml", ".yml")):
        return f"{word} is an experiment: orrery run {word}"
    known = (*COMMANDS, *names("commands"))
    near = nearest(word, [*known, *names("stages"), *list_experiments(config_dir)])
    return f"unknown command {word!r}.{near} Commands: {', '.join(known)}"


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, config_dir: Path) -> argparse.Namespace:
    called = next((word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("-")), "")
    if called and called not in (*COMMANDS, *names("commands")):
        raise ConfigError(_explain_command(called, config_dir))
    arguments, rest = parser.parse_known_args(argv)
    flags = [word for word in rest if word.startswith("-")]
    if rest and (flags or "overrides" not in arguments):
        from .config.overrides import explain_flag

        hint = explain_flag(flags if "overrides" in arguments else ())
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:  # argparse takes no more of them behind an option: orrery study NAME --plan key=value
        arguments.overrides += rest
    return arguments


def _command(
    arguments: argparse.Namespace,
    commands: Mapping[str, Command],
    stages: Mapping[str, type[Stage]] | None,
    config_dir: Path,
    console: Console,
) -> int:
    if arguments.command in commands:
        return commands[arguments.command].run(arguments, console)
    if arguments.command == "clean":
        return clean_command.run(arguments, console)
    from .run_command import show_status, work

    if arguments.command == "status":
        return show_status(arguments, console)
    return work(arguments, stages, config_dir, console)


def all_commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by name."""
    (found,) = (one for one in _parser(_other_commands([]))._actions if isinstance(one, argparse._SubParsersAction))
    return dict(found.choices)


def _parser(others: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orrery",
        description="Pretrain one world model on many tasks, freeze it, and extract a fast policy per task.",
    )
    parser.add_argument("--version", action="version", version=f"orrery {version('orrery')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in [
        ("run", "run the stages of an experiment; up-to-date stages are skipped"),
        ("plan", "show what `run` would do, and why"),
        ("study", "run an experiment in several variants; shared stages run once"),
        ("iterate", "run an experiment in rounds that collect with the previous policies"),
    ]:
        # Help is ours: it depends on the experiment.
        command = commands.add_parser(name, help=text, add_help=False)
        command.add_argument("-h", "--help", action="store_true", dest="wants_help")
        command.add_argument("experiment", nargs="?", metavar="EXPERIMENT")
        command.add_argument("overrides", nargs="*", metavar="key=value")
        command.set_defaults(plan=name == "plan", json=False)
        if name == "plan":
            add_json(command)
        else:
            command.add_argument("--plan", action="store_true", help="show what would run, and why; run nothing")
        again = command.add_mutually_exclusive_group()
        again.add_argument("--from", dest="first", metavar="STAGE", help="rerun this stage and all later ones")
        again.add_argument("--force", action="store_true", help="rerun all stages")
    for name, text in [
        ("resume", "repeat the last command of a run, a study or an iteration"),
        ("status", "show the progress of a run, a study or an iteration"),
    ]:
        command = commands.add_parser(name, help=text, description=sentence(text))
        command.add_argument("path", type=Path, metavar="RUN_DIR", help="folder of a run, a study or an iteration")
        if name == "status":
            add_json(command)
    clean_command.add_parser(commands)
    text = "rewrite the report of a run, a study or an iteration from its current artifacts"
    command = commands.add_parser("report", help=text, description=sentence(text))
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run, a study or an iteration")
    for name, other in others.items():
        other.add_arguments(commands.add_parser(name, help=other.help, description=sentence(other.help)))
    return parser


if __name__ == "__main__":
    sys.exit(main())
