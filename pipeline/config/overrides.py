"""`key=value` words of the command line, read by the declared type of their key.

Text is taken as it is typed, so that no path needs quotes. Everything else follows Hydra's grammar: lists are [a,b],
mappings {a: 1}, and interpolations ${key}.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ..errors import ConfigError
from .schema import describe_type, find_key, plain_type, unknown_key

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9_./@+-]+")
_NEEDS_QUOTES = re.compile(r"[\[\]{}'\"]")
"""What an item of a list cannot hold without quotes; nor `=` beside a comma, which folders of sweeps have in a name."""

SWEEP = "To run several values, use a study: orrery study STUDY 'grid.{key}=[{values}]' (see orrery study --help)"


_OTHER_FLAGS = {
    ("-m", "--multirun"): SWEEP.format(key="seed", values="0,1,2"),
    ("-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir", "--experimental-rerun"): (
        "Name the experiment or the path of a YAML file first: orrery run quickstart"
    ),
    ("-c", "--cfg", "-p", "--package", "--resolve", "--info", "-hh", "--hydra-help"): (
        "To list all keys and values: orrery run EXPERIMENT --help"
    ),
    ("--dry-run", "-n"): "What would run, and why: orrery plan EXPERIMENT [key=value ...]",
    ("--json",): "Before a run: orrery plan EXPERIMENT --json. During and after it: orrery status RUN_DIR --json",
    ("--resume", "--continue"): "The same command continues; so does orrery resume RUN_DIR",
}
"""What serves here the purpose of an option of Hydra's."""


def explain_flag(flags: Sequence[str]) -> str:
    """What to write in place of the first option that is none, as the end of a message."""
    for flag in flags:
        name, equals, value = flag.partition("=")
        for known, instead in _OTHER_FLAGS.items():
            if name in known:
                return f"\n{instead}"
        if name.startswith("--"):
            return (
                f"\nWrite settings without dashes: {name.lstrip('-').replace('-', '_')}={value if equals else 'VALUE'}"
            )
    return ""


@dataclass(frozen=True)
class Override:
    """One word, understood."""

    key: str
    """As typed."""
    path: tuple[str, ...]
    """The same by its parts: an entry of a mapping is one part, whatever its name holds."""
    hint: Any
    """The declared type."""
    text: str
    """The value as typed."""
    value: Any
    """Plain Python; still to be checked against the declared type."""


def read_overrides(words: Sequence[str], types: Mapping[str, Any]) -> tuple[str | None, list[Override]]:
    """The value of `run_dir`, if there is one, and all other words.

    Args:
        types: declared, by key, at the root.
    Raises:
        ConfigError: a word is not key=value, or its value cannot be read; says how to write it.
    """
    run_dir, found = None, []
    for word in words:
        key, equals, value = word.partition("=")
        if key.startswith("~"):
            raise ConfigError(f"{word}: keys cannot be removed; set another value, or remove a stage from `stages`")
        if not equals or not key.strip("+"):
            raise ConfigError(f"expected key=value, found {word!r}; for example pretrain.steps=500")
        if key.startswith("+"):
            raise ConfigError(f"{word}: keys cannot be added; write {word.lstrip('+')} without {key[0]!r}")
        if re.match(r"hydra([./]|$)", key):
            raise ConfigError(
                f"{key}: Hydra's own settings are not supported; set the folder of a run with run_dir=PATH"
            )
        if key == "run_dir":
            run_dir = read_text(value)
            if not run_dir:
                raise ConfigError("run_dir= needs a path")
            continue
        path, hint = find_key(types, key, value)
        if hint is None:
            raise unknown_key(types, key)
        found.append(Override(key, path, hint, value, _read_value(key, value, hint)))
    return run_dir, found


def read_text(value: str) -> str:
    """Text as it is typed; in quotes, what they hold."""
    return str(_hydra(value)) if _QUOTED.fullmatch(value) else value


def quoted(text: str) -> str:
    """Text as an item of a list."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def show(value: Any) -> str:
    """A value from YAML as text; numbers as Python writes them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(show, value))}]" if isinstance(value, list) else str(value)


def written(value: Any) -> str:
    """A value from YAML in the syntax of an override."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {written(inner)}' for key, inner in value.items())}}}"
    text = show(value)
    if not isinstance(value, str) or _PLAIN.fullmatch(text):
        return text
    return quoted(text)


def merge(overrides: Iterable[str]) -> list[str]:
    """Overrides without those that a later one of the same key replaces."""
    return list({override.partition("=")[0]: override for override in overrides}.values())


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last parts of dotted keys: as few as tell them apart."""
    keys = list(keys)
    names = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            names[key] = ".".join(parts[-count:])
            if sum(f".{other}".endswith(f".{names[key]}") for other in keys) == 1:
                break
    return names


def _read_value(key: str, value: str, hint: Any) -> Any:
    plain = plain_type(hint)
    if plain is str and value != "null":
        return read_text(value)
    texts = get_origin(plain) in (list, tuple) and get_args(plain)[0] is str
    try:
        read = _hydra(value)
    except HydraException:
        if texts and value.startswith("[") and value.endswith("]"):
            return _read_items(key, value)
        grammar = "" if plain in (int, float, bool) else ". Lists are [a,b], mappings {a: 1}"
        raise ConfigError(f"cannot read '{key}={value}': expected {describe_type(hint)}{grammar}") from None
    if read is not _SWEEP:
        return read
    if get_origin(plain) in (list, tuple):
        raise ConfigError(f"{key}: expected {describe_type(hint)}, found {value}; write {key}=[{value}]")
    raise ConfigError(f"{key}: expected one value, found {value}. {SWEEP.format(key=key, values=value)}")


def _read_items(key: str, value: str) -> list[str]:
    """A list of text in which Hydra sees characters that it does not allow outside quotes."""
    items = list(_split(value[1:-1]))
    plain = not any(_NEEDS_QUOTES.search(item) for item in items if not _QUOTED.fullmatch(item))
    if plain and all(items) and (len(items) == 1 or not any("=" in item for item in items)):
        return [read_text(item) for item in items]
    if items[-1:] == [""]:
        raise ConfigError(f"{key}: expected a list of text, found {value} with a trailing comma; remove it")
    whole = shlex.quote(f"{key}=[{quoted(value[1:-1])}]")
    if len(items) == 1:
        raise ConfigError(f"{key}: {value} needs quotes: {whole}")
    each = shlex.quote(f"{key}=[{','.join(item if _QUOTED.fullmatch(item) else quoted(item) for item in items)}]")
    raise ConfigError(
        f"{key}: the items of {value} are ambiguous. Quote each item: {each}; or quote all of it, if the comma belongs "
        f"to a name: {whole}"
    )


def _split(text: str) -> Iterator[str]:
    """The items of a list, at the commas outside quotes."""
    start = position = 0
    while position < len(text):
        if match := _QUOTED.match(text, position):
            position = match.end()
            continue
        if text[position] == ",":
            yield text[start:position].strip()
            start = position + 1
        position += 1
    yield text[start:].strip()


_SWEEP = object()


def _hydra(value: str) -> Any:
    """A value by Hydra's grammar, in which `~` may begin an item; `_SWEEP` for several values."""
    value = re.sub(r"(?<=[\[{,:])(\s*)(~[^\]},]*)", r"\1'\2'", value)
    override = OverridesParser.create().parse_override(f"key={value}")
    return _SWEEP if override.is_sweep_override() else override.value()
