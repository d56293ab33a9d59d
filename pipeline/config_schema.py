"""Between frozen dataclasses and OmegaConf: the schema that YAML is merged into, and the way back.

OmegaConf makes frozen dataclasses read-only, also entries that a mapping gets later, so that YAML could set none of
their fields. The schema is therefore made of plain copies of them, and the real ones are built from the result.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from .errors import ConfigError, OrreryError


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
            if message.split(" ", 1)[0].rstrip(":") in {field.name for field in dataclasses.fields(hint)}:
                raise ConfigError(f"{key}.{message}") from error
            raise ConfigError(message if message.startswith(f"{key}.") else f"{key}: {message}") from error
    if get_origin(hint) is dict:
        return {name: build(arguments[1], inner, f"{key}.{name}") for name, inner in value.items()}
    if get_origin(hint) is list:
        return [build(arguments[0], inner, f"{key}[{index}]") for index, inner in enumerate(value)]
    return tuple(value) if get_origin(hint) is tuple else value


def declared_type(parts: Mapping[str, Any], key: str) -> tuple[Any, str]:
    """Return the type declared for a dotted key, and the rest of the key where it leads into a mapping."""
    name, _, rest = key.partition(".")
    hint = parts[name][0] if name in parts else None
    while rest and dataclasses.is_dataclass(hint) and isinstance(hint, type):
        name, _, rest = rest.partition(".")
        hint = get_type_hints(hint).get(name)
    return hint, rest


def spell(hint: Any) -> str:
    """A type as its author wrote it."""
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


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
