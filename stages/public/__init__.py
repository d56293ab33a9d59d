"""Public API: `import orrery` takes milliseconds, and each name is imported on first use.

    import orrery

    run = orrery.load_run("runs/quickstart")            # or orrery.run("quickstart", run_dir="runs/quickstart")
    policy = run.policy("dmc/cartpole-balance", algorithm="svg")
    env = orrery.make_env("dmc/cartpole-balance")
    observation, _ = env.reset(seed=0)
    env.step(policy.predict(observation))

setuptools maps this folder to the package `orrery`, beside `orrery.pipeline`, `orrery.datasets` and `orrery.stages`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orrery.datasets.schema import TaskSpec as TaskSpec
    from orrery.datasets.store import TaskStore as TaskStore
    from orrery.datasets.tasks import make_env as make_env
    from orrery.stages.policy.policy import Policy as Policy
    from orrery.stages.policy.torchrl_module import PolicyModule as PolicyModule
    from orrery.stages.world_model.networks import WorldModel as WorldModel
    from orrery.stages.world_model.torchrl_env import WorldModelEnv as WorldModelEnv

    from .runs import Run as Run
    from .runs import load_policy as load_policy
    from .runs import load_run as load_run
    from .runs import run as run

    __version__: str

# setuptools' editable installs find orrery.datasets, a folder without __init__.py, through this entry of sys.path.
__path__ += [entry for entry in sys.path if entry.endswith(".__path_hook__")]

_MODULES = {
    "TaskSpec": "orrery.datasets.schema",
    "TaskStore": "orrery.datasets.store",
    "make_env": "orrery.datasets.tasks",
    "Policy": "orrery.stages.policy.policy",
    "PolicyModule": "orrery.stages.policy.torchrl_module",
    "WorldModel": "orrery.stages.world_model.networks",
    "WorldModelEnv": "orrery.stages.world_model.torchrl_env",
    "Run": "orrery.runs",
    "load_policy": "orrery.runs",
    "load_run": "orrery.runs",
    "run": "orrery.runs",
}

__all__ = [*_MODULES]


if not TYPE_CHECKING:  # to a type checker every name would be known

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("orrery")
        if name not in _MODULES:
            raise AttributeError(f"module 'orrery' has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
