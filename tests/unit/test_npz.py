"""NpzFormat: OGBench's files and what its loader makes of them, any archive by a column map, and what is refused."""

import numpy as np
import pytest
from orrery.datasets.formats.sources import dataset_files, open_reader
from orrery.pipeline.errors import DatasetError

from .hdf5_files import flat_columns

ROW = np.arange(10.0, dtype=np.float32)


def ogbench(path, **changes):
    """Two trajectories of four transitions as OGBench stores them: five rows each, the last with the final state."""
    columns = {
        "observations": np.stack([ROW, -ROW], axis=1),
        "actions": np.stack([ROW / 10], axis=1),
        "terminals": ROW % 5 == 4,
        "qpos": np.zeros((10, 3)),
    }
    np.savez_compressed(path, **{key: value for key, value in (columns | changes).items() if value is not None})
    return path


def check_two_trajectories(reader, terminated=(False, False)):
    first, second = reader
    np.testing.assert_array_equal(first.observations[:, 0], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(second.observations[:, 1], [-5, -6, -7, -8, -9])
    np.testing.assert_allclose(first.actions[:, 0], [0, 0.1, 0.2, 0.3], rtol=1e-6)
    assert (first.terminated, second.terminated) == terminated


def test_a_file_of_ogbench_has_final_rows_and_no_rewards(tmp_path):
    path = ogbench(tmp_path / "cube-play-v0.npz")
    reader = open_reader(path)
    check_two_trajectories(reader)
    assert (reader.name, dataset_files(path)) == ("npz/cube-play-v0", [path])
    assert reader.source["columns"] == ["observations[0]", "observations[1]"]
    assert not next(iter(reader)).rewards.any()
    assert any("no column of rewards" in said for said in reader.warnings)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("rewarded", [True, False])
def test_what_its_loader_returns_is_the_same_data(compact, rewarded, tmp_path):
    utils = pytest.importorskip("ogbench.utils", exc_type=ImportError)
    data = utils.load_dataset(ogbench(tmp_path / "raw.npz"), compact_dataset=compact)
    if rewarded:  # as `relabel_dataset` adds them: the second trajectory reaches the goal in its last state
        reached = data["observations" if compact else "next_observations"][:, 0] == 9
        data |= {"rewards": reached - 1.0, "masks": 1.0 - reached}
    np.savez(tmp_path / "loaded.npz", **data)
    reader = open_reader(tmp_path / "loaded.npz", columns=None if rewarded or compact else NO_REWARD)
    check_two_trajectories(reader, (False, rewarded))


NO_REWARD = {"reward": None, "last": "terminals", "observation": "observations", "action": "actions"}


def test_any_archive_by_a_column_map_and_by_names_that_are_known(tmp_path):
    np.savez(tmp_path / "d4rl.npz", **flat_columns())
    names = {
        "obs/place": "observations",
        "obs/next_place": "next_observations",
        "torque": "actions",
        "score": "rewards",
    }
    own = {name: flat_columns()[key] for name, key in names.items()} | {"end": flat_columns()["terminals"]}
    np.savez(tmp_path / "own.npz", **own, note="text", episode_ends=[7, 12])
    known = open_reader(tmp_path / "d4rl.npz")
    mapped = open_reader(
        tmp_path / "own.npz",
        columns={"observation": "obs/place", "action": "torque", "reward": "score", "terminated": "end",
                 "ends": "episode_ends"},
    )  # fmt: skip
    for ours, theirs in zip(mapped, known, strict=True):
        np.testing.assert_array_equal(ours.observations, theirs.observations)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
        assert ours.terminated == theirs.terminated


def test_pickled_objects_and_damaged_archives_are_refused(tmp_path):
    ragged = np.array([np.zeros((3, 2)), np.zeros((4, 2))], dtype=object)
    path = ogbench(tmp_path / "ragged.npz", observations=ragged)
    with pytest.raises(DatasetError, match=r"ragged.npz: array 'observations' holds pickled Python objects.*not read"):
        open_reader(path)
    assert len(open_reader(ogbench(tmp_path / "info.npz", info=np.array({"a": 1}, dtype=object)))) == 2
    damaged = ogbench(tmp_path / "damaged.npz")
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"damaged.npz cannot be read.*download or write it again"):
        open_reader(damaged)
    with pytest.raises(DatasetError, match=r"images.npz: observation column 'observations' has shape .*like images"):
        open_reader(ogbench(tmp_path / "images.npz", observations=np.zeros((10, 8, 8, 3), np.uint8)))
    with pytest.raises(DatasetError, match=r"layout not recognised.*found observations, terminals, qpos"):
        open_reader(ogbench(tmp_path / "states.npz", actions=None))
