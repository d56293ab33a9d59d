"""import_tdmpc2: a checkpoint of TD-MPC2 as a world model, to plan with or to extract policies from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...datasets.schema import TaskTable, read_table
from ...datasets.tasks import expand_names, task_spec
from ...pipeline.config.checks import check_counts
from ...pipeline.errors import ConfigError
from ...pipeline.paths import user_path
from ...pipeline.stage import Context, Input, Stage
from .config import WorldModelConfig

if TYPE_CHECKING:
    from .networks import WorldModel
    from .tdmpc2_checkpoint import Published


@dataclass(frozen=True)
class ImportTdmpc2Config:
    """Which file, and what it does not say about itself."""

    checkpoint: str = ""
    """The .pt file, of old or new form, of one task or several. Nothing in it is run."""
    tasks: list[str] = field(default_factory=list)
    """Its tasks, in its order: mt30 and mt80 are TD-MPC2's sets. Empty takes the table of the run's store, or without
    one names them by number: tdmpc2/0 and so on. With a store, its table always counts."""
    episode_length: int = 500
    """Decisions per episode of tasks that are named by number; decides their discount."""
    simnorm_dim: int = 8
    """Group size of SimNorm, as it was trained."""
    bin_limit: float = 10.0
    """Bins of rewards and values span [-limit, limit] in symlog units, as it was trained."""
    log_std_min: float = -10.0
    """Range of the policy prior's log standard deviation where the file does not hold it (the old form)."""
    log_std_max: float = 2.0
    """Range of the policy prior's log standard deviation where the file does not hold it (the old form)."""

    def __post_init__(self) -> None:
        check_counts(self, "episode_length")

    @property
    def unseen(self) -> WorldModelConfig:
        """The settings of the model that leave no trace in a file."""
        return WorldModelConfig(
            normalize_observations=False,
            simnorm_dim=self.simnorm_dim,
            bin_limit=self.bin_limit,
            log_std_min=self.log_std_min,
            log_std_max=self.log_std_max,
        )


class ImportTdmpc2(Stage):
    """TD-MPC2's weights, bit for bit."""

    Config = ImportTdmpc2Config
    inputs = {"store": Input("store", optional=True)}
    output_kind = "world_model"
    config: ImportTdmpc2Config

    def check(self) -> None:
        if not self.config.checkpoint:
            raise ConfigError("import_tdmpc2.checkpoint is empty; give TD-MPC2's file: import_tdmpc2.checkpoint=x.pt")
        if not self._path.is_file():
            raise ConfigError(f"import_tdmpc2.checkpoint: there is no file {self._path.absolute()}")

    def reads(self) -> list[Path]:
        return [self._path]

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
        for folder in context.inputs["store"]:
            return read_table(folder)
        if self.config.tasks:
            return TaskTable([task_spec(name) for name in expand_names(self.config.tasks)])
        context.log.warning(
            "import_tdmpc2: the tasks are named by number and have no environments; give them in their order with "
            "tasks=[mt30], tasks=[dmc/walker-run], ... to evaluate on them"
        )
        return published.generic_table(self.config.episode_length)


def _summary(model: WorldModel, published: Published, file: str) -> str:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    tasks = f"{len(model.table)} tasks" if len(model.table) > 1 else model.table[0].name
    return f"{trained:,} parameters, {tasks}, from {file} ({published.form} form)"
