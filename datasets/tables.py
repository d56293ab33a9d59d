"""Which tasks of a table a config names, and what the tables of a model and of a store must share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ..pipeline.errors import CheckpointError, ConfigError
from ..pipeline.stage import Context
from .formats.sources import dataset_task
from .schema import TaskSpec, TaskTable
from .tasks import expand_names

MATCHED = (
    "observation_dim", "action_dim", "action_kind", "episode_length", "action_repeat", "discount", "terminates"
)  # fmt: skip
"""What of a TaskSpec decides what a model of it has learned."""


def find_tasks(table: TaskTable, names: Sequence[str], folder: Path) -> list[TaskSpec]:
    """Return the tasks that a config names among those of the world model in `folder`; all of its `table` if `names` is
    empty.

    Raises:
        CheckpointError: the model does not know one of them.
    """
    return [table.spec_of(name) for name in find_names(table.names, names, folder)]


def find_names(known: Sequence[str], names: Sequence[str], folder: Path, what: str = "world model") -> list[str]:
    """Return the same by name, out of `known`, the tasks of the artifact in `folder`: a world model or a store."""
    wanted = names_in_tables(names, known) or list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise CheckpointError(
            f"{', '.join(unknown)}: not in the task table of the {what} in {folder}, which holds: {', '.join(known)}. "
            f"Name tasks of the {what}" + ("" if what == "store" else "; the stage finetune adds tasks")
        )
    return wanted


def names_in_tables(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Expand names of tasks; the path or id of a dataset becomes the name of its task. A table has those in `known`."""
    return [name if name in known else dataset_task(name) for name in expand_names(names, keep=known)]


def check_entries(key: str, entries: Collection[str], tasks: Sequence[str], where: str) -> None:
    """Raise a ConfigError if the setting `key` has an entry for a task that is not among `tasks`, those of `where`."""
    if unknown := sorted(set(entries) - set(tasks)):
        raise ConfigError(f"{key} names {', '.join(unknown)}, but {where}: {', '.join(tasks)}")


def check_same_tables(model: TaskTable, store: TaskTable, context: Context) -> None:
    """Raise a CheckpointError that shows both tables unless they are the same."""
    if model != store:
        raise _different(model, store, context, "Use the store that the model was trained on, or pretrain on this one")


def check_common_tasks(model: TaskTable, store: TaskTable, names: Sequence[str], context: Context) -> list[str]:
    """The tasks `names`, or all of both tables where it is empty, if model and store know them as the same tasks.

    Raises:
        CheckpointError: they do not, with both tables.
    """
    wanted = list(names) or [*model.names, *(name for name in store.names if name not in model.names)]
    problems, shared = [], []
    for name in wanted:
        if name not in model.names:
            problems.append(f"{name} is not a task of the model")
        elif name not in store.names:
            problems.append(f"{name} is not in the store")
        else:
            left, right = (table.spec_of(name) for table in (model, store))
            differing = [field for field in MATCHED if getattr(left, field) != getattr(right, field)]
            problems += [
                f"{name}: {field} {getattr(left, field)} of the model, {getattr(right, field)} of the store"
                for field in differing
            ]
            shared += [] if differing else [name]
    if problems:
        choice = f"Name shared tasks: extract.tasks=[{','.join(shared)}]" if shared else "They share no task"
        advice = f"{choice}; finetune adds tasks to a model"
        raise _different(model, store, context, "\n".join([*problems, advice]))
    return wanted


def _different(model: TaskTable, store: TaskTable, context: Context, advice: str) -> CheckpointError:
    described = []
    for k in range(max(len(model), len(store))):
        left, right = (repr_task(table, k) for table in (model, store))
        described.append(f"  {k}: {left:<44} {right}{'' if left == right else '   <- differs'}")
    return CheckpointError(
        f"the world model in {context.input('world_model')} and the store in {context.input('store')} "
        "have different task tables:\n" + f"  id {'world model':<42} store\n" + "\n".join(described) + f"\n{advice}"
    )


def repr_task(table: TaskTable, k: int) -> str:
    """One task of a table in a few words."""
    if k >= len(table):
        return "-"
    return f"{table[k].name} (O={table[k].observation_dim}, A={table[k].action_dim})"


def check_unknown(known: Sequence[str], new: Sequence[str], model: str) -> None:
    """Raise a CheckpointError if a new task is one of those that a model knows; `model` is what to call it."""
    if both := [name for name in new if name in known]:
        raise CheckpointError(
            f"{', '.join(both)}: already in the task table of {model}, which holds: "
            f"{', '.join(known)}. Name new tasks only; extract policies of the model's own tasks without finetuning"
        )


def check_can_join(table: TaskTable, new: Sequence[TaskSpec], task_dim: int, folder: Path) -> None:
    """Raise a CheckpointError unless a model with this table and width of task embedding can learn the new tasks."""
    if task_dim == 0:
        raise CheckpointError(
            f"the world model in {folder} has no task embedding (task_dim is 0), so it cannot distinguish a new task "
            f"from {table[0].name}; pretrain with pretrain.model.task_dim=32"
        )
    kinds = {task.action_kind for task in table}
    if other := [task for task in new if task.action_kind not in kinds]:
        raise CheckpointError(
            f"{', '.join(task.name for task in other)}: actions are {other[0].action_kind}, but the world model in "
            f"{folder} was trained on {' and '.join(sorted(kinds))} actions only; pretrain a model that includes tasks "
            f"with {other[0].action_kind} actions"
        )


def check_replayed(model: TaskTable, store: TaskTable, model_folder: Path, store_folder: Path) -> None:
    """Raise a CheckpointError unless the tasks of the store are the model's: all of them, or some."""
    problems = []
    for k, task in enumerate(store):
        if task.name not in model.names:
            problems.append(f"{repr_task(store, k)}: not a task of the model")
        elif model[model.id_of(task.name)] != task:
            problems.append(f"{repr_task(store, k)}: the model knows {repr_task(model, model.id_of(task.name))}")
    if problems:
        raise CheckpointError(
            f"inputs.replay: the store in {store_folder} has other tasks than the world model in {model_folder}:\n  "
            + "\n  ".join(problems)
            + f"\nThe model's tasks: {', '.join(model.names)}. Use the store that it was trained on"
        )
