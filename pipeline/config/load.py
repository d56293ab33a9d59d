"""From an experiment's name and `key=value` overrides to frozen dataclasses.

Hydra composes YAML over a schema made of `Settings` and one Config dataclass per stage, so unknown keys
and wrong types fail here, before anything runs. Nothing is changed after `load_config` returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from yaml import YAMLError

from ..entry_points import load, load_all, names
from ..errors import ConfigError
from ..paths import CONFIG_DIR, user_path
from ..reading import check_yaml, reading
from ..stage import RUN_GROUPS, Stage
from .algorithms import select_stages
from .overrides import Override, read_overrides
from .schema import build, describe_type, find_key, make_schema, nearest, plain_type, renamed, unknown_key

PLURALS = {"experiment": "experiments", "study": "studies"}
"""Folders of CONFIG_DIR."""


@dataclass(frozen=True)
class Settings:
    """Keys of every run that belong to no single stage."""

    name: str = ""
    """Title of the run in its report. Empty: the experiment's name."""
    stages: list[str] = field(default_factory=list)
    """Stages to run, in order."""
    tasks: list[str] = field(default_factory=list)
    """Task names, for example dmc/walker-run, or datasets: minari/<id>, an HDF5 file."""
    seeds: int = 2
    """Policies per task and algorithm, each with its own random seed."""
    seed: int = 0
    """Random seed of the whole run."""
    algorithms: list[str] = field(default_factory=list)
    """Algorithms to train policies with; `orrery run --help` lists them. Their stages are added, other policy stages
    are left out. Empty: every listed stage runs, with its default algorithms."""
    loggers: list[str] | None = None
    """Loggers of training metrics: csv, tensorboard, wandb, mlflow; they write to RUN/logs. null = tensorboard for
    pretrain and finetune, none for other stages."""
    world_model: str = ""
    """Pretrained world model: an artifact folder (RUN/pretrain), a run folder with one model, or a Hugging Face Hub id
    (user/name, user/name@revision). Stages after one that makes a model use that model instead."""
    inputs: dict[str, str] = field(default_factory=dict)
    """External artifacts by input name, as folders or Hub ids; they take precedence over this run's own:
    inputs.store=other/run/pack. For several artifacts: inputs.policies=one/extract:other/extract."""
    reuse_from: list[str] = field(default_factory=list)
    """Run folders, or folders of runs: an artifact in them that has the same settings and inputs is linked into this
    run instead of computed."""
    workers: int = 0
    """Processes for parallel work; 0 = one per core."""
    threads: int = 0
    """Torch threads of the main process; 0 = one per core."""
    wait_min: float = 10.0
    """Timeout (minutes) for distributed processes to join."""


@dataclass(frozen=True)
class RunConfig:
    """A run, completely described."""

    experiment: str
    """Name of a built-in experiment, or absolute path of a YAML file."""
    overrides: tuple[str, ...]
    run_dir: Path
    settings: Settings
    stage_configs: Mapping[str, Any]
    """Config dataclass by stage name, in the order of `settings.stages`."""
    resolved: Mapping[str, Any]
    """Every key with its final value, as plain dicts and lists; also of stages that do not run."""


def discover_stages() -> dict[str, type[Stage]]:
    """Return {name: class} of the entry points in group `orrery.stages`.

    Only their modules are imported: their neighbours may need torch.
    """
    return load_all("stages", Stage)


def list_experiments(config_dir: Path = CONFIG_DIR) -> dict[str, str]:
    """Return {name: description} of the built-in experiments."""
    return describe_files(config_dir / "experiments")


def find_yaml(kind: str, source: str, config_dir: Path = CONFIG_DIR) -> Path:
    """The file of an experiment or a study.

    Args:
        kind: "experiment" or "study".
        source: name of a built-in one, or path of a YAML file.
    Raises:
        ConfigError: there is none.
    """
    if _is_path(source):
        path = user_path(source)
        if not path.exists() and not path.is_symlink():
            raise ConfigError(f"there is no {kind} file {path.absolute()}")
        return path
    folder = config_dir / PLURALS[kind]
    if source in (known := describe_files(folder)):
        return folder / f"{source}.yaml"
    if "=" in source:
        raise ConfigError(
            f"expected the name of the {kind}, for example {next(iter(known))}, before the settings; found {source!r}"
        )
    lines = [f"  {name}  {description}".rstrip() for name, description in known.items()]
    raise ConfigError(
        f"unknown {kind} {source!r}.{nearest(source, known)} Known {PLURALS[kind]}:\n"
        + ("\n".join(lines) or "  (none)")
        + f"\nFor your own {kind}, use the path of its .yaml file."
    )


def describe_files(folder: Path) -> dict[str, str]:
    """Return {name: description} of the YAML files in a folder; the description is a file's first comment."""
    return {path.stem: describe_file(path) for path in sorted(folder.glob("*.yaml"))}


def describe_file(path: Path) -> str:
    """Return the first comment of a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ").rstrip() for line in lines if line.startswith("#")]
    return next((comment for comment in comments if comment and not comment.startswith("@")), "")


def load_config(
    experiment: str,
    overrides: Sequence[str] = (),
    *,
    stages: Mapping[str, type[Stage]],
    config_dir: Path = CONFIG_DIR,
) -> RunConfig:
    """Compose an experiment with overrides and check it.

    Args:
        experiment: name of a file in `config_dir`/experiments, or path of a YAML file.
        overrides: `key=value`, as `overrides.read_overrides` takes them.
        stages: the stages that have a key in the config, as `discover_stages` returns them.
    Raises:
        ConfigError: naming the key, what was expected and what was found.
    """
    if not _is_path(experiment):
        return _load(experiment, overrides, stages, config_dir)
    with reading(experiment, ConfigError, "correct it") if not overrides else contextlib.nullcontext():
        try:
            return _load(experiment, overrides, stages, config_dir)
        except ConfigError:
            if overrides:  # where the file alone is wrong, the error names it
                load_config(experiment, stages=stages, config_dir=config_dir)
            raise


def _load(experiment: str, overrides: Sequence[str], stages: Mapping[str, type[Stage]], config_dir: Path) -> RunConfig:
    types, schema = _schema(tuple(stages.items()))
    run_dir, read = read_overrides(overrides, types)
    with (
        reading(experiment, ConfigError, "correct it") if _is_path(experiment) else contextlib.nullcontext(),
        _readable_errors(types, f"{experiment}: " if _is_path(experiment) else ""),
    ):
        node = _compose(experiment, schema, config_dir)
    for override in read:
        _apply(node, override, types)
    with _readable_errors(types):
        resolved: Any = OmegaConf.to_container(node, resolve=True)
    settings = Settings(**{name: build(hint, resolved[name], name) for name, hint in get_type_hints(Settings).items()})
    path = user_path(experiment)
    if not settings.name:
        resolved["name"] = path.stem
        settings = dataclasses.replace(settings, name=path.stem)
    _check_settings(settings, stages)
    _follow_groups(resolved, stages)
    for name, group in run_groups(stages).items():
        build(group, resolved[name], name)
    typed = {override.key for override in read}
    selected, trained = select_stages(settings.algorithms, settings.stages, resolved, stages, typed=typed)
    resolved |= {"stages": selected, "algorithms": trained or settings.algorithms}
    settings = dataclasses.replace(settings, stages=selected, algorithms=resolved["algorithms"])
    stage_configs = {name: build(stages[name].Config, resolved[name], name) for name in settings.stages}
    for key, part in {"": settings, **{f"{name}.": config for name, config in stage_configs.items()}}.items():
        if getattr(part, "seed", 0) < 0:
            raise ConfigError(f"{key}seed must not be negative, found {part.seed}")
    return RunConfig(
        experiment=str(path.resolve()) if _is_path(experiment) else experiment,
        overrides=tuple(override for override in overrides if not override.startswith("run_dir=")),
        run_dir=user_path(run_dir) if run_dir is not None else Path("runs") / path.stem,
        settings=settings,
        stage_configs=stage_configs,
        resolved=resolved,
    )


def dotted_keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ('pretrain.steps', value) for each leaf of nested mappings; an empty mapping is a leaf."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from dotted_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@functools.lru_cache(maxsize=4)
def _schema(stages: tuple[tuple[str, type[Stage]], ...]) -> tuple[dict[str, Any], DictConfig]:
    """The type of everything that a run's config holds, by key, and the schema; the slower half of composing."""
    parts = _parts(dict(stages))
    schema = make_schema(parts)
    for name, stage in stages:
        for key in keys_from_run(stage):
            OmegaConf.update(schema, f"{name}.{key}", f"${{{key}}}", merge=False)
    return {key: hint for key, (hint, _) in parts.items()}, schema


def keys_from_run(stage: type[Stage]) -> list[str]:
    """Keys of a stage, dotted, whose default is the run's value of the same key."""
    names = [one.name for one in dataclasses.fields(stage.Config)]
    groups = [(name, get_type_hints(stage.Config)[name]) for name in names if name in RUN_GROUPS]
    return [
        *(name for name in names if name in stage.run_keys),
        *(
            f"{name}.{one.name}"
            for name, group in groups
            for one in dataclasses.fields(group)
            if get_origin(get_type_hints(group)[one.name]) is not dict  # whose entries are merged (`_follow_groups`)
        ),
    ]


def run_groups(stages: Mapping[str, type[Stage]]) -> dict[str, type]:
    """The type of each of RUN_GROUPS that some stage has."""
    hints = [get_type_hints(stage.Config) for stage in reversed(list(stages.values()))]
    return {name: own[name] for own in hints for name in RUN_GROUPS if name in own}


def _follow_groups(resolved: Mapping[str, Any], stages: Mapping[str, type[Stage]]) -> None:
    """Let what belongs to another setting of a group, such as options to an executor, be the run's only where that
    setting is the run's."""
    for group, cls in run_groups(stages).items():
        dependent = [
            (one.name, one.metadata["belongs_to"]) for one in dataclasses.fields(cls) if "belongs_to" in one.metadata
        ]
        for own in (resolved[name][group] for name in stages if group in resolved[name]):
            for name, owner in dependent:
                run, default = resolved[group], getattr(cls(), name)
                same = own[owner] == run[owner]
                if isinstance(default, dict):
                    own[name] = {**(run[name] if same else {}), **own[name]}
                elif not same and own[name] == run[name]:
                    own[name] = default


def _parts(stages: Mapping[str, type[Stage]]) -> dict[str, Any]:
    defaults, hints = Settings(), get_type_hints(Settings)
    parts = {f.name: (hints[f.name], getattr(defaults, f.name)) for f in dataclasses.fields(Settings)}
    if taken := sorted(set(stages) & set(parts)):
        raise ConfigError(f"stages cannot have these names, which are keys of a run: {', '.join(taken)}")
    parts |= {name: (group, group()) for name, group in run_groups(stages).items()}
    return parts | {name: (stage.Config, stage.Config()) for name, stage in stages.items()}


def _is_path(experiment: str) -> bool:
    return experiment.endswith((".yaml", ".yml"))


def _compose(experiment: str, schema: DictConfig, config_dir: Path) -> DictConfig:
    path = find_yaml("experiment", experiment, config_dir)
    check_yaml(path, ConfigError)
    node: Any = OmegaConf.load(path)
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path} must contain `key: value` lines, found {type(node).__name__}")
    if "defaults" not in node:
        node = OmegaConf.merge({"defaults": ["base", "_self_"]}, node)
    store = ConfigStore.instance()
    store.store(name="schema", node=schema)
    store.store(name="experiment_file", node=node)
    with initialize_config_dir(config_dir=str(config_dir.resolve()), version_base="1.3"):
        return compose(config_name="experiment_file")


def _check_settings(settings: Settings, stages: Mapping[str, type[Stage]]) -> None:
    if not settings.stages:
        raise ConfigError(f"stages is empty; list at least one of: {', '.join(stages)}")
    for name in settings.stages:
        if name not in stages and (now := renamed(name)):
            raise ConfigError(f"stages: {name!r} was renamed: use {now}")
        if name not in stages:
            raise _no_stage(name, stages)
    if repeated := sorted({name for name in settings.stages if settings.stages.count(name) > 1}):
        raise ConfigError(f"stages must not repeat: {', '.join(repeated)}")
    if repeated := sorted({name for name in settings.tasks if settings.tasks.count(name) > 1}):
        raise ConfigError(f"tasks must not repeat: {', '.join(repeated)}")
    if settings.seeds < 1:
        raise ConfigError(f"seeds is the number of seeds and must be at least 1, found {settings.seeds}")
    for key in ("workers", "threads"):
        if getattr(settings, key) < 0:
            raise ConfigError(f"{key} must be at least 0 (0 = one per core), found {getattr(settings, key)}")
    if settings.wait_min <= 0:
        raise ConfigError(f"wait_min must be positive, found {settings.wait_min}")
    inputs = {input_name for name in settings.stages for input_name in stages[name].inputs}
    for name, value in settings.inputs.items():
        if not all(map(str.strip, value.split(os.pathsep))):
            raise ConfigError(f"inputs.{name}={value}: expected a folder or a Hugging Face Hub id, found an empty name")
        if name not in inputs:
            raise ConfigError(
                f"inputs.{name}: no listed stage has an input {name!r}.{nearest(name, inputs)} "
                f"Inputs of the listed stages: {', '.join(sorted(inputs)) or 'none'}"
            )


def _no_stage(name: str, stages: Mapping[str, type[Stage]]) -> ConfigError:
    if name in names("stages"):
        load("stages", name, Stage)  # says what is wrong with it
    if (file := next((CONFIG_DIR.parent / "stages").rglob(f"stage_{name}.py"), None)) is not None:
        return ConfigError(
            f"stages: {file} is not installed as a stage. Add its entry point to the group orrery.stages in "
            "pyproject.toml, then reinstall: pip install --no-deps -e ."
        )
    return ConfigError(f"stages: unknown stage {name!r}.{nearest(name, stages)} Known: {', '.join(stages)}")


def _apply(node: DictConfig, override: Override, types: Mapping[str, Any]) -> None:
    """Set a key of the composed config."""
    value = override.value
    for name in reversed(override.path[1:]):
        value = {name: value}
    try:
        OmegaConf.update(node, override.path[0], value, merge=True)
    except OmegaConfBaseException as error:
        if (error.full_key and error.full_key.startswith(f"{override.key}.")) or isinstance(error, _UNKNOWN):
            raise _readable(error, types) from error
        raise _wrong_type(override.key, override.hint, override.text) from error


@contextlib.contextmanager
def _readable_errors(types: Mapping[str, Any], where: str = "") -> Iterator[None]:
    """Turn errors of Hydra, OmegaConf and YAML into a ConfigError that names the key or the place."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OmegaConfBaseException):
            cause = cause.__cause__ or cause.__context__
        if cause is None or not cause.full_key:
            raise ConfigError(where + " ".join(str(error).split())) from error
        raise ConfigError(f"{where}{_readable(cause, types)}") from error


_UNKNOWN = (ConfigAttributeError, ConfigKeyError)


def _readable(error: OmegaConfBaseException, types: Mapping[str, Any]) -> ConfigError:
    key = str(error.full_key)
    if isinstance(error, _UNKNOWN):
        return unknown_key(types, key)
    if isinstance(error, InterpolationResolutionError):
        return ConfigError(f"{key}: {(error.msg or str(error)).splitlines()[0]}")
    name, bracket, _ = key.partition("[")
    hint = find_key(types, name, "{")[1]
    if bracket and get_origin(plain_type(hint)) in (list, tuple):
        hint = get_args(plain_type(hint))[0]
    return _wrong_type(key, hint, error.value)


def _wrong_type(key: str, hint: Any, found: Any) -> ConfigError:
    is_list = get_origin(plain_type(hint)) in (list, tuple)
    brackets = f"; write {key}=[{found}]" if is_list and not str(found).startswith(("[", "{")) else ""
    empty = f"; for an empty value write {key}=" if hint is str and found == "null" else ""
    return ConfigError(f"{key}: expected {describe_type(hint)}, found {found!r}{brackets}{empty}")
