"""What a study is: an experiment, and the variants of it that its YAML file names. Each variant is an ordinary run.

    # What it finds out, in one line
    experiment: quickstart
    overrides: [pretrain.steps=2000]
    grid:
      pretrain.model.latent: [simnorm, mish]
      extract.first_order.horizon: [4, 8, 16]

`grid` makes one variant of every combination. `variants` names sets of overrides, {narrow: [key=value, ...]}; with
both, every named set meets every combination. Values of a seed in a grid repeat the whole pipeline on new data and
with new models (`seed`), or a stage and all that follow (`pretrain.seed`). They are variants too, and form one group.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ..config.load import RunConfig, describe_file, find_yaml, load_config
from ..config.overrides import merge, quoted, short_names, show, written
from ..config.schema import nearest
from ..errors import ConfigError, labelled
from ..paths import CONFIG_DIR, user_path
from ..reading import check_yaml, decode, reading
from ..stage import Stage

KEYS = ("experiment", "overrides", "grid", "variants")
FORM = "experiment: NAME, overrides: [key=value], grid: {KEY: [value, value]}, variants: {NAME: [key=value]}"
NAMED = "variant"
"""The parameter that a named set of overrides gives to its variants."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9._+-]+")


def is_seed(key: str) -> bool:
    """Whether a key is that of a random seed: the run's `seed`, or a stage's."""
    return key.rpartition(".")[2] == "seed"


@dataclass(frozen=True)
class Variant:
    """One run of a series: a variant of a study, or a round."""

    name: str
    """And its folder below that of the series."""
    group: str
    """Its name without seeds: variants of a group differ only in these."""
    parameters: Mapping[str, str]
    """What tells it from the others, as text: values by the grid's dotted keys, and `variant` for named overrides."""
    config: RunConfig
    label: str = ""
    """Starts errors about it."""
    note: str = ""
    """Printed beside its name."""
    reads_from: str | None = None
    """The variant whose artifacts its config names, and which must be complete before it can be planned."""
    preview: RunConfig | None = None
    """Its config without what it takes from that variant, for checks before that one has run."""
    anew: Sequence[str] = ()
    """Stages to run whether they are up to date or not; those that variants share, once."""


@dataclass(frozen=True)
class Series:
    """Runs that share artifacts and are compared: the variants of a study, or the rounds of an iteration."""

    command: Literal["study", "iterate"]
    name: str
    source: str
    """Name of a built-in study or experiment, or absolute path of a YAML file."""
    description: str
    run_dir: Path
    overrides: tuple[str, ...]
    """As typed, without run_dir."""
    variants: tuple[Variant, ...]

    def __post_init__(self) -> None:
        if os.pathsep in str(self.run_dir.absolute()):
            raise ConfigError(f"run_dir must not have {os.pathsep!r} in its path, found {self.run_dir}")


@dataclass(frozen=True)
class Study:
    """The file of a study, with the overrides of the command line."""

    experiment: str
    """Name of an experiment, or path of its YAML file."""
    overrides: list[str] = field(default_factory=list)
    """Of all variants."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Lists of values by dotted key."""
    variants: dict[str, list[str] | None] = field(default_factory=dict)
    """Overrides by the name of a variant."""
    path: Path = Path()
    run_dir: Path = Path()
    typed: tuple[str, ...] = ()
    """Overrides of the command line, without run_dir."""


def load_study(source: str, overrides: Sequence[str] = (), *, config_dir: Path = CONFIG_DIR) -> Study:
    """Read a study.

    Args:
        source: name of a file in `config_dir`/studies, or path of a YAML file.
        overrides: `key=value` for all variants; `grid.KEY=[...]` sets the values of a key in the grid.
    Raises:
        ConfigError: there is no such study, or its file is not one.
    """
    path = find_yaml("study", source, config_dir)
    with reading(path, ConfigError, "correct it"):
        study = _read(path)
    shared, grid = list(study.overrides), {str(key): values for key, values in study.grid.items()}
    run_dir = Path("runs") / path.stem
    typed = tuple(override for override in overrides if not override.startswith("run_dir="))
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "run_dir" and value:
            run_dir = user_path(value)
        elif key.startswith("grid."):
            try:
                grid[key.removeprefix("grid.")] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"cannot read {override!r}; expected grid.KEY=[value, value]") from error
        else:
            shared.append(override)
    for key, values in grid.items():
        where = f"grid.{key}" if any(one.startswith(f"grid.{key}=") for one in typed) else f"{path}: grid.{key}"
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where} must be a list of values, found {values!r}")
        if repeated := [text for text, count in Counter(map(show, values)).items() if count > 1]:
            raise ConfigError(f"{where} repeats {', '.join(repeated)}")
    experiment = study.experiment
    if experiment.endswith((".yaml", ".yml")):
        experiment = str(path.parent / user_path(experiment))
    return replace(study, experiment=experiment, overrides=shared, grid=grid, path=path, run_dir=run_dir, typed=typed)


def prepare_study(
    source: str, overrides: Sequence[str], stages: Mapping[str, type[Stage]], config_dir: Path = CONFIG_DIR
) -> Series:
    """Read a study and compose its variants, in the order of the file; the last key of the grid varies fastest.

    Raises:
        ConfigError: something is wrong with the file, or with the keys or values of a variant, which it names.
    """
    study = load_study(source, overrides, config_dir=config_dir)
    of_study = f"study {study.path.stem}"
    keys = list(study.grid)
    short = short_names(keys)
    found: list[tuple[str, str, dict[str, str], list[str]]] = []
    for name, own in (study.variants or {"": None}).items():
        for values in itertools.product(*study.grid.values()):
            shown = {key: show(value) for key, value in zip(keys, values, strict=True)}
            parts = {key: f"{short[key]}={_in_folder(text)}" for key, text in shown.items()}
            unseeded = [part for key, part in parts.items() if not is_seed(key)]
            overrides = [*(own or ()), *(f"{key}={written(value)}" for key, value in zip(keys, values, strict=True))]
            found.append((
                ",".join(filter(None, [name, *parts.values()])),
                ",".join(filter(None, [name, *unseeded])) or study.path.stem,
                ({NAMED: name} if name else {}) | shown,
                overrides,
            ))  # fmt: skip
    if repeated := [one for one, count in Counter(one for one, *_ in found).items() if count > 1]:
        raise ConfigError(
            f"{of_study}: variants with the same name: {', '.join(repeated)}; give each a name under `variants`"
        )
    of_variants = [{one.partition("=")[0] for one in own} for *_, own in found]
    if "run_dir" in set().union(*of_variants):
        raise ConfigError(f"{of_study}: variants have folders of their own; run_dir= is for the whole study")
    for override in study.typed:
        key = override.partition("=")[0]
        if all(key in keys for keys in of_variants):
            hint = f"; write grid.{key}=[...]" if key in study.grid else ""
            raise ConfigError(f"{override}: every variant of {of_study} sets {key} itself{hint}")
    variants = []
    for name, group, parameters, own_overrides in found:
        label = f"variant {name} of {of_study}"
        overrides = merge([f"name={quoted(f'{study.path.stem}: {name}')}", *study.overrides, *own_overrides])
        with labelled(label):
            config = load_config(study.experiment, overrides, stages=stages, config_dir=config_dir)
        variants.append(Variant(name, group, parameters, in_series(config, study.run_dir, name), label))
    return Series(
        command="study",
        name=study.path.stem,
        source=source if source == study.path.stem else str(study.path.resolve()),
        description=describe_file(study.path),
        run_dir=study.run_dir,
        overrides=study.typed,
        variants=tuple(variants),
    )


def in_series(config: RunConfig, folder: Path, name: str) -> RunConfig:
    """The run in a folder of its own below that of a series, reusing artifacts of the others."""
    reuse_from = [*config.settings.reuse_from, str(folder.absolute())]
    kept = [one for one in config.overrides if not one.startswith("reuse_from=")]
    return replace(
        config,
        overrides=(*kept, f"reuse_from={written(reuse_from)}"),
        run_dir=folder / name,
        settings=replace(config.settings, reuse_from=reuse_from),
        resolved={**config.resolved, "reuse_from": reuse_from},
    )


def _read(path: Path) -> Study:
    check_yaml(path, ConfigError)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if isinstance(values, dict):
        if unknown := [str(key) for key in values if key not in KEYS]:
            raise ConfigError(f"a study has no key {unknown[0]!r}.{nearest(unknown[0], KEYS)} Expected {FORM}")
        values = {key: value for key, value in values.items() if value is not None}
    try:
        study = decode(Study, values)
    except ValueError as error:
        raise ConfigError(f"{error}. Expected {FORM}") from error
    if not study.grid and not study.variants:
        raise ConfigError("a study needs a `grid`, or `variants`")
    for name in study.variants:
        if not isinstance(name, str) or not _FOLDER_NAME.fullmatch(name):
            raise ConfigError(f"a variant's name is made of letters, digits and ._+-, found {name!r}")
    for override in itertools.chain(study.overrides, *(own or () for own in study.variants.values())):
        if "=" not in override:
            raise ConfigError(f"expected key=value, found {override!r}")
    return study


def _in_folder(text: str) -> str:
    """Text as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("_") or "empty"
