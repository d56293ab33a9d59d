"""What of a study is up to date: decided from disk, and what an earlier grid left is taken over.

Branches are named by what they differ in, so a study that grows by a key of its grid (`grid.seed=[0,1]`) has other
folders than before. What an earlier grid left in the study's folder and has the same key is moved to its new place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import artifact
from ..errors import OrreryError, StageError
from ..plan import Decision, Source, check_machine, decide
from ..run_folder import lock_holder
from ..stage import Stage
from .config import Study
from .tree import Branch, Layout, Step


@dataclass(frozen=True)
class StepState:
    """What a stage of a branch needs, and where its artifact is."""

    decision: Decision
    folder: Path | None
    """None where it has to be made."""


def plan_branches(study: Study, layout: Layout, stages: Mapping[str, type[Stage]]) -> dict[str, list[Decision]]:
    """What each branch's stages would do and why, by the name of the branch.

    Raises:
        OrreryError: this machine cannot do what one of them would.
    """
    states = _states(study, layout, stages)
    decisions = {branch.name: [states[step.key].decision for step in branch.steps] for branch in layout.branches}
    for branch in layout.branches:
        try:
            check_machine(branch.config, stages, decisions[branch.name])
        except OrreryError as error:
            raise type(error)(f"variant {branch.variants[0]} of study {study.name}: {error}") from error
    return decisions


def take_over(study: Study, layout: Layout, stages: Mapping[str, type[Stage]]) -> None:
    """Move what an earlier grid left, and this one needs as it is, to the branch that it belongs to now."""
    states = _states(study, layout, stages)
    for branch in layout.branches:
        for step in branch.steps:
            place, found = branch.config.run_dir / step.stage, states[step.key].folder
            if found is not None and found.absolute() != place.absolute():
                branch.config.run_dir.mkdir(parents=True, exist_ok=True)
                artifact.publish(found, place)


def _states(study: Study, layout: Layout, stages: Mapping[str, type[Stage]]) -> dict[str, StepState]:
    left = _left_by_earlier_grids(study, layout)
    states: dict[str, StepState] = {}
    for branch in layout.branches:
        for step in branch.steps:
            states[step.key] = _state(branch, step, stages, layout, states, left)
    return states


def _state(
    branch: Branch,
    step: Step,
    stages: Mapping[str, type[Stage]],
    layout: Layout,
    states: Mapping[str, StepState],
    left: Mapping[str, Path],
) -> StepState:
    sources: dict[str, list[Source]] = {}
    for name, keys in step.sources.items():
        sources[name] = []
        for key in keys:
            folder = states[key].folder if key in states else Path(key)
            if folder is None:
                maker = layout.branch_of[key]
                origin = states[key].decision.stage if maker is branch else maker.name
                return StepState(Decision(step.stage, "run", f"its input comes from {origin}", key), None)
            sources[name].append(Source(folder, stages[step.stage].inputs[name].kind, None))
    decision = decide(branch.config, stages[step.stage], step.stage, sources)
    if decision.action == "fresh":
        return StepState(decision, branch.config.run_dir / step.stage)
    if (found := left.get(decision.key or "")) is not None:
        return StepState(Decision(step.stage, "fresh", f"as {found.parent.name} left it", decision.key), found)
    return StepState(decision, None)


def _left_by_earlier_grids(study: Study, layout: Layout) -> dict[str, Path]:
    """Artifact folders below the study's, by key, that no branch of this layout has in its own place."""
    own = {branch.config.run_dir / step.stage for branch in layout.branches for step in branch.steps}
    return dict(_published(study.run_dir, own))


def _published(run_dir: Path, own: set[Path]) -> Iterator[tuple[str, Path]]:
    for file in sorted(run_dir.glob(f"*/*/{artifact.MANIFEST}")):
        folder = file.parent
        if folder in own or folder.suffix in (".partial", ".old") or lock_holder(folder.parent):
            continue
        try:
            manifest = artifact.read_manifest(folder)
            if manifest is not None and manifest.stage == folder.name:
                artifact.verify_quick(folder, manifest.kind)
                yield manifest.key, folder
        except StageError:
            continue  # damaged: it is made again
