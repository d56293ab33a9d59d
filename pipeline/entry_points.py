"""What packages add to Orrery by entry points, itself included: stages, commands, dataset formats, policies, executors.

    [project.entry-points."orrery.stages"]
    sac = "orrery.stages.baselines.stage_sac:Sac"

Names come from the metadata of installed packages; nothing is imported before an entry is loaded. A broken entry of
another package is an error only where its name is used, and a warning where all of its group are.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from .errors import ConfigError
from .logging import LOGGER_NAME

Group = Literal["stages", "commands", "formats", "policies", "executors"]

PACKAGE = "orrery"


@functools.cache
def _entries(group: Group) -> Mapping[str, list[EntryPoint]]:
    """Entry points by name, sorted; Orrery's own first."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=f"{PACKAGE}.{group}"), key=lambda one: (one.name, _package(one) != PACKAGE)):
        found.setdefault(entry.name, []).append(entry)
    if not any(_package(many[0]) == PACKAGE for many in found.values()):
        raise ConfigError(
            f"the installed package {PACKAGE} has no entry points in the group {PACKAGE}.{group}; install it again "
            "(in a clone of the repository: pip install --no-deps -e .)"
        )
    return found


def names(group: Group) -> list[str]:
    """Names in a group, sorted. Imports nothing."""
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
    except Exception as error:  # whatever the module of another package raises
        again = "; after an edit of pyproject.toml, install the package again (pip install --no-deps -e .)"
        hint = again if isinstance(error, ImportError | AttributeError) else ""
        raise ConfigError(f"{what} cannot be loaded: {type(error).__name__}: {error}{hint}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{what} must be a subclass of {base.__module__}.{base.__qualname__}")
    return found


@functools.cache
def load_all(group: Group, base: type) -> Mapping[str, Any]:
    """{name: class} of a group. Logs one warning for each entry that cannot be loaded, and leaves it out.

    Raises:
        ConfigError: one of Orrery's own cannot be loaded.
    """
    found = {}
    log = logging.getLogger(LOGGER_NAME)
    for name, (entry, *others) in _entries(group).items():
        try:
            found[name] = load(group, name, base)
        except ConfigError as error:
            if _package(entry) == PACKAGE:
                raise
            log.warning("warning: %s", error)
        else:
            for other in others:
                log.warning(
                    "warning: %s %r of package %r is ignored: %s has one of that name",
                    *(_noun(group), name, _package(other), PACKAGE),
                )
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else ""


def _noun(group: Group) -> str:
    return {"policies": "policy kind"}.get(group, group.removesuffix("s"))
