"""LeRobotFormat and ParquetFormat: datasets of v2.1 and v3.0, single files, and what is refused.

tests/golden has the data files of the same episodes as lerobot writes them (0.3.3: v2.1; 0.4.4: v3.0), by
LeRobotDataset.create, add_frame and save_episode. The others follow them, with what a test needs.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from orrery.datasets.formats.sources import dataset_files, open_reader
from orrery.pipeline.errors import DatasetError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

GOLDEN = Path(__file__).parents[1] / "golden"
LENGTHS = (6, 5)
FRAME = np.arange(sum(LENGTHS))
EPISODE = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
LAST = np.isin(FRAME, np.cumsum(LENGTHS) - 1)


def feature(dtype, *shape, names=None):
    return {"dtype": dtype, "shape": shape, "names": names}


def dataset(root: Path, version: str = "v3.0", features=None, info=None, **columns) -> Path:
    """Two episodes of 6 and 5 frames; frame t has state (t, -t), action t / 10 and reward t."""
    lists = pa.FixedSizeListArray.from_arrays if version == "v3.0" else None
    states = np.stack([FRAME, -FRAME], axis=1).astype(np.float32)
    state = lists(pa.array(states.reshape(-1)), 2) if lists else pa.array(states.tolist(), pa.list_(pa.float32()))
    everything = {
        "observation.state": state,
        "action": pa.array([[t / 10, 0] for t in FRAME], pa.list_(pa.float32())),
        "next.reward": FRAME.astype(np.float32),
        "next.done": LAST,
        "next.success": EPISODE == 1,
        "timestamp": (FRAME / 10).astype(np.float32),
        "frame_index": FRAME,
        "episode_index": EPISODE,
        "index": FRAME,
        "task_index": FRAME * 0,
    } | columns
    table = pa.table({name: values for name, values in everything.items() if values is not None})
    folder = root / "data" / "chunk-000"
    folder.mkdir(parents=True)
    if version == "v3.0":
        pq.write_table(table, folder / "file-000.parquet")
    else:
        for episode in range(len(LENGTHS)):
            pq.write_table(table.filter(pa.array(episode == EPISODE)), folder / f"episode_{episode:06d}.parquet")
    described = {
        "observation.state": feature("float32", 2, names={"motors": ["x", "y"]}),
        "observation.images.top": feature("video", 96, 96, 3, names=["height", "width", "channels"]),
        "action": feature("float32", 2, names=["left", "right"]),
    }
    stated = {"codebase_version": version, "total_frames": len(FRAME), "total_tasks": 1}
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(stated | {"features": features or described} | (info or {})))
    return root


@pytest.mark.parametrize("written", ["lerobot_v21", "lerobot_v3", "v2.1", "v3.0"])
def test_both_versions_hold_the_same_episodes(written, tmp_path):
    path = tmp_path / "pusht"
    if written.startswith("lerobot"):
        path = shutil.copytree(GOLDEN / written, path)
    else:
        dataset(path, written)
    reader = open_reader(path)
    first, second = reader
    # The observation after the last frame is not stored, so an episode loses its last transition.
    np.testing.assert_array_equal(first.observations[:, 0], [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(second.rewards, [6, 7, 8, 9])
    np.testing.assert_allclose(second.actions[:, 0], [0.6, 0.7, 0.8, 0.9], rtol=1e-6)
    assert (first.terminated, second.terminated) == (False, False)
    assert (first.success.any(), second.success.all()) == (False, True)
    assert (reader.name, reader.source["format"]) == ("lerobot/pusht", "lerobot")
    assert reader.source["columns"] == ["observation.state.x", "observation.state.y"]
    assert dataset_files(path)[0] == path / "meta/info.json"
    assert len(dataset_files(path)) == (2 if written in ("v3.0", "lerobot_v3") else 3)
    assert reader.warnings == []


def test_done_before_the_time_limit_is_a_termination(tmp_path):
    reader = open_reader(dataset(tmp_path / "a", **{"next.done": LAST & (EPISODE == 1)}))
    assert [(len(episode), episode.terminated) for episode in reader] == [(5, False), (5, True)]


def test_data_of_a_robot_has_no_rewards(tmp_path):
    path = dataset(
        tmp_path / "so100",
        info={"total_tasks": 2, "total_frames": 99},
        features={"observation.state": feature("float32", 2), "observation.effort": feature("float32", 1)},
        **{"next.reward": None, "next.done": None, "next.success": None, "observation.effort": FRAME * 0.5},
    )
    reader = open_reader(path)
    assert not next(iter(reader)).rewards.any()
    said = "\n".join(reader.warnings)
    for part in ("no column of rewards", "not read: observation.effort", "2 tasks", "states 99 frames", "hold 11"):
        assert part in said
    columns = {"observation": ["observation.state", "observation.effort"], "action": "action", "reward": None,
               "episode": "episode_index"}  # fmt: skip
    assert open_reader(path, columns=columns).task.observation_dim == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": None}, r"no action column 'action' in /, which has .*observation.state"),
        (
            {"observation.state": None, "features": {"observation.image": feature("video", 96, 96, 3)}},
            r"no state column: expected observation.state .*found observation.image \(video\).*pixels",
        ),
        (
            {"action": pa.array([[0.0] * (2 + e) for e in EPISODE])},
            r"column 'action' has rows of 3 numbers, in .* of 2; expected the same number in every row",
        ),
        ({"info": {"codebase_version": "v1.6"}}, "is a LeRobot dataset of version v1.6; expected v2.0, v2.1 or v3.0"),
        ({"action": pa.array(["left"] * len(FRAME))}, r"column 'action' holds text or records"),
    ],
)
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_what_cannot_be_packed_is_said(changes, message, version, tmp_path):
    with pytest.raises(DatasetError, match=rf"set.*: {message}|set.*{message}"):
        open_reader(dataset(tmp_path / "set", version, **changes))


def test_incomplete_downloads(tmp_path):
    path = dataset(tmp_path / "a", "v2.1")
    data = path / "data/chunk-000/episode_000001.parquet"
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"episode_000001.parquet cannot be read .*download or write it again"):
        open_reader(path)
    data.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DatasetError, match=r"episode_000001.parquet: is a Git LFS pointer.*git lfs pull"):
        open_reader(path)
    (path / "meta/info.json").unlink()
    with pytest.raises(DatasetError, match=r"has data files of a LeRobot dataset but no meta/info\.json"):
        open_reader(path)
    (dataset(tmp_path / "b") / "data/chunk-000/file-000.parquet").unlink()
    with pytest.raises(DatasetError, match=r"has no data/chunk-000/\*.parquet, only meta/info.json"):
        open_reader(tmp_path / "b")


def test_a_single_parquet_file_by_known_names(tmp_path):
    table = {"observation": np.stack([FRAME, -FRAME], axis=1).tolist(), "action": FRAME / 20, "reward": FRAME * 1.0,
             "truncated": LAST, "note": ["a"] * len(FRAME)}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "arm.parquet")
    reader = open_reader(tmp_path / "arm.parquet")
    assert [len(episode) for episode in reader] == [5, 4]
    assert (reader.name, reader.task.observation_dim) == ("parquet/arm", 2)
