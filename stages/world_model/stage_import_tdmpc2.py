"""The stage import_tdmpc2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import read_store_facts
from ...datasets.schema import TaskTable, read_table
from ...datasets.tasks import expand_names, task_spec
from ...pipeline.errors import ConfigError
from ...pipeline.paths import user_path
from ...pipeline.stage import Context, Input, Stage
from .config import ImportTdmpc2Config
from .facts import ModelFacts

if TYPE_CHECKING:
    from .networks import WorldModel
    from .tdmpc2_checkpoint import Published


class ImportTdmpc2(Stage):
    """Convert a TD-MPC2 checkpoint into a world model, bit for bit, for planning or extraction."""

    Config = ImportTdmpc2Config
    inputs = {"store": Input("store", optional=True, facts=read_store_facts)}
    output_kind = "world_model"
    not_hashed = ("checkpoint",)  # a path; `reads` covers the file's content
    config: ImportTdmpc2Config

    def check(self) -> None:
        if not self.config.checkpoint:
            raise ConfigError(
                "import_tdmpc2.checkpoint is empty; set the path of TD-MPC2's file: import_tdmpc2.checkpoint=x.pt"
            )
        if not self._path.is_file():
            raise ConfigError(f"import_tdmpc2.checkpoint: there is no file {self._path.absolute()}")

    def reads(self) -> list[Path]:
        return [self._path]

    def promise(self, inputs: Mapping[str, Sequence[Any]]) -> ModelFacts:
        named = tuple(expand_names(self.config.tasks)) or None
        stored = next((facts.tasks for facts in inputs["store"] if facts is not None), None)
        return ModelFacts(tasks=stored or named)  # with values: TD-MPC2 has no model without

    def run(self, context: Context) -> str:
        from .tdmpc2_checkpoint import describe, from_tdmpc2, read_tdmpc2

        path = str(self._path)
        state = read_tdmpc2(path)
        published = describe(state, self.config.unseen, path)
        table = self._table(published, context)
        # As they are in the file, so that they can be written back; whoever loads the artifact gets them ready for use.
        model = from_tdmpc2(state, table, self.config.unseen, frozen=False, where=path)
        model.save(context.folder)
        return _summary(model, published, self._path.name)

    @property
    def _path(self) -> Path:
        return user_path(self.config.checkpoint)

    def _table(self, published: Published, context: Context) -> TaskTable:
        if (store := context.optional_input("store")) is not None:
            return read_table(store)
        if self.config.tasks:
            return TaskTable([task_spec(name) for name in expand_names(self.config.tasks)])
        context.log.warning(
            "import_tdmpc2: the tasks have numbers instead of names and no environments; name them in their order with "
            "tasks=[mt30], tasks=[dmc/walker-run], ... to evaluate"
        )
        return published.generic_table(self.config.episode_length)


def _summary(model: WorldModel, published: Published, file: str) -> str:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    tasks = f"{len(model.table)} tasks" if len(model.table) > 1 else model.table[0].name
    return f"{trained:,} parameters, {tasks}, from {file} ({published.form} format)"
