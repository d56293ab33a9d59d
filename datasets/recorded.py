"""Episodes of a replay in one file, from mrq_online and baselines for replay_datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..pipeline.errors import StageError
from ..pipeline.reading import make_again, read_npz, reading_made
from .schema import Episode


def write_episodes(path: Path, episodes: Sequence[Episode], keys: str) -> None:
    """Write episodes one after another into an npz file.

    Args:
        keys: of the configuration, of which more gives complete episodes.
    Raises:
        StageError: there is none, or observations are images.
    """
    if not episodes:
        raise StageError(f"{path}: no complete episode was played; use more {keys}")
    if episodes[0].observations.ndim != 2:
        raise StageError(
            f"{path}: datasets of images are not supported, observations are {episodes[0].observations.shape[1:]}; "
            "set keep_replay=false for tasks learned from pixels"
        )
    np.savez(
        path,
        observations=np.concatenate([episode.observations for episode in episodes]),
        actions=np.concatenate([episode.actions for episode in episodes]),
        rewards=np.concatenate([episode.rewards for episode in episodes]),
        success=np.concatenate([episode.success for episode in episodes if episode.success is not None]),
        lengths=np.array([len(episode) for episode in episodes]),
        terminated=np.array([episode.terminated for episode in episodes]),
    )


def read_episodes(path: Path, label: str, with_success: bool) -> list[Episode]:
    """Read what `write_episodes` wrote; `label` names the source in errors."""
    with reading_made(path):
        return _episodes(read_npz(path, StageError, make_again(path)), label, with_success)


def _episodes(values: Mapping[str, np.ndarray], label: str, with_success: bool) -> list[Episode]:
    ends = np.cumsum(values["lengths"])
    episodes = []
    for number, (end, length) in enumerate(zip(ends, values["lengths"], strict=True)):
        begin, first_row = end - length, end - length + number
        episodes.append(
            Episode(
                observations=values["observations"][first_row : first_row + length + 1],
                actions=values["actions"][begin:end],
                rewards=values["rewards"][begin:end],
                terminated=bool(values["terminated"][number]),
                success=values["success"][begin:end] if with_success else None,
                label=f"{label}:episode_{number}",
            )
        )
    return episodes
