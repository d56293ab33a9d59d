"""TaskStore: what is written is what is read, and damage is named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from orrery.datasets.schema import TaskSpec
from orrery.datasets.store import TaskStore, TaskWriter, data_digests
from orrery.pipeline.errors import CheckpointError, DatasetError, TaskError

from .stores import numbered_episode, write_store

SPEC = TaskSpec("toy/a", 3, 2, 50)


def test_rows_hold_observation_action_reward(tmp_path):
    episodes = [numbered_episode(SPEC, 0, 4), numbered_episode(SPEC, 1, 6, terminated=True)]
    task = write_store(tmp_path, [(SPEC, episodes)]).tasks[0]
    assert task.rows.shape == (4 + 1 + 6 + 1, 3 + 2 + 1)
    assert task.offsets.tolist() == [0, 5, 12]
    assert task.terminated.tolist() == [False, True]
    second = task.rows[5:12]
    assert torch.equal(second[:, :3], torch.from_numpy(episodes[1].observations))
    assert torch.equal(second[:6, 3:5], torch.from_numpy(episodes[1].actions))
    assert torch.equal(second[:6, 5], torch.from_numpy(episodes[1].rewards))
    assert not second[6, 3:].any()


def test_summary_counts_and_statistics(tmp_path):
    episodes = [numbered_episode(SPEC, 0, 4), numbered_episode(SPEC, 1, 6, terminated=True)]
    store = write_store(tmp_path, [(SPEC, episodes)], behaviour="expert")
    summary = store.tasks[0].summary
    assert (summary.episodes, summary.transitions, summary.terminated) == (2, 10, 1)
    assert summary.return_mean == pytest.approx((0 + 1 + 2 + 3 + 6000 + 15) / 2)
    assert summary.behaviour == "expert"
    assert summary.success_rate is None
    observations = np.concatenate([e.observations for e in episodes])
    np.testing.assert_allclose(summary.observation_mean, observations.mean(0), rtol=1e-6)
    np.testing.assert_allclose(summary.observation_std, observations.std(0), rtol=1e-6)
    assert store.table.names == ("toy/a",)


def test_held_out_choice_depends_on_the_number_of_episodes_alone(tmp_path):
    task = write_store(tmp_path, [(SPEC, [numbered_episode(SPEC, e, 4) for e in range(20)])]).tasks[0]
    assert task.held_out(0.1).sum() == 2
    assert task.held_out(0.001).sum() == 1
    assert task.held_out(0).sum() == 0
    assert np.array_equal(task.held_out(0.1), task.held_out(0.1))


def test_a_task_has_the_same_digest_whatever_other_tasks_are_in_the_store(tmp_path):
    episodes = [numbered_episode(SPEC, 0, 4), numbered_episode(SPEC, 1, 6, terminated=True)]
    wide = TaskSpec("toy/wide", 7, 4, 50)
    stores = {
        "alone": [(SPEC, episodes)],
        "beside a wider one": [(wide, [numbered_episode(wide, 0, 4)]), (SPEC, episodes)],
        "another episode": [(SPEC, [*episodes, numbered_episode(SPEC, 2, 4)])],
        "another end": [(SPEC, [numbered_episode(SPEC, 0, 4, terminated=True), episodes[1]])],
        "another spec": [(dataclasses.replace(SPEC, episode_length=60), episodes)],
    }
    found = []
    for name, tasks in stores.items():
        write_store(tmp_path / name, tasks)
        found.append(data_digests(tmp_path / name)["toy/a"])
    assert found[0] == found[1]
    assert len(set(found)) == 4
    write_store(tmp_path / "experts", stores["alone"], behaviour="expert")
    assert data_digests(tmp_path / "experts")["toy/a"] not in found


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="holds no episode"):
        TaskWriter(tmp_path / "t", SPEC, 3, 2).write([], behaviour="unknown", source={"path": "x"})


def test_a_cut_file_is_named_with_both_sizes(tmp_path):
    write_store(tmp_path, [(SPEC, [numbered_episode(SPEC, 0, 4)])])
    rows = tmp_path / "toy.a" / "rows.f32"
    rows.write_bytes(rows.read_bytes()[:-8])
    with pytest.raises(DatasetError) as caught:
        TaskStore.open(tmp_path)
    assert f"{rows}: expected 120 bytes (5 rows of 6 float32), found 112" in str(caught.value)
    assert "truncated or replaced after packing; pack again" in str(caught.value)


def test_another_folder_is_not_a_store(tmp_path):
    with pytest.raises(DatasetError, match=r"is not a packed store: expected store\.json and tasks\.json"):
        TaskStore.open(tmp_path)


def test_damaged_descriptions_are_named(tmp_path):
    write_store(tmp_path, [(SPEC, [numbered_episode(SPEC, 0, 4)])])
    described = (tmp_path / "store.json").read_text()
    (tmp_path / "store.json").write_text(described[:50])
    with pytest.raises(DatasetError, match=r"store\.json is not JSON .* pack again"):
        TaskStore.open(tmp_path)
    (tmp_path / "store.json").write_text(described)
    (tmp_path / "tasks.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"tasks\.json is not JSON"):
        TaskStore.open(tmp_path)


@pytest.mark.parametrize("discount", [1.0, -0.1, float("nan")])
def test_a_discount_that_sums_no_returns_is_refused(discount):
    with pytest.raises(TaskError, match=r"discount must lie in \[0, 1\)"):
        TaskSpec("toy/a", 2, 1, 50, discount=discount)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 5, 11], np.int32)}, r"offsets is int32 \[3\], expected int64 \[3\]"),
        ({"offsets": np.array([1, 5, 11])}, "offsets must rise from 0 by at least two rows"),
        ({"offsets": np.array([0, 10, 11])}, "offsets must rise from 0 by at least two rows"),
        ({"offsets": np.array([0, 5, 12])}, "holds 10 transitions, store.json says 9"),
        ({"terminated": np.array([True, True])}, "holds 2 terminated, store.json says 1"),
        ({"terminated": np.array([True])}, r"terminated is bool \[1\], expected bool \[2\] for the 2 episodes"),
        ({"returns": np.zeros((2, 1))}, r"returns is float64 \[2, 1\], expected float64 \[2\]"),
        ({"returns": np.array([None, 1])}, "declares"),
    ],
)
def test_episodes_that_are_not_those_of_the_store_are_refused(tmp_path, changes, message):
    write_store(tmp_path, [(SPEC, [numbered_episode(SPEC, 0, 4, terminated=True), numbered_episode(SPEC, 1, 5)])])
    path = tmp_path / SPEC.slug / "episodes.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | changes))
    with pytest.raises(DatasetError, match=message) as caught:
        TaskStore.open(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action_kind", "continous"), ("score_kind", 3), ("terminates", "yes"), ("reports_success", 1),
        ("observation_dim", 2.0), ("episode_length", True), ("action_dim", "2"), ("score_random", "low"),
        ("score_expert", float("inf")), ("environment", []), ("name", ".."), ("name", ""), ("name", 5),
    ],
)  # fmt: skip
def test_a_task_with_a_field_of_another_kind_is_refused(field, value):
    with pytest.raises(
        TaskError, match="task name must be" if field == "name" else f"task 'toy/point': {field} must be"
    ):
        TaskSpec.from_dict(SPEC.to_dict() | {"name": "toy/point", field: value})
