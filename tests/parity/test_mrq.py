"""MR.Q's numbers are those of the published code, wherever the two are meant to agree.

golden/mrq_*.npz were produced by facebookresearch/MRQ @8a44a7d; random draws are stored in them. Ours are tested with
the published parameters, and in the released form where the corrected one differs.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from orrery.stages.mrq import losses
from orrery.stages.mrq.config import DesignConfig, LearnConfig, NetworkConfig, ReleasedMrqConfig
from orrery.stages.mrq.learner import Learner, Shapes
from orrery.stages.mrq.networks import MrqEncoder, PolicyNetwork, TwinValues
from orrery.stages.mrq.priorities import Priorities
from orrery.stages.mrq.replay import ReplayWindows

from .mrq_golden import CLOSE, GOLDEN, load, under

NETS = sorted(path.stem for path in GOLDEN.glob("mrq_nets_*.npz"))
SETTINGS = LearnConfig()


def ours(published):
    """{our name: value} from a published state, of an encoder, a policy or the values; one member."""
    names = {"zs_mlp.": "state.", "za.": "action.", "zsa.": "joint.", "policy.": "layers.", "zs_lin.": "state.out."}
    state = {}
    for name, value in published.items():
        if name.startswith("q2."):
            continue
        if name.startswith("q1."):  # both values are one stack
            value = torch.stack([value, published["q2." + name[3:]]])
            name = name[3:].replace("q1.", "hidden.").replace("q2.", "out.")
            stacked = value.transpose(1, 2) if name.endswith("weight") else value[:, None]
        elif name.startswith("zs_cnn"):
            state[f"state.convolutions.{int(name[6]) - 1}.{name[8:]}"] = value
            continue
        else:
            for old, new in names.items():
                name = new + name.removeprefix(old) if name.startswith(old) else name
            stacked = value.T[None] if name.endswith("weight") else value[None, None]
        state[name] = stacked
    return state


def filled(network, published):
    network.load_state_dict(ours(published))
    return network


class Published:
    """The networks of a golden file."""

    def __init__(self, golden):
        dims = under(golden, "meta/dims/")
        self.discrete = golden["meta/discrete"]
        self.widths = widths = NetworkConfig(
            latent_dim=dims["zs_dim"],
            state_action_dim=dims["zsa_dim"],
            action_dim=dims["za_dim"],
            encoder_dim=dims["enc_hdim"],
            value_dim=dims["value_hdim"],
            policy_dim=dims["policy_hdim"],
            num_bins=golden["meta/hp/num_bins"],
            bin_limit=golden["meta/hp/upper"],
        )
        self.bins = losses.reward_bins(widths.num_bins, widths.bin_limit)
        shape, actions = (golden["meta/obs_dim"],), golden["meta/act_dim"]
        for kind in ("", "_target"):
            encoder = MrqEncoder(1, shape, actions, widths, DesignConfig())
            setattr(self, f"encoder{kind}", filled(encoder, under(golden, f"sd_encoder{kind}/")))
            setattr(self, f"value{kind}", filled(TwinValues(1, widths, False), under(golden, f"sd_value{kind}/")))
            setattr(
                self, f"policy{kind}", filled(PolicyNetwork(1, actions, widths), under(golden, f"sd_policy{kind}/"))
            )

    def action(self, pre, gumbel):
        if self.discrete:
            gumbel = torch.zeros_like(pre) if gumbel is None else gumbel
        return losses.squash(pre, gumbel if self.discrete else None, SETTINGS.gumbel_temperature)


@pytest.fixture(params=NETS)
def golden(request):
    return load(request.param)


def stored_gumbel(golden, case, which):
    value = golden.get(f"{case}/gumbel_{which}")
    return None if value is None else torch.as_tensor(value)[None]


def test_forward_passes(golden):
    nets = Published(golden)
    state, action = golden["enc_batch/state"][None, :, 0], golden["enc_batch/action"][None, :, 0]
    z = nets.encoder.encode(state)
    torch.testing.assert_close(z[0], golden["fwd/zs"], **CLOSE)
    z_sa = nets.encoder.state_action(z, action)
    torch.testing.assert_close(z_sa[0], golden["fwd/zsa"], **CLOSE)
    predicted = nets.encoder.predict(z_sa)
    torch.testing.assert_close(predicted.done[0], golden["fwd/pred_done"][:, 0], **CLOSE)
    torch.testing.assert_close(predicted.latent[0], golden["fwd/pred_zs"], **CLOSE)
    torch.testing.assert_close(predicted.reward[0], golden["fwd/pred_reward_logits"], **CLOSE)
    decoded = torch.softmax(predicted.reward[0], -1) @ nets.bins
    torch.testing.assert_close(decoded, golden["fwd/pred_reward_value"][:, 0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(nets.value(z_sa)[0], golden["fwd/Q"], **CLOSE)
    pre = nets.policy(z)
    torch.testing.assert_close(pre[0], golden["fwd/pre_activ"], **CLOSE)
    if not nets.discrete:
        torch.testing.assert_close(torch.tanh(pre)[0], golden["fwd/policy_action"], **CLOSE)


@pytest.mark.parametrize("terminates", [True, False])
def test_encoder_loss_gradients_and_one_step(golden, terminates):
    nets, case = Published(golden), f"enc_loss_terminates_{terminates}"
    batch = {name: golden[f"enc_batch/{name}"].transpose(0, 1)[None] for name in ("action", "next_state")}
    reward, not_done = (golden[f"enc_batch/{name}"][..., 0].T[None] for name in ("reward", "not_done"))
    with torch.no_grad():
        target = nets.encoder_target.encode(batch["next_state"].flatten(1, 2)).unflatten(
            1, batch["next_state"].shape[1:3]
        )
    torch.testing.assert_close(target[0].transpose(0, 1), golden[f"{case}/target_zs"], **CLOSE)
    prediction = nets.encoder.unroll(nets.encoder.encode(golden["enc_batch/state"][None, :, 0]), batch["action"])
    torch.testing.assert_close(losses.alive(not_done)[0], golden[f"{case}/terms/alive"][..., 0])
    torch.testing.assert_close(prediction.latent[0], golden[f"{case}/terms/pred_zs"], **CLOSE)
    torch.testing.assert_close(prediction.done[0], golden[f"{case}/terms/pred_done"][..., 0], **CLOSE)
    torch.testing.assert_close(prediction.reward[0], golden[f"{case}/terms/pred_logits"], **CLOSE)
    terms = losses.encoder_losses(prediction, target, reward, not_done, nets.bins)
    torch.testing.assert_close(terms["dynamics"][0], golden[f"{case}/terms/dyn"], **CLOSE)
    torch.testing.assert_close(terms["reward"][0], golden[f"{case}/terms/rew"], **CLOSE)
    done = terms["done"][0] * terminates
    torch.testing.assert_close(done, golden[f"{case}/terms/done"], **CLOSE)
    total = (
        SETTINGS.dynamics_weight * terms["dynamics"]
        + SETTINGS.reward_weight * terms["reward"]
        + SETTINGS.done_weight * terminates * terms["done"]
    ).sum()
    assert float(total.detach()) == pytest.approx(golden[f"{case}/total"], rel=1e-6)

    total.backward()
    gradients = {name: parameter.grad for name, parameter in nets.encoder.named_parameters()}
    for name, expected in ours(under(golden, f"{case}/grads/")).items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=2e-5)
    step = {"lr": SETTINGS.encoder_lr, "weight_decay": SETTINGS.weight_decay}
    torch.optim.AdamW(nets.encoder.parameters(), **step).step()
    assert_parameters(nets.encoder, under(golden, f"{case}/sd_encoder_after_1_step/"), gradients, SETTINGS.encoder_lr)


def assert_parameters(network, expected, gradients, lr):
    """After the first AdamW step, which moves each parameter by the sign of its gradient: where that is far from 0."""
    parameters = dict(network.named_parameters())
    for name, value in ours(expected).items():
        clear = gradients[name].abs() > 1e-4 * gradients[name].abs().max()
        torch.testing.assert_close(parameters[name].detach()[clear], value[clear], rtol=1e-5, atol=0.02 * lr)


def test_n_step_return(golden):
    reward, not_done = (golden[f"nstep/{name}"][..., 0].T[None] for name in ("reward", "not_done"))
    discount = torch.tensor([golden["meta/hp/discount"]])
    for form, stored in (("released", "return_official_HEAD"), ("masked", "return_textbook")):
        found, bootstrap = losses.n_step_return(reward, not_done, discount, form)
        torch.testing.assert_close(found[0], golden[f"nstep/{stored}"][:, 0], **CLOSE)
    expected = golden["nstep/not_done_prod"][:, 0] * golden["meta/hp/discount"] ** reward.shape[1]
    torch.testing.assert_close(bootstrap[0], expected, **CLOSE)


@pytest.mark.parametrize("case", ["rl_official", "rl_textbook"])
def test_value_and_policy_step(golden, case):
    """One critic step and one actor step, in this order, with the stored noise."""
    nets = Published(golden)
    stored = under(golden, f"{case}/")
    halved = 0.5 if nets.discrete else 1.0
    with torch.no_grad():
        next_z = nets.encoder_target.encode(stored["next_state"][None])
        noise = (stored["eps"][None] * SETTINGS.target_noise * halved).clamp(
            -SETTINGS.target_noise_clip * halved, SETTINGS.target_noise_clip * halved
        )
        next_pi = nets.action(nets.policy_target(next_z), stored_gumbel(golden, case, "target"))
        next_action = losses.perturb(next_pi, noise, nets.discrete)
        torch.testing.assert_close(next_action[0], stored["next_action"], **CLOSE)
        next_value = nets.value_target(nets.encoder_target.state_action(next_z, next_action))
        torch.testing.assert_close(next_value[0], stored["next_Q"], **CLOSE)
        bootstrap = golden["meta/hp/discount"] ** golden["meta/Q_horizon"] * stored["not_done"].reshape(1, -1)
        scale, target_scale = (torch.tensor([stored[name]]) for name in ("reward_scale", "target_reward_scale"))
        target = losses.value_target(
            stored["nstep_reward"].reshape(1, -1), bootstrap, next_value.amin(-1), scale.float(), target_scale.float()
        )
        torch.testing.assert_close(target[0], stored["Q_target"].reshape(-1), **CLOSE)
        z = nets.encoder.encode(stored["state"][None])
        z_sa = nets.encoder.state_action(z, stored["action"][None])
    value = nets.value(z_sa)
    torch.testing.assert_close(value.detach()[0], stored["Q"], **CLOSE)
    loss = losses.value_loss(value, target)
    assert float(loss.detach()) == pytest.approx(stored["value_loss"], rel=1e-5)
    loss.sum().backward()
    norm = torch.nn.utils.clip_grad_norm_(nets.value.parameters(), SETTINGS.value_clip_norm)
    assert norm < SETTINGS.value_clip_norm
    gradients = {name: parameter.grad for name, parameter in nets.value.named_parameters()}
    torch.optim.AdamW(nets.value.parameters(), lr=SETTINGS.value_lr, weight_decay=SETTINGS.weight_decay).step()
    assert_parameters(nets.value, under(golden, f"{case}/sd_value_after/"), gradients, SETTINGS.value_lr)
    priority = losses.lap_priority(value.detach(), target, SETTINGS.priority_exponent, SETTINGS.min_priority)
    torch.testing.assert_close(priority[0], stored["priority"].reshape(-1), **CLOSE)

    nets.value.load_state_dict(ours(under(golden, f"{case}/sd_value_after/")))
    pre = nets.policy(z)
    torch.testing.assert_close(pre.detach()[0], stored["pre_activ"], **CLOSE)
    action = nets.action(pre, stored_gumbel(golden, case, "actor"))
    torch.testing.assert_close(action.detach()[0], stored["policy_action"], **CLOSE)
    policy_value = nets.value(nets.encoder.state_action(z, action))
    torch.testing.assert_close(policy_value.detach()[0], stored["Q_policy"], **CLOSE)
    mask = torch.ones(1, pre.shape[-1])
    loss = losses.policy_loss(policy_value, pre, mask, SETTINGS.pre_activation_weight)
    assert float(loss.detach()) == pytest.approx(stored["actor_loss"], rel=1e-5)
    loss.sum().backward()
    gradients = {name: parameter.grad for name, parameter in nets.policy.named_parameters()}
    torch.optim.AdamW(nets.policy.parameters(), lr=SETTINGS.policy_lr, weight_decay=SETTINGS.weight_decay).step()
    assert_parameters(nets.policy, under(golden, f"{case}/sd_policy_after/"), gradients, SETTINGS.policy_lr)


def two_hot(value: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    lower, weight = (one[:, None] for one in losses.bin_position(value, bins))
    return torch.zeros(len(value), len(bins)).scatter_(1, lower, 1 - weight).scatter_(1, lower + 1, weight)


def test_two_hot():
    golden = load("mrq_twohot")
    bins = losses.reward_bins(65, 10.0)
    torch.testing.assert_close(bins, golden["bins"], rtol=1e-6, atol=1e-7)
    encoded = two_hot(golden["x"][:, 0], bins)
    torch.testing.assert_close(encoded, golden["two_hot"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded @ bins, golden["decode_dot"][:, 0], rtol=1e-5, atol=1e-5)
    found = losses.two_hot_cross_entropy(golden["logits"], golden["x"][:, 0], bins)
    torch.testing.assert_close(found, golden["cross_entropy"][:, 0], **CLOSE)


def test_two_hot_beyond_the_bins_is_clamped():
    """The published code raises there."""
    bins = losses.reward_bins(65, 10.0)
    encoded = two_hot(torch.tensor([-30000.0, 22026.0, 1e30]), bins)
    torch.testing.assert_close(encoded.argmax(-1), torch.tensor([0, 64, 64]))
    torch.testing.assert_close(encoded.sum(-1), torch.ones(3))


def test_pixel_encoder_and_shift():
    golden = load("mrq_pixel")
    published = under(golden, "sd/")
    out, hidden = published["zs_lin.weight"].shape[0], published["zsa.l1.bias"].shape[0]
    channels = golden["image"].shape[1]
    widths = NetworkConfig(
        latent_dim=out, state_action_dim=published["zsa.l3.bias"].shape[0], action_dim=published["za.bias"].shape[0],
        encoder_dim=hidden, num_bins=published["model.bias"].shape[0] - out - 1,
    )  # fmt: skip
    encoder = MrqEncoder(1, (channels, 84, 84), published["za.weight"].shape[1], widths, DesignConfig())
    filled(encoder, published)
    torch.testing.assert_close(encoder.encode(golden["image"][None])[0], golden["zs"], rtol=1e-4, atol=1e-5)
    images = golden["image"][:, : golden["aug_out_f16"].shape[1]]
    shifted = losses.random_shift(images, golden["aug_shift_xy"].reshape(-1, 2), 4)
    # The published form interpolates in float, and was stored in half precision.
    torch.testing.assert_close(shifted.float(), golden["aug_out_f16"].float(), rtol=0, atol=0.13)


class GoldenBatch:
    """A `learner.WindowSource` that gives the stored batch of the value update."""

    has_terminated, used = True, 8

    def __init__(self, golden, case):
        self.golden, self.stored = golden, under(golden, f"{case}/")
        self.priorities = Priorities(8, [3], torch.device("cpu"))
        self.priorities.weight += 1
        self.priorities.starts[3][:] = True

    def windows(self, start_B, horizon):
        reward, not_done = (self.golden[f"nstep/{name}"][:, :, 0] for name in ("reward", "not_done"))
        return ReplayWindows(self.stored["action"][:, None].expand(-1, horizon, -1), reward, not_done)

    unpadded_windows = windows

    def observations(self, start_B, offsets):
        assert offsets.tolist() == [0, 3]
        return torch.stack([self.stored["state"], self.stored["next_state"]], 1)


@pytest.mark.parametrize(("case", "form"), [("rl_official", "released"), ("rl_textbook", "masked")])
def test_a_whole_training_step(golden, case, form, monkeypatch):
    """Values, then policy with the new values, then priorities: as the published step leaves them."""
    nets = Published(golden)
    source = GoldenBatch(golden, case)
    config = dataclasses.replace(
        SETTINGS,
        networks=nets.widths,
        batch_size=8,
        return_horizon=golden["meta/Q_horizon"],
        released=ReleasedMrqConfig(return_form=form),
    )
    shapes = Shapes(
        (golden["meta/obs_dim"],), nets.discrete, torch.ones(1, golden["meta/act_dim"]),
        torch.tensor([golden["meta/hp/discount"]]),
    )  # fmt: skip
    learner = Learner(shapes, config, [0])
    for name in ("encoder", "policy"):
        getattr(learner, name).load_state_dict(getattr(nets, name).state_dict())
        getattr(learner, f"target_{name}").load_state_dict(getattr(nets, f"{name}_target").state_dict())
    learner.values.load_state_dict(nets.value.state_dict())
    learner.target_values.load_state_dict(nets.value_target.state_dict())
    stored = source.stored
    learner._scale_M[:] = stored["reward_scale"]
    learner._target_scale_M = torch.tensor([stored["target_reward_scale"]], dtype=torch.float32)
    # The stored draws in place of ours: the perturbed target action, and the actor's relaxed choice.
    monkeypatch.setattr(learner.actions, "perturb", lambda *_: stored["next_action"][None])
    gumbel = stored_gumbel(golden, case, "actor")
    monkeypatch.setattr(learner.actions, "squash", lambda pre: nets.action(pre, gumbel))
    monkeypatch.setattr(learner, "_starts", lambda *_: torch.arange(8).view(1, 1, 8))
    learner.steps = 1  # in the middle of a period: nothing is copied
    metrics = learner.train([source])
    assert float(metrics["value_loss"]) == pytest.approx(stored["value_loss"], rel=1e-5)
    assert float(metrics["policy_loss"]) == pytest.approx(stored["actor_loss"], rel=1e-4)
    for network, name, lr in ((learner.values, "value", config.value_lr), (learner.policy, "policy", config.policy_lr)):
        expected, found = ours(under(golden, f"{case}/sd_{name}_after/")), dict(network.named_parameters())
        before = getattr(nets, name).state_dict()
        for key, value in expected.items():
            moved = (value - before[key]).abs()
            clear = moved > 0.9 * lr  # where the gradient is far from 0, AdamW's first step is its sign
            torch.testing.assert_close(found[key].detach()[clear], value[clear], rtol=1e-5, atol=0.05 * lr)
            assert clear.float().mean() > 0.7 or clear.numel() < 4
    torch.testing.assert_close(source.priorities.weight, stored["priority"].reshape(-1), rtol=1e-4, atol=1e-4)
    for name, value in nets.encoder.state_dict().items():
        assert torch.equal(value, learner.encoder.state_dict()[name])
