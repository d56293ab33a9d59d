"""TD-MPC2's chunks: what becomes an episode, what is refused, and how the stage pack streams and resumes them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from orrery.datasets.formats.sources import open_reader
from orrery.datasets.formats.tdmpc2 import Tdmpc2Reader, chunk_files, find_rows
from orrery.datasets.store import TaskStore
from orrery.datasets.tasks.tdmpc2 import MT30
from orrery.datasets.validate import Findings, validate
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import ConfigError, DatasetError, StageError
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.data.config import PackConfig, SourceConfig
from orrery.stages.data.stage_pack import Pack
from rich.console import Console

from .chunks import cut, joined, meet, task_rows, write_chunks

PENDULUM, CARTPOLE, ACROBOT = "dmc/pendulum-swingup", "dmc/cartpole-balance", "dmc/acrobot-swingup"
REACH = "metaworld/reach-v3"


@pytest.fixture
def mt30(tmp_path):
    """Two chunks: 3 rows of pendulum and 2 of cartpole; 4 more of cartpole and 2 of acrobot."""
    pendulum, acrobot = task_rows("mt30", PENDULUM, 3), task_rows("mt30", ACROBOT, 2, filler=1e30)
    cartpole = task_rows("mt30", CARTPOLE, 6, seed=1)
    write_chunks(tmp_path / "mt30", joined(pendulum, cut(cartpole, 0, 2)), joined(cut(cartpole, 2), acrobot))
    return {"folder": tmp_path / "mt30", PENDULUM: pendulum, CARTPOLE: cartpole, ACROBOT: acrobot}


def reader(folder, name, task_set="mt30"):
    return Tdmpc2Reader(folder, task_set=task_set, name=name)


def test_a_row_becomes_an_episode_without_its_filler(mt30):
    found = reader(mt30["folder"], ACROBOT)
    assert (found.task.observation_dim, found.task.action_dim, found.behaviour) == (6, 1, "exploration")
    rows = mt30[ACROBOT]
    for index, episode in enumerate(found):
        assert len(episode) == 500
        np.testing.assert_array_equal(episode.observations, rows["obs"][index, :, :6])
        np.testing.assert_array_equal(episode.actions, rows["action"][index, 1:, :1])
        np.testing.assert_array_equal(episode.rewards, rows["reward"][index, 1:])
        assert not episode.terminated
        assert episode.success is None
        assert episode.label == f"{mt30['folder'] / 'chunk_1.pt'}:row {4 + index}"
    assert len(found) == 2


def test_rows_of_a_task_come_from_all_chunks_in_order(mt30):
    found = reader(mt30["folder"], CARTPOLE)
    np.testing.assert_array_equal([e.observations for e in found], mt30[CARTPOLE]["obs"][..., :5])
    assert found.source["rows"] == {"chunk_0.pt": 2, "chunk_1.pt": 4}
    json.dumps(found.source)


def test_tasks_may_come_in_any_order_and_several_times(tmp_path):
    pendulum, cartpole = task_rows("mt30", PENDULUM, 3), task_rows("mt30", CARTPOLE, 3)
    mixed = joined(*[cut(rows, i, i + 1) for i in range(3) for rows in (cartpole, pendulum)])
    folder = write_chunks(tmp_path / "mt30", mixed)
    np.testing.assert_array_equal([e.rewards for e in reader(folder, PENDULUM)], pendulum["reward"][:, 1:])


def test_chunks_are_ordered_by_number(tmp_path):
    for number in (10, 9, 0):
        (tmp_path / f"chunk_{number}.pt").touch()
    (tmp_path / "chunk_1.pt.tmp").touch()
    assert [path.name for path in chunk_files(tmp_path)] == ["chunk_0.pt", "chunk_9.pt", "chunk_10.pt"]


def test_a_legacy_file_is_read_as_well(mt30, tmp_path):
    folder = write_chunks(tmp_path / "legacy", task_rows("mt30", PENDULUM, 2), legacy=True)
    assert [len(episode) for episode in reader(folder, PENDULUM)] == [500, 500]


def mt80_lengths(tmp_path, groups, *, chunks=1, name=PENDULUM):
    rows = meet(task_rows("mt80", name, sum(groups)), groups)
    size = -(-sum(groups) // chunks)
    folder = write_chunks(tmp_path / "mt80", *[cut(rows, i * size, (i + 1) * size) for i in range(chunks)])
    return rows, list(reader(folder, name, "mt80"))


def test_five_rows_that_meet_are_one_episode(tmp_path):
    rows, (first, second) = mt80_lengths(tmp_path, [5, 5])
    assert (len(first), len(second)) == (500, 500)
    for index, episode in enumerate((first, second)):
        of_episode = cut(rows, 5 * index, 5 * index + 5)
        np.testing.assert_array_equal(episode.observations[:101], of_episode["obs"][0, :, :3])
        np.testing.assert_array_equal(episode.observations[400:], of_episode["obs"][4, :, :3])
        np.testing.assert_array_equal(episode.observations[200:301], of_episode["obs"][2, :, :3])
        np.testing.assert_array_equal(episode.actions, of_episode["action"][:, 1:, :1].reshape(500, 1))
        np.testing.assert_array_equal(episode.rewards, of_episode["reward"][:, 1:].reshape(500))
    assert second.label.endswith("chunk_0.pt:row 5 to 9")


@pytest.mark.parametrize(
    ("groups", "lengths"),
    [
        ([1, 1, 1], [100, 100, 100]),  # not cut from longer ones, or shuffled
        ([2, 5, 3], [200, 500, 300]),  # starts and ends within an episode
        ([7], [500, 200]),  # never longer than an episode
        ([1, 4, 5], [100, 400, 500]),
    ],
)
def test_only_rows_that_meet_are_joined(tmp_path, groups, lengths):
    assert [len(episode) for episode in mt80_lengths(tmp_path, groups)[1]] == lengths


def test_an_episode_may_run_over_the_end_of_a_chunk(tmp_path):
    rows, episodes = mt80_lengths(tmp_path, [5, 5, 2], chunks=3)
    assert [len(episode) for episode in episodes] == [500, 500, 200]
    assert episodes[0].label.endswith("chunk_0.pt:row 0 to chunk_1.pt:row 0")
    np.testing.assert_array_equal(episodes[0].observations[400:], rows["obs"][4, :, :3])


def test_rows_that_are_whole_episodes_are_not_joined(tmp_path):
    assert [len(episode) for episode in mt80_lengths(tmp_path, [3], name=REACH)[1]] == [100, 100, 100]


def test_parts_of_episodes_are_warned_about(tmp_path):
    _, episodes = mt80_lengths(tmp_path, [5, 1, 1])
    findings = Findings()
    list(validate(episodes, reader(tmp_path / "mt80", PENDULUM, "mt80").task, 5, findings))
    assert findings.warnings == [
        "2 of 3 episodes are shorter than the task's 500 steps: their returns, and so the score of the data's "
        "behaviour, cover only part of an episode"
    ]


def changed(**changes):
    """A chunk in which some arrays are replaced, or left out where None."""
    rows = task_rows("mt30", PENDULUM, 2) | changes
    return {key: value for key, value in rows.items() if value is not None}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            task_rows("mt80", PENDULUM, 2),
            r"chunk_0\.pt: is not a chunk of mt30: expected obs \[rows, 501, 24\].* found obs \[2, 101, 39\] float32",
        ),
        (
            changed(reward=None),
            r"found obs \[[^\]]*\] float32, action \[[^\]]*\] float32, task \[[^\]]*\] int32\. Only",
        ),
        (changed(episode=np.zeros((2, 501))), r"found .*, episode \[2, 501\] float64\. "),
        (
            changed(action=np.zeros((2, 501, 4), np.float32)),
            r"expected .*action \[rows, 501, 6\].*found .*action \[2, 501, 4\]",
        ),
        (
            changed(reward=np.zeros((2, 501))),
            r"reward \[rows, 501\].*found .*reward \[2, 501\] float64",
        ),
        (changed(task=np.zeros((2, 501), np.float32)), r"task in int32 .*found .*task \[2, 501\] float32"),
        (changed(task=np.full((2, 501), 30, np.int32)), r"chunk_0\.pt:row 0: task 30, expected 0 to 29 in mt30"),
        (changed(task=np.full((2, 501), -1, np.int32)), r"row 0: task -1, expected 0 to 29"),
        (
            changed(task=np.repeat(np.int32([[7], [8]]), 501, 1)[:, ::-1] + np.eye(2, 501, dtype=np.int32)),
            "of the tasks",
        ),
    ],
)
def test_a_chunk_that_is_not_as_published_is_refused(tmp_path, rows, message):
    folder = write_chunks(tmp_path / "mt30", {**rows, "task": rows["task"]})
    with pytest.raises(DatasetError, match=message):
        find_rows(folder, "mt30", [PENDULUM])


def test_the_last_chunk_is_checked_before_the_first_is_read(mt30, monkeypatch):
    write = mt30["folder"] / "chunk_7.pt"
    torch.save({"obs": torch.zeros(1)}, write)
    monkeypatch.setattr("orrery.datasets.formats.tdmpc2._task_ids", lambda *_: pytest.fail("read"))
    with pytest.raises(DatasetError, match=r"chunk_7\.pt: is not a chunk of mt30: expected obs .*; found obs \[1\]"):
        find_rows(mt30["folder"], "mt30", [PENDULUM])


def test_other_refusals(mt30, tmp_path):
    with pytest.raises(DatasetError, match=r"no chunk_0\.pt, chunk_1\.pt, \.\.\. there"):
        find_rows(tmp_path, "mt30", [PENDULUM])
    with pytest.raises(DatasetError, match=rf"no rows of {MT30[0]} in chunk_0\.pt, chunk_1\.pt"):
        find_rows(mt30["folder"], "mt30", [MT30[0], PENDULUM])
    with pytest.raises(DatasetError, match="TD-MPC2's mt30 has no task 'metaworld/reach-v3'"):
        reader(mt30["folder"], REACH)
    with pytest.raises(DatasetError, match=r"pack\.sources\.mt30\.path="):
        open_reader(mt30["folder"])
    rows = task_rows("mt30", ACROBOT, 2)
    folder = write_chunks(tmp_path / "renamed", rows | {"task": np.full((2, 501), MT30.index(PENDULUM), np.int32)})
    with pytest.raises(DatasetError, match=r"has 3 observation columns, but those from 3 on are not zero"):
        list(reader(folder, PENDULUM))


def test_nan_after_the_filler_is_refused_with_its_place(tmp_path):
    rows = task_rows("mt30", PENDULUM, 2)
    rows["reward"][1, 7] = np.nan
    found = reader(write_chunks(tmp_path / "mt30", rows), PENDULUM)
    with pytest.raises(DatasetError, match=r"chunk_0\.pt:row 1: reward at t = 6 is nan"):
        list(validate(found, found.task, 5))


# The stage.


def pack(folder: Path, workers=1, **config):
    context = Context(
        folder, {"datasets": ()}, workers, 1, logging.getLogger("test"), ConsoleProgress(Console(quiet=True))
    )
    folder.mkdir(exist_ok=True)
    stage = Pack(PackConfig(**config))
    stage.check()
    return stage.run(context)


def sources(folder, name="mt30", **settings):
    return {name: SourceConfig(path=str(folder), **settings)}


def test_the_store_holds_the_tasks_that_were_asked_for(mt30, tmp_path, caplog):
    names = [ACROBOT, CARTPOLE]
    summary = pack(tmp_path / "store", tasks=names, sources=sources(mt30["folder"]))
    assert summary == "4,000 transitions of 2 tasks"
    store = TaskStore.open(tmp_path / "store")
    assert list(store.table.names) == names
    for task, width in zip(store.tasks, (6, 5), strict=True):
        rows = mt30[task.spec.name]
        found = task.rows.numpy().reshape(-1, 501, 6 + 1 + 1)
        np.testing.assert_array_equal(found[:, :, :width], rows["obs"][..., :width])
        np.testing.assert_array_equal(found[:, :-1, 6], rows["action"][:, 1:, 0])
        np.testing.assert_array_equal(found[:, :-1, 7], rows["reward"][:, 1:])
        assert not found[:, -1, 6:].any()
        assert task.summary.behaviour == "exploration"
        assert not task.terminated.any()
    assert "found 2 of the 4 chunks of mt30" in caplog.text


def test_a_set_and_other_tasks_share_a_store_and_aliases_work(mt30, tmp_path):
    rows = task_rows("mt80", REACH, 2)
    folder = write_chunks(tmp_path / "mt80", joined(rows, meet(task_rows("mt80", PENDULUM, 5), [5])))
    pack(
        tmp_path / "store", tasks=["mw-reach", "pendulum-swingup"], sources=sources(folder, "mt80", behaviour="policy")
    )
    store = TaskStore.open(tmp_path / "store")
    assert store.table.names == (REACH, PENDULUM)
    assert [task.lengths.tolist() for task in store.tasks] == [[100, 100], [500]]
    assert {task.summary.behaviour for task in store.tasks} == {"policy"}
    assert store.tasks[0].summary.success_rate is None


def test_without_tasks_the_whole_set_is_packed_and_has_to_be_there(mt30, tmp_path):
    with pytest.raises(
        DatasetError, match=r"no rows of dmc/walker-stand, dmc/walker-walk, dmc/walker-run and 24 more tasks in"
    ):
        pack(tmp_path / "store", sources=sources(mt30["folder"]))
    parts = [task_rows("mt30", name, 1, seed) for seed, name in enumerate(MT30)]
    folder = write_chunks(tmp_path / "whole", joined(*parts[:11]), joined(*parts[11:]))
    pack(tmp_path / "store", sources=sources(folder))
    assert TaskStore.open(tmp_path / "store").table.names == MT30


def test_what_the_stage_reads_are_the_chunks(mt30):
    stage = Pack(PackConfig(tasks=[PENDULUM], sources=sources(mt30["folder"])))
    assert stage.reads() == [mt30["folder"] / "chunk_0.pt", mt30["folder"] / "chunk_1.pt"]


def test_the_command_line_names_a_set_by_its_folder(mt30):
    overrides = [f"pack.sources.mt30.path={mt30['folder']}", "tasks=[pendulum-swingup]"]
    config = load_config("offline", overrides, stages=discover_stages()).stage_configs["pack"]
    assert (config.task_set, config.names, config.sources["mt30"].path) == ("mt30", [PENDULUM], str(mt30["folder"]))


def test_settings_that_do_not_fit_a_set_are_refused(mt30, tmp_path):
    folder = mt30["folder"]
    with pytest.raises(ConfigError, match=r"pack\.sources\.mt30: only path and behaviour apply"):
        PackConfig(sources=sources(folder, episode_length=3))
    with pytest.raises(ConfigError, match=r"names 'mt30', of which no task is in tasks: metaworld/reach-v3"):
        PackConfig(tasks=[REACH], sources=sources(folder))
    with pytest.raises(ConfigError, match=r"names mt30 and mt80, which share tasks"):
        PackConfig(sources=sources(folder) | sources(folder, "mt80"))
    with pytest.raises(DatasetError, match=r"no chunk_0\.pt"):
        Pack(PackConfig(sources=sources(tmp_path))).check()
    with pytest.raises(StageError, match=rf"no data for '{ACROBOT}'.*pack\.sources\.{ACROBOT}\.path"):
        pack(tmp_path / "store", tasks=[ACROBOT])


def test_a_source_of_its_own_goes_before_the_set(mt30, tmp_path):
    import h5py

    with h5py.File(tmp_path / "own.hdf5", "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        file["actions"], file["rewards"] = np.full((6, 1), 0.5, np.float32), np.ones(6, np.float32)
        file["terminals"], file["timeouts"] = np.zeros(6, bool), np.arange(6) == 5
    own = sources(tmp_path / "own.hdf5", PENDULUM, behaviour="expert")
    pack(tmp_path / "store", tasks=[PENDULUM, ACROBOT], sources=sources(mt30["folder"]) | own)
    store = TaskStore.open(tmp_path / "store")
    assert [task.lengths.tolist() for task in store.tasks] == [[5], [500, 500]]


PACKING = """
import logging, os, resource, sys
from pathlib import Path
from orrery.datasets.formats.tdmpc2 import Tdmpc2Reader
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.data.stage_pack import Pack, PackConfig, SourceConfig
from rich.console import Console

def pack(store, folder, tasks):
    Path(store).mkdir()
    progress = ConsoleProgress(Console(quiet=True))
    context = Context(Path(store), {"datasets": ()}, 1, 1, logging.getLogger("test"), progress)
    Pack(PackConfig(tasks=tasks, sources={"mt30": SourceConfig(path=folder)})).run(context)
"""

KILL_AT_ROW = """
left = int(sys.argv.pop())
read = Tdmpc2Reader._observations
def read_or_die(self, row):
    global left
    left -= 1
    return os.kill(os.getpid(), 9) if left < 0 else read(self, row)
Tdmpc2Reader._observations = read_or_die
pack(sys.argv[1], sys.argv[2], sys.argv[3:])
"""

MEASURE = """
for store, folder in zip(sys.argv[2::2], sys.argv[3::2]):
    pack(store, folder, [sys.argv[1]])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def run_script(script, *arguments):
    command = [sys.executable, "-c", PACKING + script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_killed_in_the_middle_of_a_task_it_goes_on_with_that_task(mt30, tmp_path, monkeypatch):
    names = [PENDULUM, CARTPOLE, ACROBOT]
    store = tmp_path / "killed"
    process = run_script(KILL_AT_ROW, store, mt30["folder"], *names, 5)
    assert process.returncode == -9, process.stderr
    finished = store / "dmc.pendulum-swingup" / "rows.f32"
    before = finished.stat()
    assert not (store / "dmc.cartpole-balance").exists()

    read = []
    observations = Tdmpc2Reader._observations
    monkeypatch.setattr(
        Tdmpc2Reader, "_observations", lambda self, row: read.append(self.task.name) or observations(self, row)
    )
    pack(store, tasks=names, sources=sources(mt30["folder"]))
    assert set(read) == {CARTPOLE, ACROBOT}
    assert finished.stat() == before
    pack(tmp_path / "whole", tasks=names, sources=sources(mt30["folder"]))
    files = sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    for path in files:
        assert (store / path).read_bytes() == (tmp_path / "whole" / path).read_bytes(), path


def test_memory_does_not_grow_with_the_number_of_chunks(tmp_path):
    rows = task_rows("mt30", PENDULUM, 150)
    few = write_chunks(tmp_path / "few", rows, rows)
    many = tmp_path / "many"
    many.mkdir()
    for index in range(12):
        (many / f"chunk_{index}.pt").hardlink_to(few / "chunk_0.pt")
    chunk_bytes = (few / "chunk_0.pt").stat().st_size
    process = run_script(MEASURE, PENDULUM, tmp_path / "store_few", few, tmp_path / "store_many", many)
    assert process.returncode == 0, process.stderr
    peak_few, peak_many = map(int, process.stdout.split())
    assert (tmp_path / "store_many" / "dmc.pendulum-swingup" / "rows.f32").stat().st_size == 12 * 150 * 501 * 5 * 4
    assert peak_many - peak_few < chunk_bytes
