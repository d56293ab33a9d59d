"""Where the parts of a transition are in an HDF5 file: given by a column map, or recognised from common names.

Decides which names are recognised and what a column map may say; `hdf5.py` reads what it names.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import h5py

from ..pipeline.errors import DatasetError
from ..pipeline.paths import user_path
from ..pipeline.reading import check_yaml, decode, reading
from .spaces import looks_like_images

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "observation": ("observations", "observation", "obs"),
    "action": ("actions", "action"),
    "reward": ("rewards", "reward"),
    "terminated": ("terminals", "terminations", "terminated", "dones", "done"),
    "truncated": ("timeouts", "truncations", "truncated"),
    "success": ("success",),
    "next_observation": ("next_observations", "next_observation", "next_obs"),
}
"""Recognised names, the first found wins: those of D4RL, robomimic, Minari and Gymnasium."""


_MOST_COMPRESSED = 1032
"""Bytes that deflate makes one of, at the most."""


@dataclass(frozen=True)
class ColumnMap:
    """Names of an HDF5 file's columns, relative to an episode's group, or to the root of a flat file."""

    observation: tuple[str, ...] = ("observations",)
    """Concatenated in this order. `obs/*` stands for everything in a group, sorted by name."""
    action: str = "actions"
    reward: str = "rewards"
    terminated: str | None = None
    truncated: str | None = None
    """Marks the last transition of an episode that was cut off. Only flat files need it."""
    success: str | None = None
    next_observation: tuple[str, ...] = ()
    """In the order of `observation`; where the final observation of an episode is found."""
    episode_group: str | None = None
    """Pattern of the groups that hold one episode each, such as `data/demo_*`; None for a flat file."""

    @classmethod
    def load(cls, given: ColumnMap | Mapping[str, Any] | str | Path) -> ColumnMap:
        """The map itself, or one made from a mapping of its fields or from a YAML file of them.

        Raises:
            DatasetError: there is no such file, or it holds something other than these fields.
        """
        if isinstance(given, ColumnMap):
            return given
        where = "column map"
        if isinstance(given, str | Path):
            from omegaconf import OmegaConf

            where = f"column map {given}"
            path = user_path(given)
            check_yaml(path, DatasetError)
            with reading(path, DatasetError, "correct it"):
                given = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
        names = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(given, Mapping):
            raise DatasetError(f"{where}: expected the keys {', '.join(names)}; found a {type(given).__name__}")
        values = dict(given)
        for key in values:
            if key not in names:
                nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0)[0]
                raise DatasetError(f"{where}: unknown key {key!r}, nearest is {nearest!r}; known: {', '.join(names)}")
        for key in ("observation", "next_observation"):
            if key in values:
                keys = values[key] or ()
                values[key] = (keys,) if isinstance(keys, str) else keys
        try:
            return decode(cls, values)
        except ValueError as error:
            raise DatasetError(f"{where}: {error}") from error

    def resolve(self, file: h5py.File) -> ColumnMap:
        """This map with `group/*` expanded, after checking that every column is there.

        Raises:
            DatasetError: a column is missing or is not one; says which there are.
        """
        path, group = file.filename, self.groups(file)[0]
        there = _columns_of(file[group])

        def expand(keys: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(
                name for key in keys for name in ([c for c in there if fnmatchcase(c, key)] if "*" in key else [key])
            )

        found = dataclasses.replace(
            self, observation=expand(self.observation), next_observation=expand(self.next_observation)
        )
        if not found.observation:
            raise DatasetError(f"{path}: no column matches {', '.join(self.observation)}; {group} has {_listed(there)}")
        named = [("observation", key) for key in found.observation]
        named += [("next_observation", key) for key in found.next_observation]
        named += [
            (part, key)
            for part in ("action", "reward", "terminated", "truncated", "success")
            if (key := getattr(found, part)) is not None
        ]
        for part, key in named:
            if key not in there:
                raise DatasetError(
                    f"{path}: no {part} column {key!r} in {group}, which has {_listed(there)}; "
                    f"name the right one in a column map ({part}: NAME), or add it to the file"
                )
        for key in found.observation:
            if looks_like_images(file[group][key].shape[1:], file[group][key].dtype):
                raise DatasetError(
                    f"{path}: observation column {key!r} has shape {file[group][key].shape}, which looks like images; "
                    f"learning from pixels is not supported: list the other observation columns in a column map"
                )
        if found.next_observation and len(found.next_observation) != len(found.observation):
            raise DatasetError(
                f"{path}: next_observation names {list(found.next_observation)}, observation "
                f"{list(found.observation)}; expected the same parts in the same order"
            )
        return found

    def reorder(self, order: Sequence[int]) -> ColumnMap:
        """This map, resolved, with the parts of an observation at these positions, in this order."""
        following = tuple(self.next_observation[i] for i in order) if self.next_observation else ()
        return dataclasses.replace(
            self, observation=tuple(self.observation[i] for i in order), next_observation=following
        )

    def groups(self, file: h5py.File) -> list[str]:
        """Paths of the groups that hold an episode each, numbers in order; `/` alone for a flat file."""
        if self.episode_group is None:
            return ["/"]
        found = ["/"]
        for part in self.episode_group.strip("/").split("/"):
            found = [
                f"{parent.rstrip('/')}/{key}"
                for parent in found
                for key in file[parent]
                if fnmatchcase(key, part) and isinstance(file[parent][key], h5py.Group)
            ]
        if not found:
            raise DatasetError(
                f"{file.filename}: no group matches episode_group {self.episode_group!r}; "
                f"at the top there are {_listed(list(file))}"
            )
        return sorted(found, key=_natural)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def detect_columns(file: h5py.File) -> ColumnMap:
    """The column map of a flat file, or of one with a group per episode at the top or below `data`.

    Raises:
        DatasetError: no actions in any of these places.
    """
    if any(isinstance(file.get(key), h5py.Dataset) for key in SPELLINGS["action"]):
        return _recognise(file, None)
    for parent, pattern in (("data", "data/*"), ("/", "*")):
        children = file[parent].values() if isinstance(file.get(parent), h5py.Group) else ()
        for child in children:
            if isinstance(child, h5py.Group) and any(key in child for key in SPELLINGS["action"]):
                return _recognise(child, pattern)
    raise DatasetError(
        f"{file.filename}: layout not recognised: expected 'observations', 'actions' and 'rewards' at the top, or in "
        f"one group per episode at the top or below 'data'; found {_listed(list(file))}. "
        "Give a column map that names them"
    )


def _recognise(group: h5py.Group, episode_group: str | None) -> ColumnMap:
    found = {part: next((key for key in keys if key in group), None) for part, keys in SPELLINGS.items()}

    def parts(part: str) -> tuple[str, ...]:
        key = found[part]
        if key is None:
            return ()
        return (f"{key}/*",) if isinstance(group[key], h5py.Group) else (key,)

    return ColumnMap(
        observation=parts("observation") or ("observations",),
        action=found["action"] or "actions",
        reward=found["reward"] or "rewards",
        terminated=found["terminated"],
        truncated=found["truncated"],
        success=found["success"],
        next_observation=parts("next_observation"),
        episode_group=episode_group,
    )


def check_size(column: h5py.Dataset) -> None:
    """Raise a DatasetError where a column says that it is larger than the whole file can hold."""
    if (column.size or 0) * column.dtype.itemsize > _MOST_COMPRESSED * column.file.id.get_filesize():
        raise DatasetError(
            f"{column.file.filename}: {column.name} says that it is {list(column.shape)} {column.dtype}, more than the "
            "file can hold; it is damaged, fetch or write it again"
        )


def _columns_of(group: h5py.Group) -> list[str]:
    """Paths of all datasets below a group, sorted."""
    found: list[str] = []
    group.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return sorted(found)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:12]) or "nothing"
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


def _natural(name: str) -> list[Any]:
    """Sort key under which demo_2 comes before demo_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
