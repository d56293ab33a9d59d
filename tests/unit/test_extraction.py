"""First-order extraction: what is frozen stays frozen, members do not touch one another, masks and resume hold."""

from __future__ import annotations

import copy
import dataclasses
import hashlib

import pytest
import torch
from orrery.datasets.schema import TaskSpec
from orrery.pipeline.errors import ConfigError, StageError
from orrery.stages.extraction.actor_critic import straight_through_one_hot
from orrery.stages.extraction.config import ActorCriticConfig, FirstOrderConfig
from orrery.stages.extraction.first_order import FirstOrderExtraction
from orrery.stages.extraction.policy import LatentPolicy
from orrery.stages.extraction.program import PolicySpec, RunningVariance, anchor_loss
from orrery.stages.extraction.rollout import act, imagine, member_tasks
from orrery.stages.extraction.starts import encode_starts
from orrery.stages.layers.gradients import clip_members
from orrery.stages.layers.mlp import StackedMLP
from orrery.stages.policy.policy import load_policy
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.start_frames import draw_frames

from .stores import point_mass_episodes, point_mass_spec, write_store

NETWORKS = ActorCriticConfig(actor_units=(16,), critic_units=(16,), num_critics=2)
CONFIG = FirstOrderConfig(horizon=4, batch_size=8, critic_passes=1, critic_minibatches=2, networks=NETWORKS)
SPECS = [
    point_mass_spec("toy/small"),
    point_mass_spec("toy/wide", action_dim=3, observation_dim=4, terminates=True),
    point_mass_spec("toy/choice", action_dim=2, action_kind="discrete"),
]


def one_hot_episodes(spec):
    episodes = point_mass_episodes(spec, 6)
    for episode in episodes:
        choice = (episode.actions[:, 0] > 0).astype(int)
        episode.actions[:] = 0
        episode.actions[range(len(choice)), choice] = 1
    return episodes


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    tasks = [
        (spec, one_hot_episodes(spec) if spec.action_kind == "discrete" else point_mass_episodes(spec, 6))
        for spec in SPECS
    ]
    store = write_store(folder, tasks)
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4), store.table)
    torch.nn.init.normal_(model.reward[-1].weight, std=0.5)
    torch.nn.init.normal_(model.task_embedding.weight)
    return store, model.eval().requires_grad_(False)


def members_of(names, seeds=2, anchor=0.5):
    imagining = [PolicySpec("pwm", name, seed, anchor, True) for name in names for seed in range(seeds)]
    return imagining + [PolicySpec("bc", name, seed, 1.0, False) for name in names for seed in range(seeds)]


def make(setting, members, seed=0, iterations=10, config=CONFIG):
    store, model = setting
    ids = sorted({model.table.id_of(member.task) for member in members})
    starts = encode_starts(model, ids, lambda name: draw_frames(store, name, 64, 4, seed))
    return FirstOrderExtraction(model, starts, members, config, iterations=iterations, seed=seed)


def train(extraction, first=0, last=10):
    return [extraction.update(iteration) for iteration in range(first, last)]


def test_the_frozen_model_is_unchanged_and_collects_no_gradient(setting):
    _, model = setting

    def digest():
        return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()

    before = digest()
    train(make(setting, members_of([spec.name for spec in SPECS])))
    assert digest() == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_members_together_equal_members_alone(setting):
    members = members_of([spec.name for spec in SPECS])
    together = make(setting, members)
    train(together)
    for m, member in enumerate(members):
        alone = make(setting, [member])
        train(alone)
        for name, value in alone.actor.state_dict().items():
            if name == "log_std" and not member.imagines:
                continue
            torch.testing.assert_close(together.actor.state_dict()[name][m], value[0], atol=2e-5, rtol=1e-4)
        if member.imagines:
            for name, value in alone.critic.state_dict().items():
                both = together.critic.state_dict()[name].unflatten(0, (-1, 2))
                torch.testing.assert_close(both[m], value, atol=2e-5, rtol=1e-4)


def test_seeds_differ_and_a_seed_repeats(setting):
    members = members_of(["toy/small"])
    first, again = make(setting, members), make(setting, members)
    train(first)
    train(again)
    weights = first.actor.mlp.weight[0]
    assert torch.equal(weights, again.actor.mlp.weight[0])
    assert not torch.allclose(weights[0], weights[1])


def test_resuming_equals_going_on(setting):
    members = members_of([spec.name for spec in SPECS])
    whole = make(setting, members)
    train(whole)
    stopped = make(setting, members)
    train(stopped, 0, 4)
    state = copy.deepcopy(stopped.state_dict())
    resumed = make(setting, members)
    resumed.load_state_dict(state)
    train(resumed, 4, 10)
    for name, value in whole.actor.state_dict().items():
        assert torch.equal(resumed.actor.state_dict()[name], value), name
    for name, value in whole.critic.state_dict().items():
        assert torch.equal(resumed.critic.state_dict()[name], value), name


def gradients_of(setting, task, **changes):
    """Of the return through the model and of its score function, flat, over many rollouts; and the extraction."""
    store, model = setting
    config = dataclasses.replace(CONFIG, batch_size=20_000, lambda_=1.0, policy_input_gradient=1.0, **changes)
    starts = encode_starts(model, [model.table.id_of(task)], lambda name: draw_frames(store, name, 64, 4, 0))
    extraction = FirstOrderExtraction(model, starts, [PolicySpec("pwm", task, 0, 0.0, True)], config, 10, 0)
    index_MB, noise = extraction._random(0)
    z_MBD = starts.z_KND[extraction._rows_M[:, None], index_MB]
    rollout, objective, return_PB = extraction._imagine(z_MBD, noise)
    surrogate_PB = extraction._score_function(rollout, extraction._critic_targets(rollout, objective), noise)
    assert surrogate_PB.shape == return_PB.shape
    weights = list(extraction.actor.mlp.parameters())
    flat = [flat_gradient(x.mean(), weights) for x in (return_PB, surrogate_PB)]
    return *flat, extraction, z_MBD


def flat_gradient(x, weights):
    return torch.cat([g.flatten() for g in torch.autograd.grad(x, weights, retain_graph=True)])


@pytest.mark.parametrize("task", ["toy/small", "toy/wide"])
def test_both_gradients_estimate_that_of_the_return(setting, task):
    pathwise, score, *_ = gradients_of(setting, task, horizon=2)
    assert torch.cosine_similarity(pathwise, score, 0) > 0.95
    assert 0.8 < float(score.norm() / pathwise.norm()) < 1.25


def test_the_score_function_of_choices_is_the_gradient_of_their_mean(setting):
    """Against the mean over both choices; straight-through gradients are only a relaxation."""
    _, score, extraction, z_MBD = gradients_of(setting, "toy/choice", horizon=1)
    model, tasks = setting[1], extraction.tasks
    probability = torch.softmax(extraction.actor.head(z_MBD)[..., :2], -1)
    task, total = tasks.task_M1.expand(z_MBD.shape[:2]), 0
    for choice in range(2):
        action = torch.nn.functional.one_hot(torch.tensor(choice), 3).float().expand(*z_MBD.shape[:2], 3)
        value = extraction._value(model.next_latent(z_MBD, action, task))
        reward = model.decode_reward(model.reward_logits(z_MBD, action, task))
        total = total + (probability[..., choice] * (reward + tasks.discount_M1 * value).detach()).mean()
    exact = flat_gradient(total, list(extraction.actor.mlp.parameters()))
    assert torch.cosine_similarity(exact, score, 0) > 0.95
    assert 0.8 < float(score.norm() / exact.norm()) < 1.25


def test_a_score_function_learns_without_gradients_through_the_model(setting, monkeypatch):
    config = dataclasses.replace(CONFIG, gradient="score_function")
    extraction = make(setting, members_of(["toy/small", "toy/choice"]), config=config)
    rollouts = []
    imagined = extraction._imagined
    monkeypatch.setattr(extraction, "_imagined", lambda *given: rollouts.append(imagined(*given)) or rollouts[-1])
    before = copy.deepcopy(extraction.actor.state_dict())
    train(extraction)
    assert not any(rollout.reward_HMB.requires_grad for rollout, _, _ in rollouts)
    assert not torch.equal(before["log_std"], extraction.actor.state_dict()["log_std"])
    assert all(not torch.equal(before[n], v) for n, v in extraction.actor.state_dict().items())


def test_actor_gradient_is_that_of_the_return(setting):
    """Against finite differences of the discounted sum, with the policy's input held as PWM holds it."""
    store, model = setting
    model = copy.deepcopy(model).double()
    members = [PolicySpec("pwm", "toy/small", 0, 0.0, True)]
    extraction = make((store, model), members)
    extraction.actor.double()
    tasks = member_tasks(model, [0], torch.device("cpu"))
    tasks = type(tasks)(tasks.task_M1, tasks.discount_M1.double(), tasks.mask_M1A.double(), tasks.discrete_M11, False)
    start = model.encode(torch.zeros(1, 3, 4).double(), torch.zeros(1, 3, dtype=torch.long))
    noise = torch.randn(4, 1, 3, 3).double()
    rollout = imagine(model, extraction.actor, start, noise, tasks, slice(0, 1))
    parameter = extraction.actor.mlp.bias[-1]
    (gradient,) = torch.autograd.grad(rollout.reward_HMB.sum(), parameter)
    states = [z.clone() for z in rollout.z_HMBD.detach()]

    def total(delta):
        z, reward = start, 0.0
        for i in range(4):
            head = extraction.actor.head(states[i]) + delta
            action = extraction.actor.sample(head, noise[i]) * tasks.mask_M1A
            task = torch.zeros(1, 3, dtype=torch.long)
            reward = reward + model.decode_reward(model.reward_logits(z, action, task)).sum()
            z = model.next_latent(z, action, task)
        return float(reward.detach())

    step = torch.zeros_like(parameter.data)
    step[0, 0, 0] = 1e-6
    numeric = (total(step) - total(-step)) / 2e-6
    assert numeric == pytest.approx(float(gradient[0, 0, 0]), rel=1e-5)


def test_padded_components_of_an_action_are_zero(setting):
    members = members_of([spec.name for spec in SPECS], seeds=1)
    extraction = make(setting, members)
    z = torch.rand(3, 8, 16)
    action = act(extraction.actor, z, torch.randn(3, 8, 3), extraction.tasks[:3], slice(0, 3))
    assert not action[0, :, 1:].any()
    assert action[1].all()
    choice = action[2]
    assert not choice[:, 2].any()
    torch.testing.assert_close(choice.sum(-1), torch.ones(8))
    assert set(choice.detach().unique().round(decimals=5).tolist()) <= {0.0, 1.0}


def test_anchor_loss_counts_own_components(setting):
    extraction = make(setting, members_of([spec.name for spec in SPECS], seeds=1))
    head = torch.zeros(3, 2, 3)
    action = torch.zeros(3, 2, 3)
    action[0, :, 0], action[0, :, 1] = 0.5, 9.0  # 9.0 lies in the padding
    action[1] = 1.0
    action[2, :, 0] = 1.0
    loss = anchor_loss(head, action, extraction.tasks[:3])
    torch.testing.assert_close(loss, torch.tensor([0.25, 3.0, 0.6931472]))


def test_anchor_alone_clones_the_data(setting):
    members = [PolicySpec("bc", "toy/small", 0, 1.0, False)]
    extraction = make(setting, members, iterations=300)
    losses = [float(extraction.update(i)["anchor_loss"][0]) for i in range(300)]
    # The data's actions are random: a constant is the best clone, at the variance of the actions.
    variance = float(extraction._starts.action_KNA[0, :, 0].var())
    assert sum(losses[:10]) / 10 > 1.3 * variance
    assert sum(losses[-50:]) / 50 < 1.2 * variance


def test_clip_is_per_member():
    parameter = torch.nn.Parameter(torch.zeros(2, 3, 1))
    parameter.grad = torch.tensor([[[3.0], [0.0], [4.0]], [[0.3], [0.0], [0.4]]])
    norms = clip_members([parameter], 2, 1.0)
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(parameter.grad[:, :, 0], torch.tensor([[0.6, 0.0, 0.8], [0.3, 0.0, 0.4]]))


def test_stacked_mlp_equals_separate_networks():
    torch.manual_seed(0)
    stacked = StackedMLP(3, 5, (7,), 2)
    for m in range(3):
        stacked.initialise_uniform(m, torch.Generator().manual_seed(m))
    x = torch.randn(3, 4, 5)
    for m in range(3):
        hidden = torch.nn.functional.mish(x[m] @ stacked.weight[0][m] + stacked.bias[0][m])
        expected = torch.nn.functional.layer_norm(hidden, (7,)) @ stacked.weight[1][m] + stacked.bias[1][m]
        torch.testing.assert_close(stacked(x)[m], expected)
        torch.testing.assert_close(stacked(x[m : m + 1], slice(m, m + 1))[0], expected)


def test_straight_through_sample_is_one_hot_with_the_relaxed_gradient():
    logits = torch.tensor([[0.2, 1.0, 5.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    sample = straight_through_one_hot(logits, torch.zeros(1, 3), mask)
    torch.testing.assert_close(sample, torch.tensor([[0.0, 1.0, 0.0]]))
    sample[0, 0].backward()
    p = torch.softmax(torch.tensor([0.2, 1.0]), 0)
    torch.testing.assert_close(logits.grad, torch.stack([p[0] * (1 - p[0]), -p[0] * p[1], torch.tensor(0.0)])[None])


def test_running_variance_is_the_variance_of_all_that_came():
    running = RunningVariance(2, torch.device("cpu"))
    batches = [torch.randn(2, 50) * 3 + 7 for _ in range(4)]
    for batch in batches:
        deviation = running.update(batch)
    torch.testing.assert_close(deviation, torch.cat(batches, 1).std(1, unbiased=False), rtol=1e-3, atol=0)


def test_numbers_that_are_not_finite_name_the_member(setting):
    extraction = make(setting, members_of(["toy/small"]))
    with pytest.raises(StageError, match="actor_grad_norm is not finite at iteration 3 for bc toy/small seed 1"):
        extraction.check_finite({"actor_grad_norm": torch.tensor([1.0, 2.0, 3.0, float("nan")])}, 3)


@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
def test_a_saved_policy_acts_like_the_member(setting, tmp_path, name):
    store, model = setting
    extraction = make(setting, members_of([spec.name for spec in SPECS], seeds=1))
    train(extraction, 0, 2)
    m = next(i for i, member in enumerate(extraction.members) if member.task == name)
    task: TaskSpec = store.table.spec_of(name)
    LatentPolicy.from_member(model, extraction.actor, m, task, NETWORKS, {"algorithm": "pwm"}).save(tmp_path)
    policy = load_policy(tmp_path)
    assert policy.task == task
    observation = torch.randn(5, task.observation_dim)
    padded = torch.nn.functional.pad(observation, (0, 4 - task.observation_dim))
    z = model.encode(padded, torch.full((5,), store.table.id_of(name)))
    head = extraction.actor.head(z.expand(len(extraction.members), -1, -1))[m, :, : task.action_dim]
    action = policy.act(observation)
    if task.action_kind == "discrete":
        assert torch.equal(action.argmax(-1), head.argmax(-1))
        assert action.sum(-1).tolist() == [1.0] * 5
    else:
        torch.testing.assert_close(action, torch.tanh(head))


def unsure_setting(setting, heads=3):
    store, _ = setting
    torch.manual_seed(0)
    config = WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4, disagreement_heads=heads)
    model = WorldModel(config, store.table)
    torch.nn.init.normal_(model.reward[-1].weight, std=0.5)
    if heads:
        torch.nn.init.normal_(model.disagreement_heads.weight[-1])
    return store, model.eval().requires_grad_(False)


def test_disagreement_beyond_that_of_the_data_is_taken_off_the_reward(setting):
    penalised = PolicySpec("pwm@u2", "toy/small", 0, 0.0, True, uncertainty=2.0)
    plain = PolicySpec("pwm@u0", "toy/small", 0, 0.0, True)
    extraction = make(unsure_setting(setting), [penalised, plain])
    start = extraction._starts.z_KND[[0, 0], :8]
    rollout = imagine(extraction.model, extraction.actor, start, torch.randn(4, 2, 8, 3), extraction.tasks, slice(0, 2))
    objective = extraction._objective(rollout)
    torch.testing.assert_close(objective[:, 1], rollout.reward_HMB[:, 1])
    u = extraction.model.disagreement(
        rollout.z_HMBD[:, 0], rollout.action_HMBA[:, 0], torch.zeros(4, 8, dtype=torch.long)
    )
    scale = extraction._starts.value_scale_K[0] * (1 - extraction.model.table[0].discount)
    over = (u / extraction._starts.disagreement_K[0] - 1).clamp(min=0)
    assert 0 < float((over > 0).float().mean()) < 1
    torch.testing.assert_close(objective[:, 0], rollout.reward_HMB[:, 0] - 2.0 * scale * over)


def test_an_uncertainty_weight_needs_disagreement_heads(setting):
    with pytest.raises(ConfigError, match="disagreement_heads=5"):
        make(setting, [PolicySpec("pwm", "toy/small", 0, 0.0, True, uncertainty=1.0)])


def test_a_standard_deviation_below_its_bound_is_lifted(setting):
    extraction = make(setting, [PolicySpec("pwm", "toy/small", 0, 0.0, True)])
    torch.nn.init.constant_(extraction.actor.log_std, -9.0)
    extraction.update(0)
    assert float(extraction.actor.log_std.detach().min()) == pytest.approx(NETWORKS.log_std_min, abs=0.01)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rollout_and_critic_loss_are_one_graph_each_for_the_compiler(setting):
    """No graph breaks: `fullgraph` raises at the first. All kinds of task at once."""
    extraction = make(setting, [PolicySpec("pwm", spec.name, 0, 0.0, True) for spec in SPECS])
    z, noise = extraction._starts.z_KND[:, :8], torch.randn(4, 3, 8, 3)
    compiled = torch.compile(extraction._imagine, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(z, noise)[1:], extraction._imagine(z, noise)[1:], strict=True):
        torch.testing.assert_close(found, expected)
    rows, target = torch.rand(3, 6, 16), torch.rand(3, 6)
    compiled = torch.compile(extraction._critic_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(rows, target), extraction._critic_loss(rows, target))


def test_gradient_noise_is_of_each_member_and_leaves_no_trace(setting):
    members = [PolicySpec("pwm", spec.name, 0, 0.0, True) for spec in SPECS[:2]] + [
        PolicySpec("bc", "toy/small", 0, 1.0, False)
    ]
    extraction = make(setting, members)
    noise = extraction.gradient_noise(draws=4)
    assert noise.shape == (2,)
    assert bool((noise > 0).all())
    alone = make(setting, members[1:2])
    torch.testing.assert_close(alone.gradient_noise(draws=4), noise[1:], rtol=1e-3, atol=0)
    fresh = make(setting, members)
    train(extraction, 0, 2)
    train(fresh, 0, 2)
    for found, expected in zip(extraction.actor.parameters(), fresh.actor.parameters(), strict=True):
        assert torch.equal(found, expected)
