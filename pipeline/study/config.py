"""What a study is: an experiment, and the variants of it that its YAML file names.

    # What it finds out, in one line
    experiment: quickstart
    overrides: [pretrain.steps=2000]
    grid:
      pretrain.model.latent: [simnorm, mish]
      extract.first_order.horizon: [4, 8, 16]

`grid` makes one variant of every combination. `variants` names sets of overrides, {narrow: [key=value, ...]}; with
both, every named set meets every combination. Values of the key `seed` in a grid are repetitions of the whole pipeline
on new data and with new models: they are variants too, and form one group.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..config.load import CONFIG_DIR, RunConfig, describe_file, describe_files, load_config
from ..config.schema import nearest
from ..errors import ConfigError
from ..paths import user_path
from ..reading import check_yaml, reading
from ..stage import Stage

STUDY_KEYS = ("experiment", "overrides", "grid", "variants")
SEED = "seed"
"""The key of a run that all its random streams come from."""
NAMED = "variant"
"""The parameter that a named set of overrides gives to its variants."""

_PLAIN = re.compile(r"[A-Za-z0-9_./@+-]+")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Study:
    """An experiment in several variants."""

    name: str
    source: str
    """Name of a built-in study, or absolute path of a YAML file."""
    description: str
    run_dir: Path
    experiment: str
    typed: tuple[str, ...] = ()
    """What the command line added, run_dir apart."""
    overrides: tuple[str, ...] = ()
    """Of all variants: the file's, then those of the command line."""
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Values by dotted key."""
    named: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Overrides by the name of a set."""


@dataclass(frozen=True)
class Variant:
    """One configuration of the experiment."""

    name: str
    group: str
    """Its name without the seed of the whole pipeline: variants of a group differ in that alone."""
    parameters: Mapping[str, str]
    """What tells it from the others, as text: values by the grid's dotted keys, and `variant` where sets are named."""
    config: RunConfig
    """Of the whole experiment, as one run."""


def list_studies(config_dir: Path = CONFIG_DIR) -> dict[str, str]:
    """Return {name: description} of the built-in studies."""
    return describe_files(config_dir / "studies")


def load_study(source: str, overrides: Sequence[str] = (), *, config_dir: Path = CONFIG_DIR) -> Study:
    """Read a study.

    Args:
        source: name of a file in `config_dir`/studies, or path of a YAML file.
        overrides: `key=value` for all variants; `grid.KEY=[...]` sets the values of a key in the grid.
    Raises:
        ConfigError: there is no such study, or its file is not one.
    """
    path = user_path(source)
    given_path = source.endswith((".yaml", ".yml"))
    if not given_path:
        known = list_studies(config_dir)
        if source not in known:
            lines = [f"  {name}  {description}".rstrip() for name, description in known.items()]
            raise ConfigError(
                f"there is no study {source!r}.{nearest(source, known)} Known studies:\n"
                + ("\n".join(lines) or "  (none)")
                + "\nYour own: give the path of a .yaml file."
            )
        path = config_dir / "studies" / f"{source}.yaml"
    elif not path.exists() and not path.is_symlink():
        raise ConfigError(f"there is no study file {path.absolute()}")
    with reading(path, ConfigError, "correct it"):
        check_yaml(path, ConfigError)
        values = _read(path)
    shared, grid, run_dir = list(values["overrides"]), dict(values["grid"]), Path("runs") / path.stem
    typed = [override for override in overrides if not override.startswith("run_dir=")]
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "run_dir" and value:
            run_dir = user_path(value)
        elif key.startswith("grid."):
            grid[key.removeprefix("grid.")] = _parse(value, override)
        else:
            shared.append(override)
    experiment = values["experiment"]
    if experiment.endswith((".yaml", ".yml")):
        experiment = str(path.parent / user_path(experiment))
    return Study(
        name=path.stem,
        source=str(path.resolve()) if given_path else source,
        description=describe_file(path),
        run_dir=run_dir,
        experiment=experiment,
        typed=tuple(typed),
        overrides=tuple(shared),
        grid=_checked_grid(grid, path),
        named=values["variants"],
    )


def compose_variants(study: Study, stages: Mapping[str, type[Stage]], config_dir: Path = CONFIG_DIR) -> list[Variant]:
    """Compose the config of every variant, in the order of the file, the last key of the grid first.

    Raises:
        ConfigError: naming the variant, and what is wrong with its keys or values.
    """
    keys = list(study.grid)
    short = short_names(keys)
    found: list[tuple[str, str, dict[str, str], list[str]]] = []
    for name, own in (study.named or {"": ()}).items():
        for values in itertools.product(*study.grid.values()):
            shown = {key: show(value) for key, value in zip(keys, values, strict=True)}
            parts = {key: f"{short[key]}={_in_folder(text)}" for key, text in shown.items()}
            unseeded = [part for key, part in parts.items() if key != SEED]
            overrides = [*own, *(f"{key}={_spell(value)}" for key, value in zip(keys, values, strict=True))]
            found.append((
                ",".join(filter(None, [name, *parts.values()])),
                ",".join(filter(None, [name, *unseeded])) or study.name,
                ({NAMED: name} if name else {}) | shown,
                overrides,
            ))  # fmt: skip
    _check_variants(study, found)
    variants = []
    for name, group, parameters, own_overrides in found:
        overrides = merge([*study.overrides, *own_overrides])
        try:
            config = load_config(study.experiment, overrides, stages=stages, config_dir=config_dir)
        except ConfigError as error:
            raise ConfigError(f"variant {name} of study {study.name}: {error}") from error
        variants.append(Variant(name, group, parameters, config))
    return variants


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


def show(value: Any) -> str:
    """A value from YAML as text; numbers as Python writes them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(show, value))}]" if isinstance(value, list) else str(value)


def _read(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, found {type(values).__name__}")
    for key in values:
        if key not in STUDY_KEYS:
            raise ConfigError(
                f"{path}: a study has no key {key!r}.{nearest(str(key), STUDY_KEYS)} Keys: {', '.join(STUDY_KEYS)}"
            )
    values = {"overrides": [], "grid": {}, "variants": {}} | {k: v for k, v in values.items() if v is not None}
    for key, kind, spelled in [
        ("experiment", str, "the name of an experiment, or the path of its YAML file"),
        ("overrides", list, "a list of key=value"),
        ("grid", dict, "lists of values by key: {extract.first_order.horizon: [4, 8]}"),
        ("variants", dict, "lists of key=value by name: {narrow: [pretrain.model.mlp_dim=64]}"),
    ]:
        if not isinstance(values.get(key), kind):
            raise ConfigError(f"{path}: {key} must be {spelled}; found {values.get(key)!r}")
    if not values["grid"] and not values["variants"]:
        raise ConfigError(f"{path}: a study needs a `grid`, or `variants`")
    for name, own in values["variants"].items():
        if not isinstance(name, str) or not _FOLDER_NAME.fullmatch(name):
            raise ConfigError(f"{path}: a variant's name is made of letters, digits and ._+-, found {name!r}")
        values["variants"][name] = own = own or []
        if not isinstance(own, list):
            raise ConfigError(f"{path}: variant {name} must be a list of key=value, found {own!r}")
    for override in itertools.chain(values["overrides"], *values["variants"].values()):
        if not isinstance(override, str) or "=" not in override:
            raise ConfigError(f"{path}: expected key=value, found {override!r}")
    return values


def _parse(value: str, override: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read {override!r}; expected grid.KEY=[value, value]") from error


def _checked_grid(grid: Mapping[Any, Any], path: Path) -> dict[str, list[Any]]:
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: grid.{key} must be a list of values, found {values!r}")
        if repeated := [text for text, count in Counter(map(show, values)).items() if count > 1]:
            raise ConfigError(f"{path}: grid.{key} repeats {', '.join(repeated)}")
    return {str(key): values for key, values in grid.items()}


def _check_variants(study: Study, found: Sequence[tuple[str, str, dict[str, str], list[str]]]) -> None:
    if repeated := [name for name, count in Counter(name for name, *_ in found).items() if count > 1]:
        raise ConfigError(f"study {study.name}: several variants are called {', '.join(repeated)}; name them yourself")
    of_variants = [{one.partition("=")[0] for one in overrides} for *_, overrides in found]
    if "run_dir" in set().union(*of_variants):
        raise ConfigError(f"study {study.name}: variants have folders of their own; run_dir= is for the whole study")
    for override in study.typed:
        key = override.partition("=")[0]
        if all(key in keys for keys in of_variants):
            hint = f"; write grid.{key}=[...]" if key in study.grid else ""
            raise ConfigError(f"{override}: every variant of study {study.name} sets {key} itself{hint}")


def _spell(value: Any) -> str:
    """A value from YAML in the syntax of an override."""
    if isinstance(value, list):
        return f"[{','.join(map(_spell, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {_spell(inner)}' for key, inner in value.items())}}}"
    text = show(value)
    if not isinstance(value, str) or _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _in_folder(text: str) -> str:
    """Text as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("_") or "empty"
