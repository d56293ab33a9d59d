"""A leading `~` means the home folder wherever a path is given: shells leave it after `key=` and in quotes."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from orrery.datasets.datamodule import WindowData, WindowSettings
from orrery.datasets.formats.columns import ColumnMap
from orrery.datasets.formats.minari_folder import minari_root
from orrery.datasets.store import TaskStore
from orrery.pipeline.cli import main
from orrery.pipeline.config.load import discover_stages
from orrery.pipeline.errors import CheckpointError, OrreryError
from orrery.pipeline.study.config import load_study
from orrery.pipeline.study.rounds import load_rounds
from orrery.stages.policy.policy import load_policy
from orrery.stages.sequence_model.kinds import load_model
from orrery.stages.world_model.networks import WorldModel

from .stores import point_mass_episodes, point_mass_spec, write_store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home folder; the working directory is another."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    yield home
    assert not list(elsewhere.iterdir())


@pytest.fixture
def arm(home: Path) -> Path:
    random, path = np.random.default_rng(0), home / "arm.hdf5"
    with h5py.File(path, "w") as file:
        file["state"] = random.normal(size=(60, 2))
        file["actions"] = random.uniform(-1, 1, (60, 1))
        file["rewards"] = np.ones(60)
        file["timeouts"] = np.arange(60) % 20 == 19
    (home / "map.yaml").write_text("observation: state\naction: actions\nreward: rewards\ntruncated: timeouts\n")
    return path


@pytest.mark.parametrize(
    "words",
    [
        ("tasks=[lab/arm]", "pack.sources.lab/arm.path=~/arm.hdf5", "pack.sources.lab/arm.columns=~/map.yaml"),
        ("tasks=['lab/arm']", "pack.sources={lab/arm: {path: ~/arm.hdf5, columns: ~/map.yaml}}"),
    ],
)
def test_commands_and_their_settings(
    arm: Path, home: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("offline", "stages=[pack]", "run_dir=~/run", *words)
    assert main(["run", *words]) == 0
    assert (home / "run" / "pack" / "store.json").is_file()
    assert main(["plan", *words, "inputs.datasets=~/none"]) == 2  # expanded too, which the message shows
    assert f"no folder {home}/none" in capsys.readouterr().err
    assert main(["status", "~/run"]) == main(["inspect", "~/run/pack"]) == main(["inspect", "~/run"]) == 0


def test_a_user_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["status", "~no-such-user/run"], ["push", "~no-such-user/run", "me/it"]):
        assert main(words) == 2
        assert (
            "error: ~no-such-user/run: no home folder of that user; write the path in full" in capsys.readouterr().err
        )


def test_a_dataset_named_by_its_path(arm: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(arm, "a") as file:
        file.move("state", "observations")
    assert main(["run", "offline", "stages=[pack]", "run_dir=~/run", "tasks=[~/arm.hdf5]"]) == 0
    assert TaskStore.open("~/run/pack").table.names == ("hdf5/arm",)
    assert main(["inspect", "~/arm.hdf5"]) == 0


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("import_tdmpc2", "import_tdmpc2.checkpoint"),
        ("from_checkpoint", "world_model"),
        ("offline", "pretrain.start_from"),
        ("quickstart", "collect.policy"),
        ("offline", "pack.sources.mt30.path"),
    ],
)
def test_what_is_missing_is_named_in_full(
    home: Path, command: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [] if command == "import_tdmpc2" else ["tasks=[dmc/walker-run]"]
    assert main(["plan", command, f"{key}=~/nothing/there", *tasks]) == 2
    assert f"{home}/nothing/there" in capsys.readouterr().err


def test_studies_and_iterations(home: Path) -> None:
    (home / "mine.yaml").write_text("stages: [pack]\n")
    (home / "study.yaml").write_text("experiment: ~/mine.yaml\ngrid: {seed: [0, 1]}\n")
    study = load_study("~/study.yaml", ["run_dir=~/study"])
    assert (study.run_dir, study.experiment) == (home / "study", str(home / "mine.yaml"))
    assert load_rounds("quickstart", ["run_dir=~/rounds", "rounds=1"], discover_stages()).run_dir == home / "rounds"


def test_python_functions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = point_mass_spec()
    write_store(home / "store", [(spec, point_mass_episodes(spec, 2))])
    assert TaskStore.open("~/store").table.names == (spec.name,)
    windows = WindowData("~/store", WindowSettings(3, 2, 0, 0.0, 3, 1)).training_windows()
    assert windows.batch(0)["reward"].shape == (2, 3)
    for load in (load_policy, load_model, WorldModel.load):
        with pytest.raises(CheckpointError, match=str(home / "none")):
            load("~/none")
    with pytest.raises(OrreryError, match=f"{home}/none"):
        ColumnMap.load("~/none")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "~/data")
    assert minari_root() == home / "data"
