from pathlib import Path

import pytest
from orrery.pipeline.config import RunConfig, discover_stages, list_experiments, load_config
from orrery.pipeline.errors import ConfigError

from .toy_stages import STAGES, FrameConfig, MakeConfig, write_configs


@pytest.fixture
def load(tmp_path: Path):
    config_dir = write_configs(tmp_path / "configs")

    def load_toy(*overrides: str, experiment: str = "toy") -> RunConfig:
        return load_config(experiment, overrides, stages=STAGES, config_dir=config_dir)

    return load_toy


def test_defaults_wiring_and_overrides(load) -> None:
    config = load("seed=5", "make.size=7", "tasks=[dmc/cartpole-swingup,a/b]", "run_dir=/some where/x=y")

    assert config.stage_configs["make"] == MakeConfig(seed=5, size=7)
    assert list(config.stage_configs) == ["make", "add", "report"]
    assert config.settings.tasks == ["dmc/cartpole-swingup", "a/b"]
    assert config.settings.name == "toy"
    assert config.run_dir == Path("/some where/x=y")
    assert config.resolved["make"] == {"seed": 5, "size": 7, "weights": {}}
    assert config.overrides == ("seed=5", "make.size=7", "tasks=[dmc/cartpole-swingup,a/b]")
    assert load().run_dir == Path("runs/toy")


def test_entries_of_mappings_can_be_set(load) -> None:
    assert load("make.weights.bar=2").stage_configs["make"].weights == {"bar": 2.0}
    assert load("make.weights={dmc/walker-run: 1}").stage_configs["make"].weights == {"dmc/walker-run": 1.0}
    two = load("make.weights.dmc/walker-run=1", "make.weights.dmc/reacher-easy=2")
    assert two.stage_configs["make"].weights == {"dmc/walker-run": 1.0, "dmc/reacher-easy": 2.0}


def test_nested_dataclasses_arrive_frozen_and_typed(load) -> None:
    config = load("report.frame.width=3", "report.frames.my/task.width=4", "report.limit=2").stage_configs["report"]
    assert config.frame == FrameConfig(width=3, sides=(1, 2))
    assert config.frames == {"my/task": FrameConfig(width=4)}
    assert config.limit == 2.0
    assert load("report.frame.sides=[7]").stage_configs["report"].frame.sides == (7,)


@pytest.mark.parametrize(
    "text", ["~/x", "/a b/c=d,'e'", "50%_d#1 (2)", "größe", "it's", "a\\b", "end\\", "a\\'b", "[a", "step=9:10", ""]
)
def test_text_needs_no_quotes(load, text: str) -> None:
    assert load(f"inputs.numbers={text}").settings.inputs == {"numbers": text}
    assert load(f"world_model={text}").settings.world_model == text


def test_home_folders_in_lists_and_mappings_need_no_quotes(load) -> None:
    assert load("tasks=[~/a.h5, ~me/b c.h5,'~/d.h5']").settings.tasks == ["~/a.h5", "~me/b c.h5", "~/d.h5"]
    assert load("inputs={numbers: ~/a}").settings.inputs == {"numbers": "~/a"}


def test_a_tilde_is_the_home_folder(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("stages: [make]\n")
    config = load("run_dir=~/my run", experiment="~/mine.yaml")
    assert (config.run_dir, config.experiment) == (tmp_path / "my run", str(tmp_path / "mine.yaml"))
    with pytest.raises(ConfigError, match=r"~nobody-of-that-name/x: no home folder of that user.*in full"):
        load("run_dir=~nobody-of-that-name/x")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("make.szie=3", ["'make.szie'", "Did you mean 'make.size'?"]),
        ("maek.size=3", ["'maek.size'", "Did you mean 'make.size'?"]),
        ("make.volume=3", ["'make.volume'", "Keys of make: seed, size, weights"]),
        ("+make.szie=3", ["without '+'"]),
        ("sedes=3", ["'sedes'", "Did you mean 'seeds'?"]),
        ("make.size=many", ["make.size", "expected int", "'many'"]),
        ("make.weights.a=b", ["make.weights.a", "float", "'b'"]),
        ("tasks=5", ["tasks", "expected list[str]", "int"]),
        ("make.size=0", ["make.size must be at least 1, found 0"]),
        ("report.frame.width=-1", ["report.frame.width must not be negative"]),
        ("report.frames.a/b.width=x", ["report.frames.a/b.width", "'x'"]),
        ("make.size=[1", ["cannot read 'make.size=[1'"]),
        ("make.size", ["expected key=value, found 'make.size'"]),
        ("seeds=0", ["seeds", "at least 1", "found 0"]),
        ("stages=[mak]", ["no stage 'mak'", "Did you mean 'make'?"]),
        ("stages=[make,make]", ["repeated: make"]),
        ("tasks=[a/b,a/b]", ["repeated: a/b"]),
        ("inputs.numbres=x", ["inputs.numbres", "Did you mean 'numbers'?"]),
        ("make.seed=${sede}", ["make.seed", "'sede' not found"]),
    ],
)
def test_a_bad_override_is_named(load, override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_experiment_lists_the_known(load) -> None:
    with pytest.raises(ConfigError, match=r"'toi'.*Did you mean 'toy'(.|\n)*toy  Adds numbers"):
        load(experiment="toi")


def test_an_experiment_may_be_a_file(load, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("stages: [make]\nmake: {size: 9}\n")
    config = load(experiment=str(path))
    assert config.stage_configs["make"].size == 9
    assert config.run_dir == Path("runs/mine")

    path.write_text("stages: [make]\nmake: {szie: 9}\n")
    with pytest.raises(ConfigError, match=r"make\.szie"):
        load(experiment=str(path))
    path.write_text("stages: [make\nmake: 1\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml.*line"):
        load(experiment=str(path))
    with pytest.raises(ConfigError, match=r"no experiment file .*none\.yaml"):
        load(experiment="none.yaml")


def test_every_built_in_experiment_composes() -> None:
    stages = discover_stages()
    for name in list_experiments():
        assert load_config(name, stages=stages).settings.stages
