"""What must hold for any weights: causality, no path through states where there should be none, one unroll."""

from __future__ import annotations

import math

import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.stages.layers.gradients import scale_gradient
from orrery.stages.sequence_model.config import KINDS, SequenceModelConfig
from orrery.stages.sequence_model.kinds import build_model, load_model
from orrery.stages.sequence_model.recurrent import DiagonalLayer, Recurrent, diagonal_scan

TABLE = TaskTable([TaskSpec("toy/wide", 4, 2, 30), TaskSpec("toy/narrow", 3, 1, 30)])
B, T = 3, 12
AWMS = ("awm", "rnn", "ssm")


def model(kind, **changes):
    """Random weights large enough that everything matters, odd scales, and a clock in the last own column."""
    torch.manual_seed(0)
    config = SequenceModelConfig(**{"kind": kind, "horizon": T, "width": 24, "stride": 5, "states": 8} | changes)
    built = build_model(config, TABLE)
    for name, parameter in built.named_parameters():
        if parameter.dim() > 1 and "recurrence" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    built.observation_mean_KO.copy_(torch.randn(2, 4) * built.observation_mask_KO)
    built.observation_scale_KO.uniform_(0.5, 2)
    built.clock_step_KO[0, 3] = 1 / built.observation_scale_KO[0, 3]
    built.clock_step_KO[1, 2] = 1 / built.observation_scale_KO[1, 2]
    built.reward_mean_K.copy_(torch.tensor([1.0, -2.0]))
    return built


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    task = torch.tensor([0, 1, 0])
    observation = torch.randn(B, T + 1, 4, generator=generator)
    observation[1, :, 3] = 0
    action = torch.rand(B, T, 2, generator=generator) * 2 - 1
    action[1, :, 1] = 0
    return observation, action, task


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_depends_on_earlier_actions_only(kind):
    observation, action, task = inputs()
    action.requires_grad_()
    predicted = model(kind).predict(observation[:, 0], action, task)
    for t in range(T):
        (gradient,) = torch.autograd.grad(predicted[:, t].sum(), action, retain_graph=True)
        assert (gradient[:, t + 1 :] == 0).all()
        assert (gradient[:, t].abs().sum(-1) > 0).all()
        assert (gradient[:, 0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_only_models_with_feedback_read_states_after_the_first(kind):
    observation, action, task = inputs()
    built = model(kind)
    scaled = built.scale(observation[:, :-1], task).requires_grad_()
    predicted = built.fit(scaled, action, task)
    other = scaled.detach().clone()
    other[:, 1:] += 1
    changed = built.fit(other, action, task)
    (gradient,) = torch.autograd.grad(predicted.square().sum(), scaled)
    assert (gradient[:, 0] != 0).any()
    if kind in AWMS:
        assert torch.equal(changed, predicted)
        assert (gradient[:, 1:] == 0).all()
    else:
        assert (changed[:, 1:] != predicted[:, 1:]).any()
        roots = torch.arange(1, T) % 5 == 0 if kind == "rerooted" else torch.ones(T - 1, dtype=torch.bool)
        assert (gradient[:, 1:][:, roots].abs().sum((0, 2)) > 0).all()
        assert (gradient[:, 1:][:, ~roots] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
def test_the_unroll_gives_the_numbers_and_gradients_of_the_parallel_pass(kind, double):
    observation, action, task = inputs()
    # Loud weights make the models with feedback chaotic, which float32 cannot repeat.
    built = model(kind).double() if double else build_model(SequenceModelConfig(kind=kind, horizon=T, stride=5), TABLE)
    if double:
        observation, action = observation.double(), action.double()
    close = {"rtol": 1e-9, "atol": 1e-9} if double else {"rtol": 1e-5, "atol": 1e-5}
    action.requires_grad_()
    predicted = built.predict(observation[:, 0], action, task)
    carry, unrolled = built.start(observation[:, 0], task), []
    for action_t in action.unbind(1):
        following, carry = built.advance(carry, action_t)
        unrolled.append(following)
    torch.testing.assert_close(torch.stack(unrolled, 1), predicted, **close)
    weight = torch.randn(predicted.shape, generator=torch.Generator().manual_seed(2)).to(predicted)
    (one,) = torch.autograd.grad((predicted * weight).sum(), action)
    (other,) = torch.autograd.grad((torch.stack(unrolled, 1) * weight).sum(), action)
    torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_the_clock_counts_padding_stays_zero_and_padded_actions_do_nothing(kind):
    observation, action, task = inputs()
    built = model(kind)
    predicted = built.predict(observation[:, 0], action, task)
    count = torch.arange(1.0, T + 1)
    torch.testing.assert_close(predicted[0, :, 3], observation[0, 0, 3] + count)
    torch.testing.assert_close(predicted[1, :, 2], observation[1, 0, 2] + count)
    assert (predicted[1, :, 3] == 0).all()
    loud = action.clone()
    loud[1, :, 1] = 5
    assert torch.equal(built.predict(observation[:, 0], loud, task), predicted)
    rewards = [built.reward(observation[:, 0], a[:, 0], predicted[:, 0], task) for a in (action, loud)]
    assert torch.equal(*rewards)


@pytest.mark.parametrize("kind", KINDS)
def test_the_task_token_tells_tasks_apart(kind):
    observation, action, _ = inputs()
    observation[..., 2:] = 0
    built = model(kind)
    built.observation_mean_KO.zero_()
    built.observation_scale_KO.fill_(1)
    built.clock_step_KO.zero_()
    action[..., 1] = 0
    one, other = (built.predict(observation[:, 0], action, torch.full((B,), k)) for k in (0, 1))
    assert not torch.allclose(one[..., :2], other[..., :2])


def test_the_recurrent_gradient_is_a_power_of_a_scalar_recurrence():
    backbone = Recurrent(6, activation=lambda x: x).double()
    with torch.no_grad():
        backbone.recurrence.copy_(0.7 * torch.eye(6, dtype=torch.float64))
    token = torch.randn(1, 20, 6, dtype=torch.float64, requires_grad=True)
    hidden = backbone(token)
    for n in range(1, 20):
        norms = []
        for unit in range(6):
            (gradient,) = torch.autograd.grad(hidden[0, n, unit], token, retain_graph=True)
            norms.append(gradient[0, 0])
        jacobian = torch.stack(norms)
        torch.testing.assert_close(jacobian, 0.7**n * backbone.token_in.weight, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("length", [1, 13, 20, 200])  # one chunk, two levels, three levels
def test_the_scan_is_the_recurrence_and_its_gradient_a_power_of_lambda(length):
    torch.manual_seed(0)
    decay = torch.polar(torch.tensor([0.3, 0.9, 0.999], dtype=torch.float64), torch.tensor([0.1, 2.0, 0.5]).double())
    driven = torch.randn(2, length, 3, dtype=torch.complex128, requires_grad=True)
    state, expected = torch.zeros(2, 3, dtype=torch.complex128), []
    for n in range(length):
        state = decay * state + driven[:, n]
        expected.append(state)
    scanned = diagonal_scan(decay, driven)
    torch.testing.assert_close(scanned, torch.stack(expected, 1))
    for n in range(length):
        (gradient,) = torch.autograd.grad(scanned[0, n].real.sum(), driven, retain_graph=True)
        torch.testing.assert_close(gradient[0, 0].abs(), decay.abs() ** n)


def test_state_space_decay_stays_within_the_unit_circle():
    layer = DiagonalLayer(4, 16)
    assert (layer.decay().abs() < 1).all()
    assert (layer.decay().abs() > 0.89).all()
    with torch.no_grad():
        layer.log_rate.fill_(-20)
    assert (layer.decay().abs() <= 1).all()


def test_cutting_the_feedback_of_an_hwm_leaves_the_direct_term():
    observation, action, task = inputs()
    cut, whole = model("hwm", feedback_gradient=0.0), model("hwm")
    action.requires_grad_()
    predicted = cut.predict(observation[:, 0], action, task)
    (found,) = torch.autograd.grad(predicted.square().sum(), action)
    # The direct term: the same tokens, with the predicted states put in as constants.
    fed = torch.cat([observation[:, :1], predicted[:, :-1].detach()], 1)
    decoded = cut.fit(cut.scale(fed, task), action * cut.action_mask_KA[task][:, None], task)
    direct = cut.unscale(cut.complete_all(decoded, cut.scale(observation[:, 0], task), task), task)
    torch.testing.assert_close(direct, predicted, rtol=1e-5, atol=1e-5)
    (expected,) = torch.autograd.grad(direct.square().sum(), action)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    (full,) = torch.autograd.grad(whole.predict(observation[:, 0], action, task).square().sum(), action)
    assert not torch.allclose(full, expected, rtol=0.1)


def test_a_root_at_every_decision_is_markov_and_one_root_is_an_awm():
    observation, action, task = inputs()
    single, never = model("rerooted", stride=1), model("rerooted", stride=T)
    awm = model("awm")
    awm.load_state_dict(never.state_dict())
    assert torch.equal(awm.predict(observation[:, 0], action, task), never.predict(observation[:, 0], action, task))
    # Markov: what follows depends on the latest state alone.
    predicted = single.predict(observation[:, 0], action, task)
    again = single.predict(predicted[:, 6], action[:, 7:], task)
    torch.testing.assert_close(again, predicted[:, 7:], rtol=1e-5, atol=1e-5)
    awm_again = awm.predict(awm.predict(observation[:, 0], action, task)[:, 6], action[:, 7:], task)
    assert not torch.allclose(awm_again, awm.predict(observation[:, 0], action, task)[:, 7:], atol=0.1)


def test_scale_gradient():
    x = torch.tensor(3.0, requires_grad=True)
    for share in (0.0, 0.25, 1.0):
        y = scale_gradient(x, share) ** 2
        assert y.item() == 9
        found = torch.autograd.grad(y, x, materialize_grads=True)[0] if share else torch.zeros(())
        assert found.item() == pytest.approx(6 * share)


@pytest.mark.parametrize("kind", ["awm", "hwm"])
def test_a_horizon_beyond_the_learned_positions_is_refused(kind):
    observation, action, task = inputs()
    longer = torch.cat([action, action[:, :1]], 1)
    built = model(kind)
    with pytest.raises(ConfigError, match=rf"is 13, but the sequence model \({kind}\) has learned 12 positions"):
        built.predict(observation[:, 0], longer, task)
    carry = built.start(observation[:, 0], task)
    for action_t in action.unbind(1):
        _, carry = built.advance(carry, action_t)
    with pytest.raises(ConfigError, match="learned 12 positions"):
        built.advance(carry, action[:, 0])


def test_a_missing_reward_head_says_so():
    observation, action, task = inputs()
    with pytest.raises(ConfigError, match="without a reward head"):
        model("awm", reward_head=False).reward(observation[:, 0], action[:, 0], observation[:, 1], task)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading(kind, tmp_path):
    observation, action, task = inputs()
    built = model(kind)
    built.save(tmp_path)
    loaded = load_model(tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.table == TABLE
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in built.state_dict().items())
    same = loaded.predict(observation[:, 0], action, task), built.predict(observation[:, 0], action, task)
    torch.testing.assert_close(*same, rtol=1e-3, atol=1e-3)
    model("awm" if kind != "awm" else "rnn").save(tmp_path / "other")
    (tmp_path / "sequence_model.safetensors").write_bytes(
        (tmp_path / "other" / "sequence_model.safetensors").read_bytes()
    )
    if kind != "rerooted":  # an awm with fewer positions
        with pytest.raises(CheckpointError, match="does not fit"):
            load_model(tmp_path)


def test_configs_refuse_what_cannot_work():
    with pytest.raises(ConfigError, match="kind: expected markov, hwm"):
        SequenceModelConfig(kind="lstm")
    with pytest.raises(ConfigError, match="not a multiple of heads"):
        SequenceModelConfig(width=50)
    assert math.isclose(SequenceModelConfig().feedback_gradient, 1)
