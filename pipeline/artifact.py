"""Artifacts: output folders of stages, with a manifest; publishing and verifying them.

An artifact is a folder with `manifest.json`, which is written last: a folder without one is unfinished. Folders of
other programs have none either but can be inputs (downloaded weights, for example); they are identified by the names,
sizes and times of their files.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import StageError
from .reading import decode, read_json, reading

MANIFEST = "manifest.json"
UNFINISHED_SUFFIX = ".tmp"
RERUN = "run the command that made it again"
OUTSIDE = "outside the run"
"""Entry of `Manifest.inputs` for files that are no artifacts (`Stage.reads`)."""
SOURCE = "source"
"""Entry of `Manifest.versions` that holds digests of our own source."""
SOURCE_FOLDERS = ("pipeline", "datasets", "stages")
OF_ATTEMPTS = ("checkpoints", "logs", "tensorboard")
"""Folders in an artifact that say how it was made, when, where and in how many attempts. Its digest leaves them out:
nothing else in an artifact may depend on that."""
PROVIDERS = "providers"
"""Entry of `Manifest.versions` that names other packages whose code decided the content, with their versions."""
RECORDED_PACKAGES = (
    "orrery", "torch", "lightning", "numpy", "mujoco", "dm-control", "metaworld", "gymnasium", "minari",
    "tensordict", "torchrl", "hydra-core",
)  # fmt: skip


@dataclass(frozen=True)
class FileRecord:
    """Size and digest of one file of an artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class InputRecord:
    """An input that an artifact was made from: its path and the digest of its content."""

    path: str
    digest: str


@dataclass(frozen=True)
class MadeFrom:
    """Everything that decides whether an artifact, or an attempt at one, is up to date."""

    config: Mapping[str, Any]
    inputs: Mapping[str, Sequence[InputRecord]]
    version: str
    """Version of orrery, and names and versions of other packages (`entry_points.providers`)."""


@dataclass(frozen=True)
class Manifest:
    """Kind, origin and files of an artifact."""

    kind: str
    stage: str
    key: str
    """Hash of stage, config, input digests and package version; decides whether the artifact is up to date."""
    config: Mapping[str, Any]
    inputs: Mapping[str, Sequence[InputRecord]]
    files: Mapping[str, FileRecord]
    """Files by path relative to the folder, with forward slashes."""
    digest: str
    """Hash over `files` without those of attempts, which artifacts made from this one record."""
    versions: Mapping[str, str]
    created: str
    """ISO 8601, UTC."""
    seconds: float
    """Time over all attempts."""
    summary: str

    @property
    def made_from(self) -> MadeFrom:
        return MadeFrom(self.config, self.inputs, self.version)

    @property
    def version(self) -> str:
        """As in MadeFrom."""
        others = [self.versions[PROVIDERS]] if PROVIDERS in self.versions else []
        return ", ".join([self.versions.get("orrery", "an unknown version"), *others])

    @classmethod
    def from_dict(cls, values: Any) -> Manifest:
        """Raises ValueError: a field is missing, unknown or of another type, a file lies outside the folder, or the
        list of files was changed."""
        manifest = decode(cls, values)
        for path in manifest.files:
            check_inside(path)
        # Artifacts from before OF_ATTEMPTS count all files.
        if manifest.digest not in (_digest(manifest.files), _digest_of_all(manifest.files)):
            raise ValueError("the digest does not match the listed files; the list was changed after it was written")
        return manifest


def check_inside(path: str) -> None:
    """Raise ValueError unless a path below an artifact's folder stays there: relative, without `..`."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise ValueError(f"{path!r}: expected a path inside the artifact's folder")


def _digest(files: Mapping[str, FileRecord]) -> str:
    own = {path: one for path, one in files.items() if not set(PurePosixPath(path).parts) & {*OF_ATTEMPTS}}
    return _digest_of_all(own)


def _digest_of_all(files: Mapping[str, FileRecord]) -> str:
    return hash_json({path: asdict(record) for path, record in files.items()})


def hash_json(value: Any) -> str:
    """Return the sha256 of a JSON value in its canonical form: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def without(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Nested mappings without some of their entries, which are named by dotted keys."""
    nested: dict[str, list[str]] = {}
    for name in names:
        first, _, rest = name.partition(".")
        nested.setdefault(first, []).append(rest)
    return {
        key: without(value, nested[key]) if key in nested else value
        for key, value in values.items()
        if "" not in nested.get(key, ())
    }


@functools.cache  # 30 ms, and every decision about a stage asks
def package_versions() -> Mapping[str, str]:
    """Versions of Python and of the packages that affect results, without importing them."""
    found = {"python": platform.python_version(), "platform": f"{sys.platform} {platform.machine()}"}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {SOURCE: " ".join(f"{folder}:{digest}" for folder, digest in _source_digests().items())}


@functools.cache  # 9 ms
def _source_digests() -> dict[str, str]:
    """Of our own source, by folder: what the version does not say while it is being worked on."""
    root = Path(__file__).parents[1]
    files: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(one for top in SOURCE_FOLDERS for one in (root / top).rglob("*.py")):
        parts = path.relative_to(root).parts
        folder = "/".join(parts[: 2 if parts[0] == "stages" else 1])
        files.setdefault(folder, []).append((path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    return {folder: hash_json(contents)[:12] for folder, contents in files.items()}


def changed_source(manifest: Manifest) -> tuple[str, ...]:
    """The folders of our source that have changed since an artifact was written; none where it does not say."""
    recorded = dict(entry.split(":") for entry in manifest.versions.get(SOURCE, "").split() if entry.count(":") == 1)
    now = _source_digests() if recorded else {}
    return tuple(name for name in sorted({*recorded, *now}) if recorded.get(name) != now.get(name))


def finish(
    folder: Path,
    *,
    kind: str,
    stage: str,
    key: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Sequence[InputRecord]],
    seconds: float,
    summary: str,
    providers: str = "",
) -> Manifest:
    """Hash the files of a finished folder and write its manifest.

    What interrupted attempts left unfinished is removed: a manifest must name nothing that is about to be renamed.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_unfinished(folder)
    files = _hash_files(folder, _files_of(folder))
    manifest = Manifest(
        kind=kind,
        stage=stage,
        key=key,
        config=config,
        inputs=inputs,
        files=files,
        digest=_digest(files),
        versions={**package_versions(), **({PROVIDERS: providers} if providers else {})},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        summary=summary,
    )
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def version_of(providers: str) -> str:
    """This version, as in MadeFrom.

    Args:
        providers: see PROVIDERS.
    """
    return ", ".join(filter(None, [package_versions()["orrery"], providers]))


def finish_copy(folder: Path, original: Manifest) -> Manifest:
    """Write the manifest of a folder that holds some of an artifact's files, for others to read: the original's, with
    the files that are there, and inputs named without the paths of this machine."""
    files = _hash_files(folder, _files_of(folder))
    inputs = {
        name: [InputRecord(Path(record.path).name, record.digest) for record in records]
        for name, records in original.inputs.items()
    }
    manifest = replace(original, files=files, inputs=inputs, digest=_digest(files))
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def publish(partial: Path, final: Path) -> None:
    """Rename a finished folder to its final name. At every instant a reader sees the old artifact, the new one, or
    none."""
    aside = _aside(final)
    if aside.exists():
        shutil.rmtree(aside)
    if final.exists():
        final.rename(aside)
    partial.rename(final)
    if aside.exists():
        shutil.rmtree(aside)


def take(source: Path, final: Path, inputs: Mapping[str, Sequence[InputRecord]]) -> Manifest:
    """Publish the artifact of another run as `final`: hard links to its files, copies where there can be none.

    Args:
        inputs: what takes the place of the other run's, with the same digests.
    """
    manifest, copy = read_manifest(source), unfinished(final)
    if manifest is None:
        raise StageError(f"{source} has no {MANIFEST}, so its origin is unknown")
    remove(copy)
    copy.mkdir(parents=True)
    for path in manifest.files:
        link(source / path, copy / path)
    taken = replace(manifest, inputs=inputs)
    write_json(copy / MANIFEST, asdict(taken))
    publish(copy, final)
    return taken


def link(source: Path, target: Path) -> None:
    """Let `target` be the file `source`, or that file in each folder below it: by hard links, which take no space, or
    copies where there can be none. What is there already is replaced."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            link(path, target / path.name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def recover(partial: Path, final: Path) -> None:
    """Complete or undo an interrupted `publish`."""
    if (partial / MANIFEST).exists():
        publish(partial, final)
    aside = _aside(final)
    if aside.exists():
        if final.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(final)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest, or None if the folder has none.

    Raises:
        StageError: the folder does not exist, or its manifest cannot be read.
    """
    if not folder.is_dir():
        raise StageError(f"there is no artifact folder {folder}")
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    if path.exists() and not os.access(path, os.R_OK):  # which is no damage
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    with reading(path, StageError, RERUN):
        return Manifest.from_dict(read_json(path, StageError, RERUN))


def digest_of(folder: Path) -> str:
    """Return an identifier of the content of an input; cheap, and not a verification."""
    manifest = read_manifest(folder)
    return stat_digest(folder) if manifest is None else manifest.digest


def digests_of(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """`digest_of` for folders or files inside an artifact, by their paths; empty where there are no files."""
    manifest = read_manifest(folder)
    if manifest is None:
        return {part: stat_digest(folder / part) if (folder / part).exists() else "" for part in parts}
    found: dict[str, dict[str, FileRecord]] = {part: {} for part in parts}
    for path, record in manifest.files.items():
        for part in (path, *map(str, PurePosixPath(path).parents)):
            if part in found:
                found[part][path] = record
    return {part: _digest(files) if files else "" for part, files in found.items()}


def stat_digest(path: Path) -> str:
    """Return a hash of the names, sizes and modification times of a file, or of all files in a folder."""
    files = {name: path / name for name in _files_of(path)} if path.is_dir() else {path.name: path}
    try:
        stats = {name: file.stat() for name, file in files.items()}
    except FileNotFoundError as error:
        raise StageError(f"{error.filename} no longer exists") from error
    return hash_json({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()})


def verify(folder: Path, kind: str) -> None:
    """Verify an artifact before it is read: its kind, and every byte of its files.

    Raises:
        StageError: naming the file, what was expected, what was found, and what to do.
    """
    verify_quick(folder, kind)
    manifest = read_manifest(folder)
    if manifest is None:
        return
    with reading(folder, StageError):
        found = _hash_files(folder, list(manifest.files))
    for path, expected in manifest.files.items():
        if found[path].sha256 != expected.sha256:
            raise StageError(
                f"{folder / path} was changed after stage {manifest.stage!r} wrote it: expected sha256 "
                f"{expected.sha256[:12]}..., found {found[path].sha256[:12]}.... {_remedy(folder, manifest)}"
            )


def verify_quick(folder: Path, kind: str) -> None:
    """Verify an artifact's kind, and that each of its files exists with its size.

    Raises:
        StageError: as `verify`.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    if manifest.kind != kind:
        raise StageError(f"{folder} is an artifact of kind {manifest.kind!r}, expected kind {kind!r}")
    if damage := _damage(folder, manifest):
        raise StageError(f"{damage}. To repair it, {RERUN}: it reruns stage {manifest.stage!r}")


def examine(folder: Path, kind: str = "") -> tuple[Manifest | None, str]:
    """The manifest of what a stage has published, and what can be seen to be wrong with it without reading its files.

    Args:
        kind: that it must have; empty for any.
    """
    try:
        manifest = read_manifest(folder) if folder.is_dir() else None
    except StageError as error:
        return None, f"output damaged: {error}"
    damage = _damage(folder, manifest) if manifest is not None else ""
    if manifest is not None and kind and manifest.kind != kind:
        damage = f"{folder} is an artifact of kind {manifest.kind!r}, expected kind {kind!r}"
    return manifest, damage and f"output damaged: {damage}"


def _damage(folder: Path, manifest: Manifest) -> str:
    for path, expected in manifest.files.items():
        if not (folder / path).is_file():
            return f"{folder / path} is missing or not a file"
        if (size := (folder / path).stat().st_size) != expected.bytes:
            return (
                f"{folder / path} has {size:,} bytes, expected {expected.bytes:,}: it was truncated or changed after "
                f"stage {manifest.stage!r} wrote it"
            )
    return ""


def verify_listed(folder: Path, files: Sequence[str]) -> None:
    """Check that the manifest, where there is one, names the files in `folder` that are about to be loaded: `verify`
    checks only what it names.

    Raises:
        StageError: it does not name one of them.
    """
    manifest = read_manifest(folder)
    if manifest and (added := [name for name in files if name not in manifest.files and (folder / name).exists()]):
        raise StageError(
            f"{folder / added[0]} is not listed in {folder / MANIFEST}: it was added after stage {manifest.stage!r} "
            f"wrote the artifact. {_remedy(folder, manifest)}"
        )


def unfinished(path: Path) -> Path:
    """Where a file or folder is written that is then renamed to `path`; `finish` removes what a kill leaves there."""
    return path.with_name(path.name + UNFINISHED_SUFFIX)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path to write a file to; it replaces `path` when the block ends, so a reader sees all of it or what was
    there before."""
    temporary = unfinished(path)
    yield temporary
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill left in `folder` under names that `unfinished` gives, or safetensors (.tmp and letters)."""
    leftovers = {*folder.rglob(f"*{UNFINISHED_SUFFIX}"), *folder.rglob(f"{UNFINISHED_SUFFIX}*")}
    for leftover in sorted(leftovers, reverse=True):  # what is in a folder before it
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a file or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _aside(final: Path) -> Path:
    return final.with_name(final.name + ".old")


def _remedy(folder: Path, manifest: Manifest) -> str:
    return f"Delete {folder} and rerun the command that created it: stage {manifest.stage!r} then starts from scratch."


def _files_of(folder: Path) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != MANIFEST)


def _hash_files(folder: Path, paths: Sequence[str]) -> dict[str, FileRecord]:
    def record(path: str) -> FileRecord:
        with (folder / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileRecord(bytes=file.tell(), sha256=digest)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(record, paths), strict=True))
