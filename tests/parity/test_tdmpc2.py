"""The world model's numbers are those of the published TD-MPC2 code, where the two are meant to agree.

golden/tdmpc2_math.npz and tdmpc2_forward.npz were produced by nicklashansen/tdmpc2 @e9f5932.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable, heuristic_discount
from orrery.stages.layers.activations import simnorm
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.losses import soft_cross_entropy, symexp, symlog, two_hot, two_hot_decode
from orrery.stages.world_model.networks import WorldModel

GOLDEN = Path(__file__).parents[1] / "golden"
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) if file[key].ndim else file[key].item() for key in file.files}


@pytest.fixture(scope="module")
def math():
    return load("tdmpc2_math")


@pytest.fixture(scope="module")
def forward():
    return load("tdmpc2_forward")


def sequential(state, prefix):
    """Parameters of NormedLinear layers and a last layer, from the published names to ours."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(prefix):
            index, rest = key.removeprefix(prefix).split(".", 1)
            renamed[index, rest] = value
    plain = {i for i, _ in renamed} - {i for i, rest in renamed if rest.startswith("ln.")}
    ours = {}
    for (index, rest), value in renamed.items():
        name = rest if index in plain else rest.replace("ln.", "norm.") if rest.startswith("ln.") else f"linear.{rest}"
        ours[f"{index}.{name}"] = value
    return ours


def published_model(state, encoder, action_dims=(1, 2, 4, 6)):
    """The toy model of the golden files: 4 tasks, latent 64."""
    config = WorldModelConfig(latent_dim=64, encoder_dim=32, mlp_dim=48, task_dim=16)
    sizes = zip((3, 8, 15, 24), action_dims, strict=True)
    model = WorldModel(config, TaskTable([TaskSpec(f"toy/{i}", o, a, 500) for i, (o, a) in enumerate(sizes)]))
    model.task_embedding.weight.data.copy_(state["_task_emb.weight"])
    model.encoder.layers.load_state_dict(sequential(state, encoder))
    model.dynamics.load_state_dict(sequential(state, "_dynamics."))
    model.reward.load_state_dict(sequential(state, "_reward."))
    model.renormalise_task_embedding()
    return model.eval().requires_grad_(False)


def test_symlog_and_two_hot(math):
    bins = math["bins"]
    torch.testing.assert_close(symlog(math["x"]), math["symlog"], **CLOSE)
    torch.testing.assert_close(symexp(math["symexp_in"]), math["symexp"], **CLOSE)
    torch.testing.assert_close(two_hot(math["x"][:, 0], bins), math["two_hot"], rtol=1e-5, atol=2e-5)
    decoded = two_hot_decode(math["logits"], bins)
    torch.testing.assert_close(decoded, math["two_hot_inv"][:, 0], rtol=1e-5, atol=1e-5)
    entropy = soft_cross_entropy(math["logits"], math["x"][:, 0], bins)
    torch.testing.assert_close(entropy, math["soft_ce"][:, 0], rtol=1e-5, atol=1e-5)


def test_simnorm(math):
    torch.testing.assert_close(simnorm(math["simnorm_in"], math["simnorm_dim"]), math["simnorm_out"], **CLOSE)


def test_discount_heuristic(math):
    found = [heuristic_discount(int(length)) for length in math["discount_ep_len"]]
    assert found == pytest.approx(math["discount"].tolist())


def test_forward_passes(forward):
    state = {key.removeprefix("sd/"): value for key, value in forward.items() if key.startswith("sd/")}
    model = published_model(state, "_encoder.state.")
    task, observation, action = forward["in/task"], forward["in/obs"], forward["in/action"]
    torch.testing.assert_close(model.task_embedding.weight.data, forward["out/task_emb_after_lookup"], **CLOSE)
    z = model.encode(observation[0], task)
    torch.testing.assert_close(z, forward["out/z0"], **CLOSE)
    torch.testing.assert_close(model.encode(observation, task.expand(4, -1)), forward["out/z_seq"], **CLOSE)
    logits = model.reward_logits(z, action[0], task)
    torch.testing.assert_close(logits, forward["out/reward_logits"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(model.decode_reward(logits), forward["out/reward_decoded"][:, 0], rtol=1e-5, atol=1e-5)
    rollout = [z]
    for step in action:
        rollout.append(model.next_latent(rollout[-1], step, task))
    torch.testing.assert_close(torch.stack(rollout), forward["out/z_rollout"], **CLOSE)
    torch.testing.assert_close(model.action_mask_KA, forward["out/action_masks"])
