"""TD-MPC2's sets of tasks, in the order that gives each task its id there: in its datasets and its checkpoints.

mt30 are 19 tasks of dm_control and the 11 that TD-MPC2 adds; mt80 are these and the 50 of Meta-World. Ours are the
same tasks by our names, not the same simulators: Meta-World's are v3 with the v2 reward here and v2 there, so that
scores on them do not compare.

Source of the order: `TASK_SET` in the released `tdmpc2/common/__init__.py` (arXiv 2310.16828). Meta-World's tasks stand
with the five that its ML45 benchmark holds out for tests last.
"""

from __future__ import annotations

MT30 = (
    "dmc/walker-stand",
    "dmc/walker-walk",
    "dmc/walker-run",
    "dmc/cheetah-run",
    "dmc/reacher-easy",
    "dmc/reacher-hard",
    "dmc/acrobot-swingup",
    "dmc/pendulum-swingup",
    "dmc/cartpole-balance",
    "dmc/cartpole-balance_sparse",
    "dmc/cartpole-swingup",
    "dmc/cartpole-swingup_sparse",
    "dmc/ball_in_cup-catch",
    "dmc/finger-spin",
    "dmc/finger-turn_easy",
    "dmc/finger-turn_hard",
    "dmc/fish-swim",
    "dmc/hopper-stand",
    "dmc/hopper-hop",
    "dmc/walker-walk-backwards",
    "dmc/walker-run-backwards",
    "dmc/cheetah-run-backwards",
    "dmc/cheetah-run-front",
    "dmc/cheetah-run-back",
    "dmc/cheetah-jump",
    "dmc/hopper-hop-backwards",
    "dmc/reacher-three-easy",
    "dmc/reacher-three-hard",
    "dmc/ball_in_cup-spin",
    "dmc/pendulum-spin",
)

MT80 = (
    *MT30,
    "metaworld/assembly-v3",
    "metaworld/basketball-v3",
    "metaworld/button-press-topdown-v3",
    "metaworld/button-press-topdown-wall-v3",
    "metaworld/button-press-v3",
    "metaworld/button-press-wall-v3",
    "metaworld/coffee-button-v3",
    "metaworld/coffee-pull-v3",
    "metaworld/coffee-push-v3",
    "metaworld/dial-turn-v3",
    "metaworld/disassemble-v3",
    "metaworld/door-open-v3",
    "metaworld/door-close-v3",
    "metaworld/drawer-close-v3",
    "metaworld/drawer-open-v3",
    "metaworld/faucet-open-v3",
    "metaworld/faucet-close-v3",
    "metaworld/hammer-v3",
    "metaworld/handle-press-side-v3",
    "metaworld/handle-press-v3",
    "metaworld/handle-pull-side-v3",
    "metaworld/handle-pull-v3",
    "metaworld/lever-pull-v3",
    "metaworld/peg-insert-side-v3",
    "metaworld/peg-unplug-side-v3",
    "metaworld/pick-out-of-hole-v3",
    "metaworld/pick-place-v3",
    "metaworld/pick-place-wall-v3",
    "metaworld/plate-slide-v3",
    "metaworld/plate-slide-side-v3",
    "metaworld/plate-slide-back-v3",
    "metaworld/plate-slide-back-side-v3",
    "metaworld/push-back-v3",
    "metaworld/push-v3",
    "metaworld/push-wall-v3",
    "metaworld/reach-v3",
    "metaworld/reach-wall-v3",
    "metaworld/shelf-place-v3",
    "metaworld/soccer-v3",
    "metaworld/stick-push-v3",
    "metaworld/stick-pull-v3",
    "metaworld/sweep-into-v3",
    "metaworld/sweep-v3",
    "metaworld/window-open-v3",
    "metaworld/window-close-v3",
    "metaworld/bin-picking-v3",
    "metaworld/box-close-v3",
    "metaworld/door-lock-v3",
    "metaworld/door-unlock-v3",
    "metaworld/hand-insert-v3",
)

SETS = {"mt30": MT30, "mt80": MT80}


def with_suite(name: str) -> str:
    """TD-MPC2 names no suite: `mw-reach` -> `metaworld/reach-v3`, `cup-spin` -> `dmc/cup-spin`. Others as they are."""
    if "/" in name:
        return name
    return f"metaworld/{name.removeprefix('mw-')}-v3" if name.startswith("mw-") else f"dmc/{name}"
