import errno
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from orrery.pipeline.artifact import MANIFEST
from orrery.pipeline.config.load import load_config
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.kept import KEPT_PER_STAGE, kept_places
from orrery.pipeline.keys import find_made
from orrery.pipeline.lock import lock_holder, locked
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.plan import plan
from orrery.pipeline.run_folder import read_attempt
from orrery.pipeline.runner import Outcome, StageInterrupted, run
from orrery.pipeline.status import read_run_file
from rich.console import Console

from .toy_stages import STAGES, write_configs


class ToyProject:
    def __init__(self, folder: Path) -> None:
        self.config_dir = write_configs(folder / "configs")
        self.run_dir = folder / "run"

    def load(self, *overrides: str):
        overrides = (f"run_dir={self.run_dir}", *overrides)
        return load_config("toy", overrides, stages=STAGES, config_dir=self.config_dir)

    def run(self, *overrides: str) -> dict[str, Outcome]:
        config = self.load(*overrides)
        with locked(config.run_dir):
            outcomes = run(config, STAGES, log=logging.getLogger("toy"), progress=ConsoleProgress(Console(quiet=True)))
        return {outcome.stage: outcome for outcome in outcomes}

    def statuses(self, *overrides: str) -> list[str]:
        return [outcome.status for outcome in self.run(*overrides).values()]

    def plan(self, *overrides: str) -> list[tuple[str, str]]:
        return [(decision.action, decision.reason) for decision in plan(self.load(*overrides), STAGES)]


@pytest.fixture
def toy(tmp_path: Path) -> ToyProject:
    return ToyProject(tmp_path)


def test_a_second_run_does_nothing(toy: ToyProject) -> None:
    assert {action for action, _ in toy.plan()} == {"run"}
    first = toy.run()
    assert [outcome.summary for outcome in first.values()] == ["3 numbers", "total 3 (from the start)", "1 totals"]
    assert (toy.run_dir / "report" / "index.html").read_text() == "toy ['3'] ['add', 'make']"
    times = {path: path.stat().st_mtime_ns for path in toy.run_dir.glob("*/*")}

    assert toy.statuses() == ["fresh", "fresh", "fresh"]
    assert toy.plan() == [("fresh", "")] * 3
    assert {path: path.stat().st_mtime_ns for path in toy.run_dir.glob("*/*")} == times
    record = json.loads((toy.run_dir / "run.json").read_text())
    assert [stage["status"] for stage in record["stages"]] == ["fresh"] * 3
    assert record["config"]["make"]["size"] == 3


def test_a_changed_setting_reruns_its_stage_and_what_depends_on_it(toy: ToyProject) -> None:
    toy.run()
    assert toy.plan("add.scale=2") == [
        ("fresh", ""),
        ("run", "add.scale 1 -> 2"),
        ("run", "add runs first"),
    ]
    assert toy.statuses("add.scale=2") == ["fresh", "done", "done"]
    assert toy.statuses("add.scale=2", "report.title=other") == ["fresh", "fresh", "done"]
    assert toy.statuses("add.scale=2", "report.title=other", "make.size=4") == ["done", "done", "done"]
    # Not the setting but the content decides for those that only read it: the weights are not written anywhere.
    assert toy.statuses("add.scale=2", "report.title=other", "make.size=4", "make.weights.a=1") == [
        "done",
        "fresh",
        "fresh",
    ]


def test_a_setting_that_is_not_hashed_makes_nothing_stale(toy: ToyProject) -> None:
    toy.run()
    manifest = toy.run_dir / "report" / MANIFEST
    # As an earlier version left it, whose keys held this setting, too.
    recorded = json.loads(manifest.read_text())
    # Nor had they all settings that there are now, and some of them had other names.
    del recorded["config"]["limit"], recorded["config"]["frame"]["sides"]
    recorded["config"]["heading"] = recorded["config"].pop("title")
    manifest.write_text(json.dumps(recorded | {"key": "of an earlier version"}))
    assert toy.plan("report.frame.width=2")[2] == ("fresh", "")
    assert toy.plan("report.frame.sides=[3]")[2] == ("run", "report.frame.sides [1, 2] -> [3]")
    key = plan(toy.load("report.frame.width=2"), STAGES)[2].key or ""
    report, elsewhere = toy.run_dir / "report", toy.run_dir / "make"
    assert find_made(STAGES["report"], "report", key, [toy.run_dir / "gone", elsewhere, report]) == report
    (report / "index.html").unlink()
    assert find_made(STAGES["report"], "report", key, [elsewhere, report]) is None


def test_artifacts_with_the_same_key_are_reused_from_other_runs(toy: ToyProject, tmp_path: Path) -> None:
    other, reuse = f"run_dir={tmp_path}/others/a", f"reuse_from=[{tmp_path}/others]"
    toy.run(other, "add.scale=2")
    assert toy.plan("add.scale=3", reuse) == [
        ("reuse", f"made in {tmp_path}/others/a/make"),
        ("run", "not run yet"),  # its input is known by content
        ("run", "add runs first"),
    ]
    assert not toy.run_dir.exists()
    outcomes = toy.run("add.scale=3", f"reuse_from=[{tmp_path}/others/a]")
    assert [one.status for one in outcomes.values()] == ["reused", "done", "done"]
    assert outcomes["make"].made_in == f"{tmp_path}/others/a"
    numbers = toy.run_dir / "make" / "numbers.txt"
    assert numbers.samefile(tmp_path / "others" / "a" / "make" / "numbers.txt")  # a hard link takes no space
    assert toy.statuses("add.scale=2", reuse) == ["fresh", "reused", "done"]  # a report is about its own run
    manifest = json.loads((toy.run_dir / "add" / MANIFEST).read_text())
    assert manifest["inputs"]["numbers"][0]["path"] == str(toy.run_dir / "make")  # whole without the other run
    shutil.rmtree(tmp_path / "others")
    assert toy.statuses("add.scale=2") == ["fresh"] * 3
    with pytest.raises(ConfigError, match=r"reuse_from: there is no folder .*others"):
        toy.run(reuse)


@pytest.mark.parametrize("refused", [OSError(errno.EXDEV, "Invalid cross-device link"), PermissionError()])
def test_where_there_are_no_hard_links_artifacts_are_copied(toy: ToyProject, tmp_path, monkeypatch, refused) -> None:
    toy.run(f"run_dir={tmp_path}/other")
    made = tmp_path / "other" / "make" / "numbers.txt"

    def link(self: Path, target: Path) -> None:
        raise refused

    monkeypatch.setattr(Path, "hardlink_to", link)
    assert toy.statuses(f"reuse_from=[{tmp_path}/other]") == ["reused", "reused", "done"]
    copy = toy.run_dir / "make" / "numbers.txt"
    assert (copy.read_text(), copy.stat().st_mtime_ns) == (made.read_text(), made.stat().st_mtime_ns)


def test_damaged_or_outdated_artifacts_of_other_runs_are_computed(toy: ToyProject, tmp_path, monkeypatch) -> None:
    toy.run(f"run_dir={tmp_path}/other")
    (tmp_path / "other" / "make" / "numbers.txt").write_text("0")
    assert toy.statuses(f"reuse_from=[{tmp_path}/other]") == ["done", "reused", "done"]
    monkeypatch.setenv("TOY_OUTDATED", "the abacus came")
    assert [action for action, _ in toy.plan(f"reuse_from=[{tmp_path}/other]")] == ["fresh", "run", "run"]


@pytest.mark.parametrize(("failure", "error"), [("interrupt", StageInterrupted), ("bug", ZeroDivisionError)])
def test_an_interrupted_stage_continues(toy: ToyProject, monkeypatch, failure: str, error: type) -> None:
    monkeypatch.setenv("TOY_FAILURE", failure)
    with pytest.raises(error):
        toy.run()
    assert not (toy.run_dir / "add").exists()
    status = {"interrupt": "interrupted", "bug": "failed"}[failure]
    record = json.loads((toy.run_dir / "run.json").read_text())
    assert [stage["status"] for stage in record["stages"]] == ["done", status, "waiting"]
    attempt = read_attempt(toy.run_dir / "add")
    assert attempt is not None

    monkeypatch.delenv("TOY_FAILURE")
    assert [action for action, _ in toy.plan()] == ["fresh", "resume", "run"]
    outcomes = toy.run()
    assert outcomes["add"].summary == "total 3 (continued)"
    assert outcomes["add"].seconds >= attempt.seconds
    assert sorted(path.name for path in toy.run_dir.iterdir()) == [".lock", "add", "make", "report", "run.json"]


def test_a_stage_that_calls_its_artifact_outdated_runs_again_and_continues(toy: ToyProject, monkeypatch) -> None:
    toy.run()
    monkeypatch.setenv("TOY_OUTDATED", "an abacus is there now")
    assert toy.plan() == [("fresh", ""), ("run", "an abacus is there now"), ("run", "add runs first")]
    monkeypatch.setenv("TOY_FAILURE", "interrupt")
    with pytest.raises(StageInterrupted):
        toy.run()
    assert (toy.run_dir / "add" / "total.txt").read_text() == "3"
    assert toy.plan()[1][0] == "resume"
    monkeypatch.delenv("TOY_FAILURE")
    assert toy.run()["add"].summary == "total 3 (continued)"
    monkeypatch.delenv("TOY_OUTDATED")
    assert toy.statuses() == ["fresh"] * 3


def test_an_attempt_with_other_settings_is_kept_and_continues_when_they_come_back(toy: ToyProject, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "bug")
    for overrides in ([], ["add.scale=2"]):
        with pytest.raises(ZeroDivisionError):
            toy.run(*overrides)
    monkeypatch.delenv("TOY_FAILURE")
    assert toy.plan("add.scale=2")[1] == toy.plan()[1] == ("resume", "interrupted after 0.0 s")
    action, reason = toy.plan("add.scale=3")[1]
    assert action == "run"
    assert re.fullmatch(r"add\.scale 2 -> 3; the interrupted attempt \(0\.\d s\) is kept", reason)
    assert toy.run("add.scale=3")["add"].summary == "total 9 (from the start)"
    assert toy.run()["add"].summary == "total 3 (continued)"
    assert toy.run("add.scale=2")["add"].summary == "total 6 (continued)"
    assert toy.plan("make.size=4")[1] == ("run", "make runs first")

    monkeypatch.setenv("TOY_FAILURE", "bug")
    for scale in range(4, 6 + KEPT_PER_STAGE):  # without bound, they would fill the disk
        with pytest.raises(ZeroDivisionError):
            toy.run(f"add.scale={scale}")
    assert [toy.plan(f"add.scale={scale}")[1][0] for scale in (4, 5, 8, 9)] == ["run", "resume", "resume", "resume"]


def test_a_replaced_artifact_is_kept_and_reused_when_its_settings_come_back(toy: ToyProject, caplog) -> None:
    def inode() -> int:
        return (toy.run_dir / "add" / "total.txt").stat().st_ino

    toy.run()
    former = inode()
    assert toy.statuses("make.size=4") == ["done", "done", "done"]
    assert toy.plan() == [("reuse", "kept from earlier settings")] * 3
    assert toy.statuses() == ["reused"] * 3
    assert inode() == former  # the same file, which takes no further space
    assert toy.statuses() == ["fresh"] * 3
    assert toy.statuses("make.size=4") == ["reused"] * 3

    for scale in range(2, 2 + KEPT_PER_STAGE):
        toy.run(f"add.scale={scale}")
    with caplog.at_level(logging.INFO, "toy"):
        toy.run("add.scale=9")
    assert f"add: kept artifacts of {KEPT_PER_STAGE} earlier settings; deleted the oldest 1" in caplog.text
    assert len(kept_places(toy.run_dir / "add")) == KEPT_PER_STAGE
    assert [toy.plan(f"add.scale={scale}")[1][0] for scale in (1, 2, 3, 4, 5)] == ["run"] + ["reuse"] * 4


def test_an_attempt_whose_folder_is_gone_or_whose_file_is_damaged_starts_anew(toy: ToyProject, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "bug")
    with pytest.raises(ZeroDivisionError):
        toy.run()
    monkeypatch.delenv("TOY_FAILURE")
    shutil.rmtree(toy.run_dir / "add.partial")
    action, reason = toy.plan()[1]
    assert (action, reason.endswith("add.partial of the interrupted attempt is missing")) == ("run", True)
    (toy.run_dir / "add.partial.json").write_text('{"key": "x"')
    assert toy.plan()[1] == ("run", "not run yet")
    assert toy.run()["add"].summary == "total 3 (from the start)"


def test_an_input_that_changes_while_a_stage_runs_is_said(toy: ToyProject, tmp_path: Path, monkeypatch, caplog) -> None:
    picture = tmp_path / "picture.svg"
    picture.write_text("old")
    run_show = STAGES["report"].run

    def show(self, context):
        picture.write_text("new picture")
        return run_show(self, context)

    with monkeypatch.context() as patch:
        patch.setattr(STAGES["report"], "run", show)
        toy.run(f"report.picture={picture}")
    assert f"report: its input changed while it ran: {picture}" in caplog.text
    assert toy.plan(f"report.picture={picture}")[2] == ("run", f"{picture} changed")


def test_a_killed_run_continues(toy: ToyProject) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import toy_stages\n"
        "from orrery.pipeline.cli import main\n"
        "main(sys.argv[2:], stages=toy_stages.STAGES, config_dir=Path(sys.argv[1]))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(toy.config_dir), "run", "toy", f"run_dir={toy.run_dir}"],
        env={"TOY_FAILURE": "kill"},
        check=False,
    )
    assert killed.returncode == 9
    assert not (toy.run_dir / "add").exists()
    assert lock_holder(toy.run_dir) is None
    assert toy.run()["add"].summary == "total 3 (continued)"


def test_a_full_disk_is_said_and_survived(toy: ToyProject, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "disk full")
    with pytest.raises(StageError, match=r"disk of .*run is full.*MiB free.*rerun the command to continue"):
        toy.run()
    monkeypatch.delenv("TOY_FAILURE")
    assert toy.run()["add"].summary == "total 3 (continued)"


def test_an_edited_input_is_refused_and_a_deleted_one_made_again(toy: ToyProject) -> None:
    toy.run()
    numbers = toy.run_dir / "make" / "numbers.txt"
    numbers.write_text("9 9 9")
    with pytest.raises(StageError, match=r"numbers\.txt was changed after stage 'make'"):
        toy.run("add.scale=2")

    numbers.write_text("9")
    assert "numbers.txt has 1 bytes, expected 5" in toy.plan()[0][1]
    # Made again with the same content, so what was made from it stays.
    assert toy.statuses() == ["done", "fresh", "fresh"]


def test_inputs_from_elsewhere(toy: ToyProject, tmp_path: Path) -> None:
    toy.run()
    there = toy.run_dir
    toy.run_dir = tmp_path / "second"
    assert toy.run("stages=[add]", f"inputs.numbers={there}/make")["add"].summary == "total 3 (from the start)"
    assert toy.statuses("stages=[add]", f"inputs.numbers={there}/make") == ["fresh"]

    with pytest.raises(StageError, match=r"kind 'total', expected kind 'numbers'"):
        toy.run("stages=[add]", f"inputs.numbers={there}/add")
    assert toy.statuses("stages=[add]", f"inputs.numbers={there}") == ["fresh"]  # it holds one artifact of that kind
    shutil.copytree(there / "make", there / "again")
    with pytest.raises(StageError, match=r"folder of artifacts.*has several; use .*run/again or .*run/make"):
        toy.run("stages=[add]", f"inputs.numbers={there}")
    with pytest.raises(StageError, match=r"inputs\.numbers: there is no folder .*nowhere"):
        toy.run("stages=[add]", "inputs.numbers=nowhere")


def test_a_stage_alone_reads_what_earlier_commands_left(toy: ToyProject) -> None:
    toy.run()
    assert toy.statuses("stages=[add]") == ["fresh"]
    assert toy.run("stages=[add]", "add.scale=2")["add"].summary == "total 6 (from the start)"
    assert toy.statuses("stages=[add]", "add.scale=2") == ["fresh"]
    records = read_run_file(toy.run_dir)["stages"]
    assert [(record["stage"], record["status"]) for record in records] == [
        ("make", "done"), ("report", "done"), ("add", "fresh"),
    ]  # fmt: skip
    shutil.rmtree(toy.run_dir / "make")
    with pytest.raises(StageError, match=r"inputs\.numbers=PATH"):
        toy.run("stages=[add]")


def test_a_file_outside_the_run_counts_as_an_input(toy: ToyProject, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_text("a")
    setting = f"report.picture={picture}"
    toy.run(setting)
    assert toy.statuses(setting) == ["fresh"] * 3
    picture.write_text("another")
    assert toy.plan(setting)[2] == ("run", f"{picture} changed")
    picture.unlink()
    with pytest.raises(StageError, match=r"picture\.png no longer exists"):
        toy.run(setting)


def test_a_missing_input_and_a_bad_setting_stop_before_anything_runs(toy: ToyProject) -> None:
    with pytest.raises(StageError, match=r"stage 'add' needs an input 'numbers'.*: make; or .*inputs\.numbers=PATH"):
        toy.run("stages=[report,add]")
    with pytest.raises(StageError, match="scale must not be 0"):
        toy.run("add.scale=0")
    assert not (toy.run_dir / "make").exists()


def test_two_processes_do_not_share_a_run(toy: ToyProject) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from orrery.pipeline.lock import locked\n"
            "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            str(toy.run_dir),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StageError, match=rf"in use by process {holder.pid} on \S+"):
            toy.run()
        assert f"process {holder.pid}" in (lock_holder(toy.run_dir) or "")
    assert lock_holder(toy.run_dir) is None
    assert toy.statuses() == ["done"] * 3


@pytest.mark.parametrize("place", ["/proc/orrery", "file/inside"])
def test_a_run_folder_that_cannot_be_written(toy: ToyProject, tmp_path: Path, place: str) -> None:
    # Not by permissions: root, which runs the tests in a container, ignores them.
    (tmp_path / "file").write_text("")
    toy.run_dir = tmp_path / place
    with pytest.raises(StageError, match=r"cannot write to the run folder .*run_dir=PATH"):
        toy.run()
