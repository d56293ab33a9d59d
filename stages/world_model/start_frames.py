"""Start frames of imagined rollouts: drawn from a store, or saved with a model so that policies can be extracted
without data.

A saved set is a small sample of the training data: observations, actions taken there, first observations of episodes,
and the root mean square of rewards. It contains neither rewards nor transitions.

Dimension letters: N frames, B first frames of episodes, O observation and A action of the task itself, unpadded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.schema import TaskSpec
from ...datasets.store import TaskStore
from ...datasets.windows import WindowIndex
from ...pipeline.artifact import hash_json
from ...pipeline.checkpoint import load_tensors, save_weights
from ...pipeline.errors import CheckpointError
from ...pipeline.saved_config import read_config
from ...pipeline.seeding import derive_seed
from .facts import held_out_share

STARTS = "starts"
"""starts.safetensors and starts.json in a folder."""
SAVED_FRAMES = 16384
"""Per task, as many as extraction draws from a store by default: fewer make worse policies (docs/pages/results.md).
1.2 MB where observations and actions have 18 numbers together."""
SAVED_INITIAL = 64


@dataclass(frozen=True)
class StartFrames:
    """Frames of one task."""

    observation_NO: torch.Tensor
    action_NA: torch.Tensor
    initial_BO: torch.Tensor
    """First observations of episodes."""
    reward_rms: float
    """Root mean square reward per step."""
    behaviour: str
    """How the data was made, as in schema.BEHAVIOURS; decides the default anchor."""

    def draw(self, count: int, initial: int, name: str, seed: int) -> StartFrames:
        """`count` of these frames and `initial` first frames, all of them where there are fewer."""
        random = np.random.default_rng(derive_seed("saved starts", name, seed))

        def some(rows: torch.Tensor, number: int) -> torch.Tensor:
            return torch.from_numpy(np.sort(random.permutation(len(rows))[:number]))

        kept = some(self.observation_NO, count)
        first = some(self.initial_BO, initial)
        return StartFrames(
            self.observation_NO[kept], self.action_NA[kept], self.initial_BO[first], self.reward_rms, self.behaviour
        )


@dataclass(frozen=True)
class SavedStarts:
    """What starts.json holds."""

    tasks: dict[str, dict[str, Any]]
    """By name: reward_rms, behaviour."""
    source: str
    """Where the frames come from, in words."""


def draw_frames(store: TaskStore, name: str, count: int, initial: int, seed: int, held_out: float = 0.0) -> StartFrames:
    """`count` frames of a task of a store (with replacement only where it has fewer) and `initial` first frames, of the
    episodes that are not held out.

    The draw depends on (seed, task name) alone, so a task gets the same frames whichever others it runs with.
    """
    rows = store.rows_of(name)
    random = np.random.default_rng(derive_seed("starts", name, seed))
    index = WindowIndex.build([rows], 1, "train", held_out)
    total = int(index.counts[0])
    windows = random.choice(total, min(count, total), replace=False)
    windows = np.sort(np.concatenate([windows, random.integers(total, size=count - len(windows))]))
    frames, _, _ = index.locate(windows)
    taken = rows.rows[torch.from_numpy(frames)]
    beginnings = rows.offsets[:-1][~rows.held_out(held_out)]
    first = beginnings[random.integers(len(beginnings), size=initial)]
    own = rows.spec.observation_dim
    return StartFrames(
        taken[:, :own],
        taken[:, store.table.observation_dim :][:, : rows.spec.action_dim],
        rows.rows[torch.from_numpy(first)][:, :own],
        float(taken[:, -1].double().square().mean().sqrt()),
        rows.summary.behaviour,
    )


def save_store_frames(store: TaskStore, folder: Path, held_out: float = 0.0) -> None:
    """Save a sample of every task of `store` beside the model in `folder`, of the episodes that are not held out."""
    frames = {
        name: draw_frames(store, name, SAVED_FRAMES, SAVED_INITIAL, seed=0, held_out=held_out)
        for name in store.table.names
    }
    save_frames(frames, folder, f"{SAVED_FRAMES} frames of each task's training data, drawn at random")


def save_frames(frames: Mapping[str, StartFrames], folder: Path, source: str) -> None:
    """Write starts.safetensors and starts.json; `source` says in words where the frames come from."""
    tensors, tasks = {}, {}
    for name, one in frames.items():
        for part in _PARTS:
            tensors[f"{name}/{part}"] = getattr(one, part)
        tasks[name] = {"reward_rms": one.reward_rms, "behaviour": one.behaviour}
    save_weights(folder, STARTS, tensors, SavedStarts(tasks, source))


_PARTS = ("observation_NO", "action_NA", "initial_BO")


def has_frames(folder: Path) -> bool:
    """Whether start frames are saved in a folder."""
    return (folder / f"{STARTS}.json").is_file()


def frame_source(
    inputs: Mapping[str, Path], specs: Sequence[TaskSpec], count: int, initial: int, seed: int
) -> Callable[[str], StartFrames]:
    """What gives the frames of a task by its name: from the store of a job's inputs, else from saved frames. Of neither
    are those of the episodes that the model's training held out.

    Raises:
        CheckpointError: neither is there.
    """
    if "store" in inputs:
        store = TaskStore.open(inputs["store"])
        held_out = held_out_share(inputs["world_model"]) or 0.0
        return lambda name: draw_frames(store, name, count, initial, seed, held_out)
    saved = load_frames(saved_folder(inputs), specs)
    count = min([count, *(len(one.observation_NO) for one in saved.values())])
    initial = min([initial, *(len(one.initial_BO) for one in saved.values())])
    return lambda name: saved[name].draw(count, initial, name, seed)


def saved_folder(inputs: Mapping[str, Path]) -> Path:
    """The folder of saved frames: an input of that kind, else the model's own.

    Raises:
        CheckpointError: there are none.
    """
    folder = inputs.get(STARTS, inputs["world_model"])
    if not has_frames(folder):
        raise CheckpointError(
            f"{folder} holds no start frames ({STARTS}.json), and there is no store: extraction has no start states. "
            "Add the stage starts before extract to play episodes, or set inputs.store=PATH"
        )
    return folder


def saved_count(folder: Path) -> int:
    """Saved frames per task, the fewest of any; 0 if none are."""
    if not has_frames(folder):
        return 0
    tensors = load_tensors(folder, STARTS)
    return min((len(value) for name, value in tensors.items() if name.endswith("/observation_NO")), default=0)


def saved_behaviours(folder: Path) -> dict[str, str]:
    """How the data behind saved frames was made, by task."""
    return {name: one["behaviour"] for name, one in read_config(folder, STARTS, SavedStarts).tasks.items()}


def frame_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """A digest of the saved frames of each of these tasks."""
    stored, tensors = read_config(folder, STARTS, SavedStarts), load_tensors(folder, STARTS)

    def digest(name: str) -> str:
        rows = [hashlib.sha256(tensors[f"{name}/{part}"].numpy().data).hexdigest() for part in _PARTS]
        return hash_json([stored.tasks[name], *rows])

    return {name: digest(name) for name in names}


def load_frames(folder: Path, specs: Sequence[TaskSpec]) -> dict[str, StartFrames]:
    """The saved frames of those tasks, by name.

    Raises:
        CheckpointError: they are not there, or do not fit the tasks.
    """
    stored = read_config(folder, STARTS, SavedStarts)
    tensors = load_tensors(folder, STARTS)
    if missing := [spec.name for spec in specs if spec.name not in stored.tasks]:
        raise CheckpointError(f"{folder}: no start frames of {', '.join(missing)}, only of {', '.join(stored.tasks)}")
    found = {}
    for spec in specs:
        parts = {part: tensors.get(f"{spec.name}/{part}") for part in _PARTS}
        expected = {
            "observation_NO": spec.observation_dim, "action_NA": spec.action_dim, "initial_BO": spec.observation_dim
        }  # fmt: skip
        for part, width in expected.items():
            tensor = parts[part]
            if tensor is None or tensor.dim() != 2 or tensor.shape[1] != width or not len(tensor):
                shape = "none" if tensor is None else list(tensor.shape)
                raise CheckpointError(
                    f"{folder}/{STARTS}.safetensors: expected {spec.name}/{part} of [rows, {width}], found {shape}"
                )
        found[spec.name] = StartFrames(**parts, **stored.tasks[spec.name])  # type: ignore[arg-type]
    return found
