"""Policies in their folders: every kind is read back as it was written, also as an older version wrote it."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from orrery.stages.policy.policy import load_policy
from safetensors.torch import load_file, save_file

from .deployed import arm_task, latent, mrq, perceptron


@pytest.mark.parametrize("make", [latent, mrq, lambda task: mrq(task, on_latents=True), perceptron])
def test_a_policy_acts_the_same_after_it_was_written_and_read(tmp_path, make):
    policy = make(arm_task())
    policy.save(tmp_path)
    read = load_policy(tmp_path)
    observation = torch.randn(4, policy.task.observation_dim, generator=torch.Generator().manual_seed(0))
    assert type(read) is type(policy)
    assert read.task == policy.task
    assert torch.equal(read.act(observation), policy.act(observation))
    assert not any(parameter.requires_grad for parameter in read.parameters())


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_policy_may_be_read_by_whom_the_umask_says(tmp_path, umask):
    former = os.umask(umask)
    try:
        for _ in range(2):  # also where it is written again
            perceptron(arm_task()).save(tmp_path)
            assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~umask}
    finally:
        os.umask(former)


def test_a_latent_policy_from_before_there_was_a_task_encoder_is_read(tmp_path):
    policy = latent(arm_task())
    policy.save(tmp_path)
    path, tensors = tmp_path / "policy.json", load_file(tmp_path / "policy.safetensors")
    values = json.loads(path.read_text())
    encoder = values.pop("encoder")
    path.write_text(json.dumps({**values, "encoder": encoder["config"], "observation_dim": encoder["observation_dim"]}))
    old = {name.removeprefix("encoder."): value for name, value in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "policy.safetensors")
    observation = torch.randn(4, policy.task.observation_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_policy(tmp_path).act(observation), policy.act(observation))
