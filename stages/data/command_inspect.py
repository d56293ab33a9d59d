"""`orrery inspect`: what a path holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ...pipeline.command import Command
from ...pipeline.tables import add_json, print_json


class Inspect(Command):
    """Show what a path holds, in one screen."""

    help = "show the contents of a run, an artifact, a dataset or a weight file"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "path", type=Path, metavar="PATH", help="RUN, RUN/pack, arm.hdf5, a Minari id, model.safetensors, ..."
        )
        add_json(parser)

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        from .inspect import describe, render

        contents = describe(arguments.path)
        if arguments.json:
            print_json(contents, console)
        else:
            console.print(render(contents))
        return 0
