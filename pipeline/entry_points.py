"""What packages add to Orrery by entry points, itself included: stages, commands, dataset formats, policies, executors.

    [project.entry-points."orrery.stages"]
    mrq = "orrery.stages.mrq.stage_mrq:Mrq"

Names come from the metadata of installed packages; nothing is imported before an entry is loaded. A broken entry of
another package is an error only where its name is used, and a warning where all of its group are.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from .errors import ConfigError
from .logging import LOGGER_NAME

Group = Literal["stages", "commands", "formats", "policies", "executors"]

PACKAGE = "orrery"


@functools.cache
def _entries(group: str) -> Mapping[str, list[EntryPoint]]:
    """Entry points by name; Orrery's own first, in order of their names, then those of others."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=f"{PACKAGE}.{group}"), key=lambda one: (_package(one) != PACKAGE, one.name)):
        found.setdefault(entry.name, []).append(entry)
    if not any(_package(many[0]) == PACKAGE for many in found.values()):
        raise ConfigError(
            f"the installed package {PACKAGE} has no entry points in the group {PACKAGE}.{group}; reinstall it (in a "
            "clone of the repository: pip install --no-deps -e .)"
        )
    return found


def names(group: Group) -> list[str]:
    """Names in a group, Orrery's own first. Imports nothing."""
    return list(_entries(group))


@functools.cache
def load(group: Group, name: str, base: type) -> Any:
    """The class of one entry point, which must be a subclass of `base`.

    Raises:
        ConfigError: names the package whose entry is unknown, broken or ambiguous.
    """
    if name not in _entries(group):
        raise ConfigError(f"{PACKAGE}.{group} has no {name!r}; it has: {', '.join(names(group))}")
    entry, *others = _entries(group)[name]
    what = f"{_noun(group)} {name!r} of package {_package(entry)!r} ({entry.value})"
    if others and _package(entry) != PACKAGE:
        raise ConfigError(f"{what} has the same name in package {_package(others[0])!r}; uninstall one of them")
    try:
        found = entry.load()
        if (check := getattr(found, "check_class", None)) is not None:
            check()
    except Exception as error:  # whatever the module of another package raises
        again = "; after editing pyproject.toml, reinstall the package (pip install --no-deps -e .)"
        hint = again if isinstance(error, ImportError | AttributeError) else ""
        raise ConfigError(f"{what} cannot be loaded: {type(error).__name__}: {error}{hint}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{what} must be a subclass of {base.__module__}.{base.__qualname__}")
    return found


def load_each(group: Group, base: type) -> Iterator[tuple[str, Any]]:
    """Name and class of a group's entries, Orrery's own first, each loaded when it is its turn.

    Logs one warning for each entry of another package that cannot be loaded, and leaves it out.

    Raises:
        ConfigError: one of Orrery's own cannot be loaded.
    """
    for name in names(group):
        if (found := _load_or_warn(group, name, base)) is not None:
            yield name, found


def load_all(group: Group, base: type) -> dict[str, Any]:
    """{name: class} of a group; see `load_each`."""
    return dict(load_each(group, base))


@functools.cache
def _load_or_warn(group: Group, name: str, base: type) -> Any:
    entry, *others = _entries(group)[name]
    log = logging.getLogger(LOGGER_NAME)
    try:
        found = load(group, name, base)
    except ConfigError as error:
        if _package(entry) == PACKAGE:
            raise
        log.warning("warning: %s", error)
        return None
    for other in others:
        what = f"{_noun(group)} {name!r} of package {_package(other)!r}"
        log.warning("warning: %s is ignored: %s has one of that name", what, PACKAGE)
    return found


def providers(stage: str, groups: Iterable[str]) -> str:
    """Names and versions of other packages whose code decides what a stage makes: the one that provides it, and all
    that add to `groups`. Empty for none."""
    entries = [_entries("stages").get(stage, [])[:1], *(many for group in groups for many in _entries(group).values())]
    found = {entry.dist.name: entry.dist.version for many in entries for entry in many if entry.dist is not None}
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()) if name != PACKAGE)


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else ""


def _noun(group: Group) -> str:
    return {"policies": "policy kind"}.get(group, group.removesuffix("s"))
