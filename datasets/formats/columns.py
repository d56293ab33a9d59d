"""Where the parts of a transition are in a file of columns: given by a column map, or recognised from common names.

Decides which names are recognised and what a column map may say; `table_reader.py` reads what it names.
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

from ...pipeline.errors import DatasetError
from ...pipeline.paths import user_path
from ...pipeline.reading import check_yaml, decode, reading
from ..spaces import looks_like_images
from .episode_ends import END_PARTS
from .table import Group, columns_of, is_column, is_group

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "observation": ("observations", "observation", "obs"),
    "action": ("actions", "action"),
    "reward": ("rewards", "reward"),
    "success": ("success",),
    "next_observation": ("next_observations", "next_observation", "next_obs"),
}
"""Recognised names, the first found wins: those of D4RL, robomimic, Minari and Gymnasium. END_PARTS has those of
columns that mark ends."""
FLAT_PARENTS = ("/", "data")
"""Groups at which a table of transitions is looked for."""
_FLAT_ONLY = ("episode", "lengths", "starts", "ends")
# Names of a flag in each row in one format, and of a number for each episode in another.
_AMBIGUOUS = {*END_PARTS["first"].names, *END_PARTS["last"].names} & {
    name for part in _FLAT_ONLY for name in END_PARTS[part].names
}


@dataclass(frozen=True)
class ColumnMap:
    """Names of a file's columns, relative to an episode's group, or to the root of a flat file."""

    observation: tuple[str, ...] = ("observations",)
    """Concatenated in this order. `obs/*` stands for everything in a group, sorted by name."""
    action: str = "actions"
    reward: str | None = "rewards"
    """None for data without rewards: every reward is 0."""
    terminated: str | None = None
    """Set at the last row of an episode that reached a terminal state."""
    not_terminated: str | None = None
    """Zero where an episode reached a terminal state, such as OGBench's `masks`."""
    truncated: str | None = None
    """Set at the last row of an episode that was cut off."""
    done: str | None = None
    """Set at the last row of every episode; a termination unless `truncated` or another column says otherwise."""
    last: str | None = None
    """Set at the last row of every episode, however it ended."""
    not_last: str | None = None
    """Zero at the last row of every episode, such as OGBench's `valids`."""
    first: str | None = None
    """Set at the first row of every episode."""
    episode: str | None = None
    """The same number in all rows of an episode. This and the next three apply to flat files only."""
    lengths: str | None = None
    """Rows of each episode; one value per episode."""
    starts: str | None = None
    """Number of each episode's first row."""
    ends: str | None = None
    """Number of the row after each episode's last."""
    shifted: bool = False
    """Whether a row holds the action and reward that led to its observation, as in Dreamer's and TD-MPC2's buffers;
    those of an episode's first row are not used. Otherwise they follow its observation."""
    final_row: bool = False
    """Whether the last row of an episode holds its final observation only, as in RLDS; its action and reward are not
    used."""
    success: str | None = None
    next_observation: tuple[str, ...] | None = None
    """In the order of `observation`; where the final observation of an episode is found. None: the columns that are
    named as those of `observation` with `next_` before, where all are there; empty: not read."""
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
            found = decode(cls, values)
        except ValueError as error:
            raise DatasetError(f"{where}: {error}") from error
        if found.next_observation and (found.shifted or found.final_row):
            raise DatasetError(
                f"{where}: next_observation and {'shifted' if found.shifted else 'final_row'} exclude each other: "
                "with either, the next observation is that of the next row; remove one of them"
            )
        if found.episode_group and (extra := [key for key in _FLAT_ONLY if getattr(found, key)]):
            raise DatasetError(
                f"{where}: {', '.join(extra)} apply to flat files, but with episode_group each group is an episode; "
                "remove one of them"
            )
        return found

    @property
    def ends_named(self) -> dict[str, str]:
        """The columns that mark ends of episodes, by their part."""
        return {part: name for part in END_PARTS if (name := getattr(self, part)) is not None}

    @property
    def one_more_row(self) -> bool:
        """Whether an episode of T transitions has T + 1 rows, the last with its final observation."""
        return self.shifted or self.final_row

    def resolve(self, file: Group, group: str) -> ColumnMap:
        """This map with `group/*` expanded, after checking that every column is there.

        Args:
            file: the file.
            group: path of the first episode's group, as `groups` gives it.

        Raises:
            DatasetError: a column is missing or is not one; says which there are.
        """
        path = file.filename
        there = columns_of(file[group])

        def expand(keys: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(
                name for key in keys for name in ([c for c in there if fnmatchcase(c, key)] if "*" in key else [key])
            )

        observation = expand(self.observation)
        following = (
            self._following(observation, file[group]) if self.next_observation is None else self.next_observation
        )
        found = dataclasses.replace(self, observation=observation, next_observation=expand(following))
        if not found.observation:
            raise DatasetError(f"{path}: no column matches {', '.join(self.observation)}; {group} has {_listed(there)}")
        named = [("observation", key) for key in found.observation]
        named += [("next_observation", key) for key in found.next_observation or ()]
        named += [
            (part, key)
            for part in ("action", "reward", *END_PARTS, "success")
            if (key := getattr(found, part)) is not None
        ]
        for part, key in named:
            if key not in there:
                raise DatasetError(
                    f"{path}: no {part} column {key!r} in {group}, which has {_listed(there)}; "
                    f"name the correct one in a column map ({part}: NAME), or add it to the file"
                    + ("; reward: null reads data without rewards" if part == "reward" else "")
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

    def _following(self, observation: tuple[str, ...], group: Group) -> tuple[str, ...]:
        """The columns of the next observation, recognised by their names and shapes; all of them or none."""
        found = []
        for key in observation:
            parts = key.split("/")
            names = ("/".join([*parts[:at], f"next_{parts[at]}", *parts[at + 1 :]]) for at in range(len(parts)))
            found += [name for name in names if _same_rows(group, name, key)][:1]
        return tuple(found) if len(found) == len(observation) and not self.one_more_row else ()

    def left_out(self, group: Group) -> list[str]:
        """What to warn of where this map, resolved, reads no next observation though the group seems to hold it."""
        names = [name for name in columns_of(group) if {*SPELLINGS["next_observation"]} & {*name.split("/")}]
        if self.next_observation or self.one_more_row or not names:
            return []
        return [
            f"{names[0]!r} is not read, because its name does not match the columns of observation "
            f"({', '.join(self.observation)}). Set next_observation: {names[0]} in the column map if it is the next "
            "observation, or next_observation: [] to ignore it"
        ]

    def reorder(self, order: Sequence[int]) -> ColumnMap:
        """This map, resolved, with the parts of an observation at these positions, in this order."""
        following = tuple(self.next_observation[i] for i in order) if self.next_observation else ()
        return dataclasses.replace(
            self, observation=tuple(self.observation[i] for i in order), next_observation=following
        )

    def groups(self, file: Group) -> tuple[list[str], list[str]]:
        """Paths of the groups that hold an episode each, numbers in order, and of those beside them without actions.

        `/` alone for a flat file; all of them if none has actions.

        Raises:
            DatasetError: no group matches `episode_group`.
        """
        if self.episode_group is None:
            return ["/"], []
        found: list[tuple[str, Group]] = [("", file)]
        for part in self.episode_group.strip("/").split("/"):
            found = [
                (f"{path}/{key}", child)
                for path, parent in found
                for key in parent
                if fnmatchcase(key, part) and is_group(child := parent.get(key))
            ]
        if not found:
            raise DatasetError(
                f"{file.filename}: no group matches episode_group {self.episode_group!r}; "
                f"the file has {_listed(list(file))}"
            )
        has_actions = {path: self.action in group for path, group in found}
        paths = sorted(has_actions, key=_natural)
        episodes = [path for path in paths if has_actions[path]]
        return (episodes, [path for path in paths if not has_actions[path]]) if episodes else (paths, [])

    def to_dict(self) -> dict[str, Any]:
        """The fields that say something."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, False, ())}


def detect_columns(file: Group) -> ColumnMap:
    """The column map of a flat file, or of one with a group per episode at the top or below `data`.

    Raises:
        DatasetError: no actions in any of these places.
    """
    for parent in FLAT_PARENTS:
        if is_group(file.get(parent)) and _action_of(file[parent]):
            return _recognise(file[parent], None)
    for parent, pattern in (("data", "data/*"), ("/", "*")):
        children = file[parent].values() if is_group(file.get(parent)) else ()
        for child in children:
            if is_group(child) and _action_of(child):
                return _recognise(child, pattern)
    raise DatasetError(
        f"{file.filename}: layout not recognised: expected 'observations', 'actions' and 'rewards' at the top level, "
        f"or in one group per episode at the top level or in 'data'; found {_listed(list(file))}. Use a column map "
        "(pack.sources.NAME.columns) that names them"
    )


def _action_of(group: Group) -> str | None:
    return next((key for key in SPELLINGS["action"] if is_column(group.get(key))), None)


def _recognise(group: Group, episode_group: str | None) -> ColumnMap:
    prefix = "" if episode_group or group.name == "/" else f"{group.name.strip('/')}/"
    found = {part: next((key for key in keys if key in group), None) for part, keys in SPELLINGS.items()}

    def parts(part: str) -> tuple[str, ...]:
        key = found[part]
        if key is None:
            return ()
        return (f"{prefix}{key}/*",) if is_group(group[key]) else (prefix + key,)

    ends = _recognise_ends(group, len(group[found["action"] or "actions"]), flat=episode_group is None)
    names = {name.rpartition("/")[2] for name in ends.values()}
    next_observation = parts("next_observation")
    # OGBench's files have no rewards; its terminals are the ends of trajectories, of which each has a final row.
    ogbench = found["reward"] is None and names in ({"terminals"}, {"valids"})
    if ogbench and "terminated" in ends:
        ends = {"last": ends["terminated"]}
    return ColumnMap(
        observation=parts("observation") or (f"{prefix}observations",),
        action=prefix + (found["action"] or "actions"),
        reward=None if ogbench else prefix + (found["reward"] or "rewards"),
        **ends,  # type: ignore[arg-type]
        # RLDS says of an observation that it is the last or terminal, others of a transition that it leads there.
        final_row=not next_observation and (ogbench or bool(names & {"is_last", "is_terminal", "valids"})),
        success=found["success"] and prefix + found["success"],
        next_observation=next_observation,
        episode_group=episode_group,
    )


def _recognise_ends(group: Group, num_rows: int, *, flat: bool) -> dict[str, str]:
    """The columns of a group, or in `meta` beside it, that mark ends of episodes: by part, their paths in the file
    if it is flat, else below the group."""
    places = [group, group.file["meta"]] if flat and is_group(group.file.get("meta")) else [group]
    found: dict[str, str] = {}
    for part, end in END_PARTS.items():
        if not flat and part in _FLAT_ONLY:
            continue
        for place in places:
            for name in end.names:
                column = place.get(name)
                if part in found or not is_column(column) or not column.ndim:
                    continue
                ambiguous = name in _AMBIGUOUS or part in (*_FLAT_ONLY, "not_terminated", "not_last")
                if ambiguous and (column.size != len(column) or (len(column) == num_rows) != end.per_row):
                    continue
                found[part] = f"{place.name}/{name}".strip("/") if flat else name
    names = {part: name.rpartition("/")[2] for part, name in found.items()}
    if names.get("terminated") == "terminals" and "not_last" in found:
        del found["terminated"]  # OGBench, compact: set at the last transition and at the row behind it
    elif names.get("not_terminated") == "masks" and names.get("terminated") == "terminals":
        found["last"] = found.pop("terminated")  # OGBench: terminals are the ends of trajectories
    elif names.get("not_terminated", "").startswith("discount") and not (
        "terminated" not in found and {"is_first", "is_last"} & set(names.values())
    ):
        del found["not_terminated"]  # zero at terminations in dm_env's records only
    return found


def _same_rows(group: Group, one: str, other: str) -> bool:
    """Whether both are columns, with rows of one shape."""
    first, second = group.get(one), group.get(other)
    return is_column(first) and is_column(second) and first.shape[1:] == second.shape[1:]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:12]) or "nothing"
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


def _natural(name: str) -> list[Any]:
    """Sort key under which demo_2 comes before demo_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
