"""`orrery play`: look at a policy in its task."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ...pipeline.command import Command, read_words
from ...pipeline.errors import ConfigError
from .arguments import add_policy_arguments

if TYPE_CHECKING:
    from ...datasets.rollout import EpisodeResult


class Play(Command):
    """Render a policy's episodes as a video, or as curves."""

    help = "record a policy in its task as GIF, MP4 or curves (PNG)"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_policy_arguments(
            parser, "select one policy of several; for a single policy, task= plays another task of the same shape"
        )
        parser.add_argument("--episodes", type=int, default=1, metavar="N", help="episodes to record (default: 1)")
        parser.add_argument(
            "--out",
            type=Path,
            metavar="FILE",
            help="output file, .gif, .mp4 or .png (default: TASK.gif, or TASK.png if the task cannot be rendered)",
        )
        parser.add_argument(
            "--size", type=int, default=240, metavar="PIXELS", help="width and height of a frame (default: 240)"
        )
        parser.add_argument(
            "--seed",
            type=int,
            default=0,
            metavar="N",
            help="random seed of the start states, like evaluate.seed (default: 0)",
        )

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        wishes = read_words(arguments.overrides, ("task", "algorithm", "seed"))
        for name in ("episodes", "size"):
            if getattr(arguments, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, found {getattr(arguments, name)}")
        from .choice import made_by, read_policy
        from .playing import play

        policy = read_policy(arguments.policy, wishes)
        made = made_by(policy)
        console.print(f"{made['algorithm']} of {policy.task.name}, seed {made['seed']}", soft_wrap=True)
        task = wishes.get("task")
        played = play(
            policy,
            arguments.out,
            task=None if task in (None, policy.task.name) else task,
            episodes=arguments.episodes,
            seed=arguments.seed,
            size=arguments.size,
            on_episode=lambda index, result: console.print(_line(index, result)),
        )
        returns = [result.return_ for result in played.results]
        if len(returns) > 1:
            console.print(f"mean return {sum(returns) / len(returns):.1f}")
        video = f", {played.frames} frames, {played.frames_per_second:.3g} per second" if played.frames else ""
        size = played.out.stat().st_size / 1e6
        console.print(f"wrote {played.out} ({size:.2f} MB{video})", soft_wrap=True)
        return 0


def _line(index: int, result: EpisodeResult) -> str:
    words = [f"episode {index}: return {result.return_:.1f}, {result.length} steps"]
    if result.success_any is not None:
        words.append("success" if result.success_any else "no success")
    return ", ".join(words)
