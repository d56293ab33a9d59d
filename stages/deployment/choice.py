"""Which policy a user means: a folder of one, or one out of those that a stage or a run has made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...datasets.tasks import resolve_name
from ...pipeline.errors import CheckpointError, TaskError
from ...pipeline.hub import HUB_ID, SIGNS, download


@dataclass(frozen=True)
class Choice:
    """One policy that a stage has written."""

    folder: Path
    algorithm: str
    task: str
    seed: int

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.task}, seed {self.seed} ({self.folder})"


def choose_policy(reference: str, wishes: Mapping[str, str]) -> Choice:
    """The policy that `reference` names.

    Args:
        reference: the folder of a policy, of what a stage made of them (RUN/extract), or of a run; or a Hub id.
        wishes: `algorithm`, `task` and `seed` say which, where there are several. Algorithm and seed are the first of
            those there unless wished otherwise.
    Raises:
        CheckpointError: there is no policy, or none as wished, or it takes a task to choose.
    """
    folder = _folder(reference)
    if (folder / "policy.json").is_file():
        values = json.loads((folder / "policy.json").read_text())
        made = values.get("trained_by", {})
        return Choice(folder, made.get("algorithm", "policy"), values["task"]["name"], int(made.get("seed", 0)))
    choices = list(_listed(folder))
    if not choices:
        raise CheckpointError(_no_policy(folder))
    for key in ("task", "algorithm", "seed"):
        present = list(dict.fromkeys(str(getattr(one, key)) for one in choices))
        wish = _task_name(wishes[key], present) if key == "task" and key in wishes else wishes.get(key)
        if wish is not None and wish not in present:
            raise CheckpointError(f"{folder} has no policy with {key}={wish}; it has {key}: {', '.join(present)}")
        if wish is None and key == "task" and len(present) > 1:
            raise CheckpointError(f"{folder} has policies of {len(present)} tasks; choose task={'|'.join(present)}")
        choices = [one for one in choices if str(getattr(one, key)) == (wish or present[0])]
    return choices[0]


def _folder(reference: str) -> Path:
    path = Path(reference).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path}: expected the folder of a policy, found a file")
    match = HUB_ID.fullmatch(reference)
    if match is None:
        raise CheckpointError(
            f"there is no folder {path.absolute()}; expected that of a policy, of policies or of a run"
        )
    return download(match["repository"], match["revision"])


def _listed(folder: Path) -> Iterator[Choice]:
    """The policies that a stage's folder lists, or those of all stages of a run."""
    for index in [folder / "policies.json", *sorted(folder.glob("*/policies.json"))]:
        if index.is_file():
            for entry in json.loads(index.read_text())["policies"]:
                yield Choice(index.parent / entry["path"], entry["algorithm"], entry["task"], int(entry["seed"]))


def _task_name(wish: str, present: list[str]) -> str:
    """A task under the name that the policies have it by: `cup-spin` is `dmc/ball_in_cup-spin`."""
    if wish in present:
        return wish
    try:
        return resolve_name(wish)
    except TaskError:
        return wish


def _no_policy(folder: Path) -> str:
    for sign, (_, words) in SIGNS.items():
        if (folder / sign).is_file():
            return f"{folder} holds {words} ({sign}), expected a policy; `orrery run` makes one in its stage extract"
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    expected = "the folder of a policy (policy.json), of policies (policies.json) or of a run"
    return f"{folder}: expected {expected}; found {found}"
