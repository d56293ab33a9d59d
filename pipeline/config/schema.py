"""Between frozen dataclasses and OmegaConf: the schema that YAML is merged into, and the way back.

OmegaConf makes frozen dataclasses read-only, also entries that a mapping gets later, so that YAML could set none of
their fields. The schema is therefore made of plain copies of them, and the real ones are built from the result.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError, OrreryError
from ..reading import decode

RENAMED = {
    "sac.decisions": "baselines.steps",
    "sac.warm_up": "baselines.sac.learning_starts",
    "sac.update_every": "baselines.sac.train_freq",
    "sac.batch_size": "baselines.sac.batch_size",
    "sac.lr": "baselines.sac.learning_rate",
    "sac.discount": "baselines.sac.gamma",
    "sac.actor_units": "baselines.sac.actor_units",
    "sac.critic_units": "baselines.sac.critic_units",
    "sac": "baselines",
    "powr_baselines.task": "baselines.tasks",
    "powr_baselines.transitions": "baselines.steps",
    "powr_baselines": "baselines",
    "mrq_datasets": "replay_datasets",
}
"""Stages of earlier versions and their keys, with their current names; the first match counts."""

SHOWN_KEYS = 6
"""Keys of the same name that a message lists."""


def make_schema(parts: Mapping[str, Any]) -> DictConfig:
    """Return the OmegaConf schema with keys `parts`: {key: (type, default)}; dataclasses may be nested."""
    # A dataclass at the root, too: a plain dict would accept unknown top-level keys.
    fields = [(name, _mutable_hint(hint), _default(value)) for name, (hint, value) in parts.items()]
    schema: DictConfig = OmegaConf.structured(dataclasses.make_dataclass("Run", fields))
    _open_mappings(schema)
    return schema


def build(hint: Any, value: Any, key: str) -> Any:
    """Return the object of type `hint` out of the plain values that OmegaConf has checked.

    Raises:
        ConfigError: a dataclass refused its values; names its dotted key.
    """
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return None if value is None else build(next(one for one in arguments if one is not type(None)), value, key)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        values = {name: build(hints[name], inner, f"{key}.{name}") for name, inner in value.items()}
        try:
            return hint(**values)
        except (OrreryError, ValueError, TypeError) as error:
            message = str(error)
            if re.split(r"\W", message, maxsplit=1)[0] in {field.name for field in dataclasses.fields(hint)}:
                raise ConfigError(f"{key}.{message}") from error
            raise ConfigError(message if message.startswith(f"{key}.") else f"{key}: {message}") from error
    if get_origin(hint) is dict:
        return {name: build(arguments[1], inner, f"{key}.{name}") for name, inner in value.items()}
    if get_origin(hint) in (list, tuple) and not dataclasses.is_dataclass(arguments[0]):
        # OmegaConf checks the items of a list, but not that they are no lists themselves.
        for index, inner in enumerate(value):
            if isinstance(inner, list | dict):
                raise ConfigError(f"{key}[{index}]: expected one value, found {inner}")
    if get_origin(hint) is list:
        return [build(arguments[0], inner, f"{key}[{index}]") for index, inner in enumerate(value)]
    return tuple(value) if get_origin(hint) is tuple else value


def read_options(cls: Any, values: Mapping[str, Any], owner: str) -> Any:
    """The frozen dataclass `cls` of the plain values of a mapping `options`, whose keys depend on another key.

    Args:
        owner: that other key with its value, for messages: `executor=slurm`.
    Raises:
        ConfigError: an unknown option, or a value of another type; begins with the option's key.
    """
    known = get_type_hints(cls)
    for name in values:
        if name not in known:
            raise ConfigError(
                f"options.{name}: {owner} has no such option.{nearest(name, known)} "
                f"Its options: {', '.join(known) or 'none'}"
            )
    try:
        return decode(cls, {name: _plain_text(known[name], value) for name, value in values.items()})
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"options.{error}") from error


def _plain_text(hint: Any, value: Any) -> Any:
    """Text that YAML took for a number."""
    return str(value) if hint is str and isinstance(value, int | float) else value


def find_key(types: Mapping[str, Any], key: str, value: str = "") -> tuple[tuple[str, ...], Any]:
    """Return the parts of a dotted key, and its declared type; None for the type where there is no such key.

    The name of a mapping's entry is one part and may hold dots. Where entries are dataclasses, the last word of the key
    that is a field of theirs ends the name; unless `value`, what the key is set to, is a whole entry: {a: 1}.

    Args:
        types: by key, of the root.
    """
    name, _, rest = key.partition(".")
    if name not in types:
        return tuple(key.split(".")), None
    if not rest:
        return (name,), types[name]
    path, hint = _find_inside(plain_type(types[name]), rest, value)
    return (name, *path), hint


def _find_inside(owner: Any, key: str, value: str) -> tuple[tuple[str, ...], Any]:
    words = key.split(".")
    if dataclasses.is_dataclass(owner):
        return find_key(get_type_hints(owner), key, value)
    if get_origin(owner) is not dict:
        return tuple(words), None
    entry = get_args(owner)[1]
    hints = get_type_hints(entry) if dataclasses.is_dataclass(entry) else {}
    end = next((i for i in range(len(words) - 1, 0, -1) if words[i] in hints), None)
    if end is None and hints and len(words) > 1 and not value.startswith("{"):
        end = len(words) - 1
    if end is None:
        return (key,), entry
    path, hint = find_key(hints, ".".join(words[end:]), value)
    return (".".join(words[:end]), *path), hint


def renamed(key: str) -> str:
    """The current name of a key or stage of an earlier version; empty for any other."""
    found = (re.sub(rf"(^|\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", key) for old, new in RENAMED.items())
    return next((now for now in found if now != key), "")


def unknown_key(types: Mapping[str, Any], key: str) -> ConfigError:
    """The error for an unknown key, with its new name, keys of the same name, the nearest key, or those beside it.

    A renamed config field has its old names in its metadata: field(..., metadata={"renamed_from": "OLD OLDER"}).
    """
    if now := renamed(key):
        return ConfigError(f"key {key!r} was renamed: use {now}")
    path, _ = find_key(types, key)
    owner, names = "", list(types)
    for depth in range(1, len(path)):
        hint = plain_type(find_key(types, ".".join(path[:depth]), "{")[1])
        if dataclasses.is_dataclass(hint):
            owner, names = ".".join(path[:depth]), list(get_type_hints(hint))
            for one in dataclasses.fields(hint):
                if path[depth] in one.metadata.get("renamed_from", "").split():
                    return ConfigError(
                        f"key {key!r} was renamed: use {'.'.join((owner, one.name, *path[depth + 1 :]))}"
                    )
    known = list(_all_keys(types))
    guess = nearest(key.removeprefix(f"{owner}."), names if owner or "." not in key else known, owner and f"{owner}.")
    if same := [other for other in known if other.startswith(owner) and other.endswith(f".{path[-1]}")]:
        guess = f" Did you mean {', '.join(map(repr, sorted(same, key=_depth)[:SHOWN_KEYS]))}?"
    guess = guess or f" Keys of {owner or 'a run'}: {', '.join(names)}"
    return ConfigError(f"unknown key {key!r}.{guess}")


def _depth(key: str) -> int:
    return key.count(".")


def _all_keys(types: Mapping[str, Any]) -> Iterator[str]:
    for name, hint in types.items():
        yield name
        if dataclasses.is_dataclass(hint):
            yield from (f"{name}.{key}" for key in _all_keys(get_type_hints(hint)))


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A question that ends a message about a name that is none; empty where nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {prefix + close[0]!r}?" if close else ""


def plain_type(hint: Any) -> Any:
    """A type without `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(one for one in get_args(hint) if one is not type(None))
    return hint


def describe_type(hint: Any) -> str:
    """What a key of this type is set to, in words."""
    plain, arguments = plain_type(hint), get_args(plain_type(hint))
    if plain is not hint:
        return f"{describe_type(plain)}, or null"
    if plain in _WORDS:
        return _WORDS[plain]
    if get_origin(plain) in (list, tuple):
        return f"a list of {_PLURALS.get(arguments[0], 'values')}"
    if get_origin(plain) is dict:
        return f"a mapping to {_PLURALS.get(arguments[1], 'mappings')}"
    return "a mapping of its keys" if dataclasses.is_dataclass(plain) else "a value"


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers", bool: "true and false", str: "text"}


@functools.cache
def _mutable_copy(cls: Any) -> Any:
    """The dataclass with the same fields and defaults, without `frozen` and without checks."""
    hints, defaults = get_type_hints(cls), cls()
    fields = [
        (f.name, _mutable_hint(hints[f.name]), _default(getattr(defaults, f.name))) for f in dataclasses.fields(cls)
    ]
    return dataclasses.make_dataclass(cls.__name__, fields)


def _mutable_hint(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        plain: Any = hint
        return _mutable_copy(plain)
    if not (arguments := tuple(map(_mutable_hint, get_args(hint)))):
        return hint
    if get_origin(hint) in (Union, types.UnionType):
        return functools.reduce(operator.or_, arguments)
    origin: Any = get_origin(hint)
    return origin[arguments]


def _default(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: _mutable_value(value))


def _mutable_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        copies = {f.name: _mutable_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return _mutable_copy(type(value))(**copies)
    if isinstance(value, dict):
        return {key: _mutable_value(inner) for key, inner in value.items()}
    return [_mutable_value(inner) for inner in value] if isinstance(value, list) else value


def _open_mappings(node: DictConfig) -> None:
    """Let mappings take new entries also after Hydra has closed the whole config."""
    if OmegaConf.get_type(node) is dict:
        OmegaConf.set_struct(node, False)
    for key in map(str, node):
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _open_mappings(child)
