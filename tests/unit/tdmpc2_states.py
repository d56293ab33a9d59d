"""States of TD-MPC2's models in both forms: the toy one of golden/tdmpc2_forward.npz, which is in the new form, and
random ones of any shape. Shared by the tests of reading, writing and refusing them.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from orrery.datasets.schema import TaskSpec, TaskTable

GOLDEN = Path(__file__).parents[1] / "golden" / "tdmpc2_forward.npz"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
ACTION_DIMS = (1, 2, 4, 6)
TABLE = TaskTable(
    [TaskSpec(f"toy/{k}", o, a, 500) for k, (o, a) in enumerate(zip((3, 8, 15, 24), ACTION_DIMS, strict=True))]
)
LAYER = ("weight", "bias", "ln.weight", "ln.bias")


def published_shapes(tasks, observation, action, encoder, mlp, latent, layers, num_q, task, *, form, episodic=False):
    """Names and shapes as TD-MPC2 builds them, written down from its description and not from ours."""
    shapes = {}

    def normed(name, inputs, outputs):
        shapes.update({f"{name}.weight": (outputs, inputs)})
        shapes.update(dict.fromkeys((f"{name}.bias", f"{name}.ln.weight", f"{name}.ln.bias"), (outputs,)))

    def head(name, inputs, outputs):
        normed(f"{name}.0", inputs, mlp)
        normed(f"{name}.1", mlp, mlp)
        shapes.update({f"{name}.2.weight": (outputs, mlp), f"{name}.2.bias": (outputs,)})

    if task:
        shapes["_task_emb.weight"] = (tasks, task)
    widths = [observation + task, *[encoder] * (layers - 1), latent]
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        normed(f"_encoder.state.{i}", inputs, outputs)
    joint = latent + task + action
    head("_reward", joint, 101)
    head("_pi", latent + task, 2 * action)
    if episodic:
        head("_termination", latent + task, 1)
    head("_dynamics", joint, latent)
    shapes |= {"_dynamics.2.ln.weight": (latent,), "_dynamics.2.ln.bias": (latent,)}
    ensemble = [
        *((num_q, mlp, joint), (num_q, mlp), (num_q, mlp), (num_q, mlp)),
        *((num_q, mlp, mlp), (num_q, mlp), (num_q, mlp), (num_q, mlp)),
        *((num_q, 101, mlp), (num_q, 101)),
    ]
    if form == "old":
        return shapes | {
            f"{name}.params.{i}": shape for name in ("_Qs", "_target_Qs") for i, shape in enumerate(ensemble)
        }
    return shapes | {
        f"{name}.{i // 4}.{LAYER[i % 4]}": shape
        for name in ("_Qs.params", "_detach_Qs_params", "_target_Qs_params")
        for i, shape in enumerate(ensemble)
    }


def constants(tasks, action, num_q, action_dims=None):
    """What the new form holds beside the parameters; no masks where tasks is 0."""
    extra = {"log_std_min": torch.tensor(-10), "log_std_dif": torch.tensor(12)}
    if tasks:
        own = torch.tensor(action_dims or [action] * tasks)
        extra["_action_masks"] = (torch.arange(action) < own[:, None]).float()
    for name in ("_Qs.params", "_detach_Qs_params", "_target_Qs_params"):
        extra |= {f"{name}.__batch_size": torch.Size([num_q]), f"{name}.__device": None}
    return extra


def random_state(form, *, tasks=0, episodic=False, seed=0):
    """A small model, of one task without embedding where tasks is 0."""
    torch.manual_seed(seed)
    task = 16 if tasks else 0
    shapes = published_shapes(tasks, 5, 2, 24, 32, 16, 3, 3, task, form=form, episodic=episodic)
    state = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    if form == "new":
        state |= {name.replace("_Qs.params", "_detach_Qs_params"): state[name] for name in state if "_Qs.p" in name}
        state |= constants(tasks, 2, 3, [1, 2, 2][:tasks])
    return state


def golden():
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(np.array(file[name])) for name in file.files}


def golden_state(form):
    new = {name.removeprefix("sd/"): value for name, value in golden().items() if name.startswith("sd/")}
    if form == "new":
        copies = {k.replace("_Qs.params", "_detach_Qs_params"): v for k, v in new.items() if k.startswith("_Qs.")}
        return new | copies | constants(4, 6, 5, ACTION_DIMS)
    old = {}
    for name, value in new.items():
        if "Qs" in name:
            prefix, rest = name.replace("_target_Qs_params", "_target_Qs.params").split(".params.")
            layer, kind = rest.split(".", 1)
            old[f"{prefix}.params.{4 * int(layer) + LAYER.index(kind)}"] = value
        elif name not in ("_action_masks", "log_std_min", "log_std_dif"):
            old[name] = value
    return old


def assert_identical(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert type(found[name]) is type(value), name
        if torch.is_tensor(value):
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def write(path, content):
    torch.save(content, path)
    return path
