from pathlib import Path

import pytest
from orrery.pipeline.config.load import RunConfig, discover_stages, list_experiments, load_config
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
    assert load(f"world_model={text}").settings.world_model == text
    if text:  # no folder has an empty name
        assert load(f"inputs.numbers={text}").settings.inputs == {"numbers": text}


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


ODD = "/a b/c=d,'e'/2026-11-28_10:30:00/größe 機械腕 50%#1 (v2) {x} [y] & @ $z"


def test_odd_characters_need_no_quotes(load) -> None:
    config = load(f"inputs.numbers={ODD}", f"report.picture={ODD}", f"run_dir={ODD}", f"name={ODD}")
    assert config.settings.inputs == {"numbers": ODD}
    assert config.stage_configs["report"].picture == config.settings.name == ODD
    assert config.run_dir == Path(ODD)
    assert load("report.title=1e3").stage_configs["report"].title == "1e3", "text, not the number 1000.0"
    assert load("report.title=").stage_configs["report"].title == ""


def test_text_may_have_quotes(load) -> None:
    config = load("report.title='a \\'b\\''", 'run_dir="x y"', "tasks=['a=b, c', \"d'e\", f/g]")
    assert config.stage_configs["report"].title == "a 'b'"
    assert config.run_dir == Path("x y")
    assert config.settings.tasks == ["a=b, c", "d'e", "f/g"]


def test_a_single_item_of_a_list_needs_no_quotes(load) -> None:
    for item in ("a/my arm (v2).hdf5", "機械腕.hdf5", "50%_data#1", "a&b@c", "a=1.hdf5", "größe"):
        assert load(f"tasks=[{item}]").settings.tasks == [item]


def test_names_of_entries_may_be_anything(load) -> None:
    name = "my arm (v2).1/機械腕"
    assert load(f"make.weights.{name}=2").stage_configs["make"].weights == {name: 2.0}
    assert load(f"report.frames.{name}.width=2").stage_configs["report"].frames == {name: FrameConfig(width=2)}
    assert load("report.frames.a.b={width: 2}").stage_configs["report"].frames == {"a.b": FrameConfig(width=2)}


def test_the_last_value_of_a_key_counts(load) -> None:
    assert load("make.size=2", "make.size=5").stage_configs["make"].size == 5


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("make.szie=3", ["'make.szie'", "Did you mean 'make.size'?"]),
        ("maek.size=3", ["'maek.size'", "Did you mean 'make.size'?"]),
        ("make.volume=3", ["'make.volume'", "Keys of make: seed, size, weights"]),
        ("+make.szie=3", ["without '+'"]),
        ("make.weights=3", ["make.weights: expected a mapping to numbers, found '3'"]),
        ("make.weights={a: b}", ["make.weights.a: expected a number, found 'b'"]),
        ("sedes=3", ["'sedes'", "Did you mean 'seeds'?"]),
        ("make.size=many", ["make.size: expected a whole number, found 'many'"]),
        ("make.weights.a=b", ["make.weights.a: expected a number, found 'b'"]),
        ("tasks=5", ["tasks: expected a list of text, found '5'; write tasks=[5]"]),
        ("make.size=0", ["make.size must be at least 1, found 0"]),
        ("report.frame.width=-1", ["report.frame.width must not be negative"]),
        ("report.frames.a/b.width=x", ["report.frames.a/b.width", "'x'"]),
        ("make.size=[1", ["cannot read 'make.size=[1'"]),
        ("make.size", ["expected key=value, found 'make.size'"]),
        ("seeds=0", ["seeds", "at least 1", "found 0"]),
        ("stages=[mak]", ["unknown stage 'mak'", "Did you mean 'make'?"]),
        ("stages=[make,make]", ["stages must not repeat: make"]),
        ("tasks=[a/b,a/b]", ["tasks must not repeat: a/b"]),
        ("inputs.numbres=x", ["inputs.numbres", "Did you mean 'numbers'?"]),
        ("inputs.numbers=", ["inputs.numbers=: expected a folder or a Hugging Face Hub id, found an empty name"]),
        ("make.seed=${sede}", ["make.seed", "'sede' not found"]),
        # Habits from Hydra.
        ("seed=1,2,3", ["seed: expected one value, found 1,2,3", "orrery study STUDY 'grid.seed=[1,2,3]'"]),
        ("make.size=range(1,3)", ["make.size: expected one value", "orrery study STUDY"]),
        ("tasks=a/b,c/d", ["tasks: expected a list of text, found a/b,c/d; write tasks=[a/b,c/d]"]),
        ("tasks=a/b", ["tasks: expected a list of text, found 'a/b'; write tasks=[a/b]"]),
        ("tasks=[a,]", ["tasks", "trailing comma"]),
        ("tasks=[a=1,b=2]", ["ambiguous", """'tasks=["a=1","b=2"]'""", """'tasks=["a=1,b=2"]'"""]),
        ("tasks=[a[0]]", ["""'tasks=["a[0]"]'"""]),
        ("report.frame.sides=4", ["report.frame.sides: expected a list of whole numbers, found '4'", "sides=[4]"]),
        ("report.frames.a/b.sides=4", ["report.frames.a/b.sides: expected a list of whole numbers", "sides=[4]"]),
        ("report.frames.a/b.wdith=4", ["'report.frames.a/b.wdith'", "Did you mean 'report.frames.a/b.width'?"]),
        ("report.frames.a/b=4", ["report.frames.a/b: expected a mapping of its keys"]),
        ("size=4", ["'size'", "Did you mean 'make.size'?"]),
        ("make.si-ze=4", ["'make.si-ze'", "Did you mean 'make.size'?"]),
        ("++make.size=4", ["write make.size=4 without '+'"]),
        ("~make.size", ["~make.size: keys cannot be removed"]),
        ("hydra.run.dir=x", ["hydra.run.dir", "run_dir=PATH"]),
        ("hydra/launcher=joblib", ["hydra/launcher", "run_dir=PATH"]),
        ("stages=[[make]]", ["stages[0]: expected one value, found ['make']"]),
        ("world_model=null", ["world_model: expected text", "write world_model="]),
        ("run_dir=", ["run_dir= needs a path"]),
        ("seed=", ["seed: expected a whole number, found ''"]),
        ("seeds=2,", ["cannot read 'seeds=2,': expected a whole number"]),
        ("seed.x=3", ["'seed.x'", "Did you mean 'seed'?"]),
    ],
)
def test_a_bad_override_is_named(load, override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    for part in parts:
        assert part in str(caught.value)
    for word in ("OmegaConf", "ListConfig", "AnyNode", "multirun", "Hydra", "list[str]", "dataclass"):
        assert word not in str(caught.value).replace("Hydra's own settings", "")


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


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("sac.decisions", "baselines.steps"),
        ("bpo_online.online.decisions", "bpo_online.online.steps"),
        ("bpo_online.online.warm_up", "bpo_online.online.warmup"),
        ("powr_online.warm_up_episodes", "powr_online.warmup_episodes"),
    ],
)
def test_a_renamed_key_is_refused_with_its_new_name(key: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' was renamed: use {new}"):
        load_config("quickstart", [f"{key}=10"], stages=discover_stages())
