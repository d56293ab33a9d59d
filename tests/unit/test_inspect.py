import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from orrery.pipeline import artifact
from orrery.pipeline.cli import main
from safetensors.numpy import save_file

from .toy_stages import STAGES, write_configs


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]):
    def call(path: Path) -> str:
        assert main(["inspect", str(path)]) == 0
        return capsys.readouterr().out

    return call


def test_a_run_and_an_artifact_of_it(inspect, tmp_path: Path, capsys) -> None:
    run_dir = tmp_path / "run"
    main(["run", "toy", f"run_dir={run_dir}"], stages=STAGES, config_dir=write_configs(tmp_path / "configs"))
    capsys.readouterr()

    assert "total 3 (from the start)" in inspect(run_dir)
    shown = inspect(run_dir / "add")
    for part in ("kind", "total", "stage", "add", "input numbers", str(run_dir / "make"), "half.txt"):
        assert part in shown


def test_a_store_shows_its_tasks(inspect, tmp_path: Path, capsys) -> None:
    task = {"task": "dmc/walker-run", "behaviour": "exploration", "episodes": 12, "transitions": 6000}
    others = [{**task, "task": f"dmc/task-{number}"} for number in range(20)]
    (tmp_path / "store.json").write_text(json.dumps({"tasks": [task, *others]}))
    artifact.finish(tmp_path, kind="store", stage="pack", key="", config={}, inputs={}, seconds=1, summary="")
    rows = [line.split() for line in inspect(tmp_path).splitlines()]
    assert ["task", "behaviour", "episodes", "transitions"] in rows
    assert ["dmc/walker-run", "exploration", "12", "6,000"] in rows
    assert ["13", "more"] in rows, "one screen, however many tasks"

    assert main(["inspect", str(tmp_path), "--json"]) == 0
    contents = json.loads(capsys.readouterr().out)
    assert contents["kind"] == "store"
    assert [row["task"] for row in contents["data"]] == [one["task"] for one in (task, *others)]


@pytest.mark.parametrize("name", ["run.json", "policy.json"])
def test_a_file_that_was_cut_short_is_named(name: str, tmp_path: Path, capsys) -> None:
    save_file({"weight": np.zeros(2, np.float32)}, tmp_path / "policy.safetensors")
    (tmp_path / name).write_text('{"stages": [')
    assert main(["inspect", str(tmp_path)]) == 2
    assert f"{tmp_path / name} is not JSON" in capsys.readouterr().err


def test_weights(inspect, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"encoder.weight": np.zeros((3, 4), np.float32), "scale": np.zeros((), np.float64)}, path)
    shown = inspect(path)
    assert ["encoder.weight", "[3,", "4]", "F32", "12"] in [line.split() for line in shown.splitlines()]
    assert "13 numbers in 2 tensors of model.safetensors" in shown


def test_an_hdf5_dataset(inspect, tmp_path: Path) -> None:
    path = tmp_path / "flat.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        file["actions"] = np.full((6, 2), 0.5, np.float32)
        file["rewards"] = np.array([1, 2, 3, 1, 1, 1], np.float32)
        file["terminals"] = np.array([0, 0, 1, 0, 0, 0], bool)
        file["timeouts"] = np.array([0, 0, 0, 0, 0, 1], bool)
    rows = [line.split() for line in inspect(path).splitlines()]
    assert ["episodes", "2"] in rows
    assert ["observation", "3", "numbers"] in rows
    assert ["terminated", "1", "of", "2", "episodes"] in rows
    table = rows[rows.index(["step", "observation", "action", "reward", "next", "observation"]) :]
    assert [(row[0], row[4:7]) for row in table[1:4]] == [
        ("0", ["0.5", "0.5", "1"]),
        ("1", ["0.5", "0.5", "2"]),
        ("2", ["0.5", "0.5", "3"]),
    ]
    assert table[1][7:] == table[2][1:4], "the next observation is that of the next step"


def test_what_is_odd_of_a_dataset_is_shown(inspect, tmp_path: Path) -> None:
    path = tmp_path / "flat.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"], file["rewards"] = np.ones((6, 3)), np.ones((6, 2)), np.ones(6)
        file["next_observations"], file["dones"] = np.ones((6, 3)), np.array([0, 0, 1, 0, 0, 1])
        file["my_end"] = np.array([0, 1, 0, 0, 0, 0])
    shown = " ".join(inspect(path).split())
    assert "seem to mark ends of episodes: my_end" in shown
    assert "2 of the 2 episodes that terminate do so after exactly 3 steps" in shown


def test_episodes_that_pack_refuses_are_named(inspect, tmp_path: Path) -> None:
    path = tmp_path / "flat.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"], file["rewards"] = np.ones((6, 3)), np.ones((6, 2)), np.ones(6)
        file["terminals"] = np.array([0, 0, 1, 0, 0, 1])
        file["observations"][4, 1] = np.nan
    shown = " ".join(inspect(path).split())
    assert "pack refuses 1 of the 2 episodes; the first:" in shown
    assert "observation column 1 (observations[1]) at t = 1 is nan" in shown


def test_what_it_cannot_read_is_said(tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("")
    assert main(["inspect", str(tmp_path / "notes.txt")]) == 2
    assert "also reads runs, artifacts" in capsys.readouterr().err
    (tmp_path / "broken.safetensors").write_text("no")
    assert main(["inspect", str(tmp_path / "broken.safetensors")]) == 2
    assert "broken.safetensors cannot be read" in capsys.readouterr().err
