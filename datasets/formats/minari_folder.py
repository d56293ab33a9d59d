"""The folder of a Minari dataset: where it is found, and what its metadata and its file state.

Decides which folder an id means, whether every episode is there, and which environment the dataset states; `minari.py`
reads the episodes.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from ...pipeline.errors import DatasetError
from ...pipeline.paths import user_path
from ...pipeline.reading import check_file
from .hdf5_file import check_size

if TYPE_CHECKING:
    from minari.dataset.minari_storage import MinariStorage


def minari_root() -> Path:
    """Where Minari keeps its datasets: `MINARI_DATASETS_PATH`, else `~/.minari/datasets`."""
    # Minari's own get_dataset_path also creates the folder, which reading should not do.
    given = os.environ.get("MINARI_DATASETS_PATH")
    return user_path(given) if given else Path.home() / ".minari" / "datasets"


def id_of(folder: Path, stated: str) -> str:
    """The id under which a dataset lies in `minari_root()`; elsewhere the one it states, unless it was renamed."""
    root, place = minari_root().absolute(), folder.absolute()
    if place.is_relative_to(root):
        return place.relative_to(root).as_posix()
    return stated if stated.rsplit("/", 1)[-1] == folder.name else folder.name


def is_minari_folder(folder: Path) -> bool:
    """Return whether a folder holds a Minari dataset."""
    return (folder / "data" / "metadata.json").is_file()


def find_minari(dataset: str | Path) -> Path:
    """The folder of a dataset given by id, by folder, or by the `data` folder inside it.

    Raises:
        DatasetError: there is none; names the nearest ids that are there, and how to fetch one.
    """
    given = user_path(dataset)
    if given.name == "data" and is_minari_folder(given.parent):
        given = given.parent
    for folder in (given, minari_root() / dataset):
        if is_minari_folder(folder):
            return folder
    root = minari_root()
    local = sorted(path.parents[1].relative_to(root).as_posix() for path in root.glob("**/data/metadata.json"))
    nearest = difflib.get_close_matches(str(dataset), local, n=3, cutoff=0.3)
    hint = (
        f"nearest there: {', '.join(nearest)}" if nearest else f"{len(local)} datasets there, none with a similar name"
    )
    raise DatasetError(
        f"no Minari dataset {str(dataset)!r}: expected a folder with data/metadata.json, or an id under {root} "
        f"({hint}). To fetch a published one: minari download {dataset}; for a simulated task, run the stage collect"
    )


def open_storage(folder: Path) -> MinariStorage:
    """Open the storage of a Minari dataset; raises a DatasetError if it is damaged."""
    # The storage, not MinariDataset: that one refuses a dataset for an environment spec it cannot parse, though the
    # data needs none.
    from minari.dataset.minari_storage import MinariStorage

    try:
        return MinariStorage.read(folder / "data")
    except ImportError as error:
        raise DatasetError(f"{folder}: {error}") from error
    except Exception as error:  # likewise
        raise DatasetError(
            f"{folder}: cannot be opened as a Minari dataset ({error!r}); it is damaged or of an unsupported version, "
            "download or write it again"
        ) from error


def check_episodes(folder: Path, counted: int) -> list[str]:
    """What to warn of where the file holds other episodes than the metadata counts.

    Raises:
        DatasetError: an episode is missing.
    """
    path = folder / "data" / "main_data.hdf5"
    if not path.exists():
        return []
    check_file(path, DatasetError)
    try:
        with h5py.File(path) as file:
            found = {key for key in file if key.startswith("episode_")}
    except OSError as error:
        raise DatasetError(f"{path}: cannot be opened as HDF5 ({error}); download or write it again") from error
    names = (f"episode_{index}" for index in range(counted))
    if (missing := next((name for name in names if name not in found), None)) is not None:
        there = sum(1 for name in found if name[8:].isdecimal() and int(name[8:]) < counted)
        raise DatasetError(
            f"{path}: {missing} is missing, the first of {counted - there} out of the {counted} episodes that "
            "total_episodes in metadata.json counts; the dataset is damaged or incomplete, download or write it "
            "again"
        )
    if further := len(found) - counted:
        episodes = "1 more episode" if further == 1 else f"{further} more episodes"
        return [
            f"{path} holds {episodes} than the {counted} that total_episodes in metadata.json counts; the rest is "
            "skipped"
        ]
    return []


def check_sizes(file: h5py.File, group: str) -> None:
    """Raise a DatasetError if a column below a group states more data than the file can hold."""

    def check(_: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            check_size(item, file_bytes)

    file_bytes = file.id.get_filesize()
    file[group].visititems(check)


def environment_spec(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The gymnasium EnvSpec as a dict, preferring the one meant for evaluation; None if it cannot be recovered."""
    from gymnasium.envs.registration import EnvSpec

    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if text is None:
        return None
    try:
        values = json.loads(text)
        # Fields of older gymnasium versions, which today's EnvSpec refuses.
        for old in ("apply_api_compatibility", "autoreset"):
            values.pop(old, None)
        return dict(json.loads(EnvSpec.from_json(json.dumps(values)).to_json()))
    except (ValueError, KeyError, TypeError):
        return None


def time_limit(spec: Mapping[str, Any] | None) -> int | None:
    """Steps after which a recorded environment ends an episode; its own limit goes before that of its registered id."""
    from gymnasium.envs.registration import registry

    if spec is None:
        return None
    registered = registry.get(str(spec["id"]))
    return spec.get("max_episode_steps") or (None if registered is None else registered.max_episode_steps)
