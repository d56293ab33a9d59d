"""What type checkers see of `import orrery`. No test by itself: .ci/run has mypy check it against an installed copy."""

from __future__ import annotations

from typing import assert_type

import orrery
from orrery import Policy, TaskSpec, TaskStore, WorldModel, load_policy, load_run, make_env
from orrery.pipeline.stage import Context, Stage


def use() -> None:
    run = load_run("runs/quickstart")
    assert_type(run, orrery.Run)
    assert_type(run.world_model(), WorldModel)
    assert_type(run.store(), TaskStore)
    assert_type(run.policy("dmc/cartpole-balance"), Policy)
    assert_type(load_policy("runs/quickstart"), Policy)
    assert_type(orrery.__version__, str)
    spec = TaskSpec("my/task", observation_dim=3, action_dim=1, episode_length=100)
    assert_type(spec.discount, float | None)
    make_env(spec).reset(seed=0)
    orrery.no_such_name  # type: ignore[attr-defined]  # noqa: B018


class Mine(Stage):
    def run(self, context: Context) -> str:
        return str(context.folder)
