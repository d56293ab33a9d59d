"""An episode as curves: what a task looks like that nothing draws, or where no OpenGL is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...datasets.schema import Episode
from .video import partial

SHOWN = 12
"""Observation columns with the largest spread; more lines could not be told apart."""


def draw_curves(episodes: Sequence[Episode], title: str, out: Path) -> None:
    """Observations, actions and summed reward over steps, one column of plots per episode, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 5 * len(episodes), 7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(3, len(episodes), sharex="col", sharey="row", squeeze=False)
    spread = np.concatenate([episode.observations for episode in episodes]).std(0)
    shown = np.sort(np.argsort(-spread, kind="stable")[:SHOWN])
    for column, episode in zip(axes.T, episodes, strict=True):
        seen, done, earned = column
        seen.plot(episode.observations[:, shown], linewidth=1)
        done.step(np.arange(len(episode.actions)), episode.actions, where="post", linewidth=1)
        earned.plot(np.arange(1, len(episode.rewards) + 1), np.cumsum(episode.rewards), linewidth=1)
        earned.set_xlabel("step")
    left = axes[:, 0]
    left[0].set_ylabel("observation")
    left[1].set_ylabel("action, scaled to [-1, 1]")
    left[2].set_ylabel("reward so far")
    axes[0, -1].legend([f"[{index}]" for index in shown], fontsize="x-small", ncols=2)
    figure.savefig(partial(out), dpi=100)
    partial(out).replace(out)
