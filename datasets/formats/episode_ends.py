"""Where the episodes of a table of rows end, from the columns that say so.

Decides which columns mark ends, under which names, and what each means; pure functions of arrays. `columns.py` finds
the columns in a file, `table_reader.py` reads them.

Dimension letters: N rows, E episodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...pipeline.errors import DatasetError


@dataclass(frozen=True)
class EndPart:
    """One way in which a column says where episodes end."""

    meaning: str
    per_row: bool
    """Whether it has a value for every row of the table; otherwise one for every episode."""
    names: tuple[str, ...]
    """Recognised names, the first found wins."""


END_PARTS: Mapping[str, EndPart] = {
    "terminated": EndPart(
        "set at the last row of an episode that reached a terminal state",
        True,
        ("terminals", "terminations", "terminated", "terminateds", "is_terminal"),
    ),
    "not_terminated": EndPart("zero if an episode reached a terminal state", True, ("masks", "discount", "discounts")),
    "truncated": EndPart(
        "set at the last row of a truncated episode",
        True,
        ("timeouts", "truncations", "truncated", "truncateds"),
    ),
    "done": EndPart(
        "set at the last row of an episode; a termination unless truncated is set", True, ("dones", "done")
    ),
    "last": EndPart(
        "set at the last row of every episode, however it ended", True, ("is_last", "episode_terminals", "episode_ends")
    ),
    "not_last": EndPart("zero at the last row of every episode", True, ("valids",)),
    "first": EndPart("set at the first row of every episode", True, ("is_first", "episode_starts")),
    "episode": EndPart(
        "the same number in all rows of an episode",
        True,
        ("episode_index", "episode_idx", "episode_id", "episode_ids", "ep_idx", "traj_id", "traj_ids", "trajectory_id"),
    ),
    "lengths": EndPart(
        "rows of each episode",
        False,
        ("ep_len", "ep_lens", "ep_lengths", "episode_lengths", "episode_length", "traj_lengths", "traj_length"),
    ),
    "starts": EndPart("number of each episode's first row", False, ("ep_offset", "ep_offsets", "episode_starts")),
    "ends": EndPart("number of the row after each episode's last", False, ("episode_ends", "traj_ends")),
}
"""By key of a column map: the names of D4RL, d3rlpy, Gymnasium, Minari, OGBench, RLDS and Dreamer, Stable-Baselines3,
LeRobot, diffusion policy and stable-worldmodel."""

_WORDS = re.compile(
    r"(?:^|[^a-z])(?:dones?|terminals?|terminat(?:eds?|ions?)|time_?(?:out|limit)s?|truncat(?:eds?|ions?)|lasts?|firsts?|"
    r"ends?|starts?|resets?|fail(?:ed|ures?)?|steps?|time_?steps?|frame_index|masks?|discounts?|continues?|valids?|boundar(?:y|ies)|episodes?|ep|traj|trajectory|trajectories)(?:$|[^a-z])"
)


@dataclass(frozen=True)
class EpisodeEnds:
    """The episodes of a table, in order."""

    starts: np.ndarray
    """[E] int64, first row."""
    stops: np.ndarray
    """[E] int64, row after the last."""
    terminated: np.ndarray
    """[E] bool."""
    warnings: list[str]


def find_ends(
    columns: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    num_rows: int,
    where: str,
    *,
    rows_per_episode: int | None = None,
    group_stops: np.ndarray | None = None,
    unread: Mapping[str, np.ndarray] | None = None,
) -> EpisodeEnds:
    """The episodes of a table: one ends at each mark of any column, and after `rows_per_episode` at the latest.

    Args:
        columns: values by key of END_PARTS: [N] of those that have one per row, [E] of the others.
        names: of the columns by key, for messages.
        num_rows: N.
        where: start of an error message.
        rows_per_episode: longest episode.
        group_stops: [G] rows after the last of each group, where each episode has a group of its own. A group ends at
            its first termination; the rows that follow in it are left out.
        unread: other columns by name, with one number per row or per episode, to name those that seem to mark ends.

    Raises:
        DatasetError: no column marks an end, a mark is not a number, or columns contradict each other or the table.
    """
    terminated, warnings = _terminations(columns, names, num_rows, where)
    known = {key: _stops(key, columns[key], names[key], num_rows, where) for key in _LAYOUTS if key in columns}
    _check_agreement(known, names, where)
    flags = {key: _flags(columns, key, names, num_rows, where) for key in ("truncated", "last", "done", "first")}
    if "not_last" in columns:
        flags["last"] |= ~_flags(columns, "not_last", names, num_rows, where)
    cut = flags["truncated"] | flags["last"] | (flags["done"] & ~terminated)
    cut[np.flatnonzero(flags["first"][1:])] = True
    marks_cuts = bool(known) or any(set_.any() for set_ in flags.values())
    for stops in known.values():
        cut[stops[stops > 0] - 1] = True
    if group_stops is None:
        stops = np.flatnonzero(cut | terminated) + 1
        if not len(stops) and not marks_cuts and rows_per_episode is None:
            one = EpisodeEnds(np.array([0]), np.array([num_rows]), np.array([False]), [])
            raise DatasetError(_nothing_marks(names, num_rows, where) + _candidates(unread or {}, one, names, num_rows))
        if not marks_cuts and rows_per_episode is None and _few(stops, num_rows):
            warnings.append(_only_terminations(stops, names, num_rows))
        starts, stops = _pieces(stops, num_rows, rows_per_episode)
    else:
        cut[group_stops[group_stops > 0] - 1] = True
        starts, stops = _pieces(np.flatnonzero(cut) + 1, num_rows, None)
        first_terminal = np.minimum(_next_set(terminated)[starts] + 1, stops)
        if left_out := int((stops - first_terminal).sum()):
            warnings.append(f"{left_out:,} of {num_rows:,} rows follow a termination in their group and are dropped")
        starts, stops = _capped(starts, first_terminal, rows_per_episode)
    ends = EpisodeEnds(starts, stops, terminated[stops - 1], warnings)
    if said := _candidates(unread or {}, ends, names, num_rows):
        warnings.append(said.removeprefix(". "))
    return ends


def _candidates(unread: Mapping[str, np.ndarray], ends: EpisodeEnds, names: Mapping[str, str], num_rows: int) -> str:
    """A sentence, after a full stop, on columns that are not read and seem to mark ends; empty if there are none."""
    if not (found := look_like_ends(unread, ends, num_rows)):
        return ""
    keys = ", ".join(f"{key}: NAME" for key in END_PARTS if key not in names)
    return (
        f". These unread columns seem to mark ends of episodes: {', '.join(found)}; if they do, name "
        f"them in a column map ({keys})"
    )


def look_like_ends(columns: Mapping[str, np.ndarray], ends: EpisodeEnds, num_rows: int) -> list[str]:
    """Of columns that were not read, by name, those that seem to mark ends of episodes which were not found."""
    found = np.zeros(num_rows + 1, bool)
    found[ends.stops] = found[ends.starts] = found[0] = found[num_rows] = True
    return [name for name, values in columns.items() if _marks_more(name, values, found, num_rows)]


def sounds_like_ends(name: str) -> bool:
    """Whether a column's name speaks of episodes or their ends."""
    return _WORDS.search(name.lower().rpartition("/")[2]) is not None


def _marks_more(name: str, values: np.ndarray, found: np.ndarray, num_rows: int) -> bool:
    if len(values) != num_rows:
        total = np.cumsum(values).astype(np.int64)
        fits = len(total) and (values >= 0).all() and total[-1] == num_rows
        return bool(fits and not found[total].all())
    if np.isin(values, (0, 1)).all():
        # A flag that is set in most rows marks ends, if it does, where it is not set, as masks do.
        marked = np.flatnonzero(values == (values.mean() < 0.5))
        return 0 < len(marked) < num_rows / 2 and not (found[marked].all() or found[marked + 1].all())
    steps = np.diff(values)
    # A step counter starts again where an episode does; a number of the episode changes there.
    changes = np.flatnonzero(steps < 0 if (steps == 1).mean() > 0.5 else steps) + 1
    return 0 < len(changes) < num_rows / 2 and not found[changes].all()


_MANY = 10
"""Terminations that are not taken for stray ones."""
_LAYOUTS = ("episode", "lengths", "starts", "ends")
"""Parts that say where every episode is, rather than flag some rows."""


def _flags(
    columns: Mapping[str, np.ndarray], key: str, names: Mapping[str, str], num_rows: int, where: str
) -> np.ndarray:
    """[N] bool; all False if there is no such column."""
    if key not in columns:
        return np.zeros(num_rows, bool)
    return as_flags(columns[key], f"{where}: column {names[key]!r}")


def as_flags(values: np.ndarray, where: str, first_row: int = 0) -> np.ndarray:
    """Numbers [N] as flags: set where positive.

    Raises:
        DatasetError: one is negative or not finite; names the first such row, counted from `first_row`.
    """
    if (wrong := np.flatnonzero(~(values >= 0) | (values == np.inf))).size:
        raise DatasetError(
            f"{where} is {values[wrong[0]]} in row {first_row + wrong[0]}; expected flags, 0 or 1. Correct the data"
        )
    return values > 0


def _terminations(
    columns: Mapping[str, np.ndarray], names: Mapping[str, str], num_rows: int, where: str
) -> tuple[np.ndarray, list[str]]:
    """[N] bool, the rows at which an episode reached a terminal state; and what to warn of."""
    truncated = _flags(columns, "truncated", names, num_rows, where)
    if not {"terminated", "not_terminated"} & columns.keys():
        return _flags(columns, "done", names, num_rows, where) & ~truncated, []
    terminated = _flags(columns, "terminated", names, num_rows, where)
    if "not_terminated" in columns:
        terminated = terminated | ~_flags(columns, "not_terminated", names, num_rows, where)
    num_both, num_truncated = int((terminated & truncated).sum()), int(truncated.sum())
    if not num_both:
        return terminated, []
    name = names.get("terminated", names.get("not_terminated"))
    said = f"{name!r} marks {num_both:,} of the {num_truncated:,} rows that {names['truncated']!r} marks as truncated: "
    # Among all cut-offs there are terminations: they are marked as ends in general, or really happened at the limit.
    if 2 * num_both > num_truncated and not num_both == int(terminated.sum()) < num_truncated:
        return terminated & ~truncated, [said + "these episodes count as truncated, not terminated"]
    return terminated, [said + "these episodes count as terminated"]


def _stops(key: str, values: np.ndarray, name: str, num_rows: int, where: str) -> np.ndarray:
    """[E] int64, the row after each episode's last, as one column of _LAYOUTS says."""
    where = f"{where}: column {name!r}"
    whole = values.astype(np.int64) if np.isfinite(values).all() else np.zeros(len(values), np.int64)
    if (whole != values).any() or (key != "episode" and (whole < 0).any()):
        raise DatasetError(f"{where} has a value that is not a non-negative integer; correct the data")
    if key == "episode":
        stops = np.append(np.flatnonzero(whole[1:] != whole[:-1]) + 1, num_rows)
        _check_in_one_piece(whole[stops - 1], np.append(0, stops[:-1]), where)
        return stops
    stops = {"lengths": np.cumsum(whole), "starts": np.append(whole[1:], num_rows), "ends": whole}[key]
    fits = len(whole) > 0 and stops[-1] == num_rows and (np.diff(stops) >= 0).all()
    if not fits or (key == "starts" and whole[0] != 0):
        raise DatasetError(
            f"{where} does not fit the table: it should contain the {END_PARTS[key].meaning}, which {_EXPECTED[key]}, "
            f"{num_rows}; found {whole[:3].tolist()} to {whole[-3:].tolist()}. Correct it, or exclude it with a column "
            "map"
        )
    return stops


_EXPECTED = {
    "lengths": "sum to the number of rows",
    "starts": "rise from 0 and stay below the number of rows",
    "ends": "rise to the number of rows",
}


def _check_in_one_piece(numbers: np.ndarray, starts: np.ndarray, where: str) -> None:
    """Raise a DatasetError if the pieces, whose episode numbers are [P], have an episode more than once."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(numbers)))
    if again.size:
        raise DatasetError(
            f"{where}: episode {numbers[again[0]]} continues in row {starts[again[0]]}, after rows of other episodes; "
            "expected the rows of an episode to be contiguous. Sort the rows by episode and time"
        )


def _check_agreement(known: Mapping[str, np.ndarray], names: Mapping[str, str], where: str) -> None:
    first: tuple[str, np.ndarray] | None = None
    for key, stops in known.items():
        stops = np.unique(stops[stops > 0])
        if first is not None and not np.array_equal(stops, first[1]):
            raise DatasetError(
                f"{where}: columns {names[first[0]]!r} and {names[key]!r} disagree on episode ends; correct one, or "
                "name the one to read in a column map"
            )
        first = first or (key, stops)


def _nothing_marks(names: Mapping[str, str], num_rows: int, where: str) -> str:
    read = " and ".join(repr(name) for name in names.values())
    found = f"found {read}, never set in {num_rows:,} rows" if names else "found no column that marks episode ends"
    return (
        f"{where}: the file does not say where its episodes end: {found}. Name the column that marks the ends in a "
        f"column map ({', '.join(f'{key}: NAME' for key in ('truncated', 'last', 'lengths'))}), or set "
        "pack.sources.NAME.episode_length"
    )


def _few(stops: np.ndarray, num_rows: int) -> bool:
    """Whether terminations [E] are so few that episodes are probably joined between them."""
    if stops[-1] == num_rows:
        return len(stops) == 1
    return len(stops) < _MANY or num_rows - stops[-1] > np.diff(stops, prepend=0).max()


def _only_terminations(stops: np.ndarray, names: Mapping[str, str], num_rows: int) -> str:
    name = names.get("terminated", names.get("not_terminated"))
    longest = int(np.diff(np.unique([0, *stops, num_rows])).max())
    return (
        f"only {name!r} ends episodes, in {len(stops):,} of {num_rows:,} rows (longest episode: {longest:,} rows): "
        "no column marks truncated episodes, so these would be joined with the next one. Set episode_length, or name "
        "the column that marks them in a column map (truncated: NAME)"
    )


def _next_set(flags: np.ndarray) -> np.ndarray:
    """[N] int64, the first row from each on at which a flag is set; N if there is none."""
    rows = np.where(flags, np.arange(len(flags)), len(flags))
    return np.minimum.accumulate(rows[::-1])[::-1]


def _pieces(stops: np.ndarray, num_rows: int, longest: int | None) -> tuple[np.ndarray, np.ndarray]:
    """First rows and rows after the last, of what lies between stops; the rows after the last stop are a piece too."""
    stops = np.unique(np.append(stops, num_rows)).astype(np.int64)
    stops = stops[stops > 0]
    return _capped(np.append(0, stops[:-1])[: len(stops)], stops, longest)


def _capped(starts: np.ndarray, stops: np.ndarray, longest: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The same pieces, none longer than `longest` rows."""
    if longest is None or not len(starts):
        return starts, stops
    counts = -(-(stops - starts) // longest)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    capped = np.repeat(starts, counts) + number * longest
    return capped, np.minimum(capped + longest, np.repeat(stops, counts))
