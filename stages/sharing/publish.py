"""Publish an artifact: copy the files that loading needs, and add provenance and a model card."""

from __future__ import annotations

import dataclasses
import filecmp
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...datasets.schema import TaskSpec, read_table
from ...pipeline import artifact
from ...pipeline.errors import CheckpointError, StageError
from ...pipeline.hub import HUB_ID, KIND_BY_FILE, upload
from ...pipeline.paths import user_path
from ...pipeline.reading import decode, read_json, reading
from ..policy.policy import load_policy
from ..policy.policy_index import PolicyIndex
from ..sequence_model.kinds import load_model
from ..world_model.networks import WorldModel
from ..world_model.start_frames import STARTS, saved_count
from .card import NOT_GIVEN, SEQUENCE_MODEL, model_card
from .provenance import Provenance, trace

CARD = "README.md"
PROVENANCE = "provenance.json"
_ENDINGS = {".json", ".safetensors", ".csv"}
_TRAINING = {*artifact.OF_ATTEMPTS, "jobs"}
"""Folders that serve only to continue or monitor training."""


def write_publication(
    source: Path, target: Path, name: str, *, licence: str = NOT_GIVEN, starts: bool = True
) -> Provenance:
    """Write the publishable files of the artifact in `source` to `target`.

    Args:
        source: an artifact of a world model or of policies, the folder of one policy, or an earlier publication.
        target: a folder that does not exist, or is empty.
        name: user/name, for the card.
        starts: include the start frames, which are a sample of the training data.
    Raises:
        OrreryError: `source` is another kind of artifact or damaged, or `target` is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StageError(f"{target} is not an empty folder; choose another, or empty it")
    kind = _kind_of(source)
    manifest = artifact.read_manifest(source)
    artifact.verify(source, kind)
    files = [
        path.relative_to(source)
        for path in sorted(source.rglob("*"))
        if path.suffix in _ENDINGS and not _TRAINING & set(path.relative_to(source).parts)
    ]
    files = [path for path in files if path.name not in (artifact.MANIFEST, PROVENANCE)]
    if not starts:
        files = [path for path in files if path.stem != STARTS]
    _refuse_lost_model(source)
    tasks = _tasks(source)
    facts = _known(source) or trace(source, manifest, tasks)
    facts = dataclasses.replace(facts, kind=kind)
    for path in files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)
    if (source / "policy.json").is_file():
        _index_one_policy(target, tasks[0])
    artifact.write_json(target / PROVENANCE, dataclasses.asdict(facts))
    if manifest is not None:
        artifact.finish_copy(target, manifest)
    else:
        artifact.finish(
            target, kind=kind, stage="", key="", config={}, inputs={}, seconds=0.0, summary="no stage's manifest"
        )
    sizes = {str(path): (target / path).stat().st_size for path in files}
    config, parameters = _network(source)
    card = model_card(name, facts, config, parameters, sizes, licence, saved_count(target))
    # Not in the manifest: a card may be edited on the Hub.
    (target / CARD).write_text(card, encoding="utf-8")
    return facts


def push_to_hub(source: Any, name: str, *, private: bool = False, licence: str = NOT_GIVEN, starts: bool = True) -> str:
    """Publish an artifact, or a model or policy in memory, as the Hub's repository `name`; returns its address.

    Args:
        source: a folder as for `write_publication`, or an object with `save(folder)`: a WorldModel or a policy. An
            object without an unchanged `origin` carries no provenance; pass the folder to include data, metrics and
            scores.
        name: user/name. The repository is created if needed; files of the same name are replaced.
    Raises:
        OrreryError: as in `write_publication`; or not logged in, not allowed, or no network.
    """
    check_name(name)
    with tempfile.TemporaryDirectory(prefix="orrery-") as temporary:
        folder = Path(temporary)
        if not isinstance(source, str | Path):
            source.save(folder / "object")
            source = _origin(source, folder / "object") or folder / "object"
        write_publication(user_path(source), folder / "publication", name, licence=licence, starts=starts)
        return upload(folder / "publication", name, private=private)


def _origin(source: Any, saved: Path) -> Path | None:
    """The artifact that an object was loaded from, if the object is unchanged."""
    origin = getattr(source, "origin", None)
    if origin is None or not origin.is_dir():
        return None
    files = [path.name for path in saved.iterdir()]
    same, _, _ = filecmp.cmpfiles(saved, origin, files, shallow=False)
    return origin if set(same) == set(files) else None


def check_name(name: str) -> None:
    """Raise a StageError unless `name` is a valid repository name of the Hub."""
    match = HUB_ID.fullmatch(name)
    if match is None or match["revision"]:
        raise StageError(f"{name!r}: expected the name of a repository of the Hugging Face Hub, user/name")


def _kind_of(source: Path) -> str:
    if not source.is_dir():
        raise StageError(f"there is no folder {source.absolute()}")
    manifest = artifact.read_manifest(source)
    kinds = (
        [manifest.kind] if manifest else [kind for name, (kind, _) in KIND_BY_FILE.items() if (source / name).is_file()]
    )
    if not kinds or kinds[0] not in ("world_model", "policies"):
        found = f"an artifact of kind {kinds[0]!r}" if kinds else "neither"
        raise StageError(
            f"{source}: expected the folder of a world model (RUN/pretrain), of policies (RUN/extract) or of one "
            f"policy (RUN/extract/pwm/TASK/seed_0), found {found}"
        )
    return kinds[0]


def _refuse_lost_model(source: Path) -> None:
    """Refuse a single planner, whose world model is stored outside its folder."""
    path = source / "policy.json"
    if path.is_file() and (model := read_json(path, CheckpointError).get("world_model")):
        raise StageError(
            f"{source} plans with the world model in {(source / model).resolve()}, outside this folder; publish the "
            "artifact that holds both"
        )


def _tasks(source: Path) -> Sequence[dict[str, Any]]:
    """TaskSpecs; for policies, only tasks with a policy."""
    if (source / "models.json").is_file():
        raise StageError(f"{source} holds one model per task (models.json); publish the folder of one of them")
    if (source / "tasks.json").is_file():
        return [spec.to_dict() for spec in read_table(source)]
    if (path := source / "policy.json").is_file():
        with reading(path, CheckpointError):
            return [TaskSpec.from_dict(read_json(path, CheckpointError)["task"]).to_dict()]
    index = PolicyIndex.read(source)
    named = {entry["task"] for entry in index.entries}
    return [task.to_dict() for task in index.tasks if task.name in named]


def _network(source: Path) -> tuple[dict[str, Any], int]:
    """The stored config of the model, or of the first policy, and its number of parameters."""
    loaders: dict[str, Callable[[Path], Any]] = {
        "model.json": WorldModel.load,
        SEQUENCE_MODEL: load_model,
        "policy.json": load_policy,
    }
    for name in (*loaders, "*/*/*/policy.json"):
        for path in sorted(source.glob(name)):
            module = loaders[path.name](path.parent)
            config: dict[str, Any] = read_json(path, CheckpointError)
            return config, sum(parameter.numel() for parameter in module.parameters())
    raise StageError(f"{source} holds no policy")


def _known(source: Path) -> Provenance | None:
    """The provenance recorded by an earlier publication, whose run may not be available."""
    path = source / PROVENANCE
    if not path.is_file():
        return None
    with reading(path, CheckpointError):
        return decode(Provenance, read_json(path, CheckpointError))


def _index_one_policy(target: Path, task: dict[str, Any]) -> None:
    """Write policies.json for a single policy, so that its folder can be an input of stages."""
    trained_by = read_json(target / "policy.json", CheckpointError).get("trained_by", {})
    entry = {"algorithm": "policy", "seed": 0, **trained_by, "task": task["name"], "path": "."}
    artifact.write_json(target / "policies.json", {"tasks": [task], "policies": [entry]})
