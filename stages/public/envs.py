"""Every simulated task as a Gymnasium id: `gymnasium.make("orrery/dmc-walker-run-v0")` after `import orrery.envs`, or
`gymnasium.make("orrery.envs:orrery/dmc-walker-run-v0")` without it.

The environments are those of `orrery.make_env`, so `gymnasium.make_vec`, wrappers and other libraries can use them.
Gymnasium's own tasks keep their own ids.
"""

from __future__ import annotations

import gymnasium
from orrery.datasets.tasks import suites, task_names


def gymnasium_id(task: str) -> str:
    """The id of a task: dmc/walker-run -> orrery/dmc-walker-run-v0, metaworld/reach-v3 -> orrery/metaworld-reach-v3."""
    name = f"orrery/{task.replace('/', '-')}"
    return name if task.startswith("metaworld/") else f"{name}-v0"


for _suite in suites():
    if _suite != "gymnasium":
        for _task in task_names(_suite):
            gymnasium.register(
                gymnasium_id(_task), entry_point="orrery.datasets.tasks:make_env", kwargs={"task": _task}
            )
