"""What action world models are for, over three seeds each: bounded gradients with skill, smoother landscapes, gradients
across a contact, policies near the simulator's. Minutes each; every test prints what it measured as JSON lines (-s).

The margins are those that a single-seed prototype passed widely; none asks an action model to beat the simulator, or a
Markov model's returns on every task, which did not reproduce.
"""

from __future__ import annotations

import json

import pytest
import torch
from orrery.datasets.tasks import task_spec
from orrery.datasets.tasks.myriad import simulator
from orrery.stages.bpo.bpo import PolicyOptimisation
from orrery.stages.bpo.config import BpoConfig
from orrery.stages.bpo.imagination import imagine
from orrery.stages.diagnostics.gradients import (
    climb,
    final_reward,
    first_action_jacobian,
    first_actions,
    growth,
    jacobian_cosine,
    jacobian_norm,
    landscape,
    open_loop_r2,
    sequence_predictor,
    simulator_predictor,
)
from orrery.stages.sequence_model.config import SequenceModelConfig
from orrery.stages.sequence_model.dynamics import ModelDynamics, SimulatorDynamics
from orrery.stages.sequence_model.episodes import correlated_actions, fit_model, simulate

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)
HORIZONS = (5, 10, 20, 50, 100)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def show(**values):
    rounded = {k: [round(float(x), 4) for x in v] if isinstance(v, list) else v for k, v in values.items()}
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in rounded.items()}))


def config(kind, horizon):
    return SequenceModelConfig(kind=kind, horizon=horizon, reward_head=False)


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_of_an_action_model_stay_bounded_where_it_has_skill(seed):
    spec = task_spec("myriad/driven_pendulum")
    task = simulator(spec)
    generator = torch.Generator().manual_seed(100 + seed)
    actions = torch.rand(2000, 100, 1, generator=generator) * 2 - 1
    data = simulate(task, actions, task.initial_state(2000, generator))
    test_generator = torch.Generator().manual_seed(999)
    action, start = torch.rand(64, 100, 1, generator=test_generator) * 2 - 1, task.initial_state(64, test_generator)
    real = simulate(task, action, start)
    true = first_action_jacobian(simulator_predictor(task), start, action.double())
    ratios = {"simulator": measure("simulator", seed, true, true, real.observation_NTO[:, 1:, :-1], real)[0]}
    for kind, updates in (("markov", 3500), ("awm", 700)):
        predict = sequence_predictor(fit_model(spec, data, config(kind, 100), updates, seed=seed))
        first = real.observation_NTO[:, 0]
        with torch.no_grad():
            predicted = predict(first, action)
        found = first_action_jacobian(predict, first, action)
        ratios[kind], r2, cosine = measure(kind, seed, found, true, predicted, real)
    # A model that predicts a constant has small gradients too: bounded counts only together with skill.
    assert r2 >= 0.4
    assert cosine >= 0.7
    assert ratios["awm"] <= 2
    assert ratios["simulator"] >= 20
    assert ratios["markov"] >= 20


def measure(model, seed, jacobian, true, predicted, real):
    """Growth of the median norm from 10 to 100 steps; R^2 and cosine to the true Jacobian at 20."""
    median, slope = growth(jacobian_norm(jacobian), HORIZONS)
    cosine = jacobian_cosine(jacobian, true).median(0).values
    r2 = open_loop_r2(predicted, real.observation_NTO[:, 1:, :-1])
    at = [horizon - 1 for horizon in HORIZONS]
    show(model=model, seed=seed, norm=median.tolist(), slope=slope, r2=r2[at].tolist(), cosine=cosine[at].tolist())
    return float(median[-1] / median[1]), float(r2[19]), float(cosine[19])


def landscapes(name, seed, updates):
    """The final reward over the first action, through the simulator and through fitted models."""
    spec = task_spec(name)
    task = simulator(spec)
    generator = torch.Generator().manual_seed(100 + seed)
    data = simulate(task, first_actions(torch.rand(1000, generator=generator) * 2 - 1, task.horizon))
    values = {"simulator": final_reward(task)}
    for kind, count in updates.items():
        values[kind] = final_reward(task, fit_model(spec, data, config(kind, task.horizon), count, seed=seed))
    grid = torch.linspace(-0.995, 0.995, 200)
    return {kind: (value, landscape(value, grid)) for kind, value in values.items()}


def test_the_landscape_of_an_action_model_is_smoother_and_climbs_higher():
    returns = {"awm": [], "markov": []}
    for seed in SEEDS:
        found = landscapes("myriad/released_pendulum", seed, {"markov": 3000, "awm": 600})
        for kind, (value, land) in found.items():
            if kind in returns:
                reached = climb(value, found["simulator"][0], torch.linspace(-0.95, 0.95, 20), 0.02, 60)
                returns[kind].append(float(reached.mean()))
            show(model=kind, seed=seed, mean_gradient=float(land.gradient_G.abs().mean()),
                 sign_changes=land.sign_changes, returns=returns.get(kind, [])[-1:])  # fmt: skip
        awm, markov = found["awm"][1], found["markov"][1]
        assert awm.gradient_G.abs().mean() <= markov.gradient_G.abs().mean() / 5
        assert awm.sign_changes <= markov.sign_changes / 2
    assert sum(returns["awm"]) > sum(returns["markov"])


@pytest.mark.parametrize("seed", SEEDS)
def test_an_action_model_gives_gradients_across_a_contact(seed):
    found = landscapes("myriad/one_bounce", seed, {"markov": 3000, "awm": 800})
    truth = found["simulator"][1]
    cosines = {kind: land.cosine(truth) for kind, (_, land) in found.items()}
    agreement = {
        kind: float((land.gradient_G * truth.gradient_G > 0).double().mean()) for kind, (_, land) in found.items()
    }
    show(seed=seed, **{f"cosine_{kind}": value for kind, value in cosines.items()},
         **{f"signs_{kind}": value for kind, value in agreement.items()})  # fmt: skip
    assert cosines["awm"] >= 0.6
    assert cosines["markov"] <= 0.2


@pytest.mark.parametrize("seed", SEEDS)
def test_policies_from_a_smooth_task_come_near_those_of_the_simulator(seed):
    spec = task_spec("myriad/cancer@50")
    generator = torch.Generator().manual_seed(seed)
    data = simulate(simulator(spec), correlated_actions(256, 50, 1, generator))
    model = fit_model(spec, data, config("awm", 50), 400, seed=seed)
    statistics = model.observation_mean_KO[0], model.observation_scale_KO[0]
    settings = BpoConfig(batch_size=8, lr=1e-3, entropy=0.0)
    returns, true = {}, SimulatorDynamics(spec)
    worlds = {
        "awm": (ModelDynamics(model, spec.name, "simulator"), data.observation_NTO[:, 0]),
        "simulator": (true, None),
    }
    for name, (world, starts) in worlds.items():
        scale = float(data.reward_NT.sum(1).std())
        trained = PolicyOptimisation(world, spec, starts, statistics, scale, [seed], 50, 150, settings, seed=0)
        for iteration in range(150):
            trained.update(iteration)
        with torch.no_grad():
            start = true.task.initial_state(1)[None]
            returns[name] = float(imagine(true, trained.policy, start, torch.zeros(50, 1, 1, 1)).reward_HMB.sum())
    best = float(data.reward_NT.sum(1).max())
    show(seed=seed, best_behaviour=best, mean_behaviour=float(data.reward_NT.sum(1).mean()), **returns)
    assert returns["awm"] > best
    assert returns["awm"] >= returns["simulator"] - 0.05 * abs(returns["simulator"])
