"""Artifacts and interrupted attempts that other settings have replaced, so that going back to a setting loses nothing.

`RUN/.kept/<stage>/<key>/` holds them under the names that they have in the run folder: `<stage>/`, `<stage>.partial/`,
`<stage>.partial.json`, `<stage>.jobs/`. Every move is one rename, and the record of an attempt is written before its
folder moves, so a kill leaves each of them whole in one of the two places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import artifact
from .errors import StageError
from .logging import duration
from .run_folder import (
    KEPT_FOLDER,
    Attempt,
    attempt_file,
    jobs_folder,
    partial_folder,
    read_attempt,
    write_attempt,
)

KEPT_PER_STAGE = 4
"""Settings of a stage of which artifact and attempt are kept; beyond these, the oldest are deleted."""


def kept_places(final: Path) -> list[Path]:
    """Where artifacts and attempts of a stage are kept, the latest first: paths to use in place of `final`.

    Args:
        final: the stage's folder in the run folder.
    """
    folders = (final.parent / KEPT_FOLDER / final.name).glob("*")
    return [folder / final.name for folder in sorted(folders, key=lambda one: one.stat().st_mtime_ns, reverse=True)]


def is_kept(place: Path) -> bool:
    """Whether a place is one of `kept_places`."""
    return place.parents[2].name == KEPT_FOLDER


def keep_artifact(final: Path, key: str) -> None:
    """Make room for the artifact with `key`: keep a published one with another key, unless it is damaged."""
    with contextlib.suppress(StageError):
        manifest = artifact.read_manifest(final)
        if manifest is not None and manifest.key != key:
            artifact.verify_quick(final, manifest.kind)
            _move(final, _place(final, manifest.key))


def forget_artifact(place: Path, final: Path) -> None:
    """Remove a kept artifact that is back as `final`, where its jobs go too; an attempt beside it stays."""
    if is_kept(place):
        artifact.remove(place)
        if not attempt_file(place).exists():
            if jobs_folder(place).is_dir() and not jobs_folder(final).exists():
                _move(jobs_folder(place), jobs_folder(final))
            _remove(place)


def keep_attempt(final: Path, key: str) -> None:
    """Make room for an attempt with `key`: keep one with another key, and the jobs that are beside it."""
    former = read_attempt(final)
    owner = former.key if former is not None else _key_of(final)
    if owner != key:
        place = _place(final, owner)
        if former is not None and partial_folder(final).is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_attempt(place, former, running=False)
            _move(partial_folder(final), partial_folder(place))
        if jobs_folder(final).is_dir():
            _move(jobs_folder(final), jobs_folder(place))
        attempt_file(final).unlink(missing_ok=True)


def restore_attempt(place: Path, final: Path) -> Attempt | None:
    """Put an attempt that is kept in `place`, or that another run has left there, where its stage works."""
    attempt = read_attempt(place)
    if attempt is not None:
        write_attempt(final, attempt, running=False)
        _move(partial_folder(place), partial_folder(final))
        if jobs_folder(place).is_dir():
            _move(jobs_folder(place), jobs_folder(final))
        if is_kept(place):
            _remove(place)
        attempt_file(place).unlink(missing_ok=True)
    return attempt


def remove_oldest(final: Path) -> int:
    """Delete what is kept of a stage beyond KEPT_PER_STAGE settings, the oldest first; returns how many."""
    beyond = kept_places(final)[KEPT_PER_STAGE:]
    for place in beyond:
        _remove(place)
    return len(beyond)


@dataclass(frozen=True)
class Kept:
    """What is kept of one stage for one key."""

    place: Path
    content: str
    """In words."""
    bytes: int
    """That are free once it is deleted: files that an artifact elsewhere shares do not count."""


def list_kept(run_dir: Path) -> list[Kept]:
    """Everything that is kept in a run folder, or in the runs of a study."""
    folders = sorted({*run_dir.glob(f"{KEPT_FOLDER}/*/*"), *run_dir.glob(f"*/{KEPT_FOLDER}/*/*")})
    places = [folder / folder.parent.name for folder in folders]
    return [Kept(place, ", ".join(_contents(place)) or "leftovers", _size(place.parent)) for place in places]


def kept_note(run_dir: Path) -> str:
    """What a run keeps of earlier settings and how to delete it, in one line; empty where it keeps nothing."""
    kept = list_kept(run_dir)
    size = sum(one.bytes for one in kept) / 2**20
    counted = "1 artifact or attempt" if len(kept) == 1 else f"{len(kept)} artifacts or attempts"
    return f"{counted} of earlier settings kept, {size:,.1f} MiB; delete with: orrery clean {run_dir}" if kept else ""


def remove_kept(kept: Kept) -> None:
    """Delete it, and the folders around it that are then empty."""
    _remove(kept.place)


def _contents(place: Path) -> Iterator[str]:
    with contextlib.suppress(StageError):
        if (manifest := artifact.read_manifest(place)) is not None:
            yield f"artifact of {manifest.created[:16].replace('T', ' ')}: {manifest.summary}"
    if (attempt := read_attempt(place)) is not None:
        yield f"attempt interrupted after {duration(attempt.seconds)}"


def _size(folder: Path) -> int:
    links: dict[tuple[int, int], int] = {}
    sizes: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            stat = path.stat()
            inode = stat.st_dev, stat.st_ino
            links[inode] = links.get(inode, stat.st_nlink) - 1
            sizes[inode] = stat.st_size
    return sum(size for inode, size in sizes.items() if not links[inode])


def _key_of(final: Path) -> str:
    """Of the published artifact."""
    with contextlib.suppress(StageError):
        if (manifest := artifact.read_manifest(final)) is not None:
            return manifest.key
    return "unknown"


def _place(final: Path, key: str) -> Path:
    name = "".join(letter for letter in key if letter.isalnum())  # a manifest may hold anything
    return final.parent / KEPT_FOLDER / final.name / (name[:16] or "unknown") / final.name


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    artifact.remove(target)
    source.rename(target)


def _remove(place: Path) -> None:
    attempt_file(place).unlink(missing_ok=True)  # first: half of an attempt must not be continued
    artifact.remove(place.parent)
    for folder in place.parents[1:3]:
        with contextlib.suppress(OSError):  # others are kept there
            folder.rmdir()
