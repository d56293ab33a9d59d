"""`orrery ls`: the runs below a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ...pipeline.command import Command
from ...pipeline.tables import add_json, print_json, rows_table

COLUMNS = ("run", "experiment", "status", "date", "tasks", "mean score", "bytes")


class Ls(Command):
    """List runs, with what came of them."""

    help = "list runs with status, date, tasks, mean score and size"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="of the runs (default: runs)"
        )
        add_json(parser)

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        from .run_list import describe_runs

        rows = describe_runs(arguments.folder)
        if arguments.json:
            print_json(rows, console)
        elif rows:
            shown = [{**row, "date": row["date"][:16].replace("T", " ")} for row in rows]
            console.print(rows_table(shown, COLUMNS))
        else:
            console.print(f"no runs in {arguments.folder}", markup=False, soft_wrap=True)
        return 0
