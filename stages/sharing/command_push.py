"""`orrery push`: publish an artifact on the Hugging Face Hub, or write the publication to a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ...pipeline.command import Command

LOOSE = "published"
"""Default output folder of a dry run."""


class Push(Command):
    """Upload an artifact with its model card, or write both to a folder."""

    help = "publish a world model or policies on the Hugging Face Hub"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.description = (
            "Publish a world model or policies on the Hugging Face Hub: weights, config, tasks, provenance, and a "
            "model card generated from measured results. Anyone with read access can load it by name: "
            "orrery run from_checkpoint world_model=USER/NAME, WorldModel.from_pretrained('USER/NAME')."
        )
        parser.add_argument("path", type=Path, metavar="PATH", help="RUN/pretrain, RUN/extract, or one policy's folder")
        parser.add_argument("name", metavar="USER/NAME", help="repository; created if it does not exist")
        parser.add_argument("--private", action="store_true", help="make the repository private")
        parser.add_argument(
            "--license", default="unknown", metavar="ID", help="license of the weights, as a Hub identifier such as mit"
        )
        parser.add_argument(
            "--without-starts", action="store_true",
            help=
                "do not include start frames, a sample of the training data from which policies can be extracted "
                "without the data"
            ,
        )  # fmt: skip
        parser.add_argument(
            "--dry-run", action="store_true", help="write the folder and the model card; upload nothing"
        )
        parser.add_argument(
            "--output", type=Path, metavar="FOLDER", help=f"output folder of --dry-run (default: {LOOSE}/USER/NAME)"
        )

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        from .publish import check_name, push_to_hub, write_publication

        check_name(arguments.name)
        starts = not arguments.without_starts
        if not arguments.dry_run:
            url = push_to_hub(
                arguments.path, arguments.name, private=arguments.private, licence=arguments.license, starts=starts
            )
            console.print(Text(f"published: {url}"), soft_wrap=True)
            return 0
        folder = arguments.output or Path(LOOSE) / arguments.name
        write_publication(arguments.path, folder, arguments.name, licence=arguments.license, starts=starts)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files) / 2**20
        line = f"{len(files)} files, {size:,.1f} MiB, in {folder}; model card: {folder / 'README.md'}"
        console.print(Text(line), soft_wrap=True)
        console.print(
            "nothing was uploaded; without --dry-run, this would be published as " + arguments.name, soft_wrap=True
        )
        return 0
