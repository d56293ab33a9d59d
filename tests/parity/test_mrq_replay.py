"""MR.Q's replay, priorities and returns: those of the published code, wherever the two are meant to agree."""

from __future__ import annotations

import pytest
import torch
from orrery.stages.mrq import losses
from orrery.stages.mrq.replay import Replay

from .mrq_golden import CLOSE, GOLDEN, load

BUFFERS = sorted(path.stem for path in GOLDEN.glob("mrq_buffer_*.npz"))


def test_lap():
    golden = load("mrq_lap")
    weight = golden["priority"] * golden["mask"]
    index = losses.draw_by_priority(weight.cumsum(0, dtype=torch.float64), golden["u"])
    torch.testing.assert_close(index, golden["index"])
    error = golden["td"][None, :, None].expand(1, -1, 2)
    found = losses.lap_priority(error, torch.zeros(1, len(golden["td"])), 0.4, 1.0)[0]
    torch.testing.assert_close(found, golden["new_priority"], **CLOSE)
    priority = golden["priority"].clone()
    priority[index] = found
    torch.testing.assert_close(priority, golden["priority_after"], **CLOSE)


def golden_replay(golden, released):
    """Our replay, filled with the stored episodes, and the bool mask of slots that may start after each transition."""
    horizons = (golden["enc_action"].shape[1], golden["rl_reward"].shape[1])
    sizes = golden["obs"].shape[1:], golden["enc_action"].shape[-1]
    replay = Replay(golden["max_size"], *sizes, horizons, released_starts=released)
    slot, masks = 0, []
    for text in golden["episodes"]:
        length, end = text.split(":")
        for t in range(int(length)):
            last = t == int(length) - 1
            replay.add(
                0,
                golden["obs"][slot],
                golden["ard"][slot, 2:],
                float(golden["ard"][slot, 0]),
                golden["obs"][(slot + 1) % len(golden["obs"])],
                terminated=last and end in ("term", "both"),
                truncated=last and end in ("trunc", "both"),
            )
            masks.append(replay.priorities.starts[replay.horizons[0]].clone())
            slot += 1
        slot += end != "ongoing"
    return replay, torch.stack(masks)


@pytest.mark.parametrize("name", BUFFERS)
def test_replay_in_its_released_form(name):
    golden = load(name)
    replay, masks = golden_replay(golden, released=True)
    torch.testing.assert_close(masks.float(), golden["masks_after_each_add"])
    torch.testing.assert_close(masks[-1].float(), golden["mask"])
    assert replay.used == golden["size"]
    start = golden["valid_start"]
    assert torch.equal(masks[-1].nonzero()[:, 0], start)
    encoder_horizon, return_horizon = replay.horizons
    published = replay.unpadded_windows(start, encoder_horizon)
    torch.testing.assert_close(published.reward, golden["enc_reward"][..., 0])
    torch.testing.assert_close(published.not_done, golden["enc_not_done"][..., 0])
    torch.testing.assert_close(published.action, golden["enc_action"])
    # Observations agree while the episode lasts; after its end the published code reads slot 0.
    lasts = torch.cat([torch.ones(len(start), 1), published.not_done], 1).cumprod(1)[:, :-1].bool()
    before = replay.observations(start, torch.arange(encoder_horizon))[..., 0]
    torch.testing.assert_close(before[lasts], golden["enc_state"][..., 0][lasts])
    after = replay.observations(start, torch.arange(1, encoder_horizon + 1))[..., 0]
    continue_ = lasts & published.not_done.bool()
    torch.testing.assert_close(after[continue_], golden["enc_next"][..., 0][continue_])
    short = replay.unpadded_windows(start, return_horizon)
    discount = torch.tensor([0.99])
    for form, stored in (("released", "rl_return_official"), ("masked", "rl_return_textbook")):
        found, bootstrap = losses.n_step_return(short.reward.T[None], short.not_done.T[None], discount, form)
        torch.testing.assert_close(found[0], golden[stored][:, 0], **CLOSE)
    torch.testing.assert_close(bootstrap[0], 0.99**return_horizon * golden["rl_not_done_prod"][:, 0], **CLOSE)
    kept = golden["rl_not_done_prod"][:, 0].bool()
    final = replay.observations(start, torch.tensor([return_horizon]))[:, 0, 0]
    torch.testing.assert_close(final[kept], golden["rl_next"][:, 0][kept])
    assert replay.has_terminated == golden["env_terminates"]


@pytest.mark.parametrize("name", BUFFERS)
def test_padded_windows_lose_nothing_and_leak_nothing(name):
    """Ours: all released starts and more; returns of the textbook form, encoder masks as published."""
    golden = load(name)
    replay, _ = golden_replay(golden, released=False)
    encoder_horizon, return_horizon = replay.horizons
    start = golden["valid_start"]
    for horizon in replay.horizons:
        assert replay.priorities.starts[horizon][start].all()
    padded = replay.windows(start, return_horizon)
    assert (padded.reward[:, 1:][padded.not_done[:, :-1] == 0] == 0).all()
    found, _ = losses.n_step_return(padded.reward.T[None], padded.not_done.T[None], torch.tensor([0.99]), "unmasked")
    torch.testing.assert_close(found[0], golden["rl_return_textbook"][:, 0], **CLOSE)
    long = replay.windows(start, encoder_horizon)
    published = golden["enc_not_done"][..., 0].cumprod(1)
    torch.testing.assert_close(long.not_done, published)


def test_reward_scale_in_its_released_form():
    golden, buffer = load("mrq_lap"), load("mrq_buffer_nowrap")
    replay, _ = golden_replay(buffer, released=True)
    found = losses.reward_scale(replay.reward, replay.used, floor=1e-8)
    assert found == pytest.approx(golden["reward_scale"], rel=1e-6)
