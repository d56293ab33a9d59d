import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from orrery.pipeline.cli import main
from orrery.pipeline.lock import locked
from orrery.pipeline.run_folder import KEPT_FOLDER

from .toy_stages import STAGES, write_configs


@pytest.fixture
def orrery(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Call the command line on the toy project; returns (exit code, stdout, stderr)."""
    config_dir = write_configs(tmp_path / "configs")

    def call(*argv: str) -> tuple[int, str, str]:
        code = main(argv, stages=STAGES, config_dir=config_dir)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_run_says_what_each_stage_made_and_then_that_nothing_is_left(orrery, run_dir: Path) -> None:
    code, out, err = orrery("run", "toy", f"run_dir={run_dir}")
    assert (code, err) == (0, "")
    assert "[2/3] add: done in 0.0 s, total 3 (from the start)" in out
    assert out.endswith(f"report: {run_dir}/report/index.html\n")
    log = (run_dir / "log.txt").read_text()
    for part in (f"orrery run toy run_dir={run_dir}", "make: running", "add: done in 0.0 s, total 3 (from the start)"):
        assert part in log

    code, out, _ = orrery("run", "toy", f"run_dir={run_dir}")
    assert code == 0
    assert out.startswith("nothing to do: all stages are up to date\n")

    _, out, _ = orrery("run", "toy", f"run_dir={run_dir}", "add.scale=2")
    assert "[1/3] make: up to date, 3 numbers" in out
    assert "[2/3] add: running (add.scale 1 -> 2)" in out


def test_plan_writes_nothing(orrery, run_dir: Path) -> None:
    code, out, _ = orrery("plan", "toy", f"run_dir={run_dir}")
    assert code == 0
    assert "not run yet" in out
    assert not run_dir.exists()


def test_run_with_plan_shows_the_plan_and_runs_nothing(orrery, run_dir: Path, capsys) -> None:
    shown = orrery("run", "toy", f"run_dir={run_dir}", "--plan", "add.scale=2")
    assert shown == orrery("plan", "toy", f"run_dir={run_dir}", "add.scale=2")
    assert not run_dir.exists()
    for flag, hint in (("--json", "orrery plan EXPERIMENT --json"), ("--dry-run", "orrery plan EXPERIMENT")):
        with pytest.raises(SystemExit, match="2"):
            main(["run", "toy", flag])
        assert hint in capsys.readouterr().err


def test_plan_and_status_as_json(orrery, run_dir: Path, monkeypatch) -> None:
    planned = json.loads(orrery("plan", "toy", f"run_dir={run_dir}", "--json")[1])
    assert planned["stages"][0] == {"stage": "make", "action": "run", "reason": "not run yet", "artifact": None}
    monkeypatch.setenv("TOY_FAILURE", "interrupt")
    orrery("run", "toy", f"run_dir={run_dir}", "add.scale=2")
    status = json.loads(orrery("status", str(run_dir), "--json")[1])
    assert (status["experiment"], status["overrides"], status["running"]) == ("toy", ["add.scale=2"], None)
    assert [(one["stage"], one["status"]) for one in status["stages"]] == [
        ("make", "done"),
        ("add", "interrupted"),
        ("report", "waiting"),
    ]
    assert status["stages"][1]["seconds"] > 0
    planned = json.loads(orrery("plan", "toy", f"run_dir={run_dir}", "add.scale=2", "--json")[1])
    assert planned["stages"][0]["artifact"] == str(run_dir / "make")
    with locked(run_dir):
        assert json.loads(orrery("status", str(run_dir), "--json")[1])["running"].startswith("process")


def test_plan_refuses_what_run_would(orrery, run_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "machine")
    for command in ("plan", "run"):
        code, _, err = orrery(command, "toy", f"run_dir={run_dir}")
        assert (code, err) == (2, "error: add needs an abacus: pip install 'toy[abacus]'\n")
    monkeypatch.delenv("TOY_FAILURE")
    orrery("run", "toy", f"run_dir={run_dir}")
    monkeypatch.setenv("TOY_FAILURE", "machine")
    code, out, _ = orrery("plan", "toy", f"run_dir={run_dir}")
    assert code == 0, "nothing has to be added"
    assert "up to date" in out


def test_a_user_error_is_one_message(orrery, run_dir: Path) -> None:
    code, out, err = orrery("run", "toy", "make.szie=2", f"run_dir={run_dir}")
    assert (code, out) == (2, "")
    assert err == "error: unknown key 'make.szie'. Did you mean 'make.size'?\n"
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--multirun", "seed=1,2"], ["--multirun", "orrery study STUDY 'grid.seed=[0,1,2]'"]),
        (["-m", "seed=1,2"], ["orrery study STUDY 'grid.seed=[0,1,2]'"]),
        (["--config-name=x"], ["Name the experiment or the path of a YAML file first"]),
        (["--cfg", "job"], ["orrery run EXPERIMENT --help"]),
        (["--make.si-ze=3"], ["Write settings without dashes: make.si_ze=3"]),
    ],
)
def test_an_option_of_hydra_is_answered_with_what_serves_its_purpose(orrery, capsys, words, parts) -> None:
    with pytest.raises(SystemExit) as exit_:
        orrery("run", "toy", *words)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    for part in parts:
        assert part in err


def test_overrides_without_an_experiment(orrery) -> None:
    code, _, err = orrery("run", "tasks=[a]")
    assert code == 2
    assert "expected the name of the experiment, for example toy, before the settings; found 'tasks=[a]'" in err


def only_line(err: str) -> str:
    [line] = err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_run_folder_deleted_meanwhile_is_one_line(orrery, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "folder deleted")
    code, _, err = orrery("run", "toy", f"run_dir={run_dir}")
    assert (code, run_dir.exists()) == (2, False)
    assert f"{run_dir} was deleted or moved; rerun the command to recreate it" in only_line(err)
    monkeypatch.delenv("TOY_FAILURE")
    assert orrery("run", "toy", f"run_dir={run_dir}")[0] == 0


def test_links_that_lead_nowhere_are_one_line(orrery, tmp_path: Path) -> None:
    loop, experiment = tmp_path / "loop", tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    experiment.symlink_to(experiment)
    for words in (
        ["run", "toy", f"run_dir={loop}"],
        ["run", "toy", f"run_dir={loop}/below"],
        ["plan", str(experiment)],
        ["study", str(experiment)],
        ["status", str(loop)],
        ["report", str(loop)],
    ):
        code, _, err = orrery(*words)
        assert code == 2
        assert "Too many levels of symbolic links. A link there points to itself; remove it" in only_line(err)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    _, _, err = orrery("run", "toy", f"run_dir={tmp_path / 'dangling'}")
    assert f"it is a link to {tmp_path / 'nowhere'}, which is not a folder" in only_line(err)


@pytest.mark.parametrize(
    ("file", "mode", "words"),
    [
        ("run.json", 0o200, ["status"]),
        ("log.txt", 0o400, ["run", "add.scale=2"]),
        (".lock", 0o400, ["run", "add.scale=2"]),
        ("make/manifest.json", 0o200, ["run", "add.scale=2"]),
        ("make/numbers.txt", 0o200, ["run", "add.scale=2"]),
        ("report", 0o500, ["run", "add.scale=2"]),
    ],
)
def test_a_file_that_another_user_keeps_is_one_line(
    orrery, run_dir: Path, tmp_path: Path, file: str, mode: int, words: list[str]
) -> None:
    assert orrery("run", "toy", f"run_dir={run_dir}")[0] == 0
    (run_dir / file).chmod(mode)
    words = [words[0], str(run_dir)] if words[0] == "status" else [words[0], "toy", f"run_dir={run_dir}", *words[1:]]
    script = "import sys; from pathlib import Path; from orrery.pipeline.cli import main; from tests.unit.toy_stages "
    script += "import STAGES; sys.exit(main(sys.argv[2:], stages=STAGES, config_dir=Path(sys.argv[1])))"
    command = [sys.executable, "-c", script, str(tmp_path / "configs"), *words]
    if os.geteuid() == 0:  # whom permissions do not stop, unless it gives up that right
        if shutil.which("setpriv") is None:
            pytest.skip("the tests run as root, and there is no setpriv to give up root's right to any file")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 2
    line = only_line(ended.stderr)
    assert "Permission denied" in line
    if file == ".lock":
        assert f"cannot write to the run folder {run_dir}" in line
    elif file == "report":
        assert f"{run_dir / 'report'}: Permission denied. It belongs to " in line
    else:
        assert f"error: {run_dir / file}: Permission denied. It belongs to {Path(run_dir).owner()}" in line
    (run_dir / file).chmod(0o700)  # so that the folder can be removed


def test_a_file_in_place_of_the_run_folder_is_one_message(orrery, run_dir: Path) -> None:
    run_dir.write_text("not a folder")
    code, _, err = orrery("run", "toy", f"run_dir={run_dir}")
    assert code == 2
    assert "Traceback" not in err
    assert "cannot write to the run folder" in err
    assert "run_dir=PATH" in " ".join(err.split())


def test_ctrl_c_says_how_to_go_on(orrery, run_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "interrupt")
    code, _, err = orrery("run", "toy", f"run_dir={run_dir}")
    assert code == 130
    assert "interrupted in stage add; rerun the command to continue" in err
    assert "add" in orrery("status", str(run_dir))[1]
    monkeypatch.delenv("TOY_FAILURE")
    _, out, _ = orrery("run", "toy", f"run_dir={run_dir}")
    assert "continuing (interrupted after" in out
    assert "total 3 (continued)" in out


def test_a_bug_keeps_its_traceback(orrery, run_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "bug")
    code, _, err = orrery("run", "toy", f"run_dir={run_dir}")
    assert code == 1
    assert "ZeroDivisionError: a bug" in err
    assert "ZeroDivisionError: a bug" in (run_dir / "log.txt").read_text()


def test_the_log_says_where_a_message_for_the_user_came_from(orrery, run_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "disk full")
    code, _, err = orrery("run", "toy", f"run_dir={run_dir}")
    assert code == 2
    assert "Traceback" not in err
    log = (run_dir / "log.txt").read_text()
    assert "stopped: the disk of" in log
    assert "Traceback (most recent call last)" in log
    assert "No space left on device" in log


def test_status_tells_the_stages_apart(orrery, run_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "interrupt")
    orrery("run", "toy", f"run_dir={run_dir}")
    code, out, _ = orrery("status", str(run_dir))
    assert code == 0
    assert "not running" in out
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [
        ["make", "done"],
        ["add", "interrupted"],
        ["report", "waiting"],
    ]
    assert "add     continue    interrupted after" in orrery("plan", "toy", f"run_dir={run_dir}")[1]
    commands = (("status", str(run_dir)), ("inspect", str(run_dir)), ("plan", "toy", f"run_dir={run_dir}"))
    with locked(run_dir):
        printed = [orrery(*command)[1] for command in commands]
    assert "running, process" in printed[0]
    for out in printed:
        assert re.search(r"^add +running", out, re.MULTILINE), out
    assert f"running     process {os.getpid()} on" in printed[2]

    code, _, err = orrery("status", str(run_dir / "mkae"))
    assert (code, err) == (2, f"error: there is no folder {run_dir / 'mkae'}; `orrery ls FOLDER` lists runs\n")
    code, _, err = orrery("status", str(run_dir / "make"))
    assert code == 2
    assert "is not a run folder" in err


def test_what_earlier_settings_left_is_listed_and_deleted(orrery, run_dir: Path, monkeypatch) -> None:
    run = ("toy", f"run_dir={run_dir}")
    assert orrery("clean", str(run_dir))[0] == 2
    orrery("run", *run)
    code, out, _ = orrery("clean", str(run_dir))
    assert (code, out) == (0, f"{run_dir} has no artifacts of earlier settings\n")
    monkeypatch.setenv("TOY_FAILURE", "bug")
    orrery("run", *run, "make.size=4")
    monkeypatch.delenv("TOY_FAILURE")
    planned = orrery("plan", *run, "make.size=5")[1]
    assert "artifacts of other settings, which will be kept: make, add, report" in planned
    orrery("run", *run, "make.size=5")
    for command in (("plan", *run), ("status", str(run_dir))):
        note = f"5 artifacts or attempts of earlier settings kept, 0.0 MiB; delete with: orrery clean {run_dir}"
        assert note in " ".join(orrery(*command)[1].split())
    code, out, _ = orrery("clean", str(run_dir), "--plan")
    assert (code, out.splitlines()[-1]) == (0, "0.0 MiB would be freed")
    assert re.search(r"^make +0.0 MiB  artifact of 20.*: 4 numbers *$", out, re.MULTILINE)
    assert re.search(r"^add +0.0 MiB  attempt interrupted after 0.* s *$", out, re.MULTILINE)
    assert (run_dir / KEPT_FOLDER).is_dir()
    assert orrery("clean", str(run_dir))[1].endswith("\n0.0 MiB freed\n")
    assert not (run_dir / KEPT_FOLDER).exists()
    assert orrery("run", *run, "make.size=5")[1].startswith("nothing to do")


def test_report_runs_that_stage_alone_from_what_there_is(orrery, run_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "interrupt")
    orrery("run", "toy", f"run_dir={run_dir}", "report.title=mine")
    code, out, _ = orrery("report", str(run_dir))
    assert code == 0
    assert f"report: {run_dir}/report/index.html" in out
    assert (run_dir / "report" / "index.html").read_text() == "mine [] ['make']"
    assert not (run_dir / "add").exists()

    monkeypatch.delenv("TOY_FAILURE")
    orrery("run", "toy", f"run_dir={run_dir}", "report.title=mine")
    (run_dir / "report" / "index.html").write_text("edited")
    assert orrery("report", str(run_dir))[0] == 0
    assert (run_dir / "report" / "index.html").read_text() == "mine ['3'] ['add', 'make']"


def test_help_names_experiments_keys_and_what_they_mean(orrery) -> None:
    code, out, _ = orrery("run", "--help")
    assert code == 0
    for part in ("toy", "Adds numbers", "Random seed of the whole run", "Their sum, in two halves", "run_dir"):
        assert part in out
    code, out, _ = orrery("run", "toy", "make.size=8", "--help")
    assert code == 0
    assert "make.size" in out
    assert "8 (int) Numbers to make; at least 1." in out
    assert orrery("run")[0] == 2


def test_version(capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"orrery {version('orrery')}\n"


def test_help_and_plan_import_nothing_heavy(tmp_path) -> None:
    script = (
        "import contextlib, sys, json\n"
        "from orrery.pipeline.cli import main\n"
        "found = []\n"
        f"for words in (['--help'], ['run', '--help'], ['plan', 'quickstart', 'run_dir={tmp_path}/run']):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):\n"
        "        assert main(words) == 0\n"
        "    found.append(sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    listing, *stages = map(set, json.loads(done.stdout))
    heavy = {
        "torch",
        "lightning",
        "mujoco",
        "dm_control",
        "metaworld",
        "minari",
        "h5py",
        "pandas",
        "matplotlib",
        "scipy",
    }
    assert all(heavy.isdisjoint(modules) for modules in (listing, *stages))
    assert {"hydra", "omegaconf", "numpy", "gymnasium", "yaml"}.isdisjoint(listing)


def test_stages_run_again_on_request(orrery, run_dir: Path, monkeypatch) -> None:
    run = ("run", "toy", f"run_dir={run_dir}")
    orrery(*run)
    planned = orrery("plan", *run[1:], "--from", "add")[1]
    assert re.search(r"^make +up to date.*\nadd +run +run again on request.*\nreport +run", planned, re.MULTILINE)
    _, out, _ = orrery(*run, "--from=add")
    assert ("[2/3] add" in out, "[3/3] report" in out, "[1/3] make: running" in out) == (True, True, False)
    assert "[1/3] make: running" in orrery(*run, "--force")[1]
    code, _, err = orrery(*run, "--from", "ad")
    assert (code, "--from: the run has no stage 'ad'. Did you mean 'add'? Stages: make, add, report" in err) == (
        2,
        True,
    )
    assert not (run_dir / KEPT_FOLDER).exists()

    monkeypatch.setenv("TOY_FAILURE", "interrupt")
    assert "rerun the command without --from and --force to continue" in orrery(*run, "--from", "add")[2]
    monkeypatch.delenv("TOY_FAILURE")
    assert "(continued)" in orrery(*run)[1]


def test_resume_repeats_the_last_command(orrery, run_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILURE", "interrupt")
    orrery("run", "toy", f"run_dir={run_dir}", "add.scale=2")
    monkeypatch.delenv("TOY_FAILURE")
    assert "total 6 (continued)" in orrery("resume", str(run_dir))[1]
    assert "is not a run folder" in orrery("resume", str(run_dir / "make"))[2]


def test_code_that_has_changed_is_said_and_makes_nothing_stale(orrery, run_dir: Path) -> None:
    run = ("run", "toy", f"run_dir={run_dir}")
    orrery(*run)
    for name, digest in (("make", "pipeline:0"), ("add", "pipeline:0"), ("report", "")):
        path = run_dir / name / "manifest.json"
        manifest = json.loads(path.read_text())
        assert "stages/world_model:" in manifest["versions"]["source"]
        former = re.sub(r"\bpipeline:\w+", digest, manifest["versions"]["source"]) if digest else ""
        path.write_text(json.dumps({**manifest, "versions": {**manifest["versions"], "source": former}}))
    for command in (run, ("plan", *run[1:])):
        code, out, _ = orrery(*command)
        assert code == 0
        assert "code changed since make, add ran: pipeline (--from make runs from there again)\n" in out
    assert "source" not in orrery("inspect", str(run_dir / "make"))[1]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("pretrain", "pretrain is a stage: orrery run EXPERIMENT stages=[pretrain]"),
        ("toy", "toy is an experiment: orrery run toy"),
        ("stauts", "unknown command 'stauts'. Did you mean 'status'? Commands: run, plan, resume,"),
    ],
)
def test_a_word_that_is_no_command_is_answered_with_the_command(orrery, words: str, answer: str) -> None:
    code, _, err = orrery(words)
    assert code == 2
    assert answer in only_line(err)


def test_status_and_plan_agree_about_damage_and_inspect_about_what_is_unfinished(
    orrery, run_dir: Path, monkeypatch
) -> None:
    run = ("toy", f"run_dir={run_dir}")
    monkeypatch.setenv("TOY_FAILURE", "bug")
    orrery("run", *run)
    for name in ("add", "add.partial"):
        code, out, _ = orrery("inspect", str(run_dir / name))
        assert code == 0
        assert f"stage add of the run in {run_dir} has no artifact: failed, see log.txt" in out
        assert "the same command continues it" in out
    assert "has no artifact: waiting" in orrery("inspect", str(run_dir / "report"))[1]
    assert "has no stage 'sub'" in orrery("inspect", str(run_dir / "sub"))[2]
    monkeypatch.delenv("TOY_FAILURE")
    orrery("run", *run)
    (run_dir / "make" / "numbers.txt").write_text("0")
    (run_dir / "add" / "manifest.json").write_text("{")
    shutil.rmtree(run_dir / "report")
    status, planned = orrery("status", str(run_dir))[1], orrery("plan", *run)[1]
    damage = f"output damaged: {run_dir / 'make' / 'numbers.txt'} has 1 bytes, expected 5"
    assert re.search(rf"^make +damaged .*{damage}", status, re.MULTILINE), status
    assert re.search(rf"^make +run +{damage}", planned, re.MULTILINE), planned
    assert re.search(r"^add +damaged .*output damaged: .*manifest.json is not JSON", status, re.MULTILINE)
    assert re.search(r"^report +damaged .*its folder was deleted", status, re.MULTILINE)
    orrery("run", *run)
    assert "damaged" not in orrery("status", str(run_dir))[1]
