"""Checks of every episode before packing: errors abort, anomalies warn.

Dimension letters: T steps of an episode, O observation, A action.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..pipeline.errors import DatasetError
from ..pipeline.wording import counted
from .schema import Episode, TaskSpec

ACTION_TOLERANCE = 1e-3
"""How far beyond [-1, 1] an action may lie: more than float32 rounding after scaling, less than a wrong scale."""


@dataclass
class Findings(Mapping[str, Any]):
    """Anomalies that were accepted; a mapping of its fields, ready for JSON. Complete after the last episode."""

    episodes: int = 0
    transitions: int = 0
    unused_episodes: int = 0
    """Not terminated and shorter than the window, so that no window fits."""
    duplicate_episodes: int = 0
    """Same content as an earlier episode."""
    constant_observations: list[str] = field(default_factory=list)
    """Constant observation columns."""
    notes: list[str] = field(default_factory=list)
    """Harmless anomalies, such as constant columns, which every Meta-World task has."""
    warnings: list[str] = field(default_factory=list)
    """Probable mistakes."""

    def __getitem__(self, key: str) -> Any:
        if key not in tuple(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (f.name for f in dataclasses.fields(self))

    def __len__(self) -> int:
        return len(dataclasses.fields(self))


def validate(
    episodes: Iterable[Episode],
    spec: TaskSpec,
    window: int,
    findings: Findings | None = None,
    columns: Sequence[str] = (),
) -> Iterator[Episode]:
    """Check and yield episodes, one at a time.

    Args:
        episodes: of one task; read once.
        spec: the expected task.
        window: steps per training window.
        findings: filled as episodes pass; totals and warnings follow after the last one.
        columns: names of the O observation columns for messages, as a reader's `source["columns"]`.

    Raises:
        DatasetError: at the first invalid episode; after the last one, if there was none or all are too short.
    """
    findings = Findings() if findings is None else findings
    labels: set[str] = set()
    first_with: dict[bytes, str] = {}
    repeats: list[tuple[str, str]] = []
    lowest = np.full(spec.observation_dim, np.inf, np.float32)
    highest = -lowest
    rewarded = False
    longest = cut = 0
    ended: Counter[tuple[int, bool]] = Counter()
    for index, episode in enumerate(episodes):
        label = episode.label or f"episode {index}"
        if label in labels:
            raise DatasetError(
                f"{label}: two episodes of task {spec.name!r} have this label; expected each once. "
                "List each dataset once, or give the episodes different names"
            )
        labels.add(label)
        check_episode(episode, spec, label, columns)
        content = _digest(episode)
        if content in first_with:
            repeats.append((label, first_with[content]))
        first_with.setdefault(content, label)
        np.minimum(lowest, episode.observations.min(axis=0), out=lowest)
        np.maximum(highest, episode.observations.max(axis=0), out=highest)
        rewarded = rewarded or bool(episode.rewards.any())
        longest = max(longest, len(episode))
        ended[len(episode), episode.terminated] += 1
        cut += len(episode) < spec.episode_length and not episode.terminated
        findings.episodes += 1
        findings.transitions += len(episode)
        # A terminated episode is padded past its end, so every length of it gives windows.
        findings.unused_episodes += len(episode) < window and not episode.terminated
        yield episode

    if findings.episodes == 0:
        raise DatasetError(f"task {spec.name!r}: the dataset holds no episode; expected at least one")
    if findings.unused_episodes == findings.episodes:
        raise DatasetError(
            f"task {spec.name!r}: all {findings.episodes} episodes are shorter than the window of {window} steps "
            f"(longest: {longest}); choose a shorter window, or collect longer episodes"
        )
    findings.duplicate_episodes = len(repeats)
    findings.constant_observations = [_column(columns, column) for column in np.flatnonzero(lowest == highest).tolist()]
    if shown := findings.constant_observations:
        names = ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
        findings.notes.append(
            f"{counted(len(shown), 'observation column')} never {'changes' if len(shown) == 1 else 'change'}: {names}"
        )
    findings.warnings += _warnings(findings, repeats, rewarded, window) + time_limit_warnings(ended)
    # Without next observations every episode lacks its last step, which is harmless.
    if cut and (spec.score_kind == "return_per_1000" or longest < spec.episode_length - 1):
        findings.warnings.append(
            f"{cut} of {findings.episodes} episodes are shorter than the task's {spec.episode_length} steps: their "
            "returns, and so the score of the data's behaviour, cover only part of an episode"
        )


def time_limit_warnings(ended: Mapping[tuple[int, bool], int]) -> list[str]:
    """Return warnings if a time limit seems to be recorded as terminations.

    Args:
        ended: number of episodes by their length and whether they terminated.
    """
    longest = max((length for length, _ in ended), default=0)
    at_longest, cut_off = ended.get((longest, True), 0), ended.get((longest, False), 0)
    total = sum(number for (_, terminated), number in ended.items() if terminated)
    if at_longest < 2 or 2 * at_longest < total or cut_off:
        return []
    return [
        f"{at_longest:,} of the {total:,} episodes that terminate do so after exactly {longest:,} steps, and no "
        "episode is longer: this looks like a time limit. Values are not bootstrapped beyond a termination; mark such "
        "episodes as truncated (in an HDF5 column map, truncated: NAME instead of terminated: NAME)"
    ]


def check_episode(episode: Episode, spec: TaskSpec, label: str, columns: Sequence[str]) -> None:
    """Raise a DatasetError unless an episode has its task's shapes and numbers that can be learned from.

    Args:
        label, columns: for the message; see `validate`.
    """
    _check_shapes(episode, spec, label)
    _check_values(episode, label, columns)


def _check_shapes(episode: Episode, spec: TaskSpec, label: str) -> None:
    length = len(episode.actions)
    if length == 0:
        raise DatasetError(f"{label}: has no transitions; expected at least one. Remove it from the dataset")
    expected = {
        "observations": (length + 1, spec.observation_dim),
        "actions": (length, spec.action_dim),
        "rewards": (length,),
    }
    if episode.success is not None:
        expected["success"] = (length,)
    for part, shape in expected.items():
        found = getattr(episode, part).shape
        if found[:1] != shape[:1]:
            raise DatasetError(
                f"{label}: {length} actions and {found[0] if found else 0} {part}; expected {shape[0]} {part} "
                f"({'one more than actions' if part == 'observations' else 'one per action'}). "
                "Correct or remove that episode"
            )
        if found != shape:
            raise DatasetError(
                f"{label}: {part} have shape {found}, task {spec.name!r} expects {shape}; "
                "remove that episode or correct the task's dimensions"
            )


def _check_values(episode: Episode, label: str, columns: Sequence[str]) -> None:
    for part in ("observations", "actions", "rewards"):
        values = getattr(episode, part)
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            time, *column = (int(i) for i in wrong[0])
            more = f", and {len(wrong) - 1} more in this episode" if len(wrong) > 1 else ""
            raise DatasetError(
                f"{label}: {_place(part, column, columns)} at t = {time} is {values[tuple(wrong[0])]}{more}; "
                "expected finite numbers. Repair or remove that episode in the dataset"
            )
    beyond = np.argwhere(np.abs(episode.actions) > 1 + ACTION_TOLERANCE)
    if len(beyond):
        time, component = (int(i) for i in beyond[0])
        raise DatasetError(
            f"{label}: {_place('actions', [component], ())} at t = {time} is {episode.actions[time, component]:g} "
            "after scaling; expected -1..1. Set the true bounds with pack.sources.NAME.action_low and action_high, "
            "or correct the data"
        )


def _place(part: str, column: Sequence[int], columns: Sequence[str]) -> str:
    if not column:
        return part.removesuffix("s")
    name = f" ({_column(columns, column[0])})" if part == "observations" and columns else ""
    return f"{part.removesuffix('s')} column {column[0]}{name}"


def _column(columns: Sequence[str], index: int) -> str:
    return columns[index] if index < len(columns) else f"observation[{index}]"


def _digest(episode: Episode) -> bytes:
    content = hashlib.blake2b(digest_size=16)
    for values in (episode.observations, episode.actions, episode.rewards):
        content.update(np.ascontiguousarray(values).data)
    return content.digest()


def _warnings(findings: Findings, repeats: Sequence[tuple[str, str]], rewarded: bool, window: int) -> list[str]:
    said = []
    if not rewarded:
        said.append("every reward is zero: no policy can be learned from it")
    if repeats:
        said.append(
            f"{counted(len(repeats), 'episode')} with the same content as an earlier one: first {repeats[0][0]}, which "
            f"equals {repeats[0][1]}"
        )
    if findings.unused_episodes:
        said.append(
            f"{findings.unused_episodes} of {findings.episodes} episodes are shorter than the window of {window} "
            "steps and give no training window"
        )
    return said
