"""MR.Q's equations against numbers worked out by hand, where the golden files do not reach."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from orrery.pipeline.errors import ConfigError, DatasetError
from orrery.stages.mrq import losses
from orrery.stages.mrq.actions import Actions
from orrery.stages.mrq.config import DesignConfig, LearnConfig, NetworkConfig, ReleasedMrqConfig, vary
from orrery.stages.mrq.networks import MrqEncoder, Prediction, initialise
from orrery.stages.mrq.norm import norm_elu
from orrery.stages.mrq.priorities import Priorities

SMALL = NetworkConfig(12, 12, 6, 10, 10, 10, num_bins=9, bin_limit=3.0)


def row(*values):
    """[M, T, B] of one member and one window."""
    return torch.tensor(values, dtype=torch.float32)[None, :, None]


def test_the_return_keeps_the_terminal_reward_and_nothing_after_it():
    # 8 at the terminal step, then 11 and 12 of the next episode: the published code gives 10.78, the return is 8.
    reward, not_done, discount = row(8.0, 0.0, 11.0), row(0.0, 0.0, 1.0), torch.tensor([0.99])
    values = {
        form: losses.n_step_return(reward, not_done, discount, form) for form in ("masked", "released", "unmasked")
    }
    assert float(values["masked"][0]) == pytest.approx(8.0)
    assert float(values["released"][0]) == pytest.approx(0.99**2 * 11)
    assert float(values["unmasked"][0]) == pytest.approx(8 + 0.99**2 * 11)
    assert all(float(bootstrap) == 0 for _, bootstrap in values.values())


def test_the_bootstrap_is_discounted_by_the_horizon():
    found, bootstrap = losses.n_step_return(row(1.0, 2.0), row(1.0, 1.0), torch.tensor([0.5]))
    assert float(found) == 2.0
    assert float(bootstrap) == 0.25


def test_value_target_in_units_of_the_reward_scale():
    args = torch.tensor([[3.0]]), torch.tensor([[0.5]]), torch.tensor([[4.0]])
    found = losses.value_target(*args, torch.tensor([2.0]), torch.tensor([5.0]))
    assert float(found) == (3 + 0.5 * 4 * 5) / 2


def test_reward_scale_stays_one_until_a_reward_was_seen():
    assert losses.reward_scale(torch.zeros(5), 4) == 1.0
    assert losses.reward_scale(torch.zeros(5), 4, floor=1e-8) == 1e-8
    assert losses.reward_scale(torch.tensor([-2.0, 0.0, 4.0]), 2) == 3.0


def test_losses_of_the_model_count_up_to_the_terminal_decision():
    # Two windows of two steps; the first ends at once, so its second step counts nothing.
    not_done = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    prediction = Prediction(torch.zeros(1, 2, 2), torch.ones(1, 2, 2, 3), torch.full((1, 2, 2, 1), 2.0))
    found = losses.encoder_losses(prediction, torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2), not_done, torch.zeros(0))
    assert found["dynamics"].tolist() == [[1.0, 0.5]]
    assert found["reward"].tolist() == [[4.0, 2.0]]  # squared error of 2
    assert found["done"].tolist() == [[0.5, 0.0]]


def test_two_hot_cross_entropy_is_that_of_the_encoded_distribution():
    bins = losses.reward_bins(9, 3.0)
    logits, value = torch.randn(7, 9, generator=torch.Generator().manual_seed(0)), torch.linspace(-25, 25, 7)
    lower, weight = losses.bin_position(value, bins)
    encoded = F.one_hot(lower, 9) * (1 - weight[:, None]) + F.one_hot(lower + 1, 9) * weight[:, None]
    torch.testing.assert_close(encoded @ bins, value.clamp(bins[0], bins[-1]))
    expected = -(encoded * F.log_softmax(logits, -1)).sum(-1)
    torch.testing.assert_close(losses.two_hot_cross_entropy(logits, value, bins), expected)


def test_huber_and_squared_error_are_means_over_both_values():
    value, target = torch.tensor([[[0.5, 3.0]]]), torch.tensor([[0.0]])
    assert float(losses.value_loss(value, target)) == pytest.approx((0.125 + 2.5) / 2)
    assert float(losses.value_loss(value, target, huber=False)) == pytest.approx((0.25 + 9) / 2)


def test_behaviour_loss_of_choices_is_cross_entropy_over_the_own_ones():
    pre, mask = torch.tensor([[[0.0, 0.0, 50.0]]]), torch.tensor([[1.0, 1.0, 0.0]])
    found = losses.behaviour_loss(pre, torch.tensor([[[1.0, 0.0, 0.0]]]), mask, discrete=True)
    assert float(found) == pytest.approx(math.log(2))


def test_behaviour_and_policy_loss_leave_padding_out():
    pre, mask = torch.tensor([[[0.0, 9.0]]]), torch.tensor([[1.0, 0.0]])
    assert float(losses.behaviour_loss(pre, torch.tensor([[[0.5, 0.0]]]), mask, discrete=False)) == pytest.approx(0.25)
    assert float(losses.policy_loss(torch.tensor([[[1.0, 2.0]]]), pre + 1, mask, 10.0)) == pytest.approx(10 - 1.5)


def test_draws_are_proportional_to_priority_and_never_of_priority_zero():
    cumulative = torch.tensor([0.0, 1.0, 1.0, 4.0, 4.0]).double()
    drawn = losses.draw_by_priority(cumulative, torch.arange(4000) / 4000)
    assert torch.bincount(drawn, minlength=5).tolist() == [0, 1000, 0, 3000, 0]
    assert losses.draw_by_priority(cumulative, torch.tensor([1 - 1e-17, 0.0])).tolist() == [3, 1]


def test_small_priorities_survive_among_many_slots():
    """A float32 sum over 2e6 slots of 10 would step in twos, and lose every second slot."""
    priorities = Priorities(2_000_000, [5], torch.device("cpu"))
    priorities.weight.fill_(10)
    priorities.starts[5].fill_(True)
    uniform = (torch.arange(1_999_000, 2_000_000).double() + 0.5) / 2_000_000
    drawn = losses.draw_by_priority(priorities.cumulative(5, 2_000_000), uniform)
    assert torch.equal(drawn, torch.arange(1_999_000, 2_000_000))


def test_nothing_to_draw_is_said():
    with pytest.raises(DatasetError, match="no window of 5 steps"):
        Priorities(4, [5], torch.device("cpu")).check(5, 4)


def test_norm_elu_is_layer_norm_then_elu_with_its_gradient():
    x = (3 * torch.randn(4, 7, generator=torch.Generator().manual_seed(1))).double().requires_grad_()
    reference = F.elu(F.layer_norm(x, (7,)))
    torch.testing.assert_close(norm_elu(x.detach()), reference.detach())
    weights = torch.linspace(-1, 1, 28).view(4, 7)
    (expected,) = torch.autograd.grad((reference * weights).sum(), x)
    (found,) = torch.autograd.grad((norm_elu(x) * weights).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("linear", [True, False])
def test_unrolling_is_one_decision_after_the_other(linear):
    encoder = MrqEncoder(2, (4,), 3, SMALL, DesignConfig(linear_model=linear))
    initialise(encoder, 2, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
    generator = torch.Generator().manual_seed(2)
    observation, action = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 3, 5, 3, generator=generator)
    z = encoder.encode(observation)
    found = encoder.unroll(z, action)
    for t in range(3):
        expected = encoder.predict(encoder.state_action(z, action[:, t]))
        for name in ("done", "latent", "reward"):
            torch.testing.assert_close(getattr(found, name)[:, t], getattr(expected, name), rtol=1e-4, atol=1e-5)
        z = expected.latent


def test_members_are_initialised_each_from_its_own_seed():
    pair, single = MrqEncoder(2, (4,), 3, SMALL, DesignConfig()), MrqEncoder(1, (4,), 3, SMALL, DesignConfig())
    initialise(pair, 2, [torch.Generator().manual_seed(seed) for seed in (5, 6)])
    initialise(single, 1, [torch.Generator().manual_seed(6)])
    for name, value in single.state_dict().items():
        assert torch.equal(pair.state_dict()[name][1:], value)
    # Xavier-uniform with gain sqrt(2): the bound is sqrt(2) sqrt(6 / (in + out)).
    weight = single.joint.l2.weight.detach()
    assert float(weight.abs().max()) <= math.sqrt(12 / 20)
    assert float(weight.abs().max()) > 0.9 * math.sqrt(12 / 20)


def test_random_shift_moves_by_whole_pixels_and_repeats_the_border():
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    same = losses.random_shift(image, torch.tensor([[1, 1]]), 1)
    assert torch.equal(same, image)
    left = losses.random_shift(image, torch.tensor([[0, 1]]), 1)[0, 0]
    assert left.tolist() == [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10], [12, 12, 13, 14]]


def test_noise_on_choices_is_halved_and_padded_choices_never_taken():
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    choices = Actions(mask, True, 10.0, [torch.Generator().manual_seed(0)])
    taken = choices.perturb(torch.tensor([[[0.5, 0.5, 0.0]]]).expand(1, 1000, 3), 0.2)
    counts = taken.sum(1)[0]
    assert counts[2] == 0
    assert 400 < counts[0] < 600  # five standard deviations
    assert choices.uniform(1000).sum(1)[0, 2] == 0
    certain = choices.perturb(torch.tensor([[[1.0, 0.0, 0.0]]]).expand(1, 1000, 3), 0.2, 0.3)
    assert certain[..., 0].all()  # noise is at most 0.15 on either side
    relaxed = choices.squash(torch.zeros(1, 4, 3))
    assert (relaxed[..., 2] == 0).all()
    torch.testing.assert_close(relaxed.sum(-1), torch.ones(1, 4))


def test_every_row_of_the_design_study_changes_what_it_says():
    config = LearnConfig()
    assert vary(config, "mrq") == config
    assert vary(config, "one_step_return").return_horizon == 1
    revert = vary(config, "revert").design
    assert (revert.linear_value, revert.state_action_target, revert.target_encoder) == (True, True, False)
    assert vary(config, "released").released == ReleasedMrqConfig("released", True, True)


def test_unequal_widths_cannot_take_the_dynamics_target():
    with pytest.raises(ConfigError, match="latent_dim 512 and state_action_dim 256 must be equal"):
        vary(LearnConfig(networks=NetworkConfig(state_action_dim=256)), "dynamics_target")
