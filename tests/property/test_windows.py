"""Windows: they stay inside episodes, cover them evenly, and are a pure function of the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orrery.datasets.datamodule import _Batches, _drawn_ahead
from orrery.datasets.schema import TaskSpec
from orrery.datasets.windows import WindowSampler
from orrery.pipeline.errors import ConfigError, DatasetError

from ..unit.stores import numbered_episode, write_store

SPECS = [TaskSpec("toy/a", 3, 2, 50), TaskSpec("toy/b", 5, 1, 50), TaskSpec("toy/c", 2, 3, 50)]


@pytest.fixture(scope="module")
def make_store(tmp_path_factory):
    def make(lengths, terminated):
        folder = tmp_path_factory.mktemp("store")
        tasks = [
            (
                spec,
                [numbered_episode(spec, e, n, end) for e, (n, end) in enumerate(zip(lengths, terminated, strict=True))],
            )
            for spec in SPECS
        ]
        return write_store(folder, tasks)

    return make


@settings(max_examples=40, deadline=None)
@given(
    episodes=st.lists(
        st.tuples(st.integers(6, 30), st.booleans()), min_size=4, max_size=8
    ),  # each has a window, and a batch draws up to 4
    length=st.integers(1, 6),
    step=st.integers(0, 10**9),
    seed=st.integers(0, 10**6),
)
def test_windows_hold_consecutive_rows_of_one_episode(make_store, episodes, length, step, seed):
    lengths, terminated = zip(*episodes, strict=True)
    store = make_store(lengths, terminated)
    batch = WindowSampler(store, length=length, batch_size=9, seed=seed).batch(step)
    for i in range(9):
        spec = SPECS[int(batch["task"][i])]
        observation, valid = batch["observation"][i], batch["valid"][i]
        count = int(valid.sum())
        assert bool(valid[:count].all())
        episode, start = int(observation[0, 0]), int(observation[0, 1])
        assert start + count <= lengths[episode]
        time = torch.arange(count)
        assert torch.equal(observation[: count + 1, 0], torch.full((count + 1,), float(episode)))
        assert torch.equal(observation[: count + 1, 1], start + torch.arange(count + 1.0))
        assert torch.equal(batch["reward"][i, :count], 1000.0 * episode + start + time)
        expected = ((start + time + 1) / 1000)[:, None].expand(-1, spec.action_dim)
        torch.testing.assert_close(batch["action"][i, :count, : spec.action_dim], expected)
        # Padding is zero, in time and in width.
        assert not batch["action"][i, :, spec.action_dim :].any()
        assert not observation[:, spec.observation_dim :].any()
        assert not observation[count + 1 :].any()
        assert not batch["reward"][i, count:].any()
        ends = terminated[episode] and start + count == lengths[episode]
        assert batch["terminated"][i].sum() == int(ends)
        assert count == length or terminated[episode]
        if ends:
            assert bool(batch["terminated"][i, count - 1])


def test_a_batch_depends_on_seed_and_step_alone(make_store):
    store = make_store([20] * 5, [False] * 5)
    first = WindowSampler(store, length=4, batch_size=12, seed=3)
    again = WindowSampler(store, length=4, batch_size=12, seed=3)
    first.batch(0)
    assert (first.batch(7) == again.batch(7)).all()
    assert not (first.batch(7) == first.batch(8)).all()
    assert not (first.batch(7) == WindowSampler(store, length=4, batch_size=12, seed=4).batch(7)).all()


def test_ranks_split_the_batch_of_one_process(make_store):
    store = make_store([30] * 6, [False] * 6)
    whole = WindowSampler(store, length=4, batch_size=24, seed=1).batch(5)
    parts = [WindowSampler(store, length=4, batch_size=12, seed=1, rank=r, world_size=2).batch(5) for r in range(2)]
    rows = {tuple(row) for row in whole["observation"][:, 0].tolist()}
    split = [tuple(row) for part in parts for row in part["observation"][:, 0].tolist()]
    assert len(split) == 24
    assert set(split) == rows
    for r, part in enumerate(parts):
        assert torch.equal(part["observation"], whole["observation"][r::2])


def test_no_window_twice_in_a_batch_and_all_equally_often(make_store):
    store = make_store([10, 13], [False, True])
    sampler = WindowSampler(store, length=4, batch_size=30, seed=0)
    windows = 10 - 4 + 1 + 13
    counts = np.zeros((3, windows))
    for step in range(3000):
        batch = sampler.batch(step)
        keys = [tuple(x) for x in torch.cat([batch["task"][:, None], batch["observation"][:, 0, :2]], 1).tolist()]
        assert len(set(keys)) == len(keys)
        for task, episode, start in keys:
            counts[int(task), int(start) + (7 if episode else 0)] += 1
    # 3000 batches x 10 slots over 20 windows: 1500 expected. Drawing per stratum varies less than a binomial,
    # whose standard deviation is 27; 5 of them fail by chance less than once in 10^4 runs.
    assert np.abs(counts - 1500).max() < 5 * 27


def test_mixture_weights_are_the_expected_shares(make_store):
    store = make_store([20] * 5, [False] * 5)
    sampler = WindowSampler(store, length=4, batch_size=10, seed=0, weights={"toy/a": 5, "toy/b": 0, "toy/c": 2.5})
    tasks = torch.cat([sampler.batch(step)["task"] for step in range(300)])
    share = torch.bincount(tasks, minlength=3) / len(tasks)
    torch.testing.assert_close(share, torch.tensor([2 / 3, 0, 1 / 3]), atol=0.01, rtol=0)


@pytest.fixture(scope="module")
def sparse_store(tmp_path_factory):
    """toy/a: one rewarded step in each of 2 of 20 episodes. toy/b: every step of half of them. toy/c: costs."""
    tasks = []
    for spec in SPECS:
        episodes = [numbered_episode(spec, e, 30, e % 2 == 0) for e in range(20)]
        for number, episode in enumerate(episodes):
            sparse = np.arange(30) == (29 if number == 4 else 10 if number == 7 else -1)
            rewards = {"toy/a": sparse, "toy/b": np.full(30, number < 10), "toy/c": -1.0 - sparse}[spec.name]
            object.__setattr__(episode, "rewards", rewards.astype(np.float32))
        tasks.append((spec, episodes))
    return write_store(tmp_path_factory.mktemp("sparse"), tasks)


def test_reward_windows_are_drawn_more_often_where_they_are_rare(sparse_store):
    sampler = WindowSampler(sparse_store, length=4, batch_size=21, seed=0, reward_windows=0.3)
    drawn = [sampler.batch(step) for step in range(1000)]
    task, reward = (torch.cat([batch[name] for batch in drawn]) for name in ("task", "reward"))
    holds = (reward == 1).any(1)
    # 4 windows hold either reward of toy/a, the last of them padded: 8 of its 570 windows.
    assert holds[task == 0].double().mean().item() == pytest.approx(0.3 + 0.7 * 8 / 570, abs=0.01)
    assert holds[task == 1].double().mean().item() == pytest.approx(0.5, abs=0.03)
    first = torch.cat([batch["observation"][:, 0, :2] for batch in drawn])[holds & (task == 0)].long()
    counts = torch.bincount(first[:, 0] * 30 + first[:, 1])
    expected = [4 * 30 + t for t in (26, 27, 28, 29)] + [7 * 30 + t for t in (7, 8, 9, 10)]
    assert counts.nonzero().flatten().tolist() == expected
    # 7,000 windows of toy/a: 275 of each expected, with a standard deviation of 15 if they were independent.
    assert (counts[expected] - 7000 * (0.3 / 8 + 0.7 / 570)).abs().max() < 5 * 17


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_reward_windows_depend_on_neither_ranks_nor_loading_nor_earlier_batches(sparse_store, held_out):
    common = {"length": 4, "seed": 1, "held_out": held_out, "reward_windows": 0.3}
    whole = WindowSampler(sparse_store, batch_size=24, **common)
    before = [whole.batch(step) for step in range(20)]
    for rank in range(2):
        part = WindowSampler(sparse_store.load(), batch_size=12, rank=rank, world_size=2, **common).batch(18)
        for name in part.keys():  # noqa: SIM118 (a TensorDict iterates over its rows)
            assert torch.equal(part[name], before[18][name][rank::2]), name
    held = sparse_store.tasks[0].held_out(held_out)
    assert not any(held[int(e)] for batch in before for e in batch["observation"][batch["task"] == 0, 0, 0])


def test_without_sparse_tasks_reward_windows_change_nothing(make_store):
    store = make_store([20] * 5, [False] * 5)  # half of all steps have more than half the reward of the last
    plain, more = (WindowSampler(store, length=4, batch_size=12, seed=3, reward_windows=r) for r in (0.0, 0.3))
    assert (plain.batch(5) == more.batch(5)).all()


def test_held_out_episodes_are_never_trained_on(make_store):
    store = make_store([20] * 10, [False] * 10)
    common = {"length": 4, "batch_size": 12, "seed": 0, "held_out": 0.2}
    train, held = WindowSampler(store, **common), WindowSampler(store, split="held_out", **common)
    trained = {(int(t), int(e)) for s in range(50) for t, e in zip(*_task_episode(train.batch(s)), strict=True)}
    validated = {(int(t), int(e)) for s in range(50) for t, e in zip(*_task_episode(held.batch(s)), strict=True)}
    assert not trained & validated
    assert len(trained) == 3 * 8
    assert len(validated) == 3 * 2


def _task_episode(batch):
    return batch["task"], batch["observation"][:, 0, 0]


@pytest.mark.parametrize(
    ("settings_", "error", "message"),
    [
        (
            {"length": 21},
            DatasetError,
            "task 'toy/a' has no window of 21 steps in its train episodes (longest: 20)",
        ),
        (
            {"batch_size": 300, "world_size": 2},
            ConfigError,
            "needs up to 201 (300 per rank x 2 ranks); use a smaller batch_size",
        ),
        ({"batch_size": 300, "stage": "pretrain"}, ConfigError, "use a smaller pretrain.batch_size"),
        ({"weights": {"toy/d": 1}}, ConfigError, "mixture weights for ['toy/d'], but the store holds: toy/a, toy/b"),
        ({"weights": {"toy/a": -1}}, ConfigError, "must be finite, not negative"),
    ],
)
def test_refusals(make_store, settings_, error, message):
    store = make_store([20] * 5, [False] * 5)
    with pytest.raises(error) as caught:
        WindowSampler(store, **{"length": 4, "batch_size": 12, "seed": 0, **settings_})
    assert message in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(
    episodes=st.lists(st.tuples(st.integers(6, 30), st.booleans()), min_size=4, max_size=8),
    step=st.integers(0, 10**9),
    held_out=st.sampled_from([0.0, 0.25]),
)
def test_a_loaded_store_gives_the_same_batches_as_the_mapped_one(make_store, episodes, step, held_out):
    store = make_store(*zip(*episodes, strict=True))
    mapped, loaded = (
        WindowSampler(each, length=4, batch_size=5, seed=1, held_out=held_out).batch(step)
        for each in (store, store.load())
    )
    for name in mapped.keys():  # noqa: SIM118 (a TensorDict iterates over its rows)
        assert torch.equal(mapped[name], loaded[name]), name


@pytest.fixture
def pinned(monkeypatch):
    """What `Tensor.pin_memory` does where there is a GPU, in ordinary memory: a copy with the same sizes and strides,
    which torch refuses to write where several elements share a place. Lists the tensors that it made."""
    made = []

    def pin(tensor):
        made.append(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor))
        return made[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return made


def test_the_emulated_pinning_refuses_what_torch_refuses(pinned):
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        torch.tensor(True).expand(3, 2).pin_memory()


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_batches_drawn_ahead_are_the_same_in_the_same_order(make_store, pinned, count, terminated):
    sampler = WindowSampler(make_store([20, 20, 20], [terminated] * 3), length=4, batch_size=5, seed=1)
    ahead = list(_Batches(sampler, first=7, count=count, ahead=True))
    assert len(ahead) == count
    for step, batch in enumerate(ahead):
        expected = sampler.batch(7 + step)
        for name in expected.keys():  # noqa: SIM118 (a TensorDict iterates over its rows)
            assert torch.equal(batch[name], expected[name]), name
            # Page-locked, and in one piece: copied to the GPU without another copy first, which would not be.
            assert any(batch[name] is one for one in pinned), name
            assert batch[name].is_contiguous(), name


def test_an_error_while_drawing_ahead_is_raised_where_the_batch_is_asked_for():
    def draw(step):
        raise DatasetError(f"step {step}")

    with pytest.raises(DatasetError, match="step 3"):
        next(_drawn_ahead(draw, range(3, 9)))
