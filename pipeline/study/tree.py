"""Which work the variants of a study share: a stage runs once for each configuration of it and of all it is made from.

Stages that the same variants share form a branch: an ordinary run in a folder of its own below the study's, which is
given the artifacts of other branches as `inputs.NAME=PATH`. What a branch reads is always shared by at least as many
variants, so that branches form a tree, or nearly: stages that vary independently meet again where one reads both.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import artifact
from ..config.load import CONFIG_DIR, RunConfig, load_config
from ..errors import ConfigError, OrreryError
from ..plan import check_inputs, check_world_model_is_used, find_sources, hashed
from ..stage import Stage
from .config import Study, Variant

SHARED = "shared"
LONGEST_NAME = 60
"""Of a branch that is called by all its variants, for want of anything that they have in common."""
COMPARE_STAGE = "compare"
"""Its artifact stands in the study's own folder, beside the branches."""


@dataclass(frozen=True)
class Step:
    """One stage in one configuration of it and of everything upstream."""

    key: str
    stage: str
    sources: Mapping[str, tuple[str, ...]]
    """By input name: keys of steps, or paths of artifacts made elsewhere."""


@dataclass(frozen=True)
class Branch:
    """An ordinary run, of the stages that the same variants share."""

    name: str
    """And folder, below the study's."""
    variants: tuple[str, ...]
    steps: tuple[Step, ...]
    parent: str | None
    """The branch that it takes artifacts from; of several the one of fewest variants."""
    reads: tuple[str, ...]
    """Keys of steps of other branches."""
    config: RunConfig

    def folder_of(self, key: str) -> Path:
        """Artifact folder of a step of this branch."""
        return self.config.run_dir.absolute() / next(step.stage for step in self.steps if step.key == key)


@dataclass(frozen=True)
class Layout:
    """All work of a study."""

    variants: Sequence[Variant]
    branches: Sequence[Branch]
    """Each after those that it reads from."""
    steps: Mapping[str, Sequence[Step]]
    """Of every variant, in the order of its stages."""

    @property
    def branch_of(self) -> dict[str, Branch]:
        """By key of a step."""
        return {step.key: branch for branch in self.branches for step in branch.steps}

    @property
    def same(self) -> list[list[str]]:
        """Variants that are the same work, together."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, steps in self.steps.items():
            groups.setdefault(tuple(step.key for step in steps), []).append(name)
        return [names for names in groups.values() if len(names) > 1]


def lay_out(
    study: Study, variants: Sequence[Variant], stages: Mapping[str, type[Stage]], config_dir: Path = CONFIG_DIR
) -> Layout:
    """Find what is shared, and check every variant. Writes nothing.

    Raises:
        OrreryError: what `run` would raise for a variant before its first stage.
    """
    if os.pathsep in str(study.run_dir.absolute()):
        raise ConfigError(f"the folder of a study must not have {os.pathsep!r} in its path, found {study.run_dir}")
    steps: dict[str, list[Step]] = {}
    checked: set[str] = set()
    for variant in variants:
        try:
            steps[variant.name] = _steps(variant.config, stages, checked)
        except OrreryError as error:
            raise type(error)(f"variant {variant.name} of study {study.name}: {error}") from error
    sharing: dict[str, list[str]] = {}
    for name, own in steps.items():
        for step in own:
            sharing.setdefault(step.key, []).append(name)
    branches: list[Branch] = []
    placed: dict[str, Branch] = {}
    by_name = {variant.name: variant for variant in variants}
    for own in steps.values():
        # Those of most variants first: what a step reads is shared by at least as many.
        groups: dict[tuple[str, ...], list[Step]] = {}
        for step in sorted(own, key=lambda step: -len(sharing[step.key])):
            if step.key not in placed:
                groups.setdefault(tuple(sharing[step.key]), []).append(step)
        for names, group in groups.items():
            sharers = [by_name[name] for name in names]
            for chunk in _chunks(group, stages):
                name = _branch_name(
                    sharers, len(variants), {COMPARE_STAGE, *(one.name for one in branches)}, chunk[0].stage
                )
                branch = _branch(study, name, sharers, chunk, placed, stages, config_dir)
                branches.append(branch)
                placed |= dict.fromkeys((step.key for step in chunk), branch)
    return Layout(variants, branches, steps)


def _steps(config: RunConfig, stages: Mapping[str, type[Stage]], checked: set[str]) -> list[Step]:
    found: dict[str, Step] = {}
    promised: dict[str, Any] = {}
    all_sources = {name: find_sources(config, stages, name) for name in config.settings.stages}
    check_world_model_is_used(config, stages, all_sources)
    for name, read in all_sources.items():
        sources = {
            input_name: tuple(found[one.stage].key if one.stage else str(one.folder) for one in many)
            for input_name, many in read.items()
        }
        key = artifact.hash_json([name, hashed(config.resolved[name], stages[name]), sources])
        if key not in checked:
            stages[name](config.stage_configs[name]).check()
            checked.add(key)
        check_inputs(config, stages, name, read, promised)
        found[name] = Step(key, name, sources)
    return list(found.values())


def _chunks(steps: Sequence[Step], stages: Mapping[str, type[Stage]]) -> list[list[Step]]:
    """Split where one run could not tell its stages apart by `inputs.NAME`, which counts for all stages of a run."""
    chunks: list[list[Step]] = [[]]
    for step in steps:
        if _inputs_from_outside([*chunks[-1], step], stages) is None:
            chunks.append([])
        chunks[-1].append(step)
    return chunks


def _inputs_from_outside(steps: Sequence[Step], stages: Mapping[str, type[Stage]]) -> dict[str, tuple[str, ...]] | None:
    """What the stages of a run read that no stage of it makes, by input name; None where they contradict each other."""
    own = {step.key for step in steps}
    given: dict[str, tuple[str, ...]] = {}
    for step in steps:
        for name, sources in step.sources.items():
            outside = tuple(source for source in sources if source not in own)
            if outside and given.setdefault(name, outside) != outside:
                return None
    for step in steps:
        for name, sources in step.sources.items():
            # A given artifact takes the place of one that the run makes, and joins many.
            if name in given and not set(given[name]) <= set(sources):
                return None
            if sources and name in given and not stages[step.stage].inputs[name].many and own & set(sources):
                return None
    return given


def _branch(
    study: Study,
    name: str,
    variants: Sequence[Variant],
    steps: Sequence[Step],
    placed: Mapping[str, Branch],
    stages: Mapping[str, type[Stage]],
    config_dir: Path,
) -> Branch:
    outside = _inputs_from_outside(steps, stages) or {}
    inputs = {
        input_name: os.pathsep.join(str(placed[one].folder_of(one)) if one in placed else one for one in many)
        for input_name, many in outside.items()
    }
    reads = tuple(dict.fromkeys(one for many in outside.values() for one in many if one in placed))
    names = tuple(variant.name for variant in variants)
    config = _config(study, study.run_dir / name, variants, [step.stage for step in steps], inputs, stages, config_dir)
    sources = [placed[one] for one in reads]
    parent = min(sources, key=lambda branch: len(branch.variants)).name if sources else None
    return Branch(name, names, tuple(steps), parent, reads, config)


def _config(
    study: Study,
    run_dir: Path,
    variants: Sequence[Variant],
    names: list[str],
    inputs: dict[str, str],
    stages: Mapping[str, type[Stage]],
    config_dir: Path,
) -> RunConfig:
    """The run of a branch. Its overrides say the same to `orrery run`."""
    config = variants[0].config
    if len(variants) > 1:
        # Without what tells the variants apart, unless they come by the same stages in different ways.
        shared = [one for one in config.overrides if all(one in other.config.overrides for other in variants)]
        with contextlib.suppress(ConfigError):
            plain = load_config(study.experiment, shared, stages=stages, config_dir=config_dir)
            if set(names) <= set(plain.stage_configs) and all(
                plain.resolved[name] == config.resolved[name] for name in names
            ):
                config = plain
    own: dict[str, Any] = {"stages": names, "inputs": inputs}
    if len(variants) == 1 and not any(override.startswith("name=") for override in config.overrides):
        own["name"] = f"{study.name}: {variants[0].name}"
    return replace(
        config,
        overrides=tuple(_overrides(config, own, stages)),
        run_dir=run_dir,
        settings=replace(config.settings, **own),
        stage_configs={name: config.stage_configs[name] for name in names},
        resolved={**config.resolved, **own},
    )


def _overrides(config: RunConfig, own: Mapping[str, Any], stages: Mapping[str, type[Stage]]) -> list[str]:
    """Those of `config`, with what `own` changes in it."""
    kept = [one for one in config.overrides if not one.startswith(("inputs.", "stages="))]
    added = [f"stages=[{','.join(own['stages'])}]", *(f"inputs.{name}={path}" for name, path in own["inputs"].items())]
    if "name" in own:
        added.append(f'name="{own["name"]}"')
    # A run refuses algorithms that none of its stages makes.
    made = {algorithm for name in own["stages"] for algorithm in stages[name].algorithms}
    if made and (algorithms := [one for one in config.settings.algorithms if one in made]):
        kept = [one for one in kept if not one.startswith("algorithms=")]
        added.append(f"algorithms=[{','.join(algorithms)}]")
    return kept + added


def _branch_name(variants: Sequence[Variant], total: int, taken: Container[str], stage: str) -> str:
    """What its variants have in common, and its first stage where that does not tell it from another branch."""
    name = SHARED
    if len(variants) < total or total == 1:
        parts = [set(variant.name.split(",")) for variant in variants]
        common = [part for part in variants[0].name.split(",") if all(part in other for other in parts)]
        together = "+".join(variant.name for variant in variants)
        name = ",".join(common) or (together if len(together) <= LONGEST_NAME else SHARED)
    candidates = itertools.chain([name, f"{name},{stage}"], (f"{name},{stage},{n}" for n in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)
