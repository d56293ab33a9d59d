"""`orrery evaluate`: score policies on their tasks, by the protocol of the stage evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ...pipeline.command import Command, read_words
from ...pipeline.errors import ConfigError, TaskError
from ...pipeline.tables import add_json, print_json, rows_table

WORDS = ("task", "algorithm", "seed")


class EvaluatePolicies(Command):
    """Play the episodes that the stage evaluate plays, with any policy."""

    help = "score policies of this project, ONNX, torch.export and TorchScript files, and Python functions on a task"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = "%(prog)s [OPTIONS] POLICY [POLICY ...] [task=NAME] [algorithm=NAME] [seed=N]"
        parser.add_argument(
            "overrides",
            nargs="+",
            metavar="POLICY",
            help="policy folder, RUN/extract, run folder, Hub id, FILE.onnx, FILE.pt2, FILE.pt (TorchScript) or "
            "module:function; files and functions need task=; algorithm= and seed= select policies of a folder",
        )
        parser.add_argument("--episodes", type=int, default=10, metavar="N", help="episodes per policy (default: 10)")
        parser.add_argument(
            "--seed", type=int, default=0, metavar="N", help="random seed, like evaluate.seed (default: 0)"
        )
        parser.add_argument("--workers", type=int, default=1, metavar="N", help="parallel processes (default: 1)")
        parser.add_argument("--video", type=Path, metavar="FILE", help="record the first episode as .gif, .mp4 or .png")
        add_json(parser)

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        words = [word for word in arguments.overrides if word.partition("=")[0] in WORDS]
        references = [word for word in arguments.overrides if word not in words]
        wishes = read_words(words, WORDS)
        if not references:
            raise ConfigError("name at least one policy: a folder, a file or module:function")
        for name in ("episodes", "workers"):
            if getattr(arguments, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, found {getattr(arguments, name)}")
        from .evaluating import evaluate_policies, find_policies, record_video

        found = [one for reference in references for one in find_policies(reference, wishes)]
        if arguments.video is not None and len(found) > 1:
            raise ConfigError(
                f"--video records one policy, found {len(found)}; select one with task=, algorithm=, seed="
            )
        rows = evaluate_policies(found, arguments.episodes, arguments.seed, arguments.workers)
        if arguments.video is not None:
            rows[0]["video"] = record_video(found[0], arguments.video, arguments.seed)
        if arguments.json:
            print_json(rows, console)
        else:
            shown = ("policy", "task", "episodes", "return_mean", "return_std", "success_rate", "score", "video")
            console.print(rows_table([{key: row[key] for key in shown if key in row} for row in rows]))
            for row in rows:
                if row["score_problem"]:
                    console.print(f"{row['task']} has no score: {row['score_problem']}", soft_wrap=True)
        failures = [(row, one) for row in rows for one in row["failures"]]
        if failures:
            row, error = failures[0]
            raise TaskError(
                f"{len(failures)} of the episodes failed; the first: {row['policy']} on {row['task']}: {error}"
            )
        return 0
