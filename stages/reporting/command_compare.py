"""`orrery compare`: scores and settings of several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ...pipeline.command import Command
from ...pipeline.tables import add_json, print_json


class CompareRuns(Command):
    """Compare runs: scores by task and algorithm, and settings that differ."""

    help = "compare the scores and settings of runs"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        text = "folders of runs, or of several runs such as a study"
        parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help=text)
        add_json(parser)

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        from .comparison import compare_runs, render

        compared = compare_runs(arguments.runs)
        if arguments.json:
            print_json(compared, console)
        else:
            console.print(render(compared))
        return 0
