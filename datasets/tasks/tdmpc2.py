"""TD-MPC2's sets of tasks, in the order that gives each task its id there: in its datasets and its checkpoints.

mt30 are 19 tasks of dm_control and the 11 that TD-MPC2 adds; mt80 are these and the 50 of Meta-World. Ours are the
same tasks by our names, not the same simulators: Meta-World's are v3 with the v2 reward here and v2 there, so that
scores on them do not compare.

Source of the order: `TASK_SET` in the released `tdmpc2/common/__init__.py` (arXiv 2310.16828). Meta-World's tasks stand
with the five that its ML45 benchmark holds out for tests last.
"""

from __future__ import annotations

_DMC = [
    "walker-stand", "walker-walk", "walker-run", "cheetah-run", "reacher-easy", "reacher-hard", "acrobot-swingup",
    "pendulum-swingup", "cartpole-balance", "cartpole-balance_sparse", "cartpole-swingup",
    "cartpole-swingup_sparse", "ball_in_cup-catch", "finger-spin", "finger-turn_easy", "finger-turn_hard",
    "fish-swim", "hopper-stand", "hopper-hop", "walker-walk-backwards", "walker-run-backwards",
    "cheetah-run-backwards", "cheetah-run-front", "cheetah-run-back", "cheetah-jump", "hopper-hop-backwards",
    "reacher-three-easy", "reacher-three-hard", "ball_in_cup-spin", "pendulum-spin",
]  # fmt: skip
_METAWORLD = [
    "assembly", "basketball", "button-press-topdown", "button-press-topdown-wall", "button-press",
    "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn", "disassemble", "door-open",
    "door-close", "drawer-close", "drawer-open", "faucet-open", "faucet-close", "hammer", "handle-press-side",
    "handle-press", "handle-pull-side", "handle-pull", "lever-pull", "peg-insert-side", "peg-unplug-side",
    "pick-out-of-hole", "pick-place", "pick-place-wall", "plate-slide", "plate-slide-side", "plate-slide-back",
    "plate-slide-back-side", "push-back", "push", "push-wall", "reach", "reach-wall", "shelf-place", "soccer",
    "stick-push", "stick-pull", "sweep-into", "sweep", "window-open", "window-close", "bin-picking", "box-close",
    "door-lock", "door-unlock", "hand-insert",
]  # fmt: skip
MT30 = tuple(f"dmc/{name}" for name in _DMC)
MT80 = (*MT30, *(f"metaworld/{name}-v3" for name in _METAWORLD))

SETS = {"mt30": MT30, "mt80": MT80}


def with_suite(name: str) -> str:
    """TD-MPC2 names no suite: `mw-reach` -> `metaworld/reach-v3`, `cup-spin` -> `dmc/cup-spin`. Others as they are."""
    if "/" in name:
        return name
    return f"metaworld/{name.removeprefix('mw-')}-v3" if name.startswith("mw-") else f"dmc/{name}"
