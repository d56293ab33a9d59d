"""D3rlpyFormat: what `ReplayBuffer.dump` writes."""

import h5py
import numpy as np
import pytest
from orrery.datasets.formats.sources import open_reader
from orrery.pipeline.errors import DatasetError


def episodes(parts: int = 1):
    """Three episodes of 6 to 8 steps; the second terminates."""
    rng = np.random.default_rng(0)
    return [
        {
            "observations": [rng.normal(size=(6 + i, 3)).astype(np.float32) for _ in range(parts)],
            "actions": rng.uniform(-1, 1, size=(6 + i, 2)).astype(np.float32),
            "rewards": np.arange(6.0 + i)[:, None],
            "terminated": i == 1,
        }
        for i in range(3)
    ]


def dump_by_hand(path, given):
    """As d3rlpy 2.8 writes it; its own file is compared with this below, where it is installed."""
    with h5py.File(path, "w") as file:
        file["columns"], file["num_episodes"], file["version"] = list(given[0]), len(given), "2.1"
        for i, episode in enumerate(given):
            for name, value in episode.items():
                parts = value if isinstance(value, list) else [value]
                for j, part in enumerate(parts):
                    file[f"{name}_{i}" + (f"_{j}" if len(parts) > 1 else "")] = part
    return path


def dump_by_d3rlpy(path, given):
    dataset = pytest.importorskip("d3rlpy.dataset", exc_type=ImportError)
    made = [
        dataset.Episode(**{**one, "observations": one["observations"][0] if len(one["observations"]) == 1
                           else one["observations"]})
        for one in given
    ]  # fmt: skip
    with path.open("w+b") as file:
        dataset.ReplayBuffer(dataset.InfiniteBuffer(), episodes=made).dump(file)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dump", [dump_by_hand, dump_by_d3rlpy])
def test_an_episode_is_read_with_its_end(dump, parts, tmp_path):
    given = episodes(parts)
    reader = open_reader(dump(tmp_path / "replay.h5", given))
    found = list(reader)
    # Without an observation after the last step, a truncated episode loses that step.
    assert [len(episode) for episode in found] == [5, 7, 7]
    assert [episode.terminated for episode in found] == [False, True, False]
    joined = np.concatenate(given[1]["observations"], axis=1)
    np.testing.assert_array_equal(found[1].observations, np.concatenate([joined, joined[-1:]]))
    np.testing.assert_array_equal(found[2].rewards, np.arange(7))
    assert (reader.name, reader.task.observation_dim, reader.source["format"]) == ("d3rlpy/replay", 3 * parts, "d3rlpy")
    assert found[2].label.endswith("replay.h5:episode_2")


def test_discrete_actions_and_missing_episodes(tmp_path):
    given = [{**one, "actions": np.arange(len(one["actions"]))[:, None] % 4} for one in episodes()]
    assert open_reader(dump_by_hand(tmp_path / "discrete.h5", given)).task.action_dim == 4
    path = dump_by_hand(tmp_path / "cut.h5", episodes())
    with h5py.File(path, "a") as file:
        del file["actions_2"]
    with pytest.raises(DatasetError, match=r"states 3 episodes, but holds actions_0 to actions_1.*dump the buffer"):
        open_reader(path)
    with h5py.File(path, "a") as file:
        del file["num_episodes"], file["rewards_1"]
    with pytest.raises(DatasetError, match=r"episode_1: has no column 'rewards', which the first episode has"):
        open_reader(path)
