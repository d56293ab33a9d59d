"""Played episodes as files, between the job that plays them and the stage that makes something of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..pipeline.artifact import replacing
from ..pipeline.errors import StageError
from ..pipeline.reading import make_again, read_npz, reading_made
from .rollout import EpisodeResult
from .schema import Episode

ARRAYS = ("observations", "actions", "rewards", "success")
_FACTS = [field.name for field in dataclasses.fields(EpisodeResult) if field.name != "episode"]


def write_played(path: Path, results: Sequence[EpisodeResult]) -> None:
    """Write recorded episodes, and what is known of those that failed, as one npz file; it is there whole or not."""
    completed = [result.episode for result in results if result.episode is not None]
    parts = {name: [getattr(one, name) for one in completed] for name in ARRAYS}
    arrays = {name: np.concatenate(own) for name, own in parts.items() if own and own[0] is not None}
    facts = [
        [getattr(result, name) for name in _FACTS]
        + ([] if result.episode is None else [result.episode.terminated, result.episode.label])
        for result in results
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays["facts"] = np.array(json.dumps(facts))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_played(path: Path) -> list[EpisodeResult]:
    """What `write_played` was given.

    Raises:
        StageError: there is no such file, or it is damaged.
    """
    with reading_made(path):
        arrays = read_npz(path, StageError, make_again(path))
        results, first, number = [], 0, 0
        for values in json.loads(str(arrays["facts"])):
            facts = EpisodeResult(**dict(zip(_FACTS, values, strict=False)))
            if len(values) > len(_FACTS):
                steps = slice(first, first + facts.length)
                terminated, label = values[len(_FACTS) :]
                episode = Episode(
                    arrays["observations"][first + number : first + number + facts.length + 1],
                    arrays["actions"][steps],
                    arrays["rewards"][steps],
                    terminated,
                    arrays["success"][steps] if "success" in arrays else None,
                    label,
                )
                facts = dataclasses.replace(facts, episode=episode)
                first, number = first + facts.length, number + 1
            results.append(facts)
        return results
