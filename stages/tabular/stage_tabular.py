"""The stage tabular."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import DataFacts, read_store_facts
from ...datasets.tables import find_names
from ...datasets.tasks import SIMULATED, task_spec
from ...pipeline.errors import ConfigError, DatasetError
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from .config import TabularConfig

if TYPE_CHECKING:
    import numpy as np

    from ...datasets.schema import TaskSpec
    from ...datasets.store import TaskRows
    from .counts import MDP

ALGORITHM = "tabular"


class Tabular(Stage):
    """Plan policies on a counted tabular model: count transitions, normalise, solve.

    This is the simplest model-based baseline, and equals POWR with a delta kernel. It needs data whose observations
    repeat. There is one deterministic policy per task, without a seed.
    """

    Config = TabularConfig
    inputs = {"store": Input("store", facts=read_store_facts)}
    output_kind = "policies"
    algorithms = (ALGORITHM,)
    config: TabularConfig

    def check_input(self, name: str, folder: Path, facts: DataFacts | None) -> None:
        tasks = () if facts is None else find_names(facts.tasks, self.config.tasks, folder, "store")
        for task in tasks:
            if task.startswith(SIMULATED):
                _check_actions(task_spec(task))

    def run(self, context: Context) -> str:
        from ...datasets.store import TaskStore

        store = TaskStore.open(context.input("store"))
        names = find_names(store.table.names, self.config.tasks, store.folder, "store")
        entries: list[dict[str, Any]] = []
        states, pairs = 0, 0
        with context.progress("tabular", total=len(names)) as progress:
            for name in names:
                rows = store.rows_of(name)
                found = self._solve(rows, store.table.observation_dim)
                entries.append(policy_entry(ALGORITHM, rows.spec, 0))
                found.save(context.folder / entries[-1]["path"])
                states, pairs = states + len(found.weight_MU), pairs + int((found.weight_MU > 0).sum())
                progress.advance(1)
        write_index(context.folder, store.table, entries)
        return f"{counted(len(entries), 'policy', 'policies')} by {self.config.method} over {states:,} states"

    def _solve(self, rows: TaskRows, observation_width: int) -> Any:
        """The KernelPolicy that looks up the solution of one task."""
        import numpy as np
        import torch

        from ..powr.features import raw_features
        from ..powr.kernels import StateKernel
        from ..powr.policy import KernelPolicy
        from .counts import count, empirical_mdp

        spec = rows.spec
        _check_actions(spec)
        observation, state = distinct_observations(rows, self.config.max_states)
        starts = np.ones(len(state), bool)
        starts[rows.offsets[1:] - 1] = False  # last rows of episodes start nothing
        first = np.flatnonzero(starts)
        data = rows.rows[torch.from_numpy(first)]
        action = data[:, observation_width : observation_width + spec.action_dim].argmax(1).numpy()
        reward = data[:, -1].double().numpy()
        ended = np.zeros(len(state), bool)
        ended[rows.offsets[1:] - 1] = rows.terminated
        following = state[first + 1]
        counts = count(state[first], action, following, reward, len(observation), spec.action_dim, ended[first + 1])
        policy_SA = self._plan(empirical_mdp(counts), counts.visits_SA > 0, spec.discount or 0.0)
        weight_SA = torch.from_numpy(policy_SA)
        features, kernel = raw_features(spec.observation_dim), StateKernel.of("delta")
        trained_by = {"algorithm": ALGORITHM, "method": self.config.method}
        return KernelPolicy.of(spec, features, kernel, torch.from_numpy(observation), weight_SA, trained_by)

    def _plan(self, mdp: MDP, seen_SA: np.ndarray, discount: float) -> np.ndarray:
        import numpy as np

        from . import solve

        allowed_SA = seen_SA if self.config.unseen == "avoid" else None
        if self.config.method == "value_iteration":
            return solve.greedy(solve.value_iteration(mdp, discount, allowed_SA=allowed_SA), allowed_SA)
        if self.config.method == "policy_iteration":
            return solve.policy_iteration(mdp, discount, allowed_SA)[1]
        start_SA = np.ones_like(seen_SA, float) if allowed_SA is None else allowed_SA.astype(float)
        start_SA /= np.maximum(start_SA.sum(1, keepdims=True), 1)
        return solve.mirror_descent(mdp, discount, [self.config.step_size] * self.config.steps, start_SA).policy_TSA[-1]


def _check_actions(spec: TaskSpec) -> None:
    if spec.action_kind != "discrete":
        raise ConfigError(f"tabular needs discrete actions and observations; task {spec.name!r} has continuous actions")


def distinct_observations(rows: TaskRows, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(distinct observations [S, O] float64, index of each row's [R]) of a task.

    Raises:
        DatasetError: more than `limit` of them.
    """
    import numpy as np

    observation_RO = rows.rows[:, : rows.spec.observation_dim].numpy()
    distinct_SO, state_R = np.unique(observation_RO, axis=0, return_inverse=True)
    if len(distinct_SO) > limit:
        raise DatasetError(
            f"{rows.spec.name}: {len(distinct_SO):,} distinct observations in {len(observation_RO):,} rows, expected "
            f"at most {limit:,} (tabular.max_states): its observations are not discrete. Use the stage powr instead"
        )
    return distinct_SO.astype(np.float64), state_R.reshape(-1)
