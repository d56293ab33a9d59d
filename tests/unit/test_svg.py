"""Stochastic value gradients: targets of real windows, returns over 0 to H model steps, members apart, resume."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from functools import partial

import numpy as np
import pytest
import torch
from orrery.datasets.schema import Episode
from orrery.pipeline import accelerator
from orrery.pipeline.errors import ConfigError
from orrery.stages.extraction.config import ActorCriticConfig, SvgConfig
from orrery.stages.extraction.groups import MemberGroups
from orrery.stages.extraction.program import PolicySpec
from orrery.stages.extraction.starts import encode_starts
from orrery.stages.extraction.svg import SvgExtraction, split_starts
from orrery.stages.extraction.transitions import LatentTransitions, encode_transitions
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.start_frames import draw_frames
from torchrl.objectives.value.functional import td1_return_estimate

from .stores import point_mass_spec, write_store

NETWORKS = ActorCriticConfig(actor_units=(16,), critic_units=(16,), num_critics=2, lr=1e-2, final_lr=1e-3)
CONFIG = SvgConfig(horizon=2, n_step=3, updates=2, batch_size=12, starts=8, networks=NETWORKS)
SPECS = [
    point_mass_spec("toy/small"),
    point_mass_spec("toy/ends", action_dim=3, observation_dim=4, terminates=True),
    point_mass_spec("toy/choice", action_dim=2, action_kind="discrete"),
]
LENGTHS = (1, 2, 3, 7, 9, 4)


def random_episodes(spec, lengths=LENGTHS, seed=0):
    """Of those lengths; every other one ends in a terminal state where the task has these."""
    random, episodes = np.random.default_rng(seed), []
    for e, length in enumerate(lengths):
        actions = random.uniform(-1, 1, (length, spec.action_dim)).astype(np.float32)
        if spec.action_kind == "discrete":
            actions = np.eye(spec.action_dim, dtype=np.float32)[actions.argmax(1)]
        observations = random.normal(size=(length + 1, spec.observation_dim)).astype(np.float32)
        rewards = random.normal(size=length).astype(np.float32)
        episodes.append(Episode(observations, actions, rewards, spec.terminates and e % 2 == 0, label=f"episode {e}"))
    return episodes


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    store = write_store(tmp_path_factory.mktemp("store"), [(spec, random_episodes(spec)) for spec in SPECS])
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4), store.table)
    for weight in (model.reward[-1].weight, model.continue_head[-1].weight, model.task_embedding.weight):
        torch.nn.init.normal_(weight, std=0.5)
    return store, model.eval().requires_grad_(False)


def members_of(names, seeds=2, anchor=0.5):
    return [PolicySpec("svg", name, seed, anchor, True) for name in names for seed in range(seeds)]


EVERY = members_of([spec.name for spec in SPECS])


def make(setting, members, config=CONFIG, iterations=6):
    store, model = setting
    ids = sorted({model.table.id_of(member.task) for member in members})
    starts = encode_starts(model, ids, lambda name: draw_frames(store, name, 20, 4, 0))
    transitions, unseen = (encode_transitions(model, store, ids, 1000, 0, 0.3, split=s) for s in ("train", "held_out"))
    return SvgExtraction(model, starts, transitions, members, config, iterations, 0, unseen)


def train(program, first=0, last=6):
    return [program.update(iteration) for iteration in range(first, last)]


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_targets_are_torchrls(setting, steps):
    """Every transition of episodes shorter and longer than the window, truncated and terminated."""
    store, model = setting
    rows = store.tasks[1]
    discount = model.table[1].discount
    transitions = encode_transitions(model, store, [0, 1], 1000, seed=0)
    count = int(transitions.count_K[1])
    batch = transitions.batch(torch.arange(count)[None], torch.tensor([1]), torch.tensor([[discount]]), steps)
    z_ND = model.encode(rows.rows[:, :4], torch.ones(len(rows.rows), dtype=torch.long))
    value_N = z_ND @ torch.linspace(-1, 2, 16)  # a value function of the latent
    found = batch.reward_MB[0] + batch.factor_MB[0] * (batch.next_z_MBD[0] @ torch.linspace(-1, 2, 16))
    expected = []
    for e, length in enumerate(rows.lengths):
        for t in range(length):
            taken = slice(rows.offsets[e] + t, rows.offsets[e] + min(t + steps, length))
            reward, next_value = rows.rows[taken, -1:], value_N[taken.start + 1 : taken.stop + 1, None]
            done = torch.zeros(len(reward), 1, dtype=torch.bool)
            done[-1] = True
            terminated = done & bool(rows.terminated[e] and t + steps >= length)
            expected.append(td1_return_estimate(discount, next_value, reward, done, terminated)[0, 0])
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch.z_MBD[0], z_ND[[i for i in range(len(z_ND)) if i + 1 not in rows.offsets]])


def test_a_larger_task_keeps_whole_episodes_within_the_limit(setting):
    store, model = setting
    kept = encode_transitions(model, store, [0, 2], 12, seed=0)
    assert kept.count_K.tolist() == encode_transitions(model, store, [0, 2], 12, seed=0).count_K.tolist()
    frames = torch.diff(torch.tensor([0, *(kept.left_F == 0).nonzero()[:, 0] + 1]))  # of each episode
    assert all(length - 1 in LENGTHS for length in frames.tolist())
    assert len(kept.z_FD) <= 24
    assert encode_transitions(model, store, [0], 1, seed=0).count_K.tolist()[0] in LENGTHS  # one episode at least


def test_returns_are_of_as_many_model_steps_as_their_row(setting):
    """Against rolling out each state by itself."""
    _, model = setting
    program = make(setting, EVERY)
    torch.nn.init.normal_(program.critic.mlp.weight[-1])
    z, noise = torch.rand(6, 8, 16), torch.randn(6, 8, 3)
    found = program._returns(z, program.actor.head(z), noise)
    horizons = [h for h in (2, 1, 0) for _ in range(program._counts_H[h])]
    assert sorted(set(horizons)) == [0, 1, 2]
    for m, member in enumerate(EVERY):
        k = model.table.id_of(member.task)
        for b, horizon in enumerate(horizons):
            state, total, alive, discount = z[m, b], 0.0, 1.0, model.table[k].discount
            for t in range(horizon + 1):
                every = program._action(state.expand(6, 1, 16), noise[:, b : b + 1])
                action = every[m, 0]
                if t == horizon:
                    total += (
                        discount**t * alive * program._q(program.critic, state.expand(6, 1, 16), every)[m, :, 0].mean()
                    )
                    break
                next_z, logits, continue_logit = model.step(state[None], action[None], torch.tensor([k]))
                total += discount**t * alive * model.decode_reward(logits)[0] / program._value_scale_P1[m, 0]
                state = next_z[0]
                alive = alive * (torch.sigmoid(continue_logit[0]) if model.table[k].terminates else 1.0)
            torch.testing.assert_close(found[m, b], total, atol=1e-5, rtol=1e-4)
    # The weights of a horizon's rows add up to its share of the mixture, whatever their number.
    shares = [float(program._weight_MB[0, [h == horizon for h in horizons]].sum()) for horizon in (0, 1, 2)]
    assert shares == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_every_horizon_has_a_state():
    assert split_starts([8 / 15, 4 / 15, 2 / 15, 1 / 15], 96) == [51, 26, 13, 6]
    assert split_starts([1.0], 5) == [5]
    assert split_starts([0.98, 0.01, 0.01], 8) == [6, 1, 1]


def test_actions_are_masked_bounded_and_one_hot_where_they_are_a_choice(setting):
    program = make(setting, members_of([spec.name for spec in SPECS], seeds=1))
    z, noise = torch.rand(3, 8, 16), 9 * torch.randn(3, 8, 3)
    for action in (program._action(z, noise), program._noisy_action(z, noise)):
        assert not action[0, :, 1:].any()
        assert action[1].abs().max() <= 1
        assert not action[2, :, 2].any()
        assert set(action[2].detach().unique().round(decimals=5).tolist()) <= {0.0, 1.0}
    assert not torch.equal(program._noisy_action(z, noise)[1], program._action(z, noise)[1])


def test_members_together_equal_members_alone(setting):
    together = make(setting, EVERY)
    train(together, 0, 3)
    for m in (0, 3, 4):
        alone = make(setting, [EVERY[m]])
        train(alone, 0, 3)
        for name, value in alone.policy.mlp.state_dict().items():
            torch.testing.assert_close(together.policy.mlp.state_dict()[name][m], value[0], atol=2e-5, rtol=1e-3)
        for net in ("critic", "target"):
            for name, value in getattr(alone, net).state_dict().items():
                both = getattr(together, net).state_dict()[name].unflatten(0, (-1, 2))
                torch.testing.assert_close(both[m], value, atol=2e-5, rtol=1e-3)


def test_the_policy_is_an_average_of_the_actors(setting):
    """The mean of as many as the rate covers, then an EMA; it alone is imagined."""
    program = make(setting, EVERY, dataclasses.replace(CONFIG, updates=1, average_rate=0.4))
    actors = []
    for iteration in range(4):
        program.update(iteration)
        actors.append({name: value.clone() for name, value in program.actor.mlp.state_dict().items()})
    for name, value in program.policy.mlp.state_dict().items():
        first = (actors[0][name] + actors[1][name]) / 2
        expected = 0.6 * (0.6 * first + 0.4 * actors[2][name]) + 0.4 * actors[3][name]
        torch.testing.assert_close(value, expected)
    imagined = program.imagined_returns()[0]
    program.actor.load_state_dict(program.policy.state_dict())
    torch.testing.assert_close(program.imagined_returns()[0], imagined)


def imagined_transitions(model, transitions):
    """The same actions, with the latents and rewards that the model makes of them; of task 0, episodes of 9 steps."""
    z, reward, action = [transitions.z_FD[:1]], [], transitions.action_FA[:9, None]
    for step in action:
        reward.append(model.decode_reward(model.reward_logits(z[-1], step, torch.zeros(1, dtype=torch.long))))
        z.append(model.next_latent(z[-1], step, torch.zeros(1, dtype=torch.long)))
    returns = torch.zeros(10, dtype=torch.float64)
    for t in reversed(range(9)):
        returns[t] = reward[t].double() + model.table[0].discount * returns[t + 1]
    left, frames = torch.arange(9, -1, -1), torch.arange(9)
    first, count = torch.tensor([0]), torch.tensor([9])
    actions = torch.cat([transitions.action_FA[:9], torch.zeros(1, 3)])
    return LatentTransitions(
        torch.cat(z), actions, returns, left, torch.zeros(10, dtype=torch.bool), frames, first, count
    )


@pytest.mark.parametrize("weight", [0.0, CONFIG.pre_activation_weight])
def test_saturated_actors_come_back(setting, weight):
    """Where tanh is flat, the return has no gradient."""
    members = members_of(["toy/small"], seeds=1, anchor=0.0)
    program = make(setting, members, dataclasses.replace(CONFIG, pre_activation_weight=weight))
    with torch.no_grad():
        program.actor.mlp.bias[-1].fill_(20.0)
    z = program._transitions.z_FD[None]
    before = program.actor.head(z).mean()
    train(program)
    came_back = (before - program.actor.head(z).mean()).item()
    assert came_back > 0.05 if weight else came_back == 0.0


def test_a_model_is_trusted_as_far_as_it_explains_advantages(setting):
    """Wholly where the data is what it predicts, not at all where rewards and latents are those of other states."""
    members = members_of(["toy/small"])
    program = make(setting, members, dataclasses.replace(CONFIG, weights="trust"))
    torch.nn.init.normal_(program.target.mlp.weight[-1])
    true = imagined_transitions(setting[1], program._transitions)
    torch.testing.assert_close(program._trust(true, 0), torch.ones(2, 3), atol=1e-3, rtol=0)
    wrong = dataclasses.replace(true, z_FD=true.z_FD.flip(0), return_F=-3 * true.return_F)
    trust = program._trust(wrong, 0)
    assert trust[:, 0].tolist() == [1.0, 1.0]
    assert trust[:, 1:].max() < 0.5
    program._set_weights(program._share_H * torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    counts = program._counts_H
    assert program._weight_MB.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert program._weight_MB[1, : counts[2] + counts[1]].tolist() == [0.0] * (counts[2] + counts[1])
    with pytest.raises(ConfigError, match=r"weights=trust needs held-out episodes of more than 2 steps.*toy/small"):
        program._trust(dataclasses.replace(true, left_F=true.left_F.clamp(max=2)), 0)


def test_transitions_whose_target_is_missed_are_drawn_more_often(setting):
    program = make(setting, members_of(["toy/small", "toy/ends"], seeds=1))
    count = int(program._transitions.count_K[0])
    number = torch.arange(count).expand(2, count)
    error = torch.ones(2, count)
    error[0, 3] = 100.0
    program._prioritise(number, error)
    drawn = torch.cat([program._draw_block(block)[0] for block in range(100)], 0)  # [1000, 2, 12]
    share = torch.stack([torch.bincount(drawn[:, m].flatten(), minlength=count) for m in (0, 1)]) / drawn[:, 0].numel()
    mean = (100 + count - 1) / count
    rest, high = (1 / mean + 0.1) ** 0.5, (100 / mean + 0.1) ** 0.5
    assert float(share[0, 3]) == pytest.approx(high / (high + (count - 1) * rest), rel=0.1)
    torch.testing.assert_close(share[1], torch.full((count,), 1 / count), atol=0.01, rtol=0)


def test_resuming_equals_an_uninterrupted_run_bit_for_bit(setting):
    """Interrupted inside a block of random numbers; and the frozen model is unchanged by it."""

    def digest():
        return hashlib.sha256(b"".join(v.numpy().tobytes() for v in setting[1].state_dict().values())).hexdigest()

    before = digest()
    whole, stopped, resumed = (make(setting, EVERY) for _ in range(3))
    metrics = train(whole)
    train(stopped, 0, 3)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    again = train(resumed, 3, 6)
    for found, expected in zip(again, metrics[3:], strict=True):
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    for net in ("actor", "policy", "critic", "target"):
        for name, value in getattr(whole, net).state_dict().items():
            assert torch.equal(getattr(resumed, net).state_dict()[name], value), name
    assert digest() == before
    assert all(parameter.grad is None for parameter in setting[1].parameters())


def test_one_step_episodes_that_terminate_are_bandits(tmp_path):
    """reward = 1 - (a - 0.5)^2 and the episode is over: the best action is 0.5, its value 1."""
    spec = point_mass_spec("toy/bandit", terminates=True, episode_length=1)
    random = np.random.default_rng(0)
    episodes = []
    for e in range(200):
        action = random.uniform(-1, 1, (1, 1)).astype(np.float32)
        observations = random.normal(size=(2, 2)).astype(np.float32)
        episodes.append(Episode(observations, action, (1 - (action[0] - 0.5) ** 2), True, label=f"episode {e}"))
    store = write_store(tmp_path, [(spec, episodes)])
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4), store.table).freeze()
    config = SvgConfig(horizon=0, n_step=1, batch_size=32, starts=32, networks=NETWORKS)
    program = make((store, model), [PolicySpec("svg", spec.name, seed, 0.0, True) for seed in range(2)], config, 60)
    metrics = train(program, 0, 60)
    z_MBD = program._transitions.z_FD[::2][:50].expand(2, 50, 16)
    with torch.no_grad():
        action = program._action(z_MBD, torch.zeros(2, 50, 1))
        value = program._q(program.critic, z_MBD, action).mean(1) * program._value_scale_P1
    assert float((action - 0.5).abs().mean()) < 0.1
    torch.testing.assert_close(value, torch.ones(2, 50), atol=0.15, rtol=0)
    assert float(metrics[-1]["critic_loss"].max()) < 0.05 * float(metrics[0]["critic_loss"].max())


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"starts \(9\) must not exceed batch_size \(8\)"):
        SvgConfig(starts=9, batch_size=8)
    with pytest.raises(ConfigError, match=r"starts \(3\) must exceed horizon \(3\)"):
        SvgConfig(starts=3, horizon=3)
    with pytest.raises(ConfigError, match="n_step"):
        SvgConfig(n_step=0)


def test_narrowed_products_change_policies_little(setting, monkeypatch):
    """The job's own loop: each thread of a group narrows its products, and only if the precision says so."""
    monkeypatch.setattr(accelerator, "multiplies_bfloat16", lambda: True)
    members = members_of(["toy/small"])
    found = {}
    for precision in ("32-true", "bf16-mixed", "auto"):
        narrowed = partial(accelerator.autocast, precision, torch.device("cpu"))
        groups = MemberGroups(members, 2, lambda part: [make(setting, part)], narrowed)
        with groups.running() as update:
            update(0)
        found[precision] = groups.programs[1].actor.mlp.weight[0].detach()
    exact, narrow, auto = found.values()
    assert not torch.equal(narrow, exact)
    assert torch.equal(auto, exact)  # these critics are too small to gain
    torch.testing.assert_close(narrow, exact, rtol=0, atol=0.05)
