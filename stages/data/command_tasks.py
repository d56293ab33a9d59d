"""`orrery tasks`: which tasks there are."""

from __future__ import annotations

import argparse
import fnmatch

from rich.console import Console
from rich.table import Table

from ...pipeline.command import Command
from ...pipeline.errors import TaskError
from ...pipeline.tables import print_json


class Tasks(Command):
    """List the names of simulated tasks, one per line: all, those of a suite, or those that match a pattern."""

    help = "list task names by suite or pattern"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "pattern",
            nargs="?",
            default="",
            metavar="PATTERN",
            help="a suite (dmc, metaworld, gymnasium, myriad), a set (mt30, mt80), or a pattern such as '*walker*'",
        )
        parser.add_argument("--long", action="store_true", help="show sizes, episode length and score (slower)")
        parser.add_argument("--json", action="store_true", help="print JSON: names, or full specs with --long")

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        names = _matching(arguments.pattern)
        if not arguments.long:
            if arguments.json:
                print_json(names, console)
            else:
                console.print("\n".join(names), soft_wrap=True, markup=False)
            return 0
        from ...datasets.tasks import task_spec

        specs, refused = [], []
        for name in names:
            try:
                specs.append(task_spec(name))
            except TaskError as error:  # an environment of gymnasium that needs an extra, say
                refused.append(str(error))
        for text in refused:
            Console(stderr=True, highlight=False).print(text, style="yellow", soft_wrap=True, markup=False)
        if arguments.json:
            print_json([spec.to_dict() for spec in specs], console)
            return 0
        table = Table("task", "observation", "action", "steps", "score", box=None, pad_edge=False)
        for spec in specs:
            choices = " choices" if spec.action_kind == "discrete" else ""
            kind = {"return_per_1000": "return / 1000", "success": "success rate", "normalised": "normalised"}
            table.add_row(
                spec.name,
                str(spec.observation_dim),
                f"{spec.action_dim}{choices}",
                f"{spec.episode_length}" + (f" x {spec.action_repeat}" if spec.action_repeat > 1 else ""),
                kind[spec.score_kind],
            )
        console.print(table)
        return 0


def _matching(pattern: str) -> list[str]:
    """Names that a suite, a set or a pattern stands for; a word without wildcards matches anywhere in a name.

    Raises:
        TaskError: nothing matches.
    """
    from ...datasets.tasks import suites, task_names
    from ...datasets.tasks.tdmpc2 import SETS

    if pattern in SETS:
        return list(SETS[pattern])
    wanted = [pattern.rstrip("/")] if pattern.rstrip("/") in suites() else suites()
    names = [name for suite in wanted for name in task_names(suite)]
    if pattern and len(wanted) > 1:
        glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
        names = [name for name in names if _matches(name.lower(), glob.lower())]
    if not names:
        raise TaskError(
            f"no task matches {pattern!r}; expected a suite ({', '.join(suites())}), mt30, mt80 or a pattern"
        )
    return names


def _matches(name: str, glob: str) -> bool:
    """Whether the name of a task, with or without its suite, is as `glob` says."""
    return any(fnmatch.fnmatchcase(part, glob) for part in (name, name.partition("/")[2]))
