"""MR.Q's learner: the order of a step, members side by side, variants, and losses that are no numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from orrery.datasets.tasks import task_spec
from orrery.pipeline.errors import StageError
from orrery.pipeline.study.config import load_study
from orrery.stages.mrq.config import DESIGN_STUDY, MrqConfig, NetworkConfig
from orrery.stages.mrq.learner import Learner, Shapes
from orrery.stages.mrq.offline import OfflineMember, OfflineTraining
from orrery.stages.mrq.online import OnlineTraining

from .mrq_cases import CARTPOLE, LEARN, OFFLINE, ONLINE, PENDULUM, run_to
from .stores import point_mass_episodes, point_mass_spec, write_store


def test_targets_are_copied_and_the_encoder_trained_at_the_first_step_of_a_period():
    training = run_to(OnlineTraining(task_spec(PENDULUM), ONLINE, "mrq", 0), 30)
    learner, replay = training.learner, training.replay
    events = []
    copy, encode = learner._copy_targets, learner._update_encoder
    learner._copy_targets = lambda: (events.append("copy"), copy())[1]
    learner._update_encoder = lambda *a: (events.append("encoder"), encode(*a))[1]
    scales = []
    for _ in range(5):
        learner.train([replay])
        events.append("step")
        scales.append((float(learner._scale_M), float(learner._target_scale_M)))
    burst = ["copy", *["encoder"] * 4]
    assert events == [*burst, *["step"] * 4, *burst, "step"]
    mean = float(replay.reward.abs().sum()) / replay.num_steps
    assert scales[0] == (pytest.approx(mean, rel=1e-5), 1.0)  # the targets' scale is the one before
    assert scales[4] == (pytest.approx(mean, rel=1e-5), pytest.approx(mean, rel=1e-5))
    # The last copy was made before the last step of values and policy, not of the encoder's burst.
    online, target = learner.values.state_dict(), learner.target_values.state_dict()
    assert any(not torch.equal(online[name], target[name]) for name in online)


@pytest.mark.parametrize("variant", ["mrq", "dynamics_target"])
def test_targets_embedded_once_per_period_are_those_of_every_draw(tmp_path, variant):
    """Two members, of tasks of different sizes."""
    tasks = [(point_mass_spec(f"toy/{n}"), point_mass_episodes(point_mass_spec(f"toy/{n}"), n, n)) for n in (2, 3)]
    store = write_store(tmp_path / "store", tasks)
    config = dataclasses.replace(OFFLINE, learn=dataclasses.replace(LEARN, period=8))
    training = OfflineTraining(store, [OfflineMember(spec.name, 0) for spec, _ in tasks], config, variant)
    learner, sources = training.learner, training._sources
    learner.train(sources)
    starts = learner._starts(sources, 5, 8)
    shared = learner._shared_targets(sources, starts)
    assert shared is not None
    for number, start_MB in enumerate(starts):
        drawn = learner._observations(sources, start_MB, list(range(1, 6)))
        expected = torch.stack([learner._dynamics_target(drawn[:, t]) for t in range(5)], 1)
        torch.testing.assert_close(shared.of_update(number), expected)
    few = starts[:1, :, :2]  # as many observations as draws
    assert learner._shared_targets(sources, few) is None


@pytest.fixture(scope="module")
def plain():
    return run_to(OnlineTraining(task_spec(CARTPOLE), ONLINE, "mrq", 0), 36)


@pytest.mark.parametrize("variant", [*DESIGN_STUDY, "released"])
def test_every_variant_of_the_design_study_trains(variant, plain):
    training = run_to(OnlineTraining(task_spec(CARTPOLE), ONLINE, variant, 0), 36)
    assert all(bool(value.isfinite().all()) for value in training._metrics.values())
    same = training.learner.policy.state_dict(), plain.learner.policy.state_dict()
    assert any(not torch.equal(same[0][name], same[1][name]) for name in same[0])


def test_the_study_of_the_design_takes_away_what_its_variants_do():
    expected = {name: overrides_of(changes) for name, changes in DESIGN_STUDY.items()}
    assert load_study("mrq_design").variants == {"mrq": [], **expected}


def overrides_of(changes, prefix="mrq_online.learn"):
    overrides = []
    for key, value in changes.items():
        nested = isinstance(value, Mapping)
        overrides += overrides_of(value, f"{prefix}.{key}") if nested else [f"{prefix}.{key}={value}".lower()]
    return overrides


def test_narrowed_products_change_the_losses_of_the_model_little():
    """Products of 32 columns and more; LEARN has fewer."""
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        networks = NetworkConfig(64, 64, 32, 64, 64, 64, num_bins=33, bin_limit=3.0)
        learn = dataclasses.replace(LEARN, networks=networks, precision=precision)
        training = run_to(OnlineTraining(task_spec(PENDULUM), dataclasses.replace(ONLINE, learn=learn), "mrq", 0), 30)
        found[precision] = training.learner.train([training.replay])["model_reward"]
    assert not torch.equal(found["bf16-mixed"], found["32-true"])
    torch.testing.assert_close(found["bf16-mixed"], found["32-true"], rtol=0.05, atol=0)


def test_without_the_model_the_value_loss_trains_the_encoder():
    training = run_to(OnlineTraining(task_spec(PENDULUM), ONLINE, "no_mr", 0), 30)
    before = {name: value.clone() for name, value in training.learner.encoder.state_dict().items()}
    training.learner.train([training.replay])
    after = training.learner.encoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "state.l1.weight" in moved
    assert "joint.l3.weight" in moved


def test_a_member_learns_the_same_beside_others_as_alone(tmp_path):
    """A task of two observations beside one of three, padded to the same widths: equal up to rounding."""
    wide = point_mass_spec("toy/wide", observation_dim=3)
    tasks = [(spec, point_mass_episodes(spec, 6, seed)) for seed, spec in enumerate([point_mass_spec(), wide])]
    store = write_store(tmp_path / "store", tasks)
    members = [OfflineMember(point_mass_spec().name, 1), OfflineMember("toy/wide", 0)]
    together = OfflineTraining(store, members, OFFLINE, "mrq")
    alone = [OfflineTraining(store, [member], OFFLINE, "mrq") for member in members]
    for training in (together, *alone):
        while training.done < training.encoder_periods + 6:
            training.advance()
    for m, single in enumerate(alone):
        for module in ("encoder", "values", "policy"):
            stacked, own = (getattr(t.learner, module).state_dict() for t in (together, single))
            for name, value in own.items():
                count = len(value)
                torch.testing.assert_close(stacked[name][m * count : (m + 1) * count], value, rtol=1e-3, atol=1e-4)


def test_progress_counts_updates_of_the_encoder_alone_and_of_everything(tmp_path):
    store = write_store(tmp_path / "store", [(point_mass_spec(), point_mass_episodes(point_mass_spec(), 6))])
    training = OfflineTraining(store, [OfflineMember(point_mass_spec().name, 0)], OFFLINE, "mrq")
    found = []
    while training.completed < training.total:
        training.advance()
        found.append(training.completed)
    period, updates = OFFLINE.learn.period, OFFLINE.updates
    assert found == [period * (i + 1) for i in range(training.encoder_periods)] + [
        period * training.encoder_periods + i + 1 for i in range(updates)
    ]


@pytest.mark.parametrize(("behaviour", "weight"), [("exploration", 0), ("expert", 0.1), ("unknown", 0.1)])
def test_each_task_has_its_own_discount_and_a_behaviour_weight_by_how_its_data_was_made(tmp_path, behaviour, weight):
    spec = point_mass_spec(discount=0.97)
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 2))], behaviour)
    members = [OfflineMember(spec.name, 0)]
    small = dataclasses.replace(MrqConfig().learn, networks=OFFLINE.learn.networks)
    for given, expected in ((None, weight), (0.3, 0.3)):
        learner = OfflineTraining(store, members, MrqConfig(behaviour_weight=given, learn=small), "mrq").learner
        assert learner._offline.behaviour_weight_M.tolist() == pytest.approx([expected])
        assert learner._discount_M.tolist() == pytest.approx([0.97])


def test_clamped_targets_stay_in_the_range_of_the_period_before(tmp_path):
    spec = point_mass_spec()
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 6))])
    training = OfflineTraining(store, [OfflineMember(spec.name, 0)], OFFLINE, "mrq")
    learner = training.learner
    observation = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    learner._clamp_M2 = torch.tensor([[-0.1, 0.2]])
    found = learner._next_value(observation)
    assert found.min() >= -0.1
    assert found.max() <= 0.2
    for _ in range(4):  # the first period bootstraps with 0, and sees targets
        learner.train(training._sources)
    assert learner._clamp_M2.tolist() == [[0, 0]]
    learner.train(training._sources)
    assert learner._clamp_M2[0, 1] > 0


def test_losses_that_are_not_numbers_stop_the_run():
    shapes = Shapes((2,), False, torch.ones(1, 1), torch.tensor([0.9]))
    learner = Learner(shapes, LEARN, [0])
    with pytest.raises(StageError, match="value_loss is not finite after 0 training steps"):
        learner.check_finite({"value": torch.zeros(1), "value_loss": torch.tensor([torch.nan])})
