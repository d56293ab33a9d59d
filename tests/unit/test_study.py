"""Studies of toy stages that count how often they run: what is shared, what continues, and what a failure costs."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from orrery.pipeline.cli import main
from orrery.pipeline.config.load import load_config
from orrery.pipeline.config.overrides import short_names
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.jobs.fanout import Detached
from orrery.pipeline.lock import locked
from orrery.pipeline.stage import Context, Input, Stage
from orrery.pipeline.study.config import load_study, prepare_study
from orrery.pipeline.study.study import run_study
from rich.console import Console

from .toy_stages import STAGES, Add, write_configs


@dataclass(frozen=True)
class TuneConfig:
    factor: int = 1


class Tune(Stage):
    """The numbers times a factor: of the kind that it reads, as fine-tuning a model is."""

    Config = TuneConfig
    output_kind = "numbers"
    inputs = {"numbers": Input("numbers")}

    def run(self, context: Context) -> str:
        if self.config.factor == 13:
            raise StageError("thirteen is not a factor")
        if self.config.factor == 14:
            raise ZeroDivisionError("a bug")
        if self.config.factor == 15:
            raise Detached("15 goes on elsewhere")
        numbers = (context.input("numbers") / "numbers.txt").read_text().split()
        text = " ".join(str(self.config.factor * int(number)) for number in numbers)
        (context.folder / "numbers.txt").write_text(text)
        return text


@dataclass(frozen=True)
class OtherConfig:
    total: int = 100


class Other(Stage):
    """A total of its own, from nothing."""

    Config = OtherConfig
    output_kind = "total"

    def run(self, context: Context) -> str:
        (context.folder / "total.txt").write_text(str(self.config.total))
        return str(self.config.total)


ALL_STAGES: dict[str, type[Stage]] = {
    "make": STAGES["make"], "tune": Tune, "add": Add, "other": Other, "report": STAGES["report"],
}  # fmt: skip


class ToyStudy:
    """A project with one study; counts the stages that run in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.config_dir, self._capsys = folder, write_configs(folder / "configs"), capsys
        self.study_dir = folder / "study"
        self.ran: list[str] = []
        self.stages = {name: self._counted(name, stage) for name, stage in ALL_STAGES.items()}

    def _counted(self, name: str, stage: type[Stage]) -> type[Stage]:
        ran = self.ran

        class Counted(stage):  # type: ignore[valid-type,misc]
            def run(self, context: Context) -> str:
                ran.append(name)
                return super().run(context)

        Counted.__doc__ = stage.__doc__
        return Counted

    def write(self, text: str) -> str:
        path = self.folder / "scales.yaml"
        path.write_text("# Scales of a sum\nexperiment: toy\noverrides: ['stages=[make,tune,add,report]']\n" + text)
        return str(path)

    def call(self, *argv: str) -> tuple[int, str]:
        """(exit code, everything printed) of the command line."""
        self.ran.clear()
        code = main(argv, stages=self.stages, config_dir=self.config_dir)
        printed = self._capsys.readouterr()
        return code, printed.out + printed.err

    def study(self, path: str, *overrides: str) -> tuple[int, str]:
        return self.call("study", path, f"run_dir={self.study_dir}", *overrides)

    def counts(self) -> dict[str, int]:
        return {name: self.ran.count(name) for name in dict.fromkeys(self.ran)}

    def total(self, variant: str) -> str:
        return (self.study_dir / variant / "add" / "total.txt").read_text()

    def page(self, variant: str) -> str:
        return (self.study_dir / variant / "report" / "index.html").read_text()


@pytest.fixture
def toy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> ToyStudy:
    return ToyStudy(tmp_path, capsys)


GRID = "grid: {tune.factor: [1, 2], add.scale: [1, 10]}\n"


def test_what_variants_share_runs_once(toy: ToyStudy) -> None:
    path = toy.write(GRID)
    code, out = toy.study(path)
    assert code == 0, out
    assert toy.counts() == {"make": 1, "tune": 2, "add": 4, "report": 4}
    for factor in (1, 2):
        for scale in (1, 10):
            assert toy.total(f"factor={factor},scale={scale}") == str(3 * factor * scale)  # 0 + 1 + 2
    assert len({path.stat().st_ino for path in toy.study_dir.glob("*/make/numbers.txt")}) == 1  # takes space once
    assert "make, tune: shared with factor=1,scale=1" in out

    code, out = toy.study(path)
    assert (code, toy.ran) == (0, [])
    assert "nothing to do: every variant is up to date" in out


def test_stages_run_again_on_request_once_for_all_that_share_them(toy: ToyStudy) -> None:
    path = toy.write(GRID)
    toy.study(path)
    _, out = toy.study(path, "--plan", "--from", "add")
    assert toy.ran == []
    assert out.count("run again on request") == 4
    toy.study(path, "--from", "tune")
    assert toy.counts() == {"tune": 2, "add": 4, "report": 4}
    code, out = toy.study(path, "--force")
    assert (code, toy.counts()) == (0, {"make": 1, "tune": 2, "add": 4, "report": 4}), out
    assert len({path.stat().st_ino for path in toy.study_dir.glob("*/make/numbers.txt")}) == 1
    assert toy.study(path)[0] == 0
    assert toy.ran == []
    code, out = toy.study(path, "--from", "ad")
    assert (code, "--from: the run has no stage 'ad'. Did you mean 'add'?" in out) == (2, True)


def test_an_attempt_that_another_variant_began_continues(toy: ToyStudy, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "interrupt")
    toy.study(toy.write("variants: {one: [], two: [report.title=two]}\n"))
    (attempt,) = toy.study_dir.glob("*/add.partial")
    assert attempt.parent.name == "one"
    monkeypatch.delenv("TOY_FAILURE")
    code, out = toy.study(toy.write("variants: {two: [report.title=two]}\n"))
    assert code == 0, out
    assert "add: continuing (interrupted after" in out, out.splitlines()
    assert (toy.study_dir / "one" / "make").is_dir()
    assert not list(toy.study_dir.glob("one/add.partial*"))
    assert toy.counts() == {"add": 1, "report": 1}


def test_a_changed_setting_reruns_only_what_depends_on_it(toy: ToyStudy) -> None:
    path = toy.write(GRID)
    toy.study(path)
    toy.study(path, "report.title=other")
    assert toy.counts() == {"report": 4}
    toy.study(path, "grid.add.scale=[1,5]", "report.title=other")
    assert toy.counts() == {"add": 2, "report": 2}
    toy.study(path, "make.size=4", "grid.add.scale=[1]", "report.title=other")
    assert toy.counts() == {"make": 1, "tune": 2, "add": 2, "report": 2}


def test_a_stage_that_reads_and_makes_the_same_kind_hands_on_its_own(toy: ToyStudy) -> None:
    code, out = toy.study(toy.write("grid: {tune.factor: [2, 5]}\n"))
    assert code == 0, out
    assert toy.counts() == {"make": 1, "tune": 2, "add": 2, "report": 2}
    assert [toy.total(f"factor={factor}") for factor in (2, 5)] == ["6", "15"]


def test_what_does_not_depend_on_the_varied_stage_is_shared_although_it_comes_later(toy: ToyStudy) -> None:
    path = toy.write("grid: {add.scale: [1, 2], other.total: [7, 8]}\n")
    code, out = toy.study(path, "stages=[make,add,other,report]")
    assert code == 0, out
    assert toy.counts() == {"make": 1, "add": 2, "other": 2, "report": 4}
    assert toy.page("scale=2,total=7").startswith("toy ['6', '7']")
    assert toy.page("scale=1,total=8").startswith("toy ['3', '8']")


def test_several_artifacts_of_one_kind_are_handed_over(toy: ToyStudy) -> None:
    code, out = toy.study(toy.write("grid: {report.title: [a, b]}\n"), "stages=[make,add,other,report]")
    assert code == 0, out
    assert toy.counts() == {"make": 1, "add": 1, "other": 1, "report": 2}
    assert [toy.page(f"title={title}")[:14] for title in "ab"] == ["a ['3', '100']", "b ['3', '100']"]


def test_named_variants_meet_every_combination_of_the_grid(toy: ToyStudy) -> None:
    path = toy.write("variants: {plain: [], large: [make.size=5, add.scale=3]}\ngrid: {tune.factor: [1, 2]}\n")
    code, out = toy.study(path)
    assert code == 0, out
    assert toy.counts() == {"make": 2, "tune": 4, "add": 4, "report": 4}
    assert [toy.total(name) for name in ("plain,factor=2", "large,factor=2")] == ["6", "60"]
    series = prepare_study(path, [], toy.stages, toy.config_dir)
    assert series.variants[3].parameters == {"variant": "large", "tune.factor": "2"}


def test_a_grid_over_the_seed_makes_everything_anew_that_uses_it(toy: ToyStudy) -> None:
    path = toy.write("grid: {seed: [0, 10], add.scale: [1, 2]}\n")
    code, out = toy.study(path, "stages=[make,other,add,report]")
    assert code == 0, out
    assert toy.counts() == {"make": 2, "other": 1, "add": 4, "report": 4}
    assert toy.total("seed=10,scale=2") == "66"  # 2 (10 + 11 + 12)
    series = prepare_study(path, [], toy.stages, toy.config_dir)
    assert [variant.group for variant in series.variants] == ["scale=1", "scale=2"] * 2


def test_a_grid_over_the_seed_of_a_stage_repeats_its_variants(toy: ToyStudy) -> None:
    path = toy.write("grid: {make.seed: [0, 10], add.scale: [1, 2]}\n")
    series = prepare_study(path, [], toy.stages, toy.config_dir)
    assert [variant.name for variant in series.variants][:2] == ["seed=0,scale=1", "seed=0,scale=2"]
    assert [variant.group for variant in series.variants] == ["scale=1", "scale=2"] * 2


def test_a_study_that_grows_by_a_key_keeps_what_it_has(toy: ToyStudy) -> None:
    path = toy.write("grid: {add.scale: [1, 2]}\n")
    toy.study(path)
    code, out = toy.study(path, "grid.seed=[0,5]", "--plan")
    assert code == 0
    assert ["scale=2,seed=0", "make, tune", "reuse", "shared with scale=1"] in rows(out)
    assert ["add", "reuse", "shared with scale=2"] in rows(out)

    code, out = toy.study(path, "grid.seed=[0,5]")
    assert code == 0, out
    assert toy.counts() == {"make": 1, "tune": 1, "add": 2, "report": 4}  # which names its variant
    toy.study(path)
    assert toy.ran == []


def test_a_study_of_an_earlier_version_continues(toy: ToyStudy) -> None:
    """It had a run for the stages that several variants share, and gave its artifacts to the others as inputs."""
    path = toy.write("grid: {add.scale: [1, 2]}\n")
    shared, given = toy.study_dir / "shared", f"inputs.numbers={toy.study_dir}/shared/tune"
    toy.call("run", "toy", "stages=[make,tune]", f"run_dir={shared}")
    for scale in (1, 2):
        own = [f"add.scale={scale}", given, f"run_dir={toy.study_dir}/scale={scale}"]
        toy.call("run", "toy", "stages=[add,report]", *own)
    (toy.study_dir / "study.json").write_text('{"name": "scales", "source": "scales.yaml", "branches": []}')
    code, out = toy.call("status", str(toy.study_dir))
    assert code == 2
    assert f"an earlier version wrote {toy.study_dir}/study.json; run the same `orrery study`" in out
    code, out = toy.study(path)
    assert (code, toy.ran) == (0, []), out
    assert toy.call("status", str(toy.study_dir))[0] == 0


def test_one_variant_that_fails_costs_only_what_is_made_from_it(toy: ToyStudy) -> None:
    path = toy.write("grid: {tune.factor: [13, 1, 14, 15], add.scale: [1, 2]}\n")
    code, out = toy.study(path)
    assert code == 1  # a bug among them
    assert toy.counts() == {"make": 1, "tune": 4, "add": 2, "report": 2}
    tail = out.partition("not finished: ")[2]
    assert "  factor=13,scale=1: failed, thirteen is not a factor\n" in tail
    assert "  factor=13,scale=2: blocked, tune waits for factor=13,scale=1\n" in tail
    assert "  factor=14,scale=1: failed, ZeroDivisionError: a bug; see " in tail
    assert "  factor=15,scale=1: detached, 15 goes on elsewhere\n" in tail
    assert "  factor=15,scale=2: blocked, tune waits for factor=15,scale=1\n" in tail
    assert "factor=1," not in tail
    assert "ZeroDivisionError: a bug" in (toy.study_dir / "factor=14,scale=1" / "log.txt").read_text()

    code, out = toy.call("status", str(toy.study_dir))
    assert code == 0
    assert "not running, 2 of 8 variants complete" in out
    assert "tune waits for factor=13,scale=1" in out

    assert toy.study(path, "grid.tune.factor=[13]", "grid.add.scale=[1]")[0] == 2
    assert toy.study(path, "grid.tune.factor=[15]", "grid.add.scale=[1]")[0] == 75


def test_a_killed_study_continues(toy: ToyStudy) -> None:
    path = toy.write("grid: {add.scale: [1, 2]}\n")
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import toy_stages\n"
        "from orrery.pipeline.cli import main\n"
        "main(sys.argv[2:], stages=toy_stages.STAGES, config_dir=Path(sys.argv[1]))\n"
    )
    short = "stages=[make,add,report]"
    command = ["study", path, f"run_dir={toy.study_dir}", short]
    killed = subprocess.run(
        [sys.executable, "-c", script, str(toy.config_dir), *command], env={"TOY_FAILURE": "kill"}, check=False
    )
    assert killed.returncode == 9
    assert "interrupted" in toy.call("status", str(toy.study_dir))[1]
    code, out = toy.study(path, short)
    assert code == 0, out
    assert toy.counts() == {"add": 2, "report": 2}
    assert "total 3 (continued)" in out
    assert "total 6 (from the start)" in out


def test_ctrl_c_stops_the_whole_study(toy: ToyStudy, monkeypatch) -> None:
    path = toy.write("grid: {add.scale: [1, 2]}\n")
    monkeypatch.setenv("TOY_FAILURE", "interrupt")
    code, out = toy.study(path)
    assert code == 130
    assert "interrupted in stage add; rerun the command to continue" in out
    assert toy.counts() == {"make": 1, "tune": 1, "add": 1}


def test_a_variant_in_use_elsewhere_is_left_alone(toy: ToyStudy) -> None:
    path = toy.write("grid: {add.scale: [1, 2]}\n")
    with locked(toy.study_dir / "scale=1"):
        code, out = toy.study(path)
    assert code == 2
    assert "scale=1 is in use by process" in out
    assert toy.total("scale=2") == "6"
    with locked(toy.study_dir):
        code, out = toy.study(path)
    assert code == 2
    assert f"{toy.study_dir} is in use by process" in out


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("grid: {add.scael: [1, 2]}", [], "scael=1 of study scales: unknown key 'add.scael'. Did you mean"),
        ("variants: {a: [], b: [add.scale=x]}", [], "variant b of study scales: add.scale: expected a whole number"),
        ("variants: {a: [], b: [make.size=0]}", [], "b of study scales: make.size must be at least 1"),
        ("variants: {a: [], b: [add.scale=0]}", [], "variant b of study scales: add.scale must not be 0"),
        ("variants: {a: [], b: ['stages=[add]']}", [], "b of study scales: stage 'add' needs an input"),
        ("variants: {a: [], b: [run_dir=x]}", [], "variants have folders of their own"),
        ("variants: {a: [scale]}", [], "expected key=value, found 'scale'"),
        ("variants: {a b: []}", [], "a variant's name is made of letters, digits and ._+-, found 'a b'"),
        ("gird: {add.scale: [1]}", [], "a study has no key 'gird'. Did you mean 'grid'?"),
        ("variants: {a: [make.weights={a: 1}]}", [], "Quote text with brackets or a colon"),
        ("", [], "a study needs a `grid`, or `variants`"),
        ("grid: {add.scale: 3}", [], "grid.add.scale must be a list of values, found 3"),
        ("grid: {add.scale: [1, 1]}", [], "grid.add.scale repeats 1"),
        ("grid: {add.scale: [1, 2]}", ["grid.add.scale=5"], "error: grid.add.scale must be a list of values, found 5"),
        ("grid: {add.scale: [1, 2]}", ["add.scale=5"], "every variant of study scales sets add.scale itself"),
        ("grid: {report.title: [a/b, a_b]}", [], "variants with the same name: title=a_b"),
        ("grid: {add.scale: [1]}", ["run_dir=a:b"], "must not have ':' in its path"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_any_variant_is_said_before_any_work(toy: ToyStudy, text, overrides, message) -> None:
    code, out = toy.study(toy.write(text + "\n"), *overrides)
    assert code == 2
    assert message in out
    assert "Traceback" not in out
    assert toy.ran == []
    assert not toy.study_dir.exists()


@pytest.mark.parametrize("flag", [[], ["--plan"]])
def test_a_machine_that_cannot_is_said_before_any_work(toy: ToyStudy, monkeypatch, flag) -> None:
    path = toy.write("grid: {tune.factor: [1, 2]}\n")
    monkeypatch.setenv("TOY_FAILURE", "machine")
    code, out = toy.study(path, *flag)
    assert code == 2
    assert "variant factor=1 of study scales: add needs an abacus: pip install 'toy[abacus]'" in " ".join(out.split())
    assert toy.ran == []
    assert not toy.study_dir.exists()
    # What is up to date needs no machine.
    monkeypatch.delenv("TOY_FAILURE")
    toy.study(path)
    monkeypatch.setenv("TOY_FAILURE", "machine")
    assert toy.study(path, *flag)[0] == 0


@pytest.mark.parametrize("flag", [[], ["--plan"]])
def test_a_world_model_that_no_variant_would_read_is_refused(tmp_path, monkeypatch, capsys, flag) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["study", "regularisation", "world_model=elsewhere", f"run_dir={tmp_path}/study", *flag]
    assert main(words) == 2
    assert (
        "world_model=elsewhere would not be used: gradients, extract, report would use the model of stage pretrain"
        in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_study_names_the_nearest(toy: ToyStudy) -> None:
    (toy.config_dir / "studies").mkdir()
    (toy.config_dir / "studies" / "scales.yaml").write_text(Path(toy.write(GRID)).read_text())
    with pytest.raises(
        ConfigError, match=r"unknown study 'scalse'. Did you mean 'scales'\?.*\n  scales  Scales of a sum"
    ):
        load_study("scalse", config_dir=toy.config_dir)
    with pytest.raises(ConfigError, match=r"there is no study file .*none\.yaml"):
        load_study("none.yaml", config_dir=toy.config_dir)
    assert load_study("scales", config_dir=toy.config_dir).run_dir == Path("runs/scales")
    code, out = toy.call("study")
    assert code == 2
    assert "scales  Scales of a sum" in out
    assert toy.call("study", "--help")[0] == 0


def rows(out: str) -> list[list[str]]:
    """Cells of a printed table."""
    return [re.split(r"  +", line.strip()) for line in out.splitlines()]


def test_the_plan_shows_what_is_shared_and_writes_nothing(toy: ToyStudy) -> None:
    path = toy.write(GRID)
    code, out = toy.call("study", path, "--plan", f"run_dir={toy.study_dir}")
    assert code == 0, out
    assert f"scales: 4 variants of toy in {toy.study_dir}" in out
    assert not toy.study_dir.exists()
    shown = rows(out)
    assert ["factor=1,scale=1", "make", "run", "not run yet"] in shown
    at = shown.index(["factor=1,scale=10", "make, tune", "reuse", "shared with factor=1,scale=1"])
    assert shown[at + 1] == ["add, report", "run", "tune runs first"]
    assert ["factor=2,scale=1", "make", "reuse", "shared with factor=1,scale=1"] in shown
    toy.study(path)
    shown = rows(toy.study(path, "--plan", "grid.add.scale=[1,5]")[1])
    assert ["factor=1,scale=1", "make, tune, add, report", "up to date"] in shown
    at = shown.index(["factor=2,scale=5", "make", "reuse", "shared with factor=1,scale=1"])
    assert shown[at + 1] == ["tune", "reuse", "shared with factor=2,scale=1"]
    assert shown[at + 2] == ["add", "run", "not run yet"]


def test_variants_that_are_the_same_work_are_named_and_share_it(toy: ToyStudy) -> None:
    code, out = toy.study(toy.write("variants: {default: [], one: [add.scale=1], two: [add.scale=2]}\n"))
    assert code == 0
    assert "identical variants: default = one" in out
    assert toy.total("default") == toy.total("one") == "3"
    assert toy.counts() == {"make": 1, "tune": 1, "add": 2, "report": 3}


def test_a_variant_is_an_ordinary_run(toy: ToyStudy) -> None:
    """Its overrides describe it to the other commands, and it holds all that it is made from."""
    toy.study(toy.write("grid: {add.scale: [1, 2]}\n"))
    leaf = toy.study_dir / "scale=2"
    record = json.loads((leaf / "run.json").read_text())
    config = load_config(record["experiment"], record["overrides"], stages=toy.stages, config_dir=toy.config_dir)
    assert config.resolved == record["config"]
    assert config.settings.name == "scales: scale=2"
    (leaf / "report" / "index.html").write_text("edited")
    assert toy.call("report", str(leaf))[0] == 0
    assert toy.page("scale=2") == "toy ['6'] ['add', 'make']"
    assert "add" in toy.call("status", str(leaf))[1]
    assert toy.call("run", record["experiment"], *record["overrides"], f"run_dir={leaf}")[0] == 0
    assert toy.ran == []


def test_values_reach_the_config_as_they_are(toy: ToyStudy) -> None:
    path = toy.write(
        "grid: {report.frame.sides: [[1, 2], [3]], report.title: ['a b', \"c='d'\"], report.limit: [null, 1e-3]}"
    )
    variants = prepare_study(path, [], toy.stages, toy.config_dir).variants
    frames = [variant.config.stage_configs["report"] for variant in variants]
    assert {tuple(one.frame.sides) for one in frames} == {(1, 2), (3,)}
    assert {one.title for one in frames} == {"a b", "c='d'"}
    assert {one.limit for one in frames} == {None, 0.001}
    assert variants[0].name == "sides=1_2,title=a_b,limit=null"


def test_short_names_are_as_short_as_they_can_be() -> None:
    keys = ["pretrain.horizon", "extract.first_order.horizon", "seed", "extract.seed", "pretrain.model.latent"]
    assert list(short_names(keys).values()) == [
        "pretrain.horizon", "first_order.horizon", "seed", "extract.seed", "latent",
    ]  # fmt: skip


def test_run_study_from_python_says_what_failed(toy: ToyStudy) -> None:
    path = toy.write("grid: {tune.factor: [13, 1]}\n")
    options = {"stages": toy.stages, "config_dir": toy.config_dir, "console": Console(quiet=True)}
    with pytest.raises(StageError, match=r"(?s)study scales are not finished.*factor=13: failed, thirteen"):
        run_study(path, [f"run_dir={toy.study_dir}"], **options)
    assert toy.total("factor=1") == "3"
    with pytest.raises(StageError, match=r"has no compare/study\.csv"):
        run_study(path, [f"run_dir={toy.study_dir}", "grid.tune.factor=[1]"], **options)
