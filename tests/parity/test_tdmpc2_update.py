"""One whole update of model, policy prior and target values gives the numbers of the published TD-MPC2 code.

golden/tdmpc2_update.npz was produced by nicklashansen/tdmpc2 @e9f5932: horizon 3, batch 8, rho 0.5, no dropout, with
the random numbers that it drew.
"""

from __future__ import annotations

import lightning
import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.stages.training.config import OptimizerConfig
from orrery.stages.training.progress import quiet_lightning
from orrery.stages.world_model.config import LossConfig, WorldModelConfig
from orrery.stages.world_model.module import WorldModelTraining
from orrery.stages.world_model.objective import Draws, rollout_losses, td_target
from orrery.stages.world_model.tdmpc2_checkpoint import from_tdmpc2, published_names
from tensordict import TensorDict

from .test_tdmpc2 import CLOSE, load

LOSS = LossConfig(rho=0.5, squashed_entropy=False)
TASKS = zip((3, 8, 15, 24), (1, 2, 4, 6), (500, 500, 100, 25), strict=True)
TABLE = TaskTable([TaskSpec(f"toy/{i}", o, a, length) for i, (o, a, length) in enumerate(TASKS)])


@pytest.fixture(scope="module")
def golden():
    return load("tdmpc2_update")


@pytest.fixture
def model(golden):
    state = {key.removeprefix("sd/"): torch.as_tensor(value) for key, value in golden.items() if key.startswith("sd/")}
    config = WorldModelConfig(dropout=0.0, normalize_observations=False)
    model = from_tdmpc2(state, TABLE, config, frozen=False)
    model.renormalise_task_embedding()  # published: within the first lookup
    return model


@pytest.fixture
def batch(golden):
    shape = golden["in/reward"].shape[:2][::-1]
    return TensorDict(
        {
            "observation": golden["in/obs"].transpose(0, 1),
            "action": golden["in/action"].transpose(0, 1),
            "reward": golden["in/reward"][..., 0].T,
            "terminated": torch.zeros(shape, dtype=torch.bool),
            "valid": torch.ones(shape, dtype=torch.bool),
            "task": golden["in/task"],
        },
        batch_size=shape[:1],
    )


@pytest.fixture
def draws(golden):
    return Draws(
        golden["rng/eps_td_target"],
        golden["rng/eps_pi_update"],
        golden["rng/q_idx_td_target"],
        golden["rng/q_idx_pi_update"],
    )


def test_targets_and_losses(golden, model, batch, draws):
    torch.testing.assert_close(model.discount_K, golden["in/discount"])
    with torch.no_grad():
        next_z = model.encode(golden["in/obs"][1:], golden["in/task"].expand(3, -1))
    target = td_target(
        model, next_z, golden["in/reward"][..., 0], torch.ones(3, 8), golden["in/task"].expand(3, -1), draws
    )
    torch.testing.assert_close(target, golden["out/td_targets"][..., 0], **CLOSE)
    losses, _ = rollout_losses(model, batch, LOSS, torch.ones(4), draws)
    for name in ("consistency", "reward", "value", "total"):
        torch.testing.assert_close(losses[name].detach(), torch.tensor(golden[f"out/info_{name}_loss"]), **CLOSE)


def test_whole_update(golden, model, batch, draws, monkeypatch):
    """Through Lightning, as `pretrain` runs it."""
    quiet_lightning()
    monkeypatch.setattr(WorldModelTraining, "_draw", lambda *_: draws)
    monkeypatch.setattr(WorldModelTraining, "log_dict", lambda *_, **__: None)
    module = WorldModelTraining(model, LOSS, OptimizerConfig(), torch.ones(4), total_steps=1, log_every=1)
    norms = []
    monkeypatch.setattr(
        module,
        "on_before_optimizer_step",
        lambda _: norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()),
    )
    trainer = lightning.Trainer(
        max_steps=1,
        num_sanity_val_steps=0,
        gradient_clip_val=OptimizerConfig().clip_norm,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader([batch], batch_size=None, collate_fn=lambda one: one)
    trainer.fit(module, loader, loader)
    assert float(norms[0]) == pytest.approx(golden["out/grad_norm_model_preclip"], rel=1e-5)
    metrics = module._prior_metrics
    assert float(metrics["prior"]) == pytest.approx(golden["out/info_pi_loss"], rel=1e-4)
    assert float(metrics["prior_grad_norm"]) == pytest.approx(golden["out/grad_norm_pi_preclip"], rel=1e-4)
    assert float(module.value_range) == pytest.approx(float(golden["out/scale_value_after"][0]), rel=1e-5)
    after = dict(model.state_dict())
    names = published_names(model, "new").items()
    expected = {ours: golden[f"sd_after/{theirs}"] for ours, theirs in names if f"sd_after/{theirs}" in golden}
    assert len(expected) > 40
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-4 * 3e-4, msg=lambda m, n=name: f"{n}: {m}")
