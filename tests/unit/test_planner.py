"""Planning: known optima, hand-computed refits, the narrowed model against the whole one, memories, artifacts."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from orrery.datasets.rollout import play_episodes, policy_act
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.datasets.tasks import task_spec
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.pipeline.stage import Context
from orrery.stages.planning.config import MppiConfig, PlannerConfig
from orrery.stages.planning.planner import Planner, PlanNoise, plan
from orrery.stages.planning.stage_mppi import Mppi
from orrery.stages.planning.task_model import TaskModel
from orrery.stages.policy.policy import load_policy
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import Pretrain
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.facts import read_model_facts
from orrery.stages.world_model.networks import WorldModel

CONFIG = WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, num_bins=11, bin_limit=2, num_q=3)
TABLE = TaskTable(
    [
        TaskSpec("toy/narrow", 3, 1, 50),
        TaskSpec("toy/wide", 5, 3, 100),
        TaskSpec("toy/ends", 4, 2, 500, terminates=True),
        TaskSpec("toy/discrete", 2, 3, 200, action_kind="discrete", terminates=True),
    ]
)
SMALL = PlannerConfig(horizon=3, iterations=2, samples=24, elites=5, prior_trajectories=4)


def make_model(config=CONFIG, table=TABLE):
    """None of its parts is degenerate."""
    torch.manual_seed(0)
    model = WorldModel(config, table)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    for k, task in enumerate(table):
        model.set_observation_statistics(k, torch.randn(task.observation_dim), 1 + torch.rand(task.observation_dim))
    return model.freeze()


def draw(config, action_dim, environments, seed=0):
    generators = [torch.Generator().manual_seed(seed + b) for b in range(environments)]
    return PlanNoise.draw(generators, config, action_dim, torch.device("cpu"))


class Line:
    """A point at z moves by a / 2; a step costs 100 times the squared distance from 0.3 that it ends at."""

    def executable(self, action):
        return action.clamp(-1, 1)

    def prior_actions(self, z_BD, noise_HBNA):
        return torch.full_like(noise_HBNA, 0.9)

    def returns(self, z_BD, action_HBNA, noise_BNA):
        position = z_BD[:, None, 0] + (action_HBNA[..., 0] / 2).cumsum(0)
        return -100 * (position - 0.3).square().sum(0)


def test_the_known_optimum_is_found():
    """From -0.1 the first action is 0.8 and then nothing; from -0.6 it is 1, then 0.8."""
    config = PlannerConfig()
    z_BD = torch.tensor([[-0.1], [-0.6], [0.3]])
    found = plan(Line(), z_BD, torch.zeros(3, 3, 1), draw(config, 1, 3), config)
    torch.testing.assert_close(found.action_BA[:, 0], torch.tensor([0.8, 1.0, 0.0]), atol=0.03, rtol=0)
    torch.testing.assert_close(found.mean_HBA[1, :, 0], torch.tensor([0.0, 0.8, 0.0]), atol=0.05, rtol=0)
    assert (found.std_HBA >= config.min_std).all()


class Pick:
    """The return is the first component of the first action."""

    def executable(self, action):
        return action.clamp(-1, 1)

    def prior_actions(self, z_BD, noise_HBNA):
        return noise_HBNA / 10

    def returns(self, z_BD, action_HBNA, noise_BNA):
        return action_HBNA[0, ..., 0]


def by_hand(**settings):
    """One round of three samples beside one trajectory of the prior, from mean 0.1 and deviation 2; one step ahead."""
    config = PlannerConfig(**{"horizon": 1, "iterations": 1, "samples": 4, "elites": 2, "prior_trajectories": 1}
                           | settings)  # fmt: skip
    sampled = torch.tensor([[-3.0, 0.1], [0.2, 0.0], [0.1, -0.4]])  # actions (-1, 0.3), (0.5, 0.1), (0.3, -0.7)
    prior = torch.tensor([[4.0, 2.0]])  # action (0.4, 0.2)
    unused = torch.zeros(1, 1, 1, 2)
    noise = PlanNoise(
        torch.cat([prior[None, None], unused]),
        [torch.cat([sampled[None, None], unused.expand(1, 1, 3, 2)])],
        torch.tensor([settings.pop("choice", 0.0)]),
    )
    return plan(Pick(), torch.zeros(1, 1), torch.full((1, 1, 2), 0.1), noise, config)


def test_mean_and_deviation_are_those_of_the_weighted_elites():
    found = by_hand()
    weight = torch.tensor([0.5 * 0.5, 0.5 * 0.4]).exp()
    weight /= weight.sum()
    elites = torch.tensor([[0.5, 0.1], [0.4, 0.2]])
    mean = (weight[:, None] * elites).sum(0)
    deviation = (weight[:, None] * (elites - mean) ** 2).sum(0).sqrt()
    assert deviation.max() < 0.051
    torch.testing.assert_close(found.mean_HBA, mean[None, None])
    torch.testing.assert_close(found.action_BA, mean[None])
    torch.testing.assert_close(found.std_HBA, deviation.clamp(min=0.05)[None, None])
    torch.testing.assert_close(by_hand(min_std=0.0).std_HBA, deviation[None, None])
    torch.testing.assert_close(by_hand(temperature=0.0).mean_HBA, elites.mean(0)[None, None])


def test_an_elite_is_drawn_by_its_weight():
    config = PlannerConfig(horizon=1, iterations=1, samples=4, elites=2, prior_trajectories=0, temperature=2.0,
                           sample_elite=True)  # fmt: skip
    rounds = [torch.tensor([0.1, 0.2, 0.3, 0.4])[None, None, :, None].expand(2, 1, 4, 1)]
    better = 1 / (1 + torch.exp(torch.tensor(-2 * 0.2)))  # deviation 2: actions 0.8 and 0.6
    for choice, action in ((0.0, 0.8), (better - 0.01, 0.8), (better + 0.01, 0.6), (0.999999, 0.6)):
        noise = PlanNoise(torch.zeros(2, 1, 0, 1), rounds, torch.tensor([choice]))
        found = plan(Pick(), torch.zeros(1, 1), torch.zeros(1, 1, 1), noise, config)
        torch.testing.assert_close(found.action_BA, torch.tensor([[action]]))


def test_trajectories_of_the_prior_take_part_in_every_round():
    """They alone reach the best return: everything sampled is worse."""

    class Reached(Pick):
        def prior_actions(self, z_BD, noise_HBNA):
            return torch.ones_like(noise_HBNA)

        def executable(self, action):
            return action.clamp(-0.5, 0.5)

    config = PlannerConfig(horizon=2, iterations=3, samples=20, elites=3, prior_trajectories=3, min_std=0.0)
    found = plan(Reached(), torch.zeros(1, 1), torch.zeros(2, 1, 1), draw(config, 1, 1), config)
    torch.testing.assert_close(found.mean_HBA, torch.ones(2, 1, 1))


@pytest.mark.parametrize("k", range(len(TABLE)))
@pytest.mark.parametrize("angles", [False, True])
def test_the_narrowed_model_gives_the_numbers_of_the_whole(k, angles):
    model, spec = make_model(dataclasses.replace(CONFIG, wrap_angles=angles)), TABLE[k]
    if angles:
        model.angle_KO[k, 1 : spec.observation_dim] = 1
    narrowed = TaskModel(model, k)
    B, N, H, A = 2, 5, 3, spec.action_dim
    observation = torch.randn(B, spec.observation_dim)
    padded = torch.nn.functional.pad(observation, (0, TABLE.observation_dim - spec.observation_dim))
    z = narrowed.encode(observation)
    torch.testing.assert_close(z, model.encode(padded, torch.full((B,), k)))

    wide = [*z.shape[:1], N]
    task = torch.full(wide, k)
    actions = narrowed.executable(torch.randn(H, B, N, A))
    noise = torch.randn(B, N, A)
    total, alive, at = torch.zeros(wide), torch.ones(wide), z[:, None].expand(-1, N, -1)

    def pad(action):
        return torch.nn.functional.pad(action, (0, TABLE.action_dim - A), value=7.0)  # the model masks the padding

    def of_prior(at, noise):
        return narrowed.executable(model.sample_prior(at, task, pad(noise)).action[..., :A])

    for action in actions:
        at, reward, continue_ = model.step(at, pad(action), task)
        total += alive * model.decode_reward(reward)
        alive = alive * spec.discount * (torch.sigmoid(continue_) if spec.terminates else 1)
    value = model.decode_value(model.value_logits(at, pad(of_prior(at, noise)), task)).mean(0)
    assert value.std() > 0.01
    torch.testing.assert_close(narrowed.returns(z, actions, noise), total + alive * value, rtol=1e-4, atol=1e-5)

    noises, at = torch.randn(H, B, N, A), z[:, None].expand(-1, N, -1)
    for noise, action in zip(noises, narrowed.prior_actions(z, noises), strict=True):
        torch.testing.assert_close(action, of_prior(at, noise))
        at = model.next_latent(at, pad(action), task)


def test_weights_of_padded_components_do_not_matter():
    observation = torch.randn(2, 3)
    plain = Planner(make_model(), TABLE[0], SMALL, 0).act(observation)
    model = make_model()
    for head in (model.dynamics, model.reward):
        head[0].linear.weight[:, -2:] = 50.0  # two of three action components
    model.values.weight[0][:, :, -2:] = 50.0
    model.encoder.layers[0].linear.weight[:, 3:5] = 50.0  # two of five observation columns
    model.policy_prior[-1].weight[1:3] = 50.0
    torch.testing.assert_close(Planner(model, TABLE[0], SMALL, 0).act(observation), plain, rtol=0, atol=0)


@pytest.mark.parametrize("k", range(len(TABLE)))
def test_plans_of_a_batch_are_those_of_its_rows(k):
    model = TaskModel(make_model(), k)
    A = TABLE[k].action_dim
    noise = draw(SMALL, A, 3)
    z_BD, warm_HBA = model.encode(torch.randn(3, TABLE[k].observation_dim)), 0.3 * torch.randn(3, 3, A)
    together = plan(model, z_BD, warm_HBA, noise, SMALL)
    assert together.mean_HBA.std(1).max() > 0.01
    for b in range(3):
        own = draw(SMALL, A, 1, seed=b)
        assert all(torch.equal(one, many[:, b : b + 1]) for one, many in zip(own.rounds, noise.rounds, strict=True))
        alone = plan(model, z_BD[b : b + 1], warm_HBA[:, b : b + 1], own, SMALL)
        torch.testing.assert_close(alone.mean_HBA[:, 0], together.mean_HBA[:, b])
        torch.testing.assert_close(alone.action_BA[0], together.action_BA[b])


@pytest.mark.parametrize("k", range(len(TABLE)))
def test_actions_are_executable_and_do_not_depend_on_the_other_rows(k):
    spec = TABLE[k]
    planner = Planner(make_model(), spec, SMALL, 0)
    observation = torch.randn(4, spec.observation_dim)
    action = planner.act(observation, [planner.begin(episode) for episode in range(4)])
    assert action.shape == (4, spec.action_dim)
    if spec.action_kind == "discrete":
        assert (action.sort(-1).values == torch.tensor([0.0, 0.0, 1.0])).all()
    else:
        assert action.abs().max() <= 1
        assert action.std(0).min() > 1e-3
    for row in range(4):
        assert torch.equal(planner.act(observation[row : row + 1], [planner.begin(row)])[0], action[row])


def test_a_decision_starts_from_the_plan_before_it():
    planner = Planner(make_model(), TABLE[1], SMALL, 0)
    observation = torch.randn(1, 5)
    memory = planner.begin(0)
    assert torch.equal(memory.mean_HA, torch.zeros(3, 3))
    first = planner.act(observation, [memory])
    found = plan(planner.model, planner.model.encode(observation), torch.zeros(3, 1, 3),
                 PlanNoise.draw([planner.begin(0).generator], SMALL, 3, torch.device("cpu")), SMALL)  # fmt: skip
    assert torch.equal(first, found.action_BA)
    assert torch.equal(memory.mean_HA, torch.cat([found.mean_HBA[1:, 0], torch.zeros(1, 3)]))
    warm = planner.act(observation, [memory])
    cold = planner.begin(0)
    cold.generator.set_state(planner.begin(0).generator.get_state())
    planner.act(observation, [cold])
    cold.mean_HA.zero_()
    assert not torch.equal(planner.act(observation, [cold]), warm)  # the same random numbers, another start


def test_without_memories_every_decision_is_a_first_one():
    planner = Planner(make_model(), TABLE[1], SMALL, 0)
    observation = torch.randn(1, 5).expand(2, -1)
    action = planner.act(observation)
    assert torch.equal(action[0], action[1])
    assert torch.equal(planner.act(observation), action)
    assert torch.equal(planner.act(observation[:1], [planner.begin(0)]), action[:1])
    assert not torch.equal(planner.act(observation[:1], [planner.begin(1)]), action[:1])
    assert not torch.equal(Planner(make_model(), TABLE[1], SMALL, 1).act(observation), action)


def test_episodes_are_the_same_however_many_are_played_together():
    spec = replace(task_spec("gymnasium/Pendulum-v1"), episode_length=12)
    model = make_model(table=TaskTable([spec]))

    def returns(lanes, **settings):
        act = policy_act(Planner(model, spec, PlannerConfig(2, 1, 8, 2, 2, **settings), 0))
        return [result.return_ for _, result in sorted(play_episodes(spec, act, [5, 6, 7], lanes=lanes))]

    alone = returns(1)
    assert returns(3) == alone
    assert returns(2) == alone
    assert returns(2, sample_elite=True) != alone


def test_memories_follow_their_episodes_and_are_dropped_with_them():
    class Counting:
        def begin(self, episode):
            return [episode]

        def act(self, observation, memory):
            for one in memory:
                one.append(one[-1] + 10)
            return torch.tensor([[float(one[-1])] for one in memory])

    act = policy_act(Counting())
    rows = torch.zeros(3, 2).numpy()
    calls = [[0, 1, 2], [0, 2], [2, 3], [0]]
    found = [act(rows[: len(episodes)], torch.tensor(episodes).numpy())[:, 0].tolist() for episodes in calls]
    assert found == [[10, 11, 12], [20, 22], [32, 13], [10]]


def run_stage(folder, model_folder, **settings):
    (folder).mkdir()
    context = Context(folder, {"world_model": [model_folder]}, 1, 1, logging.getLogger("test"), None)
    return Mppi(MppiConfig(planner=SMALL, **settings)).run(context)


def test_the_artifact_holds_one_model_and_moves_as_a_whole(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    summary = run_stage(tmp_path / "made", tmp_path / "model", tasks=["toy/wide", "toy/ends"], seeds=2)
    assert summary == "4 planners for 2 tasks"
    shutil.rmtree(tmp_path / "model")
    shutil.move(tmp_path / "made", tmp_path / "moved")
    assert len(list((tmp_path / "moved").rglob("*.safetensors"))) == 1
    index = json.loads((tmp_path / "moved" / "policies.json").read_text())
    assert [spec["name"] for spec in index["tasks"]] == list(TABLE.names)
    assert [(e["algorithm"], e["task"], e["seed"]) for e in index["policies"]] == [
        ("tdmpc2_plan", task, seed) for task in ("toy/wide", "toy/ends") for seed in (0, 1)
    ]
    observation = torch.randn(2, 5)
    policies = [load_policy(tmp_path / "moved" / entry["path"]) for entry in index["policies"]]
    assert policies[0].task == TABLE[1]
    assert not torch.equal(policies[0].act(observation), policies[1].act(observation))
    stored = json.loads((tmp_path / "moved" / index["policies"][0]["path"] / "policy.json").read_text())
    expected = Planner(model, TABLE[1], SMALL, stored["noise_seed"]).act(observation)
    assert torch.equal(policies[0].act(observation), expected)


def test_a_planner_refuses_another_model_or_none(tmp_path):
    make_model().save(tmp_path / "model")
    run_stage(tmp_path / "made", tmp_path / "model", seeds=1)
    folder = tmp_path / "made" / "tdmpc2_plan" / "toy.wide" / "seed_0"
    other = make_model()
    other.reward[-1].bias += 1
    other.save(tmp_path / "made" / "world_model")
    with pytest.raises(CheckpointError, match=r"world_model, which has changed since: expected digest \w{12}"):
        load_policy(folder)
    shutil.rmtree(tmp_path / "made" / "world_model")
    with pytest.raises(CheckpointError, match="world_model, which is missing; move a planner together"):
        load_policy(folder)


def test_a_model_without_values_is_refused_before_anything_runs(tmp_path):
    message = "no value functions and no policy prior .num_q is 0.*pretrain.model.num_q=5, or pretrain.model.size=1"
    model = make_model(WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, num_q=0))
    with pytest.raises(CheckpointError, match=message):
        Planner(model, TABLE[0], SMALL, 0)
    model.save(tmp_path / "model")
    stage = Mppi(MppiConfig())
    with pytest.raises(CheckpointError, match=f"the world model in .*model has {message}"):
        stage.check_input("world_model", tmp_path / "model", read_model_facts(tmp_path / "model"))
    with pytest.raises(CheckpointError, match=message):
        run_stage(tmp_path / "made", tmp_path / "model")
    later = tmp_path / "later"
    with pytest.raises(CheckpointError, match=f"the world model in .*later has {message}"):
        stage.check_input("world_model", later, Pretrain(PretrainConfig()).promise({"store": [None]}))
    larger = PretrainConfig(model=WorldModelConfig(size="1"))
    stage.check_input("world_model", later, Pretrain(larger).promise({"store": [None]}))


def test_unknown_tasks_and_settings_are_refused(tmp_path):
    make_model().save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="toy/tall"):
        run_stage(tmp_path / "made", tmp_path / "model", tasks=["toy/tall"])
    for settings, message in [
        ({"elites": 600}, r"elites \(600\) must not exceed samples \(512\)"),
        ({"samples": 24, "elites": 2}, r"prior_trajectories must be .* less than samples \(24\), found 24"),
        ({"horizon": 0}, "horizon must be at least 1, found 0"),
        ({"min_std": 3.0}, "expected 0 <= min_std <= max_std, found 3.0 and 2.0"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"matmul_precision": "low"}, "expected highest, high, medium, found 'low'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            PlannerConfig(**settings)
    with pytest.raises(ConfigError, match="unknown \\['pwm'\\], this stage has: tdmpc2_plan, mppi, cem"):
        MppiConfig(algorithms=["pwm"])


def test_the_precision_of_products_is_put_back():
    before = torch.get_float32_matmul_precision()
    planner = Planner(make_model(), TABLE[1], PlannerConfig(2, 1, 8, 2, 2, matmul_precision="medium"), 0)
    action = planner.act(torch.randn(2, 5))
    assert action.isfinite().all()
    assert torch.get_float32_matmul_precision() == before
