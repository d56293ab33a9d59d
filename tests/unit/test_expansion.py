"""A longer table of tasks: old tasks keep what the model does on them; where a new one begins; what learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.stages.finetune.expansion import expand_model
from orrery.stages.finetune.module import begin_rows, learning_masks

from .models import SMALL, random_model

OLD = TaskTable([TaskSpec("toy/a", 3, 1, 50), TaskSpec("toy/b", 5, 2, 50)])
WIDER = TaskSpec("toy/wide", 9, 4, 50)
NARROWER = TaskSpec("toy/narrow", 2, 1, 50)
ANGLES = dataclasses.replace(SMALL, wrap_angles=True)
ENDING = TaskSpec("toy/ending", 2, 1, 50, terminates=True)


def outputs(model, table):
    """Everything that the model says about padded observations and actions of the first two tasks."""
    torch.manual_seed(1)
    task = torch.tensor([0, 1, 0, 1])
    observation, action, noise = torch.zeros(4, 9), torch.zeros(4, 4), torch.randn(4, 4)
    for row, k in enumerate(task.tolist()):
        observation[row, : OLD[k].observation_dim] = torch.randn(OLD[k].observation_dim)
        action[row, : OLD[k].action_dim] = torch.rand(OLD[k].action_dim) * 2 - 1
    observation, action = observation[:, : table.observation_dim], action[:, : table.action_dim]
    with torch.no_grad():
        z = model.encode(observation, task)
        next_z, reward, _ = model.step(z, action, task)
        prior = model.sample_prior(z, task, noise[:, : table.action_dim])
        found = [z, next_z, reward, model.value_logits(z, action, task), model.disagreement(z, action, task)]
        return [*found, model.value_logits(z, action, task, target=True), prior.action[:, :2], prior.scaled_entropy]


@pytest.mark.parametrize("new", [[NARROWER], [NARROWER, ENDING]])
@pytest.mark.parametrize("config", [SMALL, ANGLES])
def test_a_task_that_is_no_larger_leaves_every_bit_of_the_old_ones(new, config):
    model, _ = expand_model(old := random_model(OLD, config), new)
    expected = outputs(old, OLD)
    for found, value in zip(outputs(model.eval(), model.table), expected, strict=True):
        assert torch.equal(found, value)
    assert model.table.names == ("toy/a", "toy/b", *(task.name for task in new))


@pytest.mark.parametrize("config", [SMALL, ANGLES])
def test_a_larger_task_leaves_the_old_ones_up_to_rounding(config):
    model, _ = expand_model(old := random_model(OLD, config), [WIDER])
    assert (model.table.observation_dim, model.table.action_dim) == (9, 4)
    for found, value in zip(outputs(model.eval(), model.table), outputs(old, OLD), strict=True):
        torch.testing.assert_close(found, value, atol=1e-5, rtol=1e-5)


def test_an_action_model_of_latents_grows_too():
    config = dataclasses.replace(
        SMALL, num_q=0, disagreement_heads=0, dynamics="awm", awm_horizon=3, awm_width=8, awm_layers=1, awm_heads=2
    )
    model, _ = expand_model(old := random_model(OLD, config), [WIDER])
    task = torch.tensor([1])
    observation, action = torch.randn(1, 5), torch.rand(1, 2)
    wide_observation = torch.nn.functional.pad(observation, (0, 4))
    wide_action = torch.nn.functional.pad(action, (0, 2))
    expected = old.next_latent(old.encode(observation, task), action, task)
    found = model.next_latent(model.encode(wide_observation, task), wide_action, task)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_is_new_is_marked_and_zero():
    model, fresh = expand_model(random_model(OLD, ANGLES), [WIDER, ENDING])
    state = model.state_dict()
    columns = fresh["encoder.layers.0.linear.weight"]
    new = [*range(5, 9), *range(14, 18), *range(23, 27)]  # of the values, the sines and the cosines
    assert columns.all(0).nonzero().flatten().tolist() == columns.any(0).nonzero().flatten().tolist() == new
    assert (state["encoder.layers.0.linear.weight"][:, new] == 0).all()
    assert fresh["angle_KO"].all(1).tolist() == [False, False, True, True]
    assert not state["angle_KO"][2:].any()
    assert fresh["task_embedding.weight"].all(1).tolist() == [False, False, True, True]
    prior = fresh["policy_prior.2.weight"].all(1)
    assert prior.tolist() == [False, False, True, True] * 2
    assert fresh["continue_head.0.linear.weight"].all()  # nothing terminated before
    assert (state["observation_scale_KO"][2:] == 1).all()
    assert not fresh["dynamics.1.linear.weight"].any()


def test_other_beginnings_are_the_mean_row_and_the_drawn_one():
    model, _ = expand_model(old := random_model(OLD), [NARROWER])
    drawn = model.task_embedding.weight[2].clone()
    assert begin_rows(model, 2, "random", "best", [[]]) == [{"rule": "random", "scaling": "own"}]
    assert torch.equal(model.task_embedding.weight[2], drawn)
    begin_rows(model, 2, "mean", "best", [[]])
    torch.testing.assert_close(model.task_embedding.weight[2], old.task_embedding.weight.mean(0))


def test_masks_cover_what_the_levels_say():
    model, fresh = expand_model(random_model(OLD), [NARROWER])
    assert set(learning_masks(model, fresh, "embedding")) == {"task_embedding.weight"}
    everything = learning_masks(model, fresh, "everything")
    named = {name for name, _ in model.named_parameters() if not name.startswith("target_values")}
    assert set(everything) == named
    assert all(mask is None for mask in everything.values())
