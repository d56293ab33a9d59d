"""Policies that pad observations to their model's width refuse those of another task."""

from __future__ import annotations

import pytest
import torch
from orrery.pipeline.errors import TaskError

from .deployed import arm_task, latent, mrq, perceptron, pixels


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize(
    "make",
    [latent, mrq, lambda task: mrq(task, on_latents=True), lambda _: pixels()],
    ids=["latent", "mrq", "on", "px"],
)
def test_an_observation_of_another_width_is_refused(make, change):
    policy = make(arm_task())
    own = policy.task.observation_dim
    assert policy.act(torch.zeros(3, own)).shape == (3, policy.task.action_dim)
    with pytest.raises(TaskError, match=rf"observations of {own} numbers, found {own + change}"):
        policy.act(torch.zeros(3, own + change))


def test_one_that_pads_nothing_cannot_be_given_another_width_either():
    with pytest.raises(RuntimeError):
        perceptron(arm_task()).act(torch.zeros(3, arm_task().observation_dim - 1))
