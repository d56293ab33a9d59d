"""`orrery clean`: delete the artifacts and interrupted attempts of earlier settings that a run keeps."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .errors import StageError
from .kept import list_kept, remove_kept
from .lock import locked
from .wording import sentence


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    text = "delete artifacts and interrupted attempts of earlier settings"
    command = commands.add_parser("clean", help=text, description=sentence(text))
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run, a study or an iteration")
    command.add_argument("--plan", action="store_true", help="list what would be deleted, with sizes; delete nothing")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the command."""
    folder = arguments.run_dir
    if not folder.is_dir():
        raise StageError(f"there is no folder {folder.absolute()}; `orrery ls FOLDER` lists runs")
    if not (found := list_kept(folder)):
        console.print(Text(f"{folder} has no artifacts of earlier settings"), soft_wrap=True)
        return 0
    table = Table("stage", "size", "kept", box=None, pad_edge=False)
    for one in found:
        table.add_row(one.place.name, f"{one.bytes / 2**20:,.1f} MiB", Text(one.content))
    console.print(table)
    if not arguments.plan:
        with locked(folder):
            for one in found:
                remove_kept(one)
    verb = "would be freed" if arguments.plan else "freed"
    console.print(f"{sum(one.bytes for one in found) / 2**20:,.1f} MiB {verb}")
    return 0
